r"""The bias of noisy gradient descent is in proportion to its step: half the step, half the bias.

$E_\eta[x^2] - E_0[x^2] = c \eta + O(\eta^2)$

To first order steps settle in the density of $U - \frac{\eta}{4} U'^2 + \frac{\eta T}{2} U''$.  Measured is $E[x^2]$ on $U = x^2 / 2 + x^4 / 4$, less that of Gibbs' density, over the bias
that this predicts for the largest step: 1, a half, a quarter.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.langevin import mean_square
from gnomon.numerics.potentials import quartic
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Chains on the quartic well at this temperature, for `time` after half as long to settle; the standard deviation of more noise in the gradient."""

    temperature: float
    lrs: tuple[float, ...]
    time: float
    chains: int
    replicates: int
    gradient_noise: float = 0.0


EDGES = np.linspace(-5, 5, 401)


def prepare(s: Settings, *, rng: Generator) -> tuple[float, float]:
    """E[x^2] in Gibbs' density, and the unit of the bias: that of the largest step, to first order (from a step so small that the next order is nothing)."""
    middles, small = (EDGES[1:] + EDGES[:-1]) / 2, 1e-4
    made = dynamics.sgld_density(quartic, EDGES, temperature=s.temperature, lr=small)
    limit, moved = (float(density @ middles**2) for density in (made.details["gibbs"], made.value))
    return limit, (moved - limit) / small * s.lrs[0]


def predict(s: Settings, shared: tuple[float, float]) -> Reading:
    """In proportion to the step."""
    value = np.array(s.lrs) / s.lrs[0]
    assumes = (f"lr U'' << 1; at lr = {s.lrs[0]:g} the bias is {shared[1] / shared[0]:.3f} of the value",)
    return Reading.predicted("bias", value, unit="", axes=(Axis("step", s.lrs, scale="log"),), source=Source("zygalakis2011"), assumes=assumes)


def measure(s: Settings, shared: tuple[float, float], *, rng: Generator) -> Array:
    """One block of chains a step."""
    settings = {"temperature": s.temperature, "gradient_noise": s.gradient_noise, "time": s.time, "spread": shared[0] ** 0.5}
    return (np.array([mean_square(quartic, lr=lr, chains=s.chains, rng=rng, **settings) for lr in s.lrs]) - shared[0]) / shared[1]


CLAIM = Claim(
    version=1, entry="D5", source=Source("zygalakis2011"), relation="equal", predict=predict, measure=measure, prepare=prepare, tolerance=Tolerance(lambda s: 2 * np.array(s.lrs) ** 2 / s.lrs[0], because="the next order is about lr U'' of the bias, and U'' = 1 + 3 x^2 is about 2 where the chains are"), scales={"smoke": Settings(0.5, (0.15, 0.075), 3.0, chains=60_000, replicates=6), "standard": Settings(0.5, (0.15, 0.075, 0.0375), 6.0, chains=100_000, replicates=12), "paper": Settings(0.5, (0.1, 0.05, 0.025), 20.0, chains=1_000_000, replicates=20)}, sabotage=Sabotage("gradients of few examples, whose noise warms the chains", gradient_noise=0.5),
)  # fmt: skip
