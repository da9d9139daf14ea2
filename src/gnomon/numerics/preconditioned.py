"""Linear systems with a positive definite matrix that is known by its rows and products: pivoted Cholesky, and conjugate gradients with it for several right sides at once."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput

logger = logging.getLogger("gnomon.numerics")


@runtime_checkable
class Matrix(Protocol):
    """A symmetric matrix that gives its products, its rows and its diagonal: a tensor does."""

    def __len__(self) -> int: ...
    def __matmul__(self, x: Tensor, /) -> Tensor:
        """The product with a vector, or with several.  Shapes: (n, k) -> (n, k)."""
        ...

    def __getitem__(self, index: int, /) -> Tensor:
        """One row.  Shapes: (n,)."""
        ...

    def diagonal(self) -> Tensor:
        """The diagonal.  Shapes: (n,)."""
        ...


class NegativeCurvature(InvalidInput):
    """A direction in which the matrix is not positive; `curvature` bounds its smallest eigenvalue from above."""

    def __init__(self, message: str, curvature: float) -> None:
        super().__init__(message)
        self.curvature = curvature


@dataclasses.dataclass(frozen=True, eq=False)
class Solutions:
    """X with (A + damping) X = B, the largest relative residual of its columns, and whether that is as small as was asked for.  Shapes: x (n, k)."""

    x: Float64[Tensor, "n k"]
    residual: float
    products: int
    converged: bool


def pivoted_cholesky(matrix: Matrix, rank: int, *, tolerance: float = 1e-12) -> tuple[Float64[Tensor, "n rank"], float]:
    """L with L L^T near A, of as many columns as `rank`: each takes the largest element that is left on the diagonal; and the trace of what is left.

    Shapes: (n, rank), fewer columns where the trace that is left falls below `tolerance` of the whole.   Cost: `rank` rows of A, and n rank^2.
    Source: Harbrecht, Peters & Schneider 2012, algorithm 1.
    """
    left = matrix.diagonal().double().clone()
    whole, n = float(left.sum()), len(left)
    columns = torch.zeros(min(rank, n), n, dtype=torch.float64, device=left.device)
    count = 0
    while count < len(columns) and float(left.sum()) > tolerance * whole:
        at = int(left.argmax())
        pivot = float(left[at])
        if not pivot > 0:
            break
        columns[count] = (matrix[at].to(left) - columns[:count].T @ columns[:count, at]) / math.sqrt(pivot)
        left = (left - columns[count] ** 2).clamp_min_(0)
        left[at] = 0
        count += 1
    return columns[:count].T.contiguous(), float(left.sum())


class Preconditioner:
    """The inverse of L L^T + s, by Woodbury's formula: (v - L (s + L^T L)^{-1} L^T v) / s.  Cost: two products with L."""

    def __init__(self, low: Float64[Tensor, "n rank"], shift: float) -> None:
        self.low, self.shift = low, shift
        inner = low.T @ low
        inner.diagonal().add_(shift)
        self.factor = torch.linalg.cholesky(inner)

    def __call__(self, x: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """The product of the inverse with several vectors."""
        return (x - self.low @ torch.cholesky_solve(self.low.T @ x, self.factor)) / self.shift


def conjugate_gradients(
    matrix: Matrix, b: Float64[Tensor, "n k"], *, damping: float = 0.0, preconditioner: Preconditioner | None = None, tolerance: float = 1e-8, max_products: int = 1000
) -> Solutions:
    """(A + damping) X = B for every column at once, so that one reading of A serves all of them.

    Shapes: b (n, k).   Error: the largest relative residual of a column, computed with one product more at the end.
    Cost: at most `max_products` + 1 products with k vectors; five arrays of the size of b.
    Raises: InvalidInput for a negative damping or no product, or products that are not finite; NegativeCurvature where A + damping is not positive definite.
    Source: Hestenes & Stiefel 1952; Saad 2003, algorithm 9.1 (preconditioned).
    """
    if damping < 0 or max_products < 1:
        raise InvalidInput(f"damping must be at least 0 and max_products at least 1, not {damping} and {max_products}.")
    sizes = b.norm(dim=0)
    x, r = torch.zeros_like(b), b.clone()
    z = r if preconditioner is None else preconditioner(r)
    p, square, used = z.clone(), (r * z).sum(0), 0
    while used < max_products:
        going = r.norm(dim=0) > tolerance * sizes
        if not bool(going.any()):
            break
        q = matrix @ p + damping * p
        used += 1
        curvature = (p * q).sum(0)
        if not bool(torch.isfinite(curvature).all()):
            raise InvalidInput("A product with the matrix is not finite: it holds NaN or infinite entries. Remove the examples that they come from.")
        ratio = curvature / (p * p).sum(0).clamp_min(torch.finfo(b.dtype).tiny)
        if bool((curvature[going] <= 0).any()):
            least = float(ratio[going].min())
            raise NegativeCurvature(
                f"The matrix is not positive definite: along a direction its curvature is {least:.3g} with damping {damping:g}. Use a larger damping, or remove examples that are equal.",
                least,
            )
        step = torch.where(going, square / curvature, 0)
        x, r = x + step * p, r - step * q
        z = r if preconditioner is None else preconditioner(r)
        after = (r * z).sum(0)
        p, square = z + torch.where(going, after / square, 0) * p, after
    residual = float(((b - matrix @ x - damping * x).norm(dim=0) / sizes.clamp_min(torch.finfo(b.dtype).tiny)).max()) if b.numel() else 0.0
    converged = residual <= max(1.1 * tolerance, 100 * torch.finfo(b.dtype).eps)
    if not converged:
        logger.warning(
            "conjugate gradients stopped after %d products at a relative residual of %.1e (asked for: %.1e); raise max_products, the rank or the damping", used, residual, tolerance
        )
    return Solutions(x, residual, used + 1, converged)
