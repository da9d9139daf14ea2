r"""A deep linear network learns the singular modes of the data one by one, each along a sigmoid whose time goes as one over the mode's strength.

$u(t) = \frac{s e^{2 s t}}{e^{2 s t} - 1 + s / u_0}$

That is for two layers; for more, $\dot u = d\, u^{2 - 2/d} (s - u)$ is integrated.  The strengths $s$ are the singular values of the correlation of whitened images with
their labels.  With inputs that are not whitened the modes mix.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.deep_matrix import mode_path, modes
from gnomon.theory import deep_linear


@dataclass(frozen=True)
class Settings:
    """Images and their side in pixels, layers, the first strength over each mode's own, times in units of one over the strongest; powers of the second moments kept."""

    data: str
    images: tuple[int, int]
    depths: tuple[int, ...]
    start: float
    times: tuple[float, ...]
    lr: float
    kept: float = 0.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Tensor, ...]:
    """Images and labels."""
    return tuple(part.double() for part in pooled(s.data, examples=s.images[0], side=s.images[1]))


def predict(s: Settings, shared: tuple[Tensor, ...]) -> Reading:
    """The strengths over the singular values; steps come too late by a share lr of the time, which moves a curve by its slope."""
    singular, t = modes(*shared)[1], np.array(s.times)[:, None]
    curves = [deep_linear.mode_strengths(singular, s.start * singular, [time / float(singular[0]) for time in s.times], depth=depth) for depth in s.depths]
    value = np.stack([curve.value / singular.numpy() for curve in curves])
    axes = (Axis("layers", s.depths), Axis("time × strongest", s.times), curves[0].axes[1])
    error = s.lr * value * (1 + np.array(s.depths)[:, None, None] / 2 * t * (1 - value))
    return curves[0].replace(value=value, error=error, error_kind="truncation", axes=axes)


def measure(s: Settings, shared: tuple[Tensor, ...], *, rng: Generator) -> Tensor:
    """Gradient descent on the weights of all layers."""
    records = [round(time / s.lr) for time in s.times]
    return torch.stack([mode_path(*shared, depth=depth, start=s.start, lr=s.lr, records=records, kept=s.kept) for depth in s.depths])


CLAIM = Claim(
    version=1, entry="A5", source=Source("saxe2014", "section 1.2"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    sabotage=Sabotage("inputs that are not quite whitened: the modes mix", kept=0.1), scales={"smoke": Settings("digits", (500, 4), (2, 3), 0.01, (1.0, 2.0, 4.0, 8.0), lr=0.02), "standard": Settings("digits", (1_437, 8), (2, 3, 4), 0.01, (1.0, 2.0, 4.0, 8.0, 16.0), lr=0.005), "paper": Settings("mnist", (60_000, 14), (2, 3, 4, 5), 0.001, (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), lr=0.001)},
)  # fmt: skip
