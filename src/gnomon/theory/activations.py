"""Gaussian moments of an activation: what mean-field theory needs to know of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from scipy import optimize
from torch import Tensor
from torch.nn import functional as F

from gnomon.core.errors import unknown
from gnomon.core.reading import Array
from gnomon.numerics.quadrature import gaussian_expectation

Function = Callable[[Any], Any]

NODES = 33
"""Variances at which moments are computed by quadrature; more are interpolated."""
QUADRATURE = 1e-11
"""Tolerance of a quadrature, relative."""
SMALLEST = 1e-30
"""A variance below this is taken for it."""


NAMED: dict[str, Function] = {
    "celu": F.celu, "elu": F.elu, "erf": torch.erf, "gelu": F.gelu, "gelu-tanh": lambda z: F.gelu(z, approximate="tanh"), "hardswish": F.hardswish, "hardtanh": F.hardtanh,
    "leaky-relu": F.leaky_relu, "linear": lambda z: z, "logsigmoid": F.logsigmoid, "mish": F.mish, "relu": torch.relu, "relu6": F.relu6, "selu": F.selu, "sigmoid": torch.sigmoid,
    "silu": F.silu, "sin": torch.sin, "softplus": F.softplus, "softsign": F.softsign, "swish": F.silu, "tanh": torch.tanh, "atan": torch.atan,
}  # fmt: skip
"""Activations by name, as PyTorch defines them with its defaults."""


def named(name: str) -> Function:
    """The activation of a name, `_` and capitals aside.  Raises: InvalidInput for an unknown one, with the nearest."""
    plain = name.lower().replace("_", "-")
    if plain not in NAMED:
        raise unknown("activation", name, NAMED)
    return NAMED[plain]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of an activation s under z ~ N(0, K), each shaped like K.

    `square` <s^2>, `fourth` <s^4>, `slope` <s'^2>, `slope_fourth` <s'^4>, `growth` d<s^2>/dK = <z s s'>/K, `slope_growth` d<s'^2>/dK.
    """

    square: Float64[Array, "*K"]
    fourth: Float64[Array, "*K"]
    slope: Float64[Array, "*K"]
    slope_fourth: Float64[Array, "*K"]
    growth: Float64[Array, "*K"]
    slope_growth: Float64[Array, "*K"]


def compose(functions: Sequence[Function]) -> Function:
    """The activation that applies several elementwise functions in turn; none is the identity."""

    def composed(value: Tensor) -> Tensor:
        for function in functions:
            value = function(value)
        return value

    return composed


def derivative(function: Function) -> Function:
    """The derivative of an elementwise function, as autograd takes it; at a kink its choice."""

    def differentiated(value: Tensor) -> Tensor:
        with torch.enable_grad():
            at = value.detach().requires_grad_()
            out = function(at)
            return torch.autograd.grad(out.sum(), at)[0] if out.requires_grad else torch.zeros_like(at)

    return differentiated


def scale_invariant(function: Function) -> tuple[float, float] | None:
    """The slopes (right, left of 0) of an activation with s(a z) = a s(z) for a > 0, or None where it is not of this kind."""
    at = torch.tensor([-3.0, -1.0, -0.25, 0.25, 1.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        value = function(at.clone())
        same = all(torch.allclose(function(a * at), a * value, rtol=1e-12, atol=0.0) for a in (1e-3, 0.5, 7.0, 1e3))
    return (float(value[4]), -float(value[1])) if same else None


def moments(function: Function, variance: Float64[Array, "*K"]) -> Moments:
    """Gaussian moments of an activation and of its derivative, by closed forms where it is scale invariant, else by quadrature.

    A scale-invariant s has slopes a+ and a-:  <s^2> = (a+^2 + a-^2) K / 2,  <s^4> = 3 (a+^4 + a-^4) K^2 / 2,  <s'^2> = (a+^2 + a-^2) / 2.
    At K = 0 the derivative is that at 0 as autograd takes it (0 for ReLU).  Otherwise d<s^2>/dK = <z s s'>/K (write z = sqrt(K) u and differentiate) and d<s'^2>/dK = (<s'^2 z^2>/K - <s'^2>)/(2K), differentiating the density.

    Shapes: variance any, not negative; the moments have its shape.   Error: that of the quadrature, about 1e-11, and of interpolation over K: over five decades 1e-7 for smooth activations,
    1e-4 for those with kinks.
    Cost: one quadrature a moment and distinct variance, at most NODES.
    """
    shape, flat = np.shape(variance), np.asarray(variance, dtype=np.float64).reshape(-1)
    slopes = scale_invariant(function)
    if slopes is not None:
        two, four = (slopes[0] ** 2 + slopes[1] ** 2) / 2, (slopes[0] ** 4 + slopes[1] ** 4) / 2
        full = np.ones_like(flat)
        parts = [two * flat, 3 * four * flat**2, two * full, four * full, two * full, 0 * full]
    else:
        distinct, where = np.unique(flat, return_inverse=True)
        parts = [part[where] for part in _at_many(function, distinct)]
    dead = flat == 0
    if dead.any():  # nothing but 0 arrives: the derivative at a kink is the one that autograd takes
        origin = torch.zeros(1, dtype=torch.float64)
        with torch.no_grad():
            value = float(function(origin.clone())) ** 2
        slope = float(derivative(function)(origin)) ** 2
        for number, fixed in enumerate((value, value**2, slope, slope**2, 0.0, 0.0)):
            parts[number] = np.where(dead, fixed, parts[number])
    return Moments(*(part.reshape(shape) for part in parts))


def expect(function: Function, variances: Float64[Array, "n"]) -> Float64[Array, "n"]:
    """<f>_K at each of many variances K.   Shapes: (n,) -> (n,).   Error: QUADRATURE, relative.   Cost: one quadrature a variance."""
    return np.array([gaussian_expectation(function, float(k), tolerance=QUADRATURE).value for k in variances])


def _at_many(function: Function, variances: Float64[Array, "n"]) -> list[Float64[Array, "n"]]:
    """The moments at many variances: where they are more than NODES, from their values at as many, by the polynomial in log K through them.

    Logarithms of positive moments, and logarithmic derivatives in place of derivatives, are smooth in log K over decades.
    """
    positive = variances[variances > 0]
    if len(positive) <= NODES:
        return _quadrature(function, np.maximum(variances, SMALLEST))
    low, high = math.log(max(float(positive.min()), SMALLEST)), math.log(float(positive.max()))
    nodes = np.polynomial.chebyshev.chebpts1(NODES)
    at = (2 * np.log(np.maximum(variances, math.exp(low))) - low - high) / (high - low)
    k = np.exp((low + high + nodes * (high - low)) / 2)
    exact = _quadrature(function, k)
    if min(part.min() for part in exact[:4]) <= 0:  # a function that is flat near 0
        return _quadrature(function, np.maximum(variances, SMALLEST))
    smooth = [*(np.log(part) for part in exact[:4]), k * exact[4] / exact[0], k * exact[5] / exact[2]]
    *logs, growth, slope_growth = (np.polynomial.chebyshev.chebval(at, np.polynomial.chebyshev.chebfit(nodes, part, NODES - 1)) for part in smooth)
    square, fourth, slope, slope_fourth = (np.exp(part) for part in logs)
    safe = np.maximum(variances, SMALLEST)
    return [square, fourth, slope, slope_fourth, growth * square / safe, slope_growth * slope / safe]


def _quadrature(function: Function, variance: Float64[Array, "n"]) -> list[Float64[Array, "n"]]:
    slope = derivative(function)
    slope_square = expect(lambda z: slope(z) ** 2, variance)
    return [
        expect(lambda z: function(z) ** 2, variance), expect(lambda z: function(z) ** 4, variance), slope_square, expect(lambda z: slope(z) ** 4, variance),
        expect(lambda z: z * function(z) * slope(z), variance) / variance, (expect(lambda z: slope(z) ** 2 * z**2, variance) / variance - slope_square) / (2 * variance),
    ]  # fmt: skip


def square_curvature(function: Function, variance: float) -> float:
    """The second derivative of <s^2>_K with respect to K.

    d^2 <f>_K / dK^2 = <f (z^4 - 6 K z^2 + 3 K^2)>_K / (4 K^4), since the Gaussian density p obeys dp/dK = p''/2.

    Units: those of s^2 over K^2.   Error: that of the quadrature.   Assumes: K > 0.   Cost: one quadrature.   Source: derived here.
    """
    k = variance

    def weighted(z: Tensor) -> Tensor:
        return function(z) ** 2 * (z**4 - 6 * k * z**2 + 3 * k**2) / (4 * k**4)

    return float(gaussian_expectation(weighted, k, tolerance=QUADRATURE).value)


def critical_weight_variance(function: Function, *, bias_variance: float = 0.0, near: float = 1.0) -> tuple[float, float] | None:
    """The critical C_W = fan_in x weight variance of an activation, with the variance K* that it keeps, or None where there is none.

    Critical is what neither shrinks nor grows small differences of inputs: C_W <s'^2>_K = 1 at a fixed point K = C_b + C_W <s^2>_K, so
    K - C_b - <s^2>_K / <s'^2>_K = 0 and C_W = 1 / <s'^2>_K; of several solutions the one whose K* is nearest to `near` on a log scale.  Where the only
    one is K* = 0 (tanh without bias), C_W = 1/s'(0)^2.  A scale-invariant activation has <s^2> = A_2 K and C_W = 1/A_2 for every K (with C_b = 0), e.g. 2 for ReLU.

    Units: none.   Error: root finding to 1e-10 of log K.   Cost: about 60 quadratures.
    Source: Schoenholz et al. 2017, section 3 (the line chi_1 = 1); Roberts, Yaida & Hanin 2022, chapter 5.
    """
    slopes = scale_invariant(function)
    if slopes is not None:
        half = (slopes[0] ** 2 + slopes[1] ** 2) / 2
        return (1 / half, near) if half > 0 else None
    slope = derivative(function)

    def excess(log_k: Array | float) -> Array:
        k = np.exp(np.atleast_1d(np.asarray(log_k, dtype=np.float64)))
        ratio = expect(lambda z: function(z) ** 2, k) / expect(lambda z: slope(z) ** 2, k)
        return 1 - bias_variance / k - ratio / k

    grid = np.linspace(math.log(1e-3), math.log(1e3), 25)
    values = excess(grid)
    roots = [optimize.brentq(lambda x: float(excess(x)[0]), a, b, xtol=1e-10) for a, b, f, g in zip(grid, grid[1:], values, values[1:], strict=False) if f * g < 0]
    if roots:
        at = math.exp(min(roots, key=lambda x: abs(x - math.log(near))))
        return 1 / float(expect(lambda z: slope(z) ** 2, np.array([at]))[0]), at
    origin = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        through_zero = bias_variance == 0 and float(function(origin.clone())) == 0
    start = float(slope(origin)) ** 2
    return (1 / start, 0.0) if through_zero and start > 0 else None
