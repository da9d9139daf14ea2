r"""Steps that fall as $c / t$ bring the error down as $1 / t$, with the covariance that a Lyapunov equation gives; averaged, longer steps bring it to the least possible.

$(c H - \tfrac12) V + V (c H - \tfrac12) = \frac{c^2}{B} \Sigma$ and $\bar V = \frac1B H^{-1} \Sigma H^{-1}$

$t \, \mathrm{Cov}$ tends to $V$ for the last iterate, $\eta_t = c / t$, $c \lambda_{\min} > 1/2$ (below that the start is forgotten more slowly), and to $\bar V$ for the average, $\eta_t \propto t^{-0.6}$.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.data.regression import regression
from gnomon.models.chains import falling_steps
from gnomon.theory import dynamics

CONSTANT, DELAY, FIRST = 2.0, 10, 0.8  # lr = 2 / (t + 10), so that the first steps are stable, and 0.8 t^-0.6 for the average


@dataclass(frozen=True)
class Settings:
    """Least squares with curvatures from 1 to 1/2: examples, inputs, condition; `times` the learning rates are what the steps have."""

    data: tuple[int, int, float]
    batch: int
    steps: int
    chains: int
    replicates: int
    times: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor, Sgd]:
    """The data, and how batches are drawn."""
    return *regression(*s.data, rng=rng), Sgd(lr=FIRST, batch_size=s.batch, examples=s.data[0], sampling="with_replacement")


def predict(s: Settings, shared: tuple[Tensor, Tensor, Sgd]) -> Reading:
    """Both limits; the truncation is the next order: start and noise of long steps, O(1 / t), and the ends of the average, 1 / (lr lambda_min t)."""
    p, lowest = dynamics.LeastSquares(*shared[:2]), 1 / s.data[2]
    both = dynamics.robbins_monro_covariance(p, shared[2], constant=CONSTANT), dynamics.averaged_covariance(p, shared[2])
    value = np.array([float(dynamics.excess_loss(covariance, p.hessian)) for covariance in both])
    late, axes = np.array([40 / s.steps, 2 / (FIRST * lowest * s.steps**0.4)]), (Axis("iterate", ("last, lr = c/t", "average, lr ~ t^-0.6")),)
    made = Reading.predicted("scaled_excess_loss", value, unit="loss × steps", error=late * value, error_kind="truncation", axes=axes)
    return made.replace(source=CLAIM.source, assumes=(f"c × least curvature = {CONSTANT * lowest:g}, above 1/2", "many steps"))


def measure(s: Settings, shared: tuple[Tensor, Tensor, Sgd], *, rng: Generator) -> Array:
    """One block of chains for each."""
    last = falling_steps(*shared, lambda t: s.times * CONSTANT / (t + DELAY), steps=s.steps, averaged=False, chains=s.chains, rng=rng)
    average = falling_steps(*shared, lambda t: s.times * FIRST * t**-0.6, steps=s.steps, averaged=True, chains=s.chains, rng=rng)
    return np.array([last * (s.steps + DELAY), average * s.steps])


CLAIM = Claim(
    version=1, entry="D1", source=Source("polyak1992", "theorem 1"), relation="equal", predict=predict, measure=measure, prepare=prepare, scales={"smoke": Settings((64, 8, 2.0), 4, 800, chains=500, replicates=5), "standard": Settings((64, 8, 2.0), 4, 1_600, chains=1_000, replicates=20), "paper": Settings((64, 8, 2.0), 4, 6_400, chains=10_000, replicates=40)}, sabotage=Sabotage("steps a quarter longer: the last iterate is noisier, its average is not", times=1.25),
)  # fmt: skip
