r"""Noisy gradient descent with a small step settles in Gibbs' density.

$p(x) \propto e^{-U(x) / T}$

$x \leftarrow x - \eta U'(x) + \sqrt{2 \eta T} \xi$ on the double well $U = (x^2 - 1)^2$.  Measured is the share of time in cells of $x$, over many chains.  The density that a finite
step leads to differs in proportion to it: the first order of that change, twice, is the tolerance.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.models.langevin import occupation
from gnomon.numerics.potentials import double_well
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Chains on the double well at this temperature, `heat` times which is what they have; time in units of 1 / U''."""

    temperature: float
    lr: float
    time: float
    chains: int
    replicates: int
    heat: float = 1.0


EDGES = np.linspace(-1.6, 1.6, 9)


def first_order(s: Settings) -> Array:
    """The size of what a step changes, in each cell, and at least its mean."""
    made = dynamics.sgld_density(double_well(), EDGES, temperature=s.temperature, lr=s.lr)
    change = np.abs(made.value - made.details["gibbs"])
    return np.maximum(change, change.mean())


def predict(s: Settings) -> Reading:
    """Gibbs' density in each cell."""
    made = dynamics.gibbs_density(double_well(), EDGES, temperature=s.temperature)
    return made.replace(assumes=(f"lr U'' << 1: at {s.lr:g} the shares change by up to {first_order(s).max():.2g}, in proportion to lr",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """One block of chains, half of them begun in each well, averaged over the second half of the time."""
    return occupation(double_well(), EDGES, lr=s.lr, temperature=s.heat * s.temperature, time=s.time, chains=s.chains, wells=(-1.0, 1.0), spread=0.3, rng=rng)


CLAIM = Claim(
    version=1, entry="D5", source=Source("welling2011"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * first_order(s), because="twice the first order in the step, which the limit leaves out: the orders after it are smaller"),
    scales={"smoke": Settings(0.5, 0.01, 4.0, chains=10_000, replicates=6), "standard": Settings(0.5, 0.01, 10.0, chains=40_000, replicates=10), "paper": Settings(0.5, 0.0025, 20.0, chains=400_000, replicates=20)},
    sabotage=Sabotage("a temperature a quarter higher", heat=1.25),
)  # fmt: skip
