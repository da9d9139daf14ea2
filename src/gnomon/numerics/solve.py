"""Linear systems with a symmetric matrix that is known by its products."""

from __future__ import annotations

import dataclasses
import logging
import math

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.numerics.lanczos import Product

logger = logging.getLogger("gnomon.numerics")


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """x with |b - (A + damping) x| = residual |b|, and whether that is as small as was asked for.  Shapes: x (P,)."""

    x: Float[Tensor, "P"]
    residual: float
    products: int
    converged: bool


def conjugate_gradient(product: Product, b: Float[Tensor, "P"], *, damping: float = 0.0, tolerance: float = 1e-4, max_products: int = 200) -> Solution:
    """(A + damping) x = b for a symmetric positive definite A + damping.

    Shapes: b (P,).   Error: the relative residual, computed with one product more at the end, not by the recurrence.
    Cost: at most `max_products` + 1 products, four vectors.
    Raises: InvalidInput for a negative damping, no product, or a direction of negative curvature: the message says what damping it takes at least.
    Source: Hestenes & Stiefel 1952.
    """
    if damping < 0 or max_products < 1:
        raise InvalidInput(f"damping must be at least 0 and max_products at least 1, not {damping} and {max_products}.")
    size = float(b.norm())
    x = torch.zeros_like(b)
    if size == 0:
        return Solution(x, 0.0, 0, True)
    r, p = b.clone(), b.clone()
    square, used = float(r @ r), 0
    while used < max_products and math.sqrt(square) > tolerance * size:
        q = product(p) + damping * p
        used += 1
        curvature = float(p @ q)
        if not math.isfinite(curvature):
            raise InvalidInput("A product with the operator is not finite: the network's derivatives overflow. Examine it in float64, or look for infinite activations.")
        if curvature <= 0:
            least = damping - curvature / float(p @ p)
            raise InvalidInput(
                f"The matrix has a direction of curvature {curvature / float(p @ p):.3g} with damping {damping:g}, so the system has no minimum. "
                f"Use a damping above {least:.3g}, or the Gauss-Newton matrix, which has no negative curvature."
            )
        step = square / curvature
        x = x + step * p
        r = r - step * q
        after = float(r @ r)
        p, square = r + (after / square) * p, after
    left = float((b - product(x) - damping * x).norm()) / size
    converged = left <= max(1.01 * tolerance, 100 * torch.finfo(b.dtype).eps)
    if not converged:
        logger.warning("conjugate gradients stopped after %d products at a relative residual of %.1e (asked for: %.1e); raise max_products or the damping", used, left, tolerance)
    return Solution(x, left, used + 1, converged)
