r"""With learning rates that follow the depth of a layer, every layer of a tanh network at criticality adds alike to its tangent kernel.

$\lambda_b^{(l)} = \frac{1}{l}, \quad \lambda_W^{(l)} = 1$

(a weight learns at $\lambda_W / n$, all at one global rate): layer $l$ adds $(\lambda_b + \lambda_W \langle s^2 \rangle_K) \prod \chi_\perp$, the product over the layers above it, whose mean
over networks is measured.  With one rate for all, biases of low layers would add as $l / L$.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.models.perceptrons import draw
from gnomon.theory.tangent import equivalent_learning_rates, ntk_contributions


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units on one input, `members` a block; the layer's rates are multiplied with (l / L)^power."""

    depth: int
    width: int
    members: int
    replicates: int
    power: float = 0.0


def predict(s: Settings) -> Reading:
    """Every layer's part, in the limit of many units."""
    weights, biases = equivalent_learning_rates(torch.tanh, depth=s.depth).value
    return ntk_contributions(torch.tanh, depth=s.depth, width=s.width, weight_variance=1.0, weight_rates=weights, bias_rates=biases)


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over one block: the kernel with all rates but one layer's at 0."""
    layer = np.arange(1, s.depth + 1)
    x, factor, found = chance.normal(1, s.width, rng=chance.generator(0, "input")), (layer / s.depth) ** s.power, np.zeros(s.depth)
    x = x / x.square().mean().sqrt()
    drawn = draw(torch.tanh, features=s.width, depth=s.depth, width=s.width, members=s.members, weight_variance=1.0, rng=rng)
    for networks in drawn:
        for at in range(s.depth):
            only = (layer == at + 1) * factor
            part = dataclasses.replace(networks, weight_rates=tuple(only), bias_rates=tuple(only / layer))
            found[at] += float(part.outputs_and_ntk(x)[1].sum()) / s.members
    return found


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter 9"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: s.depth / s.width * predict(s).value, because="the first correction is of relative size depth / width"),
    scales={"smoke": Settings(5, 40, members=300, replicates=10), "standard": Settings(10, 100, members=600, replicates=12), "paper": Settings(30, 500, members=1_000, replicates=40)},
    sabotage=Sabotage("rates that fall towards low layers, by the square root of their depth", power=0.5),
)  # fmt: skip
