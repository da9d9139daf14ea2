"""Pictures described from the axes of readings alone; `svg.py` draws them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array, Axis, Reading, format_number, unjson
from gnomon.report import words

Kind = Literal["number", "bars", "line", "heatmap"]

POINTS = 240
"""Most points of a line: what a page 600 pixels wide can show."""
CELLS = 32
"""Most cells along a side of a heat map; longer sides are averaged in blocks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One reading in a picture.  Shapes: `values, low, high` that of the picture; the two are ends of the 95 % interval and may be infinite."""

    label: str
    predicted: bool
    values: Array
    low: Array
    high: Array
    text: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
    """A picture: its kind, what runs along it, and its series.

    Shapes: `axes` one a dimension (none for a number); `allowed` the band in which the measurement agrees, shaped like the values, or None;
    `elements` a verdict for each element, or ().   Units: `unit` that of the values.
    """

    kind: Kind
    title: str
    description: str
    axes: tuple[Axis, ...]
    unit: str
    log: bool
    series: tuple[Series, ...]
    allowed: tuple[Array, Array] | None = None
    elements: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Whether names run along the (first) axis, not numbers."""
        return bool(self.axes) and isinstance(self.axes[0].values[0], str)

    @property
    def continuous(self) -> bool:
        """Whether both axes of a heat map are coordinates, not numbers of elements: lines of equal height mean something then."""
        return len(self.axes) == 2 and all(not isinstance(axis.values[0], str) and any(float(v) != int(float(v)) for v in axis.values) for axis in self.axes)

    def rises(self, series: Series) -> bool:
        """Whether a heat map is also a surface: continuous, finite, and not flat."""
        return self.continuous and min(series.values.shape) >= 3 and bool(np.isfinite(series.values).all()) and bool(series.values.min() < series.values.max())

    def contours(self, series: Series, levels: int = 9) -> list[Array]:
        """Lines of equal height of a continuous heat map, equal steps apart.  Shapes: points (n, 2) a line, column then row, in cells from the centre of the first."""
        from contourpy import contour_generator

        values = series.values
        if not self.rises(series):
            return []
        drawn = contour_generator(z=values)
        return [np.asarray(line) for level in np.linspace(values.min(), values.max(), levels + 2)[1:-1] for line in drawn.lines(float(level))]


def describe(
    readings: Reading | Sequence[Reading], *, title: str = "", relation: str = "equal", tolerance: Any = None, elements: Sequence[str] = ()
) -> Figure:  # fmt: skip
    """A picture of one reading, or of a prediction and a measurement on one axis.

    A single number becomes a point with its interval; an axis of names, bars; an axis of numbers, a line with its band; two axes, a heat map.
    `tolerance` adds the band in which the measurement agrees with the prediction, `elements` marks the elements that do not.

    Shapes: readings broadcast to one shape; more than two axes are laid out along two.   Units: those of the readings.
    Error: the 95 % intervals of the readings.   Raises: InvalidInput for no reading, no value, or shapes that do not fit.
    """
    given = [readings] if isinstance(readings, Reading) else list(readings)
    if not given or any(reading.value.size == 0 for reading in given):
        raise InvalidInput("A picture needs at least one reading with at least one value.")
    main = max(given, key=lambda reading: (reading.value.ndim, reading.value.size, reading.role == "measured"))
    shape, axes = main.value.shape, main.axes or tuple(Axis("element", tuple(float(k) for k in range(length))) for length in main.value.shape)
    if main.value.size == 1:
        shape, axes = (), ()
    series = [_series(reading, main, shape, relation, banded=tolerance is not None) for reading in given if relation not in ("order", "monotone") or reading is main]
    allowed = _allowed(series, shape, relation, tolerance)
    marks = tuple(elements) if len(elements) == main.value.size and shape else ()
    if len(shape) > 2:
        series, axes, shape, allowed = [_flat(s, shape) for s in series], _flat_axes(main, axes), (main.value.size // shape[-1], shape[-1]), None
    kind: Kind = "heatmap" if len(shape) == 2 else "number" if not shape else "bars" if isinstance(axes[0].values[0], str) else "line"
    figure = Figure(kind, title or main.name.replace("_", " "), "", axes, main.unit, _logarithmic(series, kind, relation), tuple(series), allowed, marks)
    figure = dataclasses.replace(figure, description=_description(figure))
    return _thinned(figure) if kind == "line" else _averaged(figure) if kind == "heatmap" else figure


def _series(reading: Reading, main: Reading, shape: tuple[int, ...], relation: str, *, banded: bool) -> Series:
    predicted = reading.role == "predicted" or (reading.role == "bound" and reading is not main)
    label = "bound" if reading.role == "bound" else "predicted" if predicted else "measured"
    assert reading.interval is not None
    values: Array = reading.value
    low, high = reading.interval
    if banded and predicted and reading.error_kind == "truncation":
        low = high = values
    text = words.value_text(reading, prefix=words.sign(relation, reading) if predicted else "")
    if relation == "exponent" and predicted and reading.value.size == 1 and len(shape) == 1:
        values = low = high = _guide(main, float(reading))
        label = f"predicted slope {words.typeset(words.short(float(reading)))}"
    try:
        values, low, high = (np.broadcast_to(part.reshape(()) if part.size == 1 else part, shape).astype(np.float64) for part in (values, low, high))
    except ValueError as error:
        raise InvalidInput(f"{reading.name} of shape {reading.value.shape} does not fit {main.name} of shape {main.value.shape}; a picture needs one shape.") from error
    return Series(label, predicted, values, low, high, text)


def _guide(measured: Reading, slope: float) -> Array:
    """A power law of the predicted slope through the middle of the measured values."""
    x = np.log(np.maximum(np.asarray(measured.axes[0].values, dtype=np.float64), 1e-300)) if measured.axes else np.zeros(len(measured.value))
    y = np.log(np.maximum(np.abs(measured.value), 1e-300))
    return np.exp(y.mean() + slope * (x - x.mean()))


def _allowed(series: list[Series], shape: tuple[int, ...], relation: str, tolerance: Any) -> tuple[Array, Array] | None:
    predicted = next((s for s in series if s.predicted), None)
    if tolerance is None or predicted is None or relation not in ("equal", "at_most", "at_least"):
        return None
    limit = unjson(tolerance)
    if limit.size == 1:
        limit = limit.reshape(())
    try:
        limit = np.broadcast_to(limit, shape)
    except ValueError:
        return None
    low = np.full(shape, -math.inf) if relation == "at_most" else predicted.values - limit
    high = np.full(shape, math.inf) if relation == "at_least" else predicted.values + limit
    return np.asarray(low), np.asarray(high)


def _logarithmic(series: Sequence[Series], kind: Kind, relation: str) -> bool:
    """Whether the values span so many powers of ten that a linear axis would hide most of them."""
    values = np.concatenate([s.values.ravel() for s in series])
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if len(positive) < 2 or (values < 0).any() or len(positive) < 0.5 * len(values):
        return False
    if relation == "exponent":
        return True
    return math.log10(positive.max()) - math.log10(positive.min()) > {"number": 1.5, "line": 2.3}.get(kind, 2.5)


def _description(figure: Figure) -> str:
    parts = []
    for series in figure.series:
        label = series.label.capitalize()
        if figure.kind == "number":
            parts.append(f"{label}: {series.text}.")
            continue
        finite = np.flatnonzero(np.isfinite(series.values))
        if not len(finite):
            parts.append(f"{label}: no finite value.")
            continue
        flat = series.values.ravel()
        low, high = finite[flat[finite].argmin()], finite[flat[finite].argmax()]
        unit = f" {figure.unit}" if figure.unit else ""
        along = " and ".join(axis.name for axis in figure.axes)
        span = f"from {format_number(flat[low])} at {_at(figure, low)} to {format_number(flat[high])}{unit} at {_at(figure, high)}"
        if flat[low] == flat[high]:
            span = f"all {format_number(flat[low])}{unit}"
        parts.append(f"{label}: {flat.size:,} values along {along}, {span}.")
    if figure.kind != "heatmap":
        parts.append("Bars and bands around the measurement are 95 % intervals.")
    failing = [_at(figure, i) for i, outcome in enumerate(figure.elements) if outcome == "fails"]
    if failing:
        parts.append(f"Does not agree at {', '.join(failing[:8])}" + (f" and {len(failing) - 8} more." if len(failing) > 8 else "."))
    return words.typeset(" ".join(parts))


def failing_runs(figure: Figure) -> list[tuple[int, int]]:
    """The first and the last place of each run of neighbours at which the prediction fails."""
    runs: list[tuple[int, int]] = []
    for place in (i for i, outcome in enumerate(figure.elements) if outcome == "fails"):
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs


def _at(figure: Figure, index: int) -> str:
    shape = tuple(len(axis.values) for axis in figure.axes)
    names = []
    for axis, k in zip(figure.axes, np.unravel_index(index, shape), strict=True):
        entry = axis.values[int(k)]
        names.append(entry if isinstance(entry, str) else f"{axis.name} {words.plain_number(float(entry))}")
    return ", ".join(names)


def _thinned(figure: Figure) -> Figure:
    """At most POINTS points: of each run of neighbours the one where the first series is farthest from its median, so that peaks stay."""
    count = len(figure.axes[0].values)
    if count <= POINTS:
        return figure
    first = figure.series[-1].values
    height = np.abs(np.nan_to_num(np.log(np.maximum(first, 1e-300)) if figure.log else first, posinf=0.0, neginf=0.0))
    height = np.abs(height - np.median(height))
    kept = [int(run[height[run].argmax()]) for run in np.array_split(np.arange(count), POINTS)]
    axis = dataclasses.replace(figure.axes[0], values=tuple(float(figure.axes[0].values[k]) for k in kept))
    series = tuple(dataclasses.replace(s, values=s.values[kept], low=s.low[kept], high=s.high[kept]) for s in figure.series)
    allowed = None if figure.allowed is None else (figure.allowed[0][kept], figure.allowed[1][kept])
    elements = tuple(figure.elements[k] for k in kept) if figure.elements else ()
    return dataclasses.replace(figure, axes=(axis,), series=series, allowed=allowed, elements=elements)


def _averaged(figure: Figure) -> Figure:
    """At most CELLS cells a side, each the mean of a block, all of one size (but the last of a side); block marks would mix elements, so they are dropped."""
    shape = figure.series[0].values.shape
    if max(shape) <= CELLS:
        return figure
    sizes = [-(-length // CELLS) for length in shape]
    blocks = [[np.arange(start, min(start + size, length)) for start in range(0, length, size)] for length, size in zip(shape, sizes, strict=True)]
    starts = [[int(block[0]) for block in along] for along in blocks]
    tall, wide = ([float(len(block)) for block in along] for along in blocks)
    counts = np.outer(tall, wide)

    def mean(values: Array) -> Array:
        return np.asarray(np.add.reduceat(np.add.reduceat(values, starts[0], axis=0), starts[1], axis=1) / counts)

    def place(axis: Axis, block: Array) -> Any:
        return float(np.mean([axis.values[k] for k in block])) if figure.continuous else axis.values[int(block[0])]

    axes = tuple(dataclasses.replace(axis, values=tuple(place(axis, block) for block in along)) for axis, along in zip(figure.axes, blocks, strict=True))
    series = tuple(dataclasses.replace(s, values=mean(s.values), low=mean(s.low), high=mean(s.high)) for s in figure.series)
    about = f"{figure.description} Drawn in blocks: each cell is the mean of up to {len(blocks[0][0])} × {len(blocks[1][0])} values."
    return dataclasses.replace(figure, axes=axes, series=series, allowed=None, elements=(), description=about)


def _flat(series: Series, shape: tuple[int, ...]) -> Series:
    rows = (-1, shape[-1])
    return dataclasses.replace(series, values=series.values.reshape(rows), low=series.low.reshape(rows), high=series.high.reshape(rows))


def _flat_axes(main: Reading, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """All but the last axis laid out along one."""
    leading = Reading("", np.zeros(main.value.shape[:-1]), "", axes=axes[:-1])
    return Axis(" · ".join(axis.name for axis in axes[:-1]), tuple(words.index_names(leading))), axes[-1]
