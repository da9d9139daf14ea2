"""Expectations of four factors of a scale-invariant activation (ReLU, LeakyReLU, the absolute value) at any number of inputs, by closed forms and one integral.

With slopes a+ and a- right and left of 0, s = z p, p = (a+ + a-)/2 + (a+ - a-)/2 sign(z) and q = (a+ - a-) delta(z).  A product s^i p^j at one input is z^i (A + B sign z) with A + B = a+^(i+j),
A - B = a-^(i+j), and q p^j = (a+^(j+1) - a-^(j+1))/(j+1) delta, as the derivative of p^(j+1)/(j+1); q s = 0.  What is left are moments of powers and signs (`numerics.signs`).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.numerics.signs import Signs
from gnomon.theory.exact_sources import NEEDED, Key, patterns
from gnomon.theory.pairs import Table
from gnomon.theory.sources import Sources

FLAT = 1e-8
"""Four inputs in a plane are moved out of it by so much of their variances, which moves their moments as little."""


def kinked_sources(slopes: tuple[float, float], kernel: Float64[Array, "n n"], two: Table, *, order: int, nodes: int) -> Sources:
    """The sources of an activation with these slopes right and left of 0, for orders 1 and 2.

    Shapes: kernel (n, n), no input a multiple of another -> (n, n, n, n) each.   Error: rounding up to three distinct inputs, beyond that of the nodes.   Cost: n^4/24 integrals of `nodes` nodes.
    """
    n, found = len(kernel), {}
    for size in range(1, min(n, 4) + 1):
        groups = np.array(list(itertools.combinations(range(n), size)))
        blocks = kernel[groups[:, :, None], groups[:, None, :]]
        found[size] = _Groups(slopes, _lifted(blocks) if size == 4 else blocks, nodes)
    parts = {}
    for name in NEEDED[order]:
        value = np.empty(n**4)
        for pattern, (where, which) in patterns(n, name).items():
            value[where] = found[len(pattern)].moment(pattern)[which]
        parts[name] = value.reshape((n,) * 4)
    return Sources.of(parts, two)


def _lifted(blocks: Float64[Array, "groups 4 4"]) -> Float64[Array, "groups 4 4"]:
    """Moved out of a plane, where three signs given a fourth would be signs of one number."""
    size = np.sqrt(np.einsum("gii->gi", blocks))
    flat = np.linalg.eigvalsh(blocks / size[:, :, None] / size[:, None, :])[:, 1] < FLAT
    return blocks * (1 + FLAT * flat[:, None, None] * np.eye(4))


class _Groups:
    """Moments of the activation and its derivatives at the inputs of many groups of one size."""

    def __init__(self, slopes: tuple[float, float], kernel: Float64[Array, "groups m m"], nodes: int) -> None:
        self.slopes, self.signs = slopes, Signs(kernel, nodes)
        self._known: dict[tuple[Key, ...], Array] = {}

    def moment(self, pattern: tuple[Key, ...]) -> Float64[Array, "groups"]:
        """The expectation of the product of these derivatives, a key of orders for each input."""
        if pattern not in self._known:
            self._known[pattern] = self._made(pattern)
        return self._known[pattern]

    def _made(self, pattern: tuple[Key, ...]) -> Float64[Array, "groups"]:
        bent = [i for i, key in enumerate(pattern) if 2 in key]
        if bent:
            (at,) = bent
            key = pattern[at]
            if 0 in key:
                return np.zeros(len(self.signs.kernel))
            right, left = (slope ** len(key) / len(key) for slope in self.slopes)
            return (right - left) * self.signs.density(at) * _product(self.slopes, self.signs.given(at), pattern[:at] + pattern[at + 1 :])
        return _product(self.slopes, self.signs, pattern)


def _product(slopes: tuple[float, float], signs: Signs, pattern: tuple[Key, ...]) -> Float64[Array, "groups"]:
    """E of products of s and p alone: the sum over each input's part with and without its sign."""
    powers, parts = tuple(key.count(0) for key in pattern), []
    for key in pattern:
        right, left = (slope ** len(key) for slope in slopes)
        parts.append(((right + left) / 2, (right - left) / 2))
    total = np.zeros(len(signs.kernel))
    for signed in itertools.product((0, 1), repeat=len(pattern)):
        factor = math.prod(part[sign] for part, sign in zip(parts, signed, strict=True))
        if factor:
            total = total + factor * signs.moment(powers, signed)
    return total
