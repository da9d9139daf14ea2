"""What the finite width of a whole fully connected network does at initialisation: how its signal and its tangent kernel fluctuate, and how the first step moves that kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gnomon.core.architecture import Architecture, Layer
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.layers import UNIFORM
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.quadrature import gaussian_expectation
from gnomon.theory.activations import QUADRATURE, Function, moments
from gnomon.theory.chain import whole_chain
from gnomon.theory.finite_width import exact_four_point_vertex
from gnomon.theory.pairs import smoothness
from gnomon.theory.tensors import Tensors, tensors

PRINCIPLES = Source("roberts2022", "chapters 4, 8 and 11")
NEXT = 2.5
"""The next order, relative, is some NEXT * depth/width: ReLU's vertex has it."""
DEEPEST = 256
"""Layers beyond which the recursions are not run for a row of a report."""
KERNEL, STEP = "tangent kernel", "first step"


def fully_connected(architecture: Architecture) -> tuple[list[Layer], Function]:
    """The layers and the activation of a network that is fully connected as a whole.   Raises: OutOfScope naming the layer that is none of it, or a network that is too shallow or deep."""
    layers, function = whole_chain(architecture)
    odd = next((layer for layer in layers if layer.kind != "linear" or len(layer.output_shape) != 1), None)
    if odd is not None:
        what = "a convolution" if odd.kind == "conv" else "applied at every position"
        raise OutOfScope(f"`{odd.name}` is {what}: its units share weights between positions, and the tensors at order 1/width are known for fully connected layers only")
    undeclared = next((layer for layer in layers if layer.weight_variance is None), None)
    if undeclared is not None:
        raise OutOfScope(f"the initialisation of `{undeclared.name}` is not declared ({undeclared.why})")
    if not 2 <= len(layers) <= DEEPEST:
        raise OutOfScope(f"the network has {len(layers)} layers; finite width is felt from 2 on, and up to {DEEPEST} are followed")
    return layers, function


def width_effects(architecture: Architecture, *, square: float, biases: Sequence[bool]) -> Reading:
    """What is expected of one example over networks drawn anew, at order depth/width: how the signal fluctuates, the tangent kernel, and how a first step moves that.

    Var(m)/E(m)^2 = V/(n K^2) / (1 - C_b/K)^2, m the mean square of what a layer reads;   Var(H)/E(H)^2 = (A + 2B)/(n Theta^2);   E dH / (H lr H) = -2 [P + (n_L + 1) Q]/(n Theta^2),

    H the tangent kernel of one output where every parameter learns alike, the step one of gradient descent on half the squared outputs.  Weights that are not normal, with
    kappa = <w^4>/<w^2>^2, add (kappa - 3) times the last layer's sources of B and of P.  Biases are uniform: for signals z is N(0, K - C_b) plus such a number.  V/(n K^2) is the relative covariance of two squared outputs, and 3 V/(n K^2) an output's excess kurtosis.

    Shapes: value (layers - 1 + 2,), the layers from the second on, the kernel, and the step, which is left out where the slope of the activation jumps: units cross its kink from the side on
    which they learn alone, which moves the kernel by a part 1/sqrt(width) that no differential holds.   `square` is the mean square of what the first layer reads, `biases` which layers have
    them.   `details`: `width` n, the harmonic mean of the hidden ones; `vertex` V/(n K^2) of the outputs.   Units: none.
    Error: truncation: half of r, the largest of V/(n K^2) and A/(n Theta^2), for signals, r for the others; or 2.5 depth/width where that is more; and the part by which a first layer whose
    weights are not normal is not Gaussian, and, for the kernel and the step, any layer of which uniform biases are a part C_b/K: 0.6 of its square (`details`: the largest, `biases`).
    Exact for signals that are known at every width.
    Assumes: independent weights and biases of mean 0 and of the declared variances.   Cost: that of `tensors` for one input.
    Raises: OutOfScope as `fully_connected` and `tensors`; InvalidInput for inputs of 0.
    Source: Roberts, Yaida & Hanin 2022, eq. (4.90) (arXiv v2) (V), chapters 8 and 11 (the others); unequal widths and other weights derived here.
    """
    layers, function = fully_connected(architecture)
    if not (square > 0 and math.isfinite(square)):
        raise InvalidInput("The example is zero or not finite: nothing reaches the network but its biases.")
    c_w, c_b = np.array([layer.fan_in * float(layer.weight_variance or 0.0) for layer in layers]), np.array([layer.bias_variance for layer in layers])
    if (c_w == 0).any():
        raise OutOfScope(f"the weights of `{layers[int(np.argmin(c_w))].name}` are declared to be 0: nothing passes")
    widths, depth = [layer.units for layer in layers[:-1]], len(layers)
    width = len(widths) / sum(1 / n for n in widths)
    found = tensors(
        function, depth=depth, weight_variance=c_w, bias_variance=c_b, kernel=float(c_b[0] + c_w[0] * square), weight_rates=np.array([layer.fan_in for layer in layers], dtype=float),
        bias_rates=np.array(biases, dtype=float), widths=widths, through="dntk",
    )  # fmt: skip
    kernel, theta = _one(found.kernel), _one(found.ntk)[-1]
    vertex, a = _one(found.V) / (width * kernel**2), float(_one(found.value("A"))[-1] / (width * theta**2))
    b, p = _with_kurtosis(found, function, c_w[-1], layers[-1].weight_kurtosis - 3)
    q = (layers[-1].units + 1) * _one(found.value("Q"))[-1]
    r, kept = max(float(vertex[-1]), a), [b, p] if smoothness(function) > 1 else [b]
    last = np.array([a + 2 * kept[0] / (width * theta**2), *(-2 * (p + q) / (width * theta**2) for p in kept[1:])])
    # z of the first layer has an excess kurtosis of (kappa - 3) sum x^4 / (sum x^2)^2, some 3/fan_in
    first = 3 * abs(layers[0].weight_kurtosis - 3) / layers[0].fan_in
    uniform = (3 - UNIFORM) / 2 * float(np.max(c_b / kernel) ** 2)
    signals = _biased(function, float(kernel[0]), c_w, c_b, widths) if c_b.any() else vertex[1:]
    exact = _exact(function, c_b, widths)
    order = np.arange(2, depth + 1) * NEXT / width
    missing = np.abs(exact - signals) if exact is not None else signals * (np.maximum(signals / 2, order) + first)
    error = np.array([*missing, *(np.abs(last) * (max(r, NEXT * depth / width) + first + uniform))])
    names = (*(layer.name for layer in layers[1:]), KERNEL, STEP)[: depth - 1 + len(last)]
    return Reading.predicted(
        "width_effects", np.array([*(signals if exact is None else exact), *last]), unit="", error=error if exact is None else np.array([*np.zeros(depth - 1), *error[depth - 1 :]]),
        error_kind="truncation", axes=(Axis("of", names),), source=PRINCIPLES, details={"width": width, "vertex": float(vertex[-1]), "biases": uniform},
        assumes=("weights and biases are independent, of mean 0 and of the declared variance", "all parameters learn at one rate"),
    )  # fmt: skip


def _biased(function: Function, kernel: float, c_w: Array, c_b: Array, widths: Sequence[int]) -> Array:
    """The signals where biases are uniform: Var(k') = C_W^2 [(d<s^2>/dK)^2 Var(k) + (<s^4> - <s^2>^2)/n], z = g + b, g ~ N(0, K - C_b).   Cost: three quadratures a layer."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(12))
    variance, signals = 0.0, []
    for layer, n in enumerate(widths):
        rest, b = kernel - float(c_b[layer]), math.sqrt(3 * float(c_b[layer])) * nodes

        def square(g: Tensor, power: int = 1, b: Tensor = b) -> Tensor:
            return (function(g[..., None] + b) ** 2) ** power @ weights / 2

        def response(g: Tensor, rest: float = rest, square: Function = square) -> Tensor:
            return square(g) * (g**2 / rest - 1) / (2 * rest)

        two, four, slope = (gaussian_expectation(f, rest, tolerance=QUADRATURE).value for f in (square, lambda g, square=square: square(g, 2), response))
        variance = slope**2 * variance + (four - two**2) / n
        signals.append(variance / two**2)
        kernel, variance = float(c_b[layer + 1] + c_w[layer + 1] * two), float(c_w[layer + 1]) ** 2 * variance
    return np.array(signals)


def _one(tensor: Array) -> Array:
    """A tensor of one input, layer by layer."""
    return np.asarray(tensor).reshape(len(tensor), -1)[:, 0]


def _exact(function: Function, bias_variances: Array, widths: Sequence[int]) -> Array | None:
    """The signals' relative variance where it is known at every width."""
    if bias_variances.any():
        return None
    try:
        growth = [float(exact_four_point_vertex(function, depth=2, width=n).value[1]) for n in widths]
    except OutOfScope:
        return None
    return np.asarray(np.cumprod([1 + g for g in growth]) - 1)


def _with_kurtosis(found: Tensors, function: Function, weight: float, excess: float) -> tuple[float, float]:
    """B and P of one unit of the last layer, whose weights have an excess kurtosis: it multiplies what that layer adds, C_W^2 <s'^4> Theta^2 and C_W^2 <s'' s s'^2> Theta^2."""
    b, p = _one(found.value("B")), _one(found.value("P"))
    if not excess:
        return float(b[-1]), float(p[-1])
    at = moments(function, _one(found.kernel)[-2:-1])
    slope, growth = float(at.slope[0]), float(at.growth[0])
    added_b = b[-1] - weight**2 * slope**2 * b[-2]
    added_p = p[-1] - weight**2 * ((growth - slope) * slope * b[-2] + slope * growth * p[-2])
    return float(b[-1] + excess * added_b / 2), float(p[-1] + excess * added_p)
