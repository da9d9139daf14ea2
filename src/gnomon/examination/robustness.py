"""The chapter `robustness`: how far the decision boundary is, whether the gradient at the example tells, how sensitive the output is to the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gnomon.core.errors import OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Array, Reading, format_number
from gnomon.core.source import Source
from gnomon.examination.row import Row
from gnomon.instruments.robustness import robust_accuracy
from gnomon.theory import robustness as theory

ORDER = 40
TITLE = "Robustness"
THEORY = (
    "A small change $d$ of the input changes the margin of the label's logit over another by the slope of that margin times $|d|$ at most. To first order the class changes at the distance "
    "$r=\\min_j (f_y-f_j)/|\\nabla f_y-\\nabla f_j|$: large margins and small input gradients make a network robust. An attack that optimises finds how far the "
    "boundary really is; where it bends, one gradient at the example does not tell."
)
ASSUMES = (
    "distances are Euclidean (L2) and in the units in which the network reads its inputs; every perturbation is allowed, pixels may leave their range",
    "the attack's distances are upper bounds: it may miss the nearest point",
)
SOURCES = (Source("hoffman2019"), Source("franceschi2018"))
BENDING = 0.2
"""How much of the distance the boundary's bending may change before first order is said to fail: our choice; piecewise linear networks have no next order to take it from."""
POINTS = 0.1
"""The same for the accuracy at a given perturbation: ten points, our choice."""
FLIPPED = 0.05
"""The share of predictions for which the noise that flips them is given."""


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    margins, slopes, distance = (readings.get(name) for name in ("logit_margins", "margin_slopes", "adversarial_distance"))
    if margins is not None and slopes is not None and distance is not None:
        yield from _distance(margins, slopes, distance, readings)
        yield _accuracy(margins, slopes, distance)
    if margins is not None:
        yield Row("margins over the other classes", measured=margins, words="logit of the label less those of the others, the runner-up first")
    if slopes is not None:
        yield Row("slopes of the margins", measured=slopes, words="how much a margin falls for an input moved by 1 against its gradient")
    yield from _jacobian(readings)


def _distance(margins: Reading, slopes: Reading, distance: Reading, readings: Mapping[str, Reading]) -> Iterator[Row]:
    title = "distance to the decision boundary"
    linear = theory.linear_distances(margins.samples, slopes.samples)
    found = np.asarray(distance.details.get("found", np.arange(len(linear)))).astype(int)
    attacked = np.full(len(linear), np.inf)
    attacked[found] = distance.samples
    both = np.isfinite(linear) & np.isfinite(attacked)
    try:
        predicted = theory.first_order_distance(margins.samples, slopes.samples, both)
    except OutOfScope as error:
        yield Row(title, measured=distance, words=f"no prediction: {error}", headline=True)
        return
    if not both.all():
        distance = distance.replace(value=attacked[both].mean(), samples=attacked[both], n=int(both.sum()), error=attacked[both].std(ddof=1) / both.sum() ** 0.5)
    ratio = float(distance) / float(predicted)
    off = f"{abs(1 / ratio - 1) * 100:.0f} %"

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "inconclusive":
            return f"first order is off by about {off}; more test examples would decide it"
        if verdict.outcome == "holds":
            return f"the gradient at an example tells how far the boundary is, within {off}"
        return f"the boundary bends: first order {'over' if ratio < 1 else 'under'}states the distance by {off}"

    because = "20 % is allowed for the bending of the boundary: a choice, as piecewise linear networks have no next order"
    yield Row(
        title, predicted, distance, "equal", BENDING * float(predicted), because=because, words=words, advice=_advice(distance, linear[both], readings), headline=True,
    )  # fmt: skip


def _advice(distance: Reading, linear: Array, readings: Mapping[str, Reading]) -> str:
    low, middle, _ = (format_number(float(q), 2) for q in np.asarray(distance.details["quantiles"]))
    noise = format_number(theory.flipping_noise(linear, FLIPPED), 2)
    said = (
        f"Half of the test examples that are right change their class within a perturbation of {middle}, a tenth within {low}; to first order Gaussian noise of standard deviation "
        f"{noise} on every input flips {100 * FLIPPED:.0f} % of them."
    )
    jacobian = readings.get("input_jacobian_norm")
    if jacobian is None:
        return said
    norm = float(jacobian)
    return f"{said} Halving the input-Jacobian norm ({format_number(norm, 2)}) at equal margins doubles these: penalise its square in training, or train with noise."


def _accuracy(margins: Reading, slopes: Reading, distance: Reading) -> Row:
    accuracy = robust_accuracy(distance)
    linear = theory.linear_distances(margins.samples, slopes.samples)
    sizes = tuple(float(size) for size in accuracy.axes[0].values)
    predicted = theory.first_order_accuracy(linear, len(accuracy.samples), sizes)
    half = float(np.interp(-float(accuracy.value[0]) / 2, -accuracy.value, sizes))

    def words(verdict: Verdict) -> str:
        start = f"{100 * float(accuracy.value[0]):.0f} % without an attack, half of that at a perturbation of {format_number(half, 2)}"
        return {"holds": f"{start}; as first order says", "fails": f"{start}; first order says otherwise"}.get(verdict.outcome, start)

    because = "ten points are allowed for the bending of the boundary, a choice"
    return Row("accuracy under attack", predicted, accuracy, "equal", POINTS, scale=1.0, because=because, words=words)


def _jacobian(readings: Mapping[str, Reading]) -> Iterator[Row]:
    end, initial = readings.get("input_jacobian_norm"), readings.get("input_jacobian_norm@initial")
    if end is not None:
        grown = "" if initial is None or float(initial) <= 0 else f"{format_number(float(end) / float(initial), 2)} times that at initialisation"
        yield Row("input-Jacobian norm", measured=end, words=grown or "how much the outputs together move for a small move of the input")
    if initial is not None:
        yield Row("input-Jacobian norm at initialisation", measured=initial, words="before training")
