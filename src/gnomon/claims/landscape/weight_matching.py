r"""Matching by weights recovers a planted permutation of a trained network's units, and the matched network has the same output.

$\arg\max_P \langle w, P \pi(w) \rangle = \pi^{-1}$, by coordinate descent over linear assignment problems: the share of units in a wrong place and the
largest difference of outputs are both 0.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.loss import cross_entropy
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.images import digits
from gnomon.models.digits import DigitsCNN
from gnomon.models.training import train
from gnomon.numerics.matching import match_units
from gnomon.numerics.symmetry import permuted, random_permutations, read_symmetry

AINSWORTH_2022 = Source("ainsworth2022", "section 3")
AXIS = Axis("what differs", ("units in a wrong place", "output"))


@dataclass(frozen=True)
class Settings:
    """A convolutional network on digits with `channels`, 2 `channels` and `hidden` units; `shift` is added to one output of the permuted network, in parts of the largest."""

    channels: int
    hidden: int
    epochs: int
    shift: float = 0.0


def predict(s: Settings) -> Reading:
    """Nothing differs."""
    return Reading.predicted("differences", [0.0, 0.0], unit="", axes=(AXIS,), source=AINSWORTH_2022)


def measure(s: Settings, *, rng: Generator) -> Reading:
    """The parts of the units, and of the largest output, by which the matched network differs from the one that was permuted."""
    data = dataset.read(digits()[0], rng=rng)
    made = train(lambda: DigitsCNN(channels=s.channels, hidden=s.hidden), cross_entropy, data, rng=rng, lr=0.05, momentum=0.9, batch_size=64, epochs=s.epochs)
    subject = Subject.freeze(made.module, "cross_entropy", data).to(torch.float64)
    symmetry, block = read_symmetry(subject), next(subject.batches())
    planted = random_permutations(symmetry, rng=chance.child(rng, "planted"))
    output = subject(subject.state, block.inputs)
    state = permuted(symmetry, subject.state, planted)
    state["layers.7.bias"] = state["layers.7.bias"] + s.shift * output.abs().max() * (torch.arange(10) == 0)
    found = match_units(subject, state, rng=chance.child(rng, "matching"))
    wrong = sum(int((order[back] != torch.arange(len(order))).sum()) for order, back in zip(planted, found.permutations, strict=True))
    gap = (subject(found.state, block.inputs) - output).abs().max() / output.abs().max()
    return Reading("differences", [wrong / sum(group.size for group in symmetry.groups), float(gap)], "", axes=(AXIS,))


CLAIM = Claim(
    version=1, entry="E1", source=AINSWORTH_2022, relation="equal", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(lambda s: [0.5 / (3 * s.channels + s.hidden), 1e-6], because="half a unit; a millionth of the largest output, the rounding of float32 over a few layers"),
    scales={"smoke": Settings(16, hidden=64, epochs=2), "standard": Settings(64, hidden=512, epochs=20), "paper": Settings(256, hidden=2048, epochs=50)},
    sabotage=Sabotage("a network that differs by 5 millionths in one output is not the same", shift=5e-6),
)  # fmt: skip
