"""Eigenvalues at an end of the spectrum of a symmetric operator: thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, unknown

Product = Callable[[Float[Tensor, "P"]], Float[Tensor, "P"]]
"""A symmetric matrix, by its product with a vector."""

EXTRA = 20
"""Vectors kept in the basis beside the wanted ones."""
ROUNDING = 64
"""Rounding of a product and of the basis, in units of eps |A|."""


@dataclasses.dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs with bounds.

    Shapes: `values` (k,) float64, descending for the largest, ascending for the smallest; `vectors` (P, k) of unit length; `residuals` (k,): some
    eigenvalue lies within residuals[i] of values[i]; `bounds` (k,): the i-th eigenvalue does, if none was missed among those that have converged;
    `converged` (k,) bool.  `products` is how many were made.
    """

    values: Float64[Tensor, "k"]
    vectors: Float[Tensor, "P k"]
    bounds: Float64[Tensor, "k"]
    products: int
    converged: Bool[Tensor, "k"]
    residuals: Float64[Tensor, "k"]


def lanczos_eigenvalues(
    product: Product, dimension: int, *, k: int = 1, which: str = "largest", rng: Generator, like: Tensor,
    tolerance: float = 1e-4, max_products: int = 300, basis: int | None = None,
) -> Eigen:  # fmt: skip
    """The k largest (or smallest) eigenvalues of a symmetric matrix that is known by its products, with a bound on each.

    A V = V T + beta v e^T;  for a Ritz pair (theta, V s):  min_lambda |lambda - theta| <= |A V s - theta V s| = beta |s_last|.

    The basis is orthogonalised twice against all of itself, so no eigenvalue is found more often than it occurs.  Where the basis spans an invariant
    subspace, a new random direction is taken up: multiple eigenvalues are then found as often as they occur.

    Shapes: product (P,) -> (P,), P = dimension; vectors have dtype and device of `like`.   Units: those of the operator.
    Error: the residual bound, to which rounding is added, as far as products and recurrence show it (never 0).  From the first value that has not
    converged on, eigenvalues may have been missed; bounds then reach to the last value that has (Ritz values lie below the eigenvalue of their rank).
    Assumes: the operator is symmetric.   A value is converged where its residual is at most `tolerance` times the larger of |value| and a hundredth of
    the largest |eigenvalue| seen; those that are not are returned with the bounds they have.
    Cost: at most `max_products` products; `basis` + 1 vectors of memory (default k + 20).
    Raises: InvalidInput for k outside 1 .. dimension, too few products, or a product that is not finite.
    Source: Wu & Simon 2000 (thick restart); Parlett 1980, section 4.5 (residual bounds).
    """
    if which not in ("largest", "smallest"):
        raise unknown("end of the spectrum", which, ("largest", "smallest"))
    if not 1 <= k <= dimension:
        raise InvalidInput(f"k must lie in 1 .. {dimension}, the dimension of the operator, not {k}.")
    if max_products < min(k + 1, dimension):
        raise InvalidInput(f"{k} eigenvalues of an operator of dimension {dimension} take at least {min(k + 1, dimension)} products; max_products is {max_products}.")
    if basis is not None and basis < k + 2:
        raise InvalidInput(f"The basis must hold at least k + 2 = {k + 2} vectors, not {basis}.")
    size = min(basis or k + EXTRA, dimension)
    run = _Lanczos(product, dimension, size, like, rng, sign=1.0 if which == "largest" else -1.0)
    while run.products < max_products:
        run.step()
        if run.filled == dimension or (run.filled > k and run.settled(k, tolerance)):
            break
        if run.filled == size and run.products < max_products:
            run.restart(min(k + (size - k) // 2, size - 1))
    values, rows, residuals = run.ritz()
    if run.filled < k:
        raise InvalidInput(f"{max_products} products did not give {k} eigenvalues; raise max_products.")
    vectors = torch.stack([rows[:, i].to(run.vectors) @ run.vectors[: run.filled] for i in range(k)], 1)
    vectors /= vectors.norm(dim=0)
    converged = run.small(values[:k], residuals[:k], tolerance)
    residuals = residuals[:k] + run.rounding()
    return Eigen(run.sign * values[:k], vectors, _bounds(values[:k], residuals, converged), run.products, converged, residuals)


def _bounds(values: Float64[Tensor, "k"], residuals: Float64[Tensor, "k"], converged: Bool[Tensor, "k"]) -> Float64[Tensor, "k"]:
    """Residuals; from the first value that has not converged on, eigenvalues may have been missed: the i-th one lies between its Ritz value and the last converged one."""
    settled = int((~converged).int().argmax()) if not bool(converged.all()) else len(converged)
    if not 0 < settled < len(values):
        return residuals
    reach = values[settled - 1] + residuals[settled - 1] - values
    return torch.where(torch.arange(len(values)) >= settled, torch.maximum(residuals, reach), residuals)


class Basis:
    """Orthonormal rows, and the projection of an operator on them, grown a vector at a time."""

    def __init__(self, product: Product, dimension: int, size: int, like: Tensor, rng: Generator, *, sign: float = 1.0) -> None:
        self.product, self.dimension, self.size, self.rng, self.sign = product, dimension, size, rng, sign
        self.vectors = torch.empty(size + 1, dimension, dtype=like.dtype, device=like.device)
        self.matrix = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        self.filled = self.products = self.draws = self.block = self.previous = 0
        self.norm = self.noise = self.beta = 0.0

    def begin(self, start: Float[Tensor, "P"] | None = None) -> None:
        """Take the first vector, drawn at random where none is given."""
        self.vectors[0] = self._fresh(0) if start is None else start / start.norm()

    def step(self) -> None:
        """One product; the projection gets a row, the basis the next vector."""
        j = self.filled
        w = self.product(self.vectors[j]) * self.sign
        self.products += 1
        if not bool(torch.isfinite(w).all()):
            raise InvalidInput("A product with the operator is not finite: the network's derivatives overflow. Examine it in float64, or look for infinite activations.")
        self.norm = max(self.norm, float(w.norm()))
        known = self.vectors[: j + 1]
        first = known @ w
        w = w - first @ known
        second = known @ w
        w = w - second @ known
        seen = (first + second).double().cpu()
        # What an exact symmetric operator would make 0, or equal to what is known already, shows how exact the products are.
        if j:
            self.noise = max(self.noise, float((seen[:j] - self.matrix[:j, j]).abs().max()))
        self.matrix[j, j] = seen[j]
        self.beta, self.filled = float(w.norm()), j + 1
        if self.filled == self.dimension:
            self.beta = 0.0
        elif self.beta <= self._negligible():
            self.beta, self.vectors[j + 1] = 0.0, self._fresh(j + 1)
            self.previous, self.block = self.block, j + 1
        else:
            w = w / self.beta
            w = w - (known @ w) @ known
            self.vectors[j + 1] = w / w.norm()
        self.matrix[j, j + 1] = self.matrix[j + 1, j] = self.beta

    def _negligible(self) -> float:
        return 10 * torch.finfo(self.vectors.dtype).eps * max(self.norm, torch.finfo(self.vectors.dtype).tiny) + 4 * self.noise

    def _fresh(self, count: int) -> Float[Tensor, "P"]:
        """A random unit vector orthogonal to the first `count`."""
        vector = chance.normal(self.dimension, rng=chance.child(self.rng, "start", self.draws), like=self.vectors)
        self.draws += 1
        known = self.vectors[:count]
        for _ in range(3):
            vector = vector / vector.norm()
            vector = vector - (known @ vector) @ known
        return vector / vector.norm()

    def rounding(self) -> float:
        """A bound on what rounding does to a Ritz value."""
        info = torch.finfo(self.vectors.dtype)
        return ROUNDING * info.eps * max(self.norm, info.tiny / info.eps) + 4 * self.noise


class _Lanczos(Basis):
    def __init__(self, product: Product, dimension: int, size: int, like: Tensor, rng: Generator, *, sign: float) -> None:
        super().__init__(product, dimension, size, like, rng, sign=sign)
        self.begin()

    def ritz(self) -> tuple[Float64[Tensor, "m"], Float64[Tensor, "m m"], Float64[Tensor, "m"]]:
        """Ritz values, descending, their vectors in the basis (columns), and their residual norms."""
        return self._ritz(0)

    def _ritz(self, start: int) -> tuple[Float64[Tensor, "m"], Float64[Tensor, "m m"], Float64[Tensor, "m"]]:
        values, rows = torch.linalg.eigh(self.matrix[start : self.filled, start : self.filled])
        values, rows = values.flip(0), rows.flip(1)
        return values, rows, self.beta * rows[-1].abs()

    def small(self, values: Float64[Tensor, "k"], residuals: Float64[Tensor, "k"], tolerance: float) -> Bool[Tensor, "k"]:
        """Which residuals count as converged."""
        return residuals <= tolerance * torch.clamp_min(values.abs(), 0.01 * self.norm)

    def settled(self, k: int, tolerance: float) -> bool:
        """Whether the leading k have converged and no further copy of one is to come.

        After a breakdown the basis falls into blocks that do not see each other, each with one copy of every eigenvalue that is left: the last block
        must have shown its own leading value, and at its end it must not have changed the wanted ones.
        """
        values, _, residuals = self.ritz()
        if not bool(self.small(values[:k], residuals[:k], tolerance).all()):
            return False
        if self.beta == 0:
            before = torch.linalg.eigvalsh(self.matrix[: self.previous, : self.previous]).flip(0)
            return len(before) >= k and bool(((before[:k] - values[:k]).abs() <= self.rounding()).all())
        if self.block == 0:
            return True
        inner, _, inner_residuals = self._ritz(self.block)
        return bool(self.small(inner[:1], inner_residuals[:1], tolerance).all())

    def restart(self, keep: int) -> None:
        """Keep the leading Ritz vectors and the last residual: A V_k = V_k diag(theta) + v (beta s_last)."""
        m = self.filled
        values, rows, _ = self.ritz()
        turn = rows[:, :keep].T.to(self.vectors)
        for start in range(0, self.dimension, 1 << 16):
            part = self.vectors[:m, start : start + (1 << 16)]
            part[:keep] = turn @ part
        self.vectors[keep] = self.vectors[m]
        self.matrix.zero_()
        self.matrix[range(keep), range(keep)] = values[:keep]
        self.matrix[keep, :keep] = self.matrix[:keep, keep] = self.beta * rows[m - 1, :keep]
        self.filled = keep
        self.previous, self.block = 0, keep if self.beta == 0 else 0
        # Rows rotated in place lose a few units in the last place of their orthogonality; the next vector is cleaned against them.
        last = self.vectors[keep]
        last -= (self.vectors[:keep] @ last) @ self.vectors[:keep]
        last /= last.norm()
