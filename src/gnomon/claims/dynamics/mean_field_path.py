r"""A wide two-layer network that learns from another follows the motion of a density of units.

$\frac{d\rho}{dt} = \nabla \cdot (\rho\, \nabla \frac{\delta L}{\delta \rho}), \quad f = \int a\, s(w \cdot x)\, d\rho$

Units $a_i\, \mathrm{erf}(w_i x / \sqrt 2)$ in the mean-field scaling, $f_n = \frac{1}{n} \sum_i u_i$, each with steps of $n \eta$; time is $\eta$ times the steps.  Measured are the outputs at
points that were not learnt, averaged over networks: their mean departs from the limit as $1 / n$, a single network as $1 / \sqrt n$.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.models.teacher_student import committee, orthogonal_teacher, particle_paths
from gnomon.theory.particles import mean_field_path


@dataclass(frozen=True)
class Settings:
    """Examples, points between them, inputs and teacher's units; width and number of networks; the step and the times; what multiplies the step."""

    data: tuple[int, int, int, int]
    width: int
    networks: int
    lr: float
    times: tuple[float, ...]
    replicates: int
    factor: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Normal examples, the mean of a teacher's units on them, and other points."""
    examples, points, inputs, units = s.data
    x = chance.normal(examples, inputs, rng=rng)
    return x, committee(1.5 * orthogonal_teacher(units, inputs, rng=rng), x) / units, chance.normal(points, inputs, rng=rng)


def predict(s: Settings, shared: tuple[Tensor, Tensor, Tensor]) -> Reading:
    """The limit's outputs."""
    inputs, targets, points = shared
    return mean_field_path(inputs, targets, times=s.times, at=points, activation=lambda z: torch.erf(z / math.sqrt(2)), particles=4096)


def measure(s: Settings, shared: tuple[Tensor, Tensor, Tensor], *, rng: Generator) -> Array:
    """The mean over a block of networks."""
    records = [round(time / s.lr) for time in s.times]
    return particle_paths(*shared, width=s.width, networks=s.networks, lr=s.lr * s.factor, records=records, rng=rng).mean(1).numpy()


CLAIM = Claim(
    version=1, entry="A3", source=Source("mei2018"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    tolerance=Tolerance(lambda s: 2 / s.width, because="the next order of the mean is that of one unit of n, and a unit is of order 1: as for the claim of the fluctuations"),
    scales={"smoke": Settings((12, 6, 3, 2), 50, 100, 0.1, (2.0, 5.0), replicates=4), "standard": Settings((24, 10, 4, 2), 100, 100, 0.05, (2.0, 5.0, 10.0, 20.0), replicates=6), "paper": Settings((200, 20, 10, 3), 1_000, 1_000, 0.02, (2.0, 5.0, 10.0, 50.0), replicates=20)},
    sabotage=Sabotage("steps that are half as long again", factor=1.5),
)  # fmt: skip
