r"""Begun above the limit $2 / \lambda$, but below $4 / \lambda$, a wide network is thrown to a place whose curvature is below the limit, and learns there.

$\lambda_0 > \frac{2}{\eta}, \quad \lambda_\infty < \frac{2}{\eta}$

On the two-layer linear network $f = v \cdot u / \sqrt{n}$ with the curvature $\lambda = (|u|^2 + |v|^2) / n$: the loss grows until the weights have shrunk.  Above
$4 / \lambda_0$ training diverges; below $2 / \lambda_0$ nothing is thrown, and the curvature stays.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.catapult import two_layer_curvatures


@dataclass(frozen=True)
class Settings:
    """Networks of `width` units; the initial curvature over the limit 2 / lr; `factor` times that learning rate is what they are trained with."""

    width: int
    ratios: tuple[float, ...]
    steps: int
    networks: int
    replicates: int
    factor: float = 1.0


def predict(s: Settings) -> Reading:
    """At most the limit, wherever it began between 1 and 2."""
    axis = Axis("initial curvature × lr / 2", s.ratios)
    assumes = ("many units", "begun between the limit and twice the limit; above that training diverges")
    return Reading.predicted("curvature_of_limit", np.ones(len(s.ratios)), unit="", axes=(axis,), source=Source("lewkowycz2020", "section 3"), assumes=assumes)


def measure(s: Settings, *, rng: Generator) -> Array:
    """The curvature at the end, in the unit 2 / lr of the learning rate that is stated, averaged over one block of networks at each ratio."""
    ends = [two_layer_curvatures(s.width, ratio=ratio, factor=s.factor, steps=s.steps, networks=s.networks, rng=rng) for ratio in s.ratios]
    return np.array([float(end.mean()) for end in ends])


CLAIM = Claim(
    version=1, entry="D4", source=Source("lewkowycz2020", "section 3"), relation="at_most", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 0.2, because="a fifth of the limit: networks begin at 1.3 of it and more, and a curvature that did not drop is told apart"),
    scales={
        "smoke": Settings(200, (1.3, 1.5), 600, networks=50, replicates=4), "standard": Settings(1_000, (1.3, 1.5, 1.7, 1.9), 2_000, networks=40, replicates=10),
        "paper": Settings(10_000, (1.3, 1.5, 1.7, 1.9), 5_000, networks=100, replicates=20),
    }, sabotage=Sabotage("a learning rate below the limit: the curvature stays where it was", factor=0.5),
)  # fmt: skip
