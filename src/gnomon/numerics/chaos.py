"""Gaussian expectations of one and two variables by Hermite polynomials: exact to rounding for any correlation, duplicates included, where the function is smooth.

h_k are the Hermite polynomials that are orthonormal under u ~ N(0, 1);  s(sqrt(K) u) = sum_k a_k h_k(u).  Derivatives and correlations act on the coefficients alone:
<s^(i)(z_a) s^(j)(z_b)> = K_aa^(-i/2) K_bb^(-j/2) sum_p a_(i+p) b_(j+p) rho^p sqrt((i+p)! (j+p)!) / p!   (Mehler), in the sense of distributions where s has kinks and |rho| < 1.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array

REACH = 12.0
"""Standard deviations integrated over, to either side."""
PANEL = 0.25
"""Width of a panel of Gauss-Legendre nodes: it resolves the polynomials up to ORDER."""
NODES = 16
ORDER = 384
"""Hermite polynomials that are kept."""


@functools.lru_cache(maxsize=64)
def line(breaks: tuple[float, ...] = (0.0,), nodes: int = NODES) -> tuple[Float64[Array, "nodes"], Float64[Array, "nodes"]]:
    """Nodes and weights of a standard normal, split at the breaks.   Shapes: (nodes,) twice."""
    edges = np.unique(np.concatenate([np.arange(-REACH, REACH + PANEL / 2, PANEL), [b for b in breaks if abs(b) < REACH]]))
    edges = edges[np.concatenate([[True], np.diff(edges) > 1e-13])]
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = np.diff(edges)[:, None] / 2
    u = ((edges[1:] + edges[:-1])[:, None] / 2 + half * x).reshape(-1)
    return u, (half * w).reshape(-1) * np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


def hermite(u: Float64[Array, "nodes"], order: int = ORDER) -> Float64[Array, "order nodes"]:
    """h_k(u) exp(-u^2/4): the orthonormal polynomials, kept from overflowing.   Shapes: (nodes,) -> (order, nodes)."""
    made = np.empty((order, len(u)))
    made[0] = np.exp(-(u**2) / 4)
    if order > 1:
        made[1] = u * made[0]
    for k in range(1, order - 1):
        made[k + 1] = (u * made[k] - math.sqrt(k) * made[k - 1]) / math.sqrt(k + 1)
    return made


@functools.lru_cache(maxsize=8)
def _projector(breaks: tuple[float, ...], order: int) -> Float64[Array, "order nodes"]:
    u, w = line(breaks)
    return hermite(u, order) * (w * np.exp(u**2 / 4))


def coefficients(values: Float64[Array, "... nodes"], breaks: tuple[float, ...] = (0.0,), order: int = ORDER) -> Float64[Array, "... order"]:
    """a_k of functions whose values at the nodes of `line(breaks)` are given.   Shapes: (..., nodes) -> (..., order).   Error: rounding where they are smooth between the breaks."""
    return np.asarray(values @ _projector(breaks, order).T)


@functools.cache
def _rising(i: int, count: int) -> Float64[Array, "count"]:
    """sqrt((p+1) ... (p+i)) for p = 0, 1, ..."""
    p = np.arange(count, dtype=np.float64)
    return np.sqrt(np.prod([p + step for step in range(1, i + 1)], axis=0)) if i else np.ones(count)


def mehler(a: Float64[Array, "n order"], kernel: Float64[Array, "n n"], i: int, j: int) -> tuple[Float64[Array, "n n"], float]:
    """<s^(i)(z_a) s^(j)(z_b)> of all pairs, and what the last eighth of the series is worth at most where two inputs differ.

    Shapes: a (n, order), one row an input; kernel (n, n) -> (n, n).   Cost: n^2 * order.
    """
    size = np.sqrt(np.diag(kernel))
    rho = np.clip(kernel / np.outer(size, size), -1.0, 1.0)
    count = a.shape[1] - max(i, j)
    left, right = a[:, i : i + count] * _rising(i, count) / size[:, None] ** i, a[:, j : j + count] * _rising(j, count) / size[:, None] ** j
    tail = count // 8
    powers = rho[:, :, None] ** np.arange(count)
    terms = left[:, None, :] * right[None, :, :] * powers
    off = ~np.eye(len(kernel), dtype=bool)
    return terms.sum(-1), float(np.abs(terms[:, :, -tail:].sum(-1))[off].max(initial=0.0))
