"""Moments of two correlated Gaussians beyond a threshold each: what kinks of activations do to covariances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

NODES = 8
"""Positive nodes of a Gauss-Legendre rule for an even integrand: its error is below 2e-13."""
FAR = 40.0
"""Standard deviations beyond which nothing is left in float64."""
_RULE = np.polynomial.legendre.leggauss(2 * NODES)
_AT, _WEIGHT = _RULE[0][NODES:].tolist(), _RULE[1][NODES:].tolist()


class Angles(NamedTuple):
    """The correlation c, 1 - c and 1 + c to their own digits, and sqrt(1 - c^2)."""

    cosine: Float64[Tensor, "n"]
    near: Float64[Tensor, "n"]
    far: Float64[Tensor, "n"]
    sine: Float64[Tensor, "n"]

    def mirrored(self) -> Angles:
        """Those of -c."""
        return Angles(-self.cosine, self.far, self.near, self.sine)


class Side(NamedTuple):
    """One argument x beyond t: its standard deviation d, u = t/d (FAR at most), the density phi(u) and the probability Q(u)."""

    threshold: float
    deviation: Float64[Tensor, "*n"]
    place: Float64[Tensor, "*n"]
    density: Float64[Tensor, "*n"]
    beyond: Float64[Tensor, "*n"]

    @classmethod
    def of(cls, threshold: float, q: Float64[Tensor, "*n"]) -> Side:
        """That of a variance q and a threshold that is at least 0."""
        deviation = q.sqrt()
        u = (threshold / deviation.clamp_min(torch.finfo(q.dtype).tiny)).clamp_(max=FAR)
        return cls(threshold, deviation, u, _normal(u), _tail(u))

    def part(self, some: slice) -> Side:
        """That of some elements."""
        return Side(self.threshold, self.deviation[some], self.place[some], self.density[some], self.beyond[some])


def rows(one: Side, two: Side, at: Angles, tops: tuple[int, int]) -> Iterator[list[Float64[Tensor, "n"]]]:
    """J_mn = E (x - t)_+^m (y - r)_+^n / (m! n!), row by row: n = 0 .. tops[1] for m = 0 .. tops[0].  t, r >= 0.

    With u = t/d, v = r/e of the standard deviations d and e, the correlation c and s^2 = 1 - c^2:
    J_00 = Q(u)/2 + Q(v)/2 - T(u, a) - T(v, b) by Owen's function, a = (v - c u)/(u s), b = (u - c v)/(v s); by parts
    (m + 1) J_{m+1,n} = -t J_mn + d^2 J_{m-1,n} + c d e J_{m,n-1},   d J_{-1,n} = phi(u) E[(y - r)_+^n | x = t] / n!,   J_{m,-1} likewise.

    Error: 4e-13 and rounding, relative to d^m e^n.   Cost: 16 exponentials (none where t = r = 0) and 4 operations for each m and n.
    Source: Owen 1956 (J_00); the recurrence is derived here (Gaussian integration by parts).
    """
    d, e, (m_top, n_top) = one.deviation, two.deviation, tops
    if one.threshold == 0 and two.threshold == 0:
        corner, density = torch.atan2(at.far.sqrt(), at.near.sqrt()).div_(math.pi), at.sine / (2 * math.pi)  # half of pi - theta over pi
        ahead, aside, first, second = None, None, one.density / 2, two.density / 2
    else:
        u, v, least = one.place, two.place, at.sine.clamp_min(torch.finfo(d.dtype).tiny)
        apart = v - u
        ahead, aside = torch.addcmul(apart, u, at.near), torch.addcmul(-apart, v, at.near)
        w, z = (ahead / least).clamp_(-FAR, FAR), (aside / least).clamp_(-FAR, FAR)
        past, over = _tail(w), _tail(z)
        corner = ((one.beyond + two.beyond) / 2).sub_(_owen(u, w, one.beyond, past)).sub_(_owen(v, z, two.beyond, over)).clamp_min_(0)
        density, first, second = at.sine * one.density * _normal(w), one.density * past, two.density * over
        ahead, aside = ahead.mul_(e), aside.mul_(d)
    along, down = _edge(ahead, first, density, at.sine * e, e, n_top), _edge(aside, second, density, at.sine * d, d, m_top)
    k, square, other, mixed, turned = at.cosine * d * e, d**2, e**2, at.cosine * e, at.cosine * d
    row = [corner]
    for n in range(n_top):
        made = mixed * along[n] if n else torch.mul(mixed, along[0])
        made = made.addcmul_(other, row[n - 1]) if n else made.addcmul_(e, down[0])
        row.append(made.add_(row[n], alpha=-two.threshold).div_(n + 1))
    yield row
    before: list[Tensor] = []
    for m in range(m_top):
        after = []
        for n in range(n_top + 1):
            made = square * before[n] if m else d * along[n]
            made = made.addcmul_(k, row[n - 1]) if n else made.addcmul_(turned, down[m])
            if one.threshold:
                made.add_(row[n], alpha=-one.threshold)
            after.append(made.div_(m + 1))
        before, row = row, after
        yield row


def _edge(ahead: Tensor | None, first: Tensor, density: Tensor, spread: Tensor, deviation: Tensor, top: int) -> list[Tensor]:
    """phi(u) E[(y - r)_+^n | x = t] / n! for n = 0 .. top: with a = r - E[y | x = t] and the deviation s e of y then, n b_n = s^2 e^2 b_{n-2} - a b_{n-1}, s e^2 times the density for n = 1."""
    found, square = [first], spread**2
    for n in range(1, top + 1):
        made = density * deviation if n == 1 else square * found[n - 2]
        found.append((made if ahead is None else made.addcmul_(ahead, found[n - 1], value=-1)).div_(n))
    return found


def _normal(u: Tensor) -> Tensor:
    return torch.exp(u.square().mul_(-0.5)).mul_(1 / math.sqrt(2 * math.pi))


def _tail(u: Tensor) -> Tensor:
    return torch.special.erfc(u * math.sqrt(0.5)).mul_(0.5)


def _owen(u: Tensor, w: Tensor, beyond: Tensor, past: Tensor) -> Tensor:
    """T(u, w/u) = (1/2 pi) int_0^{w/u} exp(-u^2 (1 + x^2)/2) / (1 + x^2) dx for u >= 0, from Q(u) and Q(w).

    Where |w| > u by T(u, a) + T(u a, 1/a) = Q(u)/2 + Q(u a)/2 - Q(u) Q(u a), so that the range is within 1.
    """
    size = w.abs()
    most, least = torch.maximum(u, size), torch.minimum(u, size)
    slope = least / most.clamp_min(torch.finfo(u.dtype).tiny)
    square, rate, made, term, below = slope**2, least.square_(), torch.zeros_like(slope), torch.empty_like(slope), torch.empty_like(slope)
    for at, weight in zip(_AT, _WEIGHT, strict=True):
        torch.mul(rate, -(at**2) / 2, out=term).exp_()
        made.addcdiv_(term, torch.mul(square, at**2, out=below).add_(1), value=weight)
    made.mul_(slope).mul_(most.square_().mul_(-0.5).exp_()).mul_(0.5 / math.pi)
    outer = torch.where(w < 0, 1 - past, past)  # Q(|w|)
    whole = (beyond + outer).mul_(0.5).addcmul_(beyond, outer, value=-1)
    return torch.where(size > u, whole.sub_(made), made).mul_(torch.sign(w))
