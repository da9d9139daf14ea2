r"""What networks say on average after training departs from what their kernel predicts, on an input that they did not see, by an amount that falls as one over the width.

$E\,z(\infty) = \Theta_{*T}\,\Theta_{TT}^{-1}\,y + z^{\{1\}}/n$

tanh networks at criticality, one input learnt to the end; the tensors of order 1/n give the amount, in which the moving kernel and its fluctuations take part.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models import perceptrons
from gnomon.theory.effective import tensors
from gnomon.theory.end_of_training import trained

INPUTS, TARGET, LR = np.array([[1.0, 0.0], [0.45, 0.218]]) * 2**0.5, 2.0, 0.5


@dataclass(frozen=True)
class Settings:
    """tanh networks of `depth` layers, of `width` and of twice the `width`, `steps` of descent; those that are drawn have 1/narrower of the units."""

    depth: int
    width: int
    members: int
    steps: int
    replicates: int
    narrower: int = 1


def predict(s: Settings) -> Reading:
    """E z of the input that was not learnt, for each width."""
    found = tensors(torch.tanh, inputs=INPUTS, depth=s.depth, weight_variance=1.0, bias_rates=0.0)
    means = [np.asarray(trained(found, targets=np.array([[TARGET]]), width=n, lr=LR).outputs.value)[0, 1] for n in (s.width, 2 * s.width)]
    axis = Axis("width", (float(s.width), 2.0 * s.width))
    return Reading.predicted("outputs_after_training", means, unit="", axes=(axis,), source=Source("roberts2022", "chapter infinity"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over one block of networks of each width and their mirror images, all trained."""
    x, means = torch.from_numpy(INPUTS), []
    for wide in (s.width, 2 * s.width):
        shape = {"features": 2, "depth": s.depth, "width": wide // s.narrower, "outputs": 1, "members": s.members}
        drawn = perceptrons.draw(torch.tanh, **shape, weight_variance=1.0, bias_rates=0.0, rng=chance.child(rng, "width", wide))  # type: ignore[arg-type]
        both = (each for networks in drawn for each in (networks, networks.mirrored()))
        means.append(torch.cat([each.trained(x[:1], torch.full((1, 1), TARGET), LR, s.steps).outputs(x[1:]).flatten() for each in both]).mean())
    return torch.stack(means).detach().numpy()


def tolerance(s: Settings) -> Array:
    """2.5 L/n of how far the mean departs from the kernel's, at each width."""
    one, two = np.asarray(predict(s).value)
    return 2.5 * s.depth / np.array([s.width, 2 * s.width]) * abs(one - two) * [2, 1]


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter infinity"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(tolerance, because="the next order, relative to the departure, is some depth/width: ReLU's vertex has (5/2) depth/width"),
    scales={"smoke": Settings(2, 20, 1_000, 15, replicates=8), "standard": Settings(3, 32, 500, 20, replicates=12), "paper": Settings(6, 64, 4_000, 40, replicates=50)},
    sabotage=Sabotage("networks of half the width, which depart twice as far", narrower=2),
)  # fmt: skip
