"""Networks of finite width on several inputs: the kernel of all pairs, its correction at order 1/n, and the four-point vertex with all its indices.

Notation: z_ia is the pre-activation of unit i on input a; K_ab = E z_ia z_ib in the limit of many units, D_ab/n its correction, and
V_(ab)(cd)/n = Cov(z_ia z_ib, z_jc z_jd) for i /= j.  Given the random kernel k of one network, units are independent and Gaussian, and
k' = C_b + C_W mean_i s_ia s_ib, so with G_ab(K) = <s_a s_b>_K, expanding about K,

    K'_ab = C_b + C_W G_ab,     V'_(ab)(cd) = C_W^2 [<s_a s_b s_c s_d> - G_ab G_cd] + sum J_(ab)(ef) V_(ef)(gh) J_(cd)(gh),
    D'_ab = sum J_(ab)(ef) D_ef + (C_W/8) sum <s_a s_b He4_efgh> V_(ef)(gh),     J_(ab)(ef) = (C_W/2) <s_a s_b He2_ef>,

with the Hermite tensors of y = K^-1 z, He2 = y y - K^-1 and He4 likewise, since the Gaussian density p obeys dp/dK = p He2 / 2.  All moments of a layer are sums over the
same nodes, so that they are matrix products.  The first layer is Gaussian: D = V = 0.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.quadrature import gaussian_expectation_2
from gnomon.theory import effective
from gnomon.theory.activations import Function, moments, scale_invariant, square_curvature
from gnomon.theory.criticality import check_growth

PRINCIPLES = Source("roberts2022", "sections 4.2, 4.3 and 4.5")
ASSUMES = ("fully connected, equal widths, Gaussian weights and biases",)

MOST_INPUTS = 4
"""A vertex has four indices; more inputs than this would need more nodes than a grid has."""
LEVELS = {1: (14, 20), 2: (16, 24), 3: (41, 61), 4: (23, 29)}
"""By the number of inputs, the sizes of two rules: the second is used, its distance from the first is the error."""
REACH = {41: 7.0, 61: 7.75, 23: 5.8, 29: 6.5}
"""By the size of a rule, the standard deviations to either side that its grid reaches: they differ, so that what lies outside is part of the error."""
CONDITION = 1e-8
"""Correlation matrices whose smallest eigenvalue is below this cannot be inverted to any use."""
CONVERGED = 1e-3
"""A moment whose two rules differ by more than this, relative to the largest element, has not converged."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensors:
    """K, D and V of every layer, and the quadrature's error of each, layer by layer, as a bound on every element.

    Shapes: `kernel`, `correction` (depth, inputs, inputs); `vertex` (depth, inputs, inputs, inputs, inputs); `errors` (3, depth).
    """

    kernel: Float64[Array, "depth n n"]
    correction: Float64[Array, "depth n n"]
    vertex: Float64[Array, "depth n n n n"]
    errors: Float64[Array, "3 depth"]


def tensors(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, weight_variance: float, bias_variance: float = 0.0) -> Tensors:
    """The kernel, its correction and the four-point vertex of every layer on up to four inputs, by the recursions above.

    Shapes: `kernel` is K of the first layer, the covariance of one of its units on the inputs.   Units: those of pre-activations, squared (K, D) and to the fourth (V).
    Error: the distance of two rules carried through all layers.  One and two inputs: Gauss-Legendre in polar coordinates, cut where a unit changes sign, so that kinks at 0
    cost nothing; three and four: the trapezoid rule on a grid, whose error falls exponentially where s is analytic in a strip of more than a node's spacing about the real axis.
    Assumes: fully connected, equal widths n, Gaussian weights of variance C_W/n and biases of variance C_b.   Cost: a layer takes 3e2, 4e4, 2e5, 7e5 evaluations of s an input.
    Raises: InvalidInput for a kernel that is none, zero inputs, inputs that are multiples of each other; OutOfScope for more than four inputs, for a quadrature that does not
    converge (kinks with three inputs or more, very large kernels), where inputs have become one by some layer, and for activations that grow faster than a polynomial.
    Source: Roberts, Yaida & Hanin 2022, sections 4.2, 4.3 and 4.5; derived above.
    """
    check_growth(activation)
    kernel = checked_kernel(kernel)
    if len(kernel) > MOST_INPUTS:
        raise OutOfScope(f"{len(kernel)} inputs: the four-point vertex is computed for up to {MOST_INPUTS} at once; `kernel_matrix` takes any number")
    if depth < 1:
        raise InvalidInput(f"The depth must be at least 1, not {depth}.")
    coarse, fine = (_recursion(activation, kernel, depth, weight_variance, bias_variance, level) for level in LEVELS[len(kernel)])
    gaps = [[float(np.abs(a - b).max()) for a, b in zip(x, y, strict=True)] for x, y in zip(coarse, fine, strict=True)]
    for layer, gap in enumerate(gaps[2], 1):
        if gap > CONVERGED * float(np.abs(fine[2][layer - 1]).max()):
            raise OutOfScope(
                f"the moments of layer {layer} on {len(kernel)} inputs do not converge (two rules differ by {gap:.2g}): the activation has kinks, or bends within one node of a large kernel; take fewer inputs"
            )
    return Tensors(*fine, np.array(gaps) + 1e-13)


def checked_kernel(kernel: Float64[Array, "n n"]) -> Float64[Array, "n n"]:
    """The kernel of distinct inputs, made symmetric.  Raises: InvalidInput where it is no covariance, an input is 0, or one is a multiple of another."""
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel) or not np.isfinite(kernel).all() or not np.allclose(kernel, kernel.T):
        raise InvalidInput(f"The kernel must be a finite symmetric matrix (inputs, inputs), not of shape {kernel.shape}.")
    size = np.sqrt(np.maximum(np.diag(kernel), 0))
    if (size == 0).any():
        raise InvalidInput(f"Input {int(np.argmin(size))} has kernel 0 (it is zero and there is no bias): leave it out.")
    correlation = kernel / np.outer(size, size)
    if (np.abs(np.triu(correlation, 1)) > 1 - 1e-9).any():
        a, b = np.argwhere(np.abs(np.triu(correlation, 1)) > 1 - 1e-9)[0]
        raise InvalidInput(f"Inputs {a} and {b} are the same up to a factor: leave one out.")
    if np.linalg.eigvalsh(correlation)[0] < -1e-9:
        raise InvalidInput("The kernel is not a covariance matrix: it has a negative eigenvalue.")
    return (kernel + kernel.T) / 2


def _recursion(activation: Function, kernel: Array, depth: int, c_w: float, c_b: float, level: int) -> tuple[Array, Array, Array]:
    n = len(kernel)
    k, d, v = torch.from_numpy(kernel.copy()), torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, n, n, dtype=torch.float64)
    rows = [(k, d, v)]
    for layer in range(2, depth + 1):
        k, d, v = _step(activation, k, d, v, c_w, c_b, level, layer)
        rows.append((k, d, v))
    return tuple(torch.stack(part).numpy() for part in zip(*rows, strict=True))  # type: ignore[return-value]


def _step(activation: Function, k: Tensor, d: Tensor, v: Tensor, c_w: float, c_b: float, level: int, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of the recursions.   Shapes: k, d (n, n), v (n, n, n, n) -> the same."""
    n = len(k)
    size = k.diagonal().sqrt()
    if float(torch.linalg.eigvalsh(k / torch.outer(size, size))[0]) < CONDITION:
        raise OutOfScope(f"by layer {layer - 1} inputs have become multiples of each other (within {CONDITION:g}): the vertex of several inputs cannot be told from that of one")
    root = torch.linalg.cholesky(k)
    u, weights = _nodes(root, level)
    z, inverse = u @ root.T, torch.cholesky_inverse(root)
    with torch.no_grad():
        s = activation(z).double()
    y = z @ inverse
    pairs = (s[:, :, None] * s[:, None, :]).reshape(-1, n * n)
    weighted = pairs * weights[:, None]
    g = weighted.sum(0)
    second = (y[:, :, None] * y[:, None, :]).reshape(-1, n * n)
    jacobian = c_w / 2 * (weighted.T @ second - torch.outer(g, inverse.reshape(-1)))
    flat = v.reshape(n * n, n * n)
    vertex = c_w**2 * (weighted.T @ pairs - torch.outer(g, g)) + jacobian @ flat @ jacobian.T
    trace = 2 * torch.einsum("cdef,cd->ef", v, inverse) + 4 * torch.einsum("cdef,ce->df", v, inverse)
    constant = torch.einsum("cdef,cd,ef->", v, inverse, inverse) + 2 * torch.einsum("cdef,ce,df->", v, inverse, inverse)
    fourth = ((second @ flat) * second).sum(1) - second @ trace.reshape(-1) + constant
    correction = jacobian @ d.reshape(-1) + c_w / 8 * (weighted.T @ fourth)
    return c_b + c_w * g.reshape(n, n), correction.reshape(n, n), vertex.reshape(n, n, n, n)


@functools.cache
def _panels(level: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 12] in eight panels."""
    x, w = np.polynomial.legendre.leggauss(level)
    starts = np.arange(8)[:, None]
    return torch.from_numpy((1.5 * (starts + (x + 1) / 2)).reshape(-1)), torch.from_numpy(np.tile(0.75 * w, 8))


def _nodes(root: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Nodes of a standard normal and their weights.   Shapes: root (n, n), the Cholesky factor of K -> (nodes, n), (nodes,)."""
    n = len(root)
    if n == 1:
        x, w = _panels(level)
        w = w * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        return torch.cat([x, -x])[:, None], torch.cat([w, w])
    if n == 2:
        r, radial = _panels(level)
        radial = radial * r * torch.exp(-(r**2) / 2) / (2 * math.pi)
        signs = torch.atan2(root[:, 1], root[:, 0])
        cuts = torch.cat([signs + math.pi / 2, signs - math.pi / 2]).remainder(2 * math.pi).sort().values
        ends = torch.cat([cuts[1:], cuts[:1] + 2 * math.pi])
        low, high = torch.cat([cuts, (cuts + ends) / 2]), torch.cat([(cuts + ends) / 2, ends])
        x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(level))
        angle = ((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * x).reshape(-1)
        around = ((high - low)[:, None] / 2 * w).reshape(-1)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        return (r[:, None, None] * direction).reshape(-1, 2), torch.outer(radial, around).reshape(-1)
    reach = REACH[level]
    x = torch.linspace(-reach, reach, level, dtype=torch.float64)
    w = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (2 * reach / (level - 1))
    return torch.cartesian_prod(*[x] * n), torch.cartesian_prod(*[w] * n).prod(1)


def _axes(depth: int, n: int, indices: int) -> tuple[Axis, ...]:
    return (Axis("layer", tuple(map(float, range(1, depth + 1)))), *(Axis(f"input {'abcd'[index]}", tuple(map(float, range(n)))) for index in range(indices)))


def kernel_matrix(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """The kernel of all pairs of any number of inputs, layer by layer, in the limit of many units.

    K'_ab = C_b + C_W <s_a s_b>_K.  Scale-invariant s = alpha z + beta |z|:  <s_a s_b> = alpha^2 K_ab + beta^2 (2/pi) sqrt(K_aa K_bb) (sqrt(1 - c^2) + c asin c), c the correlation.

    Shapes: `kernel` (inputs, inputs), that of the first layer -> value (depth, inputs, inputs).   Units: none.   Error: bound, that of the quadrature, carried through the layers.
    Assumes: fully connected, many units.   Cost: 10^6 evaluations of s a layer and pair, none where s is scale invariant.
    Raises: InvalidInput as `tensors`; OutOfScope where the activation grows faster than a polynomial.
    Source: Roberts, Yaida & Hanin 2022, section 4.3; Poole et al. 2016, section 2 (correlations).
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


def _normalised(found: Tensors, width: int) -> Float64[Array, "depth"]:
    """The largest V/(n K^2) of a layer over its inputs."""
    n = found.kernel.shape[1]
    each = [found.vertex[:, a, a, a, a] / (width * found.kernel[:, a, a] ** 2) for a in range(n)]
    return np.asarray(np.max(each, axis=0))


def four_point_vertices(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, width: int, weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """The covariance of z_ia z_ib and z_jc z_jd, two units of a layer on up to four inputs: V_(ab)(cd)/n to leading order.

    Shapes: value (depth, inputs, inputs, inputs, inputs); the rest as `tensors`.   Units: those of pre-activations to the fourth.
    Error: truncation, r/2 of the layer's largest element with r its largest V/(n K^2): what follows where layers multiply, (1 + r/l)^l - 1 = r + r^2/2; and the quadrature's.
    Assumes, Cost, Raises: as `tensors`.   Source: Roberts, Yaida & Hanin 2022, sections 4.2 and 4.3.
    """
    found = tensors(activation, kernel=kernel, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance)
    value = found.vertex / width
    largest = np.abs(value).reshape(depth, -1).max(1)
    error = (largest * _normalised(found, width) / 2 + found.errors[2] / width).reshape(-1, 1, 1, 1, 1)
    return Reading.predicted("four_point_vertices", value, unit="", error=error, error_kind="truncation", axes=_axes(depth, value.shape[1], 4), source=PRINCIPLES, assumes=ASSUMES)


def next_to_leading_kernel(activation: Function, *, kernel: Float64[Array, "n n"], depth: int, width: int, weight_variance: float, bias_variance: float = 0.0) -> Reading:
    """The covariance of the pre-activations of a unit on up to four inputs at width n: K + D/n.

    Shapes: value (depth, inputs, inputs); the rest as `tensors`.   Units: those of pre-activations, squared.
    Error: truncation, the next order r^2 times the largest K of the layer, with r its largest V/(n K^2); and the quadrature's.
    Assumes, Cost, Raises: as `tensors`.   Source: Roberts, Yaida & Hanin 2022, section 4.5.
    """
    found = tensors(activation, kernel=kernel, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance)
    largest = np.abs(found.kernel).reshape(depth, -1).max(1)
    error = (largest * _normalised(found, width) ** 2 + found.errors[0] + found.errors[1] / width).reshape(-1, 1, 1)
    value = found.kernel + found.correction / width
    return Reading.predicted(
        "preactivation_covariance", value, unit="", error=error, error_kind="truncation", axes=_axes(depth, value.shape[1], 2), source=PRINCIPLES.at("section 4.5"), assumes=ASSUMES
    )


def exact_four_point_vertex(activation: Function, *, depth: int, width: int, first: int = 1) -> Reading:
    """V / (n K^2) of a scale-invariant activation, exactly and at any width: the relative covariance of the squares of two pre-activations of a layer.

    k' = k (C_W/n) sum_j s(g_j)^2 with independent normal g_j, so E k'^2/(E k')^2 grows by 1 + c/n a layer: (1 + c/n)^(l-1) - 1, c = <s^4>/<s^2>^2 - 1 at K = 1
    (2 for linear layers, 5 for ReLU).

    Shapes: value (depth - first + 1,).   Units: none.   Error: exact.   Assumes: no biases, independent normal weights of one variance, one input.   Cost: none.
    Raises: OutOfScope where the activation is not scale invariant, or 0.   Source: derived here; Roberts, Yaida & Hanin 2022, section 3.3 (linear).
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
    Source: Roberts, Yaida & Hanin 2022, section 4.2 (a layer's distribution given the one before); derived here.
    """
    return vertex.replace(name="excess_kurtosis", value=3 * vertex.value, error=3 * vertex.error, samples=None)


def square_correlation(vertex: Reading) -> Reading:
    """How much two units of a layer tell of each other: the correlation of their squares, r / (2 + 3 r) with r = V/(n K^2).  They are uncorrelated themselves.

    Cov(z_i^2, z_j^2) = r K^2 and Var(z_i^2) = 3 (1 + r) K^2 - K^2.

    Shapes: those of `vertex`.   Units: none.   Error: that of `vertex` times the slope 2/(2 + 3r)^2.   Assumes: as `vertex`.   Cost: none.   Source: derived here.
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
    Source: Roberts, Yaida & Hanin 2022, chapters 4 and 5.
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
