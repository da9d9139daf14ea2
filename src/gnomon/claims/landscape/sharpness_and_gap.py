r"""Among networks trained to the same loss, those in sharper minima generalise worse.

$\tau(\lambda_{\max}(\nabla^2 L), L_{test} - L_{train}) \geq 0$

Kendall's rank correlation over a small zoo: three learning rates, two batch sizes, weight decay or none, two widths, several seeds, each trained until an epoch's mean loss is below
the same value.  The published sign (Keskar et al.) is positive.  The control weighs the curvature by the squared distance from the initialisation,
$\lambda_{\max} |\theta - \theta_0|^2$, as bounds of PAC-Bayesian kind do (Jiang et al. find that measures of sharpness that know the size of the weights rank best).
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.load import load
from gnomon.models.classifier import zoo
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import Hessian, loss_value
from gnomon.numerics.statistics import kendall_pseudo_values


@dataclass(frozen=True)
class Settings:
    """A zoo of 24 networks a seed on so many images, tested on at most 2,000; whether sharpness is weighed by the squared distance from the initialisation."""

    data: str
    examples: int
    until: float
    seeds: int
    weighed: bool = False


def prepare(s: Settings, *, rng: Generator) -> list[Subject]:
    """The zoo."""
    (images, labels), (new, of_new), _ = load(s.data)
    return zoo((images[: s.examples], labels[: s.examples]), (new[:2_000], of_new[:2_000]), until=s.until, seeds=s.seeds, rng=rng)


def measure(s: Settings, shared: list[Subject], *, rng: Generator) -> Reading:
    """Every network's sharpness and gap; the error is the jackknife's over networks."""
    pairs = [(_sharpness(network, s.weighed, rng), loss_value(network, "test") - loss_value(network)) for network in shared]
    return Reading.of_samples("kendall_tau", kendall_pseudo_values(*zip(*pairs, strict=True)), unit="", details={"sharpness_and_gap": pairs})


def _sharpness(network: Subject, weighed: bool, rng: Generator) -> float:
    found = lanczos_eigenvalues(Hessian(network), network.dimension, rng=rng, like=network.state[network.trainable[0]], tolerance=1e-3)
    moved = sum(float((value - network.initial[key]).square().sum()) for key, value in network.state.items()) if weighed and network.initial else 1.0
    return float(found.values[0]) * moved


CLAIM = Claim(
    version=1, entry="C1", source=Source("keskar2017", "section 2"), relation="at_least", measure=measure, prepare=prepare,
    predict=lambda s, shared: Reading.predicted("kendall_tau", 0.0, unit="", source=Source("keskar2017")), tolerance=Tolerance(lambda s: 0.0, because="only the sign is claimed"),
    scales={"smoke": Settings("digits", 300, 0.1, seeds=1), "standard": Settings("mnist", 500, 0.1, seeds=2), "paper": Settings("mnist", 10_000, 0.02, seeds=10)},
    sabotage=Sabotage("the control: curvature times the squared distance from the initialisation", weighed=True), expected="fails",
    because="of two networks of one loss, the one with larger weights has the flatter minimum (its outputs saturate) and the larger gap: curvature alone is no scale-free measure",
)  # fmt: skip
