r"""The four-point vertex of a tanh network at criticality grows with depth over width, as that of ReLU does, but more slowly: V / (n K^2) tends to 2 l / (3 n).

$\frac{V^{(l)}}{n (K^{(l)})^2} \to \frac{2 l}{3 n}$, of which the layers before are the recursion $V' = \chi_\parallel^2 V + C_W^2 (\langle s^4 \rangle - \langle s^2 \rangle^2)$,
to leading order in $1/n$; what that leaves out is taken to be half its square, as where layers multiply, $(1 + r/l)^l - 1 = r + r^2/2$.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.instruments import ensembles
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory import effective


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block, read at the second half of their layers; by what their width is multiplied."""

    depth: int
    width: int
    members: int
    replicates: int
    narrower: float = 1.0


def predict(s: Settings) -> Reading:
    """The leading order, for inputs of mean square 1."""
    return effective.four_point_vertex(torch.tanh, depth=s.depth, width=s.width, weight_variance=1.0, first=s.depth // 2)


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks."""
    width = round(s.narrower * s.width)
    inputs = torch.ones(1, width, dtype=torch.float64)
    drawn = draw_preactivations(torch.tanh, inputs, depth=s.depth, width=width, members=s.members, weight_variance=1.0, rng=rng)
    return ensembles.four_point_vertex(drawn[s.depth // 2 - 1 :, :, 0])


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "section 5.4.2"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 / 3 * s.depth / s.width * predict(s).value, because="the next order is relative r/2 with r up to 2 L/(3 n), and twice that is taken"),
    scales={"smoke": Settings(6, 20, members=2_500, replicates=8), "standard": Settings(12, 48, members=8_000, replicates=12), "paper": Settings(32, 256, members=10_000, replicates=60)},
    sabotage=Sabotage("networks of three quarters of the width", narrower=0.75),
)  # fmt: skip
