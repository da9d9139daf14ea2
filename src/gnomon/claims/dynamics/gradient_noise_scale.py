r"""The noise scale of few examples estimates that of all when the means of its two parts are taken, and then their ratio.

$B_{\mathrm{noise}} = \frac{\mathrm{tr} \, \Sigma}{|G|^2} = \frac{E[S]}{E[\mathcal{G}]}$

$S$ and $\mathcal{G}$ are unbiased estimates of both parts from a few examples.  The mean of their ratios is not the ratio of their means: where $\mathcal{G}$ happens to be small
the ratio is large, and where it is negative, as it is once the gradient is lost in noise, it means nothing.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.data.regression import regression
from gnomon.instruments.dynamics import gradient_noise_scale


@dataclass(frozen=True)
class Settings:
    """A linear network on so many examples; so many of them at a time, `draws` times a replicate; whether the mean of ratios is taken."""

    examples: int
    dimension: int
    seen: int
    draws: int
    replicates: int
    ratios: bool = False


def prepare(s: Settings, *, rng: Generator) -> Subject:
    """Least squares with normal inputs, away from its minimum."""
    inputs, targets = regression(s.examples, s.dimension, condition=4.0, rng=rng)
    with chance.scoped(chance.child(rng, "network")):
        network = nn.Linear(s.dimension, 1, bias=False).double()
    return Subject.freeze(network, "mse", (inputs, targets[:, None]), lr=0.1, batch_size=8)


def predict(s: Settings, shared: Subject) -> Reading:
    """Both parts in closed form, from the gradient of every example; a tenth is the order of the variance of |G|^2 over draws, by which a ratio of means is biased."""
    (block,) = shared.train.blocks
    x, weight = block.inputs, next(iter(shared.parameters.values()))
    rows = (2 * (x @ weight.T - block.targets) * x).numpy()
    scale = float(((rows - rows.mean(0)) ** 2).sum() / (len(rows) - 1) / (rows.mean(0) ** 2).sum())
    assumes = (f"|G|^2 is told from 0: below about B_noise / {s.seen} = {scale / s.seen:.2f} of the variance of its estimate it is not",)
    return Reading.predicted(
        "gradient_noise_scale", scale, unit="examples", error=scale / 10, error_kind="truncation", source=Source("mccandlish2018", "section 2.2"), assumes=assumes
    )


def measure(s: Settings, shared: Subject, *, rng: Generator) -> float:
    """The two parts of many draws of few examples, each by the instrument, as a ratio of means or as the mean of ratios."""
    parts = []
    for draw in range(s.draws):
        few = shared.sample(s.seen, rng=chance.child(rng, "few", draw))
        details = gradient_noise_scale(few, rng=chance.child(rng, "groups", draw), groups=8).details
        parts.append((details["trace"], details["gradient_square"]))
    trace, square = np.array(parts).T
    return float(np.mean(trace / square)) if s.ratios else float(trace.mean() / square.mean())


CLAIM = Claim(
    version=1, entry="D4", source=Source("mccandlish2018", "appendix A.1"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={"smoke": Settings(400, 6, 40, draws=40, replicates=6), "standard": Settings(2_000, 10, 60, draws=100, replicates=20), "paper": Settings(20_000, 10, 60, draws=1_000, replicates=40)},
    sabotage=Sabotage("the mean of the ratios of few examples", ratios=True),
)  # fmt: skip
