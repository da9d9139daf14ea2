"""An activation that is smooth but for kinks anywhere, at the nodes of product rules between them (`numerics.product_rule`).

Where the slope jumps at t from a- to a+, the bend has the part (a+ - a-) delta(z - t), and q p^j s^i that of the derivative of p^(j+1)/(j+1): (a+^(j+1) - a-^(j+1))/(j+1) s(t)^i, which is one more
node at t, of weight 1.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.numerics.nodes import derivatives
from gnomon.numerics.product_rule import Pieces
from gnomon.theory.activations import Function
from gnomon.theory.infinite.kinks import find

KINKS = 64
"""Kinks an activation may have."""
BESIDE = 1e-6
"""The distances, and twice as much, from a kink at which slopes are taken to find those at it."""


def breaks_of(activation: Function) -> tuple[float, ...]:
    """Where an activation has kinks; 0 always among them.   Error: 1e-13."""
    return tuple(sorted({0.0, *(kink.at for kink in find(activation, KINKS))}))


@dataclasses.dataclass(frozen=True)
class Piecewise:
    """An activation, and at each kink: where it is, the value there, the slopes right and left of it."""

    activation: Function
    kinks: tuple[tuple[float, float, float, float], ...]

    @classmethod
    def of(cls, activation: Function) -> Piecewise:
        """With its kinks found."""
        found = []
        for at in breaks_of(activation):
            slope = derivatives(activation, at + BESIDE * np.array([1.0, 2.0, -1.0, -2.0]), 1)[1]
            found.append((at, float(derivatives(activation, np.array([at]), 0)[0][0]), float(2 * slope[0] - slope[1]), float(2 * slope[2] - slope[3])))
        return cls(activation, tuple(found))

    def pieces(self, variance: float, *, order: int, digits: float) -> Pieces:
        """Where it and its derivatives up to an order are smooth, by products of four of them."""

        def products(z: Float64[Array, "nodes"]) -> list[Float64[Array, "nodes"]]:
            f = derivatives(self.activation, z, order)
            return [f[0] ** 4, f[1] ** 4, *([f[2], f[2] * f[1] ** 2 * f[0]] if order > 1 else [])]

        return Pieces.of(products, [kink[0] for kink in self.kinks], math.sqrt(variance), digits)

    def factors(
        self, z: Float64[Array, "nodes"], weights: Float64[Array, "nodes"], keys: tuple[tuple[int, ...], ...], *, order: int
    ) -> tuple[Float64[Array, "places"], Float64[Array, "keys places"]]:
        """Nodes and the kinks among them; products of derivatives (`keys`, each with one bend at most) at the nodes, times their weights, and what they have at the kinks."""
        near = [kink for kink in self.kinks if abs(kink[0]) < z[-1]]
        f = derivatives(self.activation, z, order)
        made = np.zeros((len(keys), len(z) + len(near)))
        for row, key in zip(made, keys, strict=True):
            row[: len(z)] = weights * math.prod(f[k] for k in key)
            if 2 in key:
                power = key.count(1) + 1
                row[len(z) :] = [(right**power - left**power) / power * value ** key.count(0) for _, value, right, left in near]
        return np.append(z, [kink[0] for kink in near]), made
