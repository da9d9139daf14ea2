"""Normalisations whose statistics are those of many channels of one example: over channels alone, or over channels and positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gnomon.theory.infinite import means
from gnomon.theory.infinite.means import Sides
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recipe import Known, Reads, Rule

BATCH = (
    "BatchNorm couples the examples of a batch, so that no kernel of two examples exists (Yang et al. 2019); use GroupNorm or LayerNorm, which theory covers, or no normalisation"
)
INSTANCE = (
    "it takes the statistics of each channel alone, over positions: no mean over many channels, so that they stay random at any width and what it gives is not Gaussian; "
    "use GroupNorm with many channels in each group, or LayerNorm"
)


@dataclasses.dataclass(frozen=True)
class Norm:
    """What a normalisation divides by: `everywhere`: statistics of all positions of an example, else of each one; `subtracts`: the mean is taken away; `placed`: gains and shifts of each position's own."""

    eps: float
    everywhere: bool
    subtracts: bool
    placed: bool


def read(module: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm, before: Known, channels: int) -> Norm | str:
    """How a normalisation reads channels and positions, or why it is not covered."""
    eps = module.eps if module.eps is not None else torch.finfo(torch.get_default_dtype()).eps
    subtracts = not isinstance(module, nn.RMSNorm)
    if isinstance(module, nn.GroupNorm):
        if before.positions and before.last:
            return "a GroupNorm that takes positions for channels: its channels are the second dimension; move them there before it"
        if module.num_groups == channels:
            return f"a GroupNorm of one channel a group: {INSTANCE}"
        if module.num_groups > 1 and not before.alike:
            return "a GroupNorm of channels of different branches, or of positions: its groups are not identically distributed; write num_groups=1"
        made = Norm(eps, bool(before.positions), subtracts, placed=False)
    elif len(module.normalized_shape) == 1 + len(before.positions):
        made = Norm(eps, bool(before.positions), subtracts, placed=bool(before.positions))
    elif len(module.normalized_shape) == 1 and before.last:
        made = Norm(eps, everywhere=False, subtracts=subtracts, placed=False)
    else:
        return "a normalisation over some dimensions of the positions, or over positions alone; covered are those over the channels, and over channels and all positions"
    if subtracts and not (before.centred or before.means):
        return (
            f"a {type(module).__name__} of features whose mean, which it subtracts, is not known here (behind a flatten, a concatenation or a product); put it directly after "
            "a layer with weights, an activation or a sum of such"
        )
    return made


def step(name: str, before: Known, norm: Norm, trained: Sequence[bool]) -> tuple[tuple[str, ...], Rule, Known, Reads]:
    """The layers that a normalisation of the layer `name` reads, its rule, what is known of it and which positions it reads; `trained`: whether gain and shift are."""
    scale, shift = trained
    parts = before.means if norm.subtracts and not before.centred else ()

    def rule(given: list[Pair], _: Asked) -> Pair:
        return normalised(given[0], norm, means.total(parts, given[1:]) if parts else None, scale=scale, shift=shift)

    centred = before.centred or (norm.subtracts and not norm.everywhere)
    gain: Literal["", "own", "placed", "mixed"] = before.gain if not scale else "mixed" if before.gain else "placed" if norm.placed else "own"
    known = dataclasses.replace(before, centred=centred, means=(), chain=(), base="", gain=gain)
    return (name, *(part.base for part in parts)), rule, known, "all" if norm.everywhere else before.gathers if parts else "same"


def normalised(x: Pair, norm: Norm, mean: Sides | None, *, scale: bool, shift: bool) -> Pair:
    """Normalisation by statistics of one example over many channels, and where it is so over all positions: u = (z - m) / sqrt(v + eps).

    Over many channels m and v are what they are on average: m the mean of E z over positions (0 before an activation), v that of E (z - m)^2, for every group of channels the same.  So
    k_pp'(x, x') -> [k_pp' - m_p m'_p' + (m_p - m)(m'_p' - m')] / sqrt((v + eps)(v' + eps)).  What the statistics themselves move by is a mean over channels of what the channels do, whose square
    is of the order of 1 / channels: Theta -> Theta / sqrt((v + eps)(v' + eps)).
    A trained gain (at 1) adds k to Theta and a trained shift (at 0) adds 1, at equal positions alone where they are each position's own (LayerNorm over positions, not GroupNorm); both are of the order of
    the biases.   Source: derived here.
    """
    over = tuple(range(1, x.first.ndim)) if norm.everywhere else ()
    if mean is not None:
        middle = tuple(part.mean(over, keepdim=True) if over else part for part in mean)
        x = means.moved(x, mean, (mean[0] - middle[0], mean[1] - middle[1]) if over else None)
    one, two = ((q.mean(over, keepdim=True) if over else q).add(norm.eps) for q in (x.first, x.second))
    r1, r2 = x.spread(one.rsqrt().expand_as(x.first), two.rsqrt().expand_as(x.second))
    cov, gap, total, _ = x.each(lambda part: part * r1 * r2)
    made = Pair(x.first / one, x.second / two, cov, gap, total, None, x.full)
    if x.ntk is None:
        return made
    ntk = x.ntk * r1 * r2
    if not (scale or shift):
        return dataclasses.replace(made, ntk=ntk)
    more: Tensor | float = (made.covariance if scale else 0) + (1.0 if shift else 0.0)
    return dataclasses.replace(made, ntk=ntk + (more * equal_positions(made) if norm.placed and x.full else more))


def equal_positions(x: Pair) -> Tensor:
    """1 at equal positions and 0 elsewhere, of a `full` pair.  Shapes: (*S, *S)."""
    shape = x.first.shape[1:]
    return torch.eye(shape.numel(), dtype=x.first.dtype, device=x.first.device).reshape(*shape, *shape)
