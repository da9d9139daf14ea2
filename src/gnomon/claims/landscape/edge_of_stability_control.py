r"""With a learning rate so small that gradient flow never reaches 2 / lr, the sharpness stays below: it is the step that halts it at the edge.

$\max_t \tfrac{\eta}{2} \lambda_{\max}(\nabla^2 L(\theta_t)) < 1$

The control beside `edge-of-stability`: the same network on the same images, from another initialisation, sharpens past the place where the larger steps
hover, and ends where the loss is fitted, not at its own limit.  Measured is the largest of many equally spaced times of the whole training.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.descent import sharpness_path


@dataclass(frozen=True)
class Settings:
    """A tanh network with these hidden layers on so many images of side x side pixels; `factor` times the learning rate is what it is trained with."""

    data: str
    examples: int
    side: int
    hidden: tuple[int, ...]
    lr: float
    steps: int
    factor: float = 1.0


def predict(s: Settings) -> Reading:
    """Well below 1, where the others hover."""
    return Reading.predicted("sharpness_of_limit", 0.8, unit="", source=Source("cohen2021", "section 3"))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """The largest sharpness of one run, as a part of the limit 2 / lr of the learning rate that it had."""
    data, lr = pooled(s.data, examples=s.examples, side=s.side), s.lr * s.factor
    path = sharpness_path(*data, hidden=s.hidden, lr=lr, steps=s.steps, times=24, rng=rng) * lr / 2
    return Reading("sharpness_of_limit", path.max(), "", error=1e-3 * path.max(), error_kind="bound", details={"path": path})


CLAIM = Claim(
    version=1, entry="D4", source=Source("cohen2021", "section 3"), relation="at_most", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 0.1, because="the tenth within which the sharpness of the other runs hovers about the limit: 0.9 is the least that counts as hovering"),
    scales={
        "smoke": Settings("digits", 100, 8, (20, 20), 0.05, 3_000), "standard": Settings("mnist", 1_000, 14, (64, 64), 0.025, 12_000),
        "paper": Settings("mnist", 5_000, 28, (200, 200), 0.005, 100_000),
    }, sabotage=Sabotage("a learning rate four times larger, whose limit is reached", factor=4.0),
)  # fmt: skip
