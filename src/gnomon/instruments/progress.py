"""How far training has come: the training loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.outcomes import variance
from gnomon.numerics.measuring import measuring
from gnomon.numerics.operators import loss_value
from gnomon.numerics.statistics import student_quantile

COCHRAN_1977 = Source("cochran1977")
GROUPS = 8
"""Groups of examples whose spread gives the error: one call of the loss for each of them, not for each example."""


def exact_loss(subject: Subject) -> float:
    """The loss over all training examples at hand, divided by their number where it is a sum."""
    return loss_value(subject) / (len(subject.train) if subject.loss.reduction == "sum" else 1)


def _group_sums(subject: Subject, groups: list[Tensor]) -> tuple[Array, Array]:
    """Weighted sum of the losses, and the weight, of each group of examples; one forward pass in all."""
    owner = torch.empty(len(subject.train), dtype=torch.long)
    for number, members in enumerate(groups):
        owner[members] = number
    sums, counts, start, mean = np.zeros(len(groups)), np.zeros(len(groups)), 0, subject.loss.reduction == "mean"
    with measuring(subject), torch.no_grad():
        for block in subject.batches():
            here, order = owner[start : start + len(block)].sort()
            start += len(block)
            output, targets = (_ordered(tree, order) for tree in (subject(subject.state, block.inputs), block.targets))
            first = 0
            for number, size in zip(*(part.tolist() for part in here.unique_consecutive(return_counts=True)), strict=True):
                rows = slice(first, first + size)
                first += size
                target = targets[rows] if isinstance(targets, Tensor) else tree_map(lambda leaf, rows=rows: leaf[rows], targets)
                weight = subject.loss.count(target) if mean else 1.0
                if weight:
                    sums[number] += weight * float(subject.loss(output[rows], target))
                    counts[number] += weight if mean else float(size)
    return sums, counts


def _ordered(tree: Any, order: Tensor) -> Any:
    return tree_map(lambda leaf: leaf[order.to(leaf.device)], tree)


@instrument(topic="dynamics", truth=exact_loss, cost=lambda subject: Cost(gradients=1 / 3))
def training_loss(subject: Subject, *, rng: Generator) -> Reading:
    """Mean loss over the training examples; for a loss that is a sum, that sum over their number.

    L = sum_i w_i loss_i / sum_i w_i

    Shapes: value ().   Units: loss.
    Error: bound, rounding, where all examples are at hand; else the standard error of the ratio over 8 random groups of examples, with the factor 1 - n/N.
    Assumes: eval mode.   Cost: a forward pass.   Raises: OutOfScope where the loss is not finite, or every target is ignored.
    Source: Cochran 1977, chapter 2 (sampling without replacement) and chapter 6 (ratios).
    """
    n, population = len(subject.train), subject.train.population
    groups = [part for part in chance.permutation(n, rng=rng).tensor_split(min(GROUPS, n)) if len(part)]
    sums, counts = _group_sums(subject, groups)
    if not np.isfinite(sums).all():
        raise OutOfScope("the training loss is not finite; was the training run diverging?")
    if not counts.sum():
        raise OutOfScope("every target is ignored: there is no loss")
    value = float(sums.sum() / counts.sum())
    common: dict[str, Any] = {"source": COCHRAN_1977.at("chapters 2 and 6"), "assumes": ("the loss is that of eval mode",)}
    rounding = 16 * torch.finfo(subject.dtype).eps * float(np.abs(sums).sum() / counts.sum() + 1)
    if n >= population or len(groups) < 2:
        return Reading("training_loss", value, "loss", error=rounding, error_kind="bound", **common)
    error = max(float(np.sqrt(variance(sums, counts, factor=1 - n / population))), rounding)
    half = student_quantile(0.975, len(groups) - 1) * error
    return Reading("training_loss", value, "loss", error=error, error_kind="sample", n=len(groups), interval=(value - half, value + half), **common)
