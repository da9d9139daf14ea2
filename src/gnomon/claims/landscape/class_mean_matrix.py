r"""Every outlier of a trained classifier's Hessian is at least as large as that of the explicit class-mean matrix.

$\lambda_i(H) \geq \lambda_i(B), \quad B = \sum_c w_c \delta_c \delta_c^T, \quad i = 1, \dots, C - 1$

$\delta_c$ is the mean gradient of class $c$ over its examples and the labels they do not have, weighted by the probabilities of those.  For the Gauss-Newton
matrix that is a theorem, since a second moment is at least that of its means; for the Hessian it says that the rest is small near a minimum.  The two do
not agree closer than to a factor: the spread of the examples about their class means adds half to three times as much again.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.load import first_classes
from gnomon.instruments import landscape
from gnomon.models.classifier import tanh_classifier
from gnomon.numerics.class_means import class_part_eigenvalues


@dataclass(frozen=True)
class Settings:
    """A tanh network with one hidden layer, trained on so many images of the first classes; what its last weights are multiplied by."""

    data: str
    classes: int
    examples: int
    hidden: int
    epochs: int
    gain: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> Subject:
    """The trained network."""
    return tanh_classifier(*first_classes(s.data, s.classes, examples=s.examples), hidden=s.hidden, epochs=s.epochs, rng=rng)


def predict(s: Settings, shared: Subject) -> Reading:
    """The eigenvalues of B, but for the least, which is nearly 0."""
    names = tuple(np.arange(1.0, s.classes).tolist())
    return Reading.predicted("outliers", class_part_eigenvalues(shared)[:-1], unit="loss / parameter²", axes=(Axis("eigenvalue", names),), source=Source("papyan2020"))


def measure(s: Settings, shared: Subject, *, rng: Generator) -> Reading:
    """The largest eigenvalues of the Hessian."""
    state = {key: value * (s.gain if key.startswith("2.") else 1.0) for key, value in shared.state.items()}
    return landscape.hessian_eigenvalues(shared.at(state), rng=rng, k=s.classes - 1)


CLAIM = Claim(
    version=1, entry="E1", source=Source("papyan2020", "section 4"), relation="at_least", predict=predict, measure=measure, prepare=prepare,
    tolerance=Tolerance(lambda s: 0.0, because="none: what the class means leave out adds to every eigenvalue"),
    scales={"smoke": Settings("digits", 5, 600, 64, 20), "standard": Settings("mnist", 10, 2_000, 64, 40), "paper": Settings("mnist", 10, 20_000, 256, 200)},
    sabotage=Sabotage("last weights half as large again: the same network, surer of itself and flatter", gain=1.5),
)  # fmt: skip
