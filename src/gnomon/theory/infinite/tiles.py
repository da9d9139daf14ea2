"""A kernel filled tile by tile, small enough that a tile's chain of operations stays in the caches."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gnomon.core.errors import InvalidInput, NotEnoughMemory
from gnomon.theory.infinite.propagation import TILE, Propagation, own, read
from gnomon.theory.infinite.recipe import Plan

HELD = 16
"""Arrays of covariances that are held at once while a tile is worked on, at most."""


class Cost(NamedTuple):
    """What a block of a kernel takes: covariances worked on (over pairs, positions and layers), bytes of the result, and bytes held beside it at most."""

    covariances: int
    result: int
    working: int

    @property
    def bytes(self) -> int:
        """All that is held at once."""
        return self.result + self.working


class Tiles:
    """The kernel of two sets of examples, block by block: what every entry of the plan reads is read once, blocks are made when asked for.

    Shapes: x1 (n1, ...), x2 (n2, ...) or None for x1 with itself, of which each pair within a block on the diagonal is worked on once.
    """

    def __init__(self, plan: Plan, x1: Tensor, x2: Tensor | None, kinds: tuple[str, ...], *, memory: int) -> None:
        ntk = "ntk" in kinds
        self.plan, self.kinds, self.symmetric = plan, kinds, x2 is None
        self.first = read(plan, x1)
        self.second = self.first if x2 is None else read(plan, x2)
        self._check(memory)
        sides: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self.diagonal: dict[str, Tensor] = {}
        if plan.own:
            one, self.diagonal = own(plan, self.first, ntk=ntk and x2 is None)
            sides = (one, one if x2 is None else own(plan, self.second, ntk=False)[0])
        self.propagation = Propagation(plan, self.first, self.second, ntk=ntk, own=sides)

    @property
    def shape(self) -> tuple[int, int]:
        """How many examples there are on either side."""
        n1, n2 = (len(next(iter(side.values()))) for side in (self.first, self.second))
        return n1, n2

    def _each(self) -> int:
        """The covariances of one pair at the data, the most that there are at a layer."""
        return max(math.prod(self.first[step.name].shape[1:-1]) ** (2 if step.full else 1) for step in self.plan.steps if step.rule is None)

    def cost(self, rows: slice | None = None, columns: slice | None = None) -> Cost:
        """What a block takes, said before anything is computed.  Cost: none."""
        across, down = _bounds(rows, self.shape[0]), _bounds(columns, self.shape[1])
        n1, n2, size = across[1] - across[0], down[1] - down[0], next(iter(self.first.values())).element_size()
        each, layers = self._each(), sum(step.rule is not None for step in self.plan.steps)
        pairs = n1 * (n1 + 1) // 2 if self.symmetric and across == down else n1 * n2
        working = HELD * size * max(each, min(TILE // size, n1 * n2 * each))
        return Cost(pairs * each * layers, n1 * n2 * self.plan.positions * len(self.kinds) * size, working)

    def _check(self, memory: int) -> None:
        """Refuse what would not fit, before it is made."""
        (n1, n2), each, cost = self.shape, self._each(), self.cost()
        pair = HELD * each * next(iter(self.first.values())).element_size()
        if pair + cost.result > memory:
            raise NotEnoughMemory(
                f"The kernel of {n1} x {n2} examples takes {cost.result / 1e9:.3g} GB, and one pair of them {pair / 1e9:.3g} GB while it is worked on ({each:,} covariances a layer, of all pairs of "
                f"positions where a pooling follows); {memory / 1e9:.3g} GB are allowed. Give fewer examples or smaller ones, a network that flattens in place of pooling, or more `memory`."
            )

    @torch.no_grad()
    def block(self, rows: slice | None = None, columns: slice | None = None) -> tuple[Tensor, ...]:
        """The kernels, one a kind, of some rows and columns (None: all of them).  Shapes: (rows, columns, *positions) each."""
        (top, bottom), (left, right) = _bounds(rows, self.shape[0]), _bounds(columns, self.shape[1])
        halved = self.symmetric and (top, bottom) == (left, right)
        each, tile = self._each(), TILE // next(iter(self.first.values())).element_size()
        side = max(1, math.isqrt(tile // each))
        count = -(-(bottom - top) // side) if halved else 1
        side = -(-(bottom - top) // count) if halved else min(side, right - left)
        high = side if halved else max(1, tile // (side * each))
        out: dict[str, Tensor] = {}
        for i in range(top, bottom, high):
            for j in range(i if halved else left, right, side):
                here, there = slice(i, min(i + high, bottom)), slice(j, min(j + side, right))
                made = self.propagation.tile(here, there)
                for name, part in (("nngp", made.covariance), ("ntk", made.ntk)):
                    if part is None or name not in self.kinds:
                        continue
                    if name not in out:
                        out[name] = part.new_empty(bottom - top, right - left, *part.shape[2:])
                    _place(out[name], part, here.start - top, there.start - left, mirrored=halved)
        for name, values in self.diagonal.items() if self.symmetric else ():
            if name in out:
                same = torch.arange(max(top, left), min(bottom, right), device=values.device)
                out[name][same - top, same - left] = values[same]
        return tuple(out[name] for name in self.kinds)


def _bounds(part: slice | None, length: int) -> tuple[int, int]:
    start, stop, step = (part or slice(None)).indices(length)
    if step != 1 or stop <= start:
        raise InvalidInput(f"A block is a contiguous range of at least one of the {length} examples, not {part}.")
    return start, stop


def _place(out: Tensor, part: Tensor, i: int, j: int, *, mirrored: bool) -> None:
    """Write a tile into a block, and where the block is symmetric its mirror image, the upper half standing for both."""
    here, there = slice(i, i + part.shape[0]), slice(j, j + part.shape[1])
    if mirrored and i == j:
        upper = torch.ones(part.shape[:2], dtype=torch.bool, device=part.device).triu_().reshape(*part.shape[:2], *(1,) * (part.ndim - 2))
        part = torch.where(upper, part, part.transpose(0, 1))
    elif mirrored:
        out[there, here] = part.transpose(0, 1).contiguous()
    out[here, there] = part
