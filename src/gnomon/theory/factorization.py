"""Critical points of matrix factorisations in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.core.source import Source


def critical_losses(singular: Float[Tensor, "k"], kept: Bool[Tensor, "points k"]) -> Reading:
    """The loss |M - P|^2 / 2 at a critical point of a factorisation P = W_d ... W_1, which keeps some of the singular values of M: half the squares of the others.

    Shapes: (k,), (points, k) -> (points,).   Units: those of M squared.   Error: exact.
    Assumes: distinct singular values.   Cost: none.   Raises: InvalidInput for values that are not distinct.
    Source: Baldi & Hornik 1989 (two layers); Kawaguchi 2016 (any depth).
    """
    _check_distinct(singular)
    return Reading.predicted("critical_loss", (~kept).to(singular) @ singular.square() / 2, unit="", source=Source("baldi1989"), assumes=("distinct singular values",))


def least_curvatures(singular: Float[Tensor, "k"], kept: Bool[Tensor, "points k"], *, rank: int) -> Reading:
    """The least eigenvalue of the Hessian of |M - U V'|^2 / 2 + |U'U - V'V|^2 / 8 at its critical points.

    min(0, s_kept - s_left):  s_kept the least singular value that is kept, 0 where fewer than `rank` are, s_left the largest that is not.

    At a critical point U'U = V'V =: D (the gradients' equations give (U'U - V'V)^3 = 0), so U = U_S sqrt(D), V = V_S sqrt(D) up to one rotation.  Along
    dU = a u_l e_k', dV = b v_l e_k', l not kept, the second derivative is (a^2 + b^2) s_k - 2 a b s_l, and s_k - s_l is the lesser eigenvalue.  All other
    directions do not curve down, and a rotation of both factors is flat.  Negative but for the global minimum: every saddle is strict.
    Shapes: (k,), (points, k) -> (points,).   Units: those of M.   Error: exact.
    Assumes: distinct singular values; rank at least 2, so that there is a rotation, or a point that is no global minimum.   Cost: none.
    Raises: InvalidInput for values that are not distinct.
    Source: Zhu et al. 2018 (the theorem); the eigenvalue is derived here.
    """
    _check_distinct(singular)
    left = torch.where(kept, 0.0, singular).amax(1)
    least = torch.where(kept, singular, torch.inf).amin(1)
    value = torch.where(kept.sum(1) < rank, 0.0, least) - left
    return Reading.predicted("least_curvature", value.clamp_max(0.0), unit="", source=Source("zhu2018"), assumes=("distinct singular values",))


def _check_distinct(singular: Float[Tensor, "k"]) -> None:
    if bool((singular.sort().values.diff() <= 1e-6 * singular.max()).any()):
        raise InvalidInput(f"The singular values must be distinct, not {singular.tolist()}: for equal ones the critical points are not isolated subsets.")
