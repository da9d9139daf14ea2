r"""Networks too deep for their width learn best with the residual connections that bring them to the ratio at which their outputs share most information.

$\frac{L}{n} \frac{\nu(\gamma)}{\nu(0)} = r^*, \quad z' = \gamma z + W \tanh(z), \quad C_W = 1 - \gamma^2$

Measured: where over $\gamma$ the least test loss on the way of full-batch descent on squared errors is least, as the logarithm of the part of the depth that it leaves, $1 - \gamma^4$.
Control: where $a^2/8 - 50 a^3/48$ is largest, $a$ the relative covariance of the squares of two last hidden units as networks are drawn.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator, tanh

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.instruments import ensembles
from gnomon.models.residual_chain import residual_chain
from gnomon.numerics.statistics import parabola_minimum
from gnomon.theory.aspect_ratio import optimal_residual, vertex_slope


@dataclass(frozen=True)
class Settings:
    """Networks of as many layers as units, `size`, as many steps as `examples`, half of them for testing; looked `at` is the loss, or the information before training."""

    size: int
    examples: int
    members: int
    replicates: int
    at: str = "loss"


def predict(s: Settings) -> Reading:
    """The logarithm of nu(gamma)/nu(0) at the optimal gamma for ten outputs."""
    slopes = [vertex_slope(tanh, residual=gamma) for gamma in (float(optimal_residual(tanh, depth=s.size, width=s.size, outputs=10)), 0.0)]
    return Reading.predicted("log_effective_depth", np.log(slopes[0] / slopes[1]), unit="", source=Source("roberts2022", "appendix B"))


def measure(s: Settings, *, rng: Generator) -> float:
    """One block of networks for each gamma, at the learning rate of their mean tangent kernel."""
    (x, y), half, losses, left = pooled("digits", examples=s.examples, side=8), s.examples // 2, [], np.geomspace(0.01, 1, 8)
    for place, gamma in enumerate((1 - left) ** 0.25):
        drawn = residual_chain(64, s.size, 10, depth=s.size, members=s.members, residual=float(gamma), dtype=x.dtype, rng=chance.child(rng, "networks", place))
        if s.at == "information":
            losses.append(50 * (a := float(ensembles.four_point_vertex(drawn.hidden(x[:1]).detach().transpose(0, 1)).value[0])) ** 3 / 48 - a**2 / 8)
        else:
            losses.append(float(drawn.least_loss((x[:half], y[:half]), (x[half:], y[half:]), steps=s.examples).mean()))
    return parabola_minimum(np.log(left), np.array(losses))


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "appendix B"), relation="equal", predict=predict, measure=measure, smoke="inconclusive", expected="fails",
    because="trained networks are best with weaker connections (gamma some 0.76 where 0.97 is predicted): depth that r* calls too much still helps; deciding takes a minute",
    tolerance=Tolerance(lambda s: np.log(2.0), because="a factor of two, as for r* itself: the two terms that its expansion keeps are of one size"),
    scales={"smoke": Settings(12, 40, 2, 2), "standard": Settings(12, 400, 8, 8), "paper": Settings(40, 1_500, 20, 40)},
    sabotage=Sabotage("the information itself, before training: the control, where the prediction must hold", at="information", members=1_000),
)  # fmt: skip
