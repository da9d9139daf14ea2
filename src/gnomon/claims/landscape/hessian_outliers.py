r"""The Hessian of a trained classifier of enough width has as many outliers as there are classes less one.

$\#\{i : \lambda_i(H) > \lambda_{\max}((1 - Q Q^T) H (1 - Q Q^T))\} = C - 1$

$Q$ spans the centred class means of $p_{i,c} \nabla \ell_i$, so the edge is what is left without them.  Sagun et al. see about $C$ outliers by eye; Papyan
explains $C - 1$ by the class means, whose sum is nearly 0 at a minimum, and sees a mini-bulk of $C (C - 1)$ cross-class means between them and the bulk.
The count needs a gap above that mini-bulk, which narrow networks lack (`hessian-outliers-narrow`), and ReLU ones of 128 units too: 3 to 6 were counted.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.data.load import first_classes
from gnomon.instruments import landscape as instruments
from gnomon.models.classifier import tanh_classifier
from gnomon.theory import landscape


@dataclass(frozen=True)
class Settings:
    """A tanh network with one hidden layer, trained on so many images of the first classes; noise on its weights, in units of their deviations."""

    data: str
    classes: int
    examples: int
    hidden: int
    epochs: int
    replicates: int
    noise: float = 0.0


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One network of its own seed."""
    subject = tanh_classifier(*first_classes(s.data, s.classes, examples=s.examples), hidden=s.hidden, epochs=s.epochs, rng=rng)
    noisy = {key: value + s.noise * value.std() * chance.normal(*value.shape, rng=chance.child(rng, key), like=value) for key, value in subject.state.items()}
    return instruments.hessian_outliers(subject.at(noisy), rng=rng)


CLAIM = Claim(
    version=1, entry="E1", source=Source("papyan2020", "section 4"), relation="equal", predict=lambda s: landscape.hessian_outliers(s.classes), measure=measure,
    tolerance=Tolerance(lambda s: 0.5, because="half of what lies between the two published counts, C - 1 and C"),
    scales={
        "smoke": Settings("digits", 5, 600, hidden=64, epochs=20, replicates=3), "standard": Settings("mnist", 10, 2_000, hidden=256, epochs=20, replicates=6),
        "paper": Settings("mnist", 10, 20_000, hidden=1_024, epochs=200, replicates=20),
    }, sabotage=Sabotage("weights that are half noise: no trained classifier, and no stationary point", noise=1.0),
)  # fmt: skip
