r"""At criticality the signal of a tanh network dies slowly: the variance of its pre-activations falls as 1/(2 l) with depth.

$K^{(l)} = \frac{1}{2 l}$ to leading order, at $C_W = 1$ and $C_b = 0$.  $\langle \tanh^2 \rangle_K = K - 2 K^2 + \frac{17}{3} K^3 + \ldots$, so
$1/K' = 1/K + 2 - \frac{5}{3} K + \ldots$ and $1/K^{(l)} = 2 l + c - \frac{5}{6} \ln l$, where $c = -1$ up to the first layers' part for $K^{(1)} = 1$; and at width $n$
the mean of $z^2$ is $K + D/n$ with $D \to -1/6$, which is relative $-l/(3 n)$.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.instruments import ensembles
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory import effective


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block, read at the layers from half the depth on, `every` so many."""

    depth: int
    width: int
    members: int
    replicates: int
    every: int
    activation: str = "tanh"


def layers(s: Settings) -> Array:
    """The layers that are read."""
    return torch.arange(s.depth // 2, s.depth + 1, s.every).double().numpy()


def predict(s: Settings) -> Reading:
    """The power law of the class, with the rate of tanh."""
    law = effective.critical_point(torch.tanh).exponents
    at = layers(s)
    axes, source = (Axis("layer", tuple(map(float, at))),), Source("roberts2022", "section 5.3.3")
    return Reading.predicted("preactivation_variance", (law.rate * at) ** -law.kernel, unit="", axes=axes, source=source)


def measure(s: Settings, *, rng: Generator) -> Array:
    """One block of networks, at inputs of mean square 1."""
    inputs = torch.ones(1, s.width, dtype=torch.float64)
    drawn = draw_preactivations(getattr(torch, s.activation), inputs, depth=s.depth, width=s.width, members=s.members, weight_variance=1.0, rng=rng)
    return ensembles.preactivation_variance(drawn[layers(s).astype(int) - 1, :, 0]).value


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "section 5.3.3"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: predict(s).value * ((1 + torch.tensor(layers(s)).log().numpy()) / (2 * layers(s)) + layers(s) / (3 * s.width)),
                        because="the next orders: (1 + ln l)/(2 l), which is above |c - 5/6 ln l|/(2 l), and l/(3 n)"),
    scales={"smoke": Settings(16, 60, members=40, replicates=8, every=4), "standard": Settings(32, 200, members=40, replicates=20, every=4), "paper": Settings(64, 1600, members=50, replicates=80, every=8)},
    sabotage=Sabotage("the signal of sine falls as 1/l", activation="sin"),
)  # fmt: skip
