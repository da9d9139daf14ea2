"""A kernel filled tile by tile, small enough that a tile's chain of operations stays in the caches."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gnomon.core.errors import InvalidInput, NotEnoughMemory
from gnomon.theory.infinite.fused import alone
from gnomon.theory.infinite.propagation import KEPT, TILE, WIDE, Propagation, own, read
from gnomon.theory.infinite.recipe import Plan

HELD = 16
"""Arrays of covariances that are held at once while a tile is worked on, at most."""


STRIPS = 2
"""Strips in a tile's side where a symmetric kernel is filled."""
ROWS = 256
"""Rows that are mirrored at a time."""
MANY, SEVERAL = 8, 4
"""Pairs in a tile, and tiles, from which on what one side alone gives is made beforehand."""
NUMBERS = 256
"""Numbers a position and layer that one side alone gives, at most but for long series."""
SEEN = 4
"""Examples on which it is seen how many there are, where so many would not be kept."""
PART = 8
"""The part of the memory allowed that what one side alone gives may take."""


@functools.cache
def reuse_memory() -> None:
    """Let the C library keep what is freed, once a process.  glibc gives the top of its heap back to the system whenever an array is freed, and the next one is made of pages to be cleared,
    until it has seen a block of its largest dynamic size (32 MiB) freed; no page of this one is touched."""
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


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
        reuse_memory()
        ntk = "ntk" in kinds
        self.plan, self.kinds, self.symmetric = plan, kinds, x2 is None
        self.first = read(plan, x1)
        self.second = self.first if x2 is None else read(plan, x2)
        self._tile = WIDE if x1.device.type == "cpu" and alone(plan) else TILE
        self._check(memory)
        sides: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self.diagonal: dict[str, Tensor] = {}
        if plan.own:
            one, self.diagonal = own(plan, self.first, ntk=ntk and x2 is None)
            sides = (one, one if x2 is None else own(plan, self.second, ntk=False)[0])
        self.propagation = Propagation(plan, self.first, self.second, ntk=ntk, own=sides, room=min(KEPT, memory // PART))

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
        working = HELD * size * max(each, min(self._tile // size, n1 * n2 * each))
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
        known = self.diagonal if self.symmetric else {}
        out = {name: values.new_empty(bottom - top, right - left, *values.shape[1:]) for name, values in known.items() if name in self.kinds}
        for here, there, within in self._tiles(range(top, bottom), range(left, right), halved=halved):
            if known and here == there and here.stop - here.start == 1:
                continue  # an example with itself, which is known
            made = self.propagation.tile(here, there, within=within)
            for name, part in (("nngp", made.covariance if "nngp" in self.kinds else None), ("ntk", made.ntk)):
                if part is None or name not in self.kinds:
                    continue
                if name not in out:
                    out[name] = part.new_empty(bottom - top, right - left, *part.shape[2:])
                out[name][here.start - top : here.stop - top, there.start - left : there.stop - left] = part
        for values in out.values() if halved else ():
            _mirror(values)
        for name, values in known.items():
            if name in out:
                same = torch.arange(max(top, left), min(bottom, right), device=values.device)
                out[name][same - top, same - left] = values[same]
        return tuple(out[name] for name in self.kinds)

    def _tiles(self, rows: range, columns: range, *, halved: bool) -> Iterator[tuple[slice, slice, tuple[slice, slice] | None]]:
        """All tiles of a block; where they are many, what one side alone gives is made first, for as many examples at a time as the room for it takes."""
        size, each = next(iter(self.first.values())).element_size(), self._each()
        count = max(1, self._tile // size // each)
        layers = sum(step.rule is not None for step in self.plan.steps)
        room = self.propagation.room // (8 * sum(part[0].numel() for part in self.first.values()) + NUMBERS * size * each * layers)
        if count >= MANY and room < 2 * len(columns):
            room = self.propagation.room // self.propagation.taken(slice(rows.start, min(rows.start + SEEN, rows.stop)))
        some = len(columns) if count < MANY or (halved and len(columns) <= room) else max(1, room // 2)
        for i in range(rows.start, rows.stop, some):
            for j in range(i if halved else columns.start, columns.stop, some):
                across, down = range(i, min(i + some, rows.stop)), range(j, min(j + some, columns.stop))
                pieces = list(_pieces(across, down, count, halved=halved and i == j))
                within = None
                if count >= MANY and len(pieces) >= SEVERAL:
                    within = slice(across.start, across.stop), slice(down.start, down.stop)
                    self.propagation.prepare(*within)
                yield from ((here, there, within) for here, there in pieces)


def _bounds(part: slice | None, length: int) -> tuple[int, int]:
    start, stop, step = (part or slice(None)).indices(length)
    if step != 1 or stop <= start:
        raise InvalidInput(f"A block is a contiguous range of at least one of the {length} examples, not {part}.")
    return start, stop


def _pieces(rows: range, columns: range, count: int, *, halved: bool) -> Iterator[tuple[slice, slice]]:
    """Tiles of at most `count` pairs, row by row; where `halved` those above the diagonal, in low strips, so that little below it is worked on.  Columns end at the same places in every row."""
    side = max(1, math.isqrt(count))
    high = max(1, side // STRIPS) if halved else max(1, count // min(side, len(columns)))
    wide = min(max(1, count // high), len(columns))
    wide = -(-len(columns) // -(-len(columns) // wide))
    for i in range(rows.start, rows.stop, high):
        j = i if halved else columns.start
        while j < columns.stop:
            end = columns.stop - max(0, columns.stop - j - (high if halved and j == i else 1)) // wide * wide  # so that what holds a piece of the diagonal holds all of its rows
            yield slice(i, min(i + high, rows.stop)), slice(j, end)
            j = end


def _mirror(out: Tensor) -> None:
    """Fill a symmetric block from what is above its diagonal, some rows at a time, so that the memory's pages are each turned to once."""
    for i in range(0, len(out), ROWS):
        rows, below = slice(i, i + ROWS), slice(i + ROWS, None)
        square = out[rows, rows]
        upper = torch.ones(square.shape[:2], dtype=torch.bool, device=out.device).triu_().reshape(*square.shape[:2], *(1,) * (out.ndim - 2))
        out[rows, rows] = torch.where(upper, square, square.transpose(0, 1))
        out[below, rows] = out[rows, below].transpose(0, 1)
