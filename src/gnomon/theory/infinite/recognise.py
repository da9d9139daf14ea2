"""Which dual an activation has, from the layer that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gnomon.core.layers import Applied, Layer
from gnomon.theory.activations import Function, compose, scale_invariant
from gnomon.theory.infinite.duals import Dual, Erf, Gaussian, Gelu, Monomial, PiecewiseLinear, RectifiedPower, Sign, Wave
from gnomon.theory.infinite.kinked import Kinked
from gnomon.theory.infinite.kinks import Same, find
from gnomon.theory.infinite.series import Series


def factor(layer: Layer) -> float | None:
    """The constant that a layer multiplies by, or None where it is something else."""
    if layer.kind != "activation" or layer.activation.split()[0] not in ("mul", "imul", "div", "truediv", "neg") or layer.function is None:
        return None
    return float(layer.function(1.0))


def dual(chain: Sequence[Layer], tolerance: float) -> Dual:
    """The dual of activations applied in turn: a closed form where there is one, else the Hermite series, behind kinks where there are some.  Cost: some thousand values of the activation."""
    functions = [_hardsigmoid if layer.activation == "hardsigmoid" else layer.function for layer in chain]
    whole = compose([function for function in functions if function is not None])
    slopes = scale_invariant(whole)
    if slopes is not None:
        return PiecewiseLinear(slopes[1], slopes[0], _slope_at_zero(whole))
    closed = _single(chain[0]) if len(chain) == 1 else _composed(chain)
    closed = closed or _rectified(whole)
    if closed:
        return closed
    kinks, name = find(whole), " then ".join(layer.activation for layer in chain)
    return Kinked(Same.of(whole, kinks), kinks, name, tolerance) if kinks else Series(whole, name, tolerance)


def _hardsigmoid(value: torch.Tensor) -> torch.Tensor:
    """The same function, for PyTorch's own derivative of it has the 1/6 of float32."""
    return (value / 6 + 0.5).clamp(0, 1)


def _slope_at_zero(function: object) -> float:
    at = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        return float(torch.autograd.grad(function(at).sum(), at)[0])  # type: ignore[operator]


def _single(layer: Layer) -> Dual | None:
    if layer.activation == "gelu":
        at = torch.tensor([2.0], dtype=torch.float64)
        exact = layer.function is not None and torch.equal(layer.function(at), torch.nn.functional.gelu(at))
        return Gelu() if exact else None
    simple: dict[str, Dual] = {"erf": Erf(), "sin": Wave(odd=True), "cos": Wave(odd=False), "sign": Sign()}
    power = _power(layer)
    return Monomial(power) if power else simple.get(layer.activation)


def _composed(chain: Sequence[Layer]) -> Dual | None:
    first, last = chain[0], chain[-1]
    if last.activation == "exp" and _power(first) == 2:
        rate = 1.0
        for layer in chain[1:-1]:
            by = factor(layer)
            if by is None:
                return None
            rate *= by
        return Gaussian(-rate) if rate < 0 else None
    power = _power(last)
    slopes = scale_invariant(compose([layer.function for layer in chain[:-1] if layer.function is not None]))
    if power in (2, 3) and slopes is not None and slopes[0] > 0 and slopes[1] == 0:
        return RectifiedPower(power, slopes[0] ** power)
    return None


def _rectified(function: Function) -> Dual | None:
    """s max(z, 0)^p, however it is written."""
    for power in (2, 3):
        slopes = scale_invariant(lambda z, p=power: function(z) / z.abs() ** (p - 1))  # type: ignore[misc]
        if slopes is not None and slopes[0] > 0 and slopes[1] == 0:
            return RectifiedPower(power, slopes[0])
    return None


def _power(layer: Layer) -> int | None:
    """p where the layer is z^p with a whole p of at least 1."""
    if layer.activation == "square":
        return 2
    if layer.activation != "pow" or not isinstance(layer.function, Applied) or len(layer.function.arguments) != 1:
        return None
    power = layer.function.arguments[0]
    return int(power) if isinstance(power, (int, float)) and power == int(power) and power >= 1 else None
