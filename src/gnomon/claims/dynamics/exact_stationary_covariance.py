r"""The exact recursion of second moments gives the covariance in which SGD settles on least squares, up to steps near the limit of stability.

$C = (1 - \eta H) C (1 - \eta H) + \frac{\eta^2}{B} \left( \Sigma + \frac{1}{N} \sum_i x_i x_i^T (x_i^T C x_i) - H C H \right)$

The noise is larger away from the minimum, which the last terms hold.  Measured is the variance along the sharpest direction, over that of an Ornstein-Uhlenbeck
process.  Near the limit of stability it is several times that.
"""

from dataclasses import dataclass

from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.sgd import Sampling, Sgd
from gnomon.core.source import Source
from gnomon.data.regression import regression
from gnomon.models.chains import sharpest_variances
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares: examples, inputs, and their curvatures from 1 down to 1 / condition; steps, as lr times the largest curvature, all times `shrink`."""

    data: tuple[int, int, float]
    batch: int
    steps: tuple[float, ...]
    chains: int
    replicates: int
    sampling: Sampling = "with_replacement"
    shrink: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor]:
    """The data."""
    return regression(*s.data, rng=rng)


def rule(s: Settings) -> Sgd:
    """How batches are drawn; the learning rate is that of each step's own."""
    return Sgd(lr=1.0, batch_size=s.batch, examples=s.data[0], sampling=s.sampling)


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """From the exact second moments; 3 % is the tolerance that was set beforehand."""
    made = dynamics.variance_over_ou(dynamics.LeastSquares(*shared), rule(s), s.steps)
    return made.replace(error=0.03 * made.value, error_kind="truncation", axes=(Axis("lr × sharpness", s.steps),))


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Array:
    """One block of chains at each step."""
    return sharpest_variances(*shared, rule(s), [step * s.shrink for step in s.steps], chains=s.chains, relaxations=3, rng=rng)


CLAIM = Claim(
    version=1, entry="D1", source=Source("dieuleveut2020"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={"smoke": Settings((96, 6, 4.0), 16, (0.1, 0.5, 0.93), chains=1_000, replicates=8), "standard": Settings((96, 10, 10.0), 8, (0.05, 0.2, 0.4, 0.6, 0.8, 0.93), chains=400, replicates=40), "paper": Settings((96, 10, 10.0), 8, (0.05, 0.2, 0.4, 0.6, 0.8, 0.93), chains=4_000, replicates=40)},
    sabotage=Sabotage("batches drawn without replacement: their covariance is (N - B) / (N - 1) of that", sampling="without_replacement"),
)  # fmt: skip
