"""A kernel filled tile by tile, small enough that a tile's chain of operations stays in the caches."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

from gnomon.core.errors import InvalidInput, NotEnoughMemory
from gnomon.theory.infinite.pair import Pair, spread, with_gap
from gnomon.theory.infinite.plan import Plan

TILE = 1 << 19
"""Bytes of covariances worked on at a time."""
HELD = 16
"""Arrays of covariances that are held at once while a tile is worked on, at most."""
NEAR = 1e-3
"""1 - |correlation| below which n - k comes from differences of the examples."""


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
        self.plan, self.kinds, self.ntk, self.symmetric = plan, kinds, ntk, x2 is None
        self.first = _read(plan, x1)
        self.second = self.first if x2 is None else _read(plan, x2)
        self._check(memory)
        self.own: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self.diagonal: dict[str, Tensor] = {}
        if plan.own:
            one, self.diagonal = _own(plan, self.first, ntk=ntk and x2 is None)
            self.own = (one, one if x2 is None else _own(plan, self.second, ntk=False)[0])

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
        wide = right - left if (right - left) * each <= tile else max(1, tile // each)
        high = max(1, tile // (wide * each))
        out: dict[str, Tensor] = {}
        for i in range(top, bottom, high):
            for j in range(i if halved else left, right, wide):
                here, there = slice(i, min(i + high, bottom)), slice(j, min(j + wide, right))
                made = self.tile(here, there)
                for name, part in (("nngp", made.cov), ("ntk", made.ntk)):
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

    def tile(self, here: slice, there: slice, found: dict[str, Tensor] | None = None) -> Pair:
        """The output's pair for some rows and columns; one example with itself leaves the variances of poolings in `found`."""
        made: dict[str, Pair] = {}
        for step in self.plan.steps:
            if step.rule is None:
                a, b = self.first[step.name][here], self.second[step.name][there]
                tokens = self.plan.entries[step.name].kind == "embedding"
                made[step.name] = _tokens(a, b, step.full, self.ntk) if tokens else _covariances(a, b, step.full, step.gap, self.ntk)
                continue
            given = [made[name] if step.source_full else made[name].diagonal() for name in step.sources]
            if not (step.gap or step.kinked):
                given = [dataclasses.replace(one, gap=None, total=None) for one in given]
            known = self.own if step.pools and found is None else None
            result = step.rule(given, None if known is None else (known[0][step.name][here], known[1][step.name][there]))
            if step.pools and found is not None:
                result = _with_itself(result)
                found[step.name] = result.first
            made[step.name] = result if step.full else result.diagonal()
        return made[self.plan.output].diagonal()


def _bounds(part: slice | None, length: int) -> tuple[int, int]:
    start, stop, step = (part or slice(None)).indices(length)
    if step != 1 or stop <= start:
        raise InvalidInput(f"A block is a contiguous range of at least one of the {length} examples, not {part}.")
    return start, stop


def _place(out: Tensor, part: Tensor, i: int, j: int, *, mirrored: bool) -> None:
    """Write a tile into a block, and where the block is symmetric its mirror image, the upper half standing for both."""
    here, there = slice(i, i + part.shape[0]), slice(j, j + part.shape[1])
    out[here, there] = part
    if mirrored:
        out[there, here] = part.transpose(0, 1)
        if i == j:
            low, high = torch.tril_indices(len(part), len(part), -1, device=part.device) + i
            out[low, high] = out[high, low]


def _read(plan: Plan, x: Tensor) -> dict[str, Tensor]:
    """What every entry reads, channels last.  Shapes: (n, ...) -> (n, *positions, channels), or (n, *positions, 1) of whole numbers for an embedding."""
    found = {}
    for name, part in plan.inputs(x).items():
        entry = plan.entries[name]
        if entry.kind == "embedding":
            part = part.unsqueeze(-1)
        elif not entry.last:
            part = part.movedim(1, -1)
        if entry.kind != "embedding" and not part.is_floating_point():
            raise InvalidInput(f"A layer with weights reads numbers of type {part.dtype}; give float32 or float64.")
        found[name] = part.contiguous()
    return found


def _own(plan: Plan, side: dict[str, Tensor], *, ntk: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The variances of poolings, which take the covariances of an example with itself between all positions, and the kernels of each example with itself."""
    alone = Tiles.__new__(Tiles)
    alone.plan, alone.kinds, alone.ntk, alone.symmetric, alone.first, alone.second, alone.own, alone.diagonal = plan, (), ntk, True, side, side, None, {}
    found: dict[str, list[Tensor]] = {}
    made: dict[str, list[Tensor]] = {"nngp": [], "ntk": []}
    for i in range(len(next(iter(side.values())))):
        one: dict[str, Tensor] = {}
        result = alone.tile(slice(i, i + 1), slice(i, i + 1), one)
        for name, part in one.items():
            found.setdefault(name, []).append(part)
        made["nngp"].append(result.cov[0])
        made["ntk"].extend(() if result.ntk is None else (result.ntk[0],))
    return {name: torch.cat(parts) for name, parts in found.items()}, {name: torch.cat(parts) for name, parts in made.items() if parts}


def _with_itself(x: Pair) -> Pair:
    """The pair of one example with itself, its variances on the diagonal of its covariances."""
    shape, count = x.first.shape[1:], math.prod(x.first.shape[1:])
    q = x.cov.reshape(count, count).diagonal().reshape(1, *shape).clamp_min(0)
    same = torch.eye(count, dtype=torch.bool, device=q.device).reshape(x.cov.shape)
    return with_gap(dataclasses.replace(x, first=q, second=q), same)


def _tokens(a: Tensor, b: Tensor, full: bool, ntk: bool) -> Pair:
    """Covariances of one-hot tokens: 1 where they are the same.  Shapes: a (n1, *S, 1), b (n2, *S, 1)."""
    a, b = a[..., 0], b[..., 0]
    ones = torch.ones(a.shape, dtype=torch.get_default_dtype(), device=a.device), torch.ones(b.shape, dtype=torch.get_default_dtype(), device=b.device)
    one, two = spread(a, b, full=full)
    cov = (one == two).to(ones[0])
    return Pair(*ones, cov, 1 - cov, None, torch.zeros_like(cov) if ntk else None, full)


def _covariances(a: Tensor, b: Tensor, full: bool, gap: bool, ntk: bool) -> Pair:
    """Mean products of features, n - k and n + k among them from differences of directions where correlations are near 1 or -1.

    With directions u = x/|x|:  n - k = n |u - u'|^2 / 2,  n + k = n |u + u'|^2 / 2.
    Shapes: a (n1, *S, C), b (n2, *S, C).
    """
    shape, channels, (n1, n2) = a.shape[1:-1], a.shape[-1], (len(a), len(b))
    a, b = a.reshape(n1, -1, channels), b.reshape(n2, -1, channels)
    count = a.shape[1]
    if full:
        cov = (a.reshape(-1, channels) @ b.reshape(-1, channels).T / channels).reshape(n1, count, n2, count).transpose(1, 2).contiguous()
    elif count == 1:
        cov = (a[:, 0] @ b[:, 0].T / channels)[..., None]
    else:
        cov = (torch.einsum("ipc,jpc->pij", a, b) / channels).permute(1, 2, 0).contiguous()
    first, second = a.square().mean(-1), b.square().mean(-1)
    out = Pair(first, second, cov, None, None, torch.zeros_like(cov) if ntk else None, full=False)
    if gap:
        total_gap = _gaps(a, b, out, full)
        out = dataclasses.replace(out, gap=total_gap[0], total=total_gap[1])
    doubled = (*shape, *shape) if full else shape
    return Pair(first.reshape(n1, *shape), second.reshape(n2, *shape), *out.each(lambda part: part.reshape(n1, n2, *doubled)), full)


def _gaps(a: Tensor, b: Tensor, x: Pair, full: bool) -> tuple[Tensor, Tensor | None]:
    """n - k and, where some k is negative, n + k.  Shapes: a (n1, P, C), b (n2, P, C), cov (n1, n2, P) or (n1, n2, P, P)."""
    cov, dims = x.cov, (slice(None), None, slice(None), None) if full else (slice(None), None)
    other = (None, slice(None), None) if full else (None,)
    roots = x.first.sqrt(), x.second.sqrt()
    n = roots[0][dims] * roots[1][other]
    some = float(cov.min()) < 0
    if a.shape[-1] == 1:  # one channel: every correlation is 1 or -1
        product = a[..., 0][dims] * b[..., 0][other]
        size = product.abs()
        return size - product, size + product if some else None
    u = a / (roots[0] * math.sqrt(a.shape[-1])).clamp_min(torch.finfo(a.dtype).tiny)[..., None]
    v = b / (roots[1] * math.sqrt(b.shape[-1])).clamp_min(torch.finfo(b.dtype).tiny)[..., None]

    def refined(value: Tensor, sign: int) -> Tensor:
        near = value < NEAR * n
        for at in near.nonzero().split(max(1, TILE // (8 * a.shape[-1]))) if bool(near.any()) else ():
            i, j, p, q = at[:, 0], at[:, 1], at[:, 2], at[:, -1]
            square = (u[i, p] + sign * v[j, q]).square().sum(-1) / 2
            value[tuple(at.T)] = square * roots[0][i, p] * roots[1][j, q]
        return value.clamp_min_(0)

    return refined(n - cov, -1), refined(n + cov, 1) if some else None
