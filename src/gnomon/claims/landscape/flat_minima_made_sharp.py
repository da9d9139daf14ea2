r"""A flat minimum of a ReLU network can be made as sharp as one likes without changing the function, while its adaptive sharpness does not move.

$\frac{\lambda_{\max}(H_a)}{a^2 \lambda_{\max}(H_{22})} = 1 + O(a^{-2}), \quad \lambda_{\max}(|w_a| H_a |w_a|) = \lambda_{\max}(|w| H |w|)$

The first layer is multiplied by $a$, the last one divided; $H_{22}$ is the block of the last layer's weights.
"""

import dataclasses
from dataclasses import dataclass

from torch import Generator

from gnomon.core import dataset
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.images import digits
from gnomon.instruments.geometry import adaptive_sharpness
from gnomon.instruments.landscape import sharpness
from gnomon.models.rectifier import rescaled, trained

DINH_2017 = Source("dinh2017", "section 4")
AXIS = Axis("sharpness", ("plain, over its growth", "adaptive"))


@dataclass(frozen=True)
class Settings:
    """One hidden layer of `width` units on digits, the first layer times `factor`; `less` divides the last layer once more, which makes it another function."""

    width: int
    epochs: int
    factor: float
    less: float = 1.0


def predict(s: Settings) -> Reading:
    """Plain sharpness grows as a^2, adaptive sharpness stays."""
    return Reading.predicted("sharpness_ratios", [1.0, 1.0], unit="", axes=(AXIS,), source=DINH_2017, assumes=("ReLU",))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """Both kinds of sharpness of the rescaled network over those of the trained one, the plain one's over a^2 on the last layer's block."""
    images, labels = digits()[0]
    data = dataset.read((images.double(), labels), rng=rng)
    before = Subject.freeze(trained((64, s.width, 10), data, rng=rng, epochs=s.epochs), "cross_entropy", data)
    after = before.at(rescaled(before.state, s.factor, less=s.less))
    block = dataclasses.replace(before, trainable=("3.weight",), _shared={})
    pairs = [(sharpness(after, rng=rng), sharpness(block, rng=rng), s.factor**2), (adaptive_sharpness(after, rng=rng), adaptive_sharpness(before, rng=rng), 1.0)]
    ratios = [float(top) / (float(low) * scale) for top, low, scale in pairs]
    errors = [ratio * (float(top.error) / float(top) + float(low.error) / float(low)) for ratio, (top, low, _) in zip(ratios, pairs, strict=True)]
    return Reading("sharpness_ratios", ratios, "", error=errors, error_kind="bound", axes=(AXIS,))


CLAIM = Claim(
    version=1, entry="E1", source=DINH_2017, relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: [s.factor**-2, 1e-3], because="the next order of the growth (the last bias, whose curvature stays); ten times the residual that an eigenvalue is computed to"),
    scales={"smoke": Settings(32, epochs=5, factor=10.0), "standard": Settings(128, epochs=30, factor=10.0), "paper": Settings(1024, epochs=100, factor=10.0)},
    sabotage=Sabotage("a last layer divided by 0.6 % more is another function, with another curvature", less=1.006),
)  # fmt: skip
