r"""With $k$ times the batch and $k$ times the learning rate the loss at which SGD settles is no longer the same, by as much as its exact second moments say.

$\frac{L_k}{L_1} - 1$ with $L_k = \frac12 \mathrm{tr}(H C_k)$

$C_k$ is the stationary covariance at $k \eta$ and $k B$.  To the stochastic differential equation, which has but $\eta / B$, the departure is 0; it grows with $k \eta \lambda_{\max}$.
"""

from dataclasses import dataclass

from torch import Generator, Tensor

from gnomon.claims.dynamics.exact_stationary_covariance import prepare
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.models.chains import stationary_losses
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares: examples, inputs, condition; the batch and lr x sharpness at k = 1; the lr grows as k to this power, and is `slower` times as large."""

    data: tuple[int, int, float]
    batch: int
    lr: float
    factors: tuple[int, ...]
    chains: int
    replicates: int
    power: float = 1.0
    slower: float = 1.0


def base(s: Settings) -> Sgd:
    """The steps in use."""
    return Sgd(lr=s.lr, batch_size=s.batch, examples=s.data[0], sampling="with_replacement")


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """From the exact second moments, with the factor at which the departure reaches a tenth."""
    problem, made = dynamics.LeastSquares(*shared), base(s)
    breaks = f"the linear rule breaks, by a tenth of the loss, at {float(dynamics.scaling_break(problem, made, rule='linear', departure=0.1)):.2f} times the batch"
    return dynamics.scaling_departure(problem, made, s.factors, rule="linear").replace(assumes=("a quadratic loss", breaks))


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> Array:
    """One block of chains at each factor, and at 1."""
    rules = [base(s).replace(lr=s.slower * s.lr * k**s.power, batch_size=s.batch * k) for k in (1, *s.factors)]
    losses = stationary_losses(*shared, rules, chains=s.chains, relaxations=3, rng=rng)
    return losses[1:] / losses[0] - 1


CLAIM = Claim(
    version=1, entry="D1", source=Source("goyal2017", "section 2.1"), relation="equal", predict=predict, measure=measure, prepare=prepare, tolerance=Tolerance(lambda s: 0.02, because="2 % of the loss, chosen before the run: less than half of the least departure"),
    scales={"smoke": Settings((128, 8, 4.0), 4, 0.1, (2, 4, 8), chains=1_000, replicates=6), "standard": Settings((128, 8, 4.0), 4, 0.1, (2, 4, 8), chains=2_000, replicates=20), "paper": Settings((128, 8, 4.0), 4, 0.1, (2, 4, 6, 8, 10), chains=10_000, replicates=40)},
    sabotage=Sabotage("a learning rate that grows a little faster than the batch", power=1.03),
)  # fmt: skip
