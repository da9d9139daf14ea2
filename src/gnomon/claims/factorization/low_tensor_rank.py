r"""From small components gradient descent completes a tensor of low rank by few components: the others stay small.

$\sum_{r > R} |w_r| \ll \sum_r |w_r|$

$R$ is the rank of the tensor of which some entries are seen, and the components, many more than $R$, stand in falling order.  Measured is the share of the norms beyond
the first $R$.  From components that begin as large as the tensor's own, all of them take part.
"""

from dataclasses import dataclass

from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.tensor_factorization import completion, component_norms, descend, normal_components


@dataclass(frozen=True)
class Settings:
    """Equal modes, the rank, the share of entries seen; components, the norm that they begin with, and steps."""

    modes: tuple[int, ...]
    rank: int
    share: float
    components: int
    lr: float
    steps: int
    starts: int
    replicates: int
    size: float = 1e-4


def predict(s: Settings) -> Reading:
    """Nothing beyond the first R."""
    return Reading.predicted("share_beyond_rank", 0.0, unit="", source=CLAIM.source, assumes=("small starts", "enough entries seen to fix the tensor"))


def measure(s: Settings, *, rng: Generator) -> float:
    """The mean over starts, on one tensor."""
    slope = completion(s.modes, rank=s.rank, share=s.share, rng=rng)
    start = normal_components(s.modes, components=s.components, size=s.size, starts=s.starts, rng=chance.child(rng, "start"))
    norms = component_norms(descend(start, slope, lr=s.lr, records=[s.steps])[0]).sort(dim=1, descending=True).values
    return float((norms[:, s.rank :].sum(1) / norms.sum(1)).mean())


CLAIM = Claim(
    version=1, entry="D3", source=Source("razin2021", "section 5"), relation="at_most", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(lambda s: 1 / (2 * s.rank), because="one of the R may be split between two of one direction, half of 1 / R each, which count apart"),
    scales={
        "smoke": Settings((6, 6, 6), 2, 0.6, 10, lr=0.1, steps=1_500, starts=3, replicates=4), "standard": Settings((8, 8, 8), 2, 0.5, 20, lr=0.1, steps=4_000, starts=4, replicates=6),
        "paper": Settings((20, 20, 20), 3, 0.3, 50, lr=0.05, steps=50_000, starts=10, replicates=10),
    }, sabotage=Sabotage("components that begin as large as the tensor's own", size=1.0),
)  # fmt: skip
