"""Systems with a kernel matrix: Cholesky where it fits, preconditioned conjugate gradients over a matrix on disk where it does not."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput, NotEnoughMemory, OutOfScope, unknown
from gnomon.numerics.preconditioned import NegativeCurvature, Preconditioner, conjugate_gradients, pivoted_cholesky
from gnomon.theory.infinite.matrix import DiskMatrix

logger = logging.getLogger("gnomon.theory")
METHODS = ("cholesky", "conjugate gradients")
HELD = 2
"""Matrices of float64 that a Cholesky factorisation holds."""
INVERSE_STEPS = 8
"""Steps of inverse iteration towards the smallest eigenvalue."""


class NotPositiveDefinite(OutOfScope):
    """A kernel matrix has an eigenvalue that is not above rounding."""


class Solved(NamedTuple):
    """x with (K + ridge) x = y, how it was found ("cholesky" or "conjugate gradients"), the largest relative residual of a column, and the products that it took.  Shapes: x as y."""

    x: Float64[Tensor, "n ..."]
    method: str
    residual: float
    products: int


def solve(
    matrix: Tensor | DiskMatrix, targets: Float[Tensor, "n ..."], *, ridge: float = 0.0, method: str | None = None, memory: int = 2**31, tolerance: float = 1e-8,
    rank: int | None = None, max_products: int = 1000,
) -> Solved:  # fmt: skip
    """(K + ridge) x = y for a kernel matrix in memory or on disk: by Cholesky where two such matrices in float64 fit in `memory`, else by conjugate gradients, or as `method` says.

    Conjugate gradients take all columns of y at once, a reading of the matrix each step, with a pivoted Cholesky factor of `rank` columns (by default 4 sqrt(n)) as preconditioner.
    Shapes: y (n,) or (n, outputs), x the same.   Error: `residual`, relative to the norm of a column; conjugate gradients stop below `tolerance` or say that they did not.
    Assumes: a symmetric matrix.   Cost: n^3 / 3, or a product a step; the method is said in the answer and logged.
    Raises: NotPositiveDefinite, with the eigenvalue (or a bound of it) and the ridge that would do; nothing is ever added to the diagonal but `ridge`.  InvalidInput where shapes differ.
    Source: Gardner et al. 2018, section 4 (pivoted Cholesky as preconditioner).
    """
    n = len(matrix)
    if tuple(matrix.shape) != (n, n) or targets.ndim not in (1, 2) or len(targets) != n:
        raise InvalidInput(f"A square kernel matrix and as many targets are needed, not shapes {tuple(matrix.shape)} and {tuple(targets.shape)}.")
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise InvalidInput(f"ridge must be finite and at least 0, not {ridge}.")
    b = targets.reshape(n, -1).to(matrix.device if isinstance(matrix, Tensor) else "cpu", torch.float64)
    if not bool(torch.isfinite(b).all()):
        raise InvalidInput("The targets hold numbers that are not finite.")
    taken = HELD * 8 * n * n
    if method is None:
        method = METHODS[0] if taken <= memory else METHODS[1]
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    logger.info("a system of %d examples is solved by %s: Cholesky takes %.3g GB and %.3g GB are allowed", n, method, taken / 1e9, memory / 1e9)
    if method == METHODS[0]:
        dense = matrix.dense() if isinstance(matrix, DiskMatrix) else matrix.double().clone()
        check_finite(dense)
        x = torch.cholesky_solve(b, cholesky(dense, ridge))
        residual = (b - matrix.double() @ x - ridge * x if isinstance(matrix, Tensor) else b - matrix @ x - ridge * x).norm(dim=0) / b.norm(dim=0).clamp_min(1e-300)
        return Solved(x.reshape(targets.shape), method, float(residual.max()), 1)
    whole = matrix.double() if isinstance(matrix, Tensor) else matrix
    low, left = pivoted_cholesky(whole, rank if rank is not None else 4 * math.isqrt(n))
    shift = ridge + left / n
    try:
        found = conjugate_gradients(whole, b, damping=ridge, preconditioner=Preconditioner(low, shift) if shift > 0 else None, tolerance=tolerance, max_products=max_products)
    except NegativeCurvature as error:
        raise refusal(n, error.curvature, float(whole.diagonal().sum()), "at most ") from error
    return Solved(found.x.reshape(targets.shape), method, found.residual, found.products)


def fits(n: int, memory: int) -> bool:
    """Whether a kernel of n examples, with its factor, fits in so many bytes."""
    return HELD * 8 * n * n <= memory


def too_large(n: int, memory: int) -> NotEnoughMemory:
    """What to say where it does not."""
    return NotEnoughMemory(
        f"The kernel of {n:,} examples and its factor take {HELD * 8 * n * n / 1e9:.3g} GB, and {memory / 1e9:.3g} GB are allowed. Give `folder`, in which the kernel is kept on disk "
        "for conjugate gradients, or more `memory`."
    )


def check_finite(matrix: Float64[Tensor, "n n"]) -> None:
    """Raises: InvalidInput for a kernel matrix with entries that are not finite, with the first of them."""
    bad = (~torch.isfinite(matrix)).nonzero()
    if len(bad):
        raise InvalidInput(f"The kernel matrix has {len(bad)} entries that are not finite, the first of them at {tuple(bad[0].tolist())}; look at these examples.")


def cholesky(matrix: Float64[Tensor, "n n"], shift: float) -> Float64[Tensor, "n n"]:
    """The lower factor of a kernel matrix with `shift` on its diagonal, in place of the matrix.

    Raises: NotPositiveDefinite where the smallest eigenvalue, found by inverse iteration, is not above rounding.
    """
    n = len(matrix)
    matrix.diagonal().add_(shift)
    largest = float(matrix.abs().sum(0).max())
    rounding = n * torch.finfo(matrix.dtype).eps * largest
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed):
        v = torch.ones(n, 1, dtype=matrix.dtype, device=matrix.device)
        v[1::2] = -1.0
        v[::3] *= 0.5  # no direction that a symmetry of the data would leave out
        for _ in range(INVERSE_STEPS):
            v = torch.cholesky_solve(v / v.norm(), factor)
        least = 1 / float(v.norm())
        if least > rounding:
            return factor
    values = torch.linalg.eigvalsh(matrix)
    raise refusal(n, float(values[0]), largest, "")


def refusal(n: int, least: float, largest: float, about: str) -> NotPositiveDefinite:
    """The error for a kernel matrix with the smallest eigenvalue `least`."""
    rounding = n * torch.finfo(torch.float64).eps * largest
    return NotPositiveDefinite(
        f"the kernel matrix of the {n} training examples is not positive definite: its smallest eigenvalue is {about}{least:.3g}, its largest at most {largest:.3g} (equal examples, or float32 "
        f"data?); give jitter, noise or ridge of about {max(10 * rounding, 2 * abs(least)):.1g} if a kernel with that on its diagonal is what you want"
    )
