r"""Descent on a tensor of order $N$ as a sum of components moves the norm of each in proportion to its power $2 - 2/N$: large ones run away from small ones.

$\frac{d}{dt} |w_r| = N\, |w_r|^{2 - 2/N} \langle -\nabla L(W), \hat w_r \rangle$

On tensor completion from small balanced components.  Measured is the slope of the logarithm of each component's velocity over its pull $\langle -\nabla L, \hat w_r \rangle$
against that of its norm, over all components and times; the matrix case, $N = 2$, has the slope 1.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.tensor_factorization import completion, growth_exponent, normal_components
from gnomon.theory import factorization


@dataclass(frozen=True)
class Settings:
    """Orders, the modes' length, the rank, the share of entries seen; components and the norm they begin with; steps; their first vectors times `skew`, the last over it."""

    orders: tuple[int, ...]
    side: int
    rank: int
    share: float
    components: int
    size: float
    lr: float
    steps: int
    starts: int
    replicates: int
    skew: float = 1.0


def predict(s: Settings) -> Reading:
    """The power."""
    value = [factorization.component_exponent(order) for order in s.orders]
    return Reading.predicted("exponent", value, unit="", axes=(Axis("order", s.orders),), source=CLAIM.source, assumes=("components whose vectors have equal norms",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The fitted slope at each order, on one tensor."""
    found = []
    for order in s.orders:
        slope = completion((s.side,) * order, rank=s.rank, share=s.share, rng=chance.child(rng, "tensor", order))
        start = normal_components((s.side,) * order, components=s.components, size=s.size, starts=s.starts, skew=s.skew, rng=chance.child(rng, "start", order))
        found.append(growth_exponent(start, slope, lr=s.lr, steps=s.steps))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="D3", source=Source("razin2021", "theorem 1"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * s.lr, because="steps of lr: velocities are those of the flow up to lr x sharpness, and so are the slopes"),
    scales={"smoke": Settings((2, 3, 4), 4, 2, 0.5, 10, 0.01, lr=0.02, steps=600, starts=3, replicates=3), "standard": Settings((2, 3, 4), 6, 3, 0.4, 15, 0.01, lr=0.01, steps=1_500, starts=4, replicates=4), "paper": Settings((2, 3, 4, 5), 8, 5, 0.3, 50, 0.001, lr=0.005, steps=50_000, starts=10, replicates=10)},
    sabotage=Sabotage("vectors of unequal norms: a component's velocity then is no function of its norm", skew=3.0),
)  # fmt: skip
