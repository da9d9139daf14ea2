r"""A deep linear network has no spurious minimum, but from three layers on a saddle that is not strict: the origin, where the Hessian is zero.

$\min_{W_1, \dots, W_d} \tfrac12 |M - W_d \cdots W_1|^2$

At every critical point the product keeps a subset $S$ of the singular values of $M$, and the loss is $\tfrac12 \sum_{j \notin S} \sigma_j^2$, at any depth.
At the origin the least curvature is $-\sigma_1$ for two layers and 0 for more: no second-order test tells that saddle from a minimum.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.factorization import deep_loss, deep_product, kept, planted, scattered
from gnomon.numerics.critical import critical_points
from gnomon.theory import factorization


@dataclass(frozen=True)
class Settings:
    """A square matrix as a product of so many factors (three or more), descents on the norm of the gradient; what the first entry's square counts too much."""

    side: int
    depth: int
    starts: int
    tilt: float = 0.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """The matrix, and the critical points that are found."""
    target = planted(s.side, s.side, rng=rng)
    points, slopes = critical_points(partial(deep_loss, target=target), scattered(s.starts, s.depth * s.side**2, rng=rng))
    return target, points[slopes <= 1e-10]


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """From the singular values that each point keeps its loss; last, the least curvature at the origin."""
    held = kept(deep_product(shared[1], shared[0]), shared[0])
    losses = factorization.critical_losses(torch.linalg.svdvals(shared[0]), held).value
    return Reading.predicted("losses_and_curvature", np.append(losses, 0.0), unit="", source=Source("kawaguchi2016"), details={"kinds": len(held.unique(dim=0))})


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Reading:
    """The loss at each point, and the least eigenvalue of the whole Hessian at the origin."""
    loss = partial(deep_loss, target=shared[0], tilt=s.tilt)
    least = torch.linalg.eigvalsh(torch.func.hessian(loss)(torch.zeros_like(shared[1][0])))[:1]
    return Reading("losses_and_curvature", torch.cat([torch.vmap(loss)(shared[1]), least]), "")


CLAIM = Claim(
    version=1, entry="A3", source=Source("kawaguchi2016", "theorem 2.3"), relation="equal", predict=predict, measure=measure, prepare=prepare, scale=1.0,
    tolerance=Tolerance(lambda s: 1e-9, because="the loss is flat to first order: a gradient of 1e-10 leaves less than 1e-9 of it"),
    scales={"smoke": Settings(3, depth=3, starts=40), "standard": Settings(4, depth=3, starts=100), "paper": Settings(8, depth=4, starts=10_000)},
    sabotage=Sabotage("one entry counts a little more: a weighted factorisation, which has no such theorem", tilt=5e-8),
)  # fmt: skip
