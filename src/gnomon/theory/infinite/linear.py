"""Layers with weights: what a linear map of infinitely many channels makes of the covariances that it reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gnomon.theory.infinite.pair import GATHERED, Asked, Pair, apart, half_turn
from gnomon.theory.infinite.window import Window

KEPT = 2.0**-8
"""The share of what is taken away below which a difference of means is mended by differences."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear layer, or a convolution over `windows`, of weight variance C_W / fan_in and bias variance C_b: k -> C_W <k> + C_b, Theta -> C_W <Theta> + w <k> + b.

    < > is the mean over the places of the window, which both positions read at the same place; w and b are those of the parametrisation.
    Source: Lee et al. 2018, section 2 for k; Jacot et al. 2018, theorem 1 for Theta; Novak et al. 2019 and Arora et al. 2019 for convolutions.
    """

    windows: tuple[Window, ...]
    weight: float
    bias: float
    ntk_weight: float
    ntk_bias: float

    @property
    def size(self) -> int:
        """Places of the window."""
        return math.prod(window.size for window in self.windows)

    def summed(self, x: Pair, part: Tensor, asked: Asked) -> Tensor:
        """The sum over the places of its window of one of a pair's parts."""
        for axis, window in enumerate(self.windows):
            part = window.summed(part, (2 + axis, 2 + x.dimensions + axis) if x.full else (2 + axis,), asked.rows if axis == 0 else None)
        return part

    def __call__(self, given: list[Pair], asked: Asked) -> Pair:
        """The pair behind it."""
        x, windows, weight, bias = given[0], self.windows, self.weight, self.bias
        size = self.size
        each = weight * x.factor / size
        if x.gap is not None:
            x = dataclasses.replace(x, cov=None)
        if weight == 0 and x.gap is not None:  # the same number everywhere
            made = self([x.without_gap()], asked)
            return dataclasses.replace(made, cov=None, gap=torch.zeros_like(made.covariance))

        def total(part: Tensor) -> Tensor:
            return self.summed(x, part, asked)

        def own(side: int, q: Tensor) -> Side:
            (made,) = asked.once(side, "side", lambda: (_side(q, windows, each, bias),), 1)
            made = made if asked.rows is None or side == 1 else made[:, :, asked.rows]
            variance, deviation, lesser = made[:3].unbind()
            return Side(variance, deviation, lesser, made[3:])

        sides = own(0, x.first), own(1, x.second)
        if x.gap is None:
            made = Pair(sides[0].variance, sides[1].variance, _scaled(total(x.covariance), each, bool(windows)).add_(bias), None, None, None, x.full)
        else:
            made = _gaps(x, sides, windows, total, asked, each=each, bias=bias)
        if x.ntk is None:
            return made
        if weight == 0:
            return dataclasses.replace(made, ntk=_scaled(total(x.covariance), self.ntk_weight * x.factor / size, bool(windows)).add_(self.ntk_bias))
        rate = self.ntk_weight / weight
        rest = self.ntk_bias - rate * bias
        if not x.ntk.ndim:
            ntk = rate * made.covariance + weight * x.factor * x.ntk
        elif rate == 1:
            summed = total(x.ntk)
            ntk = torch.add(made.covariance, summed, alpha=each, out=summed if windows else None)
        else:
            ntk = _scaled(total(x.ntk), each, bool(windows)).add_(made.covariance, alpha=rate)
        return dataclasses.replace(made, ntk=ntk.add_(rest) if rest else ntk)


def _scaled(x: Tensor, by: float, own: bool) -> Tensor:
    """x times a number, in place where nobody else has it."""
    return x.mul_(by) if own else x * by


class Side(NamedTuple):
    """What one side alone gives a linear layer: variances, standard deviations, the latter over sqrt(2), and sine, cosine and -sine of half the angle whose tangent is the ratio of the bias's deviation
    to the rest's.

    Shapes: (n, *S), and (3, n, *S) for the last.
    """

    variance: Tensor
    deviation: Tensor
    lesser: Tensor
    turn: Tensor


def _side(q: Tensor, windows: Sequence[Window], each: float, bias: float) -> Tensor:
    for axis, window in enumerate(windows):
        q = window.summed(q, (1 + axis,))
    rest = each * q
    variance = rest + bias
    deviation = variance.sqrt()
    sine, cosine = half_turn(rest.sqrt_(), math.sqrt(bias), deviation)
    return torch.stack([variance, deviation, math.sqrt(0.5) * deviation, sine, cosine, -sine])


def _gaps(x: Pair, sides: tuple[Side, Side], windows: Sequence[Window], total: Callable[[Tensor], Tensor], asked: Asked, *, each: float, bias: float) -> Pair:
    """k, n - k and, where it is known, n + k behind a linear layer; `total` is the sum over the places of its windows.

    n - k grows, beside its own mean, by what is missing between the mean of the products of standard deviations and the product of their root mean squares.
    """
    assert x.gap is not None
    u, v = sides
    if math.prod(window.size for window in windows) > 1 and not x.full:
        return _patches(x, sides, windows, total, asked, each=each, bias=bias)
    one, two = x.spread(u.deviation, v.deviation)
    n, own = torch.mul(one, two), bool(windows)
    if math.prod(window.size for window in windows) > 1:
        a, b = (asked.once(side, "patches", lambda q=q: (_directions(q, windows, each, bias, double=True),), 1)[0] for side, q in enumerate((x.first, x.second)))
        a = a if asked.rows is None else a[:, :, asked.rows]
        more = apart(a.flatten(2).movedim(0, -1), b.flatten(2).movedim(0, -1), u.deviation.flatten(1), v.deviation.flatten(1), full=True)[0].reshape(n.shape)
    elif bias:
        more = _turned(x, u.turn, v.turn).square_()
    else:
        more = None
    means = [total(part) for part in (x.gap, x.total) if part is not None]
    room = [part if own else more if part is means[-1] else None for part in means]
    made = [_scaled(part, each, own) if more is None else torch.add(more, part, alpha=each, out=into) for part, into in zip(means, room, strict=True)]
    if len(made) > 1 and bias:
        made[1].add_(2 * bias)
    return Pair(u.variance, v.variance, n.sub_(made[0]), made[0], made[1] if len(made) > 1 else None, None, x.full)


def _turned(x: Pair, u: Tensor, v: Tensor) -> Tensor:
    """The sine of half the angle on one side times the cosine on the other, less the same the other way round.  Shapes: (3, n1, *S), (3, n2, *S)."""
    if not x.dimensions and u.device.type == "cpu" and (u.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"):
        return torch.mm(u[:2].T, v[1:])
    return torch.mul(*x.spread(u[0], v[1])).addcmul_(*x.spread(u[1], v[2]))


def _patches(x: Pair, sides: tuple[Side, Side], windows: Sequence[Window], total: Callable[[Tensor], Tensor], asked: Asked, *, each: float, bias: float) -> Pair:
    """The same for windows of several places at equal positions.

    With standard deviations a and a', n - k + (a - a')^2 / 2 = E (z - z')^2 / 2 is linear in the covariances: the mean of it is taken, and (a - a')^2 / 2 of the layer's own away.
    Where nearly all of it goes, between patches that are multiples of one another, directions of patches are compared instead, with the digits of their differences.
    """
    assert x.gap is not None
    u, v = sides
    one, two = x.spread(u.deviation, v.deviation)
    before, after = x.between, torch.sub(*x.spread(u.lesser, v.lesser)).square_()
    if before is None:
        roots = (asked.once(side, "roots", lambda q=q: (q.sqrt(),))[0] for side, q in enumerate((x.first, x.second)))
        before = torch.sub(*x.spread(*roots)).square_().mul_(0.5)
    made = []
    for part, constant in ((x.gap, 0.0), (x.total, 2 * bias)):
        if part is None:
            continue
        summed = total(torch.add(part, before))
        minus = torch.sub(after, summed, alpha=each, out=summed)
        minus = minus.sub_(constant) if constant else minus
        lost = torch.add(minus, after, alpha=2 * KEPT)
        if float(lost.max()) > 0:
            exact = total(part)
            a, b = (asked.once(side, "patches", lambda q=q: (_directions(q, windows, each, bias, double=False),), 1)[0] for side, q in enumerate((x.first, x.second)))
            for at in (lost > 0).nonzero().split(max(1, GATHERED // len(a))):
                i, j, *p = at.unbind(1)
                missing = (a[:, i, *p] - b[:, j, *p]).square().sum(0) / 2
                minus[i, j, *p] = -each * exact[i, j, *p] - one[i, 0, *p] * two[0, j, *p] * missing - constant
        made.append(minus)
    cov = torch.addcmul(made[0], one, two)
    gap, *rest = (part.neg_() for part in made)
    return Pair(u.variance, v.variance, cov, gap, rest[0] if rest else None, None, x.full, between=after)


def _directions(q: Tensor, windows: Sequence[Window], each: float, bias: float, *, double: bool) -> Tensor:
    """Unit vectors of the standard deviations in each window, and of the bias.  Shapes: (n, *S) -> (K, n, *S)."""
    views = [(each * q).sqrt()]
    for axis, window in enumerate(windows):
        views = [part for view in views for part in window.views(view, 1 + axis)]
    vectors = torch.stack([*views, torch.full_like(views[0], math.sqrt(bias))] if bias else views)
    vectors = vectors.double() if double else vectors
    return vectors / vectors.square().sum(0).sqrt_().clamp_min(torch.finfo(q.dtype).tiny)
