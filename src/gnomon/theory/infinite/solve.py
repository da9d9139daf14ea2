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
from gnomon.theory.infinite.matrix import BLOCK, DiskMatrix

logger = logging.getLogger("gnomon.theory")
METHODS = ("cholesky", "conjugate gradients")
HELD = 2
"""Matrices of float64 that a Cholesky factorisation holds."""
INVERSE_STEPS = 8
"""Steps of inverse iteration towards the smallest eigenvalue."""
COLUMNS = 10
"""Arrays of the size of the right sides that conjugate gradients hold."""
PART = 4
"""The preconditioner takes at most so much of the memory as one over this."""


class NotPositiveDefinite(OutOfScope):
    """A kernel matrix has an eigenvalue that is not above rounding."""


class Solved(NamedTuple):
    """x with (K + ridge) x = y, how it was found ("cholesky" or "conjugate gradients"), the largest relative residual of a column, and the products that it took.  Shapes: x as y."""

    x: Float64[Tensor, "n ..."]
    method: str
    residual: float
    products: int


class SolveCost(NamedTuple):
    """What a system takes, known beforehand: the method, right sides at once and in how many rounds, columns of the preconditioner, bytes held beside the matrix (or of its copy), bytes read a product."""

    method: str
    columns: int
    rounds: int
    rank: int
    memory: int
    read: int

    def __str__(self) -> str:
        held = f"{self.memory / 1e9:.2g} GB of memory"
        if self.method == METHODS[0]:
            return f"{self.method}, {held}"
        return f"{self.method}, {self.columns} right sides at once in {self.rounds} rounds, {held}, {self.read / 1e9:.2g} GB read a product"


def solve_cost(n: int, outputs: int = 1, *, method: str | None = None, memory: int = 2**31, rank: int | None = None, itemsize: int = 4) -> SolveCost:
    """What `solve` takes for n examples and so many right sides, said before anything is read; `itemsize` is the bytes of a number of the matrix on disk.

    Shapes: none.   Units: bytes.   Error: none for what is read; memory is an upper bound beside the process as it was.   Assumes: as `solve`.   Cost: none.
    Raises: NotEnoughMemory where not even one right side fits, or the answer does not.   Source: counted here.
    """
    method = method if method is not None else METHODS[0] if fits(n, memory) else METHODS[1]
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if method == METHODS[0]:
        return SolveCost(method, outputs, 1, 0, HELD * 8 * n * n, n * n * itemsize)
    rank = min(rank if rank is not None else min(4 * math.isqrt(n), max(memory // (PART * 16 * n), 1)), n)
    reading = min(BLOCK, n * n * itemsize) * (1 if itemsize == 8 else 3)
    fixed = 8 * n * outputs + 16 * n * rank + 8 * rank**2 + reading
    columns = min((memory - fixed) // (8 * COLUMNS * n), outputs)
    if columns < min(1, outputs):
        raise NotEnoughMemory(
            f"Conjugate gradients for {n:,} examples hold {fixed / 1e9:.3g} GB ({outputs} answers, {rank} columns of a preconditioner and what is read at a time) and {8e-9 * COLUMNS * n:.3g} GB a "
            f"right side, and {memory / 1e9:.3g} GB are allowed. Give more `memory`, fewer right sides or a smaller `rank`."
        )
    return SolveCost(method, columns, -(-outputs // max(columns, 1)), rank, fixed + 8 * COLUMNS * n * columns, n * n * itemsize)


def solve(
    matrix: Tensor | DiskMatrix, targets: Float[Tensor, "n ..."], *, ridge: float = 0.0, method: str | None = None, memory: int = 2**31, tolerance: float = 1e-8,
    rank: int | None = None, max_products: int = 1000,
) -> Solved:  # fmt: skip
    """(K + ridge) x = y for a kernel matrix in memory or on disk: by Cholesky where two such matrices in float64 fit in `memory`, else by conjugate gradients, or as `method` says.

    Conjugate gradients take as many columns of y at once as fit in `memory` beside the answer (`solve_cost` says it beforehand), a reading of the matrix each step, with a pivoted Cholesky
    factor of `rank` columns (by default 4 sqrt(n), or what fits in a quarter of the memory) as preconditioner.
    Shapes: y (n,) or (n, outputs), x the same.   Error: `residual`, relative to the norm of a column; conjugate gradients stop below `tolerance` or say that they did not.
    Assumes: a symmetric matrix.   Cost: n^3 / 3, or a product a step; the method is said in the answer and logged.
    Raises: NotPositiveDefinite, with the eigenvalue (or a bound of it) and the ridge that would do; nothing is ever added to the diagonal but `ridge`.  InvalidInput where shapes differ.
    NotEnoughMemory where not even one column fits.
    Source: Gardner et al. 2018, section 4 (pivoted Cholesky as preconditioner).
    """
    n = len(matrix)
    if tuple(matrix.shape) != (n, n) or targets.ndim not in (1, 2) or len(targets) != n:
        raise InvalidInput(f"A square kernel matrix and as many targets are needed, not shapes {tuple(matrix.shape)} and {tuple(targets.shape)}.")
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise InvalidInput(f"ridge must be finite and at least 0, not {ridge}.")
    y = targets.reshape(n, -1)
    if not bool(torch.isfinite(y).all()):
        raise InvalidInput("The targets hold numbers that are not finite; leave their examples out.")
    itemsize = matrix.element_size() if isinstance(matrix, Tensor) else matrix.dtype.itemsize
    cost = solve_cost(n, y.shape[1], method=method, memory=memory, rank=rank, itemsize=itemsize)
    logger.info("a system of %d examples is solved by %s; Cholesky takes %.3g GB and %.3g GB are allowed", n, cost, HELD * 8 * n * n / 1e9, memory / 1e9)
    device = matrix.device if isinstance(matrix, Tensor) else torch.device("cpu")
    if cost.method == METHODS[0]:
        b = y.to(device, torch.float64)
        dense = matrix.dense() if isinstance(matrix, DiskMatrix) else matrix.double().clone()
        check_finite(dense)
        x = torch.cholesky_solve(b, cholesky(dense, ridge))
        residual = (b - matrix.double() @ x - ridge * x if isinstance(matrix, Tensor) else b - matrix @ x - ridge * x).norm(dim=0) / b.norm(dim=0).clamp_min(1e-300)
        return Solved(x.reshape(targets.shape), cost.method, float(residual.max()) if residual.numel() else 0.0, 1)
    whole = matrix.double() if isinstance(matrix, Tensor) else matrix
    low, left = pivoted_cholesky(whole, cost.rank)
    shift = ridge + left / n
    helped = Preconditioner(low, shift) if shift > 0 else None
    answer, worst, products = torch.empty(n, y.shape[1], dtype=torch.float64, device=device), 0.0, 0
    try:
        for start in range(0, y.shape[1], max(cost.columns, 1)):
            part = slice(start, start + cost.columns)
            right = y[:, part].to(device, torch.float64).contiguous()
            found = conjugate_gradients(whole, right, damping=ridge, preconditioner=helped, tolerance=tolerance, max_products=max_products)
            answer[:, part], worst, products = found.x, max(worst, found.residual), products + found.products
    except NegativeCurvature as error:
        raise refusal(n, error.curvature, float(whole.diagonal().sum()), "at most ") from error
    return Solved(answer.reshape(targets.shape), cost.method, worst, products)


def fits(n: int, memory: int) -> bool:
    """Whether a kernel of n examples, with its factor, fits in so many bytes."""
    return HELD * 8 * n * n <= memory


def too_large(n: int, needed: int, memory: int, instead: str = "`folder`, in which the kernels are kept on disk, or more `memory`") -> NotEnoughMemory:
    """What to say where it does not."""
    return NotEnoughMemory(f"The kernels of {n:,} examples, and what is made of them, take {needed / 1e9:.3g} GB in memory, and {memory / 1e9:.3g} GB are allowed. Give {instead}.")


def check_finite(matrix: Float64[Tensor, "n n"]) -> None:
    """Raises: InvalidInput for a kernel matrix with entries that are not finite, with the first of them."""
    bad = (~torch.isfinite(matrix)).nonzero()
    if len(bad):
        raise InvalidInput(f"The kernel matrix has {len(bad)} entries that are not finite, the first of them at {tuple(bad[0].tolist())}; look at these examples.")


def cholesky(matrix: Float64[Tensor, "n n"], shift: float) -> Float64[Tensor, "n n"]:
    """The lower factor of a kernel matrix with `shift` on its diagonal, in place of the matrix.

    Shapes: (n, n) -> (n, n).   Raises: NotPositiveDefinite where the smallest eigenvalue, found by inverse iteration, is not above rounding.
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
