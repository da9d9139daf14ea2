"""Backward error analysis: gradient descent follows the gradient flow of another loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.numerics.flow import FlatLoss, penalised, slope_of

BARRETT_2021 = Source("barrett2021")


def modified_loss(loss: FlatLoss, lr: float) -> Callable[[Tensor], Tensor]:
    """The loss whose gradient flow gradient descent follows to second order: L + lr/4 |grad L|^2.

    After a fixed time steps of lr are O(lr) from the flow of L and O(lr^2) from that of this loss.

    Shapes: the loss maps all parameters (P,) to ().   Units: loss.   Error: the flow's, O(lr^2) after a fixed time.
    Assumes: full batches; a loss with three derivatives.   Cost: a gradient.   Raises: InvalidInput for a learning rate that is not positive.
    Source: Barrett & Dherin 2021, section 3.
    """
    if lr <= 0:
        raise InvalidInput(f"lr must be above 0, not {lr:g}.")
    return penalised(loss, lr / 4)


def implicit_regularizer(loss: FlatLoss, theta: Tensor, lr: float) -> Reading:
    """What `modified_loss` adds at theta: lr/4 |grad L|^2.

    Shapes: theta (P,), value ().   Units: loss.   Error: truncation, lr lambda of itself: the next order of the expansion has one more lr and one more Hessian,
    whose Rayleigh quotient along the gradient, by a difference of gradients one step apart, is taken for lambda.
    Assumes: full batches.   Cost: two gradients.   Raises: as `modified_loss`.   Source: Barrett & Dherin 2021, section 3.
    """
    modified_loss(loss, lr)
    slope = slope_of(loss, theta)
    square = float(slope.double().square().sum())
    moved = slope_of(loss, theta.detach() - lr * slope)
    next_order = abs(float((slope - moved).double() @ slope.double())) / max(square, 1e-300)
    value = lr / 4 * square
    return Reading.predicted(
        "implicit_regularizer", value, unit="loss", error=value * next_order, error_kind="truncation", source=BARRETT_2021.at("section 3"), assumes=("full batches",)
    )
