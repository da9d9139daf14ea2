r"""Networks that are too deep for their width learn best with the residual connections that bring them to the ratio at which their outputs share most information.

$\frac{L}{n} \frac{\nu(\gamma)}{\nu(0)} = r^*, \quad z' = \gamma z + W \tanh(z), \quad C_W = 1 - \gamma^2$

Measured: where over $\gamma$ the least test loss on the way of full-batch descent on squared errors is least, as the logarithm of that part of the depth which $\gamma$ leaves, $1 - \gamma^4$.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.residual_chain import residual_chain
from gnomon.numerics.statistics import parabola_minimum
from gnomon.theory.aspect_ratio import optimal_residual, vertex_slope


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units on `examples` digits, half of them for testing; their C_W is `gain` times the critical one."""

    depth: int
    width: int
    examples: int
    steps: int
    members: int
    replicates: int
    gain: float = 1.0


def predict(s: Settings) -> Reading:
    """The logarithm of nu(gamma)/nu(0) at the optimal gamma for ten outputs."""
    gamma = float(optimal_residual(torch.tanh, depth=s.depth, width=s.width, outputs=10))
    slope = vertex_slope(torch.tanh, residual=gamma) / vertex_slope(torch.tanh)
    return Reading.predicted("log_effective_depth", np.log(slope), unit="", source=Source("roberts2022", "appendix B"))


def measure(s: Settings, *, rng: Generator) -> float:
    """One block of networks for each gamma, at the learning rate of their mean tangent kernel."""
    (x, y), half, losses, left = pooled("digits", examples=s.examples, side=8), s.examples // 2, [], np.geomspace(0.01, 1, 8)
    for place, gamma in enumerate((1 - left) ** 0.25):
        settings = {"features": 64, "depth": s.depth, "width": s.width, "outputs": 10, "members": s.members, "dtype": x.dtype, "rng": chance.child(rng, "networks", place)}
        drawn = residual_chain(torch.tanh, weight_variance=s.gain * (1 - gamma**2), residual=float(gamma), **settings)  # type: ignore[arg-type]
        lr = 1 / (half * float(drawn.ntk(x[:8]).mean()))
        losses.append(float(drawn.least_loss((x[:half], y[:half]), (x[half:], y[half:]), lr=lr, steps=s.steps).mean()))
    return parabola_minimum(np.log(left), np.array(losses))


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "appendix B"), relation="equal", predict=predict, measure=measure, smoke="inconclusive",
    tolerance=Tolerance(lambda s: np.log(2.0), because="a factor of two, as for r* itself: the two terms that its expansion keeps are of one size"),
    scales={"smoke": Settings(6, 8, 100, 20, 2, 2), "standard": Settings(12, 12, 400, 400, 8, 8), "paper": Settings(40, 40, 1_500, 5_000, 20, 40)},
    sabotage=Sabotage("branches of a fifth of the critical variance: signals fade, and what keeps them is best", gain=0.2), because="deciding takes a minute",
)  # fmt: skip
