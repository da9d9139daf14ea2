r"""With residual connections every layer of a ReLU network at criticality adds to its four-point vertex what single units remember of the layers before, too.

$\frac{V}{n K^2} \to \frac{\nu(\gamma)}{n} l, \quad \nu(\gamma) = (1 - \gamma^2)^2 \sum_q c_q \frac{1 + \gamma^q}{1 - \gamma^q}$

for $z' = \gamma z + W s(z)$, $C_W = 2 (1 - \gamma^2)$, with $c_q$ the weight of the Hermite polynomial of order $q$ in $C_W s^2 / K$; in the first layers the sum
is not yet full, and each layer is predicted.  Without the odd orders, which ReLU has, one finds $(1 - \gamma^2)(5 - \gamma^2)$, half as much at $\gamma = 0.7$.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.instruments import ensembles
from gnomon.theory.aspect_ratio import residual_vertex

RESIDUAL = 0.7


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block; the residual connection's factor."""

    depth: int
    width: int
    members: int
    replicates: int
    residual: float = RESIDUAL


def predict(s: Settings) -> Reading:
    """Leading order, from the second layer on: the first is Gaussian and has none."""
    found = residual_vertex(torch.relu, depth=s.depth, width=s.width, residual=RESIDUAL)
    return found.replace(value=found.value[1:], error=found.error[1:], axes=(Axis("layer", found.axes[0].values[1:]),))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks."""
    z, layers = chance.normal(s.members, s.width, rng=rng), []
    for _ in range(s.depth - 1):
        weights = chance.normal(s.members, s.width, s.width, rng=rng) * (2 * (1 - s.residual**2) / s.width) ** 0.5
        z = s.residual * z + torch.bmm(weights, torch.relu(z)[..., None])[..., 0]
        layers.append(z)
    return ensembles.four_point_vertex(torch.stack(layers))


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "appendix B"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: predict(s).value ** 2, because="next order: twice (1 + r/l)^l - 1 - r = r^2/2"),
    scales={"smoke": Settings(3, 20, members=2_500, replicates=8), "standard": Settings(5, 40, members=8_000, replicates=12), "paper": Settings(16, 256, members=8_000, replicates=100)},
    sabotage=Sabotage("half the residual connection: layers fluctuate more, and are remembered less", residual=0.35),
)  # fmt: skip
