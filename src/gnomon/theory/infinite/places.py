"""Operations that put positions in other places: padding, upsampling to the nearest, rolls and flips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from gnomon.core.errors import OutOfScope
from gnomon.core.layers import Layer
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recipe import Known, Rule, Step

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
    return lambda given, _: _placed(given[0], index - 1, positions), before.at(positions, lambda x: _put(x, index - 1, positions, x.shape[1:], 1, 1), joins=True)


def _placed(x: Pair, index: Tensor, positions: tuple[int, ...]) -> Pair:
    """The positions of these (flat) numbers, 0 where it is -1."""
    x = x.resolved()
    shape, times = x.first.shape[1:], 2 if x.full else 1
    if x.ntk is not None and x.ntk.ndim == 0:
        x = dataclasses.replace(x, ntk=x.ntk.expand(len(x.first), len(x.second), *tuple(shape) * times))
    parts = x.each(lambda part: _put(part, index, positions, shape, 2, times))
    return Pair(_put(x.first, index, positions, shape, 1, 1), _put(x.second, index, positions, shape, 1, 1), *parts, x.full)


def _put(part: Tensor, index: Tensor, positions: tuple[int, ...], shape: Sequence[int], ahead: int, times: int) -> Tensor:
    """Numbers of other positions, `times` over, behind `ahead` dimensions.  Shapes: (..., *shape) -> (..., *positions)."""
    index = index.to(part.device)
    part = part.reshape(*part.shape[:ahead], *(math.prod(shape),) * times)
    for axis in range(ahead, ahead + times):
        part = part.index_select(axis, index.clamp_min(0)) * (index >= 0).reshape(-1, *(1,) * (part.ndim - 1 - axis))
    return part.reshape(*part.shape[:ahead], *positions * times)


def still(step: Step, name: str, known: Known) -> Known:
    """Let no gradient go through what the last step gives: detach(), or under torch.no_grad().  What is then known of it.  Raises: OutOfScope where the step is not the layer's own."""
    rule = step.rule
    if step.name != name or rule is None:
        raise OutOfScope(f"the gradient is stopped at {name!r} in a way that is not followed here; call detach() on the features that a layer with weights reads")

    def without(given: list[Pair], asked: Asked) -> Pair:
        made = rule(given, asked)
        return made if made.ntk is None else dataclasses.replace(made, ntk=torch.zeros_like(made.ntk))

    step.rule = without
    return dataclasses.replace(known, chain=(), base="", gain="")
