r"""Gradient descent on a product of $N$ matrices moves each singular value in proportion to $\sigma^{2 - 2/N}$: small ones stay small.

$\dot \sigma_r = -N \sigma_r^{2 - 2/N} \langle \nabla L(W), u_r v_r^T \rangle$

On matrix completion, from balanced factors: the equation is integrated along the path of the product, and set beside its singular values.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.deep_matrix import balanced_factors, descend, skewed, squared_slope
from gnomon.models.factorization import observed, of_rank
from gnomon.theory import factorization


@dataclass(frozen=True)
class Settings:
    """A square matrix of this rank, the share of its entries seen, numbers of factors, the first product's entries; steps; W_1 times `skew`, W_N over it."""

    side: int
    rank: int
    share: float
    depths: tuple[int, ...]
    start: float
    lr: float
    steps: int
    skew: float = 1.0


Shared = tuple[Tensor, Tensor, Tensor]
TIMES = 5


def prepare(s: Settings, *, rng: Generator) -> Shared:
    """The matrix, what is seen of it, and the first product."""
    return of_rank(s.side, s.rank, rng=rng), observed(s.side, s.share, rng=rng), s.start * chance.normal(1, s.side, s.side, rng=chance.child(rng, "start"))


def path(s: Settings, shared: Shared, depth: int, every: int) -> Tensor:
    """The product after each `every` steps."""
    factors = skewed(balanced_factors(shared[2], depth), s.skew)
    return descend(factors, squared_slope(*shared[:2]), lr=s.lr, records=range(0, s.steps + 1, every))[:, 0]


def predict(s: Settings, shared: Shared) -> Reading:
    """The singular values at the start, and their velocities along the path, integrated."""
    slope, every, made = squared_slope(*shared[:2]), s.steps // 400, []
    for depth in s.depths:
        way = path(s, shared, depth, every)
        rates = factorization.singular_value_velocities(way, slope(way), depth).value
        gained = integrate.cumulative_trapezoid(rates, dx=every * s.lr, axis=0)
        made.append((torch.linalg.svdvals(way[0]).numpy() + gained)[400 // TIMES - 1 :: 400 // TIMES])
    times = tuple(s.lr * s.steps * k / TIMES for k in range(1, TIMES + 1))
    axes = (Axis("factors", s.depths), Axis("time", times), Axis("singular value", tuple(float(k) for k in range(1, s.side + 1))))
    return Reading.predicted("singular_values", np.stack(made), unit="", axes=axes, source=CLAIM.source, assumes=factorization.BALANCED_FLOW)


def measure(s: Settings, shared: Shared, *, rng: Generator) -> Tensor:
    """Those of the product itself."""
    return torch.stack([torch.linalg.svdvals(path(s, shared, depth, s.steps // TIMES)[1:]) for depth in s.depths])


CLAIM = Claim(
    version=1, entry="D2", source=Source("arora2019", "theorem 3"), relation="equal", predict=predict, measure=measure, prepare=prepare, scale=1.0,
    tolerance=Tolerance(lambda s: max(s.depths) * s.lr, because="a step is lr x sharpness away from the flow, and the sharpness at a matrix of norm 1 is the number of factors"),
    scales={
        "smoke": Settings(6, 2, 0.6, (2, 3), 0.05, lr=0.01, steps=2_800), "standard": Settings(12, 3, 0.5, (2, 3, 4), 0.03, lr=0.01, steps=12_000),
        "paper": Settings(100, 5, 0.2, (2, 3, 4), 0.01, lr=0.002, steps=100_000),
    }, sabotage=Sabotage("factors that are not balanced: the same product, moving faster", skew=1.6),
)  # fmt: skip
