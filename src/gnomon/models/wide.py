"""Many fully connected networks in the NTK parametrisation at once, trained by full-batch gradient descent, each by itself."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput

Outputs = Float[Tensor, "members N C"]


class WideNetworks(nn.Module):
    """f(x) = s z^L,  z^{l+1} = sqrt(C_W / n_l) W^l a(z^l) + sqrt(C_b) b^l,  z^1 from x itself, with standard normal W and b: `members` independent networks.

    `scale` is s: 1 in the NTK parametrisation, 1 / sqrt(width) in the mean-field one; a learning rate of lr / s^2 gives both the same speed at initialisation.

    Shapes: inputs (N, sizes[0]) -> outputs (members, N, sizes[-1]); weights (members, fan_in, fan_out).   Cost: members matrix products a layer.
    """

    def __init__(
        self, sizes: Sequence[int], *, members: int, activation: Callable[[Tensor], Tensor] = torch.tanh, weight_variance: float = 1.0, bias_variance: float = 0.0, scale: float = 1.0,
        dtype: torch.dtype = torch.float32, rng: Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.scale, self.bias = activation, scale, math.sqrt(bias_variance)
        self.factors = [math.sqrt(weight_variance / fan_in) for fan_in in sizes[:-1]]
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList([chance.normal(members, *pair, rng=chance.child(rng, "weights", layer)).to(dtype) for layer, pair in enumerate(pairs)])
        biases = [chance.normal(members, 1, pair[1], rng=chance.child(rng, "biases", layer)).to(dtype) for layer, pair in enumerate(pairs)] if bias_variance else []
        self.biases = nn.ParameterList(biases)

    def forward(self, x: Float[Tensor, "N features"]) -> Outputs:
        """The outputs of every network."""
        return self.scale * self._preactivations(x)[-1][1]

    def _preactivations(self, x: Float[Tensor, "N features"]) -> list[tuple[Tensor, Tensor]]:
        """What each layer reads, and what it gives.  Shapes: (members, N, fan_in), (members, N, fan_out)."""
        read, found = x.expand(len(self.weights[0]), -1, -1), []
        for layer, weight in enumerate(self.weights):
            z = self.factors[layer] * torch.bmm(read, weight)
            if self.bias:
                z = z + self.bias * self.biases[layer]
            found.append((read, z))
            read = self.activation(z)
        return found

    def tangent_kernels(self, x: Float[Tensor, "N features"]) -> Float[Tensor, "members N N"]:
        """The tangent kernel of every network of one output: per layer (C_W / n h.h' + C_b) d.d', d the gradient of f in the layer's pre-activations.

        Cost: one gradient, and N^2 products a layer.   Raises: InvalidInput for networks of several outputs.
        """
        if self.weights[-1].shape[-1] != 1:
            raise InvalidInput(f"These tangent kernels are those of networks of one output, not of {self.weights[-1].shape[-1]}.")
        layers = self._preactivations(x)
        slopes = torch.autograd.grad(self.scale * layers[-1][1].sum(), [z for _, z in layers])
        total = x.new_zeros(len(self.weights[0]), len(x), len(x))
        for (read, _), slope, factor in zip(layers, slopes, self.factors, strict=True):
            total += (factor**2 * read.detach() @ read.detach().mT + self.bias**2) * (slope @ slope.mT)
        return total


def descend(network: nn.Module, inputs: Float[Tensor, "N features"], targets: Float[Tensor, "*members N C"], *, lr: float, steps: int) -> None:
    """Full-batch gradient descent on sum |f - y|^2 / 2 over examples, outputs and members, in place: members do not act on each other.

    Shapes: network (N, features) -> (members, N, C), targets broadcast to that.   Units: time lr x steps of `gradient_flow`.   Cost: `steps` gradients.
    Raises: InvalidInput where the loss is not finite at the end.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (network(inputs) - targets).square().sum() / 2
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=lr)
    last = float(loss.detach())
    if not math.isfinite(last):
        raise InvalidInput(f"The loss is {last} after {steps} steps at lr = {lr:g}: training diverged; take a smaller learning rate.")


LAYERS = 3
FEATURES, POINTS, NEW = 6, 8, 4
VARIANCE = 1.5
"""C_W of the networks of `trained`."""


class Regression(NamedTuple):
    """A small regression: inputs on a sphere, the first of them with targets, and the steps of its training."""

    inputs: Float[Tensor, "N features"]
    targets: Float[Tensor, "n 1"]
    lr: float
    steps: int


def regression() -> Regression:
    """Eight points with targets sin(2 x_1), and four new ones, |x|^2 the number of features; trained to time 2, for which every step is small."""
    x = chance.normal(POINTS + NEW, FEATURES, rng=chance.generator(0, "regression")).float()
    x = x / x.norm(dim=1, keepdim=True) * math.sqrt(FEATURES)
    return Regression(x, torch.sin(2 * x[:POINTS, :1]), 0.04, 50)


def trained(width: int, *, members: int, scale: float = 1.0, centred: float = 0.0, rng: Generator) -> tuple[WideNetworks, WideNetworks, float]:
    """Tanh networks with two hidden layers at the start and at the end of training on `regression`, and the learning rate, lr / scale^2.

    With `centred` 1 they are to be what they are at the start and the targets more, as if that were taken off their output; with less a part of it.   Cost: 50 gradients.
    """
    data = regression()
    start = WideNetworks((FEATURES, width, width, 1), members=members, weight_variance=VARIANCE, scale=scale, rng=rng)
    end, lr = copy.deepcopy(start), data.lr / scale**2
    aims = data.targets + centred * start(data.inputs[:POINTS]).detach() if centred else data.targets
    descend(end, data.inputs[:POINTS], aims, lr=lr, steps=data.steps)
    return start, end, lr


def distance(start: WideNetworks, end: WideNetworks) -> Float[Tensor, "members"]:
    """How far the parameters of every network moved.   Shapes: (members,)."""
    squares = [(a - b).detach().square().flatten(1).sum(1) for a, b in zip(start.parameters(), end.parameters(), strict=True)]
    return torch.stack(squares).sum(0).sqrt()
