r"""A network's expansion to second order follows its training better than its linearisation does.

$|f^{(2)}_T - f_T| < |f^{(1)}_T - f_T|, \quad f^{(k)} = \sum_{j \leq k} \frac{1}{j!} \partial^j_\theta f(\theta_0) (\theta - \theta_0)^j$

Network and expansions start at one point and take the same steps of SGD on the same mini-batches, as in Bai et al., whose expansions of higher order come nearer to the network.  A
second order of the wrong sign helps too, since what it does to the loss is trained away again; one that is four times too large does not.
"""

from dataclasses import dataclass

from torch import Generator, nn
from torch.nn.functional import cross_entropy

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.taylor_path import taylor_errors


@dataclass(frozen=True)
class Settings:
    """A GELU network of one hidden layer on images of side x side pixels; `bend` multiplies the second order."""

    data: str
    examples: int
    side: int
    hidden: int
    steps: int
    replicates: int
    bend: float = 1.0


def predict(s: Settings) -> Reading:
    """A fall from order to order."""
    return Reading.predicted("taylorised_error", -1.0, unit="", source=Source("bai2020"))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One network: how far each expansion ends from it, in units of how far it went."""
    images, labels = pooled(s.data, examples=s.examples, side=s.side)

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(s.side**2, s.hidden), nn.GELU(), nn.Linear(s.hidden, labels.shape[1]))

    found = taylor_errors(make, cross_entropy, images, labels, lr=0.05, steps=s.steps, batch_size=64, bend=s.bend, rng=rng)
    return Reading("taylorised_error", found, "", axes=(Axis("order", (1.0, 2.0)),))


CLAIM = Claim(
    version=1, entry="B2", source=Source("bai2020"), relation="monotone", predict=predict, measure=measure, tolerance=Tolerance(lambda s: 0.0, because="only the order is claimed"),
    scales={
        "smoke": Settings("digits", 500, 8, 64, 50, 3), "standard": Settings("fashion-mnist", 5_000, 14, 256, 50, 8), "paper": Settings("fashion-mnist", 60_000, 28, 1_024, 200, 20),
    }, sabotage=Sabotage("a second order that is four times too large", bend=4.0),
)  # fmt: skip
