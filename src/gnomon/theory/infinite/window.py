"""What a convolution or a pooling reads along one dimension of positions, as a sum of shifted views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclasses.dataclass(frozen=True)
class Window:
    """Positions along one dimension that a convolution or a pooling reads: size, stride, padding before and after, dilation, and how it pads."""

    size: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    mode: str = "zeros"

    def length(self, length: int) -> int:
        """How many positions come out of so many."""
        return (length + self.before + self.after - self.dilation * (self.size - 1) - 1) // self.stride + 1

    def summed(self, x: Tensor, dims: Sequence[int], rows: slice | None = None) -> Tensor:
        """The sum over the places of the window, along every one of `dims` together; `rows` are the positions wanted of the first of them.

        No padded copy is made but where the padding repeats data: what lies outside is left out of the sum.   Shapes: x any.   Cost: one pass a place, but for the first.
        """
        wanted = [rows, *[None] * (len(dims) - 1)]
        if self.mode != "zeros" and (self.before or self.after):
            for dim, part in zip(dims, wanted, strict=True):
                x = self._padded(x, dim, part)
            return dataclasses.replace(self, before=0, after=0).summed(x, dims)
        shape = list(x.shape)
        lengths = tuple(shape[dim] for dim in dims)
        bounds = tuple((0, self.length(length)) if part is None else (part.start, part.stop) for length, part in zip(lengths, wanted, strict=True))
        for dim, (low, high) in zip(dims, bounds, strict=True):
            shape[dim] = high - low
        places = _places(self, lengths, bounds)
        if not places or not places[0].whole:
            made, rest = x.new_zeros(shape), places
        elif len(places) == 1:
            return self._read(x, dims, places[0]).clone(memory_format=torch.contiguous_format)
        else:  # the first two in one pass, and what the second does not reach
            made, rest = x.new_empty(shape), places[2:]
            first, into, edges = self._read(x, dims, places[0]), made, []
            for dim, (at, _, count) in zip(dims, places[1].ranges, strict=True):
                for start, stop in ((0, at), (at + count, into.shape[dim])):
                    if start < stop:
                        edges.append((into.narrow(dim, start, stop - start), first.narrow(dim, start, stop - start)))
                if count < into.shape[dim]:
                    first, into = first.narrow(dim, at, count), into.narrow(dim, at, count)
            torch.add(first, self._read(x, dims, places[1]), out=into)
            for edge, value in edges:
                edge.copy_(value)
        for place in rest:
            into = made
            for dim, (at, _, count) in zip(dims, place.ranges, strict=True):
                if count < into.shape[dim]:
                    into = into.narrow(dim, at, count)
            into.add_(self._read(x, dims, place))
        return made

    def _read(self, x: Tensor, dims: Sequence[int], place: Place) -> Tensor:
        """What one place of the window reads."""
        for dim, (_, start, count) in zip(dims, place.ranges, strict=True):
            x = x.narrow(dim, start, (count - 1) * self.stride + 1)
            x = x if self.stride == 1 else x[(slice(None),) * dim + (slice(None, None, self.stride),)]
        return x

    def views(self, x: Tensor, dim: int) -> list[Tensor]:
        """The shifted views of a tensor, one for each place in the window.  Shapes: x any."""
        out, x = self.length(x.shape[dim]), self._padded(x, dim)
        found = []
        for place in range(self.size):
            view = x.narrow(dim, place * self.dilation, (out - 1) * self.stride + 1)
            found.append(view if self.stride == 1 else view[(slice(None),) * dim + (slice(None, None, self.stride),)])
        return found

    def _padded(self, x: Tensor, dim: int, rows: slice | None = None) -> Tensor:
        """What the windows read, or what those of some rows read."""
        if not self.before and not self.after:
            return x
        if self.mode == "zeros":
            return pad(x, (0, 0) * (x.ndim - 1 - dim) + (self.before, self.after))
        at = self._inside(torch.arange(-self.before, x.shape[dim] + self.after, device=x.device), x.shape[dim])
        if rows is not None:
            at = at[rows.start * self.stride : (rows.stop - 1) * self.stride + self.dilation * (self.size - 1) + 1]
        return x.index_select(dim, at)

    def _inside(self, at: Tensor, length: int) -> Tensor:
        """The positions that stand for those outside of the data."""
        if self.mode == "circular":
            return at % length
        if self.mode == "replicate":
            return at.clamp(0, length - 1)
        return (length - 1 - (at.abs() - (length - 1)).abs()).abs() if length > 1 else at * 0

    def read(self, length: int, place: int) -> Tensor:
        """The position that each of the results reads at one place, -1 where it reads none."""
        at = torch.arange(self.length(length)) * self.stride + place * self.dilation - self.before
        return self._inside(at, length) if self.mode != "zeros" else at.masked_fill((at < 0) | (at >= length), -1)


class Place(NamedTuple):
    """One place of a window: whether it reaches into the data everywhere, and along each dimension where its terms go, where they start, and how many there are."""

    whole: bool
    ranges: tuple[tuple[int, int, int], ...]


@functools.lru_cache(maxsize=4096)
def _places(window: Window, lengths: tuple[int, ...], bounds: tuple[tuple[int, int], ...]) -> tuple[Place, ...]:
    """The places of a window that reach into the data, first those that do so everywhere."""
    found = []
    for place in range(window.size):
        offset, ranges, whole = place * window.dilation - window.before, [], True
        for length, (low, high) in zip(lengths, bounds, strict=True):
            a, b = max(low, -(offset // window.stride)), min(high, (length - 1 - offset) // window.stride + 1)
            ranges.append((a - low, a * window.stride + offset, b - a))
            whole = whole and (a, b) == (low, high)
        if all(count > 0 for _, _, count in ranges):
            found.append(Place(whole, tuple(ranges)))
    return tuple(sorted(found, key=lambda one: not one.whole))
