"""Whether a network takes every example by itself: without that there is no gradient of one example, and no kernel of two."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gnomon.core.dataset import Block, Tree, leaves
from gnomon.core.errors import OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.measuring import measuring

SEEN = 512
"""Examples among which those are chosen that are tried alone."""
CLOSE, ROUGH, COARSE = 1e-8, 1e-3, 64
"""What the outputs of an example alone and among others may differ by, relative to the largest of the batch: in float64; in float32, whose rounding a deep network carries further; and in units of
the dtype's epsilon below that."""


def refuse_mixing(subject: Subject) -> None:
    """Compare the outputs of a few examples alone with those within a batch, once a subject: batch statistics, attention over the batch and branches on all of it show there.

    Tried are the examples whose inputs have the least and the largest mean and size, so that a branch on the batch's mean goes another way for one of them if it does for any.
    Error: what differs by less than 1e-8 of the largest output (1e-3 in float32, 64 epsilon in half precision) is not seen.   Assumes: eval mode.   Cost: a forward pass of four examples, and of each alone.
    Raises: OutOfScope with the example and the difference.
    """
    subject.once("numerics.mixing", lambda: _compare(subject))


def _compare(subject: Subject) -> float:
    block = next(subject.train.chunks(SEEN))
    which = _extremes(block)
    if len(which) < 2:  # one example stands beside itself
        which = which.repeat(2)
    with measuring(subject), torch.no_grad():
        together = subject(subject.state, _taken(subject, block, which))
        alone = [subject(subject.state, _taken(subject, block, one)) for one in which.split(1)]
    allowed = CLOSE if together.dtype == torch.float64 else max(ROUGH, COARSE * torch.finfo(together.dtype).eps)
    size = float(together.abs().max())
    worst = 0.0
    for example, (whole, part) in enumerate(zip(together, alone, strict=True)):
        gap = float((whole - part[0]).abs().max()) if part.shape[1:] == whole.shape else float("inf")
        if gap > allowed * size:
            raise OutOfScope(
                f"The network gives example {int(which[example])} another output alone than in a batch of {len(which)} (they differ by {gap:.3g}, outputs reach {size:.3g}): its forward mixes examples, "
                "by statistics of the batch, attention over it or a branch on all of it, so that no example has a gradient of its own. Let it act on each example by itself: running statistics "
                "or LayerNorm in place of the batch's, and where(condition, a, b) by example in place of `if`."
            )
        worst = max(worst, gap)
    return worst


def _extremes(block: Block) -> Tensor:
    """The examples of the least and the largest mean, and size, of what is read.  Shapes: (at most 4,)."""
    first = leaves(block.inputs)[0]
    x = first.reshape(len(first), -1).real.double()
    scores = [x.mean(1), x.square().mean(1)]
    return torch.stack([place for score in scores for place in (score.argmin(), score.argmax())]).unique()


def _taken(subject: Subject, block: Block, which: Tensor) -> Tree:
    return subject.to_device(tree_map(lambda leaf: leaf[which.to(leaf.device)], block.inputs))
