"""Networks of finite width: the kernel of all pairs of inputs, its correction at order 1/n, the four-point vertex, and what they say of one layer's distribution.

Notation: z_ia is the pre-activation of unit i on input a; K_ab = E z_ia z_ib in the limit of many units, G1_ab/n its correction, and V_(ab)(cd)/n = Cov(z_ia z_ib, z_jc z_jd) for i /= j.
The recursions of several inputs stand in `gnomon.theory.first_order`, those of one in `effective.expansion`.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.quadrature import gaussian_expectation_2
from gnomon.theory import effective
from gnomon.theory.activations import Function, moments, scale_invariant, square_curvature
from gnomon.theory.criticality import check_growth
from gnomon.theory.tensors import checked_kernel, tensors

PRINCIPLES = Source("roberts2022", "sections 4.2, 4.3 and 4.5")
ASSUMES = ("fully connected, equal widths, Gaussian weights and biases",)


def _axes(depth: int, n: int, indices: int) -> tuple[Axis, ...]:
    return (Axis("layer", tuple(map(float, range(1, depth + 1)))), *(Axis(f"input {'abcd'[index]}", tuple(map(float, range(n)))) for index in range(indices)))


def kernel_matrix(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """The kernel of all pairs of any number of inputs, layer by layer, in the limit of many units.

    K'_ab = C_b + C_W <s_a s_b>_K.  Scale-invariant s = alpha z + beta |z|:  <s_a s_b> = alpha^2 K_ab + beta^2 (2/pi) sqrt(K_aa K_bb) (sqrt(1 - c^2) + c asin c), c the correlation.

    Shapes: `kernel` (inputs, inputs), that of the first layer -> value (depth, inputs, inputs).   Units: none.   Error: bound, that of the quadrature, carried through the layers.
    Assumes: fully connected, many units.   Cost: 10^6 evaluations of s a layer and pair, none where s is scale invariant.
    Raises: InvalidInput as `tensors`; OutOfScope where the activation grows faster than a polynomial.
    Source: Roberts, Yaida & Hanin 2022, eq. (4.41) (arXiv v2) (the second layer), section 4.3 (deeper ones); Poole et al. 2016, section 2 (correlations).
    """
    check_growth(activation)
    k = checked_kernel(kernel)
    slopes = scale_invariant(activation)
    rows, errors = [k], [np.zeros_like(k)]
    for _ in range(depth - 1):
        k, error = _linked(slopes, k) if slopes is not None else _integrated(activation, k)
        k = bias_variance + weight_variance * k
        growth = 1.0 if slopes is not None else max(1.0, float(np.abs(moments(activation, np.diag(rows[-1])).slope).max()) * weight_variance)
        rows.append(k)
        errors.append(weight_variance * error + growth * errors[-1] + 1e-15 * np.abs(k))
    return Reading.predicted(
        "nngp_kernel", np.stack(rows), unit="", error=np.stack(errors), error_kind="bound", axes=_axes(depth, len(k), 2), source=PRINCIPLES.at("section 4.3"), assumes=ASSUMES
    )


def _linked(slopes: tuple[float, float], k: Array) -> tuple[Array, Array]:
    size = np.sqrt(np.diag(k))
    c = np.clip(k / np.outer(size, size), -1, 1)
    np.fill_diagonal(c, 1.0)
    alpha, beta = (slopes[0] + slopes[1]) / 2, (slopes[0] - slopes[1]) / 2
    found = alpha**2 * k + beta**2 * 2 / math.pi * np.outer(size, size) * (np.sqrt(1 - c**2) + c * np.arcsin(c))
    return found, np.zeros_like(k)


def _integrated(activation: Function, k: Array) -> tuple[Array, Array]:
    found, error = np.zeros_like(k), np.zeros_like(k)
    for a in range(len(k)):
        for b in range(a, len(k)):
            pair = gaussian_expectation_2(activation, float(k[a, a]), float(k[a, b]), float(k[b, b]))
            found[a, b] = found[b, a] = pair.value
            error[a, b] = error[b, a] = pair.error
    return found, error


def four_point_vertices(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, width: int, weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """The covariance of z_ia z_ib and z_jc z_jd, two units of a layer on several inputs: V_(ab)(cd)/n to leading order.

    Shapes: value (depth, inputs, inputs, inputs, inputs); the rest as `tensors`.   Units: those of pre-activations to the fourth.
    Error: truncation, r/2 of the layer's largest element with r its largest V/(n K^2): what follows where layers multiply, (1 + r/l)^l - 1 = r + r^2/2; and the integration's.
    Assumes, Cost, Raises: as `tensors`.   Source: Roberts, Yaida & Hanin 2022, eqs. (4.43) (the second layer), (4.76) and (4.90) (deeper ones) (arXiv v2).
    """
    found = tensors(activation, kernel=kernel, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance, through="kernel")
    return found.reading("V", width=width).replace(name="four_point_vertices", source=PRINCIPLES)


def next_to_leading_kernel(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, width: int, weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """The covariance of the pre-activations of a unit on several inputs at width n: K + G1/n.

    Shapes: value (depth, inputs, inputs); the rest as `tensors`.   Units: those of pre-activations, squared.
    Error: truncation, the next order r^2 times the largest K of the layer, with r its largest V/(n K^2); and the integration's.
    Assumes, Cost, Raises: as `tensors`.   Source: Roberts, Yaida & Hanin 2022, eq. (4.115) (arXiv v2).
    """
    found = tensors(activation, kernel=kernel, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance, through="kernel")
    return found.reading("G1", width=width).replace(name="preactivation_covariance", source=PRINCIPLES.at("section 4.5"))


def exact_four_point_vertex(activation: Function, *, depth: int, width: int, first: int = 1) -> Reading:
    """V / (n K^2) of a scale-invariant activation, exactly and at any width: the relative covariance of the squares of two pre-activations of a layer.

    k' = k (C_W/n) sum_j s(g_j)^2 with independent normal g_j, so E k'^2/(E k')^2 grows by 1 + c/n a layer: (1 + c/n)^(l-1) - 1, c = <s^4>/<s^2>^2 - 1 at K = 1
    (2 for linear layers, 5 for ReLU).

    Shapes: value (depth - first + 1,).   Units: none.   Error: exact.   Assumes: no biases, independent normal weights of one variance, one input.   Cost: none.
    Raises: OutOfScope where the activation is not scale invariant, or 0.
    Source: derived here; Roberts, Yaida & Hanin 2022 (arXiv v2), eqs. (3.25) and (3.30) (linear).
    """
    slopes = scale_invariant(activation)
    if slopes is None or not any(slopes):
        raise OutOfScope(
            "the exact vertex is known for activations with s(a z) = a s(z) for a > 0 (linear, ReLU, LeakyReLU); `effective.four_point_vertex` gives the leading order"
        )
    c = 3 * (slopes[0] ** 4 + slopes[1] ** 4) / 2 / ((slopes[0] ** 2 + slopes[1] ** 2) / 2) ** 2 - 1
    layer = np.arange(first, depth + 1)
    axes = (Axis("layer", tuple(map(float, layer))),)
    return Reading.predicted("four_point_vertex", (1 + c / width) ** (layer - 1) - 1, unit="", axes=axes, source=PRINCIPLES.at("section 3.3"), assumes=(*ASSUMES, "no biases"))


def excess_kurtosis(vertex: Reading) -> Reading:
    """By how much one pre-activation departs from a Gaussian: E z^4 / (E z^2)^2 - 3 = 3 V/(n K^2), since given k it is one.

    Shapes: those of `vertex`, a reading of V/(n K^2) with K at width n.   Units: none.   Error: three times that of `vertex`.   Assumes: as `vertex`.   Cost: none.
    Source: Roberts, Yaida & Hanin 2022, eq. (4.43) (arXiv v2) (the second layer), section 4.2 (a layer's distribution given the one before); derived here.
    """
    return vertex.replace(name="excess_kurtosis", value=3 * vertex.value, error=3 * vertex.error, samples=None)


def square_correlation(vertex: Reading) -> Reading:
    """How much two units of a layer tell of each other: the correlation of their squares, r / (2 + 3 r) with r = V/(n K^2).  They are uncorrelated themselves.

    Cov(z_i^2, z_j^2) = r K^2 and Var(z_i^2) = 3 (1 + r) K^2 - K^2.

    Shapes: those of `vertex`.   Units: none.   Error: that of `vertex` times the slope 2/(2 + 3r)^2.   Assumes: as `vertex`.   Cost: none.
    Source: derived here; Roberts, Yaida & Hanin 2022, eq. (6.78) (arXiv v2) (to leading order).
    """
    r = vertex.value
    return vertex.replace(name="square_correlation", value=r / (2 + 3 * r), error=2 * vertex.error / (2 + 3 * r) ** 2, samples=None)


def layer_by_layer(activation: Function, *, depth: int, width: int, weight_variance: float, bias_variance: float = 0.0, kernel: float = 1.0) -> tuple[Reading, ...]:
    """What the theory says of every layer of a network on one input: K, V/(n K^2), chi_parallel and chi_perp.

    K and V by `effective.expansion`; chi_parallel = C_W d<s^2>_K/dK, chi_perp = C_W <s'^2>_K.  V/(n K^2) is exact where s is scale invariant and there are no biases.

    Shapes: four values (depth,); `kernel` is K of the first layer.   Units: none.
    Error: truncation: of K the next order |D|/n; of V/(n K^2) half its square; of a susceptibility its change over the error of K.
    Assumes: fully connected, equal widths, Gaussian weights and biases.   Cost: about ten quadratures a layer.
    Raises: InvalidInput for sizes below 1, a kernel or a weight variance that is not positive, a negative bias variance; OutOfScope as `check_growth`.
    Source: Roberts, Yaida & Hanin 2022, chapter 5, eqs. (5.4), (5.53) and (5.108) to (5.110) (arXiv v2).
    """
    if min(depth, width) < 1 or not (kernel > 0 and weight_variance > 0 and bias_variance >= 0) or not math.isfinite(kernel + weight_variance + bias_variance):
        raise InvalidInput(
            f"Depth and width must be at least 1, kernel and weight variance above 0, the bias variance not below, "
            f"not depth={depth}, width={width}, kernel={kernel:g}, C_W={weight_variance:g}, C_b={bias_variance:g}."
        )
    check_growth(activation)
    settings = {"depth": depth, "width": width, "weight_variance": weight_variance, "bias_variance": bias_variance, "kernel": kernel}
    mean = effective.mean_field_variance(activation, **settings)  # type: ignore[arg-type]
    exact = bias_variance == 0 and scale_invariant(activation) is not None
    vertex = exact_four_point_vertex(activation, depth=depth, width=width) if exact else effective.four_point_vertex(activation, **settings)  # type: ignore[arg-type]
    found = moments(activation, mean.value)
    curvature = np.array([0.0 if exact else square_curvature(activation, float(k)) for k in mean.value])
    readings = [mean, vertex]
    for name, value, response in (("chi_parallel", found.growth, curvature), ("chi_perp", found.slope, found.slope_growth)):
        error = weight_variance * (np.abs(response) * mean.error + 1e-9 * np.abs(value))
        readings.append(
            Reading.predicted(
                name, weight_variance * value, unit="", error=error, error_kind="truncation", axes=mean.axes, source=Source("roberts2022", "section 5.1"), assumes=ASSUMES
            )
        )
    return tuple(readings)
