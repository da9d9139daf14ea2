r"""Regression with the tangent kernel of a network takes d^k examples for a polynomial of degree k of one direction of its d inputs.

$n_{1/4} \propto d^{\,k}, \quad y = \frac{z + (z^2 - 1) / \sqrt{2}}{\sqrt{2}}, \quad z = u \cdot x, \quad k = 2$

The kernel is that of a two-layer ReLU network of infinite width, without a ridge, the inputs are uniform on the sphere of radius $\sqrt{d}$, as the theorem has them.  An error of a quarter
leaves half of what has degree 2.  At finite d lower degrees cost examples too; what that does to the slope, from the kernel's eigenvalues, is half of the tolerance.
"""

from dataclasses import dataclass

from torch import Generator, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.single_index import Kernel, regression_curve
from gnomon.theory import kernels, single_index

LEVEL = 0.25


@dataclass(frozen=True)
class Settings:
    """At most `most` examples in each of the dimensions; `square` is the weight of degree 2 beside that of degree 1."""

    dimensions: tuple[int, ...]
    most: int
    replicates: int
    square: float = 1.0


def prepare(s: Settings, *, rng: Generator) -> tuple[Kernel, ...]:
    """The tangent kernel in each dimension."""

    def of(d: int) -> Kernel:
        network = nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 1, bias=False))
        kernel = kernels.infinite_width(network, parametrization="ntk", weight_variance=1.0, bias_variance=1.0)
        return lambda x1, x2: kernel(x1, x2, ("ntk",))[0]

    return tuple(of(d) for d in s.dimensions)


def predict(s: Settings, shared: tuple[Kernel, ...]) -> Reading:
    """The exponent, 2; on the sphere the mean square of the part of degree 2 is (d - 1) / (d + 2) of that under normal inputs."""
    parts = [(0.0, 1.0, s.square**2 * (d - 1) / (d + 2)) for d in s.dimensions]
    return single_index.kernel_sample_exponent(2, single_index.kernel_samples(shared, s.dimensions, parts, level=LEVEL))


def measure(s: Settings, shared: tuple[Kernel, ...], *, rng: Generator) -> Reading:
    """From one set of examples in each dimension, of which the first are taken, more by a factor each time."""
    ways = [regression_curve(k, d, square=s.square, level=LEVEL, most=s.most, rng=chance.child(rng, "d", d)) for k, d in zip(shared, s.dimensions, strict=True)]
    return Reading("kernel_samples", [way.needed(LEVEL) for way in ways], "examples", axes=(Axis("dimension", tuple(map(float, s.dimensions)), scale="log"),))


CLAIM = Claim(
    version=1, entry="B2", source=Source("ghorbani2021"), relation="exponent", prepare=prepare, predict=predict, measure=measure,
    scales={"smoke": Settings((10, 20, 40), 1500, 8), "standard": Settings((20, 40, 80), 6000, 10), "paper": Settings((32, 64, 128, 192), 40_000, 20)},
    sabotage=Sabotage("a target of degree 1", square=0.0),
)  # fmt: skip
