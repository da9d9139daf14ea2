r"""From small weights gradient descent on a hierarchical tensor factorisation ends at a low hierarchical rank: at every node few directions carry the tensor.

$\sum_{k > R} \sigma_k(W_\nu) \ll \sum_k \sigma_k(W_\nu)$

$W_\nu$ is the tensor as a matrix, the modes below the node $\nu$ of the mode tree against all others, $R$ its rank for the tensor of which some entries are seen: too few to fix it.
Measured is the share of the singular values beyond the first $R$, averaged over nodes.  From weights that begin large, what they began with stays in the entries that are not seen.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.models.hierarchical_tensor import balanced_weights, binary_tree, completion, dense, descend, hierarchical_singular_values


@dataclass(frozen=True)
class Settings:
    """Equal modes, in a binary tree, the rank, the share of entries seen; local components a node, the norm of each matrix, and steps."""

    modes: tuple[int, ...]
    rank: int
    share: float
    width: int
    lr: float
    steps: int
    starts: int
    replicates: int
    size: float = 1.4


def predict(s: Settings) -> Reading:
    """Nothing beyond the first R."""
    return Reading.predicted("share_beyond_rank", 0.0, unit="", source=CLAIM.source, assumes=("small starts",))


def measure(s: Settings, *, rng: Generator) -> float:
    """The mean over starts and nodes, on one tensor."""
    tree = binary_tree(len(s.modes))
    slope = completion(s.modes, tree, rank=s.rank, share=s.share, rng=rng)
    start = balanced_weights(s.modes, tree, widths=s.width, size=s.size, starts=s.starts, rng=chance.child(rng, "start"))
    made = dense(descend(start, tree, slope, lr=s.lr, records=[s.steps])[0], tree)
    values = hierarchical_singular_values(made, tree).values()
    return float(torch.stack([(sigma[:, s.rank :].sum(1) / sigma.sum(1)).mean() for sigma in values]).mean())


CLAIM = Claim(
    version=1, entry="D3", source=Source("razin2022"), relation="at_most", predict=predict, measure=measure, scale=1.0,
    tolerance=Tolerance(lambda s: 1 / (2 * s.rank), because="half of one direction's even share, 1 / R: with more the rank would rather be R + 1"),
    scales={
        "smoke": Settings((4,) * 4, 2, 0.25, 8, lr=0.2, steps=700, starts=2, replicates=3), "standard": Settings((5,) * 4, 2, 0.25, 10, lr=0.1, steps=4_000, starts=4, replicates=6, size=1.3),
        "paper": Settings((8,) * 4, 3, 0.1, 40, lr=0.05, steps=100_000, starts=10, replicates=10, size=1.2),
    }, sabotage=Sabotage("weights that begin large", size=2.6),
)  # fmt: skip
