r"""Steps that fall as $c / t$ bring the error down as $1 / t$, with the covariance that a Lyapunov equation gives; averaged, longer steps bring it to the least possible.

$(c H - \tfrac12) V + V (c H - \tfrac12) = \frac{c^2}{B} \Sigma$ and $\bar V = \frac1B H^{-1} \Sigma H^{-1}$

$V$ and $\bar V$ are what $t \, \mathrm{Cov}$ tends to for the last iterate with $\eta_t = c / t$, where $c \lambda_{\min} > 1/2$ (below that the start is forgotten more slowly than $1/t$), and for the average
of all iterates with $\eta_t \propto t^{-0.6}$, whatever the constant.  Measured is $t$ times the excess loss on least squares.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.data.regression import regression
from gnomon.models.chains import LeastSquaresChains
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares with curvatures from 1 to 1/2; the c of lr = c / t, `times` which is what the steps have, and the first lr of t^-0.6."""

    examples: int
    dimension: int
    batch: int
    steps: int
    chains: int
    replicates: int
    constant: float = 2.0
    first: float = 0.8
    times: float = 1.0


def rule(s: Settings) -> Sgd:
    """The batches; the learning rate is that of each step's own."""
    return Sgd(lr=s.first, batch_size=s.batch, examples=s.examples, sampling="with_replacement")


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """The data."""
    return regression(s.examples, s.dimension, condition=2.0, rng=rng)


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """The excess loss of both limits; the truncation is the next order: start and noise of long steps, O(1 / t), and the ends of the average, 1 / (lr lambda_min t)."""
    problem = dynamics.LeastSquares(*(part.numpy() for part in shared))
    both = dynamics.robbins_monro_covariance(problem, rule(s), constant=s.constant), dynamics.averaged_covariance(problem, rule(s))
    value = np.array([float(dynamics.excess_loss(covariance, problem.hessian)) for covariance in both])
    late = np.array([40 / s.steps, 2 / (s.first / 2 * s.steps**0.4)])
    axes = (Axis("iterate", ("last, lr = c/t", "average, lr ~ t^-0.6")),)
    assumes = (f"c x least curvature = {s.constant / 2:g}, above 1/2", "many steps")
    return Reading.predicted(
        "scaled_excess_loss", value, unit="loss × steps", error=late * value, error_kind="truncation", axes=axes, source=Source("polyak1992", "theorem 1"), assumes=assumes
    )


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Array:
    """One block of chains for each, from the minimum."""
    x, y = shared
    minimum, hessian, delay = torch.linalg.lstsq(x, y[:, None]).solution[:, 0], x.T @ x / len(x), 10
    last, average = (LeastSquaresChains(x, y, rule(s), chains=s.chains, rng=rng, start=minimum) for _ in range(2))
    last.run(s.steps, schedule=lambda t: s.times * s.constant / (t + delay))
    average.run(s.steps, schedule=lambda t: s.times * s.first * t**-0.6, averaged=True)
    away = [last.theta - minimum, average.mean - minimum]
    return np.array([t * float(((e @ hessian) * e).sum(1).mean()) / 2 for t, e in zip((s.steps + delay, s.steps), away, strict=True)])


CLAIM = Claim(
    version=1, entry="D1", source=Source("polyak1992", "theorem 1"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={
        "smoke": Settings(64, 8, 4, 800, chains=500, replicates=5), "standard": Settings(64, 8, 4, 8_000, chains=1_000, replicates=10), "paper": Settings(64, 8, 4, 50_000, chains=4_000, replicates=20),
    }, sabotage=Sabotage("steps a quarter longer: the last iterate is noisier, its average is not", times=1.25),
)  # fmt: skip
