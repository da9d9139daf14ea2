"""A plain training loop: stochastic gradient descent in a seeded order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from gnomon.core import rng as chance
from gnomon.core.dataset import Dataset, leaves
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import first_tensor, state_of


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What `train` leaves: the network in eval mode, its state at initialisation, and the loss of each mini-batch before its step."""

    module: nn.Module
    initial: dict[str, Tensor]
    losses: tuple[float, ...]


def train(
    make: Callable[[], nn.Module], loss: Callable[[Tensor, Any], Tensor], data: Dataset, *, rng: Generator,
    lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0, batch_size: int, epochs: int, until: float = 0.0,
) -> Trained:  # fmt: skip
    """Draw a network and train it by SGD, every epoch in a new random order, the last mini-batch of an epoch possibly short.

    theta <- theta - lr v,  v <- momentum v + (gradient + weight_decay theta).  It ends early with the first epoch whose mean mini-batch loss is at most `until`.

    Shapes: `data` one block of equal shapes; `losses` one a step, at most epochs * ceil(N / batch_size).
    Cost: at most epochs * N gradients.
    Raises: InvalidInput for data of several shapes, and where the loss becomes NaN or infinite (the learning rate is too large).
    """
    if len(data.blocks) != 1:
        raise InvalidInput(f"train takes data of one shape; these come in {len(data.blocks)} shapes.")
    inputs, targets = data.blocks[0].inputs, data.blocks[0].targets
    with chance.scoped(chance.child(rng, "make")):
        module = make()
    initial = state_of(module)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, foreach=False)
    losses = []
    module.train()
    with chance.scoped(chance.child(rng, "layers")):
        for epoch in range(epochs):
            order = chance.permutation(len(data), rng=chance.child(rng, "order", epoch))
            steps = order.split(batch_size)
            for chosen in steps:
                optimizer.zero_grad()
                value = loss(_call(module, _at(inputs, chosen)), _at(targets, chosen))
                value.backward()
                optimizer.step()
                losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise InvalidInput(f"The loss is {losses[-1]} after {len(losses)} steps at lr = {lr:g}: training diverged; take a smaller learning rate.")
            if until and math.fsum(losses[-len(steps) :]) <= until * len(steps):
                break
    return Trained(module.eval(), initial, tuple(losses))


def accuracy(module: nn.Module, data: Dataset) -> float:
    """The part of the examples whose largest logit is that of their label.  Shapes: labels (N,)."""
    with torch.no_grad():
        right = [int((_call(module, block.inputs).argmax(-1) == leaves(block.targets)[0]).sum()) for block in data.chunks(1024)]
    return sum(right) / len(data)


def _call(module: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return first_tensor(module(**inputs))
    return first_tensor(module(*inputs) if isinstance(inputs, tuple) else module(inputs))


def _at(tree: Any, chosen: Tensor) -> Any:
    return tree_map(lambda leaf: leaf[chosen], tree)
