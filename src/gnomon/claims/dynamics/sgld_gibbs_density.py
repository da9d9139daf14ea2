r"""Noisy gradient descent with a small step settles in Gibbs' density.

$p(x) \propto e^{-U(x) / T}$

$x \leftarrow x - \eta U'(x) + \sqrt{2 \eta T} \xi$ on the double well $U = (x^2 - 1)^2$.  Measured is the share of time in cells of $x$, over many chains.  The density that a finite
step leads to differs in proportion to it: the first order of that change, twice, is the tolerance.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.langevin import LangevinChains, boltzmann_start, histogram
from gnomon.numerics.potentials import double_well
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Chains on the double well at this temperature, `heat` times which is what they have; cells between -`reach` and `reach`; time in units of 1 / U''."""

    temperature: float
    lr: float
    time: float
    chains: int
    replicates: int
    reach: float = 1.6
    cells: int = 8
    heat: float = 1.0


def edges(s: Settings) -> Array:
    """Between cells."""
    return np.linspace(-s.reach, s.reach, s.cells + 1)


def first_order(s: Settings) -> Array:
    """The size of what a step changes, in each cell, and at least its mean."""
    made = dynamics.sgld_density(double_well(), edges(s), temperature=s.temperature, lr=s.lr)
    change = np.abs(made.value - made.details["gibbs"])
    return np.maximum(change, change.mean())


def predict(s: Settings) -> Reading:
    """Gibbs' density in each cell."""
    made = dynamics.gibbs_density(double_well(), edges(s), temperature=s.temperature)
    return made.replace(assumes=(f"lr U'' << 1: at {s.lr:g} the shares change by up to {first_order(s).max():.2g}, in proportion to lr",))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of chains, half of them begun in each well, averaged over the second half of the time."""
    start = boltzmann_start(s.chains, 1, at=1.0, spread=0.3, rng=rng) * (torch.arange(s.chains) % 2 * 2 - 1)[:, None]
    chains = LangevinChains(double_well(), start, lr=s.lr, temperature=s.heat * s.temperature, rng=rng)
    chains.run(round(s.time / 2 / s.lr))
    looks, total = 10, torch.zeros(s.cells, dtype=torch.float64)
    for _ in range(looks):
        chains.run(round(s.time / 2 / s.lr / looks))
        total += histogram(chains.points[:, 0], torch.from_numpy(edges(s)))
    return Reading("gibbs_density", total / total.sum(), "", axes=(Axis("x", tuple(((edges(s)[1:] + edges(s)[:-1]) / 2).tolist())),))


CLAIM = Claim(
    version=1, entry="D5", source=Source("welling2011"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * first_order(s), because="twice the first order in the step, which the limit leaves out: the orders after it are smaller"),
    scales={
        "smoke": Settings(0.5, 0.01, 4.0, chains=10_000, replicates=6), "standard": Settings(0.5, 0.01, 10.0, chains=40_000, replicates=10),
        "paper": Settings(0.5, 0.0025, 20.0, chains=400_000, replicates=20),
    }, sabotage=Sabotage("a temperature a quarter higher", heat=1.25),
)  # fmt: skip
