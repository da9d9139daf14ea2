"""Gradient flow of a loss, and of the loss with a penalty on its gradient, by an integrator of high order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from scipy.integrate import solve_ivp
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array

FlatLoss = Callable[[Tensor], Tensor]
"""A loss as a function of all parameters in one vector, (P,) -> ()."""


def moments_of(times: Sequence[float]) -> Float64[Array, "times"]:
    """Times of a path as an array.   Shapes: (times,).   Raises: InvalidInput where there are none, or they are not finite, below 0 or fall."""
    t = np.asarray(times, dtype=np.float64).reshape(-1)
    if not len(t) or not np.isfinite(t).all() or (t < 0).any() or (np.diff(t) < 0).any():
        raise InvalidInput(f"Times must be finite, not negative and not fall, not {list(times)}.")
    return t


def penalised(loss: FlatLoss, penalty: float) -> FlatLoss:
    """theta -> loss + penalty |gradient|^2, differentiable again.   Units: loss.   Cost: a gradient with its graph."""

    def whole(theta: Tensor) -> Tensor:
        if penalty == 0:
            return loss(theta)
        at = theta if theta.requires_grad else theta.detach().requires_grad_()
        value = loss(at)
        (slope,) = torch.autograd.grad(value, at, create_graph=True)
        return value + penalty * slope.square().sum()

    return whole


def slope_of(loss: FlatLoss, theta: Tensor) -> Tensor:
    """The gradient of a loss at theta.  Shapes: (P,) -> (P,)."""
    at = theta.detach().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def gradient_flow(loss: FlatLoss, start: Tensor, times: Sequence[float], *, penalty: float = 0.0, tolerance: float = 1e-11) -> Float64[Array, "times P"]:
    """theta at these times along d theta / dt = -grad (loss + penalty |grad loss|^2).

    Shapes: start (P,), value (times, P).   Units: time in 1 / curvature.   Error: `tolerance` a step, relative, by DOP853.
    Assumes: a loss with continuous derivatives (tanh, GELU; not ReLU).   Cost: 12 gradients a step of the integrator, twice that with a penalty.
    Raises: InvalidInput for times that do not grow from 0, or where the integrator gives up.
    """
    at = np.asarray(times, dtype=np.float64)
    if at.ndim != 1 or len(at) == 0 or at[0] < 0 or (np.diff(at) <= 0).any():
        raise InvalidInput(f"times must grow from 0 or more, not {list(times)[:8]}.")
    whole = penalised(loss, penalty)

    def rate(_: float, theta: Array) -> Array:
        return -slope_of(whole, torch.from_numpy(theta).to(start)).double().numpy()

    found = solve_ivp(rate, (0.0, at[-1]), start.detach().double().numpy(), method="DOP853", t_eval=at, rtol=tolerance, atol=tolerance)
    if found.status != 0:
        raise InvalidInput(f"The flow could not be followed: {found.message} Take a shorter time, or a loss with continuous derivatives.")
    return np.asarray(found.y.T)
