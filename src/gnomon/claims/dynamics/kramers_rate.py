r"""Noisy descent leaves a well at Kramers' rate.

$k = \frac{\sqrt{U''(a) |U''(b)|}}{2 \pi} e^{-\Delta U / T}$

On $U = (x^2 - 1)^2$, from $a = -1$ over $b = 0$.  The formula is the first term for $T \ll \Delta U$: the next is about half of $T / \Delta U$ for this barrier, and at
$T > \Delta U / 2$ the escape is no rare event.  Measured is how often a chain that is put back to $a$ arrives in the other minimum.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.langevin import LangevinChains
from gnomon.numerics.potentials import double_well
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Chains in a well whose barrier is 1, at this temperature, `heat` times which is what they have, for `time`."""

    temperature: float
    lr: float
    time: float
    chains: int
    replicates: int
    heat: float = 1.0


def at(x: float) -> torch.Tensor:
    """A point."""
    return torch.tensor([x], dtype=torch.float64)


def predict(s: Settings) -> Reading:
    """Kramers' rate over that at the same place: 1; its truncation is the tolerance.  Beside it the exact mean passage time."""
    rate = dynamics.kramers_rate(double_well(), at(-1.0), at(0.0), temperature=s.temperature)
    exact = dynamics.mean_passage_time(double_well(), -1.0, 1.0, temperature=s.temperature, wall=-3.0)
    return rate.replace(assumes=(*rate.assumes, f"the exact mean passage time gives {1 / float(exact):.4g}"))


def measure(s: Settings, *, rng: Generator) -> float:
    """Arrivals in the other minimum, over the time of all chains."""
    chains = LangevinChains(double_well(), at(-1.0).expand(s.chains, 1), lr=s.lr, temperature=s.heat * s.temperature, rng=rng)
    steps = round(s.time / s.lr)
    chains.arrivals(round(3 / s.lr), home=at(-1.0), arrived=lambda points: points[:, 0] >= 1)  # none can arrive before it has had the time to pass
    return chains.arrivals(steps, home=at(-1.0), arrived=lambda points: points[:, 0] >= 1) / (s.chains * steps * s.lr)


CLAIM = Claim(
    version=1, entry="D5", source=Source("kramers1940"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: float(predict(s).error), because="three quarters of T / barrier: the next order is about half of it"),
    scales={"smoke": Settings(0.4, 0.01, 6.0, chains=2_000, replicates=4), "standard": Settings(0.3, 0.004, 20.0, chains=4_000, replicates=8), "paper": Settings(0.2, 0.004, 60.0, chains=40_000, replicates=20)},
    sabotage=Sabotage("a temperature a third lower than stated", heat=2 / 3),
)  # fmt: skip
