"""Operations that put positions in other places: padding, upsampling to the nearest, rolls and flips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from gnomon.core.layers import Layer
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recipe import Known, Rule

NAMES = ("pad", "interpolate", "Upsample", "UpsamplingNearest2d", "roll", "flip", "rot90", "narrow")


def covers(called: str) -> bool:
    """Whether an operation or a module's class, by its name, is one of these."""
    return called in NAMES or called[:-2].endswith("Pad")


def moved(node: fx.Node, layer: Layer, before: Known, module: nn.Module | None) -> tuple[Rule, Known] | str:
    """The rule of an operation that makes every position a copy of one, or 0; or why it is not covered.

    Which of them is found by handing it numbers in place of features.  Cost: the operation, on one channel.
    """
    if any(isinstance(part, fx.Node) for part in [*node.all_input_nodes[1:]]):
        return "it is told from the data where to put positions"
    count, shape = math.prod(before.positions), (1, *before.positions, 1) if before.last else (1, 1, *before.positions)

    def applied(numbers: Tensor) -> Tensor:
        given = numbers.reshape(shape)
        if module is not None:
            return cast(Tensor, module(given))
        if node.op == "call_method":
            return cast(Tensor, getattr(given, str(node.target))(*node.args[1:], **node.kwargs))
        return cast(Tensor, cast(Callable[..., Any], node.target)(given, *node.args[1:], **node.kwargs))

    made = applied(torch.arange(1.0, count + 1, dtype=torch.float64))
    index = made.round().long().flatten()
    positions = layer.output_shape[:-1] if before.last else layer.output_shape[1:]
    if made.shape != ((1, *positions, 1) if before.last else (1, 1, *positions)) or layer.output_shape[-1 if before.last else 0] != layer.input_shape[-1 if before.last else 0]:
        return "it moves or pads channels; positions are what can be moved and padded"
    other = torch.linspace(0.5, 2.5, count, dtype=torch.float64).sqrt()
    padded = torch.cat([other.new_zeros(1), other])
    if int(index.min()) < 0 or int(index.max()) > count or not torch.equal(applied(other).flatten(), padded[index]):
        return "it makes positions that are no copies of others, and not 0 (an interpolation other than to the nearest position, a padding by other numbers)"
    return lambda given, _: _placed(given[0], index - 1, positions), dataclasses.replace(before, positions=positions, chain=(), base="")


def _placed(x: Pair, index: Tensor, positions: tuple[int, ...]) -> Pair:
    """The positions of these (flat) numbers, 0 where it is -1."""
    x = x.resolved()
    d, index = x.dimensions, index.to(x.first.device)
    there, at = index >= 0, index.clamp_min(0)

    def put(part: Tensor, ahead: int, times: int) -> Tensor:
        part = part.reshape(*part.shape[:ahead], *(math.prod(x.first.shape[1:]),) * times)
        for axis in range(ahead, ahead + times):
            shaped = there.reshape(-1, *(1,) * (part.ndim - 1 - axis))
            part = part.index_select(axis, at) * shaped
        return part.reshape(*part.shape[:ahead], *positions * times)

    if x.ntk is not None and x.ntk.ndim == 0:
        pairs = (len(x.first), len(x.second), *x.first.shape[1:], *(x.first.shape[1:] if x.full else ()))
        x = dataclasses.replace(x, ntk=x.ntk.expand(pairs))
    assert d == len(x.first.shape) - 1
    return Pair(put(x.first, 1, 1), put(x.second, 1, 1), *x.each(lambda part: put(part, 2, 2 if x.full else 1)), x.full)


def still(rule: Rule) -> Rule:
    """The same, whose output no gradient goes through."""

    def without(given: list[Pair], asked: Asked) -> Pair:
        made = rule(given, asked)
        return made if made.ntk is None else dataclasses.replace(made, ntk=torch.zeros_like(made.ntk))

    return without
