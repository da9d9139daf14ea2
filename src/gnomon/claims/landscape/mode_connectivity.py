r"""Between two trained networks the loss has a barrier on the straight line, and hardly any on a curve that is fitted to low loss.

$\max_t \left[ L(\phi(t)) - (1-t) L(\phi(0)) - t L(\phi(1)) \right]$

On a quadratic Bezier curve $\phi(t) = (1-t)^2 w_1 + 2t(1-t) \theta + t^2 w_2$, with $\theta$ from $\min_\theta E_t L(\phi(t))$, it is at most a tenth of what it is on the segment.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.images import digits
from gnomon.instruments.connectivity import along, barrier, fit_curve, segment
from gnomon.models.rectifier import trained

GARIPOV_2018 = Source("garipov2018", "section 3")


@dataclass(frozen=True)
class Settings:
    """Networks of two hidden layers of `width` units, two a replicate, and `steps` of SGD on the curve."""

    width: int
    epochs: int
    steps: int
    points: int
    replicates: int


def predict(s: Settings) -> Reading:
    """Nothing is left of the segment's barrier."""
    return Reading.predicted("barrier_ratio", 0.0, unit="", source=GARIPOV_2018)


def measure(s: Settings, *, rng: Generator) -> float:
    """The training loss's barrier on the fitted curve over that on the segment, for two networks from other seeds."""
    data = dataset.read(digits()[0], rng=rng)
    made = [trained((64, s.width, s.width, 10), data, rng=chance.child(rng, "network", i), epochs=s.epochs) for i in range(2)]
    subject = Subject.freeze(made[0], "cross_entropy", data)
    curve = fit_curve(subject, made[1], rng=chance.child(rng, "curve"), steps=s.steps, batch_size=64, lr=0.05)
    on_curve, straight = (float(barrier(along(subject, path, points=s.points)["train_loss"])) for path in (curve, segment(subject, made[1])))
    return on_curve / straight


CLAIM = Claim(
    version=1, entry="E1", source=GARIPOV_2018, relation="at_most", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(lambda s: 0.1, because="a tenth of the segment's barrier: a curve with one bend is not the best of all curves"),
    scales={"smoke": Settings(32, epochs=8, steps=320, points=9, replicates=3), "standard": Settings(64, epochs=30, steps=3000, points=41, replicates=10), "paper": Settings(512, epochs=100, steps=20_000, points=61, replicates=20)},
    sabotage=Sabotage("a curve that is not fitted is the segment", steps=0),
)  # fmt: skip
