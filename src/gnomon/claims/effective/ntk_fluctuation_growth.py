r"""The tangent kernel fluctuates from network to network by an amount that grows with depth over width: as its first power for ReLU and tanh, much faster for GELU at its critical point.

$\mathrm{Cov}(\Theta_{ii}, \Theta_{jj}) / \Theta^2 = A / (n \Theta^2), \quad i \neq j$
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.instruments import ensembles
from gnomon.models import perceptrons
from gnomon.theory.effective import tensors

POINTS = {"relu": (torch.relu, 2.0, 0.0, 1.0), "tanh": (torch.tanh, 1.0, 0.0, 1.0), "gelu": (torch.nn.functional.gelu, 1.98305826, 0.17292239, 3.56155281)}


@dataclass(frozen=True)
class Settings:
    """Networks of half of `depth` layers and of `depth`, `width` units, `members` a block; those that are drawn have 1/narrower of the units."""

    depth: int
    width: int
    members: int
    replicates: int
    narrower: int = 1


def predict(s: Settings) -> Reading:
    """A/(n Theta^2) after half of the layers and after all."""
    rows = []
    for activation, c_w, c_b, kernel in POINTS.values():
        found = tensors(activation, kernel=kernel, depth=s.depth, weight_variance=c_w, bias_variance=c_b, through="ntk")
        rows.append((found.value("A")[:, 0, 0, 0, 0] / (s.width * found.ntk[:, 0, 0] ** 2))[[s.depth // 2 - 1, s.depth - 1]])
    return Reading.predicted("ntk_covariance", rows, unit="", axes=(Axis("activation", tuple(POINTS)), Axis("layer", (s.depth / 2, float(s.depth)))), source=Source("roberts2022"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """One block of networks of each, on one input; A over all pairs of units."""
    n, rows = s.width // s.narrower, []
    for name, (activation, c_w, c_b, kernel) in POINTS.items():
        x = torch.full((1, n), ((kernel - c_b) / c_w) ** 0.5, dtype=torch.float64)
        for depth in (s.depth // 2, s.depth):
            stream = chance.child(rng, name, depth)
            drawn = perceptrons.draw(activation, features=n, depth=depth, width=n, members=s.members, weight_variance=c_w, bias_variance=c_b, rng=stream)
            z, theta = (torch.cat(part) for part in zip(*(networks.hidden_ntk(x) for networks in drawn), strict=True))
            rows.append(float(ensembles.ntk_covariances(z, theta)["A"].value.item() / (n * theta[:, 0].diagonal(dim1=-2, dim2=-1).mean() ** 2)))
    return torch.tensor(rows).reshape(len(POINTS), 2).double().numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "chapter 8"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2.5 * s.depth / s.width * predict(s).value, because="the next order, relative, is some depth/width: ReLU's vertex has (5/2) depth/width"),
    scales={"smoke": Settings(6, 48, members=250, replicates=8), "standard": Settings(12, 120, members=240, replicates=10), "paper": Settings(32, 640, members=1_000, replicates=100)},
    sabotage=Sabotage("networks of half the width, which must not agree with the stated one", narrower=2),
)  # fmt: skip
