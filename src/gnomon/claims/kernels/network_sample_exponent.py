r"""A two-layer network whose features move takes examples in proportion to the d inputs for a polynomial of degree 2 whose information exponent is 1.

$n_{1/4} \propto d^{\,\max(1, s - 1)}, \quad y = \frac{z + (z^2 - 1) / \sqrt{2}}{\sqrt{2}}, \quad z = u \cdot x, \quad s = 1$

On-line SGD with steps of 1 / d on both layers of a ReLU network of fixed width in the mean-field parametrisation, from normal inputs.  Ben Arous et al. prove the exponent for one unit on the
sphere; for all units of a network, whose activation is smooth, the limit of many inputs is that of Goldt et al., with what is left of the order d^(-1/2).  The same steps for the same outputs
with weights that hardly move, the network's own tangent kernel, are the sabotage: so 1 does not come from the steps.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.single_index import Networks, on_line_curve, target
from gnomon.theory.single_index import information_exponent, network_sample_exponent

LEVEL = 0.25


@dataclass(frozen=True)
class Settings:
    """`members` networks of `width` units a block, in each of the dimensions d, with at most `most` d^2 examples; the scale of their outputs takes them from rich to lazy."""

    dimensions: tuple[int, ...]
    width: int
    members: int
    replicates: int
    most: float = 16.0
    scale: float = 1.0


def predict(s: Settings) -> Reading:
    """The exponent of the target's information exponent."""
    return network_sample_exponent(information_exponent(lambda z: target(z[:, None])), s.dimensions)


def measure(s: Settings, *, rng: Generator) -> Reading:
    """The examples that one block of networks takes, from their mean error on new inputs."""
    found = []
    for d in s.dimensions:
        networks = Networks.draw(d, s.width, s.members, scale=s.scale, rng=chance.child(rng, "networks", d))
        found.append(on_line_curve(networks, lr=0.25, level=LEVEL, most=round(s.most * d * d), rng=chance.child(rng, "d", d)).needed(LEVEL))
    return Reading("network_samples", found, "examples", axes=(Axis("dimension", tuple(map(float, s.dimensions)), scale="log"),))


CLAIM = Claim(
    version=1, entry="B2", source=Source("benarous2021", "section 1"), relation="exponent", predict=predict, measure=measure,
    scales={
        "smoke": Settings((8, 16, 32), 64, members=4, replicates=6), "standard": Settings((32, 64, 128), 128, members=4, replicates=8),
        "paper": Settings((64, 128, 256, 512), 512, members=16, replicates=20),
    }, sabotage=Sabotage("weights that move by 1 / 32: the network's own tangent kernel", scale=32.0),
)  # fmt: skip
