"""The dual of an activation with kinks: what its kinks do in closed form, what is left of it by a Hermite series that falls fast."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.theory.activations import derivative as slope_of
from gnomon.theory.infinite.corner import FAR, Angles, Side, rows
from gnomon.theory.infinite.duals import Arguments, Image
from gnomon.theory.infinite.kinks import Kink, Rest
from gnomon.theory.infinite.series import EIGHT, NODES, PANELS, POINTS, REACH, ROWS, Moments, between, symmetry, too_short

TERMS = 768
"""The longest series; what one leaves out is read from as many terms again."""
GOAL, EXACT = 2e-11, 1e-10
"""What a series may leave out, and what is exact enough, rounding included, relative to the mean square, where it can be had."""
ROUNDING = 4e-16
"""What rounding amounts to, relative to the mean square of the kinks' part."""
FEW = 48
"""Variances from which on coefficients are interpolated."""
OCTAVES = 4
"""Tables reach from one multiple of so many octaves to another, so that there are few of them."""
AGREES = 1e-11
"""What a table may miss at points of its own, relative to the root mean square."""
NEAR = 2e-5
"""The angle, and the difference of the logarithms of standard deviations, below which a difference of images is made as one."""
OPPOSITE = -0.75
"""The correlation below which n + k is carried on."""
NOTHING = 8.0
"""Standard deviations from 0 beyond which a kink does nothing that float64 would see."""
SAME = 1e-12
"""What jumps at a kink and at its mirror image may differ by."""
PIECE = 1 << 14
"""Covariances worked on at a time."""


class Split(NamedTuple):
    """How many jumps are taken out, and how many terms the series of s and of s' have."""

    orders: Tensor
    value: Tensor
    slope: Tensor


@dataclasses.dataclass(frozen=True)
class Kinked:
    """An activation s = p + r: p of its kinks, sum_j sum_m d_jm w_j^m / m! where w_j = +-(z - t_j) > 0, and r, whose first derivatives have no jumps.

    E s s = E p p + sum_m (a_m a'_m - p_m p'_m) c^m with the Hermite coefficients a_m of s and p_m of p.  E p p is a sum over pairs of kinks of corner moments; the coefficients of r fall as
    m^{-(M + 2)/2} or faster where the jumps of M derivatives are taken out, and p_m as m^{-3/4} at least, so that few terms are enough.  The derivative's dual is the same with d_{j,m+1} and r';
    jumps of s itself have no part in it, as in autograd.

    Error: EXACT of the geometric mean of the images' variances where that can be had, else `tolerance` at most: what is left out is read from the terms that follow, up to 2 TERMS.
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
        splits = [Split(*at.once(side, "split", lambda q=q: self._split(q), None)) for side, q in enumerate((at.first, at.second))]
        cov, slope = self._kinks(at, near, far, splits, slope=at.tangent is not None)
        cov = cov.masked_fill_(dead, 0).add_(self._series(at, c, splits, derivative=False))
        apart: Tensor | None = None
        both: Tensor | None = None
        if at.wanted and at.gap is not None:
            apart = self._apart(at, cov, at.gap)
            if at.total is not None and bool((cov < OPPOSITE * (cov + apart)).any()):
                odd = symmetry(self.function, False) == 1
                both = self._apart(at, -cov, at.total) if odd else apart.add(cov, alpha=2).clamp_min_(0)
        tangent = at.times(lambda: slope.masked_fill_(dead, 0).add_(self._series(at, c, splits, derivative=True)).to(gap))
        return Image(cov.to(gap), apart if apart is None else apart.to(gap), tangent, both if both is None else both.to(gap))

    def _apart(self, at: Arguments, cov: Tensor, close: Tensor) -> Tensor:
        """The image's n - k, where it is small not by subtraction.  `close` is n - k of the arguments."""
        sides = [at.once(side, "own", lambda q=q: (self.variance(q.double()),), side)[0] for side, q in enumerate((at.first, at.second))]
        made = (sides[0].sqrt() * sides[1].sqrt() - cov).clamp_min_(0)
        stretch = ((at.first - at.second).double() / at.second).log1p() / 2
        same = (close == 0) & (stretch == 0)
        made.masked_fill_(same, 0)
        near = (close <= NEAR**2 / 2 * at.norm) & (stretch.abs() <= NEAR) & ~same
        if bool(near.any()):
            parts = [part.double().expand_as(made)[near].split(PIECE) for part in (at.first, at.second, close, stretch)]
            made[near] = torch.cat([self._difference(*part) for part in zip(*parts, strict=True)])
        return made

    def _difference(self, q: Float64[Tensor, "n"], r: Float64[Tensor, "n"], close: Float64[Tensor, "n"], stretch: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
        """n - k of the image where variances and directions are nearly the same: l^2 W / 2 + (n - k) E s' s', l = log(q/r)/2 and W = E (z s')^2 - (E z s s')^2 / E s^2.

        The first is that of the same direction to the order after next in l, the second what the angle adds (dE s s/dk = E s' s'), its mean over the angle by two nodes.
        """
        slope, n = torch.zeros_like(q), q.sqrt() * r.sqrt()
        for node in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
            tangent = self.image(Arguments(q, r, None, node * close, 2 * n - node * close, torch.ones_like(q), wanted=False)).tangent
            assert tangent is not None
            slope += tangent / 2
        both = torch.cat([q, r])
        radial, mixed, square = self._radial(both)
        bend = (radial - mixed.square() / square.clamp_min(torch.finfo(q.dtype).tiny)).clamp_min_(0).reshape(2, -1).mean(0)
        return stretch.square() / 2 * bend + close * slope

    def _radial(self, q: Float64[Tensor, "n"]) -> tuple[Float64[Tensor, "n"], ...]:
        """E (z s')^2, E z s s' and E s^2, by quadrature between the kinks."""
        ends = torch.tensor([kink.at for kink in self.kinks], dtype=q.dtype, device=q.device) / q.sqrt()[:, None]
        edges = torch.cat([torch.linspace(-REACH, REACH, PANELS + 1, dtype=q.dtype, device=q.device).expand(len(q), -1), ends.clamp(-REACH, REACH)], 1).sort(1).values
        nodes, weights = (torch.from_numpy(part).to(q) for part in np.polynomial.legendre.leggauss(NODES))
        half = edges.diff(dim=1)[:, :, None] / 2
        u = (edges[:, :-1, None] + half * (1 + nodes)).flatten(1)
        z, weight = u * q.sqrt()[:, None], (half * weights).flatten(1) * torch.exp(u.square() / -2) / math.sqrt(2 * math.pi)
        value, turned = self.function(z), z * slope_of(self.function)(z)
        return tuple((weight * part).sum(1) for part in (turned**2, turned * value, value**2))

    def _split(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How a side's activation is split."""
        alive = q[q > 0]
        if not len(alive):
            return tuple(torch.tensor(EIGHT if part else 1) for part in range(3))  # type: ignore[return-value]
        orders, terms, left = _chosen(self.function, self.kinks, math.floor(math.log2(float(alive.min()))), math.ceil(math.log2(float(alive.max()))))
        if left > self.tolerance:
            raise too_short(self.name, TERMS, left, self.tolerance, derivative=True)
        return torch.tensor(orders), torch.tensor(terms[0]), torch.tensor(terms[1])

    def _kinks(self, at: Arguments, near: Tensor, far: Tensor, splits: list[Split], *, slope: bool) -> tuple[Tensor, Tensor]:
        """E p p and E p' p'."""
        cov, tangent = near.new_zeros(near.numel()), near.new_zeros(near.numel() if slope else 0)
        sides = []
        for side, (q, split) in enumerate(zip((at.first, at.second), splits, strict=True)):
            few = []
            for number, kink in enumerate(self.kinks):
                made = at.once(side, f"kink {number}", lambda q=q, kink=kink: Side.of(abs(kink.at), q.double())[1:], side)
                if float(at.once(side, f"least of kink {number}", lambda made=made: (made[1].min(),), None)[0]) < NOTHING:
                    few.append((kink.first(int(split.orders)), Side(abs(kink.at), *(part.expand(near.shape).reshape(-1) for part in made))))
            sides.append(few)
        mirrored = _mirrored(self.kinks)
        flat_near, flat_far = near.reshape(-1), far.reshape(-1)
        for start in range(0, near.numel(), PIECE):
            part = slice(start, start + PIECE)
            a, b = flat_near[part], flat_far[part]
            angles = Angles((b - a) / 2, a, b, (a * b).sqrt())
            for first, one in sides[0]:
                for second, two in sides[1]:
                    if not mirrored or first.up:
                        _add(first, second, one.part(part), two.part(part), angles, cov[part], tangent[part] if slope else None, 1 + mirrored)
        return cov.reshape(near.shape), tangent.reshape(near.shape) if slope else tangent

    def _series(self, at: Arguments, c: Tensor, splits: list[Split], *, derivative: bool) -> Tensor:
        """sum_m (a_m a'_m - p_m p'_m) c^m by Horner's rule."""
        terms = max(int(split[1 + derivative]) for split in splits)  # of both, or the rest of the side that needs fewer would be multiplied by one that is not small
        what = f"{terms} of the {'derivative' if derivative else 'value'}"
        (a, p), (b, r) = (
            at.once(side, what, lambda q=q, split=split: self._coefficients(q, int(split.orders), terms, derivative), 1 + side)
            for side, (q, split) in enumerate(zip((at.first, at.second), splits, strict=True))
        )
        out = torch.zeros_like(c)
        for m in range(terms - 1, -1, -1):
            out.mul_(c).addcmul_(a[m], b[m]).addcmul_(p[m], r[m], value=-1)
        return out

    def _coefficients(self, q: Tensor, orders: int, terms: int, derivative: bool) -> tuple[Tensor, Tensor]:
        """a_m and p_m.  Shapes: q any -> (terms, *q) each."""
        flat = q.reshape(-1).double()
        kinks = tuple(kink.first(orders) for kink in self.kinks)
        made = _interpolated(self.function, kinks, flat, terms, derivative)
        return tuple(self._at_zero(part, flat, kind, derivative).reshape(-1, *q.shape) for kind, part in enumerate(made))  # type: ignore[return-value]

    def _at_zero(self, found: Float64[Tensor, "terms n"], q: Float64[Tensor, "n"], kind: int, derivative: bool) -> Float64[Tensor, "terms n"]:
        """Where nothing arrives s is s(0), and its derivative autograd's there."""
        found = found.masked_fill(q == 0, 0)
        if kind == 0 and bool((q == 0).any()):
            found[0].masked_fill_(q == 0, float((slope_of(self.function) if derivative else self.function)(torch.zeros(1, dtype=torch.float64))))
        return found


@lru_cache(maxsize=256)
def _mirrored(kinks: tuple[Kink, ...]) -> bool:
    """Whether every kink has its mirror image, all of the same sign, so that pairs of kinks give what their images do."""
    found = {kink.at: kink for kink in kinks}
    pairs = [(kink, found.get(-kink.at)) for kink in kinks if kink.up]
    if 0.0 in found or 2 * len(pairs) != len(kinks) or not all(image and len(image.jumps) == len(kink.jumps) for kink, image in pairs):
        return False
    one, two = (np.concatenate([part.jumps for part in side if part]) for side in zip(*pairs, strict=True))
    return any(float(np.abs(one - sign * two).max()) <= SAME * float(np.abs(one).max()) for sign in (1, -1))


@lru_cache(maxsize=256)
def _chosen(function: Callable[[Any], Any], kinks: tuple[Kink, ...], low: int, high: int) -> tuple[int, tuple[int, int], float]:
    """How many jumps are taken out for variances from 2^low to 2^high, how long the series of s and of s' are, and the error: the cheapest that is at most EXACT, or nearly the most exact.

    The error is what the series leave out, |r_m| (|r_m| + 2 |p_m|) over the terms that follow, and rounding of E p p, relative to the mean square; the worst of octaves.
    """
    q = torch.exp2(torch.arange(low, high + 1, dtype=torch.float64))
    found, densities = [], [_densities(kink, q, 2 * TERMS) for kink in kinks]
    for orders in range(max(len(kink.jumps) for kink in kinks), 0, -2):
        few, terms, off = tuple(kink.first(orders) for kink in kinks), [], 0.0
        for derivative in (False, True):
            whole, known = _parts(function, few, q, densities, derivative)
            size, rest = whole.square().sum(0).clamp_min(torch.finfo(torch.float64).tiny), (whole - known).abs()
            after = (rest * (rest + 2 * known.abs()) / size).flip(0).cumsum(0).flip(0).amax(1)
            terms.append(min(TERMS, _even(int((after > GOAL).sum()))))
            off = max(off, float(after[terms[-1]]) + ROUNDING * float((known.square().sum(0) / size).max()))
        found.append((off, 1.5 * len(kinks) ** 2 * orders**2 + sum(terms), orders, (terms[0], terms[1])))
    enough = max(EXACT, 3 * min(off for off, *_ in found))
    _, orders, both, off = min((cost, orders, both, off) for off, cost, orders, both in found if off <= enough)
    return orders, both, off


def _even(terms: int) -> int:
    """A length of at least so many terms and 1, of which there are few, so that two sides seldom differ."""
    return terms + 1 if terms < EIGHT else EIGHT * (terms // EIGHT + 1)


def _interpolated(
    function: Callable[[Any], Any], kinks: tuple[Kink, ...], q: Float64[Tensor, "n"], terms: int, derivative: bool
) -> tuple[Float64[Tensor, "terms n"], Float64[Tensor, "terms n"]]:
    """a_m and p_m, a_m between the points of a table where there are many variances."""
    densities = [_densities(kink, q, terms) for kink in kinks]
    least, most = (float(part) for part in q.aminmax())
    if len(q) > FEW and least > 0 and math.isfinite(most):
        low, high = OCTAVES * math.floor(math.log2(least) / OCTAVES), OCTAVES * (math.floor(math.log2(most) / OCTAVES) + 1)
        table = _table(function, kinks, low, high, 1 << max(terms - 1, 7).bit_length(), derivative)
        if table is not None:
            whole = torch.cat([between((2 * part.log2() - low - high) / (high - low), table.shape[1] - 1) for part in q.split(ROWS)]) @ table[:terms].T.to(q)
            return whole.T, _known(kinks, q, densities, derivative)
    return _parts(function, kinks, q, densities, derivative)


@lru_cache(maxsize=64)
def _table(function: Callable[[Any], Any], kinks: tuple[Kink, ...], low: int, high: int, terms: int, derivative: bool) -> Float64[Tensor, "terms points"] | None:
    """a_m at Chebyshev points of log q from 2^low to 2^high, as many as tell it; None where POINTS do not.  (Those of the rest would not do: they grow over many decades.)"""
    for count in POINTS:
        x = torch.cos(torch.arange(count + 1, dtype=torch.float64) * (math.pi / count))
        q = torch.exp2((low + high + (high - low) * x) / 2)
        whole = _parts(function, kinks, q, [_densities(kink, q, terms) for kink in kinks], derivative)[0]
        off = (whole[:, ::2] @ between(x, count // 2).T - whole).abs() / whole.square().sum(0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        if float(off.max()) <= AGREES:
            return whole
    return None


def _known(kinks: tuple[Kink, ...], q: Float64[Tensor, "n"], densities: list[Float64[Tensor, "terms _"]], derivative: bool) -> Float64[Tensor, "terms n"]:
    """p_m."""
    return sum((_coefficients(kink, q, density, derivative) for kink, density in zip(kinks, densities, strict=True)), q.new_zeros(len(densities[0]), len(q)))


def _parts(
    function: Callable[[Any], Any], kinks: tuple[Kink, ...], q: Float64[Tensor, "n"], densities: list[Float64[Tensor, "terms _"]], derivative: bool
) -> tuple[Float64[Tensor, "terms n"], Float64[Tensor, "terms n"]]:
    """a_m and p_m."""
    rest = Moments(Rest(function, kinks), q, derivative).coefficients(len(densities[0]))
    known = _known(kinks, q, densities, derivative)
    return rest + known, known


def _add(first: Kink, second: Kink, one: Side, two: Side, angles: Angles, cov: Tensor, slope: Tensor | None, times: int) -> None:
    """Add what a pair of kinks gives, so many times, in place."""
    at, sign = (angles, times) if first.up == second.up else (angles.mirrored(), -times)
    for m, row in enumerate(rows(one, two, at, (len(first.jumps) - 1, len(second.jumps) - 1))):
        if first.jumps[m]:
            cov.add_(_sum(second.jumps, row), alpha=times * first.jumps[m])
        if slope is not None and m + 1 < len(first.jumps) and first.jumps[m + 1]:
            slope.add_(_sum(second.jumps[1:], row), alpha=sign * first.jumps[m + 1])


def _sum(jumps: tuple[float, ...], row: list[Tensor]) -> Tensor:
    out: Tensor | None = None
    for jump, value in zip(jumps, row, strict=False):
        if jump:
            out = value * jump if out is None else out.add_(value, alpha=jump)
    return torch.zeros_like(row[0]) if out is None else out


def _threshold(kink: Kink, q: Float64[Tensor, "n"]) -> Float64[Tensor, "_"]:
    """The distance of a kink from 0 in standard deviations; one number where it is 0."""
    return (abs(kink.at) / q.sqrt().clamp_min(torch.finfo(q.dtype).tiny)).clamp_(max=FAR) if kink.at else q.new_zeros(1)


def _densities(kink: Kink, q: Float64[Tensor, "n"], terms: int) -> Float64[Tensor, "terms _"]:
    """phi(t) h_m(t) at a kink."""
    t = _threshold(kink, q)
    out = t.new_empty(terms, len(t))
    out[0] = torch.exp(t.square() / -2) / math.sqrt(2 * math.pi)
    at, roots = out.cpu().numpy(), np.sqrt(np.arange(terms + 1))
    place = t.cpu().numpy()
    at[1:2] = place * at[0]
    for m in range(1, terms - 1):
        at[m + 1] = (place * at[m] - roots[m] * at[m - 1]) / roots[m + 1]
    return torch.from_numpy(at).to(q)


def _coefficients(kink: Kink, q: Float64[Tensor, "n"], density: Float64[Tensor, "terms _"], derivative: bool) -> Float64[Tensor, "terms n"]:
    """Hermite coefficients of one kink's part, or of its derivative.

    Those of the step (u - t)_+^0 are Q(t) and phi(t) h_{m-1}(t)/sqrt m; each order more moves them by one: e^l_m = e^{l-1}_{m-1}/sqrt m, and e^l_0 = E (u - t)_+^l / l!.
    """
    jumps, terms = kink.jumps[1:] if derivative else kink.jumps, len(density)
    side, t, base = q.sqrt(), _threshold(kink, q), density
    root = torch.arange(1, terms, dtype=q.dtype, device=q.device).sqrt()[:, None]
    before, mean = density[0], torch.special.erfc(t * math.sqrt(0.5)) / 2
    out, scale = q.new_zeros(terms, len(q)), torch.ones_like(q)
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
