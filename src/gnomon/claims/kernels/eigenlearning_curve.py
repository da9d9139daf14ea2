r"""The eigenvalues of a network's tangent kernel, and what of the targets lies along its eigenfunctions, predict the learning curve of kernel regression on real images.

$n = \sum_i \frac{\lambda_i}{\lambda_i + \kappa} + \frac{\delta}{\kappa}, \quad E_n = \frac{n}{n - \sum_i L_i^2} \sum_i (1 - L_i)^2 v_i^2, \quad L_i = \frac{\lambda_i}{\lambda_i + \kappa}$

The eigenfunctions are those over a pool of images, of which at most a tenth are drawn to learn from (theory has independent draws); the error is the mean square over those left.
"""

from dataclasses import dataclass

import torch
from torch import Generator, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.theory import eigenlearning, kernels


@dataclass(frozen=True)
class Settings:
    """The first images of `data`, side x side, as a pool, and the numbers of them to learn from; `used` is the part of them that is learned from indeed."""

    data: str
    side: int
    pool: int
    sizes: tuple[int, ...]
    replicates: int
    used: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Array, Array, float]:
    """The tangent kernel of a ReLU network of three layers over the pool, the centred one-hot targets, and the ridge."""
    (x, y), hidden = pooled(s.data, examples=s.pool, side=s.side), (nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    (kernel,) = kernels.infinite_width(nn.Sequential(nn.Linear(s.side**2, 64), *hidden), parametrization="ntk", weight_variance=2.0, bias_variance=0.1)(x.double(), kind=("ntk",))
    return kernel.numpy(), y.double().numpy() - 0.1, 1e-3 * float(kernel.diagonal().mean())


def predict(s: Settings, shared: tuple[Array, Array, float]) -> Reading:
    """The learning curve from the spectrum."""
    return eigenlearning.learning_curve(*eigenlearning.modes(*shared[:2]), s.sizes, ridge=shared[2], population=s.pool)


def measure(s: Settings, shared: tuple[Array, Array, float], *, rng: Generator) -> Array:
    """Kernel ridge regression from one training set of each size."""
    (kernel, targets), ridge, found = map(torch.from_numpy, shared[:2]), shared[2], []
    for n in s.sizes:
        at, _, rest = chance.permutation(s.pool, rng=chance.child(rng, "order", n)).tensor_split([round(s.used * n), n])
        weights = torch.linalg.solve(kernel[at][:, at] + ridge * torch.eye(len(at), dtype=torch.float64), targets[at])
        found.append(float((kernel[rest][:, at] @ weights - targets[rest]).square().sum(1).mean()))
    return torch.tensor(found, dtype=torch.float64).numpy()


CLAIM = Claim(
    version=1, entry="B3", source=Source("simon2023"), relation="equal", prepare=prepare, predict=predict, measure=measure,
    scales={
        "smoke": Settings("digits", 8, 1437, (16, 32, 64), 16), "standard": Settings("fashion-mnist", 28, 3000, (16, 64, 256), 24), "paper": Settings("fashion-mnist", 28, 10_000, (16, 64, 256, 1024), 50),
    }, sabotage=Sabotage("half of the examples that are counted are not learned from", used=0.5),
)  # fmt: skip
