r"""Gradient descent on a product of $N$ matrices moves each singular value in proportion to $\sigma^{2 - 2/N}$: small ones stay small.

$\dot \sigma_r = -N \sigma_r^{2 - 2/N} \langle \nabla L(W), u_r v_r^T \rangle$

On matrix completion, from balanced factors: the equation is integrated along the path of the product, and set beside its singular values.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.deep_matrix import completion_path, squared_slope
from gnomon.models.factorization import observed, of_rank
from gnomon.theory import factorization


@dataclass(frozen=True)
class Settings:
    """Side, rank and seen share of a matrix, numbers of factors, the first product's entries; steps; W_1 times `skew`, W_N over it."""

    matrix: tuple[int, int, float]
    depths: tuple[int, ...]
    start: float
    lr: float
    steps: int
    skew: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix, what is seen of it, and the first product."""
    start = s.start * chance.normal(1, s.matrix[0], s.matrix[0], rng=chance.child(rng, "start"))
    return of_rank(*s.matrix[:2], rng=rng), observed(s.matrix[0], s.matrix[2], rng=rng), start


def predict(s: Settings, shared: tuple[Tensor, Tensor, Tensor]) -> Reading:
    """Those at the start, and their velocities along the path, integrated."""
    slope, every = squared_slope(*shared[:2]), s.steps // 400
    paths = [completion_path(*shared, depth=depth, skew=1.0, lr=s.lr, steps=s.steps, every=every) for depth in s.depths]
    made = [factorization.singular_values_along(path, slope(path), depth, spacing=every * s.lr) for path, depth in zip(paths, s.depths, strict=True)]
    axes = Axis("factors", s.depths), Axis("time", tuple(s.lr * s.steps * k / 5 for k in range(1, 6))), Axis("place", tuple(range(1, 1 + s.matrix[0])))
    return made[0].replace(value=np.stack([each.value[400 // 5 :: 400 // 5] for each in made]), error=0.0, axes=axes)


def measure(s: Settings, shared: tuple[Tensor, Tensor, Tensor], *, rng: Generator) -> Tensor:
    """Those of the product itself."""
    paths = [completion_path(*shared, depth=depth, skew=s.skew, lr=s.lr, steps=s.steps, every=s.steps // 5)[1:] for depth in s.depths]
    return torch.linalg.svdvals(torch.stack(paths))


CLAIM = Claim(
    version=1, entry="D2", source=Source("arora2019", "theorem 3"), relation="equal", predict=predict, measure=measure, prepare=prepare, scale=1.0,
    tolerance=Tolerance(lambda s: max(s.depths) * s.lr, because="a step is lr x sharpness away from the flow, and the sharpness at a matrix of norm 1 is the number of factors"),
    scales={"smoke": Settings((6, 2, 0.6), (2, 3), 0.05, lr=0.01, steps=2_800), "standard": Settings((12, 3, 0.5), (2, 3, 4), 0.03, lr=0.01, steps=12_000), "paper": Settings((100, 5, 0.2), (2, 3, 4), 0.01, lr=0.002, steps=100_000)}, sabotage=Sabotage("factors that are not balanced: the same product, moving faster", skew=1.6),
)  # fmt: skip
