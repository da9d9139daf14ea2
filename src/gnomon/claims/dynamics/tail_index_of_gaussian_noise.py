r"""Of Gaussian noise the estimator of the tail index returns 2, so that a lower value shows heavy tails.

$\frac{1}{\hat\alpha} = \frac{1}{\log K_1} \left( \overline{\log |Y|} - \overline{\log |X|} \right)$

$Y$ are sums of $K_1$ of the $X$.  All coordinates of a gradient are given to it as one sample, as in the paper.  They have unequal scales, as those of any network: the sample is then a
mixture, and although every coordinate is Gaussian the estimate is $1 / \left( \frac12 + \frac{\frac12 \log E s^2 - E \log s}{\log K_1} \right) < 2$.
"""

import math
from dataclasses import dataclass

from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.instruments.noise_spectrum import tail_index_estimate


@dataclass(frozen=True)
class Settings:
    """So many coordinates, whose logarithms of scales are normal with this standard deviation; sums of `group` of them."""

    coordinates: int
    group: int
    replicates: int
    spread: float = 1.0


def predict(s: Settings) -> Reading:
    """2, the index of the normal law; what the mixture of scales gives is the other."""
    mixture = 1 / (0.5 + s.spread**2 / math.log(s.group))
    assumes = ("tails are what makes the index lower", f"by the scales alone it is to be {mixture:.2f}")
    return Reading.predicted("tail_index", 2.0, unit="", source=Source("simsekli2019"), assumes=assumes, details={"mixture": mixture})


def measure(s: Settings, *, rng: Generator) -> float:
    """The estimate from one gradient's worth of Gaussian noise."""
    scales = (s.spread * chance.normal(s.coordinates, rng=chance.child(rng, "scales"))).exp()
    noise = scales * chance.normal(s.coordinates, rng=chance.child(rng, "noise"))
    return 1 / float(tail_index_estimate(noise.numpy(), s.group))


CLAIM = Claim(
    version=1, entry="D5", source=Source("simsekli2019"), relation="equal", predict=predict, measure=measure, expected="fails",
    because="coordinates of unequal scales, pooled, look like heavy tails to the estimator, though each of them is Gaussian: the verdict on a network is what this control says",
    tolerance=Tolerance(lambda s: 0.1, because="a twentieth: an index of 1.9 would already be called heavy-tailed"),
    scales={"smoke": Settings(100_000, 100, replicates=8), "standard": Settings(1_000_000, 100, replicates=20), "paper": Settings(10_000_000, 1_000, replicates=20)},
    sabotage=Sabotage("equal scales: the control, of which the estimator says 2", spread=0.0),
)  # fmt: skip
