"""A network and its Taylor expansions, trained side by side by the same mini-batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models.linearised import Taylorised


def taylor_errors(
    make: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor], inputs: Float[Tensor, "N ..."], targets: Float[Tensor, "N ..."], *,
    orders: Sequence[int] = (1, 2), lr: float, steps: int, batch_size: int, bend: float = 1.0, rng: Generator,
) -> list[float]:  # fmt: skip
    """How far the expansions end from the network, of how far it went: |f_k - f| / |f - f_0| over the outputs on all inputs, one number an order.

    All are trained by SGD with the same learning rate on the same batches.   `bend` multiplies what order 2 adds to order 1.
    Cost: `steps` gradients of a batch, and two to five times that for an expansion.   Raises: InvalidInput where an expansion diverges.
    """
    with chance.scoped(chance.child(rng, "make")):
        network = make()
    first, ends = copy.deepcopy(network), []
    batches = [chance.integers(len(inputs), batch_size, rng=chance.child(rng, "batch", step)) for step in range(steps)]
    expansions = [Taylorised(first, order) for order in orders]
    for expansion in expansions:
        expansion.bend = bend
    for model in (network, *expansions):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, foreach=False)
        for chosen in batches:
            optimizer.zero_grad()
            loss(model(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            ends.append(model(inputs))
        if not bool(torch.isfinite(ends[-1].norm())):
            raise InvalidInput(f"A network or one of its expansions diverged in {steps} steps at lr = {lr:g}; take a smaller learning rate.")
    with torch.no_grad():
        went = (ends[0] - first(inputs)).norm()
    return [float((end - ends[0]).norm() / went) for end in ends[1:]]
