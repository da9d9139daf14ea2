"""Moments of two correlated Gaussians beyond a threshold each: what kinks of activations do to covariances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

NODES = 10
"""Positive nodes of a Gauss-Legendre rule for an even integrand: its error is below 1e-15."""
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


def rows(u: Float64[Tensor, "n"] | None, v: Float64[Tensor, "n"] | None, at: Angles, tops: tuple[int, int]) -> Iterator[list[Float64[Tensor, "n"]]]:
    """J_mn = E (x - u)_+^m (y - v)_+^n / (m! n!) of unit variances, row by row: n = 0 .. tops[1] for m = 0 .. tops[0].  u, v >= 0; None for both is 0.

    J_00 = Q(u)/2 + Q(v)/2 - T(u, a) - T(v, b) by Owen's function, a = (v - c u)/(u s), b = (u - c v)/(v s); by parts
    (m + 1) J_{m+1,n} = -u J_mn + J_{m-1,n} + c J_{m,n-1},   J_{-1,n} = phi(u) E[(y - v)_+^n | x = u] / n!,   J_{m,-1} likewise.

    Error: rounding, relative to 1.   Cost: 20 exponentials and (m + 1)(n + 1) x 4 operations an element.
    Source: Owen 1956 (J_00); the recurrence is derived here (Gaussian integration by parts).
    """
    if u is None or v is None:
        angle = torch.atan2(at.far.sqrt(), at.near.sqrt())  # half of pi - theta
        corner, density = angle / math.pi, at.sine / (2 * math.pi)
        flat = torch.full_like(corner, 0.5 / math.sqrt(2 * math.pi))
        one, two = _edge(None, flat, density, at.sine, tops[1]), _edge(None, flat, density, at.sine, tops[0])
    else:
        least = at.sine.clamp_min(torch.finfo(u.dtype).tiny)
        ahead, aside = (v - u) + u * at.near, (u - v) + v * at.near
        w, z = (ahead / least).clamp_(-FAR, FAR), (aside / least).clamp_(-FAR, FAR)
        corner = ((_tail(u) + _tail(v)) / 2 - _owen(u, w) - _owen(v, z)).clamp_min_(0)
        density = at.sine * _normal(u) * _normal(w)
        one, two = _edge(ahead, _normal(u) * _tail(w), density, at.sine, tops[1]), _edge(aside, _normal(v) * _tail(z), density, at.sine, tops[0])
    before, row = one, [corner]
    for n in range(tops[1]):
        made = at.cosine * before[n] + (row[n - 1] if n else two[0])
        row.append((made if v is None else made.addcmul_(v, row[n], value=-1)).div_(n + 1))
    yield row
    for m in range(tops[0]):
        after = []
        for n in range(tops[1] + 1):
            made = torch.addcmul(before[n], at.cosine, row[n - 1] if n else two[m])
            after.append((made if u is None else made.addcmul_(u, row[n], value=-1)).div_(m + 1))
        before, row = row, after
        yield row


def _edge(ahead: Tensor | None, first: Tensor, density: Tensor, sine: Tensor, top: int) -> list[Tensor]:
    """phi(u) E[(y - v)_+^n | x = u] / n! for n = 0 .. top: with d = v - c u, n b_n = s^2 b_{n-2} - d b_{n-1}, where s^2 b_{-1} is s^2 times the density at (u, v)."""
    found, square = [first], sine**2
    for n in range(1, top + 1):
        made = density.clone() if n == 1 else square * found[n - 2]
        found.append((made if ahead is None else made.addcmul_(ahead, found[n - 1], value=-1)).div_(n))
    return found


def _normal(u: Tensor) -> Tensor:
    return torch.exp(u.square() / -2) / math.sqrt(2 * math.pi)


def _tail(u: Tensor) -> Tensor:
    return torch.special.erfc(u * math.sqrt(0.5)) / 2


def _owen(u: Tensor, w: Tensor) -> Tensor:
    """T(u, w/u) = (1/2 pi) int_0^{w/u} exp(-u^2 (1 + x^2)/2) / (1 + x^2) dx for u >= 0.

    Where |w| > u by T(u, a) + T(u a, 1/a) = Q(u)/2 + Q(u a)/2 - Q(u) Q(u a), so that the range is within 1.
    """
    size = w.abs()
    most, least = torch.maximum(u, size), torch.minimum(u, size)
    slope = least / most.clamp_min(torch.finfo(u.dtype).tiny)
    square, rate, made = slope**2, least**2, torch.zeros_like(slope)
    for at, weight in zip(_AT, _WEIGHT, strict=True):
        made.addcdiv_(torch.mul(rate, -(at**2) / 2).exp_(), torch.add(square.new_ones(()), square, alpha=at**2), value=weight)
    made.mul_(slope).mul_(torch.exp(most.square() / -2)).div_(2 * math.pi)
    one, two = _tail(u), _tail(size)
    return torch.where(size > u, (one + two) / 2 - one * two - made, made) * torch.sign(w)
