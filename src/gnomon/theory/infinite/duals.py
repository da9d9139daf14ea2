"""What activations do to Gaussian covariances: duals, closed forms that keep their digits at correlations of 1 and -1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

SMALL = 0.5
"""Angles below which a power series stands in for a difference that cancels."""
TERMS = 11
"""Terms of that series."""


class Image(NamedTuple):
    """E s(x) s(y) or, where asked for, n - k of it (one of them may be None), the tangent E s'(x) s'(y) Theta (None where nobody asked), and n + k of it where it is known better than by a sum.

    All are still to be multiplied by `factor`, by which then the variances are multiplied too.
    """

    cov: Tensor | None
    gap: Tensor | None
    tangent: Tensor | None
    total: Tensor | None = None
    factor: float = 1.0


class Arguments(NamedTuple):
    """Variances q1 and q2, the covariance k or n - k (n the product of the standard deviations), n + k or None, the tangent kernel Theta where it is asked for, whether the image's n - k is, what keeps what one side alone gives, and where n - k and Theta of the image may be written.  Shapes: broadcast together."""

    first: Tensor
    second: Tensor
    cov: Tensor | None
    gap: Tensor | None
    total: Tensor | None
    tangent: Tensor | None
    wanted: bool = True
    once: Callable[..., tuple[Tensor, ...]] = lambda side, what, make, dim=0: make()
    into: tuple[Tensor | None, Tensor | None] = (None, None)

    @property
    def norm(self) -> Tensor:
        """n = sqrt(q1 q2)."""
        return self.first.sqrt() * self.second.sqrt()

    @property
    def covariance(self) -> Tensor:
        """k."""
        if self.cov is not None:
            return self.cov
        assert self.gap is not None
        return torch.addcmul(self.gap, self.first.sqrt(), self.second.sqrt(), value=-1).neg_()

    def sides(self) -> tuple[Tensor, Tensor]:
        """n - k and n + k."""
        if self.gap is not None and self.total is not None:
            return self.gap, self.total
        if self.gap is not None and self.cov is not None:
            return self.gap, torch.add(self.gap, self.cov, alpha=2)
        one, two = self.first.sqrt(), self.second.sqrt()
        if self.gap is not None:
            return self.gap, torch.addcmul(self.gap, one, two, value=-2).neg_()
        k = self.covariance
        gap = torch.addcmul(k, one, two, value=-1).neg_().clamp_min_(0)
        return gap, torch.addcmul(k, one, two) if self.total is None else self.total

    def times(self, slope: Callable[[], Tensor]) -> Tensor | None:
        """E s'(x) s'(y) Theta where it is asked for."""
        return None if self.tangent is None else slope() * self.tangent

    @property
    def alive(self) -> bool:
        """Whether something arrives on both sides everywhere."""
        return all(float(self.once(side, "least", lambda q=q: (q.min(),), None)[0]) > 0 for side, q in enumerate((self.first, self.second)))

    def sine(self) -> Tensor:
        """n sin(theta) = sqrt((n - k)(n + k))."""
        gap, total = self.sides()
        return (gap * total).clamp_min_(0).sqrt_()

    def determinant(self, factor: float) -> Tensor:
        """(1 + f q1)(1 + f q2) - (f k)^2."""
        gap, total = self.sides()
        return 1 + factor * (self.first + self.second) + factor**2 * (gap * total).clamp_min_(0)


@runtime_checkable
class Dual(Protocol):
    """An activation as theory knows it."""

    @property
    def kinked(self) -> bool:
        """Whether a dual moves as the angle, not as its square, so that n - k must be known to its own digits."""
        ...

    def variance(self, q: Tensor) -> Tensor:
        """E s(z)^2 for z ~ N(0, q)."""
        ...

    def image(self, at: Arguments) -> Image:
        """The dual and the dual of the derivative."""
        ...


def gap_of(dual: Dual, at: Arguments, cov: Tensor) -> Tensor | None:
    """n - k of a smooth activation's image by subtraction, exactly 0 for equal arguments."""
    if not at.wanted or at.gap is None:
        return None
    n = dual.variance(at.first).sqrt() * dual.variance(at.second).sqrt()
    return (n - cov).clamp_min(0).masked_fill((at.gap == 0) & (at.first == at.second), 0)


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """Slope `low` below 0 and `high` above: ReLU, leaky ReLU, PReLU, the absolute value, the identity.

    With theta the angle, d = high - low, m = (low^2 + high^2)/2 and t = n (sin theta - theta cos theta)/(2 pi):
    E s s = m k + d^2 t,  n - E s s = m (n - k) - d^2 t,  E s' s' = m - d^2 theta/(2 pi); at variance 0 the slope is `low`, as autograd has it.

    Error: rounding, relative to m n; for ReLU relative to the value itself, at angles near pi by series.
    Source: Cho & Saul 2009, section 2 (orders 0 and 1).
    """

    low: float
    high: float
    at_zero: float = 0.0

    @property
    def mean(self) -> float:
        """m."""
        return (self.low**2 + self.high**2) / 2

    @property
    def bend(self) -> float:
        """d^2/(2 pi)."""
        return (self.high - self.low) ** 2 / (2 * math.pi)

    @property
    def kinked(self) -> bool:
        """Whether the slopes differ."""
        return self.low != self.high

    def variance(self, q: Tensor) -> Tensor:
        """m q."""
        return self.mean * q

    def image(self, at: Arguments) -> Image:
        """The formulas above, theta = 2 arctan sqrt((n - k)/(n + k))."""
        mean, bend = self.mean, self.bend
        if not bend:
            cov, gap, total = (None if part is None else mean * part for part in (at.cov, at.gap, at.total))
            return Image(cov, gap, None if at.tangent is None else mean * at.tangent, total)
        gap, total = at.sides()
        k = torch.sub(total, gap).mul_(0.5) if at.cov is None else at.cov
        sure = at.total is None and at.alive  # then n + k is not 0
        root = torch.div(gap, total if sure else total.clamp_min(torch.finfo(gap.dtype).tiny)).clamp_min_(0).sqrt_()
        sine = None if sure else torch.mul(gap, total).clamp_min_(0).sqrt_()
        rate, last = bend / mean, not at.wanted or at.gap is None  # what a kink reads is not sensitive to the digits of what is nearly 0
        base, sign = (k, rate) if last else (gap, -rate)
        made = torch.addcmul(base, total, root, value=sign, out=total) if sine is None else torch.add(base, sine, alpha=sign, out=sine)
        half = root.atan_()
        made = torch.addcmul(made, half, k, value=-2 * sign, out=made if last or at.into[0] is None else at.into[0])
        image, near = (made, None) if last else (None, made)
        both = None
        if at.total is not None and self.low * self.high > 0:
            both = torch.add(at.total, gap).sub_(made) if image is None else torch.add(at.total, made).sub_(k)
        far = last and at.total is not None and self.low * self.high == 0 and float(half.max()) > (math.pi - SMALL) / 2
        far_half = half.clone() if far else half
        tangent: Tensor | None = None
        if at.tangent is not None and (sure or at.alive) and at.tangent.shape == half.shape:
            tangent = torch.addcmul(at.tangent, half, at.tangent, value=-2 * rate, out=half if at.into[1] is None else at.into[1])
        elif at.tangent is not None:
            tangent = self._dead(at, torch.add(half.new_ones(()), half, alpha=-2 * rate)) * at.tangent
        if far:
            self._opposite(at, far_half, image, tangent)
        return Image(image, near, tangent, both, mean)

    def _opposite(self, at: Arguments, half: Tensor, cov: Tensor | None, tangent: Tensor | None) -> None:
        """For ReLU near -1: n (sin p - p cos p) with p = pi - theta by its series, in place."""
        gap, total = at.sides()
        near = half > (math.pi - SMALL) / 2
        p = 2 * torch.atan((total[near] / gap[near]).sqrt_())
        if cov is not None:
            cov[near] = at.norm.expand_as(cov)[near] * _opposite_series(1, p) / math.pi
        if tangent is not None and at.tangent is not None:
            tangent[near] = p / math.pi * at.tangent[near]

    def _dead(self, at: Arguments, slope: Tensor) -> Tensor:
        """Where nothing arrives on one side the derivative is autograd's at 0, and on average (low + high)/2 on the other side; `slope` in units of `factor`."""
        if at.alive:
            return slope
        alive = [(q > 0).to(q) for q in (at.first, at.second)]
        slope.mul_(alive[0]).mul_(alive[1])
        if self.at_zero:
            unit, middle = self.mean, (self.low + self.high) / 2
            one, two = (torch.where(q > 0, middle, self.at_zero) for q in (at.first, at.second))
            slope.addcmul_(one, two, value=1 / unit).addcmul_(middle * alive[0], middle * alive[1], value=-1 / unit)
        return slope


@dataclasses.dataclass(frozen=True)
class RectifiedPower:
    """max(z, 0)^p for p = 2 or 3, times `scale`.

    E = n^p J_p / (2 pi), J_2 = 3 sin cos + (pi - theta)(1 + 2 cos^2), J_3 = 15 sin - 11 sin^3 + (pi - theta)(9 cos + 6 cos^3); E s' s' = p^2 times that of p - 1.

    Error: rounding; at angles near pi by series.   Source: Cho & Saul 2009, section 2.
    """

    power: int
    scale: float = 1.0
    kinked: bool = True

    def variance(self, q: Tensor) -> Tensor:
        """(2p - 1)!! q^p / 2."""
        return self.scale**2 * math.prod(range(1, 2 * self.power, 2)) / 2 * q**self.power

    def image(self, at: Arguments) -> Image:
        """The formulas above."""
        k = at.covariance
        sine, n = at.sine(), at.norm
        rest = torch.atan2(sine, -k)
        cov = self.scale**2 * _arc_cosine(self.power, sine, k, n, rest)
        tangent = at.times(lambda: (self.scale * self.power) ** 2 * _arc_cosine(self.power - 1, sine, k, n, rest))
        return Image(cov, gap_of(self, at, cov), tangent)


def _arc_cosine(power: int, sine: Tensor, cov: Tensor, n: Tensor, rest: Tensor) -> Tensor:
    """n^p J_p / (2 pi), `rest` the angle pi - theta."""
    if power == 1:
        form = sine + rest * cov
    elif power == 2:
        form = 3 * sine * cov + rest * (n**2 + 2 * cov**2)
    else:
        form = 15 * sine * n**2 - 11 * sine**3 + rest * (9 * cov * n**2 + 6 * cov**3)
    return torch.where(rest < SMALL, n**power * _opposite_series(power, rest.clamp_max(SMALL)), form) / (2 * math.pi)


def _opposite_series(power: int, p: Tensor) -> Tensor:
    """J_1, J_2 or J_3 at the angle pi - p: their Taylor series, whose first terms cancel.

    J_1 = sin p - p cos p,  J_2 = -(3/2) sin 2p + p (2 + cos 2p),  J_3 = (27 sin p + 11 sin 3p)/4 - p (27 cos p + 3 cos 3p)/2.
    """
    square, out = p**2, torch.zeros_like(p)
    for k in range(power + TERMS - 1, power - 1, -1):
        odd = 2 * k + 1
        form = {1: 1 - odd, 2: 4**k * (odd - 3), 3: (27 + 11 * 3**odd) / 4 - odd * (27 + 3 * 9**k) / 2}[power]
        out = out * square + (-1) ** k * form / math.factorial(odd)
    return out * p ** (2 * power + 1)


@dataclasses.dataclass(frozen=True)
class Erf:
    """E = (2/pi) arcsin(2 k / sqrt((1 + 2 q1)(1 + 2 q2))), slope (4/pi) / sqrt((1 + 2 q1)(1 + 2 q2) - 4 k^2).   Error: rounding.   Source: Williams 1997."""

    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """(2/pi) arcsin(2 q / (1 + 2 q))."""
        return 2 / math.pi * torch.atan2(2 * q, (1 + 4 * q).sqrt())

    def image(self, at: Arguments) -> Image:
        """The formulas above."""
        k = at.covariance
        root = at.determinant(2.0).sqrt()
        cov = 2 / math.pi * torch.atan2(2 * k, root)
        return Image(cov, gap_of(self, at, cov), at.times(lambda: 4 / math.pi / root))


@dataclasses.dataclass(frozen=True)
class Gelu:
    """z Phi(z).  With D = (1 + q1)(1 + q2) - k^2 and a = arctan(k / sqrt D):

    E = k/4 + [k a + (k^2 + q1 q2 D) / ((1 + q1)(1 + q2) sqrt D)] / (2 pi),
    slope = 1/4 + [a + (1/D + (1 - q1 q2)/((1 + q1)(1 + q2)) + 1) k / sqrt D] / (2 pi).

    Error: rounding, relative to n.   Source: Tsuchida et al. 2021.
    """

    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """E at k = q1 = q2 = q."""
        root = (1 + 2 * q).sqrt()
        return q / 4 + (q * torch.atan2(q, root) + (q**2 + q**2 * (1 + 2 * q)) / ((1 + q) ** 2 * root)) / (2 * math.pi)

    def image(self, at: Arguments) -> Image:
        """The formulas above."""
        k = at.covariance
        det = at.determinant(1.0)
        root, product, above = det.sqrt(), at.first * at.second, (1 + at.first) * (1 + at.second)
        angle = torch.atan2(k, root)
        cov = k / 4 + (k * angle + (k**2 + product * det) / (above * root)) / (2 * math.pi)
        tangent = at.times(lambda: 0.25 + (angle + (1 / det + (1 - product) / above + 1) * k / root) / (2 * math.pi))
        return Image(cov, gap_of(self, at, cov), tangent)


@dataclasses.dataclass(frozen=True)
class Wave:
    """sin(z) (`odd`) or cos(z): E sin sin = e^{-(q1 + q2)/2} sinh k, E cos cos = e^{-(q1 + q2)/2} cosh k, each the other's slope.   Error: rounding.   Source: derived here (characteristic functions)."""

    odd: bool
    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """(1 -+ e^{-2q}) / 2."""
        return -torch.expm1(-2 * q) / 2 if self.odd else (1 + torch.exp(-2 * q)) / 2

    def image(self, at: Arguments) -> Image:
        """The formulas above, in exponentials that do not overflow."""
        k = at.covariance
        size = k.abs()
        peak, twice = torch.exp(size - (at.first + at.second) / 2), -2 * size
        sine = torch.sign(k) * peak * -torch.expm1(twice) / 2
        cosine = peak * (1 + torch.exp(twice)) / 2
        cov, slope = (sine, cosine) if self.odd else (cosine, sine)
        return Image(cov, gap_of(self, at, cov), at.times(lambda: slope))


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """exp(-b z^2): E = D^{-1/2} with D = (1 + 2 b q1)(1 + 2 b q2) - 4 b^2 k^2, slope 4 b^2 k D^{-3/2}.   Error: rounding.   Source: derived here (Gaussian integrals)."""

    rate: float
    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """(1 + 4 b q)^{-1/2}."""
        return (1 + 4 * self.rate * q).rsqrt()

    def image(self, at: Arguments) -> Image:
        """The formulas above."""
        k = at.covariance
        det = at.determinant(2 * self.rate)
        cov = det.rsqrt()
        return Image(cov, gap_of(self, at, cov), at.times(lambda: 4 * self.rate**2 * k * det**-1.5))


@dataclasses.dataclass(frozen=True)
class Monomial:
    """z^p: E = sum_j j! [C(p, j) (p - j - 1)!!]^2 (q1 q2)^{(p - j)/2} k^j over j of p's parity, slope p^2 times that of p - 1.   Error: rounding, relative to n^p.   Source: Isserlis's theorem."""

    power: int
    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """(2p - 1)!! q^p."""
        return math.prod(range(1, 2 * self.power, 2)) * q**self.power

    def image(self, at: Arguments) -> Image:
        """The formulas above."""
        k = at.covariance
        product = at.first * at.second
        cov = _isserlis(self.power, product, k)
        return Image(cov, gap_of(self, at, cov), at.times(lambda: self.power**2 * _isserlis(self.power - 1, product, k)))


def _isserlis(power: int, product: Tensor, cov: Tensor) -> Tensor:
    out = torch.zeros_like(cov)
    for j in range(power % 2, power + 1, 2):
        weight = math.factorial(j) * (math.comb(power, j) * math.prod(range(1, power - j, 2))) ** 2
        out = out + weight * product ** ((power - j) // 2) * cov**j
    return out


@dataclasses.dataclass(frozen=True)
class Sign:
    """sign(z): E = (2/pi) arcsin(k/n); its derivative is 0 wherever autograd takes it, so that what lies before it has no part in the tangent kernel.   Error: rounding.   Source: Cho & Saul 2009 (order 0)."""

    kinked: bool = True

    def variance(self, q: Tensor) -> Tensor:
        """1, or 0 where nothing arrives."""
        return (q > 0).to(q)

    def image(self, at: Arguments) -> Image:
        """The formula above."""
        k = at.covariance
        sine = at.sine()
        alive = (at.first > 0) & (at.second > 0)
        cov = torch.where(alive, 2 / math.pi * torch.atan2(k, sine), 0.0)
        gap = None if at.gap is None else torch.where(alive, 2 / math.pi * torch.atan2(sine, k), 0.0)
        return Image(cov, gap, at.times(lambda: torch.zeros_like(cov)))
