"""Expectations of powers and signs of correlated Gaussian variables: closed forms up to three signs, one integral for four.

By parts, E z_i h = sum_j K_ij E d_j h, where d_j of sign(z_j) is 2 delta(z_j): what is left is an expectation of the others given z_j = 0, with the kernel K - K_j K_j^T / K_jj.
E sign_i sign_j = (2/pi) asin(rho);  of four signs dE/drho_ij = 4 p_ij(0, 0) E[sign_k sign_l | z_i = z_j = 0] (Plackett 1954), summed along the path from independence on which all
correlations grow together.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array

GRADED = 4
"""Correlations are t R with 1 - t = v^GRADED: nodes gather where inputs are nearly alike."""


class Signs:
    """Moments of a batch of Gaussian vectors, each computed once.   Shapes: kernel (batch, m, m), no variable a multiple of another.   A variable that is given away entirely has sign 0."""

    def __init__(self, kernel: Float64[Array, "batch m m"], nodes: int) -> None:
        self.kernel, self.nodes = kernel, nodes
        self.variance = np.einsum("bii->bi", kernel)
        self._given: dict[int, Signs] = {}
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], Array] = {}

    def moment(self, powers: tuple[int, ...], signs: tuple[int, ...]) -> Float64[Array, "batch"]:
        """E prod_i z_i^powers_i sign(z_i)^signs_i.   Error: rounding, and for four signs that of the nodes."""
        key = (powers, signs)
        if key not in self._known:
            odd = (sum(powers) + sum(signs)) % 2
            self._known[key] = np.zeros(len(self.kernel)) if odd else self._by_parts(powers, signs) if any(powers) else self._orthants(signs)
        return self._known[key]

    def density(self, j: int) -> Float64[Array, "batch"]:
        """The density of z_j at 0; 0 where z_j is 0 itself."""
        found = self.variance[:, j]
        return np.where(found > 0, 1 / np.sqrt(2 * math.pi * np.where(found > 0, found, 1.0)), 0.0)

    def given(self, j: int) -> Signs:
        """The other variables, given that z_j = 0."""
        if j not in self._given:
            self._given[j] = Signs(_given(self.kernel, j), self.nodes)
        return self._given[j]

    def _by_parts(self, powers: tuple[int, ...], signs: tuple[int, ...]) -> Float64[Array, "batch"]:
        first = max(range(len(powers)), key=powers.__getitem__)
        lower = tuple(power - (i == first) for i, power in enumerate(powers))
        total = np.zeros(len(self.kernel))
        for j, power in enumerate(lower):
            if power:
                total = total + power * self.kernel[:, first, j] * self.moment(tuple(p - (i == j) for i, p in enumerate(lower)), signs)
            elif signs[j]:
                total = total + 2 * self.kernel[:, first, j] * self.density(j) * self.given(j).moment(lower[:j] + lower[j + 1 :], signs[:j] + signs[j + 1 :])
        return total

    def _orthants(self, signs: tuple[int, ...]) -> Float64[Array, "batch"]:
        at = [i for i, sign in enumerate(signs) if sign]
        if not at:
            return np.ones(len(self.kernel))
        r = _correlation(self.kernel[:, at][:, :, at])
        return 2 / math.pi * np.arcsin(r[:, 0, 1]) if len(at) == 2 else _four(r, self.nodes)


def _given(kernel: Float64[Array, "*batch m m"], j: int) -> Float64[Array, "*batch l l"]:
    rest = [i for i in range(kernel.shape[-1]) if i != j]
    own, column = kernel[..., j, j], kernel[..., rest, j]
    left = kernel[..., rest, :][..., rest] - column[..., :, None] * column[..., None, :] / np.where(own > 0, own, 1.0)[..., None, None]
    before = np.einsum("...ii->...i", kernel)[..., rest]
    none = np.einsum("...ii->...i", left) <= 1e-14 * before  # rounding of what is 0
    return np.where(none[..., :, None] | none[..., None, :], 0.0, left)


def _correlation(kernel: Float64[Array, "*batch m m"]) -> Float64[Array, "*batch m m"]:
    size = np.sqrt(np.einsum("...ii->...i", kernel))
    scale = np.where(size > 0, 1 / np.where(size > 0, size, 1.0), 0.0)
    return np.clip(kernel * scale[..., :, None] * scale[..., None, :], -1, 1)


def _four(r: Float64[Array, "batch 4 4"], nodes: int) -> Float64[Array, "batch"]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    v = (x + 1) / 2
    t, weight = 1 - v**GRADED, w / 2 * GRADED * v ** (GRADED - 1)
    along = t[:, None, None, None] * r
    np.einsum("...ii->...i", along)[...] = 1.0
    total = np.zeros(len(r))
    for i, j in itertools.combinations(range(4), 2):
        rest = _correlation(_given(_given(along, j), i))[..., 0, 1]
        # 4 p(0, 0) (2/pi) asin = (4/pi^2) asin / sqrt(1 - rho^2)
        total += r[:, i, j] * (weight @ (np.arcsin(rest) / np.sqrt(1 - along[..., i, j] ** 2)))
    return 4 / math.pi**2 * total
