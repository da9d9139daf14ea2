"""Critical points of a smooth function, saddles and minima alike: Levenberg-Marquardt steps on the norm of its gradient, many starts at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Function = Callable[[Float[Tensor, "P"]], Float[Tensor, ""]]


def critical_points(function: Function, starts: Float[Tensor, "starts P"], *, iterations: int = 200) -> tuple[Float[Tensor, "starts P"], Float[Tensor, "starts"]]:
    """Descend on |grad f|^2 from every start, and give where that ended with the norm of the gradient there.

    x <- x - (H^2 + m)^(-1) H g,  with m reduced after a step that lowers |g| and raised after one that does not, which is taken back.

    Shapes: starts (starts, P) -> (starts, P), (starts,).   Units: those of x, and of f / x.
    Error: the norm of the gradient; where it is not at rounding, the point is a local minimum of |g| (H g = 0) and no critical point, or not there yet.
    Assumes: f is twice differentiable, P small: each step factors the Hessian.   Cost: `iterations` Hessians and their eigenvalues for every start.
    Source: Levenberg-Marquardt, as in Nocedal & Wright 2006, section 10.3.
    """
    gradient, hessian = torch.vmap(torch.func.grad(function)), torch.vmap(torch.func.hessian(function))
    point, slope = starts.clone(), gradient(starts)
    norm, damping = slope.norm(dim=1), torch.ones_like(starts[:, 0])
    for _ in range(iterations):
        values, vectors = torch.linalg.eigh(hessian(point))
        filtered = values / (values.square() + (damping * norm)[:, None].clamp_min(torch.finfo(norm.dtype).tiny))
        trial = point - (vectors @ (filtered * (vectors.mT @ slope[:, :, None])[:, :, 0])[:, :, None])[:, :, 0]
        trial_slope = gradient(trial)
        trial_norm = trial_slope.norm(dim=1)
        better = trial_norm < norm
        point, slope = torch.where(better[:, None], trial, point), torch.where(better[:, None], trial_slope, slope)
        norm, damping = torch.where(better, trial_norm, norm), torch.where(better, damping / 4, damping * 4).clamp(1e-8, 1e8)
    return point, norm
