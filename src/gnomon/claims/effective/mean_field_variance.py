r"""The pre-activations of a wide random network have the variance of mean-field theory, up to a correction of order 1 / width.

$K^{l+1} = C_b + C_W \langle s^2 \rangle_{K^l}$.  At width $n$ the second moment that a layer reads is random, with variance $V/n$, and
$E \langle s^2 \rangle_k$ differs from $\langle s^2 \rangle_K$ by its curvature: $E z^2 = K + D/n + O(1/n^2)$ with
$D' = \chi_\parallel D + C_W g''(K) V / 2$, $g(K) = \langle s^2 \rangle_K$.  The first two layers are exact.
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

BIAS = 0.05


@dataclass(frozen=True)
class Settings:
    """Networks with tanh of `depth` layers of `width` units, `members` a block; the variance of their weights is C_W (1 - shift / width)."""

    depth: int
    width: int
    members: int
    replicates: int
    weight_variance: float = 2.0
    shift: float = 0.0


def predict(s: Settings) -> Reading:
    """K of the third layer and on: before, the next order is 0.  Inputs have mean square 1."""
    c_w = s.weight_variance
    return effective.mean_field_variance(torch.tanh, depth=s.depth, width=s.width, weight_variance=c_w, bias_variance=BIAS, kernel=c_w + BIAS, first=3)


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks."""
    inputs, c_w = torch.ones(1, s.width, dtype=torch.float64), s.weight_variance * (1 - s.shift / s.width)
    drawn = draw_preactivations(torch.tanh, inputs, depth=s.depth, width=s.width, members=s.members, weight_variance=c_w, bias_variance=BIAS, rng=rng)
    return ensembles.preactivation_variance(drawn[2:, :, 0])


CLAIM = Claim(
    version=1, entry="B4", source=Source("poole2016", "section 2"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * predict(s).error, because="twice the next order, |D| / width: the gap is about one of it, and as much is left for what follows"),
    scales={"smoke": Settings(6, 12, members=6_000, replicates=10), "standard": Settings(8, 30, members=4_000, replicates=40), "paper": Settings(20, 200, members=10_000, replicates=400)},
    sabotage=Sabotage("weights too small in variance, by 0.6 / width of it", shift=0.6),
)  # fmt: skip
