r"""What networks say on average after a while of training departs from what their kernel predicts by an amount that falls as one over the width.

$E\,z(t) = (1 - (1 - \eta\Theta)^{t/\eta})\,y + z^{\{1\}}(t)/n$

GELU networks at criticality, one input; the tensors of order 1/n give the amount, in which the kernel's fluctuations and its motion take part.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator
from torch.nn.functional import gelu

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models import perceptrons
from gnomon.theory.effective import tensors
from gnomon.theory.end_of_training import trained

KERNEL, C_W, C_B, STEPS = 3.56155281, 1.98305826, 0.17292239, 5


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers, of `width` and of twice the `width`, that learn at 0.11/`depth`, some 0.3 of the inverse kernel; those that are drawn have 1/narrower of the units."""

    depth: int
    width: int
    members: int
    replicates: int
    narrower: int = 1


def predict(s: Settings) -> Reading:
    """E z for a target of 1, for each width."""
    found, lr = tensors(gelu, kernel=KERNEL, depth=s.depth, weight_variance=C_W, bias_variance=C_B), 0.11 / s.depth
    means = [np.asarray(trained(found, targets=np.ones((1, 1)), width=n, lr=lr, time=STEPS * lr).outputs.value)[0, 0] for n in (s.width, 2 * s.width)]
    return Reading.predicted("outputs_after_training", means, unit="", axes=(Axis("width", (float(s.width), 2.0 * s.width)),), source=Source("roberts2022", "chapter infinity"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over one block of networks of each width and their mirror images, all trained."""
    x, one, means = torch.full((1, 1), ((KERNEL - C_B) / C_W) ** 0.5).double(), torch.ones(1, 1).double(), []
    for wide in (s.width, 2 * s.width):
        shape = {"features": 1, "depth": s.depth, "width": wide // s.narrower, "outputs": 1, "members": s.members, "weight_variance": C_W, "bias_variance": C_B}
        both = (each for networks in perceptrons.draw(gelu, **shape, rng=chance.child(rng, "width", wide)) for each in (networks, networks.mirrored()))  # type: ignore[arg-type]
        means.append(torch.cat([each.trained(x, one, 0.11 / s.depth, STEPS).outputs(x).detach().flatten() for each in both]).mean())
    return torch.stack(means).numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter infinity"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2.5 * s.depth / s.width * abs(np.diff(predict(s).value)) * [2, 0.5], because="the next order, some (5/2) depth/width (ReLU's vertex) of the departure"),
    scales={"smoke": Settings(3, 16, 250, replicates=8), "standard": Settings(4, 32, 1_000, replicates=12), "paper": Settings(12, 96, 4_000, replicates=50)},
    sabotage=Sabotage("networks of half the width, which depart twice as far", narrower=2),
)  # fmt: skip
