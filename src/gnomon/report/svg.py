"""Draws a Figure as SVG: text, lines and shapes alone, in the colours of the page around it."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnomon.core.reading import Array, Axis
from gnomon.report import words
from gnomon.report.figure import Figure, Series, failing_runs
from gnomon.report.scale import Scale
from gnomon.report.surface import STYLE as SHADES
from gnomon.report.surface import surface

WIDTH = 640
GLYPH = 6.9
"""Pixels that a character is taken to need: there is no font to ask."""
ROWS = 26
"""Most bars drawn as rows with their names; more become columns."""

STYLE = (
    ".gf{--b:var(--paper,#fff);--i:var(--ink,#1b1d1f);--m:var(--muted,#596067);--r:var(--rule,#d9dcdf);--a:var(--accent,#0b5a78);display:block;max-width:100%;height:auto;"
    'font-family:-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,system-ui,sans-serif;font-size:12px;font-variant-numeric:tabular-nums}'
    "@media (prefers-color-scheme:dark){.gf{--b:var(--paper,#15181b);--i:var(--ink,#e4e6e8);--m:var(--muted,#a3aab1);--r:var(--rule,#3a4046);--a:var(--accent,#7cc4e0)}}"
    ".gf text{fill:var(--i)}.gf .m{fill:var(--m)}.gf .b{font-weight:600}.gf path{fill:none}.gf .g{stroke:var(--r);stroke-width:1}"
    ".gf .ax{stroke:var(--m);stroke-width:1}.gf .ms{stroke:var(--a);stroke-width:1.75;stroke-linejoin:round}.gf .mw{stroke:var(--i);stroke-width:1.1}"
    ".gf .mf{fill:var(--a)}.gf .md{stroke:var(--a);stroke-width:7;stroke-linecap:round}.gf .mds{stroke:var(--a);stroke-width:4.5;stroke-linecap:round}"
    ".gf .mb{fill:var(--a);fill-opacity:.38}.gf .band{fill:var(--a);fill-opacity:.2}.gf .ps{stroke:var(--i);stroke-width:1.5;stroke-dasharray:5 3}"
    ".gf .pt{stroke:var(--i);stroke-width:2.25}.gf .pf{fill:var(--i)}.gf .pw{stroke:var(--i);stroke-width:1}.gf .ok{fill:var(--i);fill-opacity:.08}.gf .no{fill:var(--m);fill-opacity:.16}"
    ".gf .x{stroke:var(--i);stroke-width:1.75}.gf .ring{stroke:var(--i);stroke-width:1.25}@media print{.gf{--b:#fff;--i:#000;--m:#444;--r:#ccc;--a:#0b5a78}}" + SHADES
)
"""The style of every picture; a page that holds several includes it once."""


class _Canvas:
    def __init__(self, width: float) -> None:
        self.width, self.parts = width, list[str]()

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "", title: str = "") -> None:
        attributes = (f' class="{css}"' if css else "") + (f' text-anchor="{anchor}"' if anchor else "")
        inner = _escape(text) + (f"<title>{_escape(title)}</title>" if title else "")
        self.parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{attributes}>{inner}</text>')

    def path(self, d: str, css: str) -> None:
        if d:
            self.parts.append(f'<path class="{css}" d="{d}"/>')

    def rect(self, x: float, y: float, width: float, height: float, css: str, extra: str = "") -> None:
        self.parts.append(f'<rect class="{css}" x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0.0))}" height="{_n(max(height, 0.0))}"{extra}/>')

    def cross(self, x: float, y: float, r: float = 3.5) -> None:
        self.path(f"M{_n(x - r)} {_n(y - r)}l{_n(2 * r)} {_n(2 * r)}m0 {_n(-2 * r)}l{_n(-2 * r)} {_n(2 * r)}", "x")


def draw(figure: Figure, *, width: int = WIDTH, style: bool = True) -> str:
    """A Figure as one `<svg>` with title and description, `width` pixels wide or as narrow as its place.

    Colours are the CSS variables `--ink`, `--muted`, `--rule` and `--accent` of the page, or their defaults for light and dark; `style=False` leaves
    the style out where the page has it (`STYLE`).   Cost: none.
    """
    canvas = _Canvas(width)
    paint = {"number": _number, "line": _line, "heatmap": _heatmap}.get(figure.kind) or (_rows if figure.axes and len(figure.axes[0].values) <= ROWS else _columns)
    height = math.ceil(paint(figure, canvas))
    head = f'<svg class="gf" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    about = f"<title>{_escape(figure.title)}</title><desc>{_escape(figure.description)}</desc>"
    return head + about + (f"<style>{STYLE}</style>" if style else "") + "".join(canvas.parts) + "</svg>"


def draw_matplotlib(figure: Figure, ax: Any = None) -> Any:
    """A Figure on matplotlib Axes (made if not given), which are returned."""
    from gnomon.report.mpl import paint

    return paint(figure, ax)


def _number(figure: Figure, canvas: _Canvas) -> float:
    """One line a reading on a shared axis: the measurement a dot with its interval, the prediction a tick."""
    row, width = 28.0, canvas.width
    gutter = max(len(s.label) for s in figure.series) * GLYPH + 12
    ends = [float(part) for s in figure.series for part in (s.values, s.low, s.high)] + ([float(end) for end in figure.allowed] if figure.allowed else [])
    scale = Scale.over(ends, gutter, width - 4, log=figure.log and all(e > 0 for e in ends if math.isfinite(e)), pad=0.1)
    bottom = row * len(figure.series) + 2
    if figure.allowed:
        left, right = scale(float(figure.allowed[0])), scale(float(figure.allowed[1]))
        canvas.rect(left, 0, right - left, bottom, "ok")
    for s in figure.series:
        if s.predicted and math.isfinite(float(s.values)):
            canvas.path(f"M{_n(scale(float(s.values)))} 0V{_n(bottom)}", "ps")
    for i, s in enumerate(figure.series):
        _scalar(canvas, scale, s, (i + 0.5) * row + 1)
        canvas.text(gutter - 12, (i + 0.5) * row + 5, s.label, "m", "end")
    _ticks_below(canvas, scale, bottom, "")
    if figure.allowed:
        canvas.rect(gutter, bottom + 26, 14, 10, "ok")
        canvas.text(gutter + 20, bottom + 35, "agrees within the tolerance", "m")
    lines = 1 if figure.allowed or figure.unit else 0
    if figure.unit:
        lines = 2 if figure.allowed and gutter + 30 + (len(figure.unit) + 27) * 6 > width else 1
        canvas.text(scale.end, bottom + 19 + 16 * lines, figure.unit, "m", "end")
    return bottom + 24 + 16 * lines


def _scalar(canvas: _Canvas, scale: Scale, s: Series, y: float) -> None:
    value, low, high = float(s.values), float(s.low), float(s.high)
    line, css = _whisker_across(scale, low, high, y), "pw" if s.predicted else "ms"
    canvas.path(line, css)
    for end, way in ((low, 1), (high, -1)):
        if math.isinf(end) and not s.predicted and math.isinf(low) != math.isinf(high):
            edge = scale(end)
            canvas.path(f"M{_n(edge + 6 * way)} {_n(y - 4)}L{_n(edge)} {_n(y)}L{_n(edge + 6 * way)} {_n(y + 4)}", css)
    if not math.isfinite(value) or math.isinf(low) or math.isinf(high):
        return
    if s.predicted:
        canvas.path(f"M{_n(scale(value))} {_n(y - 7)}v14", "pt")
    else:
        canvas.path(f"M{_n(scale(value))} {_n(y)}h0", "md")


def _whisker_across(scale: Scale, low: float, high: float, y: float) -> str:
    if low == high:
        return ""
    caps = "".join(f"M{_n(scale(end))} {_n(y - 4)}v8" for end in (low, high) if math.isfinite(end))
    return f"M{_n(scale(low))} {_n(y)}H{_n(scale(high))}{caps}"


def _rows(figure: Figure, canvas: _Canvas) -> float:
    """One row a name: the measurement as a bar with its interval, the prediction as a tick."""
    names = [words.clean(entry) for entry in figure.axes[0].values]
    room = int(canvas.width * 0.36 / GLYPH)
    gutter = min(max(len(name) for name in names), room) * GLYPH + 10
    notes = [outcome if outcome not in ("", "holds") else "" for outcome in figure.elements] or [""] * len(names)
    right = canvas.width - (78 if any(notes) else 10)
    top, step = _legend(figure, canvas), 22.0
    bottom = top + step * len(names)
    scale = Scale.over(_reach(figure), gutter, right, log=figure.log, zero=not figure.log)
    _grid_below(canvas, scale, top, bottom, max(int((right - gutter) / 80), 2))
    shapes: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        y = top + step * (i + 0.5)
        short = words.shorten(name, room)
        canvas.text(gutter - 8, y + 4, short, "b" if notes[i] == "fails" else "", "end", name if short != name else "")
        if figure.allowed:
            left, end = scale(float(figure.allowed[0][i])), scale(float(figure.allowed[1][i]))
            canvas.rect(left, y - 9, end - left, 18, "ok")
        for s in figure.series:
            _row_mark(canvas, shapes, scale, s, i, y, log=figure.log)
        if notes[i]:
            if notes[i] == "fails":
                canvas.cross(right + 8, y)
            canvas.text(right + 16, y + 4, words.VERDICTS.get(notes[i], notes[i]).replace("inconclusive", "undecided"), "m")
    for css, paths in shapes.items():
        canvas.path("".join(paths), css)
    _axis_names(canvas, figure.unit, bottom)
    return bottom + (36 if figure.unit else 22)


def _row_mark(canvas: _Canvas, shapes: dict[str, list[str]], scale: Scale, s: Series, i: int, y: float, *, log: bool) -> None:
    value = float(s.values[i])
    if not math.isfinite(value):
        return
    x = scale(value)
    if s.predicted:
        shapes.setdefault("pw", []).append(_whisker_across(scale, float(s.low[i]), float(s.high[i]), y))
        shapes.setdefault("pt", []).append(f"M{_n(x)} {_n(y - 9)}v18")
        return
    if not log:
        zero = scale(0.0)
        canvas.rect(min(x, zero), y - 6, abs(x - zero), 12, "mb")
    shapes.setdefault("mw", []).append(_whisker_across(scale, float(s.low[i]), float(s.high[i]), y))
    shapes.setdefault("mds", []).append(f"M{_n(x)} {_n(y)}h0")


def _columns(figure: Figure, canvas: _Canvas) -> float:
    """Many names: one column each, numbered in order; those that fail carry a cross below the axis."""
    count = len(figure.axes[0].values)
    axis = Axis(figure.axes[0].name + ", in order", tuple(float(k + 1) for k in range(count)))
    top, height = _legend(figure, canvas), 200.0
    bottom = top + height
    y = Scale.over(_reach(figure), bottom, top, log=figure.log, zero=not figure.log)
    left = _grid_left(canvas, y, figure.unit, top)
    x = Scale(0.2, count + 0.8, left, canvas.width - 6)
    _breaks(figure, canvas, [x(i + 1.0) for i in range(count)], left, top, height)
    _marks(figure, canvas, axis, x, y, joined=False)
    for i, outcome in enumerate(figure.elements):
        if outcome == "fails":
            canvas.cross(x(i + 1.0), bottom + 7, 3)
    _ticks_below(canvas, x, bottom, axis.name, room=int((canvas.width - left) / 80), whole=True, drop=8)
    return bottom + 46


def _line(figure: Figure, canvas: _Canvas) -> float:
    """A line with its band along an axis of numbers; few points are marked one by one."""
    axis = figure.axes[0]
    places = [float(v) for v in axis.values]
    top, height = _legend(figure, canvas), 220.0
    bottom = top + height
    y = Scale.over(_reach(figure), bottom, top, log=figure.log)
    left = _grid_left(canvas, y, figure.unit, top)
    log = axis.scale == "log" and all(v > 0 for v in places)
    x = Scale.over(places, left, canvas.width - 8, log=log, pad=0.02 if len(places) > 30 else 0.04, decades=30)
    _breaks(figure, canvas, [x(value) for value in places], left, top, height)
    _marks(figure, canvas, axis, x, y, joined=True)
    for value, outcome in zip(places, figure.elements, strict=False):
        if outcome == "fails":
            canvas.cross(x(value), bottom + 7, 3)
    whole = all(v == int(v) for v in places) and not log
    failing = "fails" in figure.elements
    _ticks_below(canvas, x, bottom, axis.name + (f" ({axis.unit})" if axis.unit else ""), room=int((canvas.width - left) / 85), whole=whole, drop=8 if failing else 0)
    return bottom + (46 if failing else 38)


def _breaks(figure: Figure, canvas: _Canvas, places: Sequence[float], left: float, top: float, height: float) -> None:
    """Shade where the prediction fails: each run of such places, as far as half the way to the next one where it does not."""
    for first, last in failing_runs(figure):
        start = left if first == 0 else (places[first - 1] + places[first]) / 2
        end = canvas.width - 8 if last == len(places) - 1 else (places[last] + places[last + 1]) / 2
        canvas.rect(start, top, end - start, height, "no")


def _marks(figure: Figure, canvas: _Canvas, axis: Axis, x: Scale, y: Scale, *, joined: bool) -> None:
    places = [x(float(v)) for v in axis.values]
    if figure.allowed:
        _band(canvas, places, figure.allowed[0], figure.allowed[1], y, "ok")
    for s in sorted(figure.series, key=lambda s: s.predicted):
        shown = [k for k in range(len(places)) if math.isfinite(float(s.values[k]))]
        points = [(places[k], y(float(s.values[k]))) for k in shown]
        spread = bool((s.high > s.low).any())
        few = not joined or len(places) <= 30
        whisker = "".join(f"M{_n(places[k])} {_n(y(float(s.low[k])))}V{_n(y(float(s.high[k])))}" for k in shown) if spread and few else ""
        if s.predicted:
            if spread and not few:
                _band(canvas, places, s.low, s.high, y, "ok")
            canvas.path(whisker, "pw")
            canvas.path("M" + "L".join(f"{_n(px)} {_n(py)}" for px, py in points) if points else "", "ps")
            continue
        if spread and joined:
            _band(canvas, places, s.low, s.high, y, "band")
        canvas.path(whisker, "mw" if not joined else "")
        if joined and points:
            canvas.path("M" + "L".join(f"{_n(px)} {_n(py)}" for px, py in points), "ms")
        rings = [(px, py) for (px, py), k in zip(points, shown, strict=True) if figure.elements and figure.elements[k] == "fails"]
        canvas.path("".join(f"M{_n(px - 7)} {_n(py)}a7 7 0 1 0 14 0a7 7 0 1 0 -14 0" for px, py in rings), "ring")
        if few:
            canvas.path("".join(f"M{_n(px)} {_n(py)}h0" for px, py in points), "mds" if len(places) > 40 or joined else "md")


def _band(canvas: _Canvas, places: Sequence[float], low: Array, high: Array, y: Scale, css: str) -> None:
    upper = [f"{_n(px)} {_n(y(float(v)))}" for px, v in zip(places, high, strict=True)]
    lower = [f"{_n(px)} {_n(y(float(v)))}" for px, v in zip(places, low, strict=True)]
    canvas.parts.append(f'<polygon class="{css}" points="{" ".join(upper + lower[::-1])}"/>')


def _heatmap(figure: Figure, canvas: _Canvas) -> float:
    """One panel a series, on one shared scale of shade; negative values in ink, positive ones in the accent."""
    rows, columns = (len(axis.values) for axis in figure.axes)
    finite = np.concatenate([s.values[np.isfinite(s.values)].ravel() for s in figure.series]) if figure.series else np.zeros(0)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    names = [words.shorten(words.clean(v) if isinstance(v, str) else words.typeset(words.plain_number(v)), int(canvas.width * 0.3 / GLYPH)) for v in figure.axes[0].values]
    gutter = max(len(name) for name in names) * GLYPH + 10
    side = min((canvas.width - gutter - 6) / columns, 34.0)
    tall = min(max(side, 4.0), 26.0)
    top = 4.0
    for s in figure.series:
        if len(figure.series) > 1:
            canvas.text(gutter, top + 12, s.label)
            top += 20
        cells: dict[tuple[str, float], list[str]] = {}
        for i, j in itertools.product(range(rows), range(columns)):
            place = f"M{_n(gutter + j * side)} {_n(top + i * tall)}h{_n(side - 0.6)}v{_n(tall - 0.6)}h{_n(0.6 - side)}z"
            cells.setdefault(_shade(float(s.values[i, j]), low, high), []).append(place)
        for (css, opacity), places in cells.items():
            canvas.parts.append(f'<path class="{css}" fill-opacity="{opacity:.2f}" d="{"".join(places)}"/>')
        for i, j in itertools.product(range(rows), range(columns)):
            if not s.predicted and figure.elements and figure.elements[i * columns + j] == "fails":
                canvas.cross(gutter + (j + 0.5) * side, top + (i + 0.5) * tall, min(3.5, side / 3))
        for line in figure.contours(s):
            canvas.path("M" + "L".join(f"{_n(gutter + (x + 0.5) * side)} {_n(top + (y + 0.5) * tall)}" for x, y in line), "pw")
        every = max(math.ceil(13 / tall), 1)
        for i in range(0, rows, every):
            canvas.text(gutter - 8, top + (i + 0.5) * tall + 4, names[i], "m", "end")
        top += rows * tall + 6
    _column_names(figure.axes[1], canvas, gutter, side, top)
    _shade_key(canvas, low, high, figure.unit, gutter, top + 38)
    top += 54
    for s in figure.series:
        if figure.rises(s) and not s.predicted:
            top = surface(figure, s, canvas, gutter, top + 8)
    return top


def _shade_key(canvas: _Canvas, low: float, high: float, unit: str, x: float, y: float) -> None:
    """What a shade means: a strip from the lowest to the highest value."""
    left, right = words.typeset(words.short(low)), words.typeset(words.short(high)) + (f" {unit}" if unit else "")
    canvas.text(x, y + 10, left, "m")
    x += len(left) * GLYPH + 6
    for k in range(12):
        css, opacity = _shade(low + (high - low) * k / 11, low, high)
        canvas.rect(x + 8 * k, y, 8, 12, css, f' fill-opacity="{opacity:.2f}"')
    canvas.text(x + 8 * 12 + 8, y + 10, right, "m")


def _shade(value: float, low: float, high: float) -> tuple[str, float]:
    """The colour and opacity of a cell, in steps that the eye cannot tell apart."""
    if not math.isfinite(value):
        return "pf", 0.0
    if low < 0 < high:
        return ("mf" if value >= 0 else "pf"), round(0.04 + 0.92 * abs(value) / max(high, -low), 2)
    return "mf", round(0.06 + 0.9 * ((value - low) / (high - low) if high > low else 0.5), 2)


def _column_names(axis: Axis, canvas: _Canvas, gutter: float, side: float, top: float) -> None:
    names = [words.shorten(words.clean(v), 14) if isinstance(v, str) else words.typeset(words.plain_number(v)) for v in axis.values]
    every = max(math.ceil((max(len(name) for name in names) * GLYPH + 8) / side), 1)
    for j in range(0, len(names), every):
        canvas.text(gutter + (j + 0.5) * side, top + 12, names[j], "m", "middle")
    canvas.text(gutter, top + 28, axis.name + (f" ({axis.unit})" if axis.unit else "") + ", across", "m")


def _reach(figure: Figure) -> list[float]:
    """What the value axis must show: every value, and intervals and tolerances as far as they do not dwarf the values."""
    values = np.concatenate([s.values.ravel() for s in figure.series])
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    span = float(values.max() - values.min()) or abs(float(values.max())) or 1.0
    low, high = float(values.min()) - 1.5 * span, float(values.max()) + 1.5 * span
    ends = np.concatenate([end.ravel() for s in figure.series for end in (s.low, s.high)] + ([end.ravel() for end in figure.allowed] if figure.allowed else []))
    if figure.log:
        return [*values, *(e for e in ends[np.isfinite(ends) & (ends > values[values > 0].min() / 30)] if e < values.max() * 30)]
    return [*values, *np.clip(ends[np.isfinite(ends)], low, high)]


def _legend(figure: Figure, canvas: _Canvas) -> float:
    """Say which mark is which; returns where the picture may begin."""
    joined = figure.kind == "line"
    entries = [("p" if s.predicted else "m", s.label + (", 95 % interval" if not s.predicted and (s.high > s.low).any() else "")) for s in figure.series]
    if figure.allowed:
        entries.append(("ok", "tolerance"))
    if "fails" in figure.elements:
        entries.append(("x", "fails"))
    x, y = 4.0, 10.0
    for kind, label in entries:
        length = 28 + len(label) * GLYPH + 14
        if x > 4 and x + length > canvas.width + 14:
            x, y = 4.0, y + 18
        if kind == "ok":
            canvas.rect(x, y - 5, 20, 10, "ok")
        elif kind == "x":
            if joined or len(figure.axes[0].values) > ROWS:
                canvas.rect(x, y - 6, 20, 12, "no")
            canvas.cross(x + 10, y)
        elif kind == "p" and figure.kind == "bars" and len(figure.axes[0].values) <= ROWS:
            canvas.path(f"M{_n(x + 10)} {_n(y - 7)}v14", "pt")
        elif kind == "p":
            canvas.path(f"M{_n(x)} {_n(y)}h20", "ps")
        else:
            canvas.path(f"M{_n(x)} {_n(y)}h20", "ms" if joined else "mw")
            if not joined or len(figure.axes[0].values) <= 30:
                canvas.path(f"M{_n(x + 10)} {_n(y)}h0", "mds")
        canvas.text(x + 26, y + 4, label, "m")
        x += length
    return y + 16


def _grid_left(canvas: _Canvas, scale: Scale, unit: str, top: float) -> float:
    """Rules and labels of the value axis; returns where the picture begins on the left."""
    ticks = scale.ticks(5)
    left = max((len(label) for _, label in ticks), default=1) * GLYPH + 10
    for value, label in ticks:
        canvas.path(f"M{_n(left)} {_n(scale(value))}H{_n(canvas.width - 6)}", "g")
        canvas.text(left - 8, scale(value) + 4, label, "m", "end")
    if unit:
        canvas.text(canvas.width - 6, top + 4, unit, "m", "end")
    return left


def _grid_below(canvas: _Canvas, scale: Scale, top: float, bottom: float, count: int) -> None:
    for value, label in _fitting(scale.ticks(count), scale):
        canvas.path(f"M{_n(scale(value))} {_n(top)}V{_n(bottom)}", "g")
        canvas.text(scale(value), bottom + 14, label, "m", "middle")


def _ticks_below(canvas: _Canvas, scale: Scale, y: float, name: str, *, room: int = 5, whole: bool = False, drop: float = 0) -> None:
    canvas.path(f"M{_n(scale.start)} {_n(y)}H{_n(scale.end)}", "ax")
    ticks = scale.ticks(min(max(room, 2), 8))
    if whole:
        ticks = [(v, words.typeset(words.plain_number(v))) for v, _ in ticks if v == int(v)]
    for value, label in _fitting(ticks, scale):
        px, half = scale(value), len(label) * 3.3
        anchor = "end" if px + half > canvas.width else "start" if px - half < 0 else "middle"
        canvas.path(f"M{_n(px)} {_n(y)}v4", "ax")
        canvas.text(px, y + 16 + drop, label, "m", anchor)
    if name:
        canvas.text(scale.end, y + 31 + drop, name, "m", "end")


def _fitting(ticks: list[tuple[float, str]], scale: Scale) -> list[tuple[float, str]]:
    """The ticks whose labels do not run into the one before."""
    kept, edge = list[tuple[float, str]](), -math.inf
    for value, label in ticks:
        half = len(label) * 3.4 + 4
        if scale(value) - half >= edge:
            kept.append((value, label))
            edge = scale(value) + half
    return kept


def _axis_names(canvas: _Canvas, unit: str, bottom: float) -> None:
    if unit:
        canvas.text(canvas.width - 10, bottom + 29, unit, "m", "end")


def _escape(text: str) -> str:
    return html.escape(words.clean(text))


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value + 0.0:.1f}".removesuffix(".0")
