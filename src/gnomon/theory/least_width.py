"""The width that a depth needs for the expansion in 1/width to say something, by the size of its own next order."""

from __future__ import annotations

import math

import numpy as np

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import Function
from gnomon.theory.criticality import critical_point
from gnomon.theory.tensors import ASSUMES, tensors

PRINCIPLES = Source("roberts2022", "chapters 4 and 8")


def least_width(
    activation: Function, *, depth: int, tolerance: float = 0.5, weight_variance: float | None = None, bias_variance: float | None = None, kernel: float | None = None
) -> Reading:  # fmt: skip
    """The width below which the first order in 1/width fails, layer by layer: where the next order reaches `tolerance` of the correction that it follows.

    Where layers multiply, (1 + v/(n l))^l - 1 = r + r^2/2 + ..., r = V/(n K^2) = v/n:  the vertex's next order is r/2 of it, the tangent kernel's that of its variance a/n = A/(n Theta^2).  So

    n* = max(v / 2, a) / tolerance

    At the tolerance 0.5 the correction is `vacuous`: its error is half of it.

    Shapes: value (depth,), layers 1 .. depth; the first is exact at every width (0).   Units: units of a layer.   `details`: `four_point_vertex` v/2/tolerance, `ntk_variance` a/tolerance.
    Error: truncation, half: the next order is known by its size only.   Assumes: equal widths, one input, Gaussian weights and biases; learning rates 1/fan_in and 1.
    `weight_variance` and `bias_variance` are the critical ones where none are given, `kernel` (of the first layer) is K*, or 1.   Cost: that of `tensors` for one input.
    Raises: OutOfScope as `critical_point` (where no C_W is given) and `tensors`; InvalidInput for a depth below 1 or a tolerance that is not in (0, 1].
    Source: Roberts, Yaida & Hanin 2022, eq. (4.90) (arXiv v2) (V), chapter 8 (A); the size of the next order as in `effective.four_point_vertex` and `tensors`.
    """
    if not 0 < tolerance <= 1:
        raise InvalidInput(f"The tolerance is a part of the correction, above 0 and at most 1, not {tolerance:g}.")
    point = critical_point(activation) if weight_variance is None else None
    c_w = point.weight_variance if point else float(weight_variance or 0.0)
    c_b = bias_variance if bias_variance is not None else point.bias_variance if point else 0.0
    first = kernel if kernel is not None else point.kernel if point and point.kernel else 1.0
    found = tensors(activation, depth=depth, weight_variance=c_w, bias_variance=c_b, kernel=max(first, c_b), through="ntk")
    vertex = _relative(found.V, found.kernel) / 2 / tolerance
    ntk = _relative(found.value("A"), found.ntk) / tolerance
    value, axes = np.maximum(vertex, ntk), (Axis("layer", tuple(map(float, range(1, depth + 1)))),)
    details = {"four_point_vertex": vertex, "ntk_variance": ntk, "tolerance": tolerance}
    return Reading.predicted("least_width", value, unit="units", error=value / 2, error_kind="truncation", axes=axes, source=PRINCIPLES, assumes=ASSUMES, details=details)


def _relative(four: Array, two: Array) -> Array:
    return np.asarray(four.reshape(len(four), -1)[:, 0] / two.reshape(len(two), -1)[:, 0] ** 2)


def words(found: Reading, width: int) -> str:
    """What the least width of the last layer says of a network, in a sentence."""
    least, tolerance = max(math.ceil(float(found.value[-1])), 1), found.details["tolerance"]
    what = "the tangent kernel's variance" if found.details["ntk_variance"][-1] > found.details["four_point_vertex"][-1] else "V/(n K^2)"
    here = "fails" if width < least else "says something"
    return f"the first order in 1/width {here} at this depth and width: below width {least:,} the next order of {what} reaches {tolerance:.0%} of it"
