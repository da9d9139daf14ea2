"""Mean and size of per-example gradients in one pass, without making the gradients."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from gnomon.core.subject import Subject
from gnomon.numerics import gram
from gnomon.numerics.derivatives import accumulator
from gnomon.numerics.layers import Outer
from gnomon.numerics.measuring import measuring
from gnomon.numerics.per_example import Feature, plan_of


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Per-example gradients g_i and their mean g.  Shapes: `mean_square` |g|^2, `squares` |g_i|^2 (N,), and for the `rows` (m,) asked for `along` g_i . g (m,), float64."""

    mean_square: float
    squares: Float64[Tensor, "N"]
    rows: Int64[Tensor, "m"]
    along: Float64[Tensor, "m"]

    @property
    def variance(self) -> float:
        """tr Sigma with divisor N - 1."""
        n = len(self.squares)
        return (float(self.squares.sum()) - n * self.mean_square) / (n - 1)


def cheap(subject: Subject) -> bool:
    """Whether `gradient_moments` costs little more than a gradient: every parameter acts by outer products, over few positions.

    Norms from T positions take T^2 (l + r) multiplications for a weight of l x r, its gradient 2 T l r.
    """
    plan = plan_of(subject)
    weights = [p for p in plan.direct if p.size > max(p.shape, default=0)]
    if plan.slow or any(p.outer is None for p in weights):
        return False
    sizes = [p.outer for p in weights if p.outer is not None]
    return sum(t * t * (left + right) for t, left, right in sizes) <= sum(t * left * right for t, left, right in sizes) / 2


def gradient_moments(subject: Subject, rows: Int64[Tensor, "m"] | None = None, *, split: str = "train", memory: int = gram.MEMORY) -> Moments:
    """|g|^2, |g_i|^2 and, for some of the examples, g_i . g of the per-example gradients of `gradient_gram`.

    A layer's gradients are kept as outer products: their sum is one matrix product of all positions, and g_i . g = sum_t left_t^T M right_t with the mean M another.

    Shapes: rows (m,), increasing -> (), (N,), (m,).   Units: loss^2 / parameter^2.   Error: rounding.
    Assumes: examples do not act on each other (eval mode).
    Cost: one gradient, m / N of a half more; a second pass where the factors of those do not fit into `memory` bytes.   Raises: OutOfScope where there are no test data.
    Source: Goodfellow 2015.
    """
    data, plan = subject.examples(split), plan_of(subject)
    rows = torch.arange(0) if rows is None else rows
    total, formed = gram._total(subject, split), gram._choose(plan, 1, gram.MEMORY)
    shapes = {p.name: p.shape for p in plan.direct}
    keep = len(rows) * gram._size(plan, formed, subject) * gram._bytes(subject) <= memory
    sums: dict[str, Tensor] = {}
    kept: list[dict[str, Feature]] = []
    squares: list[Tensor] = []
    wide, start = accumulator(subject.dtype, subject.device), 0
    with measuring(subject):
        for found in gram._chunks(subject, plan, data, total, formed):
            squares.append(_squares(found))
            for key, feature in found.items():
                part = _summed(feature, shapes.get(key, subject.state[key].shape))
                # one chunk is taken as it is; the sum of several is carried in float64
                sums[key] = part if key not in sums else sums[key].to(wide).add_(part)
            if keep and len(rows):
                kept.append(_some(found, rows, start))
            start += len(squares[-1])
        sizes = torch.cat(squares)
        if not bool(torch.isfinite(sizes).all()):
            raise gram._not_finite(int((~torch.isfinite(sizes)).nonzero()[0]))
        part_of = data.select(rows) if len(rows) and not keep else None
        again = gram._chunks(subject, plan, part_of, total, formed, len(data)) if part_of is not None else ()
        products = [_along(found, sums) for found in (*kept, *again)]
    along = torch.cat(products) / len(data) if products else torch.zeros(0, dtype=torch.float64)
    square = sum(float(torch.linalg.vector_norm(value, dtype=wide)) ** 2 for value in sums.values())
    return Moments(square / len(data) ** 2, sizes, rows, along)


def _squares(found: dict[str, Feature]) -> Float64[Tensor, "n"]:
    """|g_i|^2 of a chunk.  The gradient of a bias over one position is the left factor of its weight's: its norms are taken once."""
    known: dict[tuple[int, int], Tensor] = {}

    def of(x: Tensor) -> Float64[Tensor, "n"]:
        key = x.data_ptr(), x.numel()
        if key not in known:
            known[key] = gram.squares_of(x.flatten(1))
        return known[key]

    total = torch.zeros(len(next(iter(found.values()))), dtype=torch.float64)
    for feature in found.values():
        if isinstance(feature, Tensor):
            total += of(feature)
        elif feature.left.ndim == 3 and feature.right.shape[1] == 1:
            total += of(feature.left) * of(feature.right)
        else:
            total += feature.squares()
    return total


def _some(found: dict[str, Feature], rows: Tensor, start: int) -> dict[str, Feature]:
    """The features of those of the examples that lie in this chunk."""
    n = len(next(iter(found.values())))
    here = rows[(rows >= start) & (rows < start + n)] - start
    if len(here) == n:
        return found
    return {
        key: Outer(feature.left.index_select(0, here), feature.right.index_select(0, here)) if isinstance(feature, Outer) else feature.index_select(0, here)
        for key, feature in found.items()
    }


def _summed(feature: Feature, shape: torch.Size) -> Tensor:
    """The sum over examples, as the matrix of its outer products or flat."""
    if not isinstance(feature, Outer):
        return feature.sum(0)
    right = feature.right.flatten(0, 1)
    if feature.left.ndim == 3:
        return feature.left.flatten(0, 1).T @ right
    return right.new_zeros(shape[0], right.shape[-1]).index_add_(0, feature.left.flatten(), right)


def _along(found: dict[str, Feature], mean: dict[str, Tensor]) -> Float64[Tensor, "n"]:
    """g_i . g of some examples, for the mean or a multiple of it."""
    parts = []
    for key, feature in found.items():
        if not isinstance(feature, Outer):
            parts.append(feature @ mean[key].to(feature.dtype))
        elif feature.left.ndim == 3:
            parts.append(((feature.right @ mean[key].to(feature.right.dtype).T) * feature.left).sum((1, 2)))
        else:
            parts.append((mean[key].to(feature.right.dtype)[feature.left] * feature.right).sum((1, 2)))
    return torch.stack([part.double().cpu() for part in parts]).sum(0)
