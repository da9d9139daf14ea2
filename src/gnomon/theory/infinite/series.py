"""The dual of any activation from its Hermite series, with a bound on what the series leaves out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import OutOfScope
from gnomon.theory.activations import derivative as slope_of
from gnomon.theory.infinite.compiled import array, shared
from gnomon.theory.infinite.duals import Arguments, Image, gap_of
from gnomon.theory.infinite.pair import spread

TERMS = (24, 48, 96, 192, 384, 768)
"""Lengths of the series that are tried in turn."""
REACH, PANELS, NODES = 14.0, 28, 26
"""Standard deviations integrated over to either side, Gauss-Legendre panels (0 is an edge) and nodes in each."""
ROWS = 4096
"""Variances worked on at a time."""
EIGHT = 8
"""Lengths are multiples of this, so that two sides seldom differ."""
POINTS = (32, 64, 128)
"""Variances between which moments are interpolated, where there are many more to be known."""
FEW = 256
"""Variances on which it is seen how many terms are needed."""
AGREES = 1e-12
"""What the interpolation may miss at points of its own, relative to the root of E s^2."""


@dataclasses.dataclass(frozen=True)
class Series:
    """An activation s by its Hermite coefficients a_m(q) = E s(sqrt(q) u) h_m(u), h_m orthonormal: E s(x) s(y) = sum_m a_m(q1) a_m(q2) c^m, c = k/n.

    The derivative's dual is the series of s'.  What lies beyond M terms is at most the square root of the product of both arguments' rests, E s^2 - sum_{m <= M} a_m^2
    (Cauchy-Schwarz), and M is the first of TERMS at which that is at most `tolerance` of E s^2, for s' likewise.

    Error: `tolerance`, relative to the geometric mean of the variances.
    Cost: M multiplications an element, half of them for an odd or even activation; M x 728 a variance, or M x 65 where many of them are interpolated.
    Raises: OutOfScope where the longest series leaves more than `tolerance`, with the number.
    Source: Daniely, Frostig & Singer 2016, section 4.1 (dual activations).
    """

    function: Callable[[Any], Any]
    name: str
    tolerance: float
    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """E s(z)^2 by quadrature."""
        moments = Moments(self.function, q.reshape(-1).double(), derivative=False)
        return moments.squares.reshape(q.shape).to(q)

    def image(self, at: Arguments) -> Image:
        """The series above, by Horner's rule."""
        c = (at.covariance / at.norm).nan_to_num_(0.0).clamp_(-1, 1)
        cov = self._sum(at, c, derivative=False)
        return Image(cov, gap_of(self, at, cov), at.times(lambda: self._sum(at, c, derivative=True)))

    def _sum(self, at: Arguments, c: Tensor, derivative: bool) -> Tensor:
        what, parity = "derivative" if derivative else "value", symmetry(self.function, derivative)
        pairs = min(at.first.ndim, at.second.ndim) > 1 and at.first.shape[1] == at.second.shape[0] == 1  # else any numbers that broadcast
        sides = [at.first.reshape(len(at.first), -1), at.second.reshape(at.second.shape[1], -1)] if pairs else [q.expand(c.shape).reshape(1, -1) for q in (at.first, at.second)]
        one, two = (at.once(side, what, lambda q=q: (self._coefficients(q, derivative),))[0] for side, q in enumerate(sides))
        most = max(one.shape[1], two.shape[1])  # of both, or the rest of the side that needs fewer would be multiplied by one that is not small
        one, two = (
            part if part.shape[1] == most else at.once(side, f"{what} {most}", lambda q=q: (self._coefficients(q, derivative, most),))[0]
            for side, (part, q) in enumerate(zip((one, two), sides, strict=True))
        )
        x = c if parity is None else c**2
        summed, flat = _rows if c.device.type == "cpu" else _passes, x if pairs else x.reshape(1, 1, -1)
        out = summed(flat, one, two, vector=not pairs or at.first.shape[2:] == at.second.shape[2:]).reshape(x.shape)
        return out.mul_(c) if parity == 1 else out

    def _coefficients(self, q: Tensor, derivative: bool, least: int = 0) -> Tensor:
        """Coefficients of as many terms as hold the tolerance, `least` at least, only the odd or the even ones where the others are 0.  Shapes: q (n, P) -> (n, terms, P)."""
        moments, parity, left = Moments(self.function, q.reshape(-1).double(), derivative), symmetry(self.function, derivative), math.inf
        few, least = moments.some(), least if parity is None else 2 * least
        for terms in TERMS:
            found = few.coefficients(terms) if terms >= least else None
            left = left if found is None else float(few.rest(found).max())
            if found is None or left > self.tolerance:
                continue
            for length in (max(few.enough(found, self.tolerance), least), terms):
                made = moments.coefficients(length, parity)
                left = float(moments.rest(made).max())
                if left <= self.tolerance:
                    return made.reshape(-1, *q.shape).movedim(0, 1).to(q).contiguous()
        raise too_short(self.name, TERMS[-1], left, self.tolerance, derivative=derivative)


def _rows(x: Tensor, one: Tensor, two: Tensor, *, vector: bool) -> Tensor:
    """sum_m a_m b_m x^m, row by row.  Shapes: x (n1, n2, *P) or (n1, n2, *P, *Q), one (n1, terms, P), two (n2, terms, Q) -> that of x; `vector`: at equal positions."""
    from gnomon.theory.infinite.loops import series  # numba takes a while to be imported

    made, (n1, terms, count), (n2, _, other) = torch.empty(x.shape, dtype=x.dtype), one.shape, two.shape
    if count == other == 1:  # long rows
        two, rows = two.transpose(0, 2), (n1, 1, n2)
    else:
        rows = (n1 * n2, 1 if vector else count, other)
    numbers = array(x, rows), array(made, rows), array(one, tuple(one.shape)), array(two, tuple(two.shape))
    shared(lambda first, last: series(first, last, *numbers, vector and count > 1), rows[0] * rows[1], rows[2] * terms)
    return made


def _passes(x: Tensor, one: Tensor, two: Tensor, *, vector: bool) -> Tensor:
    """The same by torch's operations."""
    out, flat = None, x.reshape(*x.shape[:2], one.shape[2], *(() if vector else two.shape[2:]))
    for m in range(one.shape[1] - 1, -1, -1):
        a, b = spread(one[:, m], two[:, m], full=not vector)
        out = torch.mul(a, b).expand_as(flat).clone() if out is None else out.mul_(flat).addcmul_(a, b)
    assert out is not None
    return out.reshape(x.shape)


def too_short(name: str, terms: int, left: float, tolerance: float, *, derivative: bool) -> OutOfScope:
    """What is raised where a series does not hold its tolerance."""
    return OutOfScope(
        f"the activation {name!r} has no closed dual, and its Hermite series of {terms} terms leaves {left:.2g} of {'its derivative' if derivative else 'it'}, more than "
        f"the {tolerance:g} allowed; give infinite_width a larger `tolerance`, or average the kernels of finite wide networks, gnomon.instruments.kernels.monte_carlo_kernel"
    )


class Moments:
    """E s^2 and the Hermite coefficients of s(sqrt(q) u), or of s'(sqrt(q) u), for many variances: by quadrature, or between the points of a table.  Shapes: q (n,)."""

    def __init__(self, function: Callable[[Any], Any], q: Float64[Tensor, "n"], derivative: bool) -> None:
        self.function, self.q, self.derivative = function, q, derivative
        self.table: Tensor | None = None
        least, most = (float(q.min()), float(q.max())) if len(q) else (0.0, 0.0)
        if len(q) > 4 * POINTS[-1] and least > 0 and math.isfinite(most):
            low, high = math.floor(math.log2(least)), math.floor(math.log2(most)) + 1
            table, self.known = _table(function, low, high, derivative)
            self.table = table.to(q.device)
            if self.known > 0:
                self.weights = torch.cat([between((2 * part.log2() - low - high) / (high - low), len(table) - 1) for part in q.split(ROWS)])

    @cached_property
    def squares(self) -> Float64[Tensor, "n"]:
        """E s^2."""
        if self.table is not None and self.known > 0:
            return self.weights @ self.table[:, 0]
        return torch.cat([_moments(self.function, part, 0, self.derivative)[1] for part in self.q.split(ROWS)])

    def some(self) -> Moments:
        """Those of FEW of the variances, the least and the most among them."""
        if len(self.q) <= FEW:
            return self
        at = torch.cat([self.q.argmin()[None], self.q.argmax()[None], torch.arange(0, len(self.q), len(self.q) // FEW, device=self.q.device)])
        few = Moments(self.function, self.q[at], self.derivative)
        if self.table is not None and self.known > 0:
            few.table, few.known, few.weights = self.table, self.known, self.weights[at]
        return few

    def coefficients(self, terms: int, parity: int | None = None) -> Float64[Tensor, "terms n"]:
        """The first coefficients, or the odd (1) or even (0) ones of them."""
        wanted = slice(None) if parity is None else slice(parity, None, 2)
        if self.table is not None and self.known > terms:
            return self.table[:, 1 : terms + 1][:, wanted].T @ self.weights.T
        return torch.cat([_moments(self.function, part, terms, self.derivative)[0][:, wanted] for part in self.q.split(ROWS)]).T.contiguous()

    def rest(self, found: Float64[Tensor, "terms n"]) -> Float64[Tensor, "n"]:
        """What lies beyond these coefficients, relative to E s^2."""
        return ((self.squares - torch.linalg.vector_norm(found, dim=0).square_()) / self.squares.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min_(0)

    def enough(self, found: Float64[Tensor, "terms n"], tolerance: float) -> int:
        """How many terms hold the tolerance, in eights: those that the variance with the most beyond needs, if they are enough for the others."""
        worst = int(self.rest(found).argmax())
        beyond = self.squares[worst] - found[:, worst].square().cumsum(0)
        short = -(-(int((beyond > tolerance * self.squares[worst]).sum()) + 1) // EIGHT) * EIGHT
        return short if short < len(found) and float(self.rest(found[:short]).max()) <= tolerance else len(found)


@lru_cache(maxsize=64)
def _table(function: Callable[[Any], Any], low: int, high: int, derivative: bool) -> tuple[Float64[Tensor, "points columns"], int]:
    """E s^2 and the coefficients at Chebyshev points of log q from 2^low to 2^high, and how many of these columns every second point tells to AGREES.

    As functions of log q they are analytic in the strip |Im| < pi/2 for any s that is bounded by a polynomial, since a_m(q) is an integral of s against an analytic function of 1/q.
    """
    for count in POINTS:
        x = torch.cos(torch.arange(count + 1, dtype=torch.float64) * (math.pi / count))
        found, squares = _moments(function, torch.exp2((low + high + (high - low) * x) / 2), TERMS[-1], derivative)
        table = torch.cat([squares[:, None], found], 1)
        off = (between(x, count // 2) @ table[::2] - table).abs() / torch.cat([squares[:, None], squares.sqrt()[:, None].expand_as(found)], 1).clamp_min(
            torch.finfo(torch.float64).tiny
        )
        wrong = (off.amax(0) > AGREES).nonzero()
        known = int(wrong[0]) if len(wrong) else table.shape[1]
        if known == table.shape[1]:
            break
    return table, known


def between(x: Float64[Tensor, "n"], count: int) -> Float64[Tensor, "n points"]:
    """The barycentric interpolation from the Chebyshev points cos(j pi / count), j = 0 .. count, to x in [-1, 1]."""
    at = torch.cos(torch.arange(count + 1, dtype=torch.float64, device=x.device) * (math.pi / count))
    sign = torch.ones_like(at)
    sign[1::2] = -1
    sign[0], sign[-1] = sign[0] / 2, sign[-1] / 2
    apart = x[:, None] - at
    weights = sign / apart
    weights = weights / weights.sum(1, keepdim=True)
    hit = apart == 0
    return torch.where(hit.any(1, keepdim=True), hit.to(weights), weights)


@lru_cache(maxsize=64)
def symmetry(function: Callable[[Any], Any], derivative: bool) -> int | None:
    """1 where only odd powers of the correlation occur, 0 where only even ones do, None where both."""
    u = torch.linspace(0.01, REACH, 999, dtype=torch.float64)
    up, down = function(u), function(-u)
    size = 1e-14 * float(up.abs().max())
    for parity, other in ((1, -down), (0, down)):
        if float((up - other).abs().max()) <= size:
            return 1 - parity if derivative else parity
    return None


@lru_cache(maxsize=1)
def _rule() -> tuple[Float64[Tensor, "nodes"], Float64[Tensor, "nodes"]]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    edges = np.linspace(-REACH, REACH, PANELS + 1)
    half = np.diff(edges)[:, None] / 2
    u = (edges[:-1, None] + half * (1 + nodes)).ravel()
    return torch.from_numpy(u), torch.from_numpy((half * weights).ravel() * np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi))


def _moments(function: Callable[[Any], Any], q: Float64[Tensor, "n"], terms: int, derivative: bool) -> tuple[Float64[Tensor, "n terms"], Float64[Tensor, "n"]]:
    """The first Hermite coefficients of s(sqrt(q) u), or of s'(sqrt(q) u), and E s^2."""
    u, weights = (part.to(q.device) for part in _rule())
    z = q.sqrt()[:, None] * u
    value = slope_of(function)(z) if derivative else function(z).detach()
    return (value * weights) @ _hermite(terms).to(q.device).T, (value**2) @ weights


@lru_cache(maxsize=8)
def _hermite(terms: int) -> Float64[Tensor, "terms nodes"]:
    """Orthonormal Hermite polynomials at the rule's nodes: sqrt(m + 1) h_{m+1} = u h_m - sqrt(m) h_{m-1}."""
    u = _rule()[0]
    rows = [torch.ones_like(u), u]
    for m in range(1, terms):
        rows.append((u * rows[m] - math.sqrt(m) * rows[m - 1]) / math.sqrt(m + 1))
    return torch.stack(rows)[:terms]
