"""Chains of layers with residual connections, many networks at once."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models.perceptrons import Activation


@dataclasses.dataclass(frozen=True)
class ResidualChain:
    """z^(1) = x W_1, z' = gamma z + s(z) W, f = s(z) W_L: networks of one shape with independent weights and no biases; each weight learns at the rate 1/fan_in.

    Shapes: `weights[l]` (members, fan_in, units); x (examples, features).   Source: Roberts, Yaida & Hanin 2022, appendix B.
    """

    activation: Activation
    weights: tuple[Tensor, ...]
    residual: float

    def hidden(self, x: Float[Tensor, "examples features"]) -> Float[Tensor, "members examples units"]:
        """z of the last hidden layer.   Cost: one forward pass."""
        z = x @ self.weights[0]
        for weights in self.weights[1:-1]:
            z = self.residual * z + self.activation(z) @ weights
        return z

    def outputs(self, x: Float[Tensor, "examples features"]) -> Float[Tensor, "members examples outputs"]:
        """The outputs.   Cost: one forward pass."""
        return self.activation(self.hidden(x)) @ self.weights[-1]

    def ntk(self, x: Float[Tensor, "examples features"]) -> Float[Tensor, "members examples"]:
        """The tangent kernel of the first output on each example by itself.   Cost: a gradient an example."""
        found = [self._slopes(self.outputs(one[None])[..., 0].sum()) for one in x]
        return torch.stack([torch.stack([g.square().sum((1, 2)) / g.shape[1] for g in slopes]).sum(0) for slopes in found], 1)

    def least_loss(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, steps: int, every: int = 10) -> Float[Tensor, "members"]:
        """The least squared error on test data on the way of descent on half the squared errors of the training data, looked at so often.

        Learning rate 1 / (examples * mean tangent kernel), by the first eight examples.   Shapes: -> (members,).   Cost: `steps` gradients.
        """
        lr = 1 / (len(train[0]) * float(self.ntk(train[0][:8]).mean()))
        networks, best = self, test[1].new_full((len(self.weights[0]),), math.inf)
        for step in range(1, steps + 1):
            slopes = networks._slopes((networks.outputs(train[0]) - train[1]).square().sum() / 2)
            moved = tuple((w - lr / w.shape[1] * g).detach().requires_grad_() for w, g in zip(networks.weights, slopes, strict=True))
            networks = dataclasses.replace(networks, weights=moved)
            if step % every == 0:
                best = torch.minimum(best, (networks.outputs(test[0]).detach() - test[1]).square().sum(-1).mean(1))
        return best

    def _slopes(self, value: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, self.weights)


def residual_chain(features: int, width: int, outputs: int, *, depth: int, members: int, residual: float, dtype: torch.dtype = torch.float64, rng: Generator) -> ResidualChain:
    """tanh networks at criticality: `depth` hidden layers, weights N(0, (1 - residual^2) / width) inside, N(0, 1 / fan_in) at the first and the last layer.

    Cost: members * depth * width^2 normal numbers.   Raises: InvalidInput for sizes below 1 or a residual outside [0, 1].
    """
    if min(features, depth, width, outputs, members) < 1 or not 0 <= residual <= 1:
        raise InvalidInput(f"Sizes must be at least 1 and the residual in [0, 1], not depth={depth}, width={width}, members={members}, residual={residual}.")
    sizes, scales = [features, *[width] * depth, outputs], [1.0, *[1 - residual**2] * (depth - 1), 1.0]
    drawn = [chance.normal(members, a, b, rng=chance.child(rng, "weights", layer)) for layer, (a, b) in enumerate(itertools.pairwise(sizes))]
    weights = tuple((w * math.sqrt(scale / w.shape[1])).to(dtype).requires_grad_() for w, scale in zip(drawn, scales, strict=True))
    return ResidualChain(torch.tanh, weights, residual)
