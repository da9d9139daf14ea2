r"""Training moves the tangent kernel of a network of width n by a part of itself that falls as 1 / n.

$\frac{|\Theta_T - \Theta_0|}{|\Theta_0|} \propto n^{-1}$

Every parameter moves by $O(n^{-1/2})$; what that changes in the kernel is of either sign from unit to unit, so that the mean over n units adds a further $n^{-1/2}$ (Dyer & Gur-Ari).  The
theorem of Lee et al. bounds it by $O(n^{-1/2})$, and their figure 1 sees the faster fall too.  In the mean-field parametrisation the kernel moves by as much as it is at any width.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.models.wide import LAYERS, regression, trained


@dataclass(frozen=True)
class Settings:
    """Tanh networks of two hidden layers at several `widths`, `members` a block, trained on eight points; the output is scaled by width^(-mean_field / 2)."""

    widths: tuple[int, ...]
    members: int
    replicates: int
    mean_field: float = 0.0


def predict(s: Settings) -> Reading:
    """The exponent, -1."""
    return Reading.predicted("ntk_movement_exponent", -1.0, unit="", source=Source("dyer2020"), assumes=("the leading order in 1 / width",))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks at every width: the root of the mean square of the relative change."""
    found, inputs = [], regression().inputs
    for width in s.widths:
        changes = []
        for start, end, _ in trained(width, members=s.members, scale=width ** (-s.mean_field / 2), rng=chance.child(rng, "width", width)):
            (_, before), (_, after) = start.outputs_and_ntk(inputs), end.outputs_and_ntk(inputs)
            changes.append((after - before).square().sum((1, 2)) / before.square().sum((1, 2)))
        found.append(float(torch.cat(changes).mean().sqrt()))
    return Reading("ntk_movement", found, "", axes=(Axis("width", tuple(map(float, s.widths)), scale="log"),))


CLAIM = Claim(
    version=1, entry="B3", source=Source("dyer2020"), relation="exponent", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * LAYERS / min(s.widths), because="next order: twice depth / width at the smallest width"),
    scales={
        "smoke": Settings((24, 48, 96), members=60, replicates=4), "standard": Settings((48, 96, 192, 384), members=60, replicates=8),
        "paper": Settings((60, 120, 240, 480, 960), members=100, replicates=40),
    }, sabotage=Sabotage("the mean-field parametrisation, in which features move at any width", mean_field=1.0),
)  # fmt: skip
