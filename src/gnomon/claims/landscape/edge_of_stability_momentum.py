r"""With momentum the sharpness of a network rises to (2 + 2 b) / lr, and hovers there.

$\lambda_{\max}(\nabla^2 L) \to \frac{2 + 2 \beta}{\eta}$

That is the largest curvature of a quadratic on which the heavy ball $x' = x + \beta (x - x_{prev}) - \eta \nabla L$ does not diverge.  Measured is the mean
over the last quarter of training; the whole path is kept beside it, at equally spaced times.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.training import Training
from gnomon.data.load import pooled
from gnomon.models.descent import sharpness_path
from gnomon.theory import landscape

MOMENTUM = 0.9


@dataclass(frozen=True)
class Settings:
    """A tanh network with these hidden layers on so many images of side x side pixels, and the momentum that it is trained with."""

    data: str
    examples: int
    side: int
    hidden: tuple[int, ...]
    lr: float
    steps: int
    momentum: float = MOMENTUM


def predict(s: Settings) -> Reading:
    """The limit of stability."""
    return landscape.stability_limit(Training("sgd", lr=s.lr, momentum=MOMENTUM)).replace(name="sharpness")


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One run."""
    data = pooled(s.data, examples=s.examples, side=s.side)
    path = sharpness_path(*data, hidden=s.hidden, lr=s.lr, momentum=s.momentum, steps=s.steps, times=24, rng=rng)
    return Reading.of_samples("sharpness", path[18:], unit="loss / parameter²", details={"path": path})


CLAIM = Claim(
    version=1, entry="D4", source=Source("cohen2021", "section 3, appendix B"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: float(predict(s)) / 10, because="a tenth, chosen before the run, as for gradient descent without momentum"),
    scales={
        "smoke": Settings("digits", 100, 8, (20, 20), 0.4, 3_000), "standard": Settings("mnist", 1_000, 14, (64, 64), 0.1, 12_000),
        "paper": Settings("mnist", 5_000, 28, (200, 200), 0.1, 100_000),
    }, sabotage=Sabotage("a smaller momentum: the sharpness hovers at the limit of that", momentum=0.3),
)  # fmt: skip
