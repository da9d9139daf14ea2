"""The dual of any activation from its Hermite series, with a bound on what the series leaves out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import OutOfScope
from gnomon.theory.infinite.duals import Arguments, Image, gap_of

TERMS = (24, 48, 96, 192, 384, 768)
"""Lengths of the series that are tried in turn."""
REACH, PANELS, NODES = 12.0, 24, 20
"""Standard deviations integrated over to either side, Gauss-Legendre panels (0 is an edge) and nodes in each."""
ROWS = 4096
"""Variances worked on at a time."""


@dataclasses.dataclass(frozen=True)
class Series:
    """An activation s by its Hermite coefficients a_m(q) = E s(sqrt(q) u) h_m(u), h_m orthonormal: E s(x) s(y) = sum_m a_m(q1) a_m(q2) c^m, c = k/n.

    The derivative's dual is the series of s'.  What lies beyond M terms is at most the square root of the product of both arguments' rests, E s^2 - sum_{m <= M} a_m^2
    (Cauchy-Schwarz), and M is the first of TERMS at which that is at most `tolerance` of E s^2, for s' likewise.

    Error: `tolerance`, relative to the geometric mean of the variances.   Cost: M multiplications an element; M x 480 a variance.
    Raises: OutOfScope where the longest series leaves more than `tolerance`, with the number.
    Source: Daniely, Frostig & Singer 2016, section 4.1 (dual activations).
    """

    function: Callable[[Any], Any]
    name: str
    tolerance: float
    kinked: bool = False

    def variance(self, q: Tensor) -> Tensor:
        """E s(z)^2 by quadrature."""
        flat = q.reshape(-1).double()
        return torch.cat([_moments(self.function, part, 0, False)[1] for part in flat.split(ROWS)]).reshape(q.shape).to(q)

    def image(self, at: Arguments) -> Image:
        """The series above, by Horner's rule."""
        c = (at.covariance / at.norm).nan_to_num_(0.0).clamp_(-1, 1)
        cov = self._sum(at, c, derivative=False)
        return Image(cov, gap_of(self, at, cov), at.times(lambda: self._sum(at, c, derivative=True)))

    def _sum(self, at: Arguments, c: Tensor, derivative: bool) -> Tensor:
        what = "derivative" if derivative else "value"
        (one,) = at.once(0, what, lambda: (self._coefficients(at.first, derivative),), 0)
        (two,) = at.once(1, what, lambda: (self._coefficients(at.second, derivative),), 1)
        terms = max(one.shape[-1], two.shape[-1])
        first, second = (torch.nn.functional.pad(a, (0, terms - a.shape[-1])).movedim(-1, 0).contiguous() for a in (one, two))
        out = first[-1] * second[-1] * torch.ones_like(c)
        for a, b in zip(first[:-1].flip(0), second[:-1].flip(0), strict=True):
            out = out.mul_(c).addcmul_(a, b)
        return out

    def _coefficients(self, q: Tensor, derivative: bool) -> Tensor:
        """Coefficients of as many terms as hold the tolerance.  Shapes: q any -> (*q, terms)."""
        flat, left = q.reshape(-1).double(), math.inf
        for terms in TERMS:
            pairs = [_moments(self.function, part, terms, derivative) for part in flat.split(ROWS)]
            found, squares = torch.cat([a for a, _ in pairs]), torch.cat([s for _, s in pairs])
            rest = (squares - (found**2).sum(1)).clamp_min(0)
            left = float((rest / squares.clamp_min(torch.finfo(torch.float64).tiny)).max()) if len(flat) else 0.0
            if left <= self.tolerance:
                return found.reshape(*q.shape, terms).to(q)
        raise OutOfScope(
            f"the activation {self.name!r} has no closed dual, and its Hermite series of {TERMS[-1]} terms leaves {left:.2g} of {'its derivative' if derivative else 'it'}, more than "
            f"the {self.tolerance:g} allowed; give infinite_width a larger `tolerance`, or take the mean of `linearisation.ntk` over an ensemble of wide networks"
        )


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
    if derivative:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = torch.autograd.grad(function(z).sum(), z)[0]
    else:
        value = function(z).detach()
    return (value * weights) @ _hermite(u, terms).T, (value**2) @ weights


def _hermite(u: Float64[Tensor, "nodes"], terms: int) -> Float64[Tensor, "terms nodes"]:
    """Orthonormal Hermite polynomials: sqrt(m + 1) h_{m+1} = u h_m - sqrt(m) h_{m-1}."""
    rows = [torch.ones_like(u), u]
    for m in range(1, terms):
        rows.append((u * rows[m] - math.sqrt(m) * rows[m - 1]) / math.sqrt(m + 1))
    return torch.stack(rows)[:terms]
