r"""The loss of SGD on its way down is that of the stochastic modified equation of second order; that of first order is off by $O(\eta)$.

$dX = -\nabla \left( L + \frac{\eta}{4} |\nabla L|^2 \right) dt + \sqrt{\frac{\eta}{B} \Sigma} \, dW$

Without the term in $\eta / 4$ the equation is of first weak order.  Measured is the mean excess loss on least squares after a few steps from one start.  At the end of the way, where the loss is
all noise, the second order is no better than the first: its variance is off at the same order.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gnomon.claims.dynamics.exact_stationary_covariance import prepare
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.models.chains import losses_on_the_way
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares: examples, inputs, condition; lr x sharpness, `longer` times which is what the steps have; from `away` in every direction."""

    data: tuple[int, int, float]
    batch: int
    lr: float
    steps: tuple[int, ...]
    chains: int
    replicates: int
    away: float = 1.0
    longer: float = 1.0


def rule(s: Settings) -> Sgd:
    """The steps."""
    return Sgd(lr=s.lr, batch_size=s.batch, examples=s.data[0], sampling="with_replacement")


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """The second order; half of what it differs from the first by is the truncation, so that the two are told apart."""
    problem = dynamics.LeastSquares(*shared)
    first, second = (dynamics.sde_losses(problem, rule(s), order=order, start=problem.minimum + s.away, steps=s.steps) for order in (1, 2))
    apart = abs(second.value - first.value)
    assumes = ("lr × sharpness << 1", f"the equation of first order is off by up to {(apart / second.value).max():.0%}")
    return second.replace(error=apart / 2, error_kind="truncation", assumes=assumes, source=CLAIM.source)


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Array:
    """One block of chains."""
    return losses_on_the_way(*shared, rule(s).replace(lr=s.longer * s.lr), away=torch.tensor(s.away), steps=s.steps, chains=s.chains, rng=rng)


CLAIM = Claim(
    version=1, entry="D1", source=Source("li2017", "theorem 1"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={"smoke": Settings((128, 8, 4.0), 32, 0.2, (2, 4, 8), chains=1_000, replicates=6), "standard": Settings((128, 8, 4.0), 32, 0.2, (1, 2, 4, 6, 8, 10), chains=4_000, replicates=20), "paper": Settings((128, 8, 4.0), 32, 0.1, (2, 4, 8, 12, 16, 20), chains=40_000, replicates=40)},
    sabotage=Sabotage("steps an eighth shorter than stated", longer=7 / 8),
)  # fmt: skip
