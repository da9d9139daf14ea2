r"""The eigenvalues of a network's tangent kernel, and what of the targets lies along its eigenfunctions, predict the learning curve of kernel regression on real images.

$n = \sum_i \frac{\lambda_i}{\lambda_i + \kappa} + \frac{\delta}{\kappa}, \quad E_n = \frac{n}{n - \sum_i L_i^2} \sum_i (1 - L_i)^2 v_i^2, \quad L_i = \frac{\lambda_i}{\lambda_i + \kappa}$

The eigenfunctions are those over a pool of images, of which at most a tenth are drawn to learn from (theory has independent draws); the error is the mean square over those left.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.data import images
from gnomon.theory import eigenlearning
from gnomon.theory.kernels import infinite_width


@dataclass(frozen=True)
class Settings:
    """A pool of images of `data`, the numbers of them to learn from, the ridge relative to the kernel's mean diagonal; `used` is the part of them that is learned from indeed."""

    data: str
    pool: int
    sizes: tuple[int, ...]
    replicates: int
    ridge: float = 1e-3
    used: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Array, Array, float]:
    """The tangent kernel of a ReLU network of three layers over the pool, the centred one-hot targets, and the ridge."""
    (pixels, labels), _ = getattr(images, s.data)()
    at = chance.permutation(len(labels), rng=rng)[: s.pool]
    x = pixels[at].flatten(1).double()
    network = nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    (kernel,) = infinite_width(network, parametrization="ntk", weight_variance=2.0, bias_variance=0.1)(x, kind=("ntk",))
    return kernel.numpy(), nn.functional.one_hot(labels[at], 10).double().numpy() - 0.1, s.ridge * float(kernel.diagonal().mean())


def predict(s: Settings, shared: tuple[Array, Array, float]) -> Reading:
    """The learning curve from the spectrum."""
    kernel, targets, ridge = shared
    return eigenlearning.learning_curve(*eigenlearning.modes(kernel, targets), s.sizes, ridge=ridge, population=s.pool)


def measure(s: Settings, shared: tuple[Array, Array, float], *, rng: Generator) -> Array:
    """Kernel ridge regression from one training set of each size."""
    (kernel, targets), ridge, found = map(torch.from_numpy, shared[:2]), shared[2], []
    for n in s.sizes:
        order = chance.permutation(s.pool, rng=chance.child(rng, "order", n))
        at, rest = order[: round(s.used * n)], order[n:]
        weights = torch.linalg.solve(kernel[at][:, at] + ridge * torch.eye(len(at), dtype=torch.float64), targets[at])
        found.append(float((kernel[rest][:, at] @ weights - targets[rest]).square().sum(1).mean()))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="B3", source=Source("simon2023"), relation="equal", prepare=prepare, predict=predict, measure=measure,
    scales={
        "smoke": Settings("digits", 1437, (16, 32, 64), replicates=16), "standard": Settings("fashion_mnist", 3000, (16, 64, 256), replicates=24),
        "paper": Settings("fashion_mnist", 10_000, (16, 64, 256, 1024), replicates=50),
    },
    sabotage=Sabotage("half of the examples that are counted are not learned from", used=0.5),
)  # fmt: skip
