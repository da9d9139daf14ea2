r"""SVAG approaches the stochastic differential equation of SGD in proportion to $1/l$.

$E L_{\mathrm{SVAG}(l)} - E L_{\mathrm{SDE}} \propto l^{-1}$

Steps of $\eta / l$ with the gradient $\frac{1 + \sqrt{2 l - 1}}{2} g_1 + \frac{1 - \sqrt{2 l - 1}}{2} g_2$ of two batches, whose covariance is $l$ times that of one.  Measured is the stationary
excess loss on least squares, less that of the equation with the noise as it is at each point.
"""

from dataclasses import dataclass

from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.data.regression import regression
from gnomon.models.chains import stationary_losses
from gnomon.theory import dynamics


@dataclass(frozen=True)
class Settings:
    """Least squares: examples, inputs, condition; lr x sharpness, the l; whether the noise of l steps is amplified, as SVAG does."""

    data: tuple[int, int, float]
    batch: int
    lr: float
    levels: tuple[int, ...]
    chains: int
    replicates: int
    amplified: bool = True


Shared = tuple[Tensor, Tensor, Sgd, float]


def prepare(s: Settings, *, rng: Generator) -> Shared:
    """The data, the steps, and the excess loss of the stochastic differential equation, which distances are taken from."""
    (x, y), rule = regression(*s.data, rng=rng), Sgd(lr=s.lr, batch_size=s.batch, examples=s.data[0], sampling="with_replacement")
    problem = dynamics.LeastSquares(x, y)
    return x, y, rule, float(dynamics.excess_loss(dynamics.sde_covariance(problem, rule), problem.hessian))


def predict(s: Settings, shared: Shared) -> Reading:
    """The order of the theorem."""
    return Reading.predicted("slope", -1.0, unit="", source=CLAIM.source, assumes=("a loss whose noise has a bounded third moment",))


def measure(s: Settings, shared: Shared, *, rng: Generator) -> Reading:
    """The distance of one block of chains at each l, relative to the excess loss of the equation."""
    x, y, rule, limit = shared
    rules = [rule.replace(svag=level) if s.amplified else rule.replace(lr=s.lr / level) for level in s.levels]
    losses = stationary_losses(x, y, rules, chains=s.chains, relaxations=3, rng=rng)
    return Reading("distance_to_sde", losses / limit - 1, "", axes=(Axis("l", s.levels, "", "log"),))


CLAIM = Claim(
    version=1, entry="D1", source=Source("li2021", "section 4"), relation="exponent", predict=predict, measure=measure, prepare=prepare, tolerance=Tolerance(lambda s: s.lr, because="the next order: the distance is a / l + b / l^2 with b / a of the order of lr x sharpness, and so is the change of the slope at l = 1"), scales={"smoke": Settings((64, 8, 4.0), 4, 0.25, (1, 2, 4), chains=1_000, replicates=5), "standard": Settings((64, 8, 4.0), 4, 0.25, (1, 2, 4, 8), chains=4_000, replicates=20), "paper": Settings((64, 8, 4.0), 4, 0.25, (1, 2, 4, 8, 16), chains=40_000, replicates=40)}, sabotage=Sabotage("short steps alone, without more noise: they leave the equation for the gradient flow", amplified=False),
)  # fmt: skip
