r"""Below the outliers of a classifier's Gauss-Newton matrix stands a mini-bulk, one eigenvalue for each pair of classes.

$\#\{i : \lambda_i(G) > \lambda_{\max}((1 - Q Q^T) G (1 - Q Q^T))\} = C^2 - C$

$Q$ spans the means of the gradients of each class's examples were their label each other class (Papyan).  Among the $C^2 - C$ are the outliers, $C - 1$ by the same
decomposition and about $C$ by eye (Sagun et al.; `hessian-outliers` counts them), and below those the mini-bulk.  The instrument counts both.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import first_classes
from gnomon.instruments.mini_bulk import mini_bulk
from gnomon.models.classifier import tanh_classifier


@dataclass(frozen=True)
class Settings:
    """A tanh network with one hidden layer, trained to a loss of `until` on images of the first classes, which keep so much of their distance from their class's mean."""

    data: str
    classes: int
    examples: int
    hidden: int
    replicates: int
    until: float = 0.05
    kept: float = 1.0


def predict(s: Settings) -> Reading:
    """The outliers and the mini-bulk."""
    return Reading.predicted("above_the_bulk", float(s.classes**2 - s.classes), unit="eigenvalues", source=Source("papyan2020", "section 4"))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One network of its own seed."""
    images, labels = first_classes(s.data, s.classes, examples=s.examples)
    means = torch.stack([images[labels == label].mean(0) for label in range(s.classes)])[labels]
    network = tanh_classifier(means + s.kept * (images - means), labels, hidden=s.hidden, epochs=200, until=s.until, rng=rng)
    found = mini_bulk(network.to(torch.float64), rng=rng)
    return Reading("above_the_bulk", found.value[1], found.unit, error=found.error[1], error_kind="bound", details={"outliers": found.value[0]})


CLAIM = Claim(
    version=1, entry="E1", source=Source("papyan2020", "section 4"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: s.classes / 2, because="half of what lies between two ways of counting: with the class means and without"),
    scales={
        "smoke": Settings("digits", 4, 400, hidden=64, replicates=3), "standard": Settings("digits", 4, 560, hidden=256, replicates=10),
        "paper": Settings("mnist", 10, 20_000, hidden=1_024, replicates=20, until=0.001),
    }, expected="fails", because="examples lie as far from their class's mean as pairs of classes lie apart: only part of the mini-bulk stands above the bulk",
    sabotage=Sabotage("the control: images a hundredth as far from their class's mean, where the mini-bulk is whole", kept=0.01),
)  # fmt: skip
