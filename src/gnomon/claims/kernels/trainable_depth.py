r"""On real digits a tanh network trains up to a depth of about six depth scales of its correlations, in the ordered phase and in the chaotic one.

$L \approx 6\, \xi, \qquad \xi^{-1} = -\log \big( C_W \langle \tanh'(z) \tanh'(z') \rangle_{c^*} \big)$

The depth is that at which accuracy after a short training is halfway between chance and that of the shallowest network, on a grid of depths; with more steps or larger ones it moves.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.data import images
from gnomon.theory.correlation import trainable_depth

C_B = 0.05


@dataclass(frozen=True)
class Settings:
    """C_W and the grid of depths of either network; `members` of `width` units train side by side, their weights of `times` the variance that theory is told."""

    weight_variances: tuple[float, ...]
    depths: tuple[tuple[int, ...], ...]
    width: int
    members: int
    steps: int
    lr: float
    batch: int
    replicates: int
    times: float = 1.0


def predict(s: Settings) -> Reading:
    """Six depth scales; the figure of the rule is good to a third of it."""
    found = [trainable_depth(torch.tanh, weight_variance=c_w, bias_variance=C_B) for c_w in s.weight_variances]
    value, axes = np.array([float(one) for one in found]), (Axis("C_W", s.weight_variances),)
    return found[0].replace(value=value, error=value / 3, axes=axes)


def accuracy(s: Settings, depth: int, c_w: float, rng: Generator) -> float:
    """The mean accuracy on the training digits after SGD, over the members."""
    x, y = images.digits()[0][0].flatten(1), images.digits()[0][1]
    sizes = [x.shape[1], *[s.width] * (depth - 1), 10]
    scales = [(c_w * s.times / fan) ** 0.5 for fan in sizes[:-1]]
    weights = [
        (k * chance.normal(s.members, a, b, rng=chance.child(rng, "w", i), like=x)).requires_grad_() for i, (k, a, b) in enumerate(zip(scales, sizes, sizes[1:], strict=False))
    ]
    biases = [(C_B**0.5 * chance.normal(s.members, 1, b, rng=chance.child(rng, "b", i), like=x)).requires_grad_() for i, b in enumerate(sizes[1:])]
    optimizer = torch.optim.SGD([*weights, *biases], lr=s.lr)

    def network(z: torch.Tensor) -> torch.Tensor:
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = torch.baddbmm(b, torch.tanh(z) if i else z.expand(s.members, -1, -1), w)
        return z

    for step in range(s.steps):
        at = chance.permutation(len(x), rng=chance.child(rng, "batch", step))[: s.batch]
        optimizer.zero_grad()
        (s.members * nn.functional.cross_entropy(network(x[at]).flatten(0, 1), y[at].repeat(s.members))).backward()
        optimizer.step()
    with torch.no_grad():
        return float((network(x).argmax(2) == y).double().mean())


def measure(s: Settings, *, rng: Generator) -> Array:
    """The depth at which accuracy passes halfway, between points of the grid linearly; the deepest of the grid where it does not."""
    found = []
    for c_w, depths in zip(s.weight_variances, s.depths, strict=True):
        seen = np.array([accuracy(s, depth, c_w, chance.child(rng, str(c_w), depth)) for depth in depths])
        half, i = (seen[0] + 0.1) / 2, int(np.argmax(seen < (seen[0] + 0.1) / 2))
        found.append(depths[-1] if i == 0 else depths[i - 1] + (depths[i] - depths[i - 1]) * (seen[i - 1] - half) / (seen[i - 1] - seen[i]))
    return np.array(found, dtype=np.float64)


CLAIM = Claim(
    version=1, entry="B4", source=Source("schoenholz2017", "section 5"), relation="equal", predict=predict, measure=measure,
    scales={
        "smoke": Settings((1.2,), ((9, 27, 45),), width=32, members=1, steps=50, lr=0.06, batch=32, replicates=2),
        "standard": Settings((1.2, 3.0), ((9, 27, 45, 63), (14, 41, 54, 81)), width=64, members=2, steps=300, lr=0.01, batch=128, replicates=3),
        "paper": Settings((1.2, 3.0), ((9, 18, 27, 36, 45, 54, 72), (14, 27, 41, 54, 68, 81)), width=300, members=2, steps=2000, lr=0.001, batch=128, replicates=8),
    },
    smoke="inconclusive", sabotage=Sabotage("weights of half the variance, whose depth scale is shorter by a factor of 3", times=0.5),
)  # fmt: skip
