r"""The Hessian of a trained narrow classifier has as many outliers as there are classes less one.

$\#\{i : \lambda_i(H) > \lambda_{\max}((1 - Q Q^T) H (1 - Q Q^T))\} = C - 1$

As `hessian-outliers`, with hidden layers too narrow for it: the count grows with the width, on MNIST from about 2 at 16 units over 3 or 4 at 32 and 7 at 64 to
all 9 at 256.  In a narrow layer the cross-class means and the spread inside the classes are not smaller than the smallest class means: Papyan's mini-bulk
and Sagun's outliers run into one another, with no gap to count above.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import first_classes
from gnomon.instruments import landscape as instruments
from gnomon.models.classifier import tanh_classifier
from gnomon.theory import landscape


@dataclass(frozen=True)
class Settings:
    """A tanh network with one hidden layer, trained on so many images of the first classes; what its width is multiplied by."""

    data: str
    classes: int
    examples: int
    hidden: int
    epochs: int
    replicates: int
    widen: int = 1


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One network of its own seed."""
    data = first_classes(s.data, s.classes, examples=s.examples)
    return instruments.hessian_outliers(tanh_classifier(*data, hidden=s.hidden * s.widen, epochs=s.epochs, rng=rng), rng=rng)


CLAIM = Claim(
    version=1, entry="E1", source=Source("papyan2020", "section 4"), relation="equal", predict=lambda s: landscape.hessian_outliers(s.classes), measure=measure,
    tolerance=Tolerance(lambda s: 0.5, because="half of what lies between the two published counts, C - 1 and C"),
    scales={
        "smoke": Settings("digits", 5, 400, hidden=4, epochs=15, replicates=6), "standard": Settings("mnist", 10, 2_000, hidden=48, epochs=20, replicates=6),
        "paper": Settings("mnist", 10, 20_000, hidden=64, epochs=200, replicates=20),
    }, sabotage=Sabotage("eight times as wide: the control, in which all are counted", widen=8),
    expected="fails", because="the class means stand out of what is left only in a layer that is wide enough: on MNIST about 6 of 9 do at 48 units",
)  # fmt: skip
