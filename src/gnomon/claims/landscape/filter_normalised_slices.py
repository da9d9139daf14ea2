r"""A filter-normalised slice of the loss is the same for a ReLU network and for the same function with its layers rescaled; a raw slice is not.

$d_{ij} \leftarrow d_{ij} \, \frac{\|w_{ij}\|}{\|d_{ij}\|}$

That is for filter $j$ of layer $i$.  With every hidden layer's weights times $a$ and the last layer's over $a^{L-1}$ the network is the same function; a direction scaled to the
filters, and so every point of the slice, changes alike.  Biases stay in place.
"""

from dataclasses import dataclass

from torch import Generator, finfo, float64

from gnomon.core import dataset
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.images import digits
from gnomon.instruments.slices import Normalisation, loss_slice
from gnomon.models.rectifier import rescaled, trained


@dataclass(frozen=True)
class Settings:
    """Two hidden layers of `width` units, trained on digits; the rescaled network's factor is 1 + `excess` x the rounding of a loss."""

    width: int
    epochs: int
    points: int
    excess: float = 1e12
    normalise: Normalisation = "filter"


def predict(s: Settings) -> Reading:
    """No difference."""
    return Reading.predicted("slice_difference", 0.0, unit="", source=Source("li2018", "section 4"), assumes=("ReLU", "one factor a layer"))


def rounding(s: Settings) -> float:
    """The machine's epsilon for each parameter."""
    return finfo(float64).eps * (s.width * (64 + s.width + 10) + 2 * s.width + 10)


def measure(s: Settings, *, rng: Generator) -> float:
    """The largest difference of the two slices along directions drawn alike, relative to the rise of the loss on the slice."""
    images, labels = digits()[0]
    data = dataset.read((images.double(), labels), rng=rng)
    first = Subject.freeze(trained((64, s.width, s.width, 10), data, rng=rng, epochs=s.epochs), "cross_entropy", data)
    other = first.at(rescaled(first.state, 1 + s.excess * rounding(s)))
    one, two = (loss_slice(subject, rng=rng, normalise=s.normalise, points=s.points).value for subject in (first, other))
    return float(abs(one - two).max() / (one.max() - one.min()))


CLAIM = Claim(
    version=1, entry="E1", source=Source("li2018", "section 4"), relation="equal", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(rounding, because="rounding: the machine's epsilon for each parameter that a loss depends on"),
    scales={"smoke": Settings(32, epochs=5, points=9), "standard": Settings(128, epochs=30, points=41), "paper": Settings(1024, epochs=100, points=81)},
    sabotage=Sabotage("directions that are not scaled see a rescaling by little more than rounding", normalise="none", excess=25.0),
)  # fmt: skip
