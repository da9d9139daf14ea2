r"""SVAG approaches the stochastic differential equation of SGD in proportion to $1/l$.

$E L_{\mathrm{SVAG}(l)} - E L_{\mathrm{SDE}} \propto l^{-1}$

$l$ steps of $\eta / l$ take the place of one, with the gradient $\frac{1 + \sqrt{2 l - 1}}{2} g_1 + \frac{1 - \sqrt{2 l - 1}}{2} g_2$ of two batches: its mean is that of one batch, its covariance $l$ times
that.  Measured is the excess loss in the stationary state on least squares, less that of the equation with the noise as it is at each point.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.data.regression import regression
from gnomon.models.chains import stationary_moment
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares of so many examples and inputs, lr x sharpness, the l; whether the noise of l steps is amplified, as SVAG does."""

    examples: int
    dimension: int
    batch: int
    lr: float
    levels: tuple[int, ...]
    chains: int
    replicates: int
    amplified: bool = True


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, Tensor, float]:
    """The data, and the excess loss of the stochastic differential equation, which distances are taken from."""
    x, y = regression(s.examples, s.dimension, condition=4.0, rng=rng)
    problem = dynamics.LeastSquares(x.numpy(), y.numpy())
    rule = Sgd(lr=s.lr, batch_size=s.batch, examples=s.examples, sampling="with_replacement")
    return x, y, float(dynamics.excess_loss(dynamics.sde_covariance(problem, rule), problem.hessian))


def predict(s: Settings, shared: tuple[Tensor, Tensor, float]) -> Reading:
    """The order of the theorem."""
    return Reading.predicted("slope", -1.0, unit="", source=Source("li2021", "section 4"), assumes=("a loss whose noise has a bounded third moment",))


def measure(s: Settings, shared: tuple[Tensor, Tensor, float], *, rng: Generator) -> Reading:
    """The distance of one block of chains at each l, relative to the excess loss of the equation."""
    x, y, limit = shared
    distances = []
    for level in s.levels:
        rule = Sgd(lr=s.lr / (1 if s.amplified else level), batch_size=s.batch, examples=s.examples, sampling="with_replacement", svag=level if s.amplified else 1)
        covariance = stationary_moment(x, y, rule, chains=s.chains, relaxations=3, rng=rng)
        distances.append(float((covariance * (x.T @ x)).sum() / len(x) / 2) / limit - 1)
    return Reading("distance_to_sde", torch.tensor(distances), "", axes=(Axis("l", s.levels, "", "log"),))


CLAIM = Claim(
    version=1, entry="D1", source=Source("li2021", "section 4"), relation="exponent", predict=predict, measure=measure, prepare=prepare,
    tolerance=Tolerance(lambda s: s.lr, because="the next order: the distance is a / l + b / l^2 with b / a of the order of lr x sharpness, and so is the change of the slope at l = 1"),
    scales={
        "smoke": Settings(64, 8, 4, 0.25, (1, 2, 4), chains=1_000, replicates=5), "standard": Settings(64, 8, 4, 0.25, (1, 2, 4, 8), chains=4_000, replicates=20),
        "paper": Settings(64, 8, 4, 0.25, (1, 2, 4, 8, 16), chains=40_000, replicates=40),
    }, sabotage=Sabotage("short steps alone, without more noise: they leave the equation for the gradient flow", amplified=False),
)  # fmt: skip
