r"""With the default initialisation a deep GELU network forgets: a small change of the input, and a gradient on its way back, shrink twelvefold a layer.

$\frac{1}{L - 1} E \ln \frac{|\delta z^{(L)}|^2}{|\delta z^{(1)}|^2} = \frac{1}{L - 1} \sum_l \ln \chi_\perp^{(l)}$ with $\chi_\perp = C_W \langle s'^2 \rangle_K$, which falls to about
$\frac{1}{3} \cdot \frac{1}{4} = \frac{1}{12}$: PyTorch draws weights with $C_W = 1/3$ and biases with $C_b = 1/(3 n)$, and $s'(0) = 1/2$.  A layer's factor has relative variance of
about $2/n$, so that its mean logarithm lies about $1/n$ lower.
"""

import math
from dataclasses import dataclass

from torch import Generator

from gnomon.claims.effective import gelu_critical_depth as critical
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block; their C_W."""

    depth: int
    width: int
    members: int
    replicates: int
    weight_variance: float = 1 / 3


def _same(s: Settings) -> critical.Settings:
    return critical.Settings(s.depth, s.width, s.members, s.replicates, weight_variance=s.weight_variance, bias_variance=1 / (3 * s.width))


def predict(s: Settings) -> Reading:
    """The rate of a change, from the susceptibilities of all layers in the limit of many units."""
    whole = critical.predict(_same(s))
    return Reading.predicted("log_growth_per_layer", math.log(whole.value[1]), unit="", source=Source("schoenholz2017", "section 3"))


def measure(s: Settings, *, rng: Generator) -> float:
    """The mean over one block; weights are normal with the default's variance."""
    return math.log(critical.measure(_same(s), rng=rng)[1])


CLAIM = Claim(
    version=1, entry="B4", source=Source("schoenholz2017", "section 3"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 / s.width, because="twice the next order, 1 / width"),
    scales={"smoke": Settings(50, 40, members=15, replicates=10), "standard": Settings(50, 64, members=40, replicates=20), "paper": Settings(50, 100, members=500, replicates=50)},
    sabotage=Sabotage("weights of a sixth more variance", weight_variance=7 / 18),
)  # fmt: skip
