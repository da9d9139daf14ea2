r"""Descent on a hierarchical tensor factorisation moves the norm of each local component of a node with $L - 1$ children in proportion to its power $2 - 2/L$.

$\frac{d}{dt} \sigma_r = L\, \sigma_r^{2 - 2/L} \langle -\nabla L(W), C_r \rangle$

On tensor completion from balanced weights, over mode trees whose nodes have equally many children.  Measured is the slope of the logarithm of each local component's velocity
over its pull $\langle -\nabla L, C_r \rangle$ against that of its norm, over the components of all nodes and times: $4/3$ for binary trees.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.models.hierarchical_tensor import Tree, balanced_weights, completion, growth_exponent, modes_of, nodes
from gnomon.theory import factorization

PAIRS, TRIPLE, TREE = ((0, 1), (2, 3)), (0, 1, 2), (((0, 1), (2, 3)), ((4, 5), (6, 7)))


@dataclass(frozen=True)
class Settings:
    """Mode trees; modes' length, rank, share of entries seen; local components a node, norm of each matrix; steps; the modes' matrices times `skew`, the root's over these."""

    trees: tuple[tuple[Tree, ...], ...]
    tensor: tuple[int, int, float]
    weights: tuple[int, float]
    lr: float
    steps: int
    starts: int
    replicates: int
    skew: float = 1.0


def predict(s: Settings) -> Reading:
    """The power, with one more vector a component than a node has children."""
    powers = [factorization.component_exponent(len(tree) + 1) for tree in s.trees]
    return Reading.predicted("exponent", powers, unit="", axes=(Axis("mode tree", tuple(map(str, s.trees))),), source=CLAIM.source, assumes=("vectors of equal norms",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The fitted slope over each tree, on one tensor."""
    (side, rank, share), (width, size), found = s.tensor, s.weights, []
    for number, tree in enumerate(s.trees):
        modes = (side,) * len(modes_of(tree))
        slope = completion(modes, tree, rank=rank, share=share, rng=chance.child(rng, "tensor", number))
        start = balanced_weights(modes, tree, widths=width, size=size, starts=s.starts, skew=s.skew, rng=chance.child(rng, "start", number))
        found.append(growth_exponent(start, tree, slope, lr=s.lr, steps=s.steps))
    return np.array(found)


CLAIM = Claim(
    version=1, entry="D3", source=Source("razin2022"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: s.lr * max(len(list(nodes(tree))) for tree in s.trees), because="steps of lr: velocities are those of the flow up to lr x sharpness, which at a tensor of norm 1 is about the number of matrices"),
    scales={"smoke": Settings((PAIRS, TRIPLE), (3, 2, 0.6), (5, 1.5), lr=0.02, steps=150, starts=3, replicates=3), "standard": Settings((PAIRS, TRIPLE, TREE), (3, 2, 0.5), (6, 1.5), lr=0.005, steps=2_000, starts=4, replicates=4), "paper": Settings((PAIRS, TRIPLE, TREE), (4, 3, 0.3), (16, 1.4), lr=0.002, steps=50_000, starts=10, replicates=10)},
    sabotage=Sabotage("vectors of unequal norms: a component's velocity then is no function of its norm", skew=1.15),
)  # fmt: skip
