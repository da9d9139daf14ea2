r"""Matching by weights recovers a planted permutation of a trained network's units, and the matched network has the same output.

$\arg\max_P \langle w, P \pi(w) \rangle = \pi^{-1}$

The descent over linear assignment problems leaves no unit in a wrong place, and no difference between the outputs.
"""

from dataclasses import dataclass

import torch

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.images import digits
from gnomon.models.rectifier import trained
from gnomon.numerics.matching import match_units
from gnomon.numerics.symmetry import permuted, random_permutations, read_symmetry

AINSWORTH_2022 = Source("ainsworth2022", "section 3")
AXIS = Axis("what differs", ("units in a wrong place", "output"))


@dataclass(frozen=True)
class Settings:
    """Two hidden layers of `width` units, trained on digits; `shift` is added to one output of the permuted network, in parts of the largest."""

    width: int
    epochs: int
    shift: float = 0.0


def predict(s: Settings) -> Reading:
    """Nothing differs."""
    return Reading.predicted("differences", [0.0, 0.0], unit="", axes=(AXIS,), source=AINSWORTH_2022)


def measure(s: Settings, *, rng: torch.Generator) -> Reading:
    """The parts of the units, and of the largest output, by which the matched network differs from the one that was permuted."""
    data = dataset.read(digits()[0], rng=rng)
    subject = Subject.freeze(trained((64, s.width, s.width, 10), data, rng=rng, epochs=s.epochs), "cross_entropy", data).to(torch.float64)
    symmetry, block = read_symmetry(subject), next(subject.batches())
    planted = random_permutations(symmetry, rng=chance.child(rng, "planted"))
    output = subject(subject.state, block.inputs)
    state = permuted(symmetry, subject.state, planted)
    state["5.bias"] = state["5.bias"] + s.shift * output.abs().max() * (torch.arange(10) == 0)
    found = match_units(subject, state, rng=chance.child(rng, "matching"))
    orders = torch.cat([order[back] - torch.arange(len(order)) for order, back in zip(planted, found.permutations, strict=True)])
    return Reading("differences", [float((orders != 0).double().mean()), float((subject(found.state, block.inputs) - output).abs().max() / output.abs().max())], "", axes=(AXIS,))


CLAIM = Claim(
    version=1, entry="E1", source=AINSWORTH_2022, relation="equal", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(lambda s: [0.25 / s.width, 1e-6], because="half a unit; a millionth of the largest output, the rounding of float32 over a few layers"),
    scales={"smoke": Settings(64, epochs=3), "standard": Settings(512, epochs=20), "paper": Settings(2048, epochs=50)},
    sabotage=Sabotage("a network that differs by 5 millionths in one output is not the same", shift=5e-6),
)  # fmt: skip
