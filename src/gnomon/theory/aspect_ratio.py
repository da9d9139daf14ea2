"""How deep for a width: mutual information of the outputs, the depth-to-width ratio at which its expansion is largest, and residual connections.

Notation: a = V/(n K^2) of the last layer, which grows as nu l/n at criticality.  Given the random kernel k of a network, n_L outputs are independent N(0, k).  With k = K (1 + d), E d = 0,
E d^2 = a, their density is the Gaussian one times 1 + a L_2(u) + ..., u = |z|^2/(2K), L_2 the Laguerre polynomial of index n_L/2 - 1, and with
<L_2^2> = n (n + 2)/8 and <L_2^3> = n (n + 2)(n + 8)/8 the entropy that two groups of n_A + n_B = n outputs share is

    I = n_A n_B [a^2/8 - (20 + 3 n) a^3/48] + O(a^4),     largest at a = 4/(20 + 3 n), that is at L/n = 4/((20 + 3 n_L) nu).

Residual layers z' = gamma z + W s(z) + b keep K* with C_W g' = 1 - gamma^2, C_b scaled alike.  Let x = z/K^(1/2) and C_W s^2/K = sum_q b_q He_q(x), b_q = (1 - gamma^2) beta_q, beta_2 = 1.
The mean of s^2 over a layer moves every unit of the next alike, in its He_2; and a unit's part in that mean is remembered by its own gamma z.  With M_q = E He_2(x_i) He_q(x_j), i /= j,

    M_q' = gamma^q (M_q + b_q q!/n) for q /= 2,     M_2' = M_2 + [4 gamma^2 b_2 + sum_q b_q^2 q! + 2 sum_(q /= 2) n b_q M_q]/n,     V/(n K^2) = M_2,

which deep down grows by nu(gamma)/n a layer, nu(gamma) = (1 - gamma^2)^2 sum_q c_q (1 + gamma^q)/(1 - gamma^q), c_q = beta_q^2 q! (sum_q c_q = kappa of `criticality`).  Where K* = 0 the signal
falls so slowly that the same holds with the beta of the slopes at 0, and a third of it.  (Without the M_q one has (1 - gamma^2)[4 gamma^2 + (1 - gamma^2) kappa], which is the same only where
c_2 is all there is: linear, and smooth ones with K* = 0.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import optimize

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import Function
from gnomon.theory.criticality import CriticalPoint, critical_point

INFORMATION = Source("roberts2022", "appendix A")
ASSUMES = ("a chain of fully connected layers of equal width at criticality", "the expansion in depth/width, cut after its third order")

ORDERS = 60
"""Hermite orders of C_W s^2/K that are kept apart."""
NODES, GAUSS = 400, 150
FORGOTTEN = 1e6
"""The order at which the rest of the series stands."""


def mutual_information(vertex: float, one: int, two: int) -> Reading:
    """What two groups of outputs of one random network tell of each other: n_A n_B [a^2/8 - (20 + 3 n) a^3/48], a = `vertex` = V/(n K^2), n = n_A + n_B.

    Shapes: value ().   Units: nats.   Error: truncation, the size of the last term.   Assumes: one input; outputs independent given their kernel.   Cost: none.
    Raises: InvalidInput for groups of no outputs, or a negative vertex.   Source: Roberts, Yaida & Hanin 2022, appendix A; derived above.
    """
    if min(one, two) < 1 or not vertex >= 0:
        raise InvalidInput(f"Groups have at least one output and V/(n K^2) is not negative, not {one}, {two} and {vertex:g}.")
    third = one * two * (20 + 3 * (one + two)) * vertex**3 / 48
    return Reading.predicted("mutual_information", one * two * vertex**2 / 8 - third, unit="nats", error=third, error_kind="truncation", source=INFORMATION, assumes=ASSUMES)


def vertex_slope(activation: Function, *, residual: float = 0.0) -> float:
    """nu: at criticality V/(n K^2) grows by nu/n a layer deep down, with residual connections z' = residual z + W s(z) + b.

    (1 - gamma^2)^2 sum_q c_q (1 + gamma^q)/(1 - gamma^q), gamma = `residual`; a third of it where K* = 0.

    Shapes: ().   Units: none.   Error: that of `critical_point`, and 1e-6 of the Hermite series.   Assumes: fully connected, equal widths.   Cost: that of `critical_point`.
    Raises: OutOfScope as `critical_point`; InvalidInput for a residual outside [0, 1].   Source: derived above (residual = 0: Roberts, Yaida & Hanin 2022, chapter 5).
    """
    point = critical_point(activation)
    return _slope(point, _chaos(activation, point), residual)


def residual_vertex(activation: Function, *, depth: int, width: int, residual: float) -> Reading:
    """V/(n K^2) of every layer of a network with residual connections at criticality, to leading order in 1/n.

    The recursion of M_2 and M_q above, from M = 0 at the first layer.

    Shapes: value (depth,).   Units: none.   Error: truncation, half its square, as without residual connections.   Assumes: fully connected, equal widths, K = K* at the first layer.
    Cost: that of `critical_point`.   Raises: as `vertex_slope`; OutOfScope where K* = 0, for there the signal falls with depth; InvalidInput for sizes below 1.   Source: derived above.
    """
    if min(depth, width) < 1:
        raise InvalidInput(f"Depth and width must be at least 1, not {depth} and {width}.")
    point = critical_point(activation)
    if point.kind == "zero":
        raise OutOfScope("the kernel of this activation falls with depth at criticality: `vertex_slope` says what deep layers add")
    order, c = _chaos(activation, point)
    _slope(point, (order, c), residual)
    powers, scale = residual**order, (1 - residual**2) ** 2
    values, memory = [0.0], np.zeros_like(c)
    for _ in range(depth - 1):
        values.append(values[-1] + 4 * residual**2 * (1 - residual**2) + scale * float(c.sum() + 2 * memory[order != 2].sum()))
        memory = powers * (memory + c)
    value, axes = np.array(values) / width, (Axis("layer", tuple(map(float, range(1, depth + 1)))),)
    return Reading.predicted("four_point_vertex", value, unit="", error=value**2 / 2, error_kind="truncation", axes=axes, source=INFORMATION, assumes=ASSUMES)


def _chaos(activation: Function, point: CriticalPoint) -> tuple[Array, Array]:
    """The orders q and c_q = beta_q^2 q! of C_W s^2/K at the critical point; what the series leaves out stands at an order that remembers nothing."""
    kappa = 3 * point.exponents.vertex_slope if point.kind == "zero" else point.exponents.vertex_slope
    order = np.arange(1.0, ORDERS + 1)
    if point.kind == "half-stable":
        k, c_w = point.kernel, point.weight_variance
        x, w = np.polynomial.hermite_e.hermegauss(GAUSS)
        with torch.no_grad():
            values = c_w / k * activation(torch.from_numpy(x) * math.sqrt(k)).double().numpy() ** 2
        weighted = w / math.sqrt(2 * math.pi) * values
    else:
        # x^2 + rho x|x|: rho from kappa = 2 + 3 rho^2
        x, w = np.polynomial.legendre.leggauss(NODES)
        x, w = 6 * (x + 1), 6 * w
        weighted = 2 * w * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * x**2
    basis = np.empty((ORDERS + 1, len(x)))
    basis[0], basis[1] = 1.0, x
    for q in range(2, ORDERS + 1):
        basis[q] = (x * basis[q - 1] - math.sqrt(q - 1) * basis[q - 2]) / math.sqrt(q)
    c = (basis[1:] @ weighted) ** 2
    if point.kind != "half-stable":
        c = np.where(order % 2 == 1, c * max(kappa - 2, 0.0) / 3, np.where(order == 2, 2.0, 0.0))
    return np.append(order, FORGOTTEN), np.append(c, max(kappa - float(c.sum()), 0.0))


def _slope(point: CriticalPoint, chaos: tuple[Array, Array], residual: float) -> float:
    if not 0 <= residual <= 1:
        raise InvalidInput(f"The residual connection's factor must lie in [0, 1], not at {residual:g}: beyond 1 nothing is critical.")
    if residual == 1:
        return 0.0
    order, c = chaos
    memory = residual**order
    total = (1 - residual**2) ** 2 * float((c * (1 + memory) / (1 - memory)).sum())
    return total / 3 if point.kind == "zero" else total


def optimal_ratio(activation: Function, *, outputs: int, residual: float = 0.0) -> Reading:
    """The depth-to-width ratio r* = L/n at which the outputs of a network at criticality share most information, by the expansion to third order.

    r* = 4 / ((20 + 3 n_L) nu)

    Shapes: value ().   Units: none.   Error: truncation, half of it: at r* the two terms that are kept are of one size (2/3), so that it is an order of magnitude.
    Assumes: this module's docstring; one input.   Cost: that of `critical_point`.
    Raises: InvalidInput for no outputs; OutOfScope as `critical_point`, and where nothing fluctuates (residual = 1).
    Source: Roberts, Yaida & Hanin 2022, appendix A; derived above.
    """
    if outputs < 1:
        raise InvalidInput(f"A network has at least one output, not {outputs}.")
    slope = vertex_slope(activation, residual=residual)
    if slope <= 0:
        raise OutOfScope("at residual = 1 the layers add nothing and nothing fluctuates: every ratio is alike")
    value = 4 / ((20 + 3 * outputs) * slope)
    return Reading.predicted(
        "optimal_ratio", value, unit="", error=value / 2, error_kind="truncation", source=INFORMATION, assumes=ASSUMES, details={"vertex_slope": slope, "outputs": outputs}
    )


def optimal_residual(activation: Function, *, depth: int, width: int, outputs: int) -> Reading:
    """The factor of residual connections with which a network of this depth and width lies at its optimal ratio: r*(gamma) = L/n.

    Shapes: value ().   Units: none.   Error: truncation: how far it moves where r* is half as large, or half as large again.
    Assumes, Cost, Source: as `optimal_ratio`.   Raises: as there; OutOfScope where the network is shallower than r* without residual connections.
    """
    if min(depth, width) < 1:
        raise InvalidInput(f"Depth and width must be at least 1, not {depth} and {width}.")
    point, ratio = critical_point(activation), depth / width
    chaos = _chaos(activation, point)
    if outputs < 1:
        raise InvalidInput(f"A network has at least one output, not {outputs}.")

    def found(ratio: float) -> float:
        wanted = 4 / ((20 + 3 * outputs) * ratio)
        grid = np.linspace(0, 1, 201)
        values = np.array([_slope(point, chaos, g) for g in grid])
        if values.max() < wanted:
            return math.nan
        # nu(gamma) may rise before it falls: the branch that ends at 1
        last = int(np.flatnonzero(values >= wanted)[-1])
        return float(optimize.brentq(lambda g: _slope(point, chaos, g) - wanted, grid[last], grid[min(last + 1, 200)])) if last < 200 else 1.0

    value = found(ratio)
    if math.isnan(value) or value == 0:
        best = 4 / ((20 + 3 * outputs) * _slope(point, chaos, 0.0))
        raise OutOfScope(
            f"at depth/width = {ratio:.3g} the network is shallower than the optimal ratio {best:.3g} already: residual connections would make it effectively shallower still"
        )
    ends = [found(ratio * factor) for factor in (2 / 3, 2.0)]
    error = max(abs((0.0 if math.isnan(end) else end) - value) for end in ends)
    return Reading.predicted("optimal_residual", value, unit="", error=error, error_kind="truncation", source=INFORMATION, assumes=ASSUMES)
