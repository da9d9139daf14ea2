r"""The factor at which the linear-scaling rule changes the loss by a tenth is known before a run, from the exact second moments.

$k^* = \min \{ k : L_k \ge 1.1 \, L_1 \}$ with $L_k = \frac12 \mathrm{tr}(H C_k)$

Measured is where the simulated loss crosses that line, on a straight line between the factors beside it.
"""

import numpy as np
from torch import Generator, Tensor

from gnomon.claims.dynamics import linear_scaling_departure as departure
from gnomon.claims.dynamics.exact_stationary_covariance import prepare
from gnomon.claims.dynamics.linear_scaling_departure import Settings, base
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.theory import dynamics


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """By bisection on the batch, between whole numbers of examples."""
    problem = dynamics.LeastSquares(*shared)
    found = dynamics.scaling_break(problem, base(s), rule="linear", departure=0.1)
    return found.replace(value=float(found) - 1 / (2 * s.batch), error=0.0, error_kind="exact", details={})


def measure(s: Settings, shared: tuple[Tensor, Tensor], *, rng: Generator) -> float:
    """Where the departure of one block of chains crosses a tenth."""
    return float(np.interp(0.1, departure.measure(s, shared, rng=rng), s.factors))


CLAIM = Claim(
    version=1, entry="D1", source=Source("goyal2017", "section 2.1"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    tolerance=Tolerance(lambda s: 1.5 / s.batch, because="one and a half examples of the batch: half of one from the prediction, which takes whole ones, and one from the straight line"),
    scales={
        "smoke": Settings((128, 8, 4.0), 4, 0.1, (3, 4), chains=1_000, replicates=6), "standard": Settings((128, 8, 4.0), 8, 0.1, (3, 4), chains=4_000, replicates=20),
        "paper": Settings((128, 8, 4.0), 8, 0.1, (3, 4), chains=20_000, replicates=40),
    }, sabotage=Sabotage("a learning rate a quarter smaller than stated: the rule lasts longer", slower=0.75),
)  # fmt: skip
