"""The unit of cost: one pass of loss and gradient."""

from __future__ import annotations

from gnomon.core.subject import Subject
from gnomon.numerics.operators import loss_gradient


def one_gradient(subject: Subject) -> None:
    """Compute loss and gradient over the training examples once and drop them.   Cost: one gradient."""
    loss_gradient(subject)
