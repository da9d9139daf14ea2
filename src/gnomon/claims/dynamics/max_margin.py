r"""On separable data the exponential loss falls as $1 / t$ and the weights grow as $\log t / \gamma$: the direction that they take has the largest margin.

$\frac{d \log L}{d \log t} \to -1, \quad \frac{d |w|}{d \log t} \to \frac{1}{\gamma}$

The margin $\gamma$ is that of the hard-margin problem, solved beforehand.  Both are reached at the rate $1 / \log t$ alone: after
10,000 steps of plain gradient descent they are still on their way, and its direction decides nothing.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator, Tensor

from gnomon.core.claim import Claim, Sabotage
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.separable import local_slopes, separable
from gnomon.theory import margin


@dataclass(frozen=True)
class Settings:
    """Data sets, examples and inputs, pushed `gap` away from a plane; the times of the gradient flow; exp(-rate y w . x) is the loss."""

    data: tuple[int, int, int]
    gap: float
    times: tuple[float, ...]
    rate: float = 1.0


Shared = tuple[Tensor, Tensor]


def prepare(s: Settings, *, rng: Generator) -> Shared:
    """The data sets."""
    return separable(*s.data, gap=s.gap, rng=rng)


def predict(s: Settings, shared: Shared) -> Reading:
    """From the hard margin of each set, averaged over them."""
    found = [margin.growth(margin.max_margin(x, y), s.times) for x, y in zip(*shared, strict=True)]
    value, error = (np.mean([getattr(each, part) for each in found], 0) for part in ("value", "error"))
    return found[0].replace(value=value, error=error)


def measure(s: Settings, shared: Shared, *, rng: Generator) -> Tensor:
    """The local slopes on the flow, averaged over the sets."""
    return local_slopes(*shared, times=s.times, rate=s.rate).mean(0)


CLAIM = Claim(
    version=1, entry="C5", source=Source("soudry2018", "theorem 3"), relation="equal", predict=predict, measure=measure, prepare=prepare,
    scales={
        "smoke": Settings((8, 20, 3), 0.5, (1e3, 1e6, 1e9)), "standard": Settings((64, 60, 5), 0.5, (1e3, 1e4, 1e6, 1e9, 1e12)),
        "paper": Settings((256, 200, 20), 0.5, (1e3, 1e4, 1e6, 1e9, 1e12, 1e15)),
    }, sabotage=Sabotage("a loss with a steeper tail: the same direction, at a lower rate", rate=1.3),
)  # fmt: skip
