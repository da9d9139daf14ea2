r"""In a deep tanh network correlations near their fixed point by a factor e every xi layers, in the ordered phase and in the chaotic one.

$c^l - c^* \propto e^{-l / \xi}, \qquad \xi^{-1} = -\log \big( C_W \langle \tanh'(z) \tanh'(z') \rangle_{c^*} \big)$

The difference of the correlations that two inputs have with a third falls so too, and needs no fixed point to be measured.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory.correlation import correlation_depth, layer_factor

PHASES, C_B, FIRST, LAST, PLANES = ((1.2, 0.183, (1.0, 0.5)), (3.0, 0.459, (0.6, -0.2))), 0.05, 5, 12, 8
"""C_W (1.76 is critical), the inputs' mean square, which keeps the kernel, cosines with a third input; C_b; the layers between; planes of three inputs."""


@dataclass(frozen=True)
class Settings:
    """Networks of `width` units, `members` of either phase a block; their weights have `times` the variance that theory is told."""

    width: int
    members: int
    replicates: int
    times: float = 1.0


def predict(s: Settings) -> Reading:
    """The factors of a layer, exp(-1 / xi), and what the curvature of the map, and 2 / width, may add."""
    limit = np.array([correlation_depth(torch.tanh, weight_variance=c_w, bias_variance=C_B).details["slope"] for c_w, _, _ in PHASES])
    starts = [[(C_B + c_w * square * c) / (C_B + c_w * square) for c in cosines] for c_w, square, cosines in PHASES]
    curved = [layer_factor(torch.tanh, (at[0], at[1]), first=FIRST, last=LAST, weight_variance=c_w, bias_variance=C_B) for at, (c_w, _, _) in zip(starts, PHASES, strict=True)]
    error, axes = abs(curved - limit) + 2 * limit / s.width, (Axis("phase", ("ordered", "chaotic")),)
    return Reading.predicted("correlation_factor", limit, unit="", error=error, error_kind="truncation", axes=axes, source=Source("schoenholz2017", "section 3"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """From the mean correlations of a block of networks at two layers."""
    found, kept = list[float](), dict[str, Any](depth=LAST, width=s.width, members=s.members, bias_variance=C_B)
    for c_w, square, cosines in PHASES:
        plane = torch.tensor([[1.0, 0.0], *([c, (1 - c * c) ** 0.5] for c in cosines)], dtype=torch.float64) * (2 * PLANES * square) ** 0.5
        z = draw_preactivations(torch.tanh, torch.block_diag(*[plane] * PLANES), weight_variance=c_w * s.times, rng=chance.child(rng, str(c_w)), **kept)[[FIRST - 1, LAST - 1]]
        near, far = (((z[:, :, ::3] * z[:, :, k::3]).mean((1, 2, 3)) / z.square().mean((1, 2, 3))) for k in (1, 2))
        found.append(float((near - far)[1] / (near - far)[0]) ** (1 / (LAST - FIRST)))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="B4", source=Source("schoenholz2017", "section 3"), relation="equal", predict=predict, measure=measure,
    scales={"smoke": Settings(64, 60, replicates=10), "standard": Settings(200, 30, replicates=16), "paper": Settings(1000, 200, replicates=24)},
    sabotage=Sabotage("weights of 1.25 times the variance", times=1.25),
)  # fmt: skip
