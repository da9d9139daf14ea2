r"""Weights kept normalised, by a multiplier, by weight normalisation or by projection, come to the same critical points of an exponential loss.

$(1 - v v^T) \nabla L(\rho v) = 0$

On separable data, at a norm $\rho$; measured is the direction that each of the three descents reaches.  As $\rho$ grows it nears that of the largest margin, as $1 / \rho$:
so does plain descent, whose norm grows by itself, but only as $\log t$.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.separable import normalised_flows, separable
from gnomon.theory import margin


@dataclass(frozen=True)
class Settings:
    """Data sets, examples and inputs, pushed `gap` away from a plane; norms of the weights, and steps; what multiplies the norms."""

    data: tuple[int, int, int]
    gap: float
    norms: tuple[float, ...]
    steps: int
    factor: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """The data sets."""
    return separable(*s.data, gap=s.gap, rng=rng)


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """The least loss at each norm, by Newton's method, for all three; and how far it is from the largest margin."""
    found = np.array([[margin.normalised_direction(x, y, norm=norm).value for norm in s.norms] for x, y in zip(*shared, strict=True)])
    widest = np.array([margin.max_margin(x, y).direction for x, y in zip(*shared, strict=True)])
    apart = np.linalg.norm(found - widest[:, None], axis=2).mean(0)
    axes = Axis("set", tuple(range(s.data[0]))), Axis("norm", s.norms), Axis("flow", ("multiplier", "weight normalisation", "projection")), Axis("input", tuple(range(s.data[2])))
    value = np.repeat(found[:, :, None], 3, 2)
    return Reading.predicted("direction", value, unit="", axes=axes, source=CLAIM.source, assumes=("separable data",), details={"from_the_largest_margin": apart.tolist()})


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Tensor:
    """The directions that are reached."""
    return torch.stack([torch.stack([normalised_flows(x, y, norm=norm * s.factor, steps=s.steps) for norm in s.norms]) for x, y in zip(*shared, strict=True)])


CLAIM = Claim(
    version=1, entry="C5", source=Source("poggio2020"), relation="equal", predict=predict, measure=measure, prepare=prepare, scale=1.0, tolerance=Tolerance(lambda s: 1e-6, because="a descent that has converged to a relative step of 1e-9, at a rate of about a thousandth a step"),
    scales={"smoke": Settings((2, 20, 3), 0.5, (2.0, 8.0), 2_000), "standard": Settings((8, 40, 5), 0.5, (1.0, 4.0, 16.0), 10_000), "paper": Settings((32, 200, 20), 0.5, (1.0, 4.0, 16.0, 64.0), 100_000)}, sabotage=Sabotage("a norm that is one part in 20,000 larger", factor=1.00005),
)  # fmt: skip
