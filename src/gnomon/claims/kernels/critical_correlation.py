r"""At criticality the correlation of two inputs of a tanh network nears 1 as 1 / depth, in place of exponentially.

$\frac{1}{1 - c^l} - \frac{1}{1 - c^1} = b\,(l - 1), \qquad b = \tfrac{1}{2} C_W K \langle \tanh''(z)^2 \rangle_K$

On either side of the critical line the left side grows exponentially (ordered) or stops (chaotic).
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory.correlation import correlations, critical_decay

C_W, C_B, SQUARE, COSINE, FIRST, LAST, PLANES = 1.760955, 0.05, 0.29532, 0.8, 3, 15, 8
"""The critical C_W at this C_b, the inputs' mean square, which keeps the kernel, their cosine, the layers between, planes of two inputs."""


@dataclass(frozen=True)
class Settings:
    """Networks of `width` units, `members` a block; their weights have `times` the variance that theory is told."""

    width: int
    members: int
    replicates: int
    times: float = 1.0


def predict(s: Settings) -> Reading:
    """b, and what the further terms of the map, and twice the layers / width, may add."""
    limit = critical_decay(torch.tanh, bias_variance=C_B)
    start, kernel = (C_B + C_W * SQUARE * COSINE) / (C_B + C_W * SQUARE), limit.details["kernel"]
    inverse = 1 / (1 - correlations(torch.tanh, start, depth=LAST, kernel=kernel, weight_variance=C_W, bias_variance=C_B))
    error = abs((inverse[LAST - 1] - inverse[FIRST - 1]) / (LAST - FIRST) - float(limit)) + 2 * (LAST - FIRST) / s.width * float(limit)
    return limit.replace(value=float(limit), error=error, error_kind="truncation", details={})


def measure(s: Settings, *, rng: Generator) -> float:
    """From the mean of 1 - c over a block of networks at two layers."""
    pair = torch.tensor([[1.0, 0.0], [COSINE, (1 - COSINE**2) ** 0.5]], dtype=torch.float64) * (2 * PLANES * SQUARE) ** 0.5
    inputs = torch.block_diag(*[pair] * PLANES)
    z = draw_preactivations(torch.tanh, inputs, depth=LAST, width=s.width, members=s.members, weight_variance=C_W * s.times, bias_variance=C_B, rng=chance.child(rng, "networks"))
    apart = ((z[:, :, ::2] - z[:, :, 1::2]).square().mean((1, 2, 3)) / (2 * z.square().mean((1, 2, 3))))[[FIRST - 1, LAST - 1]]
    return float((1 / apart[1] - 1 / apart[0]) / (LAST - FIRST))


CLAIM = Claim(
    version=1, entry="B4", source=Source("schoenholz2017", "section 3"), relation="equal", predict=predict, measure=measure,
    scales={"smoke": Settings(128, 24, replicates=8), "standard": Settings(256, 32, replicates=16), "paper": Settings(1000, 200, replicates=24)},
    sabotage=Sabotage("weights of 0.95 times the variance: the ordered phase", times=0.95),
)  # fmt: skip
