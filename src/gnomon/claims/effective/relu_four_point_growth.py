r"""At criticality the normalised four-point vertex of a ReLU network grows as 5 (l - 1) / n.

$\frac{V^{(l)}}{n K^2} = \frac{5 (l - 1)}{n}$ to leading order in $1/n$.  Exactly, with $C_W = 2$ and given $k$, the second moment that a layer reads,
$k' = k \frac{2}{n} \sum_j \max(g_j, 0)^2$ with independent normal $g_j$, so $E k'^2 = k^2 (1 + 5/n)$ and $V / (n K^2) = (1 + 5/n)^{l-1} - 1$: the order that
the statement leaves out is $25 (l - 1)(l - 2) / (2 n^2)$.
"""

from dataclasses import dataclass

import torch
from torch import Generator
from torch.nn.functional import leaky_relu

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.instruments import ensembles
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory import effective


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block; the activation's slope below 0."""

    depth: int
    width: int
    members: int
    replicates: int
    negative_slope: float = 0.0


def predict(s: Settings) -> Reading:
    """The leading order, from the second layer on: the first is Gaussian and has none."""
    return effective.four_point_vertex(torch.relu, depth=s.depth, width=s.width, weight_variance=2.0, first=2)


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks; the ratio does not see the scale of the weights."""
    inputs = torch.ones(1, s.width, dtype=torch.float64)
    drawn = draw_preactivations(lambda z: leaky_relu(z, s.negative_slope), inputs, depth=s.depth, width=s.width, members=s.members, weight_variance=2.0, rng=rng)
    return ensembles.four_point_vertex(drawn[1:, :, 0])


def next_order(s: Settings) -> Array:
    """25 l^2 / (2 n^2), a little more than the order that is left out."""
    return torch.arange(2, s.depth + 1).double().div(s.width).square().mul(12.5).numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter 4"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(next_order, because="next order: 25 (l - 1)(l - 2) / (2 n^2) < 12.5 (l / n)^2"),
    scales={"smoke": Settings(4, 32, members=2_000, replicates=8), "standard": Settings(6, 64, members=8_000, replicates=12), "paper": Settings(16, 256, members=8_000, replicates=100)},
    sabotage=Sabotage("a linear network grows as 2 (l - 1) / n", negative_slope=1.0),
)  # fmt: skip
