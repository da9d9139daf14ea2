r"""With $k$ times the batch and $k$ times the learning rate SGD settles at the same loss.

$L_k = L_1$

The rule keeps $\eta / B$, and with it the stochastic differential equation of SGD, which holds for $k \eta \lambda_{\max} \ll 1$.  The factor at which it breaks, by a tenth of
the excess loss, follows from the exact second moments before anything is run (`linear-scaling-departure`, `linear-scaling-break-point`).
"""

import numpy as np
from torch import Tensor

from gnomon.claims.dynamics.exact_stationary_covariance import prepare
from gnomon.claims.dynamics.linear_scaling_departure import Settings, base, measure
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.theory import dynamics


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """No departure, whatever the factor; beside it where that is to end."""
    breaks = float(dynamics.scaling_break(dynamics.LeastSquares(*shared), base(s), rule="linear", departure=0.1))
    axis = Axis("batch, times that in use", s.factors, scale="log")
    assumes = ("k × lr × sharpness << 1", f"by the exact second moments the rule is off by a tenth from {breaks:.2f} times the batch on")
    return Reading.predicted("scaling_departure", np.zeros(len(s.factors)), unit="", axes=(axis,), source=Source("goyal2017", "section 2.1"), assumes=assumes)


CLAIM = Claim(
    version=1, entry="D1", source=Source("goyal2017", "section 2.1"), relation="equal", predict=predict, measure=measure, prepare=prepare, scale=1.0, expected="fails",
    because="k x lr x sharpness is no longer small: the steps leave their stochastic differential equation; with a tenth of the learning rate the rule holds",
    tolerance=Tolerance(lambda s: 0.1, because="a tenth of the excess loss, chosen before the run"),
    scales={
        "smoke": Settings((128, 8, 4.0), 4, 0.1, (2, 4, 8), chains=100, replicates=6), "standard": Settings((128, 8, 4.0), 4, 0.1, (2, 4, 8), chains=500, replicates=20),
        "paper": Settings((128, 8, 4.0), 4, 0.1, (2, 4, 8), chains=10_000, replicates=40),
    }, sabotage=Sabotage("a tenth of the learning rate: the control, at which the rule holds", slower=0.1),
)  # fmt: skip
