r"""The deeper the factorisation, the lower the effective rank at which gradient descent from small weights completes a matrix.

$\mathrm{erank}(W) = \exp\left(-\sum_r p_r \log p_r\right), \quad p_r = \frac{\sigma_r}{\sum_q \sigma_q}$

Every further one makes large singular values grow faster beside small ones.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.deep_matrix import descend, effective_rank, normal_factors, squared_slope
from gnomon.models.factorization import observed, of_rank


@dataclass(frozen=True)
class Settings:
    """A square matrix of this rank, the share of its entries seen, numbers of factors, the first product's norm, for `time` = lr x steps;
    what each further factor multiplies that norm by."""

    side: int
    rank: int
    share: float
    depths: tuple[int, ...]
    start: float
    lr: float
    time: float
    starts: int
    replicates: int
    growth: float = 1.0


def predict(s: Settings) -> Reading:
    """It falls."""
    value = -np.arange(1.0, len(s.depths) + 1)
    return Reading.predicted("effective_rank", value, unit="", axes=(Axis("factors", s.depths),), source=CLAIM.source, assumes=("small starts", "few entries seen"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over starts on one matrix, at each depth, from products of one size."""
    slope = squared_slope(of_rank(s.side, s.rank, rng=rng), observed(s.side, s.share, rng=rng))
    found = []
    for depth in s.depths:
        factors = normal_factors((s.side, s.side), depth=depth, size=s.start * s.growth ** (depth - s.depths[0]), starts=s.starts, rng=chance.child(rng, "start", depth))
        found.append(float(effective_rank(descend(factors, slope, lr=s.lr / depth, records=[round(s.time / s.lr * depth)])[-1]).mean()))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="D2", source=Source("arora2019", "section 2"), relation="monotone", predict=predict, measure=measure,
    scales={
        "smoke": Settings(8, 2, 0.5, (2, 3, 4), 0.05, lr=0.1, time=50.0, starts=6, replicates=4), "standard": Settings(12, 3, 0.5, (2, 3, 4), 0.03, lr=0.1, time=100.0, starts=8, replicates=4),
        "paper": Settings(100, 5, 0.2, (2, 3, 4), 0.01, lr=0.05, time=3_000.0, starts=10, replicates=10),
    }, sabotage=Sabotage("deeper products that begin larger: what they began with is still in them", growth=10.0),
)  # fmt: skip
