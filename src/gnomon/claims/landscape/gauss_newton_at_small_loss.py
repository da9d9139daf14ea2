r"""As the squared error falls, the Hessian approaches the Gauss-Newton matrix at least as fast as the square root of the loss.

$\frac{|H - G|}{|G|} = O(L^{1/2})$

$H - G = \frac1n \sum_i \sum_k (f_k(x_i) - y_{ik}) \nabla^2 f_k(x_i)$, whose spectral norm is at most $\sqrt{2 L}$ times the root mean square of the outputs'
curvatures (Cauchy-Schwarz), while $G$ does not depend on the residuals.  Measured is the slope of the logarithms along one training.  It does not hold for
cross-entropy, where $G$ shrinks as fast as the residuals.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.descent import gauss_newton_path


@dataclass(frozen=True)
class Settings:
    """A tanh network with one hidden layer on images of side x side pixels, looked at after these steps; noise on the targets of the curvature."""

    data: str
    examples: int
    side: int
    hidden: int
    steps: tuple[int, ...]
    replicates: int
    noise: float = 0.0


def measure(s: Settings, *, rng: Generator) -> float:
    """The slope over the steps of one training."""
    data = pooled(s.data, examples=s.examples, side=s.side)
    losses, differences = gauss_newton_path(*data, hidden=(s.hidden,), lr=0.05, momentum=0.9, steps=s.steps, noise=s.noise, rng=rng)
    return float(np.polyfit(np.log(losses), np.log(differences), 1)[0])


CLAIM = Claim(
    version=1, entry="E1", source=Source("sagun2018"), relation="at_least", measure=measure, predict=lambda s: Reading.predicted("slope", 0.5, unit="", source=Source("sagun2018")),
    tolerance=Tolerance(lambda s: 0.1, because="the outputs' curvatures and G, which the bound takes as constant, may drift by 10^0.2 while the loss falls a hundredfold"),
    scales={
        "smoke": Settings("digits", 100, 8, 20, (100, 200, 400, 800), 4), "standard": Settings("mnist", 500, 14, 128, (200, 400, 800, 1_600, 3_200), 5),
        "paper": Settings("mnist", 5_000, 28, 2_000, (1_000, 3_000, 10_000, 30_000), 20),
    }, sabotage=Sabotage("targets with noise in the curvature: residuals that do not fall", noise=0.3),
)  # fmt: skip
