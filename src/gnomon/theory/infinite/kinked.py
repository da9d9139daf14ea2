"""The dual of an activation with kinks: what its kinks do in closed form, what is left of it by a Hermite series that falls fast."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.theory.activations import derivative as slope_of
from gnomon.theory.infinite.corner import FAR, Angles, rows
from gnomon.theory.infinite.duals import Arguments, Image
from gnomon.theory.infinite.kinks import Kink, Rest
from gnomon.theory.infinite.series import EIGHT, Moments, too_short

TERMS = (8, 24, 48, 96, 192, 384)
"""Lengths of the series that are tried in turn; what they leave out is read from as many terms again."""
GOAL = 1e-11
"""What a series may leave out, relative to the root mean square, where it can."""
ROUNDED = 1e-12
"""What rounding of the kinks' part may amount to, relative to the mean square, before fewer derivatives are taken out."""
PIECE = 1 << 13
"""Covariances worked on at a time."""


@dataclasses.dataclass(frozen=True)
class Kinked:
    """An activation s = p + r: p of its kinks, sum_j sum_m d_jm w_j^m / m! where w_j = +-(z - t_j) > 0, and r, whose first derivatives have no jumps.

    E s s = E p p + sum_m (a_m a'_m - p_m p'_m) c^m with the Hermite coefficients a_m of s and p_m of p.  E p p is a sum over pairs of kinks of corner moments; the coefficients of r fall as
    m^{-(M + 2)/2} or faster where the jumps of M derivatives are taken out, and p_m as m^{-3/4} at least, so that few terms are enough.  The derivative's dual is the same with d_{j,m+1} and r';
    jumps of s itself have no part in it, as in autograd.

    Error: GOAL of the geometric mean of the variances where the series is long enough for it, else `tolerance` at most: the terms left out are at most what the next ones of twice the
    length add up to.
    Cost: 20 exponentials a pair of kinks, 4 operations a pair of derivatives, and 3 a term of the series.
    Raises: OutOfScope where the longest series leaves more than `tolerance`, with the number.
    Source: derived here.
    """

    function: Callable[[Any], Any]
    kinks: tuple[Kink, ...]
    name: str
    tolerance: float
    kinked: bool = True

    def variance(self, q: Tensor) -> Tensor:
        """E s(z)^2: the dual at a correlation of 1."""
        made = self.image(Arguments(q, q, q, torch.zeros_like(q), 2 * q, None, wanted=False)).cov
        assert made is not None
        return made.clamp_min(0)

    def image(self, at: Arguments) -> Image:
        """The sums above."""
        gap, total = at.sides()
        n = at.norm.double()
        dead = n == 0
        safe = n.clamp_min(torch.finfo(n.dtype).tiny)
        near, far = ((part / safe).masked_fill(dead, 1).clamp_(0, 2) for part in (gap, total))
        c = (far - near) / 2
        orders = [int(at.once(side, "orders", lambda q=q: (torch.tensor(self._orders(q)),), None)[0]) for side, q in enumerate((at.first, at.second))]
        cov, slope = self._kinks(at, near, far, orders, slope=at.tangent is not None)
        cov = cov.masked_fill_(dead, 0).add_(self._series(at, c, orders, derivative=False)).to(gap)
        gap_made = None
        if at.wanted and at.gap is not None:
            (one,), (two,) = (at.once(side, "own", lambda q=q: (self.variance(q),)) for side, q in enumerate((at.first, at.second)))
            gap_made = (one.sqrt() * two.sqrt() - cov).clamp_min_(0).masked_fill_((at.gap == 0) & (at.first == at.second), 0)
        tangent = at.times(lambda: slope.masked_fill_(dead, 0).add_(self._series(at, c, orders, derivative=True)).to(gap))
        return Image(cov, gap_made, tangent)

    def _orders(self, q: Tensor) -> int:
        """How many jumps are taken out: fewer where rounding of high powers would be seen."""
        top = max(len(kink.jumps) for kink in self.kinks)
        z = float(q.max()) ** 0.5
        size = max(float(self.function(torch.tensor([z], dtype=torch.float64))) ** 2, float(self.function(torch.tensor([-z], dtype=torch.float64))) ** 2)
        for orders in range(top, 2, -1):
            last = max(abs(kink.jumps[m]) ** 2 * _power(z, m) for kink in self.kinks for m in range(min(orders, len(kink.jumps))))
            if last * torch.finfo(torch.float64).eps <= ROUNDED * size:
                return orders
        return 2

    def _kinks(self, at: Arguments, near: Tensor, far: Tensor, orders: list[int], *, slope: bool) -> tuple[Tensor, Tensor]:
        """E p p and E p' p'."""
        one, two = (q.double().sqrt().expand(near.shape).reshape(-1) for q in (at.first, at.second))
        cov, tangent = near.new_zeros(near.numel()), near.new_zeros(near.numel() if slope else 0)
        flat_near, flat_far = near.reshape(-1), far.reshape(-1)
        for start in range(0, near.numel(), PIECE):
            part = slice(start, start + PIECE)
            a, b = flat_near[part], flat_far[part]
            angles = Angles((b - a) / 2, a, b, (a * b).sqrt())
            for first in self.kinks:
                for second in self.kinks:
                    _add(first.first(orders[0]), second.first(orders[1]), one[part], two[part], angles, cov[part], tangent[part] if slope else None)
        return cov.reshape(near.shape), tangent.reshape(near.shape) if slope else tangent

    def _series(self, at: Arguments, c: Tensor, orders: list[int], *, derivative: bool) -> Tensor:
        """sum_m (a_m a'_m - p_m p'_m) c^m by Horner's rule."""
        what = "derivative" if derivative else "value"
        one = at.once(0, what, lambda: self._coefficients(at.first, orders[0], derivative), 1)
        two = at.once(1, what, lambda: self._coefficients(at.second, orders[1], derivative), 2)
        most = max(len(one[0]), len(two[0]))
        if len(one[0]) < most:
            one = at.once(0, f"{what} {most}", lambda: self._coefficients(at.first, orders[0], derivative, most), 1)
        if len(two[0]) < most:
            two = at.once(1, f"{what} {most}", lambda: self._coefficients(at.second, orders[1], derivative, most), 2)
        out = torch.zeros_like(c)
        for m in range(most - 1, -1, -1):
            out.mul_(c).addcmul_(one[0][m], two[0][m]).addcmul_(one[1][m], two[1][m], value=-1)
        return out

    def _coefficients(self, q: Tensor, orders: int, derivative: bool, least: int = 0) -> tuple[Tensor, Tensor]:
        """a_m and p_m for as many terms as are needed, `least` at least.  Shapes: q any -> (terms, *q) each."""
        kinks = tuple(kink.first(orders) for kink in self.kinks)
        flat = q.reshape(-1).double()
        moments, left = Moments(Rest(self.function, kinks), flat, derivative), math.inf
        for terms in TERMS:
            if terms < least:
                continue
            rest = moments.coefficients(2 * terms).T
            known = sum((_coefficients(kink, flat, 2 * terms, derivative) for kink in kinks), torch.zeros_like(rest))
            whole = rest + known
            beyond = rest.abs() * (rest.abs() + 2 * known.abs()) / whole.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny)
            after = beyond.flip(0).cumsum(0).flip(0).amax(1)  # of the worst variance
            left = float(after[terms])
            if left <= (GOAL if terms < TERMS[-1] else self.tolerance):
                short = max(least, -(-(int((after > max(GOAL, left)).sum()) + 1) // EIGHT) * EIGHT)
                return tuple(self._at_zero(part[:short], flat, kind, derivative).reshape(-1, *q.shape) for kind, part in enumerate((whole, known)))  # type: ignore[return-value]
        raise too_short(self.name, TERMS[-1], left, self.tolerance, derivative=derivative)

    def _at_zero(self, found: Float64[Tensor, "terms n"], q: Float64[Tensor, "n"], kind: int, derivative: bool) -> Float64[Tensor, "terms n"]:
        """Where nothing arrives s is s(0), and its derivative autograd's there."""
        found = found.masked_fill(q == 0, 0)
        origin = torch.zeros(1, dtype=torch.float64)
        value = float((slope_of(self.function) if derivative else self.function)(origin))
        if kind == 0:
            found[0].masked_fill_(q == 0, value)
        return found


def _power(z: float, m: int) -> float:
    """E w^2 for the part w_+^m / m! at 0, z the standard deviation."""
    return z ** (2 * m) * math.prod(range(1, 2 * m, 2)) / 2 / math.factorial(m) ** 2


def _add(first: Kink, second: Kink, one: Tensor, two: Tensor, angles: Angles, cov: Tensor, slope: Tensor | None) -> None:
    """Add what a pair of kinks gives, in place."""
    at = angles if first.up == second.up else angles.mirrored()
    origin = first.at == 0 and second.at == 0
    u, v = (None if origin else (abs(kink.at) / side.clamp_min(torch.finfo(side.dtype).tiny)).clamp_(max=FAR) for kink, side in ((first, one), (second, two)))
    powers = [[torch.ones_like(one)], [torch.ones_like(two)]]
    for known, side, kink in zip(powers, (one, two), (first, second), strict=True):
        for _ in kink.jumps[1:]:
            known.append(known[-1] * side)
    for m, row in enumerate(rows(u, v, at, (len(first.jumps) - 1, len(second.jumps) - 1))):
        if first.jumps[m]:
            cov.addcmul_(powers[0][m], _sum(second.jumps, powers[1], row), value=first.jumps[m])
        if slope is not None and m + 1 < len(first.jumps) and first.jumps[m + 1]:
            slope.addcmul_(powers[0][m], _sum(second.jumps[1:], powers[1], row), value=first.jumps[m + 1] * (1 if first.up == second.up else -1))


def _sum(jumps: tuple[float, ...], powers: list[Tensor], row: list[Tensor]) -> Tensor:
    out = torch.zeros_like(row[0])
    for jump, power, value in zip(jumps, powers, row, strict=False):
        if jump:
            out.addcmul_(power, value, value=jump)
    return out


def _coefficients(kink: Kink, q: Float64[Tensor, "n"], terms: int, derivative: bool) -> Float64[Tensor, "terms n"]:
    """Hermite coefficients of one kink's part, or of its derivative.

    Those of the step (u - t)_+^0 are Q(t) and phi(t) h_{m-1}(t)/sqrt m; each order more moves them by one: e^l_m = e^{l-1}_{m-1}/sqrt m, and e^l_0 = E (u - t)_+^l / l!.
    """
    jumps = kink.jumps[1:] if derivative else kink.jumps
    side = q.sqrt()
    t = (abs(kink.at) / side.clamp_min(torch.finfo(q.dtype).tiny)).clamp_(max=FAR) if kink.at else torch.zeros_like(q)
    density = torch.exp(t.square() / -2) / math.sqrt(2 * math.pi)
    at = [density, t * density]
    for m in range(1, terms - 1):
        at.append((t * at[m] - math.sqrt(m) * at[m - 1]) / math.sqrt(m + 1))
    base, root = torch.stack(at)[:terms], torch.arange(1, terms, dtype=q.dtype, device=q.device).sqrt()[:, None]
    before, mean = density, torch.special.erfc(t * math.sqrt(0.5)) / 2
    out, scale = torch.zeros_like(base), torch.ones_like(q)
    for order, jump in enumerate(jumps):
        base = torch.cat([mean[None], base[:-1] / root])
        if jump:
            out.addcmul_(base, scale, value=jump)
        before, mean = mean, (before - t * mean) / (order + 1)
        scale = scale * side
    if not kink.up:
        out[1::2].neg_()
        out = -out if derivative else out
    return out
