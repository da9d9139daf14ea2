"""Expectations of an activation and its derivatives at up to four inputs: what every layer adds to the tensors of the one before.

All are sums over the same nodes, so that pairs of factors give matrix products.  What is left of a covariance when the exact expectations of its pairs are taken away is summed, so that
neither rounding nor sampling sees them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.numerics.nodes import derivatives
from gnomon.theory.activations import Function
from gnomon.theory.pairs import Table

CHUNK = 8192
"""Nodes at a time: their columns fit a cache."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Expectations of four factors, by the inputs of each in this order; `ssss`, `sspp`, `pppp` are covariances of their pairs.

    `psps[a, b, c, d]` = <p_a s_b p_c s_d>.   Shapes: (n, n, n, n) each; empty where not asked for.
    """

    ssss: Float64[Array, "n n n n"]
    sspp: Float64[Array, "n n n n"]
    pppp: Float64[Array, "n n n n"]
    full_sspp: Float64[Array, "n n n n"]
    full_pppp: Float64[Array, "n n n n"]
    qspp: Array
    rppp: Array
    qqpp: Array

    @classmethod
    def of(cls, full: Mapping[str, Array], two: Table) -> Sources:
        """From expectations of all four factors, by name; the means of their pairs are taken away here."""
        ss, pp, none = two[0, 0], two[1, 1], np.zeros((0, 0, 0, 0))
        return cls(
            full["ssss"] - np.multiply.outer(ss, ss), full["sspp"] - np.multiply.outer(ss, pp), full["pppp"] - np.multiply.outer(pp, pp), full["sspp"], full["pppp"],
            full.get("qspp", none), full.get("rppp", none), full.get("qqpp", none),
        )  # fmt: skip

    def times(self, share: float) -> Sources:
        """All of them, times a number: each is a sum over the units of one layer."""
        return self if share == 1 else Sources(*(share * getattr(self, field.name) for field in dataclasses.fields(self)))

    def distance(self, other: Sources) -> float:
        """The largest difference of an expectation, relative to the largest of its kind; what is rounding of the parts of a covariance is none."""
        found = [0.0]
        for field in dataclasses.fields(self):
            one, two = getattr(self, field.name), getattr(other, field.name)
            whole = getattr(self, f"full_{field.name}", one)
            apart = float(np.abs(one - two).max(initial=0.0))
            if apart > 1e-13 * float(np.abs(whole).max(initial=0.0)):
                found.append(apart / float(np.abs(one).max()))
        return max(found)

    @property
    def psps(self) -> Float64[Array, "n n n n"]:
        """<p_a s_b p_c s_d>."""
        return np.einsum("bdac->abcd", self.full_sspp)


def sources(activation: Function, z: Float64[Array, "nodes n"], weights: Float64[Array, "nodes"], two: Table, *, order: int, kernel: Array | None = None) -> Sources:
    """The expectations over given nodes, with derivatives up to `order`: 1 for V to F, 2 for P and Q.

    With a `kernel` the second derivative is taken away by parts, <q_a p_a^m s_a^k G> = (<p_a^(m+1) s_a^k G y_a> - k <p_a^(m+2) G>)/(m+1) with y = K^-1 z and G a function of the other inputs: so
    that a jump of the slope is counted.

    Shapes: (nodes, n), (nodes,).   Error: that of the nodes.   Assumes: the derivatives that autograd takes are those of the activation, but for a jump of the slope with a `kernel`.
    Cost: nodes * n^4 * (1 + 3 order) / 2.
    """
    n, by_parts = z.shape[1], kernel is not None and order >= 2
    if by_parts:
        order = 1
    rows, columns = np.triu_indices(n)
    count = len(rows)
    ss, pp, qs = two[0, 0], two[1, 1], two[2, 0]
    total = np.zeros((2 * count + (n * n if order == 2 else 0), 2 * count))
    for start in range(0, len(z), CHUNK):
        f = derivatives(activation, z[start : start + CHUNK], order)
        right = [f[0][:, rows] * f[0][:, columns] - ss[rows, columns], f[1][:, rows] * f[1][:, columns] - pp[rows, columns]]
        left = right + ([(f[2][:, :, None] * f[0][:, None, :] - qs).reshape(-1, n * n)] if order == 2 else [])
        total += (np.concatenate(left, 1) * weights[start : start + CHUNK, None]).T @ np.concatenate(right, 1)
    whole = np.zeros((n, n), dtype=int)
    whole[rows, columns] = whole[columns, rows] = np.arange(count)
    pair = whole.reshape(-1)

    def cut(top: int, side: int) -> Array:
        block = total[top : top + count, side * count : (side + 1) * count][:, pair]
        return np.asarray(block[pair].reshape(n, n, n, n))

    ssss, sspp, pppp = cut(0, 0), cut(0, 1), cut(count, 1)
    none = np.zeros((0, 0, 0, 0))
    qspp = total[2 * count :, count:][:, pair].reshape(n, n, n, n) + np.multiply.outer(qs, pp) if order == 2 else none
    if by_parts:
        qspp = _qspp_by_parts(activation, z, weights, np.asarray(kernel))
    return Sources(ssss, sspp, pppp, sspp + np.multiply.outer(ss, pp), pppp + np.multiply.outer(pp, pp), qspp, none, none)


def _qspp_by_parts(activation: Function, z: Float64[Array, "nodes n"], weights: Float64[Array, "nodes"], kernel: Array) -> Float64[Array, "n n n n"]:
    n = z.shape[1]
    s, p = derivatives(activation, z, 1)
    y = np.linalg.solve(kernel, z.T).T
    made = np.empty((n,) * 4)
    for a, b, c in itertools.product(range(n), repeat=3):
        for d in range(c, n):
            own, squared = (c == a) + (d == a), b == a
            others = weights * (1 if squared else s[:, b]) * (1 if c == a else p[:, c]) * (1 if d == a else p[:, d])
            head = p[:, a] ** (own + 1) * (s[:, a] if squared else 1) * y[:, a]
            total = float(others @ head) - (float(others @ p[:, a] ** (own + 2)) if squared else 0.0)
            made[a, b, c, d] = made[a, b, d, c] = total / (own + 1)
    return made
