r"""Among networks trained to the same loss, those with less volume of low loss around them generalise worse.

$\tau(-F_\sigma, L_{test} - L_{train}) \geq 0, \quad F_\sigma = \log E_z \exp(-(L(\theta + \sigma z) - L(\theta)))$

Kendall's rank correlation over the zoo of `sharpness-and-gap`, with the local entropy at one width for all networks.  The published sign (Chaudhari et al.) is positive: wide
valleys generalise.  The control takes for each network the width at which the noise is as long as its way from the initialisation, $\sigma \sqrt{P} = |\theta - \theta_0|$.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.claims.landscape.sharpness_and_gap import prepare as zoo_of
from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.geometry import local_entropy
from gnomon.numerics.operators import loss_value
from gnomon.numerics.statistics import kendall_pseudo_values


@dataclass(frozen=True)
class Settings:
    """A zoo of 24 networks a seed on so many images, tested on at most 2,000; the width of the noise, or, `relative`, as much of the distance from the initialisation as 10 widths."""

    data: str
    examples: int
    until: float
    seeds: int
    width: float = 0.1
    probes: int = 16
    relative: bool = False


def measure(s: Settings, shared: list[Subject], *, rng: Generator) -> Reading:
    """Every network's local entropy and gap; the error is the jackknife's over networks."""
    pairs = [(-_entropy(s, network, chance.child(rng, "network", i)), loss_value(network, "test") - loss_value(network)) for i, network in enumerate(shared)]
    return Reading.of_samples("kendall_tau", kendall_pseudo_values(*zip(*pairs, strict=True)), unit="", details={"narrowness_and_gap": pairs})


def _entropy(s: Settings, network: Subject, rng: Generator) -> float:
    moved = sum(float((value - network.initial[key]).square().sum()) for key, value in network.state.items()) ** 0.5 if network.initial else 0.0
    width = 10 * s.width * moved / network.dimension**0.5 if s.relative else s.width
    return float(local_entropy(network, rng=rng, widths=(width,), probes=s.probes).value[0])


CLAIM = Claim(
    version=1, entry="C1", source=Source("chaudhari2017", "section 3"), relation="at_least", measure=measure, prepare=zoo_of,
    predict=lambda s, shared: Reading.predicted("kendall_tau", 0.0, unit="", source=Source("chaudhari2017")), tolerance=Tolerance(lambda s: 0.0, because="only the sign is claimed"),
    scales={"smoke": Settings("digits", 300, 0.1, seeds=1), "standard": Settings("mnist", 500, 0.1, seeds=1), "paper": Settings("mnist", 10_000, 0.02, seeds=10)},
    sabotage=Sabotage("the control: noise as long as the way from the initialisation", relative=True), expected="fails",
    because="of two networks of one loss, the one with larger weights has more room around it in absolute terms, and the larger gap; relative to how far it went, it has less",
)  # fmt: skip
