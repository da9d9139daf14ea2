r"""On real digits a tanh network trains up to a depth of about six depth scales of its correlations, in the ordered phase and in the chaotic one.

$L \approx 6\, \xi, \qquad \xi^{-1} = -\log \big( C_W \langle \tanh'(z) \tanh'(z') \rangle_{c^*} \big)$

The depth is that at which accuracy after a short training is halfway between chance and that of the shallowest network; with more steps or larger ones it moves.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.data import images
from gnomon.models import perceptrons
from gnomon.numerics.statistics import crossing
from gnomon.theory.correlation import trainable_depth


@dataclass(frozen=True)
class Settings:
    """C_W and the grid of depths of either network; two of `width` units train side by side, with weights of `times` the variance that theory is told."""

    weight_variances: tuple[float, ...]
    depths: tuple[tuple[int, ...], ...]
    width: int
    steps: int
    lr: float
    replicates: int
    times: float = 1.0


def predict(s: Settings) -> Reading:
    """Six depth scales; the figure of the rule is good to a third of it."""
    value = np.array([float(trainable_depth(torch.tanh, weight_variance=c_w, bias_variance=0.05)) for c_w in s.weight_variances])
    return Reading.predicted("trainable_depth", value, unit="layers", error=value / 3, error_kind="truncation", axes=(Axis("C_W", s.weight_variances),))


def measure(s: Settings, *, rng: torch.Generator) -> Array:
    """The depth at which accuracy passes halfway, between points of the grid linearly; the deepest of the grid where it does not."""
    (pixels, labels), found = images.digits()[0], []
    for c_w, depths in zip(s.weight_variances, s.depths, strict=True):
        seen = []
        for depth, stream in ((depth, chance.child(rng, str(c_w), depth)) for depth in depths):
            drawn = next(perceptrons.draw(torch.tanh, features=64, depth=depth, width=s.width, outputs=10, members=2, weight_variance=c_w * s.times,
                                          bias_variance=0.05, dtype=pixels.dtype, rng=stream))  # fmt: skip
            seen.append(float(perceptrons.classified(drawn, pixels.flatten(1), labels, lr=s.lr, batch=128, steps=s.steps, rng=stream).mean()))
        found.append(crossing(np.array(depths), np.array(seen), (seen[0] + 0.1) / 2))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="B4", source=Source("schoenholz2017", "section 5"), relation="equal", predict=predict, measure=measure, smoke="inconclusive",
    scales={
        "smoke": Settings((1.2,), ((9, 27, 45),), 32, 50, 0.06, 2), "standard": Settings((1.2, 3.0), ((9, 27, 45, 63), (14, 41, 54, 81)), 64, 300, 0.01, 3), "paper": Settings((1.2, 3.0), ((9, 18, 27, 36, 45, 54, 72), (14, 27, 41, 54, 68, 81)), 300, 2000, 0.001, 8),
    }, sabotage=Sabotage("weights of half the variance, whose depth scale is shorter by a factor of 3", times=0.5),
)  # fmt: skip
