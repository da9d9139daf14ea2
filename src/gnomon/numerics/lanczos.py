"""Extreme eigenvalues of a symmetric operator: thick-restart Lanczos with full reorthogonalisation, each value with a bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput

Product = Callable[[Tensor], Tensor]
EXTRA = 20
"""Basis vectors beyond the wanted ones."""


@dataclasses.dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs with bounds.

    Shapes: values (k,), descending for the largest and ascending for the smallest; vectors (P, k); bounds (k,), converged (k,).
    Error: `bounds` are residual norms |A v - value v| with rounding added: an eigenvalue lies within each.
    """

    values: Tensor
    vectors: Tensor
    bounds: Tensor
    products: int
    converged: Tensor


class Krylov:
    """An orthonormal basis that grows by one product a step, with the operator's projection on it.

    Shapes: basis (P, m); projected (m, m) float64.  `asymmetry` is the largest part of a product that a symmetric operator could not have: what rounding does.
    """

    def __init__(self, product: Product, dimension: int, size: int, *, rng: Generator, like: Tensor) -> None:
        self.product, self.rng, self.like = product, rng, like
        self.basis = torch.zeros(dimension, size, dtype=like.dtype, device=like.device)
        self.projected = torch.zeros(size, size, dtype=torch.float64)
        self.next, self.beta, self.asymmetry, self.count, self.restarts = self._fresh(0), 0.0, 0.0, 0, 0

    def _fresh(self, length: int) -> Tensor:
        """A random unit vector orthogonal to the first `length` basis vectors: the start, and the way out of an invariant subspace."""
        self.restarts = getattr(self, "restarts", 0) + 1
        w = chance.normal(self.basis.shape[0], rng=chance.child(self.rng, "start", self.restarts), like=self.like)
        for _ in range(2):
            w = w - self.basis[:, :length] @ (self.basis[:, :length].T @ w)
        return w / w.norm()

    def step(self, j: int) -> None:
        """Make column j of the basis from `next`, apply the operator to it and orthogonalise twice against the whole basis."""
        self.basis[:, j] = self.next
        w = self.product(self.next).to(self.basis.dtype)
        known, size = self.projected[:j, j].clone(), float(w.norm())
        seen = torch.zeros(j + 1, dtype=torch.float64)
        for _ in range(2):
            part = self.basis[:, : j + 1].T @ w
            w = w - self.basis[:, : j + 1] @ part
            seen += part.double().cpu()
        if j:
            self.asymmetry = max(self.asymmetry, float((seen[:j] - known).norm()))
        self.projected[: j + 1, j] = self.projected[j, : j + 1] = torch.cat([known, seen[j:]])
        self.count, beta = self.count + 1, float(w.norm())
        if beta > 10 * torch.finfo(self.basis.dtype).eps * max(size, float(self.projected[: j + 1, : j + 1].diagonal().abs().max())):
            self.next, self.beta = w / beta, beta
        elif j + 1 < self.basis.shape[0]:
            self.next, self.beta = self._fresh(j + 1), 0.0
        else:
            self.beta = 0.0
        if j + 1 < self.projected.shape[0]:
            self.projected[j + 1, j] = self.projected[j, j + 1] = self.beta


def lanczos_eigenvalues(
    product: Product, dimension: int, *, k: int, which: Literal["largest", "smallest"] | str = "largest", rng: Generator, like: Tensor, tolerance: float = 1e-4,
    max_products: int = 256,
) -> Eigen:  # fmt: skip
    """The k largest or smallest eigenvalues of a symmetric operator.

    A basis of k + 20 vectors is filled by Lanczos steps, each orthogonalised twice against all of it, and restarted from its best Ritz vectors until every
    residual is below `tolerance` times the largest Ritz value's size, or the products are used up.  An invariant subspace is left by a fresh random
    vector, so that repeated eigenvalues are found as often as they occur.

    Shapes: as `Eigen`.   Error: each value's bound; `converged` says which met the tolerance.
    Cost: at most `max_products` products; k + 20 vectors of memory, twice that for a moment at a restart.
    Raises: InvalidInput for k outside 1 .. dimension, too few products, or an operator that returns NaN.
    Source: Wu & Simon 2000.
    """
    if not 1 <= k <= dimension:
        raise InvalidInput(f"k must lie in 1 .. {dimension}, the dimension of the operator, not {k}.")
    if which not in ("largest", "smallest"):
        raise InvalidInput(f"which must be 'largest' or 'smallest', not {which!r}.")
    size = min(dimension, k + EXTRA, max(max_products, 1))
    if size < k:
        raise InvalidInput(f"{k} eigenvalues take at least {k} products; only {max_products} were allowed.")
    sign = 1.0 if which == "largest" else -1.0
    krylov, start = Krylov(lambda v: sign * product(v), dimension, size, rng=rng, like=like), 0
    while True:
        for j in range(start, size):
            krylov.step(j)
            if not torch.isfinite(krylov.projected[j, j]):
                raise InvalidInput("A product with the operator is not finite; look for NaN or overflow in the loss's second derivative.")
            if krylov.count >= max_products:
                break
        filled = j + 1
        values, vectors = torch.linalg.eigh(krylov.projected[:filled, :filled])
        values, vectors = values.flip(0), vectors.flip(1)
        residuals = krylov.beta * vectors[-1].abs()
        scale = float(values.abs().max())
        rounding = 8 * krylov.asymmetry + 32 * torch.finfo(like.dtype).eps * scale
        done = bool((residuals[:k] <= tolerance * scale).all()) or filled == dimension
        if done or krylov.count >= max_products or filled < size:
            break
        start = min(k + (size - k) // 2, size - 1)
        krylov.basis[:, :start] = krylov.basis[:, :filled] @ vectors[:, :start].to(krylov.basis)
        krylov.projected.zero_()
        krylov.projected[:start, :start] = torch.diag(values[:start])
        krylov.projected[start, :start] = krylov.projected[:start, start] = krylov.beta * vectors[-1, :start]
    found = krylov.basis[:, :filled] @ vectors[:, :k].to(krylov.basis)
    bounds = residuals[:k] + rounding
    return Eigen(sign * values[:k], found / found.norm(dim=0), bounds, krylov.count, residuals[:k] <= tolerance * scale + rounding)
