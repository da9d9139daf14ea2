r"""Matrix factorisation has no spurious minimum: every critical point is a global minimum or a strict saddle.

$\min_{U, V} \tfrac12 |M - U V^T|^2$

Critical points keep a subset $S$ of at most $r$ singular values of $M$: the loss is $\tfrac12 \sum_{j \notin S} \sigma_j^2$, the least curvature $\min(0, \sigma_k - \sigma_l)$, with
$\sigma_k$ the least that is kept (0 where fewer than $r$ are) and $\sigma_l$ the largest that is not: negative but for the $r$ largest.  To fix the scale of the factors
$\tfrac18 |U^T U - V^T V|^2$ is added, which is 0 at every critical point.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.factorization import balanced_loss, balanced_product, kept, planted, scattered
from gnomon.numerics.critical import critical_points
from gnomon.theory import factorization


@dataclass(frozen=True)
class Settings:
    """A matrix of this shape, a rank below it, descents on the norm of the gradient; what the first entry's square counts too much."""

    shape: tuple[int, int]
    rank: int
    starts: int
    tilt: float = 0.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """The matrix, and the critical points that are found."""
    target = planted(*s.shape, rng=rng)
    points, slopes = critical_points(partial(balanced_loss, target=target), scattered(s.starts, sum(s.shape) * s.rank, rng=rng))
    return target, points[slopes <= 1e-12]


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """From the singular values that each point keeps: its loss and its least curvature."""
    singular, held = torch.linalg.svdvals(shared[0]), kept(balanced_product(shared[1], shared[0]), shared[0])
    values = factorization.critical_losses(singular, held).value, factorization.least_curvatures(singular, held, rank=s.rank).value
    return Reading.predicted("loss_and_curvature", values, unit="", source=Source("zhu2018"), details={"kinds": len(held.unique(dim=0))})


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Reading:
    """The loss and the least eigenvalue of the whole Hessian at each point."""
    loss = partial(balanced_loss, target=shared[0], tilt=s.tilt)
    least = torch.linalg.eigvalsh(torch.vmap(torch.func.hessian(loss))(shared[1]))[:, 0]
    return Reading("loss_and_curvature", torch.stack([torch.vmap(loss)(shared[1]), least]), "")


CLAIM = Claim(
    version=1, entry="A3", source=Source("zhu2018"), relation="equal", predict=predict, measure=measure, prepare=prepare, scale=1.0,
    tolerance=Tolerance(lambda s: 1e-9, because="the gradient left at a point, 1e-12, moves it by that over the curvature; what is measured there moves by less than 1e-9"),
    scales={"smoke": Settings((4, 3), rank=2, starts=60), "standard": Settings((6, 5), rank=3, starts=200), "paper": Settings((12, 10), rank=5, starts=10_000)},
    sabotage=Sabotage("one entry counts a little more: a weighted factorisation, which has no such theorem", tilt=1e-7),
)  # fmt: skip
