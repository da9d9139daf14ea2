r"""Over random initialisations the pre-activations of a wide network have the covariance of the NNGP kernel, up to a correction of order 1 / width.

$E[z^l(x) z^l(x')] = K^l(x, x'), \quad K^{l+1} = C_b + C_W \langle s(z) s(z') \rangle_{K^l}$

At width $n$ a layer reads a random covariance of variance $O(1/n)$, and the dual is curved: each hidden layer after the first adds a term of order $1/n$ to the mean.
"""

from dataclasses import dataclass

import torch
from torch import Generator, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory.kernels import infinite_width

C_W, C_B, FEATURES = 2.0, 0.1, 6
INPUTS = chance.normal(3, FEATURES, rng=chance.generator(0, "nngp inputs"))


@dataclass(frozen=True)
class Settings:
    """ReLU networks of `depth` layers of `width` units, `members` a block; the variance of their weights is C_W (1 - shift / width)."""

    depth: int
    width: int
    members: int
    replicates: int
    shift: float = 0.0


def predict(s: Settings) -> Reading:
    """The NNGP kernel of the network as a module."""
    layers = [layer for _ in range(s.depth - 1) for layer in (nn.ReLU(), nn.Linear(s.width, s.width))]
    (kernel,) = infinite_width(nn.Sequential(nn.Linear(FEATURES, s.width), *layers), weight_variance=C_W, bias_variance=C_B)(INPUTS, kind=("nngp",))
    return Reading.predicted("preactivation_covariance", kernel.numpy(), unit="", source=Source("lee2018", "section 2"), assumes=("infinite width",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over the networks and the units of a block."""
    c_w = C_W * (1 - s.shift / s.width)
    z = draw_preactivations(torch.relu, INPUTS, depth=s.depth, width=s.width, members=s.members, weight_variance=c_w, bias_variance=C_B, rng=rng)[-1]
    return (torch.einsum("mau,mbu->ab", z, z) / (s.members * s.width)).numpy()


def next_order(s: Settings) -> Array:
    """depth / width of the product of the standard deviations."""
    size = predict(s).value.diagonal() ** 0.5
    return s.depth / s.width * size[:, None] * size[None, :]


CLAIM = Claim(
    version=1, entry="B3", source=Source("lee2018", "section 2"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(next_order, because="next order: 1/width a layer, of the product of the standard deviations"),
    scales={"smoke": Settings(4, 32, members=300, replicates=16), "standard": Settings(4, 64, members=2_000, replicates=24), "paper": Settings(8, 512, members=4_000, replicates=100)},
    sabotage=Sabotage("weights too small in variance, by 8 / width of it", shift=8.0),
)  # fmt: skip
