"""The covariance of two sets of examples inside an infinitely wide network, and what linear maps make of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gnomon.core.errors import OutOfScope
from gnomon.theory.infinite.compiled import array, shared
from gnomon.theory.infinite.window import Window

FEW = 4
"""Components of two vectors up to which their distance is a sum of squared differences also where a matrix product could give it."""
NEAR = 1e-5
"""Half the squared distance of unit vectors below which a product's rounding is mended by differences."""
FAR = -0.75
"""The correlation above which n + k is as well known from n - k."""
ROUNDING = 1e-15
"""Half the squared distance of unit vectors that a product in float64 cannot tell from 0."""
GATHERED = 1 << 16
"""Differences that are gathered at a time."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Covariances of one layer's channels between two sets of examples, at equal positions or (`full`) between all positions.

    `first` and `second` are the variances and n the product of the two standard deviations, `cov` the covariance k, `ntk` the tangent kernel (a number where it is the same everywhere).
    `gap` is n - k, carried in place of k where an activation with a kink follows: it vanishes at a correlation of 1, where k cannot tell it from 0; `total` is n + k,
    carried beside it where correlations may be near -1; `between` is (sqrt q1 - sqrt q2)^2 / 2 where it happens to be known.  All of them and the variances are still to be multiplied by `factor`.

    Shapes: first (n1, *S), second (n2, *S); the others (n1, n2, *S), or (n1, n2, *S, *S) where `full`.   Units: those of the squared activations.
    """

    first: Float[Tensor, "n1 ..."]
    second: Float[Tensor, "n2 ..."]
    cov: Float[Tensor, "n1 n2 ..."] | None
    gap: Float[Tensor, "n1 n2 ..."] | None
    total: Float[Tensor, "n1 n2 ..."] | None
    ntk: Float[Tensor, "..."] | None
    full: bool
    factor: float = 1.0
    between: Float[Tensor, "n1 n2 ..."] | None = None

    @property
    def dimensions(self) -> int:
        """How many dimensions of positions there are."""
        return self.first.ndim - 1

    @property
    def deviations(self) -> tuple[Tensor, Tensor]:
        """The standard deviations, shaped to meet the covariances."""
        return self.spread(self.first.sqrt(), self.second.sqrt())

    @property
    def covariance(self) -> Tensor:
        """k, from n - k where that is what is known."""
        if self.cov is not None:
            return self.cov
        assert self.gap is not None
        if self.total is not None:
            return torch.sub(self.total, self.gap).mul_(0.5)
        return torch.addcmul(self.gap, *self.deviations, value=-1).neg_()

    def spread(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of each example and position, shaped to meet the covariances.  Shapes: those of the fields."""
        return spread(first, second, full=self.full)

    def each(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """A linear function of cov, gap, total and ntk."""
        cov, gap, total = (None if part is None else function(part) for part in (self.cov, self.gap, self.total))
        return cov, gap, total, self.ntk if self.ntk is None or self.ntk.ndim == 0 else function(self.ntk)

    def scaled(self, by: float) -> Pair:
        """What it is after a multiplication of the layer by a constant whose square is `by`."""
        return dataclasses.replace(self, factor=by * self.factor)

    def resolved(self) -> Pair:
        """The same, multiplied by its factor."""
        by = self.factor
        if by == 1:
            return self
        made = Pair(by * self.first, by * self.second, *self.each(lambda x: by * x), self.full)
        return made if made.ntk is None or made.ntk.ndim else dataclasses.replace(made, ntk=by * made.ntk)

    def without_gap(self) -> Pair:
        """The same with k alone."""
        return self if self.gap is None else dataclasses.replace(self, cov=self.covariance, gap=None, total=None)

    def diagonal(self) -> Pair:
        """Only equal positions."""
        if not self.full:
            return self
        shape, count = self.first.shape[1:], math.prod(self.first.shape[1:])
        parts = self.each(lambda x: x.reshape(*x.shape[:2], count, count).diagonal(dim1=2, dim2=3).reshape(*x.shape[:2], *shape))
        return Pair(self.first, self.second, *parts, full=False, factor=self.factor)

    def reshaped(self, positions: tuple[int, ...]) -> Pair:
        """The same positions in another shape."""
        doubled = positions * 2 if self.full else positions
        parts = self.each(lambda x: x.reshape(*x.shape[:2], *doubled))
        return Pair(self.first.reshape(-1, *positions), self.second.reshape(-1, *positions), *parts, self.full, self.factor)

    def narrowed(self, rows: slice) -> Pair:
        """Some positions of the first side, along their first dimension.  Shapes: as if `full`."""
        return Pair(self.first[:, rows], self.second, *self.each(lambda x: x[:, :, rows]), self.full, self.factor)


class Asked(NamedTuple):
    """What a rule is asked for beside its pairs: n - k too (`gap`), the variances of a pooling's result, some `rows` of the first side; `once` keeps what one side alone gives; `into` is where n - k and Theta may be written."""

    gap: bool
    variances: tuple[Tensor, Tensor] | None
    rows: slice | None
    once: Once
    into: tuple[Tensor | None, Tensor | None] = (None, None)


Once = Callable[..., tuple[Tensor, ...]]
"""(side, name, make, dim = 0) -> what `make` gives, kept; `dim` is the examples' dimension of it, None where it stands for all of them."""


def spread(first: Tensor, second: Tensor, *, full: bool) -> tuple[Tensor, Tensor]:
    """Numbers of each example and position, shaped to meet those of pairs.  Shapes: (n1, *S), (n2, *S) -> (n1, 1, *S), (1, n2, *S), with dimensions of 1 between where `full`."""
    one, two = first.unsqueeze(1), second.unsqueeze(0)
    if full:
        ones = (1,) * (first.ndim - 1)
        one, two = one.reshape(*one.shape, *ones), two.reshape(*two.shape[:2], *ones, *two.shape[2:])
    return one, two


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two independent layers: k, n - k and n + k add up, but for the difference of the new n and the old ones."""
    first, second = a.first + b.first, a.second + b.second
    ntk = a.ntk + b.ntk if a.ntk is not None and b.ntk is not None else a.ntk if b.ntk is None else b.ntk
    if a.gap is None or b.gap is None:
        return Pair(first, second, a.covariance + b.covariance, None, None, ntk, a.full)
    (a1, a2), (b1, b2) = a.deviations, b.deviations
    more = excess((a1, b1), (a2, b2))
    total = None
    if a.total is not None or b.total is not None:
        parts = [torch.addcmul(-x.gap, s1, s2, value=2) if x.total is None and x.gap is not None else x.total for x, s1, s2 in ((a, a1, a2), (b, b1, b2))]
        total = parts[0] + parts[1] + more  # type: ignore[operator]
    return Pair(first, second, None, more.add_(a.gap).add_(b.gap), total, ntk, a.full)


def multiply(a: Pair, b: Pair) -> Pair:
    """The product of two independent layers: second moments multiply, and Theta = Theta_a k_b + k_a Theta_b.

    n - k = (n_a - k_a) n_b + k_a (n_b - k_b) for k_a >= 0, and (n_a + k_a) n_b - k_a (n_b + k_b) below, sums of positive terms; n + k likewise.   Source: derived here.
    """
    first, second, k_a, k_b = a.first * b.first, a.second * b.second, a.covariance, b.covariance
    ntk = None if a.ntk is None or b.ntk is None else a.ntk * k_b + k_a * b.ntk
    if a.gap is None or b.gap is None:
        return Pair(first, second, k_a * k_b, None, None, ntk, a.full)
    (a1, a2), (b1, b2) = a.deviations, b.deviations
    n_a, n_b = a1 * a2, b1 * b2
    far_a, far_b = (n + k if x.total is None else x.total for x, n, k in ((a, n_a, k_a), (b, n_b, k_b)))
    gap = torch.where(k_a >= 0, a.gap * n_b + k_a * b.gap, far_a * n_b - k_a * far_b)
    total = torch.where(k_a >= 0, a.gap * n_b + k_a * far_b, far_a * n_b - k_a * b.gap)
    return Pair(first, second, None, gap, total, ntk, a.full)


def attended(query: Pair, key: Pair, value: Pair, size: float, asked: Asked) -> Pair:
    """Linear attention sum_a s (q_p k_a) v_a: k_pq = c Q_pq sum_ab K_ab V_ab with c = s^2 times the channels of a key, and Theta by the product rule.

    Source: Hron et al. 2020 (linear attention with scores scaled by the square root of their channels, where c = 1); the tangent kernel is derived here.
    """
    over = tuple(range(2, 2 + 2 * query.dimensions))
    q, k, v = query.covariance, key.covariance, value.covariance
    mass = size * (k * v).sum(over, keepdim=True)
    cov, ntk = q * mass, None
    if query.ntk is not None and key.ntk is not None and value.ntk is not None:
        ntk = query.ntk * mass + q * (size * (key.ntk * v + k * value.ntk).sum(over, keepdim=True))
    return _mixed(cov, ntk, query.first.shape[1:], asked)


def excess(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> Tensor:
    """sqrt(a^2 + b^2) sqrt(c^2 + d^2) - a c - b d of numbers a, c >= 0 without cancellation: with (a, b) = r (cos t, sin t) it is 2 r r' sin^2((t - t')/2)."""
    (p, q), (v, w) = half_turn(*one, torch.hypot(*one)), half_turn(*two, torch.hypot(*two))
    return torch.mul(p, w).addcmul_(q, v, value=-1).square_()


def half_turn(a: Tensor, b: Tensor | float, length: Tensor) -> tuple[Tensor, Tensor]:
    """2^{1/4} sqrt(r) times sine and cosine of half the angle of (a, b), r its length: with c^2 = (a + r) / sqrt(2) they are b / (sqrt(2) c) and c."""
    cosine = torch.add(a, length).mul_(math.sqrt(0.5)).sqrt_()
    return b * math.sqrt(0.5) / cosine.clamp_min(torch.finfo(a.dtype).tiny), cosine


def apart(u: Tensor, v: Tensor, one: Tensor, two: Tensor, *, full: bool, total: bool = False) -> tuple[Tensor, Tensor | None]:
    """n |u - v|^2 / 2 of unit vectors, n the products of the deviations `one` and `two`, and where `total` n |u + v|^2 / 2 if some are nearly opposite.

    Shapes: u (n1, P, K), v (n2, P, K), one (n1, P), two (n2, P) -> (n1, n2, P), or v (n2, Q, K), two (n2, Q) -> (n1, n2, P, Q) where `full`.
    Error: rounding of each difference; with many components, where a product takes the place of differences, ROUNDING n, in float64 mended by differences where it is small (on a GPU not where `full`).
    """
    (n1, count, components), (n2, other, _) = u.shape, v.shape
    shape = (n1, n2, count, other) if full else (n1, n2, count)
    if components <= FEW or (count > 1 and not full):
        u, v = u.movedim(-1, 0), v.movedim(-1, 0)
        if u.device.type == "cpu":
            return _differences(u, v, one, two, -1, full=full).reshape(shape), _differences(u, v, one, two, 1, full=full).reshape(shape) if total else None
        n = torch.mul(*spread(one, two, full=full))
        return n * _distance(u, v, full, -1).to(one), n * _distance(u, v, full, 1).to(one) if total else None
    a, b = u.double().flatten(0, 1), v.double().flatten(0, 1)
    product = torch.mm(a, b.T)
    opposite = total and float(product.min()) < FAR
    make = _product if product.device.type == "cpu" else _mended
    return make(product, a, b, one, two, -1).reshape(shape), make(product, a, b, one, two, 1).reshape(shape) if opposite else None


def _differences(u: Tensor, v: Tensor, one: Tensor, two: Tensor, sign: int, *, full: bool) -> Tensor:
    """n |u +- v|^2 / 2 from every component's difference.  Shapes: u (K, n1, P), v (K, n2, Q), one (n1, P), two (n2, Q) -> (n1, n2, P, Q) or (n1, n2, 1, P)."""
    from gnomon.theory.infinite.loops import differences  # numba takes a while to be imported

    (n1, count), (n2, other) = one.shape, two.shape
    made = one.new_empty(n1, n2, count if full else 1, other)
    if count == other == 1:  # long rows
        v, two, rows = v.movedim(2, 1), two.T, (n1, 1, n2)
    else:
        rows = (n1 * n2, made.shape[2], other)
    numbers = [array(x, tuple(x.shape)) for x in (u.to(one), v.to(one), one, two)]
    kind = numbers[0].dtype.type
    work = (*numbers, array(made, rows), kind(sign), kind(0.5), not full and count > 1)
    shared(lambda first, last: differences(first, last, *work), rows[0] * rows[1], rows[2])
    return made


def _product(product: Tensor, a: Tensor, b: Tensor, one: Tensor, two: Tensor, sign: int) -> Tensor:
    """n (1 +- u v), mended.  Shapes: (n1 P, n2 Q), (n1 P, K), (n2 Q, K), (n1, P), (n2, Q) -> (n1, n2, P, Q)."""
    from gnomon.theory.infinite.loops import distances  # numba takes a while to be imported

    two = two if one.shape[1] > 1 else two.reshape(1, -1)  # long rows
    made = one.new_empty(len(one), len(two), one.shape[1], two.shape[1])
    work = (*(array(x, tuple(x.shape)) for x in (product, a, b, one, two, made)), float(sign), NEAR if one.dtype == torch.float64 else 0.0, ROUNDING)
    shared(lambda first, last: distances(first, last, *work), len(product), product.shape[1])
    return made


def _mended(product: Tensor, a: Tensor, b: Tensor, one: Tensor, two: Tensor, sign: int) -> Tensor:
    """The same by torch's operations, mended where there is one position."""
    square = torch.add(product.new_ones(()), product, alpha=sign)
    if one.shape[1] > 1 or one.dtype != torch.float64:
        torch.nn.functional.threshold(square, ROUNDING, 0.0, inplace=True)
    else:
        for at in (square < NEAR).nonzero().split(max(1, GATHERED // a.shape[1])):
            i, j = at.unbind(1)
            square[i, j] = (a[i] + sign * b[j]).square().sum(1) / 2
    made = square.to(one).reshape(len(one), one.shape[1], len(two), two.shape[1]).transpose(1, 2).contiguous()
    return made.mul_(one[:, None, :, None]).mul_(two[None, :, None, :])


def _distance(one: Tensor, two: Tensor, full: bool, sign: int) -> Tensor:
    made, difference = torch.add(*spread(one[0], two[0], full=full), alpha=sign).square_(), None
    for a, b in zip(one[1:], two[1:], strict=True):
        difference = torch.add(*spread(a, b, full=full), alpha=sign, out=difference)
        made.addcmul_(difference, difference)
    return made.mul_(0.5)


def pooled(x: Pair, windows: Sequence[Window | None], asked: Asked) -> Pair:
    """The mean over the windows of an average pooling, which the two positions read each at its own place; None leaves a dimension.

    `asked.variances` are those of the result for the two sets of examples, needed where something downstream asks for them; NaN stand where they are not known.
    """
    d, x = x.dimensions, x.without_gap()
    cov, _, _, ntk = x.each(lambda part: averaged(part, windows, 2, 2 + d))
    assert cov is not None
    return _mixed(cov, ntk, cov.shape[2 : 2 + d], asked)


def averaged(x: Tensor, windows: Sequence[Window | None], *starts: int) -> Tensor:
    """The mean over windows, along the dimensions of positions that begin at each of `starts`."""
    for axis, window in enumerate(windows):
        for dim in [start + axis for start in starts] if window is not None else ():
            assert window is not None
            whole = window.size == x.shape[dim] and not (window.before or window.after)
            x = x.mean(dim, keepdim=True) if whole else window.summed(x, (dim,)).div_(window.size)
    return x


def squeezed(x: Pair, axes: list[int]) -> Pair:
    """Without positions of size 1 along some dimensions."""
    d = x.dimensions
    keep = [n for axis, n in enumerate(x.first.shape[1:]) if axis not in axes]
    doubled = keep * 2 if x.full else keep
    assert d == len(keep) + len(axes)
    return Pair(x.first.reshape(-1, *keep), x.second.reshape(-1, *keep), *x.each(lambda part: part.reshape(*part.shape[:2], *doubled)), x.full)


def _mixed(cov: Tensor, ntk: Tensor | None, shape: Sequence[int], asked: Asked) -> Pair:
    """A pair whose variances are told from outside, NaN where they are not known."""
    if asked.variances is None:
        first, second = (cov.new_full((n, *shape), math.nan) for n in cov.shape[:2])
        return Pair(first, second, cov, None, None, ntk, full=True)
    first, second = (v.reshape(-1, *shape) for v in asked.variances)
    made = Pair(first, second, cov, None, None, ntk, full=True)
    return with_gap(made) if asked.gap else made


def with_gap(x: Pair, same: Tensor | None = None) -> Pair:
    """A pair with n - k and n + k from subtraction, 0 where `same` says that it is."""
    one, two = x.deviations
    gap = torch.addcmul(-x.covariance, one, two).clamp_min_(0)
    if same is not None:
        gap = gap.masked_fill(same, 0)
    return dataclasses.replace(x, cov=None, gap=gap, total=torch.addcmul(x.covariance, one, two).clamp_min_(0))


def concatenated(parts: Sequence[tuple[Pair, int]]) -> Pair:
    """Branches side by side, with so many channels each: the mean over channels.  Shapes: equal positions."""
    total = sum(count for _, count in parts)
    out = parts[0][0].scaled(parts[0][1] / total).resolved()
    for part, count in parts[1:]:
        out = add(out, part.scaled(count / total).resolved())
    return out


def flattened(x: Pair) -> Pair:
    """All positions become features: the mean over equal positions."""
    x = x.diagonal()
    if not x.first.shape[1:]:
        return x
    first, second = x.first.flatten(1).mean(1), x.second.flatten(1).mean(1)
    cov, gap, total, ntk = x.each(lambda part: part.flatten(2).mean(2))
    made = Pair(first, second, cov, gap, total, ntk, full=False)
    if gap is None:
        return made
    u, v = (nn.functional.normalize(q.double().flatten(1).sqrt(), dim=1)[:, None] for q in (x.first, x.second))
    more = apart(u, v, first.sqrt()[:, None], second.sqrt()[:, None], full=False)[0][..., 0]
    return dataclasses.replace(made, gap=gap + more, total=None if total is None else total + more)


def finite(name: str, first: Tensor, second: Tensor) -> None:
    """Check the sums of the variances, which bound the covariances.  Raises: OutOfScope where the numbers of this dtype do not hold them."""
    if not math.isfinite(float(first) + float(second)):
        wider = "" if first.dtype == torch.float64 else "float64, or "
        raise OutOfScope(
            f"the kernel is no longer finite at layer {name!r}: its variance grows beyond the numbers of {first.dtype}; use {wider}a weight variance nearer to criticality"
        )
