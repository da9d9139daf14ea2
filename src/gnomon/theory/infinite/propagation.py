"""From the data to the output's covariances, for some pairs of examples: layer by layer, and where all positions meet all positions slab by slab."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.theory.infinite.fused import Rectified, joined
from gnomon.theory.infinite.pair import Asked, Pair, apart, finite, spread, with_gap
from gnomon.theory.infinite.recipe import Plan, Step

TILE, WIDE = 3 << 18, 3 << 20
"""Bytes of covariances worked on at a time: by chains of operations, and where every layer is gone through once."""
SLAB = 3 << 19
"""Bytes of covariances of one layer worked on at a time where they are more than that for one pair of examples."""
KEPT = 1 << 29
"""Bytes kept of what one side alone gives, at most."""

Variances = dict[str, tuple[Tensor, Tensor]]


class Propagation:
    """The plan on two sides of data as its entries read them; `own` are the variances of poolings for both sides, where something downstream needs them; `room` are the bytes kept of what one side alone gives."""

    def __init__(
        self, plan: Plan, first: dict[str, Tensor], second: dict[str, Tensor], *, ntk: bool, own: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None, room: int = KEPT
    ) -> None:
        self.room = room
        self.plan, self.first, self.second, self.ntk, self.own = plan, first, second, ntk, own
        self._groups = joined(plan).groups()
        self._kept: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._bytes = 0
        self._prepared: set[tuple[int, int]] = set()

    def taken(self, part: slice) -> int:
        """Bytes of what one side alone gives, an example, seen on some of the first side.  Cost: a pair for each of them."""
        before = self._bytes
        self.tile(part, slice(part.start, part.start + 1))
        return max(1, (self._bytes - before) // (part.stop - part.start))

    def prepare(self, here: slice, there: slice) -> None:
        """Make what one side alone gives for some rows and columns, which tiles `within` them take their parts of.  Cost: a pair for each row and each column."""
        if self.first is not self.second:
            self.tile(here, slice(there.start, there.start + 1))
            self.tile(slice(here.start, here.start + 1), there)
            return
        for part in (here, there):
            if (part.start, part.stop) not in self._prepared:
                self.tile(part, slice(part.start, part.start + 1))
                self.tile(slice(part.start, part.start + 1), part)
                self._prepared.add((part.start, part.stop))

    def tile(self, here: slice, there: slice, found: dict[str, Tensor] | None = None, *, within: tuple[slice, slice] | None = None) -> Pair:
        """The output's pair for some rows and columns; one example with itself leaves the variances of poolings in `found`."""
        made: dict[str, Pair] = {}
        left = {step.name: step.readers for step in self.plan.steps}
        for group in self._groups:
            head, last = group[0], group[-1]
            asked = functools.partial(self._asked, (here, there), within or (here, there), found)
            if head.rule is None:
                made[head.name] = self._entry(head, here, there, asked(head))
                continue
            given = [made[name] if head.source_full else made[name].diagonal() for name in head.sources]
            for name in head.sources:
                left[name] -= 1
                if not left[name]:
                    del made[name]
            result = self._slabs(group, given, asked) if head.reads != "all" and head.full else self._run(group, given, [asked(step) for step in group])
            if last.nonlinear and within is None:  # else seen to when it was prepared
                finite(last.name, result.first.sum(), result.second.sum())
            if head.pools and found is not None:
                result = _with_itself(result, gap=head.gap)
                found[head.name] = result.first
            made[last.name] = result if last.full else result.diagonal()
        out = made[self.plan.output].diagonal().without_gap().resolved()
        return out if self.plan.readout is None else dataclasses.replace(out, cov=torch.full_like(out.covariance, self.plan.readout))

    def _entry(self, step: Step, here: slice, there: slice, asked: Asked) -> Pair:
        a, b = self.first[step.name][here], self.second[step.name][there]
        tokens = self.plan.entries[step.name].kind == "embedding"
        return _tokens(a, b, step.full, self.ntk) if tokens else _covariances(a, b, step.full, asked, self.ntk)

    def _asked(self, parts: tuple[slice, slice], within: tuple[slice, slice], found: dict[str, Tensor] | None, step: Step, rows: slice | None = None) -> Asked:
        """What a step is asked for; `rows` of the first side are all that it sees."""
        known = None if self.own is None or not step.pools or found is not None else (self.own[0][step.name][parts[0]], self.own[1][step.name][parts[1]])

        def once(side: int, what: str, make: Callable[[], tuple[Tensor, ...]], dim: int | None = 0) -> tuple[Tensor, ...]:
            seen = rows.start if rows is not None and side == 0 else None
            part, whole, rest = parts[side], within[side], (step.name, what, dim, seen, side if self.first is not self.second else None)
            if (*rest, whole.start, whole.stop) in self._kept:
                value = self._kept[*rest, whole.start, whole.stop]
                return value if dim is None or part == whole else tuple(one.narrow(dim, part.start - whole.start, part.stop - part.start) for one in value)
            key = (*rest, part.start, part.stop)
            if key not in self._kept:
                value = make()
                size = sum(one.numel() * one.element_size() for one in value)
                if self._bytes + size > self.room:
                    self._kept.clear()
                    self._prepared.clear()
                    self._bytes = 0
                self._kept[key], self._bytes = value, self._bytes + size
            return self._kept[key]

        return Asked(step.gap, known, None, once)

    def _run(self, group: list[Step], given: list[Pair], asked: list[Asked]) -> Pair:
        for step, what in zip(group, asked, strict=True):
            assert step.rule is not None
            given = [step.rule([_as_asked(step, one) for one in given], what)]
        return given[0]

    def _slabs(self, group: list[Step], given: list[Pair], asked: Callable[..., Asked]) -> Pair:
        """The group on a few positions of the first side at a time, so that its chain of operations stays in the caches."""
        head, x = group[0], given[0]
        length = head.positions[0]
        row = len(x.first) * len(x.second) * math.prod(head.positions) * math.prod(head.positions[1:])
        height = max(1, SLAB // (row * x.first.element_size()))
        if height >= length or (len(group) == 1 and isinstance(head.rule, Rectified) and head.rule.covers(x)):  # it is gone through row by row as it is
            return self._run(group, given, [asked(step) for step in group])
        out: Pair | None = None
        for start in range(0, length, height):
            rows = slice(start, min(start + height, length))
            near = head.reads == "near"
            parts = given if near else [one.narrowed(rows) for one in given]
            first = asked(head)._replace(rows=rows) if near else asked(head, rows)
            into = (None, None) if out is None else (_rows(out.gap, rows), _rows(out.ntk, rows))
            whats = [first, *(asked(step, rows) for step in group[1:])]
            part = self._run(group, parts, [*whats[:-1], whats[-1]._replace(into=into)])
            out = _blank(part, length) if out is None else out
            for name in ("cov", "gap", "total", "ntk"):
                whole, piece = getattr(out, name), getattr(part, name)
                if piece is not None and piece.ndim and all(piece is not written for written in into):
                    whole[:, :, rows] = piece
            out.first[:, rows] = part.first
        assert out is not None
        return out


def _as_asked(step: Step, x: Pair) -> Pair:
    """What a step's rule can take."""
    x = x if step.gap or step.kinked else x.without_gap()
    return x if step.folds else x.resolved()


def _rows(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None or not x.ndim else x[:, :, rows]


def _blank(x: Pair, length: int) -> Pair:
    """Room for all positions of the first side."""
    parts = x.each(lambda part: part.new_empty(*part.shape[:2], length, *part.shape[3:]))
    return Pair(x.first.new_empty(len(x.first), length, *x.first.shape[2:]), x.second, *parts, x.full, x.factor)


def read(plan: Plan, x: Tensor) -> dict[str, Tensor]:
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


def own(plan: Plan, side: dict[str, Tensor], *, ntk: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The variances of poolings, which take the covariances of an example with itself between all positions, and the kernels of each example with itself."""
    alone = Propagation(plan, side, side, ntk=ntk)
    found: dict[str, list[Tensor]] = {}
    made: dict[str, list[Tensor]] = {"nngp": [], "ntk": []}
    for i in range(len(next(iter(side.values())))):
        one: dict[str, Tensor] = {}
        result = alone.tile(slice(i, i + 1), slice(i, i + 1), one)
        for name, part in one.items():
            found.setdefault(name, []).append(part)
        made["nngp"].append(result.covariance[0])
        made["ntk"].extend(() if result.ntk is None else (result.ntk[0],))
    return {name: torch.cat(parts) for name, parts in found.items()}, {name: torch.cat(parts) for name, parts in made.items() if parts}


def _with_itself(x: Pair, *, gap: bool) -> Pair:
    """The pair of one example with itself, its variances on the diagonal of its covariances."""
    shape, count, cov = x.first.shape[1:], math.prod(x.first.shape[1:]), x.covariance
    q = cov.reshape(count, count).diagonal().reshape(1, *shape).clamp_min(0)
    x = dataclasses.replace(x, first=q, second=q)
    return with_gap(x, torch.eye(count, dtype=torch.bool, device=q.device).reshape(cov.shape)) if gap else x


def _tokens(a: Tensor, b: Tensor, full: bool, ntk: bool) -> Pair:
    """Covariances of one-hot tokens: 1 where they are the same.  Shapes: a (n1, *S, 1), b (n2, *S, 1)."""
    a, b = a[..., 0], b[..., 0]
    ones = torch.ones(a.shape, dtype=torch.get_default_dtype(), device=a.device), torch.ones(b.shape, dtype=torch.get_default_dtype(), device=b.device)
    one, two = spread(a, b, full=full)
    cov = (one == two).to(ones[0])
    return Pair(*ones, cov, 1 - cov, None, cov.new_zeros(()) if ntk else None, full)


def _covariances(a: Tensor, b: Tensor, full: bool, asked: Asked, ntk: bool) -> Pair:
    """Mean products of features, or where asked for n - k (and n + k where some number is negative) from the distance of directions.

    With directions u = x/|x|:  n - k = n |u - u'|^2 / 2,  n + k = n |u + u'|^2 / 2.
    Shapes: a (n1, *S, C), b (n2, *S, C).
    """
    shape, channels, (n1, n2) = a.shape[1:-1], a.shape[-1], (len(a), len(b))
    (first,), (second,) = (asked.once(side, "variance", lambda x=x: (x.square().mean(-1),)) for side, x in enumerate((a, b)))
    nothing = first.new_zeros(()) if ntk else None
    out = Pair(first, second, None, None, None, nothing, full)
    doubled = (n1, n2, *shape, *shape) if full else (n1, n2, *shape)
    if asked.gap:
        some = any(float(asked.once(side, "least", lambda x=x: (x.min(),), None)[0]) < 0 for side, x in enumerate((a, b)))
        (u,), (v,) = (asked.once(side, "directions", lambda x=x: (_directions(x),)) for side, x in enumerate((a, b)))
        near, far = apart(u, v, *(q.sqrt().reshape(len(q), -1) for q in (first, second)), full=full, total=some)
        return dataclasses.replace(out, gap=near.reshape(doubled), total=None if far is None else far.reshape(doubled))
    a, b = a.reshape(n1, -1, channels), b.reshape(n2, -1, channels)
    if full:
        cov = (a.reshape(-1, channels) @ b.reshape(-1, channels).T / channels).reshape(n1, a.shape[1], n2, a.shape[1]).transpose(1, 2).contiguous()
    elif a.shape[1] == 1:
        cov = a[:, 0] @ b[:, 0].T / channels
    else:
        cov = (torch.einsum("ipc,jpc->pij", a, b) / channels).permute(1, 2, 0).contiguous()
    return dataclasses.replace(out, cov=cov.reshape(doubled))


def _directions(x: Tensor) -> Tensor:
    """Unit vectors.  Shapes: (n, *S, C) -> (n, P, C), in float64."""
    x = x.reshape(len(x), -1, x.shape[-1])
    return (x / x.double().square().sum(-1, keepdim=True).sqrt().clamp_min(torch.finfo(x.dtype).tiny)).contiguous()
