r"""There is a matrix completion on which gradient descent takes every norm to infinity while the rank falls to its least: no norm is what it makes small.

$|w_{11}| \ge \frac{(1 - \sqrt{2 L})^2}{\sqrt{2 L}}, \quad \sigma_2 \le \sqrt{2 L}$

The completion of $((?, 1), (1, 0))$ from a start of positive determinant, as a product of three factors and more (of two, steps cross the determinant 0 in the end, and the entry stops).  Measured are $|w_{11}|$ and $1 / \sigma_2$ at the end,
over their least values at the loss that is left.  From a negative determinant the free entry stays small.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.deep_matrix import balanced_factors, descend, squared_slope
from gnomon.theory import factorization


@dataclass(frozen=True)
class Settings:
    """Numbers of factors, starts, the size of the first product's entries, and the steps after which it is looked at; the sign of its determinant at the start."""

    depths: tuple[int, ...]
    starts: int
    size: float
    lr: float
    steps: tuple[int, ...]
    sign: int = 1


def predict(s: Settings) -> Reading:
    """Both bounds are met, at each time and from each start."""
    axes = (Axis("factors", s.depths), Axis("steps", s.steps, "", "log"), Axis("bound on", ("|w_11|", "1 / sigma_2")))
    assumes = ("a start of positive determinant", *factorization.BALANCED_FLOW)
    return Reading.predicted("share_of_bound", np.ones([len(axis.values) for axis in axes]), unit="", axes=axes, source=CLAIM.source, assumes=assumes)


def measure(s: Settings, *, rng: Generator) -> Tensor:
    """|w_11| and 1 / sigma_2 over their bounds, as far as 1, the least of all starts."""
    target, seen = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double()
    shares = []
    for depth in s.depths:
        start = s.size * chance.normal(s.starts, 2, 2, rng=chance.child(rng, "start"))
        start[..., 0] *= s.sign * torch.linalg.det(start).sign()[:, None]
        made = descend(balanced_factors(start, depth), squared_slope(target, seen), lr=s.lr, records=s.steps)
        root = (seen * (made - target)).norm(dim=(-2, -1))
        both = torch.stack([made[..., 0, 0].abs() * root / (1 - root) ** 2, root / torch.linalg.svdvals(made)[..., 1]], -1)
        shares.append(both.clamp(max=1.0).amin(1))
    return torch.stack(shares)


CLAIM = Claim(
    version=1, entry="D2", source=Source("razin2020", "theorem 1"), relation="at_least", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 0.2, because="the bounds are those of the flow; a step is lr x sharpness from it, which grows to about a fifth with the free entry"),
    scales={"smoke": Settings((3, 4), 8, 0.2, 0.02, (500, 1_000, 2_000)), "standard": Settings((3, 4, 5), 32, 0.2, 0.01, (10_000, 20_000, 30_000)), "paper": Settings((3, 4, 5), 1_000, 0.2, 0.005, (10_000, 100_000, 1_000_000))}, sabotage=Sabotage("a start of negative determinant: the free entry stays small", sign=-1),
)  # fmt: skip
