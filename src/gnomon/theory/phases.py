"""Order and chaos: susceptibilities, the phase diagram over (C_W, C_b), and the critical line between the phases, for any activation.

g(K) = <s^2>_K, h(K) = <s'^2>_K.  A kernel that stays is K = C_b + C_W g(K); there chi_perp = C_W h(K) says whether two close inputs are drawn together (ordered, below 1)
or driven apart (chaotic, above 1).  The line between is chi_perp = 1, so with the kernel as its parameter C_W = 1/h(K), C_b = K - g(K)/h(K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.interpolate import CubicSpline

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import QUADRATURE, Function, derivative, expect, moments, scale_invariant
from gnomon.theory.criticality import check_growth

POOLE_2016 = Source("poole2016", "section 2")
SCHOENHOLZ_2017 = Source("schoenholz2017", "section 3")

SPAN = (1e-6, 1e6)
"""Kernels that the phase diagram follows; what leaves them is held at their ends."""
NODES = 145
"""Kernels at which g and h are computed; between them logarithms are interpolated by cubic splines."""
LAYERS = 1024
"""Layers after which the kernel is taken for the one that stays; its drift over the second half is part of the error."""
ASSUMES = ("fully connected layers of many units", "independent weights of mean 0 and variance C_W / fan_in, biases of variance C_b")


def susceptibilities(activation: Function, *, kernel: float, weight_variance: float) -> Reading:
    """By what factor a layer multiplies a small change of the kernel along itself, and one across: chi_parallel and chi_perp.

    chi_parallel = C_W d<s^2>_K/dK = C_W <z s s'>_K / K,   chi_perp = C_W <s'^2>_K.

    Shapes: value (2,).   Units: none.   Error: bound, that of the quadrature.   Assumes: many units.   Cost: a few quadratures.
    Raises: InvalidInput for a kernel that is not positive; OutOfScope where the activation grows faster than a polynomial.
    Source: Roberts, Yaida & Hanin 2022, section 5.1, eq. (5.53) (arXiv v2) (the second form of chi_parallel); Poole et al. 2016, section 2.
    """
    if not (kernel > 0 and math.isfinite(kernel)):
        raise InvalidInput(f"The kernel must be a positive number, not {kernel:g}; at K* = 0 susceptibilities are limits, which `critical_point` takes.")
    check_growth(activation)
    found = moments(activation, np.array([kernel]))
    value = weight_variance * np.array([float(found.growth[0]), float(found.slope[0])])
    axes = (Axis("susceptibility", ("chi_parallel", "chi_perp")),)
    return Reading.predicted(
        "susceptibilities", value, unit="", error=10 * QUADRATURE * np.abs(value), error_kind="bound", axes=axes, source=Source("roberts2022", "section 5.1"), assumes=ASSUMES
    )


def normalised_slope(activation: Function, *, where: Literal["before", "after"], weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """chi_perp of a chain with layer normalisation in every layer, before or after the activation: the kernel is 1 where it is normalised, so that no depth changes it.

    before, z' = W s(LN z) + b:   chi = C_W <s'^2>_1 / (C_b + C_W <s^2>_1), for C_b = 0 whatever C_W (1 for ReLU);   after, z' = W LN(s(z)) + b:   chi = C_W <s'^2>_K / (<s^2>_K - <s>_K^2), K = C_W + C_b.

    Shapes: value ().   Units: none.   Error: bound, that of the quadrature.   Assumes: many units; gains 1 and shifts 0, as at initialisation.   Cost: a few quadratures.
    Raises: InvalidInput for variances that are none or another place; OutOfScope where the activation is flat, or grows faster than a polynomial.
    Source: derived here (the normalisation's Jacobian is 1/standard deviation, up to two directions of all); Schoenholz et al. 2017, section 3 (chi_1).
    """
    if where not in ("before", "after") or not (weight_variance > 0 and bias_variance >= 0 and math.isfinite(weight_variance + bias_variance)):
        raise InvalidInput(f"`where` is 'before' or 'after' the activation, C_W positive and C_b not negative, not {where!r}, {weight_variance:g} and {bias_variance:g}.")
    check_growth(activation)
    kernel = np.array([1.0 if where == "before" else weight_variance + bias_variance])
    found = moments(activation, kernel)
    mean = float(expect(activation, kernel)[0]) if where == "after" else 0.0
    spread = bias_variance + weight_variance * float(found.square[0]) if where == "before" else float(found.square[0]) - mean**2
    if spread <= 0:
        raise OutOfScope("the activation is flat: nothing is left to normalise")
    value = weight_variance * float(found.slope[0]) / spread
    return Reading.predicted("chi_perp", value, unit="", error=100 * QUADRATURE * value, error_kind="bound", source=SCHOENHOLZ_2017, assumes=(*ASSUMES, "gains 1, shifts 0"))


def critical_line(activation: Function, *, low: float = 1e-3, high: float = 1e2, points: int = 61) -> Reading:
    """The weight variance C_W at which a network is critical, over the bias variance C_b: the border between order and chaos.

    C_W = 1/h(K), C_b = K - g(K)/h(K) for kernels K from `low` to `high`, those kept where C_b >= 0 and the kernel is stable: chi_parallel <= chi_perp = 1.

    Shapes: value (points kept,), over C_b, which rises; `details["kernel"]` the kernel at each.   Units: none.   Error: bound, that of the quadrature.
    Assumes: as `phase_diagram`.   Cost: three quadratures a point.
    Raises: OutOfScope where no kernel on the line is stable (Softplus), where C_b does not rise along it, or the activation grows faster than a polynomial.
    InvalidInput for fewer than two points.   Source: Poole et al. 2016, section 2; Schoenholz et al. 2017, section 3.
    """
    if points < 2 or not 0 < low < high:
        raise InvalidInput(f"The line needs at least two points and kernels 0 < low < high, not points={points}, low={low:g}, high={high:g}.")
    check_growth(activation)
    kernel = np.geomspace(low, high, points)
    slopes = scale_invariant(activation)
    if slopes is not None:
        c_w = np.full(points, 2 / (slopes[0] ** 2 + slopes[1] ** 2))
        return _line(np.linspace(0.0, high, points), c_w, np.full(points, np.inf), 0.0)
    slope = derivative(activation)
    square, across = expect(lambda z: activation(z) ** 2, kernel), expect(lambda z: slope(z) ** 2, kernel)
    along = expect(lambda z: z * activation(z) * slope(z), kernel) / kernel
    bias = kernel - square / across
    kept = (bias >= 0) & (along <= across)
    if not kept.any():
        raise OutOfScope(f"there is no critical line: wherever chi_perp = 1 for kernels from {low:g} to {high:g}, C_b would be negative or the kernel is not stable")
    if (np.diff(bias[kept]) <= 0).any():
        raise OutOfScope("the critical line turns back in C_b; choose a narrower range of kernels, `low` to `high`")
    return _line(bias[kept], 1 / across[kept], kernel[kept], 10 * QUADRATURE / across[kept])


def _line(bias: Array, weight: Array, kernel: Array, error: Array | float) -> Reading:
    return Reading.predicted(
        "critical_weight_variance", weight, unit="", error=error, error_kind="bound", axes=(Axis("bias variance C_b", tuple(map(float, bias))),), source=SCHOENHOLZ_2017,
        assumes=ASSUMES, details={"kernel": kernel},
    )  # fmt: skip


def phase_diagram(activation: Function, *, weight_variances: Sequence[float] | Array, bias_variances: Sequence[float] | Array, kernel: float = 1.0) -> Reading:
    """chi_perp at the kernel that stays, over weight and bias variances: below 1 ordered, above 1 chaotic, at 1 critical.

    K <- C_b + C_W g(K) from `kernel` for LAYERS layers, then chi_perp = C_W h(K).

    Shapes: value (bias variances, weight variances); `details` has the `kernel` and the `phase` (ordered, chaotic, or critical: 1 within the error) of each.   Units: none.
    Error: bound: what half as many layers and a table of half as many kernels would change.   A kernel that leaves 1e-6 .. 1e6 is held at that end.
    Assumes: fully connected, many units.   Cost: two quadratures for each of NODES kernels.
    Raises: InvalidInput for negative or no variances; OutOfScope where the activation is flat or grows faster than a polynomial.
    Source: Poole et al. 2016, section 2 (order and chaos of tanh); Schoenholz et al. 2017, section 3 (chi_1).
    """
    weights, biases = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (weight_variances, bias_variances))
    if not (weights.size and biases.size and (weights >= 0).all() and (biases >= 0).all() and np.isfinite([*weights, *biases]).all() and kernel > 0):
        raise InvalidInput("Variances must be finite and not negative, at least one of each, and the kernel positive.")
    check_growth(activation)
    logs = np.linspace(math.log(SPAN[0]), math.log(SPAN[1]), NODES)
    slope = derivative(activation)
    table = np.stack([expect(lambda z: activation(z) ** 2, np.exp(logs)), expect(lambda z: slope(z) ** 2, np.exp(logs))])
    if table.min() <= 0:
        raise OutOfScope("the activation is flat at some kernel: <s^2> or <s'^2> is 0 there, so that no signal passes")
    fine, coarse = (CubicSpline(logs[::step], np.log(table[:, ::step]), axis=1) for step in (1, 2))
    kernels, chi = [], []
    for spline, layers in ((fine, LAYERS), (fine, LAYERS // 2), (coarse, LAYERS)):
        kernels.append(_settled(spline, weights[None], biases[:, None], kernel, layers))
        chi.append(weights * np.exp(spline(np.log(kernels[-1]))[1]))
    error = np.abs(chi[0] - chi[1]) + np.abs(chi[0] - chi[2]) + 1e-12
    phase = np.where(np.abs(chi[0] - 1) <= error, "critical", np.where(chi[0] < 1, "ordered", "chaotic"))
    return Reading.predicted(
        "chi_perp", chi[0], unit="", error=error, error_kind="bound", source=POOLE_2016, assumes=ASSUMES, details={"kernel": kernels[0], "phase": phase.tolist()},
        axes=(Axis("bias variance C_b", tuple(map(float, biases))), Axis("weight variance C_W", tuple(map(float, weights)))),
    )  # fmt: skip


def _settled(spline: CubicSpline, weights: Float64[Array, "1 weights"], biases: Float64[Array, "biases 1"], kernel: float, layers: int) -> Float64[Array, "biases weights"]:
    """The kernel after many layers.  Shapes: (1, weights), (biases, 1) -> (biases, weights)."""
    found = np.full((biases.shape[0], weights.shape[1]), kernel)
    for _ in range(layers):
        found = np.clip(biases + weights * np.exp(spline(np.log(found))[0]), *SPAN)
    return found
