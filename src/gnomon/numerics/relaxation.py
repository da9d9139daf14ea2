"""Linear relaxation u' = b - A u from 0 for a positive definite matrix that is known by its products: what training has reached at a time, by Lanczos."""

from __future__ import annotations

import logging
import math

import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput, NotEnoughMemory
from gnomon.numerics.preconditioned import Matrix, NegativeCurvature, Solutions

logger = logging.getLogger("gnomon.numerics")
GROWTH = 1.25
"""The basis is looked at each time that it has grown by so much."""
HALVINGS = 16
"""Times before the one asked for, each half of the next, at which the residual is looked at."""
LEAST = 16
"""Steps below which a basis is of no use."""
STEPS = 512
"""Steps that a basis has room for, where there is memory for more than one column."""
BESIDE = 8
"""Vectors a column that are held beside the basis."""


def relaxed(matrix: Matrix, b: Float64[Tensor, "n k"], time: float, *, damping: float = 0.0, tolerance: float = 1e-8, max_products: int = 1000, memory: int = 2**31) -> Solutions:
    """u(time) = (A + damping)^{-1} (1 - e^{-(A + damping) time}) b for as many columns of b at once as `memory` holds, so that one reading of A serves all of them.

    On a basis V of s products with A V = V T + beta v e^T, u = V (1 - e^{-T time}) T^{-1} e_1 |b|, and the residual b - A u - u' is beta e_s^T T^{-1} (1 - e^{-T time}) e_1 |b| v: the error of u
    is at most its integral over time, since A only damps.

    Shapes: b (n, k), x the same.   Units: `time` in 1 / those of A.
    Error: `residual`, the largest over columns and times up to `time`, relative to |b|: what that of conjugate gradients is for an infinite time; it stops below `tolerance` or says that it did not.
    Assumes: a symmetric matrix.   Cost: at most `max_products` products with those columns, fewer the shorter the time; a basis of so many vectors a column, cut to `memory`.
    Raises: InvalidInput for a time below 0 or not finite, or products that are not finite; NegativeCurvature where A + damping has an eigenvalue below 0; NotEnoughMemory where 16 vectors do not fit.
    Source: Druskin & Knizhnerman 1989 (functions of a matrix by Lanczos); the residual: Botchev, Grimm & Hochbruck 2013.
    """
    if not (0 <= time < math.inf and damping >= 0 and max_products >= 1):
        raise InvalidInput(f"time must be finite and at least 0, damping at least 0 and max_products at least 1, not {time}, {damping} and {max_products}.")
    n, k = b.shape
    columns = min(max(1, memory // (8 * n * (STEPS + BESIDE))), k)
    most = min(max_products, n, memory // (8 * n * max(columns, 1)) - BESIDE)
    if most < min(LEAST, n, max_products):
        raise NotEnoughMemory(f"A basis of {LEAST} vectors of {n:,} numbers takes {8 * n * (LEAST + BESIDE) / 1e9:.3g} GB, and {memory / 1e9:.3g} GB are allowed.")
    logger.info(
        "training to time %g on %d examples: %d right sides at once of %d, %.2g GB of memory, at most %d products each",
        time,
        n,
        columns,
        k,
        8e-9 * n * columns * (most + BESIDE),
        most,
    )
    out, residual, products = torch.empty_like(b), 0.0, 0
    for start in range(0, k, max(columns, 1)):
        part = slice(start, start + columns)
        found, left, used = _relaxed(matrix, b[:, part].contiguous(), time, damping, tolerance, most)
        out[:, part], residual, products = found, max(residual, left), products + used
    if residual > tolerance:
        logger.warning(
            "Lanczos stopped after %d products at a relative residual of %.1e (asked for: %.1e); raise max_products or memory, or shorten the time", most, residual, tolerance
        )
    return Solutions(out, residual, products, residual <= tolerance)


def _relaxed(matrix: Matrix, b: Float64[Tensor, "n k"], time: float, damping: float, tolerance: float, most: int) -> tuple[Float64[Tensor, "n k"], float, int]:
    """All columns at once: u, the residual and the products."""
    n, k = b.shape
    sizes = b.norm(dim=0)
    basis, alpha, beta = torch.empty(k, most, n, dtype=b.dtype, device=b.device), b.new_zeros(most, k), b.new_zeros(most, k)
    v, used, look = b / sizes.clamp_min(torch.finfo(b.dtype).tiny), 0, LEAST
    while True:
        basis[:, used] = v.T
        w = matrix @ v + damping * v
        alpha[used] = (w * v).sum(0)
        if not bool(torch.isfinite(alpha[used]).all()):
            raise InvalidInput("A product with the matrix is not finite: it holds NaN or infinite entries. Remove the examples that they come from.")
        seen = basis[:, : used + 1]
        for _ in range(2):  # once leaves what rounding put back
            w = w - torch.bmm(torch.bmm(w.T.unsqueeze(1), seen.transpose(1, 2)), seen).squeeze(1).T
        beta[used] = w.norm(dim=0)
        used += 1
        spent = beta[used - 1] <= 100 * torch.finfo(b.dtype).eps * alpha[:used].abs().amax(0)  # the basis is invariant: nothing is missed
        beta[used - 1] = torch.where(spent, 0, beta[used - 1])
        v = torch.where(spent, 0, w / beta[used - 1].clamp_min(torch.finfo(b.dtype).tiny))
        if used >= look or used == most or bool(spent.all()):
            look = max(used + 1, math.ceil(GROWTH * used))
            coordinates, residual = _small(alpha[:used], beta[:used], time, damping)
            if residual <= tolerance or used == most or bool(spent.all()):
                return torch.bmm(coordinates.unsqueeze(1), basis[:, :used]).squeeze(1).T * sizes, residual, used


def _small(alpha: Float64[Tensor, "s k"], beta: Float64[Tensor, "s k"], time: float, damping: float) -> tuple[Float64[Tensor, "k s"], float]:
    """The problem on the basis: coordinates of u for |b| = 1, and the largest residual over columns and times."""
    rest = beta[:-1].T
    small = torch.diag_embed(alpha.T) + torch.diag_embed(rest, 1) + torch.diag_embed(rest, -1)
    values, vectors = torch.linalg.eigh(small)
    least, largest = float(values.min()), float(values.abs().max())
    if least < -small.shape[-1] * torch.finfo(values.dtype).eps * largest:
        raise NegativeCurvature(
            f"The matrix is not positive definite: along a direction its curvature is {least:.3g} with damping {damping:g}. Use a larger damping, or remove examples that are equal.",
            least,
        )
    values = values.clamp_min(0)
    start, residual = vectors[:, 0], 0.0
    for halving in range(HALVINGS, -1, -1):
        at = time / 2**halving
        reached = torch.where(values * at > 1e-12, -torch.expm1(-values * at) / values.clamp_min(torch.finfo(values.dtype).tiny), at)
        found = torch.einsum("kij,kj->ki", vectors, reached * start)
        residual = max(residual, float((beta[-1] * found[:, -1].abs()).max()))
    return found, residual
