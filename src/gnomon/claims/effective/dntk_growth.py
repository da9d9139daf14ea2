r"""The tangent kernel moves under training at finite width, by an amount that grows as depth over width and is zero in the limit of many units.

$E[\mathrm{d}\Theta\, z] / \Theta^2 = (P + 2 Q) / (n \Theta^2)$

for one input, $\mathrm{d}\Theta$ the second derivative of $z$ along its own gradient; for tanh at criticality it is negative, grows as depth, and halves as the width doubles.
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


@dataclass(frozen=True)
class Settings:
    """tanh networks of half of `depth` layers and of `depth`, and of `depth` with twice the `width`; those that are drawn have 1/narrower of the units."""

    depth: int
    width: int
    members: int
    replicates: int
    narrower: int = 1

    def cases(self) -> tuple[tuple[int, int], ...]:
        """Depths and widths."""
        return (self.depth // 2, self.width), (self.depth, self.width), (self.depth, 2 * self.width)


def predict(s: Settings) -> Reading:
    """(P + 2 Q)/(n Theta^2)."""
    found = tensors(torch.tanh, kernel=1.0, depth=s.depth, weight_variance=1.0, through="dntk")
    moved = ((found.value("P") + 2 * found.value("Q"))[:, 0, 0, 0, 0] / found.ntk[:, 0, 0] ** 2)[[depth - 1 for depth, _ in s.cases()]]
    axis = Axis("depth x width", tuple(f"{depth} x {width}" for depth, width in s.cases()))
    return Reading.predicted("dntk_correlation", moved / [width for _, width in s.cases()], unit="", axes=(axis,), source=Source("roberts2022", "chapter 11"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """One block of networks of each, on one input of mean square 1, biases that start at 0 and learn."""
    rows = []
    for depth, wide in s.cases():
        n, stream = wide // s.narrower, chance.child(rng, "networks", depth * wide)
        x, drawn = torch.ones(1, n).double(), perceptrons.draw(torch.tanh, features=n, depth=depth, width=n, outputs=1, members=s.members, weight_variance=1.0, rng=stream)
        z, theta, moved = (torch.cat(part).flatten() for part in zip(*((*networks.outputs_and_ntk(x), networks.dntk(x)) for networks in drawn), strict=True))
        rows.append((moved * z).mean() / theta.mean() ** 2)
    return torch.stack(rows).numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter 11"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2.5 * s.depth / s.width * abs(predict(s).value), because="the next order, relative, is some depth/width: ReLU's vertex has (5/2) depth/width"),
    scales={"smoke": Settings(4, 32, members=250, replicates=8), "standard": Settings(8, 64, members=1_000, replicates=10), "paper": Settings(32, 320, members=4_000, replicates=100)},
    sabotage=Sabotage("networks of half the width, which must not agree with the stated one", narrower=2),
)  # fmt: skip
