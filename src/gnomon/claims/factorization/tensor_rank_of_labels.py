r"""Real labels are explained by predictors of tensor rank 1 on binary pixels; random labels are not, beyond what that many parameters explain of any noise.

$f(x) = \sum_r \prod_n \langle w_r^n, (1 - x_n, x_n) \rangle$

The coefficients of $f$ over all binary images are a tensor of that rank.  With rank 1 and $d$ pixels $f$ has $d + 1$ free numbers, and explains about the share
$(d + 1) / N$ of the variance of $N$ random labels.  Measured is the share that is explained of the real ones, each class against the rest; predicted, at least thrice that.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.tensor_factorization import explained_by_rank


@dataclass(frozen=True)
class Settings:
    """Data sets, the number of images and their side in pixels, steps of Adam; whether labels are shuffled."""

    data: tuple[str, ...]
    examples: int
    side: int
    steps: int
    replicates: int
    shuffled: bool = False


def predict(s: Settings) -> Reading:
    """Thrice the share that is explained of random labels."""
    value = np.full(len(s.data), 3 * (s.side**2 + 1) / s.examples)
    return Reading.predicted("explained_share", value, unit="", axes=(Axis("data", s.data),), source=CLAIM.source, assumes=("pixels above the median are 1, others 0",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The share that is explained at rank 1, the mean over classes."""
    found = []
    for name in s.data:
        inputs, targets = (part.double() for part in pooled(name, examples=s.examples, side=s.side))
        if s.shuffled:
            targets = targets[chance.permutation(s.examples, rng=chance.child(rng, "labels"))]
        found.append(explained_by_rank((inputs > inputs.median()).double(), targets, rank=1, lr=0.02, steps=s.steps, rng=chance.child(rng, name)))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="D3", source=Source("razin2021", "section 6"), relation="at_least", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 1.2 * (s.side**2 + 1) / s.examples, because="what is explained of random labels varies from draw to draw by less than itself"),
    scales={"smoke": Settings(("digits",), 300, 4, 200, replicates=3), "standard": Settings(("mnist", "fashion-mnist"), 1_000, 7, 300, replicates=4), "paper": Settings(("mnist", "fashion-mnist"), 10_000, 14, 3_000, replicates=10)},
    sabotage=Sabotage("shuffled labels", shuffled=True),
)  # fmt: skip
