"""Many wide tanh networks in the NTK parametrisation, trained on a small regression from a scaled output: the lazy regime, and what lies outside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models.perceptrons import Perceptrons, draw

LAYERS = 3
FEATURES, POINTS, NEW = 6, 8, 4
VARIANCE = 1.5
"""C_W of the networks of `trained`."""


def tanh_networks(features: int, width: int, *, members: int, weight_variance: float, rng: Generator) -> Iterator[Perceptrons]:
    """Tanh networks of two hidden layers and one output without biases, whose weights learn as in the NTK parametrisation, some at a time, in float32."""
    shape = {"features": features, "depth": LAYERS, "width": width, "outputs": 1, "members": members}
    return draw(torch.tanh, weight_variance=weight_variance, weight_rates=weight_variance, bias_rates=0.0, dtype=torch.float32, rng=rng, **shape)


def scaled(networks: Perceptrons, scale: float) -> Perceptrons:
    """The networks times a factor that is not learned, s f: 1 / sqrt(width) takes the NTK parametrisation to the mean-field one, at a learning rate over s^2 at the same speed.

    The last layer's weights are multiplied by s and learn at s^2 times their rate.   Raises: InvalidInput for networks with biases in the last layer.
    """
    if networks.biases[-1] is not None:
        raise InvalidInput("Networks are scaled by the weights of their last layer, which must have no biases.")
    return dataclasses.replace(
        networks, weights=(*networks.weights[:-1], networks.weights[-1] * scale), weight_rates=(*networks.weight_rates[:-1], networks.weight_rates[-1] * scale**2)
    )


def descended(networks: Perceptrons, inputs: Float[Tensor, "N features"], targets: Float[Tensor, "*members N C"], *, lr: float, steps: int) -> Perceptrons:
    """The networks after full-batch gradient descent on sum |f - y|^2 / 2, each by itself.

    Units: time lr x steps of `gradient_flow`.   Cost: `steps` gradients.   Raises: InvalidInput where an output is not finite at the end.
    """
    for _ in range(steps):
        networks = networks.stepped(inputs, targets, lr)
    if not bool(torch.isfinite(networks.outputs(inputs)).all()):
        raise InvalidInput(f"The outputs are not finite after {steps} steps at lr = {lr:g}: training diverged; take a smaller learning rate.")
    return networks


def distance(start: Perceptrons, end: Perceptrons) -> Float[Tensor, "members"]:
    """How far the parameters of every network moved, in units in which all learn at the rate 1, those of the NTK parametrisation.   Shapes: (members,)."""
    rates = (rate / weight.shape[-1] for rate, weight in zip(start.weight_rates, start.weights, strict=True))
    return torch.stack([(a - b).square().sum((1, 2)) / rate for a, b, rate in zip(start.weights, end.weights, rates, strict=True)]).sum(0).sqrt()


class Regression(NamedTuple):
    """A small regression: inputs on a sphere, the first of them with targets, and the steps of its training."""

    inputs: Float[Tensor, "N features"]
    targets: Float[Tensor, "n 1"]
    lr: float
    steps: int


def regression() -> Regression:
    """Eight points with targets sin(2 x_1), and four new ones, |x|^2 the number of features; trained to time 2, for which every step is small."""
    x = chance.normal(POINTS + NEW, FEATURES, rng=chance.generator(0, "regression"))
    x = x / x.norm(dim=1, keepdim=True) * math.sqrt(FEATURES)
    return Regression(x, torch.sin(2 * x[:POINTS, :1]), 0.04, 50)


def trained(width: int, *, members: int, scale: float = 1.0, centred: float = 0.0, rng: Generator) -> Iterator[tuple[Perceptrons, Perceptrons, float]]:
    """Tanh networks with two hidden layers at the start and at the end of training on `regression`, some at a time, and the learning rate, lr / scale^2.

    With `centred` 1 they are to be what they are at the start and the targets more, as if that were taken off their output; with less a part of it.   Cost: 50 gradients.
    """
    data = regression()
    for networks in tanh_networks(FEATURES, width, members=members, weight_variance=VARIANCE, rng=rng):
        start, lr = scaled(networks, scale), data.lr / scale**2
        aims = data.targets + centred * start.outputs(data.inputs[:POINTS]) if centred else data.targets
        yield start, descended(start, data.inputs[:POINTS], aims, lr=lr, steps=data.steps), lr
