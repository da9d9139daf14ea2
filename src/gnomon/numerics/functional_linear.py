"""Linear maps that no layer of their own makes, as the projections of attention: caught where they are called, with the parameter whose rows they use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

functional: Any = F
Catch = Callable[[str, Tensor, Tensor], Tensor]
"""From a site's name, the input and the output of a linear map to what goes on in the output's place."""


def site(weight: str, start: int, bias: str = "", bias_start: int = 0) -> str:
    """The name of a linear map by the rows of parameters that it uses."""
    return f"{weight}@{start}|{bias}@{bias_start}"


def used_at(name: str) -> tuple[tuple[str, str, int], ...]:
    """The parameters of a site: (name, role, first row)."""
    parts = [part.rsplit("@", 1) for part in name.split("|")]
    return tuple((key, role, int(start)) for (key, start), role in zip(parts, ("weight", "bias"), strict=True) if key)


@contextlib.contextmanager
def caught(parameters: Mapping[str, Tensor], catch: Catch) -> Iterator[None]:
    """Inside, `F.linear` with one of these parameters, or with rows of one, hands its input and output to `catch`.

    Attention calls it on whole and on cut weights: which rows are used is read off their place in memory.
    """
    plain = functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = plain(x, weight, bias)
        found = _rows(parameters, weight)
        if found is None or x.ndim < 2:
            return output
        named = None if bias is None else _rows(parameters, bias)
        return catch(site(*found, *(named or ())), x, output)

    functional.linear = linear if parameters else plain
    try:
        yield
    finally:
        functional.linear = plain


def _rows(parameters: Mapping[str, Tensor], tensor: Tensor) -> tuple[str, int] | None:
    if not tensor.is_contiguous():
        return None
    for name, whole in parameters.items():
        away = tensor.data_ptr() - whole.data_ptr()
        if whole.ndim == tensor.ndim and whole.shape[1:] == tensor.shape[1:] and 0 <= away < whole.nbytes:
            return name, away // (whole.nbytes // len(whole))
    return None
