"""The mean neural tangent kernel of a fully connected network, layer by layer, and the learning rates with which every layer takes part in it alike.

Notation: biases of layer l learn at the rate lambda_b, weights at lambda_W / fan_in;  H = sum over parameters of their rate times (dz_i/dtheta)^2 for one unit i of the layer.
Layer l adds lambda_b + lambda_W <s^2>_K to what the layers before it add, and these pass through a factor chi_perp = C_W <s'^2>_K:

    H^(1) = lambda_b + lambda_W |x|^2/n_0,     H^(l+1) = lambda_b^(l+1) + lambda_W^(l+1) <s^2>_K + chi_perp H^(l)     in the limit of many units.

At criticality K ~ l^-p0 and the product of chi_perp from l to L is (l/L)^p, p = p_perp.  So lambda_b ~ l^-p L^(p-1) and lambda_W ~ l^(p0-p) L^(p-1) let each layer add a part of 1/L.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import Function, derivative, expect
from gnomon.theory.criticality import check_growth, critical_point

PRINCIPLES = Source("roberts2022", "chapters 8 and 9")
ASSUMES = ("fully connected, many units, Gaussian weights of variance C_W / fan_in and biases of variance C_b", "weights learn at the rate lambda_W / fan_in, biases at lambda_b")

Rates = float | Sequence[float] | Array


def ntk_contributions(
    activation: Function, *, depth: int, width: int, weight_variance: float, bias_variance: float = 0.0, square: float = 1.0, weight_rates: Rates = 1.0, bias_rates: Rates = 1.0
) -> Reading:  # fmt: skip
    """How much each layer's parameters add to the mean neural tangent kernel of the last layer; their sum is the kernel.

    (lambda_b^(l) + lambda_W^(l) <s^2>_{K^(l-1)}) times the product of chi_perp over the layers l .. L-1, with `square` = |x|^2/n_0 in place of <s^2> at the first.

    Shapes: value (depth,); rates one number, or one a layer.   Units: rate times those of pre-activations, squared.
    Error: truncation, depth/width of the value: the size of the first correction.   Assumes: as in this module's docstring; one input.   Cost: two quadratures a layer.
    Raises: InvalidInput for sizes below 1, rates that are as many as no layers, an input of 0; OutOfScope where the activation grows faster than a polynomial.
    Source: Roberts, Yaida & Hanin 2022, chapter 8; derived above.
    """
    check_growth(activation)
    if min(depth, width) < 1 or not (square > 0 and weight_variance > 0 and bias_variance >= 0):
        raise InvalidInput(
            f"Depth and width must be at least 1, the input's mean square and C_W above 0, not depth={depth}, width={width}, square={square:g}, C_W={weight_variance:g}."
        )
    weights, biases = (_each(rates, depth) for rates in (weight_rates, bias_rates))
    slope = derivative(activation)
    kernel, reads, factors = bias_variance + weight_variance * square, [square], []
    for _ in range(depth - 1):
        reads.append(float(expect(lambda z: activation(z) ** 2, np.array([kernel]))[0]))
        factors.append(weight_variance * float(expect(lambda z: slope(z) ** 2, np.array([kernel]))[0]))
        kernel = bias_variance + weight_variance * reads[-1]
    passed = np.cumprod([1.0, *factors[::-1]])[::-1]
    value = (biases + weights * np.array(reads)) * passed
    axes = (Axis("layer", tuple(map(float, range(1, depth + 1)))),)
    return Reading.predicted("ntk_contributions", value, unit="", error=value * depth / width, error_kind="truncation", axes=axes, source=PRINCIPLES, assumes=ASSUMES)


def _each(rates: Rates, depth: int) -> Array:
    found = np.asarray(rates, dtype=np.float64)
    if found.shape not in ((), (depth,)):
        raise InvalidInput(f"Learning rates are one number or one for each of {depth} layers, not of shape {found.shape}.")
    return np.broadcast_to(found, (depth,))


def equivalent_learning_rates(activation: Function, *, depth: int) -> Reading:
    """Learning rates, layer by layer, with which at criticality every layer adds alike to the tangent kernel, whatever the depth.

    lambda_b^(l) = l^-p L^(p-1),  lambda_W^(l) = l^(p0-p) L^(p-1), with the exponents of `critical_point`: 1/L for both where it is scale invariant or half stable (at K* itself),
    1/l and 1 for tanh.  Multiply by the global rate; a weight learns at lambda_W / fan_in.

    Shapes: value (2, depth), weights and biases.   Units: those of the global rate.   Error: exact as a definition; the parts that it makes equal are so to order log(l)/l.
    Assumes: a network at its critical point.   Cost: that of `critical_point`.   Raises: OutOfScope as `critical_point`, and where K falls as a logarithm; InvalidInput for a depth below 1.
    Source: Roberts, Yaida & Hanin 2022, chapter 9 (the equivalence of layers); derived above.
    """
    if depth < 1:
        raise InvalidInput(f"The depth must be at least 1, not {depth}.")
    point = critical_point(activation)
    if point.kind == "zero" and point.exponents.rate == 0:
        raise OutOfScope("the kernel falls as 1/log l at criticality (the activation is linear on either side of 0): no power of l makes layers alike")
    layer, power = np.arange(1, depth + 1), point.exponents.perpendicular
    value = np.stack([layer ** (point.exponents.kernel - power), layer**-power]) * depth ** (power - 1.0)
    axes = (Axis("of", ("weights", "biases")), Axis("layer", tuple(map(float, layer))))
    return Reading.predicted("learning_rates", value, unit="", axes=axes, source=PRINCIPLES, assumes=ASSUMES)
