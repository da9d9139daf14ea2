r"""The linearisation of a network of width n at its start, trained by the same steps, errs by a part of what training does to the outputs that falls as 1 / n.

$\frac{|f_T - f^{lin}_T|}{|f_T - f_0|} \propto n^{-1}$

Both start from one kernel; the network's own changes by a part of order $1/n$ on the way (`ntk-movement`), and so do its outputs.  The theorem of Lee et al. bounds the error by
$O(n^{-1/2})$.  In the mean-field parametrisation the linearisation errs alike at any width.
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
    return Reading.predicted("linearisation_exponent", -1.0, unit="", source=Source("dyer2020"), assumes=("the leading order in 1 / width",))


def measure(s: Settings, *, rng: Generator) -> Reading:
    """One block of networks at every width, on the points of the training and new ones: the root of the ratio of mean squares."""
    found, data = [], regression()
    for width in s.widths:
        missed, moved = [], []
        for start, end, lr in trained(width, members=s.members, scale=width ** (-s.mean_field / 2), rng=chance.child(rng, "width", width)):
            first, kernel = start.outputs_and_ntk(data.inputs)
            linear, last, reach = first, end.outputs(data.inputs), kernel[:, :, : len(data.targets)]
            for _ in range(data.steps):  # a step of the linearisation moves its outputs by its kernel, exactly
                linear = linear - lr * reach @ (linear[:, : len(data.targets)] - data.targets.to(linear))
            missed.append((last - linear).square().flatten())
            moved.append((last - first).square().flatten())
        found.append(float((torch.cat(missed).sum() / torch.cat(moved).sum()).sqrt()))
    return Reading("linearisation_error", found, "", axes=(Axis("width", tuple(map(float, s.widths)), scale="log"),))


CLAIM = Claim(
    version=1, entry="B3", source=Source("lee2019", "section 2"), relation="exponent", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * LAYERS / min(s.widths), because="next order: twice depth / width at the smallest width"),
    scales={
        "smoke": Settings((24, 48, 96), members=80, replicates=5), "standard": Settings((48, 96, 192), members=100, replicates=16),
        "paper": Settings((60, 120, 240, 480, 960), members=100, replicates=40),
    }, sabotage=Sabotage("the mean-field parametrisation, in which features move at any width", mean_field=1.0),
)  # fmt: skip
