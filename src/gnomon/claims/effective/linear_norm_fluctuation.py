r"""The squared norm of a deep linear network's signal fluctuates as (1 + 2/n)^l - 1 at initialisation, at any width and depth.

$\frac{E |z^l|^4}{(E |z^l|^2)^2} - 1 = (1 + 2/n)^l - 1$.  Given $z$, the $n$ units of the next layer are independent $N(0, C_W |z|^2 / n)$, so
$|z'|^2 = C_W |z|^2 \chi^2_n / n$, and $E (\chi^2_n / n)^2 = 1 + 2/n$: the layers' factors are independent and multiply.
"""

from dataclasses import dataclass
from typing import Literal

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
    """Linear networks of `depth` layers of `width` units, `members` a block, and the law of their weights."""

    depth: int
    width: int
    members: int
    replicates: int
    law: Literal["normal", "orthogonal"] = "normal"


def predict(s: Settings) -> Reading:
    """The exact value at the last layer."""
    whole = effective.linear_norm_fluctuation(depth=s.depth, width=s.width)
    return Reading.predicted(whole.name, whole.value[-1], unit=whole.unit, source=whole.source)


def measure(s: Settings, *, rng: Generator) -> float:
    """One block of networks."""
    inputs = torch.ones(1, s.width, dtype=torch.float64)
    drawn = draw_preactivations(lambda z: z, inputs, depth=s.depth, width=s.width, members=s.members, weight_variance=1.0, law=s.law, rng=rng)
    return float(ensembles.norm_fluctuation(drawn[-1:, :, 0]).value[0])


def unresolved(s: Settings) -> float:
    """Half the distance from the exact value to the leading order, 2 l / n."""
    return ((1 + 2 / s.width) ** s.depth - 1 - 2 * s.depth / s.width) / 2


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter 3"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(unresolved, because="half the distance to the leading order, 2 l / n, so that the exact formula is told from it"),
    scales={"smoke": Settings(4, 8, members=10_000, replicates=10), "standard": Settings(6, 16, members=20_000, replicates=20), "paper": Settings(16, 64, members=50_000, replicates=400)},
    sabotage=Sabotage("orthogonal weights conserve the norm", law="orthogonal"),
)  # fmt: skip
