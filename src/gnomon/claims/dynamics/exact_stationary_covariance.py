r"""The exact recursion of second moments gives the covariance in which SGD settles on least squares, up to steps near the limit of stability.

$C = (1 - \eta H) C (1 - \eta H) + \frac{\eta^2}{B} \left( \Sigma + \frac{1}{N} \sum_i x_i x_i^T (x_i^T C x_i) - H C H \right)$

The noise is larger away from the minimum, which the last terms hold.  Measured is the variance along the sharpest direction, of eigenvector $u$, over
$\frac{\eta}{2 B} u^T \Sigma u / \lambda_{\max}$, which is what the Ornstein-Uhlenbeck process would have.  Near the limit of stability the prediction is several times that.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.sgd import Sampling, Sgd
from gnomon.core.source import Source
from gnomon.data.regression import regression
from gnomon.models.chains import stationary_moment
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares of so many examples and inputs, curvatures from 1 down to 1 / condition; steps, as lr times the largest curvature (which is 1), all times `shrink`."""

    examples: int
    dimension: int
    batch: int
    steps: tuple[float, ...]
    chains: int
    replicates: int
    condition: float = 10.0
    sampling: Sampling = "with_replacement"
    shrink: float = 1.0


Shared = tuple[Tensor, Tensor, Tensor, float]


def prepare(s: Settings, *, rng: Generator) -> Shared:
    """The data, the sharpest direction, and the variance along it in the Ornstein-Uhlenbeck process, over lr / 2 B."""
    x, y = regression(s.examples, s.dimension, condition=s.condition, rng=rng)
    sharpest = torch.linalg.eigh(x.T @ x / len(x))
    top = sharpest.eigenvectors[:, -1]
    residuals = x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0] - y
    return x, y, top, float((residuals * (x @ top)).square().mean() / sharpest.eigenvalues[-1])


def rules(s: Settings) -> list[Sgd]:
    """The steps."""
    return [Sgd(lr=step * s.shrink, batch_size=s.batch, examples=s.examples, sampling=s.sampling) for step in s.steps]


def predict(s: Settings, shared: Shared) -> Reading:
    """From the exact second moments; beside it where they diverge."""
    x, y, top, unit = shared
    problem, along = dynamics.LeastSquares(x.numpy(), y.numpy()), top.numpy()
    value = np.array([along @ dynamics.exact_covariance(problem, rule).value @ along * 2 * s.batch / rule.lr / unit for rule in rules(s)])
    return Reading.predicted(
        "variance_of_ou", value, unit="", error=0.03 * value, error_kind="truncation", axes=(Axis("lr × sharpness", s.steps),), source=Source("dieuleveut2020"),
        assumes=(f"lr × sharpness below {float(dynamics.mean_square_limit(problem, rules(s)[0])):.3f}, where the variance diverges",),
    )  # fmt: skip


def measure(s: Settings, shared: Shared, *, rng: Generator) -> Array:
    """One block of chains at each step."""
    x, y, top, unit = shared
    settled = [stationary_moment(x, y, rule, chains=s.chains, relaxations=3, rng=rng) for rule in rules(s)]
    return np.array([float(top @ c @ top) * 2 * s.batch / rule.lr / unit for c, rule in zip(settled, rules(s), strict=True)])


CLAIM = Claim(
    version=1, entry="D1", source=Source("dieuleveut2020"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={
        "smoke": Settings(96, 6, 8, (0.1, 0.5, 0.93), chains=300, replicates=8, condition=4.0), "standard": Settings(96, 10, 8, (0.05, 0.2, 0.4, 0.6, 0.8, 0.93), chains=400, replicates=40),
        "paper": Settings(96, 10, 8, (0.05, 0.2, 0.4, 0.6, 0.8, 0.93), chains=4_000, replicates=40),
    }, sabotage=Sabotage("batches drawn without replacement: their covariance is (N - B) / (N - 1) of that", sampling="without_replacement"),
)  # fmt: skip
