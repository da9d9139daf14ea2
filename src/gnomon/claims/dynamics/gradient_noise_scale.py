r"""The noise scale of few examples estimates that of all when the means of its two parts are taken, and then their ratio.

$B_{\mathrm{noise}} = \frac{\mathrm{tr} \, \Sigma}{|G|^2} = \frac{E[S]}{E[\mathcal{G}]}$

$S$ and $\mathcal{G}$ are unbiased estimates of both parts from a few examples.  The mean of their ratios is not the ratio of their means: $\mathcal{G}$ happens to be small, or even
negative once the gradient is lost in noise.
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
    """A linear network on so many examples (and inputs, condition); so many of them at a time, `draws` times a replicate; whether the mean of ratios is taken."""

    data: tuple[int, int, float]
    seen: int
    draws: int
    replicates: int
    ratios: bool = False


def prepare(s: Settings, *, rng: Generator) -> Subject:
    """Least squares, away from its minimum."""
    inputs, targets = regression(*s.data, rng=rng)
    network = nn.Linear(s.data[1], 1, bias=False).double()
    nn.init.zeros_(network.weight)
    return Subject.freeze(network, "mse", (inputs, targets[:, None]), lr=0.1, batch_size=8)


def predict(s: Settings, shared: Subject) -> Reading:
    """Both parts from the gradient of every example; 7 % is half of the variance of |G|^2 over draws of its square, the order of a bias."""
    rows = (-2 * shared.train.blocks[0].targets * shared.train.blocks[0].inputs).numpy()
    scale = float(((rows - rows.mean(0)) ** 2).sum() / (len(rows) - 1) / (rows.mean(0) ** 2).sum())
    made = Reading.predicted("gradient_noise_scale", scale, unit="examples", error=0.07 * scale, error_kind="truncation", source=CLAIM.source)
    return made.replace(assumes=(f"|G|^2 is told from 0: the noise of {s.seen} examples is {scale / s.seen:.2f} of it",))


def measure(s: Settings, shared: Subject, *, rng: Generator) -> float:
    """The two parts of many draws of few examples, each by the instrument, as a ratio of means or as the mean of ratios."""
    draws = (shared.sample(s.seen, rng=chance.child(rng, "few", draw)) for draw in range(s.draws))
    parts = [gradient_noise_scale(few, rng=chance.child(rng, "groups"), groups=8).details for few in draws]
    trace, square = (np.array([part[name] for part in parts]) for name in ("trace", "gradient_square"))
    return float(np.mean(trace / square)) if s.ratios else float(trace.mean() / square.mean())


CLAIM = Claim(
    version=1, entry="D4", source=Source("mccandlish2018", "appendix A.1"), relation="equal", predict=predict, measure=measure, prepare=prepare, smoke="inconclusive", scales={"smoke": Settings((400, 20, 2.0), 30, draws=10, replicates=5), "standard": Settings((2_000, 20, 2.0), 30, draws=100, replicates=20), "paper": Settings((20_000, 20, 2.0), 30, draws=1_000, replicates=40)}, sabotage=Sabotage("the mean of the ratios of few examples", ratios=True),
)  # fmt: skip
