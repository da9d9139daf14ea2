"""Operations whose forward mode cannot be taken twice, written out: torch 2.13 gives a wrong second derivative for two norms, and none for the gate and for weight norm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

functional: Any = F
library: Any = torch


def layer_norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """F.layer_norm by its formula."""
    return _affine(_standardised(x, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """F.glu by its formula."""
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v| over all dimensions but one, or over all for -1, as torch.nn.utils.parametrizations.weight_norm calls it."""
    over = [d for d in range(v.ndim) if d != dim]
    return v * (g / v.square().sum(over, keepdim=True).sqrt())


@contextlib.contextmanager
def by_parts() -> Iterator[None]:
    """Inside, `F.layer_norm`, `F.instance_norm` on the statistics of its input, `F.glu` and weight norm are their formulas."""
    plain = functional.instance_norm

    def instance_norm(
        x: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not use_input_stats:
            out: Tensor = plain(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
            return out
        shape = (-1, *[1] * (x.ndim - 2))
        return _affine(_standardised(x, tuple(range(2, x.ndim)), eps), *(None if part is None else part.reshape(shape) for part in (weight, bias)))

    written = ((functional, "layer_norm", layer_norm), (functional, "instance_norm", instance_norm), (functional, "glu", glu), (library, "_weight_norm", weight_norm))
    before = [(place, name, getattr(place, name)) for place, name, _ in written]
    try:
        for place, name, formula in written:
            setattr(place, name, formula)
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _standardised(x: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(over, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias
