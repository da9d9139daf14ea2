"""What a convolution or a pooling reads along one dimension of positions, as a sum of shifted views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

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

    def summed(self, x: Tensor, dims: Sequence[int], rows: slice | None = None, *, by: float = 1.0) -> Tensor:
        """The sum over the places of the window, along every one of `dims` together, times `by`; `rows` are the positions wanted of the first of them.

        No padded copy is made but where the padding repeats data: what lies outside is left out of the sum.   Shapes: x any.   Cost: one pass a place.
        """
        wanted = [rows, *[None] * (len(dims) - 1)]
        if self.mode != "zeros" and (self.before or self.after):
            for dim, part in zip(dims, wanted, strict=True):
                x = self._padded(x, dim, part)
            return dataclasses.replace(self, before=0, after=0).summed(x, dims, by=by)
        shape = list(x.shape)
        lengths = tuple(shape[dim] for dim in dims)
        bounds = tuple((0, self.length(length)) if part is None else (part.start, part.stop) for length, part in zip(lengths, wanted, strict=True))
        for dim, (low, high) in zip(dims, bounds, strict=True):
            shape[dim] = high - low
        made: Tensor | None = None
        for whole, ranges in _places(self, lengths, bounds):
            view = x
            for dim, (_, start, count) in zip(dims, ranges, strict=True):
                view = view.narrow(dim, start, (count - 1) * self.stride + 1)
                view = view if self.stride == 1 else view[(slice(None),) * dim + (slice(None, None, self.stride),)]
            if made is None and whole:
                made = view.clone(memory_format=torch.contiguous_format) if by == 1 else torch.mul(view, by, out=x.new_empty(shape))
                continue
            made = into = x.new_zeros(shape) if made is None else made
            for dim, (at, _, count) in zip(dims, ranges, strict=True):
                into = into.narrow(dim, at, count)
            into.add_(view, alpha=by)
        return x.new_zeros(shape) if made is None else made

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
        length = x.shape[dim]
        at = torch.arange(-self.before, length + self.after, device=x.device)
        if self.mode == "circular":
            at = at % length
        elif self.mode == "replicate":
            at = at.clamp(0, length - 1)
        else:
            at = (length - 1 - (at.abs() - (length - 1)).abs()).abs() if length > 1 else at * 0
        if rows is not None:
            at = at[rows.start * self.stride : (rows.stop - 1) * self.stride + self.dilation * (self.size - 1) + 1]
        return x.index_select(dim, at)


@functools.lru_cache(maxsize=4096)
def _places(window: Window, lengths: tuple[int, ...], bounds: tuple[tuple[int, int], ...]) -> tuple[tuple[bool, tuple[tuple[int, int, int], ...]], ...]:
    """For every place of a window that reaches into the data: whether it does so everywhere, and along each dimension where its terms go, where they start, and how many there are."""
    found = []
    for place in sorted(range(window.size), key=lambda p: abs(2 * p - window.size + 1)):  # the middle first, which reaches everywhere if any does
        offset, ranges, whole = place * window.dilation - window.before, [], True
        for length, (low, high) in zip(lengths, bounds, strict=True):
            a, b = max(low, -(offset // window.stride)), min(high, (length - 1 - offset) // window.stride + 1)
            ranges.append((a - low, a * window.stride + offset, b - a))
            whole = whole and (a, b) == (low, high)
        if all(count > 0 for _, _, count in ranges):
            found.append((whole, tuple(ranges)))
    return tuple(found)
