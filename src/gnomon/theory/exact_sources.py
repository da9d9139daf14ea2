"""Expectations of four factors at up to four correlated inputs without a grid in four dimensions: Hermite series between one or two inputs and one or two others.

Two groups of standard normals x, y with canonical correlations rho_1, rho_2:  E F(x) G(y) = sum over p, q of rho_1^p rho_2^q F_pq G_pq, with the Hermite coefficients of F and of G in their
canonical coordinates.  Four slots at inputs a, b, c, d are split as (ab | cd) where all differ, (aa | bc), (aa | bb), (aaa | b) and (aaaa): never more than a plane is integrated over.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.numerics import chaos
from gnomon.numerics.nodes import POLE, derivatives
from gnomon.theory.activations import Function
from gnomon.theory.pairs import Table
from gnomon.theory.sources import Sources

FAMILIES = {"ssss": (0, 0, 0, 0), "sspp": (0, 0, 1, 1), "pppp": (1, 1, 1, 1), "qspp": (2, 0, 1, 1), "rppp": (3, 1, 1, 1), "qqpp": (2, 2, 1, 1)}
"""The derivative of each of four factors."""
NEEDED = {1: ("ssss", "sspp", "pppp"), 2: ("ssss", "sspp", "pppp", "qspp"), 3: tuple(FAMILIES)}

Key = tuple[int, ...]


def _keys(order: int) -> list[Key]:
    """The products of derivatives at one input that occur in a family."""
    found = {tuple(sorted(part)) for name in NEEDED[order] for size in (1, 2, 3, 4) for part in itertools.combinations(FAMILIES[name], size)}
    return sorted(found, key=lambda key: (len(key), key))


class Moments:
    """E prod over inputs of a product of derivatives, for all inputs of a kernel at once.   Shapes: kernel (n, n), positive semi-definite."""

    def __init__(self, activation: Function, kernel: Float64[Array, "n n"], *, order: int, digits: float) -> None:
        self.activation, self.kernel, self.order, self.need = activation, kernel, order, digits * math.log(10) + 1
        self.size = np.sqrt(np.diag(kernel))
        self.rho = kernel / np.outer(self.size, self.size)
        self.keys = _keys(order)
        u, w = chaos.line()
        self.one: list[Array] = []
        for size in self.size:
            f = derivatives(activation, size * u, order)
            self.one.append(chaos.coefficients(np.stack([np.prod([f[k] for k in key], axis=0) for key in self.keys])))

    def row(self) -> Float64[Array, "moments"]:
        """All moments: of one input, of two, of three as (key, f, g), of four."""
        n = len(self.kernel)
        powers = np.clip(self.rho, -1, 1)[:, :, None] ** np.arange(chaos.ORDER)
        pairs = [(self.one[a] * powers[a, b]) @ self.one[b].T for a in range(n) for b in range(n)]
        threes = [self._three(*group) for group in _triples(n)]
        fours = [self._four(*group) for group in itertools.combinations(range(n), 4)]
        return np.concatenate([part.reshape(-1) for part in ([one[:, 0] for one in self.one] + pairs + threes + fours)])

    def _plane(self, basis: Float64[Array, "2 2"], orders: Sequence[int]) -> Float64[Array, "f g p q"]:
        """Hermite coefficients of f(z_1) g(z_2), z = basis (x, y), for all derivatives f and g."""
        axes = []
        for moved, order in zip(np.abs(basis).max(0), orders, strict=True):
            reach = math.sqrt(2 * self.need) + 1.0
            step = min(math.pi * math.sqrt(2 / self.need), 2 * math.pi * POLE / self.need / max(moved, 1e-300), math.pi / math.sqrt(2 * order + 1))
            count = math.ceil(reach / step)
            u = np.arange(-count, count + 1) * step
            axes.append((u, chaos.hermite(u, max(order, 2))[:order] * (step / math.sqrt(2 * math.pi) * np.exp(-(u**2) / 4))))
        (x, left), (y, right) = axes
        z = basis[:, 0, None, None] * x[:, None] + basis[:, 1, None, None] * y
        f = np.stack(derivatives(self.activation, z, self.order))
        count = self.order + 1
        products = (f[:, None, 0] * f[None, :, 1]).reshape(count**2 * len(x), len(y)) @ right.T
        return np.einsum("px,fxq->fpq", left, products.reshape(count**2, len(x), -1), optimize=True).reshape(count, count, len(left), -1)

    def _terms(self, moved: float, rho: float) -> int:
        """How many polynomials along a direction by which inputs move this much."""
        poles = 0.5 * (self.need * moved / math.pi) ** 2 + 8
        correlated = self.need / max(-math.log(max(abs(rho), 1e-300)), 1e-300) + 4
        return int(min(poles + 8, correlated, chaos.ORDER))

    def _three(self, a: int, b: int, c: int) -> Float64[Array, "keys f g"]:
        """E k(z_a) f(z_b) g(z_c)."""
        basis, rho = self._against((a,), (b, c))
        coefficients = self._plane(basis, (self._terms(float(np.abs(basis[:, 0]).max()) + self.size[a], rho[0]), 1))[..., 0]
        p = coefficients.shape[-1]
        return np.einsum("kp,fgp->kfg", self.one[a][:, :p] * rho[0] ** np.arange(p), coefficients)

    def _four(self, a: int, b: int, c: int, d: int) -> Float64[Array, "f g h k"]:
        """E f(z_a) g(z_b) h(z_c) k(z_d)."""
        left, right, rho = self._canonical((a, b), (c, d))
        orders = [self._terms(float(np.abs(left[:, i]).max()) + float(np.abs(right[:, i]).max()), rho[i]) for i in (0, 1)]
        f, g = self._plane(left, orders), self._plane(right, orders)
        weights = np.outer(rho[0] ** np.arange(f.shape[2]), rho[1] ** np.arange(f.shape[3]))
        count = self.order + 1
        made = (f * weights).reshape(count**2, -1) @ g.reshape(count**2, -1).T
        return made.reshape(count, count, count, count)

    def _root(self, group: tuple[int, ...]) -> Float64[Array, "m m"]:
        values, vectors = np.linalg.eigh(self.kernel[np.ix_(group, group)])
        return vectors * np.sqrt(np.maximum(values, 0.0))

    def _against(self, one: tuple[int], two: tuple[int, int]) -> tuple[Float64[Array, "2 2"], list[float]]:
        """The basis of a pair whose first coordinate is that part of it which one more input is correlated with, and how much."""
        root = self._root(two)
        cross = np.linalg.pinv(root, rcond=1e-7) @ self.kernel[np.ix_(two, one)][:, 0] / self.size[one[0]]
        rho = float(np.linalg.norm(cross))
        direction = cross / rho if rho > 1e-14 else np.array([1.0, 0.0])
        turn = np.array([[direction[0], -direction[1]], [direction[1], direction[0]]])
        return root @ turn, [min(rho, 1.0)]

    def _canonical(self, left: tuple[int, int], right: tuple[int, int]) -> tuple[Float64[Array, "2 2"], Float64[Array, "2 2"], Float64[Array, "2"]]:
        """Bases of two pairs in which they are correlated coordinate by coordinate."""
        first, second = self._root(left), self._root(right)
        cross = np.linalg.pinv(first, rcond=1e-7) @ self.kernel[np.ix_(left, right)] @ np.linalg.pinv(second, rcond=1e-7).T
        u, rho, vt = np.linalg.svd(cross)
        return first @ u, second @ vt.T, np.minimum(rho, 1.0)


@functools.lru_cache(maxsize=16)
def _plan(n: int, order: int) -> dict[str, Array]:
    """Where each element of each family stands among all moments in a row: those of one input, two, three, four."""
    keys = _keys(order)
    index, count, size = {key: number for number, key in enumerate(keys)}, order + 1, len(keys)
    threes = {group: number for number, group in enumerate(_triples(n))}
    fours = {group: number for number, group in enumerate(itertools.combinations(range(n), 4))}
    starts = np.cumsum([0, n * size, n * n * size**2, len(threes) * size * count**2])

    def place(slots: tuple[tuple[int, int], ...]) -> int:
        groups: dict[int, list[int]] = {}
        for at, derivative in slots:
            groups.setdefault(at, []).append(derivative)
        found = sorted(((at, tuple(sorted(key))) for at, key in groups.items()), key=lambda pair: (-len(pair[1]), pair[0]))
        at = tuple(a for a, _ in found)
        if len(found) == 1:
            return int(at[0] * size + index[found[0][1]])
        if len(found) == 2:
            return int(starts[1] + ((at[0] * n + at[1]) * size + index[found[0][1]]) * size + index[found[1][1]])
        rest = [key[0] for _, key in found[1:]]
        if len(found) == 3:
            return int(starts[2] + ((threes[at] * size + index[found[0][1]]) * count + rest[0]) * count + rest[1])  # type: ignore[index]
        return int(starts[3] + fours[at] * count**4 + np.ravel_multi_index((found[0][1][0], *rest), (count,) * 4))  # type: ignore[index]

    return {name: np.array([place(tuple(zip(at, FAMILIES[name], strict=True))) for at in itertools.product(range(n), repeat=4)]) for name in NEEDED[order]}


def _triples(n: int) -> list[tuple[int, int, int]]:
    return [(a, b, c) for b, c in itertools.combinations(range(n), 2) for a in range(n) if a not in (b, c)]


def exact_sources(activation: Function, kernel: Float64[Array, "n n"], two: Table, *, order: int, digits: float) -> Sources:
    """The sources of a smooth activation at up to four inputs.   Shapes: kernel (n, n) -> (n, n, n, n) each.   Error: about 10^-digits.   Cost: 26 planes of 10^4 nodes at four inputs."""
    n, moments = len(kernel), Moments(activation, kernel, order=order, digits=digits)
    row, none = moments.row(), np.zeros((0, 0, 0, 0))
    full = {name: row[at].reshape(n, n, n, n) for name, at in _plan(n, order).items()}
    ss, pp = two[0, 0], two[1, 1]
    return Sources(
        full["ssss"] - np.multiply.outer(ss, ss), full["sspp"] - np.multiply.outer(ss, pp), full["pppp"] - np.multiply.outer(pp, pp), full["sspp"], full["pppp"],
        full.get("qspp", none), full.get("rppp", none), full.get("qqpp", none),
    )  # fmt: skip
