"""A network's loss as a function of all its parameters in one vector, and gradient descent on such a function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from gnomon.numerics.flow import FlatLoss, slope_of


def flat_loss(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> tuple[FlatLoss, Float[Tensor, "P"]]:
    """The loss on all these examples as a function of the parameters in one vector, and where they are now.  Shapes: (N, ...), (N, ...) -> (P,) -> ().

    Assumes: buffers stay as they are.   Cost: none; a forward pass a call.
    """
    parameters, buffers = dict(module.named_parameters()), {name: value.detach() for name, value in module.named_buffers()}
    sizes = [value.numel() for value in parameters.values()]

    def of(theta: Float[Tensor, "P"]) -> Float[Tensor, ""]:
        parts = {name: part.view(value.shape) for (name, value), part in zip(parameters.items(), theta.split(sizes), strict=True)}
        return loss(functional_call(module, {**parts, **buffers}, (inputs,)), targets)

    return of, torch.cat([value.detach().reshape(-1) for value in parameters.values()])


def descend(loss: FlatLoss, start: Float[Tensor, "P"], *, lr: float, steps: int) -> Float[Tensor, "P"]:
    """Where gradient descent is after so many steps.  Shapes: (P,) -> (P,).   Cost: a gradient a step."""
    theta = start.clone()
    for _ in range(steps):
        theta -= lr * slope_of(loss, theta)
    return theta
