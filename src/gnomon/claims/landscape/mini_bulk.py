r"""Below the outliers of a classifier's Gauss-Newton matrix stands a mini-bulk, one eigenvalue for each pair of classes.

$\#\{i : \lambda_i(G) > \lambda_{\max}((1 - Q Q^T) G (1 - Q Q^T))\} = C^2 - C$

$Q$ spans the means of the gradients of each class's examples were their label each other class (Papyan).  Beside it, with the $C - 1$ class means alone for $Q$: the
outliers, $C - 1$ by Papyan's decomposition, about $C$ by eye (Sagun et al.).  Among the $C^2 - C$ are the outliers and, below them, the mini-bulk.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.data.load import first_classes
from gnomon.instruments.mini_bulk import KINDS, mini_bulk
from gnomon.models.classifier import tanh_classifier


@dataclass(frozen=True)
class Settings:
    """A tanh network with one hidden layer, trained on so many images of the first classes; what the images keep of their distance from their class's mean."""

    data: str
    classes: int
    examples: int
    hidden: int
    epochs: int
    replicates: int
    kept: float = 1.0


def predict(s: Settings) -> Reading:
    """The outliers alone, and with the mini-bulk."""
    counts = np.array([s.classes - 1.0, s.classes**2 - s.classes])
    return Reading.predicted("mini_bulk", counts, unit="eigenvalues", axes=(Axis("edge", KINDS),), source=Source("papyan2020", "section 4"))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One network of its own seed."""
    images, labels = first_classes(s.data, s.classes, examples=s.examples)
    means = torch.stack([images[labels == label].mean(0) for label in range(s.classes)])[labels]
    return mini_bulk(tanh_classifier(means + s.kept * (images - means), labels, hidden=s.hidden, epochs=s.epochs, rng=rng), rng=rng)


CLAIM = Claim(
    version=1, entry="E1", source=Source("papyan2020", "section 4"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: np.array([0.5, s.classes / 2]), because="half of what lies between the published counts: C - 1 and C; with the class means and without"),
    scales={
        "smoke": Settings("digits", 4, 400, hidden=64, epochs=20, replicates=3), "standard": Settings("mnist", 4, 1_000, hidden=128, epochs=20, replicates=6),
        "paper": Settings("mnist", 10, 20_000, hidden=1_024, epochs=200, replicates=20),
    }, expected="fails", because="a network of this size leaves examples as far from their class's mean as pairs of classes are apart: only part of the mini-bulk stands above the bulk",
    sabotage=Sabotage("the control: images a tenth as far from their class's mean, where the mini-bulk is whole", kept=0.1),
)  # fmt: skip
