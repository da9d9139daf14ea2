r"""The kernel of one random network scatters around the NNGP kernel with a variance that falls as 1 / width.

$E (\hat K - K)^2 \propto n^{-1}, \qquad \hat K(x, x') = \frac{1}{n} \sum_j z_j(x) z_j(x')$

Given a layer, the units of the next are independent, so each layer adds a variance of order $1/n$; the next order is $n^{-2}$.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.ensemble import draw_preactivations

DEPTH = 3


@dataclass(frozen=True)
class Settings:
    """ReLU networks of three layers at several `widths`, `members` a block; each network's weights are scaled by a common factor 1 + `misscaled` x normal."""

    widths: tuple[int, ...]
    members: int
    replicates: int
    misscaled: float = 0.0


def predict(s: Settings) -> Reading:
    """The exponent, -1."""
    return Reading.predicted("kernel_fluctuation_exponent", -1.0, unit="", source=Source("lee2018", "section 2"), assumes=("the leading order in 1 / width",))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks at every width: the variance over them of the mean product of two inputs' pre-activations."""
    inputs = chance.normal(2, 6, rng=chance.generator(0, "fluctuation inputs"))
    found = []
    for width in s.widths:
        here = chance.child(rng, "width", width)
        z = draw_preactivations(torch.relu, inputs, depth=DEPTH, width=width, members=s.members, weight_variance=2.0, rng=here)[-1]
        scale = 1 + s.misscaled * chance.normal(s.members, rng=chance.child(here, "scale"))
        found.append(float(((z[:, 0] * z[:, 1]).mean(-1) * scale**2).var()))
    return Reading("kernel_fluctuation", found, "", axes=(Axis("width", tuple(map(float, s.widths)), scale="log"),))


CLAIM = Claim(
    version=1, entry="B3", source=Source("lee2018", "section 2"), relation="exponent", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * DEPTH / min(s.widths), because="next order: twice depth / width at the smallest width"),
    scales={
        "smoke": Settings((24, 48, 96), members=150, replicates=12), "standard": Settings((32, 64, 128), members=1_000, replicates=24),
        "paper": Settings((64, 128, 256, 512, 1024), members=2_000, replicates=100),
    },
    sabotage=Sabotage("every network's weights mis-scaled by a factor of its own, 60 % from network to network", misscaled=0.6),
)  # fmt: skip
