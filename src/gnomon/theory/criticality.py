"""Criticality: where signals and gradients neither grow nor die, for any activation, and what then happens with depth.

Notation: g(K) = <s^2>_K over z ~ N(0, K), h(K) = <s'^2>_K;  K' = C_b + C_W g(K);  chi_par = C_W g'(K), chi_perp = C_W h(K).  Since g' = <z s s'>/K, the two meet where

    F(K) = <s' (z s / K - s')>_K = g' - h = <s s''>_K = 0,

whatever C_W.  A root K* > 0 is critical with C_W = 1/h(K*), C_b = K* - C_W g(K*) if that is not negative.  K* = 0 is where s(0) = 0, with C_b = 0 and C_W = 1/A,
A = (s'(0+)^2 + s'(0-)^2)/2.  Near it C_W g(K)/K = 1 + a K^q + ... (q = 1 where s is smooth at 0, 1/2 where s'' jumps) and chi_perp = 1 + b K^q + ..., so for a < 0
K falls as (-a q l)^(-1/q), chi_par - 1 = -(1 + q)/(q l) and chi_perp - 1 = -(b/a)/(q l).  Then V' = chi_par^2 V + kappa K^2 with kappa = C_W^2 (<s^4> - <s^2>^2)/K^2
is solved by V = v l^(1 - 2/q), v (1 - 2/q + 2 (1 + q)/q) = 3 v = kappa (-a q)^(-2/q): V/(n K^2) = (kappa/3) l/n whatever q, and kappa = 2 where s has one slope at 0.
Where s is linear on both sides of 0 (Hardtanh) the departure is smaller than any power, 1 + a exp(-const/K): the limit of q to infinity, K falling as 1/log l.
At a root K* > 0 the deviation d = K - K* obeys d' = d + c d^2, c = C_W g''(K*)/2: one side is attracted as 1/(|c| l), the other runs away.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.numerics.quadrature import Expectation, gaussian_expectation
from gnomon.theory.activations import Function, derivative, moments, scale_invariant, square_curvature

Kind = Literal["scale-invariant", "zero", "half-stable"]

KERNELS = (1e-4, 1e4)
"""A fixed point is searched between these variances, and at 0."""
LADDER = (1e-4, 2.5e-5, 6.25e-6)
"""Variances from which the behaviour near 0 is extrapolated."""
FLAT = 1e-11
"""A relative departure of the recursion from the identity that is rounding."""


@dataclasses.dataclass(frozen=True)
class Exponents:
    """How things go with depth l at criticality: K ~ l^-kernel, a change of K along itself ~ l^-parallel, one across ~ l^-perpendicular, V/(nK^2) ~ `vertex_slope` l/n.

    For a half-stable point they hold at K* itself.  Error: that of an extrapolation, about 1e-5 where s'' jumps at 0 and 1e-7 where s is smooth.  `rate`: K = (rate l)^-kernel where K* = 0, and |K - K*| = 1/(rate l) on the side that is attracted where it is half stable.
    """

    kernel: float
    parallel: float
    perpendicular: float
    vertex_slope: float
    rate: float


@dataclasses.dataclass(frozen=True)
class CriticalPoint:
    """C_W, C_b and the kernel K* at which chi_parallel = chi_perp = 1; `error` bounds what root finding and quadrature leave of K*, relative (absolute where K* = 0).

    `kind` is the universality class.  Where it is scale-invariant every kernel is fixed and `kernel` is 1.  `attracts` says which kernels are drawn to K* (`above`, `below`,
    or '' where every one is fixed already); for a half-stable point the others run away from it, slowly (as 1/(rate l) near it), to the next kernel that stays, `neighbour`
    (None where there is none up to KERNELS).
    """

    kind: Kind
    kernel: float
    weight_variance: float
    bias_variance: float
    error: float
    attracts: Literal["", "above", "below"]
    exponents: Exponents
    neighbour: float | None = None


def critical_point(activation: Function, *, near: float = 1.0) -> CriticalPoint:
    """The initialisation at which signals and gradients neither grow nor shrink, for any activation.

    C_W h(K*) = C_W g'(K*) = 1 and K* = C_b + C_W g(K*)  (this module's docstring); of several K* > 0 the one nearest to `near` on a log scale.  A K* = 0 that attracts
    comes before them, one that repels is none.

    Shapes: `activation` maps a float64 tensor to one of equal shape, element by element.   Units: K and C_b those of pre-activations, squared.
    Error: `error` of the result.   Assumes: fully connected layers, independent weights of variance C_W / fan_in, many units.   Cost: about 100 quadratures.
    Raises: OutOfScope where there is none, with the reason; where the activation grows faster than a polynomial; where g''(K*) vanishes and the class is none of these.
    InvalidInput where the activation does not act on each number by itself or is not finite.
    Source: Roberts, Yaida & Hanin 2022, sections 5.1 to 5.3 (classes), eq. (5.73) (arXiv v2) (where the two meet); conditions and exponents derived above.
    """
    check_growth(activation)
    slopes = scale_invariant(activation)
    if slopes is not None:
        two, four = (slopes[0] ** 2 + slopes[1] ** 2) / 2, (slopes[0] ** 4 + slopes[1] ** 4) / 2
        if two == 0:
            raise OutOfScope("there is no critical point: the activation is 0 everywhere, so that no weight lets a signal through")
        return CriticalPoint("scale-invariant", 1.0, 1 / two, 0.0, 0.0, "", Exponents(0.0, 0.0, 0.0, 3 * four / two**2 - 1, 0.0))
    at_zero = _at_zero(activation)
    if at_zero is not None and at_zero.attracts:
        return at_zero
    grid = np.linspace(math.log(KERNELS[0]), math.log(KERNELS[1]), 41)
    gaps = [_gap(activation, math.exp(x)) for x in grid]
    values = np.array([gap.value if abs(gap.value) > 10 * gap.error else 0.0 for gap in gaps])
    if not values.any():
        raise OutOfScope("there is no critical point: <s'^2> is 0 at every kernel, or the activation's slope is lost in rounding")
    found = [_root(activation, a, b) for a, b, f, g in zip(grid, grid[1:], values, values[1:], strict=False) if f * g < 0]
    allowed = [(k, error) for k, error in found if _bias(activation, k) >= -1e-12 * k]
    if not allowed:
        raise OutOfScope(f"there is no critical point: {_reason(activation, values, [k for k, _ in found], at_zero)}")
    return _half_stable(activation, *min(allowed, key=lambda pair: abs(math.log(pair[0] / near))))


def check_growth(activation: Function) -> None:
    """See that an activation grows no faster than a polynomial, by what doubling its argument multiplies it with.

    Shapes: as `critical_point`.   Assumes: what it does up to |z| = 512 is what it does beyond.   Cost: none to speak of.
    Raises: OutOfScope where it does: expansions in 1/width and quadratures have no meaning; InvalidInput where it is not elementwise.
    """
    if not callable(activation):
        raise InvalidInput(f"The activation must be a function of a tensor, not {activation!r}; `gnomon.theory.activations.named` gives one by its name.")
    at = 2.0 ** torch.arange(3, 10, dtype=torch.float64)
    for side in (at, -at):
        try:
            with torch.no_grad():
                value = activation(side.clone())
        except (RuntimeError, TypeError) as error:
            raise InvalidInput(
                f"The activation cannot be applied to float64 numbers ({(str(error).splitlines() or ['no message'])[0]}); a module takes them after `.double()`."
            ) from error
        if not isinstance(value, Tensor) or value.shape != side.shape:
            raise InvalidInput("The activation must turn a tensor into one of equal shape, element by element.")
        with torch.no_grad():
            alone = activation(side[:2].clone())
        if not torch.allclose(alone.double(), value[:2].double(), equal_nan=True):
            raise InvalidInput("The activation must act on each number by itself: of two numbers it makes something else than of the same two among others.")
        size = value.detach().double().abs()
        powers = torch.log2((size[1:] + 1) / (size[:-1] + 1))
        if bool(torch.isnan(size).any()) or (math.isfinite(float(size[0])) and not math.isfinite(float(size[-1]))) or float(powers[-1]) > max(2 * float(powers[0]), 12.0):
            raise OutOfScope("the activation grows faster than a polynomial (or is not a number) away from 0: its moments, and so the theory, do not exist at every kernel")


def _gap(activation: Function, kernel: float) -> Expectation:
    """F(K) = <s' (z s / K - s')>_K = <s s''>_K: how far chi_parallel / C_W lies above chi_perp / C_W."""
    slope = derivative(activation)

    def integrand(z: Tensor) -> Tensor:
        at = slope(z)
        return at * (z * activation(z) / kernel - at)

    return gaussian_expectation(integrand, kernel)


def _mean_square(function: Function, kernel: float) -> float:
    return gaussian_expectation(lambda z: function(z) ** 2, kernel).value


def _bias(activation: Function, kernel: float) -> float:
    """C_b = K - g(K)/h(K)."""
    return kernel - _mean_square(activation, kernel) / _mean_square(derivative(activation), kernel)


def _root(activation: Function, low: float, high: float) -> tuple[float, float]:
    """The root of F between two logarithms of kernels, and its relative error: that of F over its slope in log K."""
    x = float(optimize.brentq(lambda x: _gap(activation, math.exp(x)).value, low, high, xtol=1e-13, rtol=1e-14))
    step = 1e-4
    slope = (_gap(activation, math.exp(x + step)).value - _gap(activation, math.exp(x - step)).value) / (2 * step)
    return math.exp(x), 1e-13 + (_gap(activation, math.exp(x)).error / abs(slope) if slope else math.inf)


def _half_stable(activation: Function, kernel: float, error: float) -> CriticalPoint:
    found = moments(activation, np.array([kernel]))
    c_w = 1 / float(found.slope[0])
    curvature = c_w * square_curvature(activation, kernel) / 2
    if abs(curvature) * kernel < 1e-6:
        raise OutOfScope(f"K* = {kernel:.8g} is critical (C_W = {c_w:.8g}), but the recursion's curvature vanishes there: its class is none of the three that are known")
    spread = c_w**2 * float(found.fourth[0] - found.square[0] ** 2) / kernel**2
    exponents = Exponents(0.0, 0.0, 0.0, spread, abs(curvature))
    c_b = max(kernel - c_w * float(found.square[0]), 0.0)
    next_one = _neighbour(activation, kernel, c_w, c_b, KERNELS[1] if curvature > 0 else KERNELS[0])
    return CriticalPoint("half-stable", kernel, c_w, c_b, error, "below" if curvature > 0 else "above", exponents, next_one)


def _neighbour(activation: Function, kernel: float, c_w: float, c_b: float, end: float) -> float | None:
    """The first kernel from K* towards `end` at which the recursion turns back: where what runs away from K* settles."""

    def excess(log_k: float) -> float:
        return (c_b + c_w * _mean_square(activation, math.exp(log_k))) / math.exp(log_k) - 1

    away = math.copysign(1.0, end - kernel)
    # close to K* the excess is below rounding; it grows as the square of the distance
    grid = math.log(kernel) + away * np.geomspace(0.01, abs(math.log(end / kernel)), 40)
    values = [away * excess(float(x)) for x in grid]
    turned = next((place for place, value in enumerate(values) if value < -FLAT), None)
    if not turned or values[turned - 1] < FLAT:
        return None
    low, high = sorted((float(grid[turned - 1]), float(grid[turned])))
    return math.exp(float(optimize.brentq(excess, low, high, xtol=1e-10)))


def _at_zero(activation: Function) -> CriticalPoint | None:
    """The critical point K* = 0, or None where there is none; `attracts` is '' where it repels (or its behaviour cannot be told)."""
    origin = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        if abs(float(activation(origin.clone()))) > 1e-14:
            return None
    slope = derivative(activation)
    right, left = slope(torch.tensor([1e-30, -1e-30], dtype=torch.float64)).detach()
    half, four = float(right**2 + left**2) / 2, float(right**4 + left**4) / 2
    if half < 1e-12:
        return None

    def excess(z: Tensor) -> Tensor:
        linear = torch.where(z > 0, right, left) * z
        at = activation(z)
        return (at - linear) * (at + linear)

    along = np.array([gaussian_expectation(excess, k).value / (half * k) for k in LADDER])
    across = np.array([gaussian_expectation(lambda z: slope(z) ** 2 - torch.where(z > 0, right, left) ** 2, k).value / half for k in LADDER])
    kappa = 3 * four / half**2 - 1
    if np.abs(along).max() < FLAT:
        larger = (gaussian_expectation(excess, k).value / (half * k) for k in np.geomspace(LADDER[0], KERNELS[1], 27))
        departs = next((value for value in larger if abs(value) > FLAT), 0.0)
        return CriticalPoint("zero", 0.0, 1 / half, 0.0, 0.0, "above" if departs < 0 else "", Exponents(0.0, 1.0, 0.0, kappa / 3, 0.0))
    if not (along < 0).all():
        return CriticalPoint("zero", 0.0, 1 / half, 0.0, 0.0, "", Exponents(0.0, 0.0, 0.0, 0.0, 0.0))
    power = math.log(along[1] / along[2]) / math.log(LADDER[1] / LADDER[2])
    q = round(2 * power) / 2
    if q < 0.5 or abs(power - q) > 0.05:
        raise OutOfScope(f"near K = 0 the recursion departs from the identity as K^{power:.3g}, which is no multiple of 1/2: no class of these is known to hold it")
    a, b = (_extrapolated(part / np.array(LADDER) ** q) for part in (along, across))
    return CriticalPoint("zero", 0.0, 1 / half, 0.0, 0.0, "above", Exponents(1 / q, (1 + q) / q, b / (a * q), kappa / 3, -a * q))


def _extrapolated(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """To K = 0 from values at LADDER, whose kernels fall by 4: terms in K^(1/2) and K removed (Richardson)."""
    first = 2 * values[1:] - values[:-1]
    return float((4 * first[1] - first[0]) / 3)


def _reason(activation: Function, values: np.ndarray[tuple[int], np.dtype[np.float64]], roots: list[float], at_zero: CriticalPoint | None) -> str:
    low, high = KERNELS
    if roots:
        told = "; ".join(f"at K = {k:.6g}, where chi_parallel = chi_perp, it would need C_b = {_bias(activation, k):.4g}, a negative variance" for k in roots)
        return told
    side = "above" if values[values != 0][0] > 0 else "below"
    met = f"chi_parallel is {side} chi_perp at every kernel from {low:g} to {high:g}"
    if at_zero is not None:
        return f"{met}, and K = 0, where they meet, repels: signals run away from it"
    origin = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        start = float(activation(origin.clone()))
    flat = float(derivative(activation)(origin)) ** 2
    if start and flat:
        return f"{met}, and as K -> 0 it would need C_b = -s(0)^2 / s'(0)^2 = {-(start**2) / flat:.4g}, a negative variance"
    return met + (", and at K = 0 its slope is 0" if not flat else "")
