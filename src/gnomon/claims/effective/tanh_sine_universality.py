r"""Tanh and sine are of one universality class: at criticality their signals fall with the same power of depth, 1/l, whatever the rate.

$K^{(l)} \propto l^{-p}$ with $p = 1$ for every activation that is smooth at 0, has $s(0) = 0$ and bends down there: $C_W \langle s^2 \rangle_K = K + a_1 K^2 + \ldots$ with
$a_1 < 0$, so $1/K' = 1/K - a_1 + \ldots$.  Between layers $l$ and $3 l$ the next orders change the slope by up to $(1 + \ln l)/(2 l)$, of depth, and by $2 l/(3 n \ln 3)$, of
width.  Where the second derivative jumps at 0, as that of ELU does, the class is another and $p = 2$.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.instruments import ensembles
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory import effective
from gnomon.theory.activations import named

NAMES = ("tanh", "sin")
DRAWN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tanh": torch.tanh, "sin": torch.sin, "elu": torch.nn.functional.elu}


@dataclass(frozen=True)
class Settings:
    """Networks of `width` units, `members` a block and activation; the power is taken between the layers `first` and three times it."""

    first: int
    width: int
    members: int
    replicates: int
    second: str = "sin"


def predict(s: Settings) -> Reading:
    """Minus the exponent of each, which the theory finds from the activation alone."""
    powers = [-effective.critical_point(named(name)).exponents.kernel for name in NAMES]
    return Reading.predicted("kernel_exponent", powers, unit="", axes=(Axis("activation", NAMES),), source=Source("roberts2022", "section 5.3.3"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """One block of networks of each, at inputs of mean square 1."""
    inputs, powers = torch.ones(1, s.width, dtype=torch.float64), []
    for name in ("tanh", s.second):
        drawn = draw_preactivations(DRAWN[name], inputs, depth=3 * s.first, width=s.width, members=s.members, weight_variance=1.0, rng=rng)
        early, late = ensembles.preactivation_variance(drawn[[s.first - 1, 3 * s.first - 1], :, 0]).value
        powers.append(math.log(late / early) / math.log(3))
    return torch.tensor(powers).double().numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "section 5.3.3"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: (1 + math.log(s.first)) / (2 * s.first) + 2 * s.first / (3 * s.width * math.log(3)), because="the next orders in depth and in width"),
    scales={"smoke": Settings(7, 60, members=40, replicates=8), "standard": Settings(12, 160, members=60, replicates=16), "paper": Settings(30, 1000, members=60, replicates=100)},
    sabotage=Sabotage("ELU is of another class: its second derivative jumps at 0, and its signal falls as 1/l^2", second="elu"),
)  # fmt: skip
