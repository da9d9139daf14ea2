r"""The tangent kernel moves under training at finite width, by an amount that grows as depth over width and is zero in the limit of many units.

$E[\mathrm{d}\Theta\, z] / \Theta^2 = (P + 2 Q) / (n \Theta^2)$ for one unit and one input: $\mathrm{d}\Theta$ is the second derivative of the output $z$ along its own gradient, times
the learning rates, twice; half of what one step of unit size changes $\Theta$ by.  For tanh at criticality it is negative, grows in proportion to depth, and halves as the width doubles.
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


@dataclass(frozen=True)
class Settings:
    """tanh networks of half of `depth` layers and of `depth`, and of `depth` with twice the `width`; those that are drawn have 1/narrower of the units."""

    depth: int
    width: int
    members: int
    replicates: int
    narrower: int = 1


def cases(s: Settings) -> tuple[tuple[int, int], ...]:
    """Depths and widths."""
    return (s.depth // 2, s.width), (s.depth, s.width), (s.depth, 2 * s.width)


def predict(s: Settings) -> Reading:
    """(P + 2 Q)/(n Theta^2)."""
    found = tensors(torch.tanh, kernel=np.ones((1, 1)), depth=s.depth, weight_variance=1.0, through="dntk")
    moved = ((found.value("P") + 2 * found.value("Q"))[:, 0, 0, 0, 0] / found.ntk[:, 0, 0] ** 2)[[depth - 1 for depth, _ in cases(s)]]
    axes = (Axis("depth x width", tuple(f"{depth} x {width}" for depth, width in cases(s))),)
    return Reading.predicted("dntk_correlation", moved / [width for _, width in cases(s)], unit="", axes=axes, source=Source("roberts2022", "chapter 11"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """One block of networks of each, on one input of mean square 1, biases that start at 0 and learn."""
    rows = []
    for depth, wide in cases(s):
        width = wide // s.narrower
        x, products, kernels = torch.ones(1, width, dtype=torch.float64), [], []
        for networks in perceptrons.draw(torch.tanh, features=width, depth=depth, width=width, outputs=1, members=s.members, weight_variance=1.0, rng=chance.child(rng, "networks", depth * wide)):
            z, theta = networks.outputs_and_ntk(x)
            products.append(networks.dntk(x)[:, 0, 0, 0] * z[:, 0, 0])
            kernels.append(theta[:, 0, 0])
        rows.append(float(torch.cat(products).mean() / torch.cat(kernels).mean() ** 2))
    return np.array(rows)


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter 11"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2.5 * s.depth / s.width * np.abs(predict(s).value), because="the next order, relative, is some depth/width: ReLU's vertex has (5/2) depth/width"),
    scales={"smoke": Settings(4, 32, members=250, replicates=8), "standard": Settings(8, 64, members=1_000, replicates=10), "paper": Settings(32, 320, members=4_000, replicates=100)},
    sabotage=Sabotage("networks of half the width, which must not agree with the stated one", narrower=2),
)  # fmt: skip
