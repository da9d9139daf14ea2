"""Rows of the chapter `effective` about finite width: fluctuations of signal and tangent kernel over initialisations, and how far a first step moves the kernel, at first order in 1/width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gnomon.core.architecture import Architecture
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.judge import Verdict
from gnomon.core.reading import Array, Axis, Reading, format_number
from gnomon.examination.row import Row
from gnomon.theory.width_effects import KERNEL, STEP, fully_connected, width_effects

SIGNAL, FLUCTUATION, LEARNING = "fluctuation of the signal over initialisations", "fluctuation of the tangent kernel over initialisations", "feature learning in a first step"
LARGE = 0.5
"""A relative standard deviation of the tangent kernel above this makes one initialisation another problem than the next."""
LAZY = 0.01
"""A kernel that a whole step moves by less than 1 % is called lazy."""
KINK = "units cross the activation's kink from the side on which they learn alone: this moves the kernel by a part 1/sqrt(width), which no differential holds"
QUARTER = 0.25
BECAUSE = "the next order in depth/width, or a quarter where that is more: our choice, what a few hundred networks can tell"


def rows(architecture: Architecture, measured: Reading | None) -> Iterator[Row]:
    """Three rows on a network that is fully connected as a whole; one that names the layer where it is not.   Cost: the recursions on one input."""
    try:
        layers, _ = fully_connected(architecture)
        predicted = width_effects(architecture, square=measured.details["square"], biases=measured.details["biases"]) if measured is not None else None
    except (OutOfScope, InvalidInput) as error:
        yield Row("finite width", out_of_scope=str(error), words="no recursion at order 1/width covers this network as a whole")
        return
    if measured is None or predicted is None:
        return
    names, ratio = [str(name) for name in measured.axes[0].values], sum(1 / layer.units for layer in layers[:-1])
    hidden = [name for name in names if name not in (KERNEL, STEP)]
    kurtosis, last = 3 * predicted.details["vertex"], _at(predicted, [KERNEL])
    biased = bool(predicted.details["biases"] * abs(last.value) > last.error / 2)
    signal = (
        f"the mean square of what the last layer reads varies by {_percent(predicted, hidden[-1])} from one initialisation to the next; its outputs have an excess kurtosis of "
        f"{format_number(kurtosis, 2)}"
    )
    yield Row(SIGNAL, _at(predicted, hidden), _at(measured, hidden), "equal", _allowed(predicted, hidden), because=BECAUSE, words=lambda verdict: _words(verdict, signal))
    kernel = f"it varies by {_percent(predicted, KERNEL)} from one initialisation to the next"
    yield Row(
        FLUCTUATION, _at(predicted, [KERNEL]), _at(measured, [KERNEL]), "equal", _allowed(predicted, [KERNEL]), because=BECAUSE, words=lambda verdict: _words(verdict, kernel, biased),
        advice=lambda verdict: _advice(verdict, _value(predicted, KERNEL)),
    )  # fmt: skip
    moved = _at(measured, [STEP])
    said = f"a step that would close the error moves the tangent kernel by {format_number(100 * _value(measured, STEP), 2)} %"
    if STEP not in predicted.axes[0].values:
        yield Row(LEARNING, measured=moved, out_of_scope=KINK, words=f"{said}, measured")
        return
    lazy = abs(_value(predicted, STEP)) < LAZY
    learns = f"{said}: {'lazy at this depth/width' if lazy else 'features move'} ({format_number(ratio, 2)})"
    yield Row(LEARNING, _at(predicted, [STEP]), moved, "equal", _allowed(predicted, [STEP]), because=BECAUSE, words=lambda verdict: _words(verdict, learns, biased))


def _value(reading: Reading, name: str) -> float:
    return float(reading.value[reading.axes[0].values.index(name)])


def _percent(reading: Reading, name: str) -> str:
    return f"{format_number(100 * math.sqrt(max(_value(reading, name), 0.0)), 2)} %"


def _at(reading: Reading, names: Sequence[str]) -> Reading:
    """Some elements of a reading; one element by itself is a number."""
    index: list[int] | int = [reading.axes[0].values.index(name) for name in names]
    axes: tuple[Axis, ...] = (Axis("layer", tuple(names)),)
    if len(names) == 1:
        index, axes = reading.axes[0].values.index(names[0]), ()
    assert reading.interval is not None
    return reading.replace(value=reading.value[index], error=reading.error[index], interval=tuple(end[index] for end in reading.interval), axes=axes, details={})


def _allowed(predicted: Reading, names: Sequence[str]) -> Array:
    at = _at(predicted, names)
    return np.maximum(at.error, QUARTER * np.abs(at.value))


def _words(verdict: Verdict, holds: str, biased: bool = False) -> str:
    if verdict.outcome == "vacuous" and biased:
        return "in its deep layers biases are most of the signal, and as PyTorch draws them they are not normal: the first order in depth/width says nothing here"
    if verdict.outcome == "vacuous":
        return "too deep for its width: the first order in depth/width says nothing here"
    if verdict.outcome == "inconclusive":
        return f"more re-drawn networks would decide; expected: {holds}"
    return f"another than the first order in depth/width says, which is: {holds}" if verdict.outcome == "fails" else holds


def _advice(verdict: Verdict, variance: float) -> str | None:
    if verdict.outcome != "holds" or variance <= LARGE**2:
        return None
    times = format_number(variance / (LARGE / 2) ** 2, 2)
    return f"Widen the hidden layers {times} times, or average over as many initialisations: the tangent kernel varies by {100 * math.sqrt(variance):.0f} % between two of them."
