"""Draws a Figure on matplotlib Axes, for notebooks and papers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gnomon.core.reading import Array
from gnomon.report.figure import Figure, Series, failing_runs

MEASURED, PREDICTED = "#0b5a78", "#1b1d1f"
DECADES = 10
"""Powers of ten below the largest value that a logarithmic axis shows at most."""


def paint(figure: Figure, ax: Any = None) -> Any:
    """Draw the picture on Axes, made if not given, and return them.

    What is both a map and a surface is drawn as both where the Axes are made here (the map's are returned, the surface stands beside), as a surface on three-dimensional
    Axes, as a map on others.
    """
    shown = next((s for s in figure.series if not s.predicted), figure.series[0])
    both = figure.kind == "heatmap" and figure.rises(shown)
    if ax is None and both:
        import matplotlib.pyplot as plt

        whole = plt.figure(figsize=(9.6, 3.8), layout="constrained")
        ax = whole.add_subplot(1, 2, 1)
        _surface(figure, shown, whole.add_subplot(1, 2, 2, projection="3d"))
    elif both and ax.name == "3d":
        _surface(figure, shown, ax)
        ax.set_title(figure.title, loc="left", fontsize="medium")
        return ax
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(6.4, 1.6 if figure.kind == "number" else 3.6), layout="constrained")[1]
    {"number": _number, "bars": _along, "line": _along, "heatmap": _heatmap}[figure.kind](figure, ax)
    ax.set_title(figure.title, loc="left", fontsize="medium")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def _number(figure: Figure, ax: Any) -> None:
    for i, s in enumerate(figure.series):
        value = float(s.values)
        spread = np.array([[_reach(value - float(s.low))], [_reach(float(s.high) - value)]])
        mark, colour, size = ("|", PREDICTED, 12) if s.predicted else ("o", MEASURED, 6)
        ax.errorbar([value], [i], xerr=spread, fmt=mark, color=colour, markersize=size, capsize=3, label=s.label)
    if figure.allowed is not None:
        ax.axvspan(*(float(edge) if np.isfinite(edge) else limit for edge, limit in zip(figure.allowed, ax.get_xlim(), strict=True)), color=PREDICTED, alpha=0.08, linewidth=0)
    ax.set_yticks(range(len(figure.series)), [s.label for s in figure.series])
    ax.set_ylim(len(figure.series) - 0.5, -0.5)
    ax.set_xlabel(figure.unit)
    if figure.log:
        ax.set_xscale("log")


def _along(figure: Figure, ax: Any) -> None:
    axis = figure.axes[0]
    x = np.arange(len(axis.values)) if figure.named else np.asarray(axis.values, dtype=np.float64)
    if figure.allowed is not None:
        low, high = (np.where(np.isfinite(edge), edge, np.nan) for edge in figure.allowed)
        ax.fill_between(x, low, high, color=PREDICTED, alpha=0.08, linewidth=0)
    for s in figure.series:
        if s.predicted:
            ax.plot(x, s.values, "--", color=PREDICTED, label=s.label)
        elif figure.named:
            ax.errorbar(x, s.values, yerr=_spread(s), fmt="o", color=MEASURED, capsize=2, markersize=4, label=s.label)
        else:
            ax.plot(x, s.values, color=MEASURED, label=s.label)
            ax.fill_between(x, *(np.where(np.isfinite(end), end, s.values) for end in (s.low, s.high)), color=MEASURED, alpha=0.2, linewidth=0)
    failing = [i for i, outcome in enumerate(figure.elements) if outcome == "fails"]
    if failing:
        ax.plot(x[failing], figure.series[-1].values[failing], "x", color=PREDICTED, markersize=9, label="fails")
    for first, last in () if figure.named else failing_runs(figure):
        ax.axvspan(
            x[first] if first == 0 else (x[first - 1] + x[first]) / 2, x[last] if last == len(x) - 1 else (x[last] + x[last + 1]) / 2, color=PREDICTED, alpha=0.08, linewidth=0
        )
    if figure.named:
        ax.set_xticks(x, [str(v) for v in axis.values], rotation=40, ha="right")
    elif axis.scale == "log" and (x > 0).all():
        ax.set_xscale("log")
    if figure.log:
        ax.set_yscale("log")
        top = max(float(np.nanmax(s.values)) for s in figure.series)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], top / 10**DECADES))
    ax.set_xlabel(axis.name + (f" ({axis.unit})" if axis.unit else ""))
    ax.set_ylabel(figure.unit)
    if len(figure.series) > 1:
        ax.legend(frameon=False)


def _heatmap(figure: Figure, ax: Any) -> None:
    s = next((s for s in figure.series if not s.predicted), figure.series[0])
    image = ax.imshow(s.values, aspect="auto", cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=figure.unit)
    for line in figure.contours(s):
        ax.plot(*line.T, color="white", linewidth=0.7)
    for axis, put, limit in ((figure.axes[0], ax.set_yticks, 20), (figure.axes[1], ax.set_xticks, 8)):
        places = range(0, len(axis.values), max(-(-len(axis.values) // limit), 1))
        put(list(places), [v if isinstance(v, str) else f"{v:.3g}" for v in (axis.values[k] for k in places)])
    if figure.rises(s):  # coordinates grow upwards, numbers of elements downwards
        ax.invert_yaxis()
    ax.set_ylabel(figure.axes[0].name)
    ax.set_xlabel(figure.axes[1].name)


def _surface(figure: Figure, s: Series, ax: Any) -> None:
    across, down = np.meshgrid(*(np.asarray(axis.values, dtype=np.float64) for axis in figure.axes[::-1]))
    ax.plot_surface(down, across, s.values, cmap="viridis", linewidth=0, rcount=64, ccount=64)
    ax.set_xlabel(figure.axes[0].name)
    ax.set_ylabel(figure.axes[1].name)
    ax.set_zlabel(figure.unit)
    ax.set_box_aspect(None, zoom=0.85)


def _spread(s: Series) -> Array:
    below, above = s.values - s.low, s.high - s.values
    return np.array([np.where(np.isfinite(below), np.maximum(below, 0.0), 0.0), np.where(np.isfinite(above), np.maximum(above, 0.0), 0.0)])


def _reach(length: float) -> float:
    return max(length, 0.0) if np.isfinite(length) else 0.0
