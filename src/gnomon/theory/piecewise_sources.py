"""Expectations of four factors of an activation that is smooth but for kinks anywhere, at any number of inputs, by a product rule between the kinks (`numerics.product_rule`).

Where the slope jumps at t from a- to a+, the bend has the part (a+ - a-) delta(z - t), and q p^j s^i that of the derivative of p^(j+1)/(j+1): (a+^(j+1) - a-^(j+1))/(j+1) s(t)^i, which is one more
node at t, of weight 1.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.numerics.nodes import derivatives
from gnomon.numerics.product_rule import SUMMED, Pieces, TooFine, Variables
from gnomon.theory.activations import Function
from gnomon.theory.exact_sources import FAMILIES, NEEDED, Key, patterns
from gnomon.theory.pairs import Table
from gnomon.theory.sources import Sources

BESIDE = 1e-6
"""The distances, and twice as much, from a kink at which slopes are taken to find those at it."""


def piecewise_sources(activation: Function, kinks: Sequence[float], kernel: Float64[Array, "n n"], two: Table, *, order: int, digits: float) -> Sources:
    """The sources, for orders 1 and 2, of an activation that is smooth between these kinks.

    Shapes: kernel (n, n), positive definite -> (n, n, n, n) each.   Error: about 10^-digits of the largest moment.   Cost: n^4/24 groups of prod(nodes of each input) multiplications.
    Raises: TooFine where inputs are so nearly dependent that the rule has more than SUMMED points.
    """
    n, found = len(kernel), {}
    sides = [_beside(activation, kink) for kink in kinks]
    groups = {size: [Variables(kernel[np.ix_(group, group)]) for group in itertools.combinations(range(n), size)] for size in range(1, min(n, 4) + 1)}
    pieces = [Pieces.of(lambda z: derivatives(activation, z, order), kinks, math.sqrt(own), digits) for own in np.diag(kernel)]
    rules = {
        size: [variables.rules([pieces[a] for a in group], digits) for variables, group in zip(some, itertools.combinations(range(n), size), strict=True)] for size, some in groups.items()
    }
    count = sum(math.prod(len(z) for z, _ in rule) for some in rules.values() for rule in some)
    if count > SUMMED:
        raise TooFine(f"a product rule of {count:.2g} points between the kinks of inputs that are nearly dependent")
    for size, some in groups.items():
        keys = _keys(order, size)
        found[size] = np.stack(
            [
                variables.expectations(*zip(*(_factors(activation, z, w, sides, keys, order) for z, w in rule), strict=True))
                for variables, rule in zip(some, rules[size], strict=True)
            ]
        )
    parts = {}
    for name in NEEDED[order]:
        value = np.empty(n**4)
        for pattern, (where, which) in patterns(n, name).items():
            keys = _keys(order, len(pattern))
            value[where] = found[len(pattern)][(which, *(keys.index(key) for key in pattern))]
        parts[name] = value.reshape((n,) * 4)
    return Sources.of(parts, two)


@functools.cache
def _keys(order: int, size: int) -> tuple[Key, ...]:
    """The products of derivatives at one input of a group of so many."""
    lengths = range(1, 6 - size) if size > 1 else (4,)
    return tuple(sorted({tuple(sorted(part)) for name in NEEDED[order] for length in lengths for part in itertools.combinations(FAMILIES[name], length)}))


Side = tuple[float, float, float, float]
"""A kink, the activation there, its slopes right and left of it."""


def _beside(activation: Function, kink: float) -> Side:
    slope = derivatives(activation, kink + BESIDE * np.array([1.0, 2.0, -1.0, -2.0]), 1)[1]
    right, left = (2 * slope[at] - slope[at + 1] for at in (0, 2))
    return kink, float(derivatives(activation, np.array([kink]), 0)[0][0]), float(right), float(left)


def _factors(
    activation: Function, z: Float64[Array, "nodes"], weights: Float64[Array, "nodes"], sides: list[Side], keys: tuple[Key, ...], order: int
) -> tuple[Float64[Array, "places"], Float64[Array, "keys places"]]:
    """Nodes and the kinks among them; products of derivatives at the nodes, times their weights, and what they have at the kinks."""
    near = [side for side in sides if abs(side[0]) < z[-1]]
    f = derivatives(activation, z, order)
    made = np.zeros((len(keys), len(z) + len(near)))
    for row, key in zip(made, keys, strict=True):
        row[: len(z)] = weights * math.prod(f[k] for k in key)
        if 2 in key:
            power = key.count(1) + 1
            row[len(z) :] = [(right**power - left**power) / power * value ** key.count(0) for _, value, right, left in near]
    return np.append(z, [side[0] for side in near]), made
