"""Expectations of four factors of an activation that is smooth but for kinks anywhere (`pieces`), at any number of inputs: product rules over groups of up to four inputs."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.numerics.product_rule import SUMMED, TooFine, Variables
from gnomon.theory.exact_sources import FAMILIES, NEEDED, Key, patterns
from gnomon.theory.pairs import Table
from gnomon.theory.pieces import Piecewise
from gnomon.theory.sources import Sources


def piecewise_sources(activation: Piecewise, kernel: Float64[Array, "n n"], two: Table, *, order: int, digits: float) -> Sources:
    """The sources, for orders 1 and 2, of an activation that is smooth between its kinks.

    Shapes: kernel (n, n), positive definite -> (n, n, n, n) each.   Error: about 10^-digits of the largest moment.   Cost: n^4/24 groups of prod(nodes of each input) multiplications.
    Raises: TooFine where inputs are so nearly dependent that the rules of all groups have more than SUMMED points.
    """
    n, found = len(kernel), {}
    pieces = [activation.pieces(float(own), order=order, digits=digits) for own in np.diag(kernel)]
    groups = {size: list(itertools.combinations(range(n), size)) for size in range(1, min(n, 4) + 1)}
    variables = {size: [Variables(kernel[np.ix_(group, group)]) for group in some] for size, some in groups.items()}
    rules = {size: [one.rules([pieces[a] for a in group], digits) for one, group in zip(variables[size], some, strict=True)] for size, some in groups.items()}
    points = sum(math.prod(len(z) for z, _ in rule) for some in rules.values() for rule in some)
    if points > SUMMED:
        raise TooFine(f"a product rule of {points:.2g} points between the kinks of inputs that are nearly dependent")
    for size, some in rules.items():
        keys = _keys(order, size)
        found[size] = np.stack(
            [
                one.expectations(*zip(*(activation.factors(z, weights, keys, order=order) for z, weights in rule), strict=True))
                for one, rule in zip(variables[size], some, strict=True)
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
