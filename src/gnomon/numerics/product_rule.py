"""Expectations of products of functions of one to four correlated Gaussian variables, each smooth between its breaks: a product of Gauss-Legendre rules, summed by matrix products.

With the correlations' inverse L, exp(-x L x / 2) is a product over pairs of exp(-|L_ij| d_i d_j (x_i/d_i + sign(L_ij) x_j/d_j)^2 / 2) and over single variables of what is left on the diagonal, for any
d > 0: sums over three or four variables are traces of products of matrices over pairs, so that no array over all of them is made.  d = (M - g)^-1 1, M with L's diagonal and -|L_ij| beside it and
g below its eigenvalues, leaves g + 1/d_i on the diagonal: at least 0 where M is positive, so that no factor is above 1.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from numpy.polynomial import chebyshev
from scipy import fft

from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array

STEEPEST = 2.0
"""The logarithm of the Bernstein ellipse within which functions are taken to be analytic on a piece, at most."""
TAIL = 7.0
"""Natural logarithms by which the outermost density is smaller than what is asked for: products of four factors grow."""
BELOW = 0.1
"""How far g is below the eigenvalues of M where they are not positive."""
LARGEST = 600.0
"""The logarithm up to which factors may grow."""
LONGEST = 128
"""Nodes of one rule at most."""
MATRIX = 2**23
"""Elements of a matrix over a pair of variables at most."""
SUMMED = 2**32
"""Points of the product rules of all groups of a kernel at most."""


PARAMETERS = np.linspace(0.01, 1.0, 100)
"""Ellipses tried, as parts of the largest."""
LOOKED = 64
"""Chebyshev points by which a piece is looked at."""


NOISE = 1e-14
"""Coefficients that are rounding, relative to the largest value of a piece."""
PIECES = 32
"""Pieces beyond which none is halved any more."""


class TooFine(OutOfScope):
    """A product rule of so many points is not made."""


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The ends of the pieces on which functions of a variable are analytic, and for each the parameter of an ellipse on which they are not large."""

    edges: tuple[float, ...]
    steepest: tuple[float, ...]

    @classmethod
    def of(cls, functions: Callable[[Array], Sequence[Array]], breaks: Sequence[float], size: float, digits: float) -> Pieces:
        """Those within reach of a variable of this deviation: coefficients of functions that are analytic there fall as e^(-k x), so that x is told by how many are not yet small; a piece where too many are is halved."""
        need = digits * math.log(10)
        reach, x = math.sqrt(2 * (need + TAIL)) * size, chebyshev.chebpts1(LOOKED)
        todo = list(itertools.pairwise([-reach, *(at for at in breaks if abs(at) < reach), reach]))[::-1]
        usual = np.abs(np.stack(functions(2 * size * x))).max(1, keepdims=True)
        usual[usual == 0] = 1.0
        edges, steepest = [-reach], []
        while todo:
            low, high = todo.pop()
            values = np.stack(functions((low + high) / 2 + (high - low) / 2 * x))
            small = np.maximum(10**-digits * usual, NOISE * np.abs(values).max(1, keepdims=True))
            terms = int(np.flatnonzero((np.abs(fft.dct(values, axis=1)) / LOOKED > small).any(0)).max(initial=0))
            if terms > LOOKED // 2 and len(edges) + len(todo) < PIECES:
                todo += [((low + high) / 2, high), (low, (low + high) / 2)]
                continue
            edges.append(high)
            steepest.append(min(STEEPEST, need / max(terms, 1)))
        return cls(tuple(edges), tuple(steepest))


@dataclasses.dataclass(frozen=True, eq=False)
class Variables:
    """A group of Gaussian variables: their deviations, those of each given the others, and what the density of all is made of.   Shapes: kernel (m, m), positive definite, m at most 4."""

    kernel: Float64[Array, "m m"]

    @functools.cached_property
    def size(self) -> Float64[Array, "m"]:
        """Standard deviations."""
        return np.sqrt(np.diag(self.kernel))

    @functools.cached_property
    def inverse(self) -> Float64[Array, "m m"]:
        """The inverse L of the correlations."""
        found = np.linalg.inv(self.kernel / np.outer(self.size, self.size))
        return (found + found.T) / 2

    def rules(self, pieces: Sequence[Pieces], digits: float) -> list[tuple[Float64[Array, "nodes"], Float64[Array, "nodes"]]]:
        """Nodes and weights (of dz) for each variable, piece by piece, as many as functions and the density ask for.   Error: 10^-digits or so of the largest moment.

        Raises: TooFine where a matrix over a pair of variables has more than MATRIX elements.
        """
        found = [_joined(some, float(alone), digits * math.log(10)) for some, alone in zip(pieces, self.size / np.sqrt(np.diag(self.inverse)), strict=True)]
        most = math.prod(sorted(len(z) for z, _ in found)[-2:])
        if most > MATRIX:
            raise TooFine(f"two inputs are so close that a product rule between kinks has {most:.2g} points")
        return found

    def densities(self, x: Float64[Array, "k"], y: Float64[Array, "l"]) -> Float64[Array, "k l"]:
        """The density (of z) of two variables at all pairs of places in units of their deviations."""
        assert len(self.size) == 2
        own = float(self.inverse[0, 0])
        rho = -float(self.inverse[0, 1]) / own
        return np.exp(-own / 2 * (y - rho * x[:, None]) ** 2) * (np.exp(-(x**2) / 2) * math.sqrt(own) / (2 * math.pi * math.prod(self.size)))[:, None]

    def expectations(self, z: Sequence[Float64[Array, "_"]], f: Sequence[Float64[Array, "_ _"]]) -> Float64[Array, "..."]:
        """E f_1(z_1) ... f_m(z_m) for all choices of a function of each variable.

        Shapes: z[i] (nodes_i,), f[i] (functions_i, nodes_i), weights included -> (functions_1, ..., functions_m).   Error: that of the rules.   Cost: functions_3 prod(nodes) multiplications.
        """
        m, inverse = len(self.size), self.inverse
        beside = -np.abs(inverse)
        np.fill_diagonal(beside, np.diag(inverse))
        least = float(np.linalg.eigvalsh(beside)[0])
        given = 0.0 if least > BELOW else least - BELOW
        d = np.linalg.solve(beside - given * np.eye(m), np.ones(m))
        x = [part / size for part, size in zip(z, self.size, strict=True)]
        left = given + 1 / d
        if sum(max(-own, 0.0) * float(np.abs(part).max()) ** 2 / 2 for own, part in zip(left, x, strict=True)) > LARGEST:
            raise TooFine("the inputs are nearly dependent: their density cannot be written as a product over pairs in float64")
        each = [part * np.exp(-own * at**2 / 2) for part, own, at in zip(f, left, x, strict=True)]
        pair = {
            (i, j): np.exp(-abs(inverse[i, j]) * d[i] * d[j] / 2 * (x[i][:, None] / d[i] + np.sign(inverse[i, j]) * x[j] / d[j]) ** 2)
            for i, j in itertools.combinations(range(m), 2)
        }
        density = math.sqrt(np.linalg.det(inverse)) / (math.prod(self.size) * (2 * math.pi) ** (m / 2))
        return density * _sum(each, pair).reshape([len(part) for part in f])


def _joined(pieces: Pieces, alone: float, need: float) -> tuple[Float64[Array, "nodes"], Float64[Array, "nodes"]]:
    """A rule on each piece, on equal parts of one that would have more than LONGEST nodes, for a deviation given the other variables.

    A rule of n nodes leaves e^(-2 n x + b^2/2) on an ellipse of parameter x, b = (half the length) sinh(x) / (that deviation).
    """
    parts = []
    for (low, high), steepest in zip(itertools.pairwise(pieces.edges), pieces.steepest, strict=True):
        x, pieced = steepest * PARAMETERS, 1
        while True:
            half = (high - low) / 2 / pieced
            count = math.ceil(float(((need + (half / alone * np.sinh(x)) ** 2 / 2) / (2 * x)).min()))
            if count <= LONGEST:
                break
            pieced = max(pieced + 1, pieced * count // LONGEST)
        at, weight = _legendre(count)
        middles = low + half * (2 * np.arange(pieced) + 1)
        parts.append(((middles[:, None] + half * at).reshape(-1), np.tile(half * weight, pieced)))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@functools.lru_cache(maxsize=256)
def _legendre(count: int) -> tuple[Float64[Array, "nodes"], Float64[Array, "nodes"]]:
    x, w = np.polynomial.legendre.leggauss(count)
    return x, w


def _sum(f: list[Float64[Array, "_ _"]], pair: dict[tuple[int, int], Float64[Array, "_ _"]]) -> Float64[Array, "a b c d"]:
    """The sum over all nodes; variables that are not there have one node."""
    f = f + [np.ones((1, 1))] * (4 - len(f))
    pair = pair | {(i, j): np.ones((f[i].shape[1], f[j].shape[1])) for i, j in itertools.combinations(range(4), 2) if (i, j) not in pair}
    total = np.zeros([len(part) for part in f])
    for last in range(f[3].shape[1]):
        third = f[2] * pair[2, 3][:, last]
        between = ((third[:, None] * pair[0, 2]).reshape(-1, third.shape[1]) @ pair[1, 2].T).reshape(len(third), *pair[0, 1].shape)
        between *= pair[0, 1]
        part = (f[0] * pair[0, 3][:, last]) @ between @ (f[1] * pair[1, 3][:, last]).T
        total += part.transpose(1, 2, 0)[..., None] * f[3][:, last]
    return total
