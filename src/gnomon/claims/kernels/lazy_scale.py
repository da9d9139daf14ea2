r"""A network whose output is multiplied by a scale, less what it is at the start, learns the same with weights that move by one over the scale.

$|\theta_T - \theta_0| \propto \alpha^{-1}$

for the squared loss of $\alpha (h(\theta) - h(\theta_0))$, trained with steps of $\eta / \alpha^2$: then the outputs move alike at every large $\alpha$, and the weights need move the
less.  If the output at the start is left in, there is as much to unlearn as the scale is large, and the weights move alike at every scale.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.wide import distance, trained


@dataclass(frozen=True)
class Settings:
    """Tanh networks of two hidden layers of `width` units, `members` a block, at several `scales`; this part of their output at the start is left in."""

    scales: tuple[float, ...]
    width: int
    members: int
    replicates: int
    left: float = 0.0


def predict(s: Settings) -> Reading:
    """The exponent, -1."""
    return Reading.predicted("distance_exponent", -1.0, unit="", source=Source("chizat2019", "section 2"), assumes=("the leading order in 1 / scale",))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks, the same at every scale: the mean distance of their weights from the start."""
    found = []
    for scale in s.scales:
        parts = [distance(start, end) for start, end, _ in trained(s.width, members=s.members, scale=scale, centred=1 - s.left, rng=rng)]
        found.append(float(torch.cat(parts).mean()))
    return Reading("distance", found, "", axes=(Axis("scale", s.scales, scale="log"),))


CLAIM = Claim(
    version=1, entry="B3", source=Source("chizat2019", "section 2"), relation="exponent", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 1 / min(s.scales), because="next order: the relative change of the derivative is of order 1 / scale"),
    scales={
        "smoke": Settings((5.0, 10.0, 20.0, 40.0), 32, members=40, replicates=4), "standard": Settings((8.0, 16.0, 32.0, 64.0, 128.0), 128, members=50, replicates=8),
        "paper": Settings((8.0, 16.0, 32.0, 64.0, 128.0), 1_024, members=50, replicates=20),
    }, sabotage=Sabotage("a tenth of the output at the start is left in", left=0.1),
)  # fmt: skip
