r"""At a fixed number of parameters the test loss of tanh networks over depth is least near the depth-to-width ratio at which their outputs share most information.

$r^* = \frac{4}{(20 + 3 n_L) \nu}, \quad \nu = 2/3$

for networks at criticality whose layers learn alike ($\lambda_W = 1$, $\lambda_b = 1/l$); the ratio's logarithm is compared.  Measured: the least test loss on the way of full-batch
descent on squared errors.  (With 6,000 weights, 500 images and 1,500 steps the optimum lay at twice r*, where this tolerance ends.)
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
from gnomon.models import perceptrons
from gnomon.numerics.statistics import parabola_minimum
from gnomon.theory.aspect_ratio import optimal_ratio


@dataclass(frozen=True)
class Settings:
    """Networks of so many weights on `examples` digits, half of them for testing; C_W."""

    weights: int
    examples: int
    steps: int
    members: int
    replicates: int
    weight_variance: float = 1.0


def predict(s: Settings) -> Reading:
    """The logarithm of r* for ten outputs."""
    return Reading.predicted("log_depth_to_width", np.log(optimal_ratio(torch.tanh, outputs=10).value), unit="", source=Source("roberts2022", "appendix A"))


def measure(s: Settings, *, rng: Generator) -> float:
    """One block of networks; the width n has 64 n + (depth - 2) n^2 + 10 n weights."""
    (x, y), half, losses, widths, depths = pooled("digits", examples=s.examples, side=8), s.examples // 2, [], [], (2, 3, 4, 6, 9, 14)
    for depth in depths:
        widths.append(round(max(np.roots([depth - 2, 74, -s.weights]))))
        biases = [1 / layer for layer in range(1, depth + 1)]
        settings = {"features": 64, "outputs": 10, "dtype": torch.float32, "rng": chance.child(rng, "depth", depth)}
        (drawn,) = perceptrons.draw(torch.tanh, depth=depth, width=widths[-1], members=s.members, weight_variance=s.weight_variance, bias_rates=biases, **settings)  # type: ignore[arg-type]
        lr = 1 / (half * float(drawn.outputs_and_ntk(x[:8])[1].diagonal(dim1=1, dim2=2).mean()))
        losses.append(float(perceptrons.least_loss(drawn, (x[:half], y[:half]), (x[half:], y[half:]), lr=lr, steps=s.steps).mean()))
    return parabola_minimum(np.log((np.array(depths) - 1) / widths), np.array(losses))


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "appendix A"), relation="equal", predict=predict, measure=measure, smoke="inconclusive",
    tolerance=Tolerance(lambda s: np.log(2.0), because="a factor of two: at r* the two terms that the expansion keeps are of one size"),
    scales={"smoke": Settings(1_500, 200, 100, 3, 2), "standard": Settings(2_500, 400, 400, 6, 12), "paper": Settings(50_000, 1_500, 5_000, 10, 20)},
    sabotage=Sabotage("weights of a fifth of the critical variance: signals fade, and shallow networks are best", weight_variance=0.2), because="deciding takes half a minute",
)  # fmt: skip
