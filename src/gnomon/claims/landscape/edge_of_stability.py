r"""Under full-batch gradient descent the sharpness of a network rises to 2 / lr, and hovers there.

$\lambda_{\max}(\nabla^2 L) \to \frac{2}{\eta}$

On a quadratic of larger curvature gradient descent diverges; a network's loss goes on falling, not monotonically, while its sharpness stays at, or just
above, that limit.  Measured is the mean over the last quarter of training; the whole path is kept beside it, at equally spaced times.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.core.training import Training
from gnomon.data.load import pooled
from gnomon.models.descent import sharpness_path
from gnomon.theory import landscape


@dataclass(frozen=True)
class Settings:
    """A tanh network with these hidden layers on so many images of side x side pixels; `factor` times each learning rate is what it is trained with."""

    data: str
    examples: int
    side: int
    hidden: tuple[int, ...]
    lrs: tuple[float, ...]
    steps: int
    factor: float = 1.0


def limits(s: Settings) -> Array:
    """2 / lr for each learning rate."""
    return np.array([float(landscape.stability_limit(Training("sgd", lr=lr))) for lr in s.lrs])


def predict(s: Settings) -> Reading:
    """The limit of stability."""
    return Reading.predicted("sharpness", limits(s), unit="loss / parameter²", axes=(Axis("learning rate", s.lrs),), source=Source("cohen2021", "section 2"))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """Each learning rate from the same initialisation."""
    data = pooled(s.data, examples=s.examples, side=s.side)
    paths = np.stack([sharpness_path(*data, hidden=s.hidden, lr=lr * s.factor, steps=s.steps, times=24, rng=rng) for lr in s.lrs], 1)
    return Reading.of_samples("sharpness", paths[18:], unit="loss / parameter²", axes=(Axis("learning rate", s.lrs),), details={"path": paths})


CLAIM = Claim(
    version=1, entry="D4", source=Source("cohen2021", "section 3"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: limits(s) / 10, because="a tenth, chosen before the run: `at, or just above` says the paper; a learning rate 1.3 times larger is told apart"),
    scales={
        "smoke": Settings("digits", 100, 8, (20, 20), (0.2, 0.3), 2_000), "standard": Settings("mnist", 1_000, 14, (64, 64), (0.05, 0.1), 12_000),
        "paper": Settings("mnist", 5_000, 28, (200, 200), (0.02, 0.05, 0.1), 100_000),
    }, sabotage=Sabotage("a learning rate 1.3 times larger: the sharpness hovers at the limit of that", factor=1.3),
)  # fmt: skip
