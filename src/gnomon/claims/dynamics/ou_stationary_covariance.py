r"""The covariance in which SGD settles is that of an Ornstein-Uhlenbeck process.

$H C + C H = \frac{\eta}{B} \Sigma$

The continuous limit needs $\eta \lambda_{\max} \ll 1$.  At larger steps the variance along the sharpest direction is larger: already with noise that is the same everywhere by
$1 / (1 - \eta \lambda_{\max} / 2)$, so that at 0.93 the formula gives about half of what is there; the exact recursion follows it (`exact-stationary-covariance`).
"""

import numpy as np
from torch import Tensor

from gnomon.claims.dynamics.exact_stationary_covariance import Settings, measure, prepare, rule
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.theory import dynamics


def predict(s: Settings, shared: tuple[Tensor, Tensor]) -> Reading:
    """1, whatever the step; beside it where the exact recursion parts from it."""
    known = dynamics.variance_over_ou(dynamics.LeastSquares(*shared), rule(s), s.steps)
    axes = (Axis("lr × sharpness", s.steps),)
    return Reading.predicted("variance_over_ou", np.ones(len(s.steps)), unit="", axes=axes, source=CLAIM.source, assumes=("lr × sharpness << 1", *known.assumes))


CLAIM = Claim(
    version=1, entry="D1", source=Source("mandt2017", "section 3"), relation="equal", predict=predict, measure=measure, prepare=prepare, expected="fails",
    because="lr x sharpness is not small: steps of finite length overshoot, and the variance grows as 1 / (1 - lr x sharpness / 2) and more; at small steps the formula holds",
    tolerance=Tolerance(lambda s: 0.125, because="an eighth of the prediction, chosen before the run"),
    scales={
        "smoke": Settings((128, 4, 2.0), 32, (0.4, 0.93), chains=100, replicates=4), "standard": Settings((256, 10, 3.0), 64, (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.93), chains=100, replicates=6),
        "paper": Settings((256, 10, 10.0), 64, (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.93), chains=2_000, replicates=20),
    }, sabotage=Sabotage("steps twenty times shorter: the control, at which the formula holds", shrink=0.05),
)  # fmt: skip
