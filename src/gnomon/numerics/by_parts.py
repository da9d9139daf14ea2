"""Operations whose forward mode cannot be taken twice, written out: torch 2.13 gives a wrong second derivative for the two norms, and none for the gate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

functional: Any = F


def layer_norm(x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """F.layer_norm by its formula."""
    return _affine(_standardised(x, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """F.glu by its formula."""
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


@contextlib.contextmanager
def by_parts() -> Iterator[None]:
    """Inside, `F.layer_norm`, `F.instance_norm` on the statistics of its input, and `F.glu` are their formulas."""
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

    before = {name: getattr(functional, name) for name in ("layer_norm", "instance_norm", "glu")}
    try:
        functional.layer_norm, functional.instance_norm, functional.glu = layer_norm, instance_norm, glu
        yield
    finally:
        for name, function in before.items():
            setattr(functional, name, function)


def _standardised(x: Tensor, over: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(over, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias
