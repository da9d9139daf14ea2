"""A continuous heat map seen as a surface, from one corner, in the axes and shades of the map itself."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from gnomon.core.reading import Axis
from gnomon.report import words
from gnomon.report.figure import Figure, Series

SHADES = 12
FLAT, TALL = 0.5, 0.5
"""The slope of the floor's edges in pixels down per pixel across half, and the surface's height as a part of the floor's width."""
STYLE = "".join(f".gf .s{k}{{fill:color-mix(in srgb,var(--a) {8 + 84 * k // (SHADES - 1)}%,var(--b));stroke:var(--b);stroke-width:.4}}" for k in range(SHADES))
"""Opaque shades: what lies behind must not show through."""


class Canvas(Protocol):
    """What a picture is put on."""

    width: float

    def path(self, d: str, css: str) -> None:
        """A line."""

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "", title: str = "") -> None:
        """A word."""


def surface(figure: Figure, series: Series, canvas: Canvas, left: float, top: float) -> float:
    """Draw the surface below `top`, its far corner at the top; returns where it ends.

    The first axis runs from the right corner to the near one, the second from the left corner to it.
    """
    rows, columns = series.values.shape
    low, high = float(series.values.min()), float(series.values.max())
    unit = min((canvas.width - left - 10) / (rows + columns - 2), 420 / (rows + columns - 2))
    across, down, lift = unit, unit * FLAT, unit * (rows + columns - 2) * TALL * 0.5
    middle = left + across * (rows - 1)

    def at(i: float, j: float, share: float) -> tuple[float, float]:
        return middle + across * (j - i), top + lift + down * (i + j) - lift * share

    share = (series.values - low) / (high - low)
    floor = [at(i, j, 0.0) for i, j in ((0, 0), (0, columns - 1), (rows - 1, columns - 1), (rows - 1, 0))]
    canvas.path(_closed(floor), "g")
    for i, j in sorted(np.ndindex(rows - 1, columns - 1), key=sum):
        corners = ((i, j), (i, j + 1), (i + 1, j + 1), (i + 1, j))
        shade = math.floor(min(float(np.mean([share[c] for c in corners])), 0.999) * SHADES)
        canvas.path(_closed([at(*c, float(share[c])) for c in corners]), f"s{shade}")
    bottom = floor[2][1]
    canvas.text(floor[3][0], floor[3][1] + 16, _end(figure.axes[1], 0), "m", "middle")
    canvas.text(floor[1][0], floor[1][1] + 16, _end(figure.axes[0], 0), "m", "middle")
    canvas.text(floor[2][0] - 18, bottom + 14, _end(figure.axes[1], -1), "m", "end")
    canvas.text(floor[2][0] + 18, bottom + 14, _end(figure.axes[0], -1), "m")
    return _names(figure, canvas, floor, bottom)


def _names(figure: Figure, canvas: Canvas, floor: list[tuple[float, float]], bottom: float) -> float:
    """The axes' names beside the near edges."""
    near = floor[2]
    for axis, corner, anchor, side in ((figure.axes[1], floor[3], "end", -1), (figure.axes[0], floor[1], "", 1)):
        x, y = (corner[0] + near[0]) / 2, (corner[1] + near[1]) / 2
        name = words.shorten(words.clean(axis.name), 28)
        canvas.text(x + 14 * side, y + 24, name, "m", anchor, axis.name if name != axis.name else "")
    return bottom + 30


def _end(axis: Axis, k: int) -> str:
    entry = axis.values[k]
    return entry if isinstance(entry, str) else words.typeset(words.plain_number(float(entry)))


def _closed(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "z"
