r"""The tangent kernel of a wide random network is on average that of infinite width, up to order 1 / width.

$E \sum_w \partial_w f(x) \partial_w f(x') = \Theta(x, x'), \quad \Theta^{l+1} = K^{l+1} + C_W \langle s'(z) s'(z') \rangle_{K^l} \Theta^l$

in the NTK parametrisation, $z^{l+1} = \sqrt{C_W / n}\, w\, s(z^l) + \sqrt{C_b}\, b$ with normal $w$ and $b$.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.theory.kernels import infinite_width

C_W, C_B, FEATURES = 2.0, 0.1, 6
INPUTS = chance.normal(3, FEATURES, rng=chance.generator(0, "ntk inputs"))


@dataclass(frozen=True)
class Settings:
    """ReLU networks with two hidden layers of `width` units, `members` a block; the variance of their weights is C_W (1 - shift / width)."""

    width: int
    members: int
    replicates: int
    shift: float = 0.0


def predict(s: Settings) -> Reading:
    """The tangent kernel of the network as a module."""
    hidden = (nn.ReLU(), nn.Linear(s.width, s.width), nn.ReLU(), nn.Linear(s.width, 1))
    (kernel,) = infinite_width(nn.Sequential(nn.Linear(FEATURES, s.width), *hidden), parametrization="ntk", weight_variance=C_W, bias_variance=C_B)(INPUTS, kind=("ntk",))
    return Reading.predicted("ntk", kernel.numpy(), unit="", source=Source("jacot2018", "theorem 1"), assumes=("infinite width",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The mean over a block of the Jacobians' products."""
    sizes, c_w = (FEATURES, s.width, s.width, 1), C_W * (1 - s.shift / s.width)
    weights = [chance.normal(s.members, sizes[i + 1], sizes[i], rng=chance.child(rng, "weights", i)) for i in range(3)]
    biases = [chance.normal(s.members, b, rng=chance.child(rng, "biases", layer)) for layer, b in enumerate(sizes[1:])]

    def network(w: list[Tensor], b: list[Tensor], z: Tensor = INPUTS) -> Tensor:
        for layer, size in enumerate(sizes[:-1]):
            z = (torch.relu(z) if layer else z) @ w[layer].T * (c_w / size) ** 0.5 + C_B**0.5 * b[layer]
        return z[:, 0]

    jacobian = torch.cat([part.flatten(2) for parts in torch.func.vmap(torch.func.jacrev(network, argnums=(0, 1)))(weights, biases) for part in parts], 2)
    return (torch.einsum("map,mbp->ab", jacobian, jacobian) / s.members).numpy()


CLAIM = Claim(
    version=1, entry="B3", source=Source("jacot2018", "theorem 1"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 6 / s.width * predict(s).value.diagonal().max(), because="next order: twice depth / width of the largest element"),
    scales={"smoke": Settings(48, members=40, replicates=16), "standard": Settings(96, members=200, replicates=40), "paper": Settings(1024, members=200, replicates=200)},
    sabotage=Sabotage("weights too small in variance, by 12 / width of it", shift=12.0),
)  # fmt: skip
