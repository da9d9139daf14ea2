r"""The Hessian and the Gauss-Newton matrix of a piecewise linear network have the same diagonal, and so the same trace.

$H_{ii} = (J^T \nabla^2 \ell J)_{ii}$, since $H = J^T \nabla^2 \ell J + \sum_k \partial_k \ell \, \nabla^2 f_k$ and $\nabla^2 f_k$ has a zero
diagonal: along one parameter the layer that holds it is affine (linear, convolution, normalisation in evaluation mode), and what follows is piecewise
linear (ReLU, max pooling), so $f_k$ is piecewise linear along it.  The off-diagonal of $\nabla^2 f_k$ is not zero.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.models.piecewise import PiecewiseCNN
from gnomon.numerics import dense
from gnomon.numerics.operators import GaussNewton


@dataclass(frozen=True)
class Settings:
    """A network of so many channels on so many random images; `bend` times the rounding of a trace is the curved part of its activation."""

    channels: int
    examples: int
    bend: float = 0.0


def predict(s: Settings) -> Reading:
    """sum_i |H_ii - G_ii| / tr G = 0."""
    assumes = ("each parameter enters through one affine layer", "what follows is piecewise linear")
    return Reading.predicted("diagonal_difference", 0.0, unit="", source=Source("schraudolph2002"), assumes=assumes)


def measure(s: Settings, *, rng: Generator) -> float:
    """The whole Hessian row by row, less the Gauss-Newton matrix applied to every basis vector."""
    with chance.scoped(rng):
        network = PiecewiseCNN(channels=s.channels, curvature=s.bend * rounding(s)).double().eval()
        images, labels = torch.randn(s.examples, 1, 6, 6, dtype=torch.float64), torch.randint(3, (s.examples,))
    subject = Subject.freeze(network, "cross_entropy", (images, labels))
    matrix, basis = GaussNewton(subject), torch.eye(subject.dimension, dtype=torch.float64)
    diagonal = torch.stack([matrix(row)[i] for i, row in enumerate(basis)])
    return float((dense.hessian(subject).diagonal() - diagonal).abs().sum() / diagonal.sum())


def rounding(s: Settings) -> float:
    """The machine's epsilon for each term that a trace sums, one an example and parameter."""
    c = s.channels
    return torch.finfo(torch.float64).eps * s.examples * (12 * c + (4 * c + 1) * 2 * c + (2 * c + 1) * 3)


CLAIM = Claim(
    version=1, entry="E1", source=Source("schraudolph2002"), relation="equal", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(rounding, because="rounding: the machine's epsilon for each of the examples x parameters terms of the traces"),
    scales={"smoke": Settings(channels=3, examples=32), "standard": Settings(channels=8, examples=256), "paper": Settings(channels=24, examples=2048)},
    sabotage=Sabotage("an activation that is curved, by little more than is told from rounding", bend=4.0),
)  # fmt: skip
