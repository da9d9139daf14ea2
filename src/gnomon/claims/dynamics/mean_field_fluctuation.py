r"""A trained two-layer network of $n$ units in the mean-field scaling fluctuates as $1 / n$ from start to start, and two of its units are correlated as $1 / n$.

$\mathrm{Var} f_n \propto \frac{1}{n}, \quad \mathrm{Cov}(u_1, u_2) \propto \frac{1}{n}, \quad f_n = \frac{1}{n} \sum_i u_i$

The units $u_i(x) = a_i\, \mathrm{erf}(w_i x / \sqrt 2)$ begin independent, and training couples them through $f_n$ alone: in the limit they stay independent, which is
called propagation of chaos.  Measured are both slopes against the width, after training.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.teacher_student import fluctuations, particle_outputs


@dataclass(frozen=True)
class Settings:
    """Points and their dimension, widths, networks of each; training; the share of the units' variance that they begin with in common."""

    data: tuple[int, int]
    widths: tuple[int, ...]
    networks: int
    lr: float
    steps: int
    replicates: int
    common: float = 0.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """Normal points, and a wave along a direction as the target."""
    inputs = chance.normal(*s.data, rng=rng)
    return inputs, torch.sin(2 * inputs[:, 0])


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """Both orders."""
    axes = (Axis("of", ("variance", "covariance of units")),)
    return Reading.predicted("slope", [-1.0, -1.0], unit="", axes=axes, source=CLAIM.source, assumes=("independent units at the start", "mean-field scaling, a fixed time"))


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Array:
    """From one block of networks at each width."""
    found = []
    for width in s.widths:
        units = particle_outputs(*shared, width=width, networks=s.networks, lr=s.lr, steps=s.steps, common=s.common, rng=chance.child(rng, "width", width))
        found.append(fluctuations(units))
    return np.polyfit(np.log(s.widths), np.log(found), 1)[0]


CLAIM = Claim(
    version=1, entry="A3", source=Source("mei2018"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    tolerance=Tolerance(lambda s: 2 / s.widths[0], because="the next order is 1 / n of both, largest at the least width; a unit moves by about as much as it began with"),
    scales={"smoke": Settings((6, 2), (8, 16, 32), 400, lr=0.5, steps=30, replicates=4), "standard": Settings((8, 2), (10, 20, 40, 80), 600, lr=0.5, steps=50, replicates=6), "paper": Settings((20, 5), (16, 64, 256, 1_024), 10_000, lr=0.5, steps=300, replicates=20)}, sabotage=Sabotage("units that begin dependent: that does not go away with the width", common=0.5),
)  # fmt: skip
