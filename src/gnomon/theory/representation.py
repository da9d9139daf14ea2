"""Predictions about representations: what neural collapse leads to, how large ranks and rates can be, what a probe of the last features finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.source import Source

PAPYAN_HAN_2020 = Source("papyanhan2020")
ROY_2007 = Source("roy2007")
YU_2020 = Source("yu2020")
ALAIN_2016 = Source("alain2016")


def neural_collapse(classes: int, features: int) -> Reading:
    """Limits of the six statistics of neural collapse: 0, 0, -1/(C-1), 0, 0, 0.

    Features collapse to their class means (NC1); these become the vertices of a regular simplex, of one length and cosine -1/(C-1) (NC2); the head becomes
    their multiple (NC3), so that it decides for the nearest of them (NC4).

    Shapes: value (6,), in the order of the instrument.   Units: none.   Error: none; reached as training goes on without end.
    Assumes: zero training error, balanced classes, late training.   Cost: none.
    Raises: OutOfScope where a simplex of so many classes does not fit into the features; InvalidInput for fewer than two classes.
    Source: Papyan, Han & Donoho 2020 (NC1 to NC4).
    """
    if classes < 2:
        raise InvalidInput(f"Neural collapse is that of at least two classes, not {classes}.")
    if features < classes - 1:
        raise OutOfScope(f"a regular simplex of {classes} classes needs {classes - 1} features, and there are {features}")
    value = np.array([0.0, 0.0, -1 / (classes - 1), 0.0, 0.0, 0.0])
    return Reading.predicted("neural_collapse", value, unit="", source=PAPYAN_HAN_2020, assumes=("zero training error", "balanced classes", "late training"))


def uncollapsed(*, error: float, loss: float, classes: int, fewest: int, most: int, reduced: float, balance: float) -> str | None:
    """Which condition of neural collapse is not met, or None.

    Zero training error; the most frequent class at most 1 + balance times the least; late training, that is a loss of at most `reduced` times ln C, the loss of guessing.
    """
    if error > 0:
        return f"the training error is {100 * error:.2g} %, not 0"
    if most > (1 + balance) * fewest:
        return f"the classes are not balanced: {fewest:,} to {most:,} examples"
    if loss > reduced * math.log(classes):
        return f"training is not late: the loss is {loss:.2g}, {100 * loss / math.log(classes):.2g} % of that of guessing"
    return None


def largest_effective_rank(dimensions: Sequence[int], examples: int) -> Reading:
    """The largest effective rank that centred features can have: min(examples - 1, features), where all directions weigh alike.

    Shapes: value (layers,).   Units: directions.   Error: exact.   Assumes: nothing.   Cost: none.   Raises: InvalidInput for fewer than two examples.
    Source: Roy & Vetterli 2007 (erank <= rank).
    """
    if examples < 2:
        raise InvalidInput(f"A rank of centred features takes at least two examples, not {examples}.")
    value = [float(max(min(examples - 1, size), 1)) for size in dimensions]
    return Reading.predicted("largest_effective_rank", value, unit="directions", source=ROY_2007)


def largest_coding_rate(dimensions: Sequence[int], examples: int, distortion: float = 0.5) -> Reading:
    """The largest coding rate of features on the unit sphere: r/2 ln(1 + d / (r e^2)) with r = min(n, d) directions of equal weight.

    1/2 sum_i ln(1 + d / (n e^2) s_i^2) with sum_i s_i^2 = n over at most r directions; the logarithm is concave, so equal s_i^2 = n / r are the most.

    Shapes: value (layers,).   Units: nats.   Error: exact.   Assumes: features scaled to length 1.   Cost: none.   Raises: InvalidInput for no example or no distortion.
    Source: derived here from the definition of Yu et al. 2020, section 2.
    """
    if examples < 1 or distortion <= 0:
        raise InvalidInput(f"A rate takes examples and a distortion above 0; {examples} and {distortion:g} came.")
    ranks = [min(examples, size) for size in dimensions]
    value = [r / 2 * math.log1p(d / (r * distortion)) for r, d in zip(ranks, dimensions, strict=True)]
    return Reading.predicted("largest_coding_rate", value, unit="nats", source=YU_2020.at("section 2"))


def probe_of_the_last_features(own: Sequence[float]) -> Reading:
    """Accuracy of a linear probe of what the head reads: that of the network itself.

    The loss of the head's weights alone is convex; where the network's training is stationary they are its minimum, which a logistic regression on the same
    features finds too, up to its small ridge penalty.

    Shapes: own (n,), 1 where the network is right; value (), samples (n,).   Units: none.   Error: standard error over examples, paired with the probe's.
    Assumes: cross-entropy, a linear head, a stationary point.   Cost: none.   Raises: InvalidInput for fewer than two examples.
    Source: derived here; probes as Alain & Bengio 2016.
    """
    return Reading.of_samples(
        "probe_of_the_last_features", np.asarray(own, dtype=np.float64), unit="", role="predicted", source=ALAIN_2016, assumes=("the head's weights are stationary",)
    )
