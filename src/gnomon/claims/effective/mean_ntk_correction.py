r"""At criticality the mean tangent kernel of a ReLU network has no correction at finite width; that of a GELU network has one.

$E\,\Theta = L + H^{\{1\}}/n$

where the biases alone learn, at the rate 1: in the limit of many units each layer adds 1.  For scale-invariant activations and one input $H^{\{1\}} = 0$, since the sign of a
pre-activation says nothing of the rest; for GELU at its critical point it is negative and grows as a power of depth.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models import perceptrons
from gnomon.theory.effective import tensors

POINTS = {"relu": (torch.relu, 2.0, 0.0, 1.0), "gelu": (torch.nn.functional.gelu, 1.98305826, 0.17292239, 3.56155281)}


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block; C_W of those that are drawn is `gain` times the critical one."""

    depth: int
    width: int
    members: int
    replicates: int
    gain: float = 1.0


def predict(s: Settings) -> Reading:
    """(Theta + H1/n)/L."""
    values = []
    for activation, c_w, c_b, kernel in POINTS.values():
        found = tensors(activation, kernel=kernel, depth=s.depth, weight_variance=c_w, bias_variance=c_b, weight_rates=0.0, through="ntk")
        values.append((found.ntk[-1, 0, 0] + found.value("H1")[-1, 0, 0] / s.width) / s.depth)
    return Reading.predicted("mean_ntk", values, unit="", axes=(Axis("activation", tuple(POINTS)),), source=Source("guillen2026"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over one block of networks of each, on one input, by layer."""
    means: list[float] = []
    for name, (activation, c_w, c_b, kernel) in POINTS.items():
        x, stream, c = torch.full((1, s.width), ((kernel - c_b) / c_w) ** 0.5), chance.child(rng, name), s.gain * c_w
        shape = {"features": s.width, "depth": s.depth, "width": s.width, "outputs": 1, "members": s.members}
        drawn = perceptrons.draw(activation, **shape, weight_variance=c, bias_variance=c_b, weight_rates=0.0, dtype=torch.float32, rng=stream)
        means.append(float(torch.cat([networks.outputs_and_ntk(x)[1] for networks in drawn]).double().mean() / s.depth))
    return torch.tensor(means).double().numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("guillen2026"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: (s.depth / s.width) ** 2, because="the next order, relative, is some (depth/width)^2"),
    scales={"smoke": Settings(10, 64, members=640, replicates=8), "standard": Settings(12, 96, members=1_200, replicates=16), "paper": Settings(24, 240, members=4_000, replicates=100)},
    sabotage=Sabotage("weights 2 % too large in variance, off the critical point", gain=1.02),
)  # fmt: skip
