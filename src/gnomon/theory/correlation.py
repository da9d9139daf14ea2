"""How the correlation of two inputs travels through a deep network: the value that it settles at, and over how many layers.

At the kernel K that stays, c' = C(c) = (C_b + C_W <s(z) s(z')>) / K with (z, z') of variance K and correlation c;  c* = C(c*) is stable where the slope
C'(c*) = C_W <s'(z) s'(z')> is below 1, and c^l - c* ~ exp(-l / xi), xi = -1 / log C'(c*).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import Function, critical_weight_variance, derivative, expect
from gnomon.theory.criticality import check_growth

SCHOENHOLZ_2017 = Source("schoenholz2017", "section 3")
ASSUMES = ("fully connected layers of many units", "independent weights of mean 0 and variance C_W / fan_in, biases of variance C_b")
NODES = (64, 96)
"""Nodes of the quadrature in either direction, and of a second one whose distance from the first is the error."""
LAYERS = 10_000
"""Layers after which a kernel must have settled."""
CRITICAL = 1e-4
"""1 - slope below which a network is called critical: its depth scale is that of a power, not of an exponential."""
TRAINABLE = 6.0
"""Depth scales up to which networks train, as found by experiment."""


def correlation_map(activation: Function, correlation: float, *, kernel: float, weight_variance: float, bias_variance: float, nodes: int = NODES[1]) -> tuple[float, float]:
    """The correlation one layer on, and the slope of this map.

    Units: none.   Error: that of Gauss-Hermite quadrature in two dimensions, best for smooth activations.   Cost: nodes^2 evaluations.   Source: Poole et al. 2016, section 2.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    c = min(max(correlation, -1.0), 1.0)
    one = math.sqrt(kernel) * points[:, None]
    two = math.sqrt(kernel) * (c * points[:, None] + math.sqrt(1 - c * c) * points[None])
    slope = derivative(activation)

    def mean(function: Function) -> float:
        a, b = (np.asarray(function(torch.from_numpy(np.ascontiguousarray(z))).detach()) for z in (one, two))
        return float(weights @ (a * b) @ weights)

    return (bias_variance + weight_variance * mean(activation)) / kernel, weight_variance * mean(slope)


def settled_kernel(activation: Function, *, weight_variance: float, bias_variance: float, start: float = 1.0) -> float:
    """The kernel K = C_b + C_W <s^2>_K that stays, from `start` on.  Raises: OutOfScope where none does within LAYERS layers, or it falls to 0."""
    kernel = start
    for _ in range(LAYERS):
        after = bias_variance + weight_variance * float(expect(lambda z: activation(z) ** 2, np.array([kernel]))[0])
        if not 1e-9 < after < 1e9:
            raise OutOfScope(f"no kernel stays at C_W = {weight_variance:g}, C_b = {bias_variance:g}: it leaves 1e-9 .. 1e9")
        if abs(after - kernel) < 1e-13 * kernel:
            return after
        kernel = after
    raise OutOfScope(f"the kernel has not settled after {LAYERS} layers at C_W = {weight_variance:g}, C_b = {bias_variance:g}")


def correlation_depth(activation: Function, *, weight_variance: float, bias_variance: float) -> Reading:
    """Over how many layers the correlation of two inputs comes nearer to its fixed point by a factor e: xi.

    xi = -1 / log C'(c*);   c* = 1 in the ordered phase (chi_perp < 1), below 1 in the chaotic one.

    Shapes: value ().   Units: layers.   Error: bound, what fewer nodes of the quadrature change.
    `details`: `kernel` K, `correlation` c*, `slope` exp(-1 / xi), `phase`.   Assumes: fully connected, many units, an activation without kinks.   Cost: some hundreds of quadratures.
    Raises: OutOfScope at criticality, where the approach is a power of the depth, and where no kernel stays; InvalidInput for negative variances.
    Source: Schoenholz et al. 2017, section 3; Poole et al. 2016, section 2.
    """
    if not (weight_variance > 0 and bias_variance >= 0 and math.isfinite(weight_variance + bias_variance)):
        raise InvalidInput(f"C_W must be above 0 and C_b at least 0, both finite, not {weight_variance:g} and {bias_variance:g}.")
    check_growth(activation)
    kernel = settled_kernel(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    found = [_fixed_point(activation, kernel, weight_variance, bias_variance, nodes) for nodes in NODES]
    (_, coarse), (correlation, slope) = found
    if 1 - slope < CRITICAL:
        raise OutOfScope(f"the network is critical (the slope is {slope:.6g}): correlations approach 1 as a power of the depth, and no depth scale ends them")
    depth = -1 / math.log(slope)
    details = {"kernel": kernel, "correlation": correlation, "slope": slope, "phase": "ordered" if correlation == 1 else "chaotic"}
    error = abs(depth + 1 / math.log(coarse)) + 1e-12 * depth
    return Reading.predicted("correlation_depth", depth, unit="layers", error=error, error_kind="bound", source=SCHOENHOLZ_2017, assumes=ASSUMES, details=details)


def trainable_depth(activation: Function, *, weight_variance: float, bias_variance: float) -> Reading:
    """The depth up to which a network can be trained by gradient descent, as a rule: six times the depth scale of correlations.

    Shapes: value ().   Units: layers.   Error: truncation, half of it: a rule read off heat maps of accuracy, not a theorem.   Assumes, Cost, Raises: as `correlation_depth`.
    Source: Schoenholz et al. 2017, section 5 (experiments with tanh networks on MNIST and CIFAR-10).
    """
    depth = correlation_depth(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    return depth.replace(name="trainable_depth", value=TRAINABLE * depth.value, error=TRAINABLE * depth.value / 2, error_kind="truncation", details={})


def _fixed_point(activation: Function, kernel: float, weight_variance: float, bias_variance: float, nodes: int) -> tuple[float, float]:
    def at(c: float) -> tuple[float, float]:
        return correlation_map(activation, c, kernel=kernel, weight_variance=weight_variance, bias_variance=bias_variance, nodes=nodes)

    slope = at(1.0)[1]
    if slope <= 1 + CRITICAL:
        return 1.0, slope
    low = -1.0 + 1e-9
    grid = np.linspace(low, 1 - 1e-6, 64)
    gaps = np.array([at(float(c))[0] - c for c in grid])
    signs = np.nonzero((gaps[:-1] > 0) & (gaps[1:] <= 0))[0]
    if not len(signs):
        raise OutOfScope("the map of correlations has no stable fixed point below 1 that could be found")
    last = int(signs[-1])
    c = float(brentq(lambda value: at(value)[0] - value, grid[last], grid[last + 1], xtol=1e-14))
    return c, at(c)[1]


def correlations(activation: Function, start: float, *, depth: int, kernel: float, weight_variance: float, bias_variance: float) -> Array:
    """The correlation of two inputs at layers 1 .. depth, from its value at the first.  Shapes: (depth,).   Cost: `depth` quadratures."""
    found = [start]
    for _ in range(depth - 1):
        found.append(correlation_map(activation, found[-1], kernel=kernel, weight_variance=weight_variance, bias_variance=bias_variance)[0])
    return np.array(found)


def layer_factor(activation: Function, starts: tuple[float, float], *, first: int, last: int, weight_variance: float, bias_variance: float) -> float:
    """The mean factor of a layer, between two layers, by which two correlations that start apart come together: exp(-1 / xi) where they are near the fixed point.

    ((c_a - c_b)^last / (c_a - c_b)^first)^(1 / (last - first)) of the map itself, at the kernel that stays.

    Units: none.   Error: that of the quadrature.   Cost: 2 `last` quadratures.   Raises: OutOfScope where no kernel stays.   Source: derived from the map above.
    """
    kernel = settled_kernel(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    one, two = (correlations(activation, c, depth=last, kernel=kernel, weight_variance=weight_variance, bias_variance=bias_variance) for c in starts)
    return float(((one - two)[last - 1] / (one - two)[first - 1]) ** (1 / (last - first)))


def critical_decay(activation: Function, *, bias_variance: float) -> Reading:
    """By how much 1 / (1 - c) grows a layer at criticality, where the correlation nears 1 as a power of the depth.

    1 - c' = (1 - c) - b (1 - c)^2 + ...,   1 / (1 - c^l) ~ b l,   b = C_W K <s''^2>_K / 2.

    Shapes: value ().   Units: a layer^-1.   Error: bound, that of the quadrature.   `details`: `weight_variance` C_W and `kernel` K at criticality.
    Assumes: fully connected, many units, an activation with two derivatives.   Cost: a few quadratures.
    Raises: OutOfScope where no C_W is critical at this C_b.   Source: derived from the map above; Schoenholz et al. 2017, section 3 (criticality).
    """
    check_growth(activation)
    found = critical_weight_variance(activation, bias_variance=bias_variance)
    if found is None or bias_variance <= 0:
        raise OutOfScope(f"no weight variance is critical at C_b = {bias_variance:g} with a kernel that stays above 0")
    weight_variance = found[0]
    kernel = settled_kernel(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    value = weight_variance * kernel * float(expect(lambda z: _second(activation, z) ** 2, np.array([kernel]))[0]) / 2
    details = {"weight_variance": weight_variance, "kernel": kernel}
    return Reading.predicted("critical_decay", value, unit="", error=1e-8 * value, error_kind="bound", source=SCHOENHOLZ_2017, assumes=ASSUMES, details=details)


def _second(activation: Function, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (first,) = torch.autograd.grad(activation(z).sum(), z, create_graph=True)
        return torch.autograd.grad(first.sum(), z)[0]
