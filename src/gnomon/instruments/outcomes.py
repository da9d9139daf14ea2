"""What a network says on every example of a split: errors, confidence and losses, read off one forward pass and shared by the instruments."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gnomon.core import loss as losses
from gnomon.core.dataset import Block, leaves
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array
from gnomon.core.subject import Subject
from gnomon.numerics.measuring import measuring
from gnomon.numerics.statistics import student_quantile

Kind = Literal["labels", "binary", "loss"]
UNITS: dict[str, str] = {"labels": "", "binary": "", "loss": "loss"}
NOT_PROBABILITIES = (nn.MultiMarginLoss, nn.HingeEmbeddingLoss, nn.MultiLabelMarginLoss, nn.SoftMarginLoss)


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """One number an example: what is added up over its targets, and how much they count.

    `labels`: wrong classes over targets that are not ignored; `binary`: wrong signs over components; `loss`: weighted losses over weights.
    Shapes: `sums`, `counts`, `confidences` (n,); `confidences` holds the summed largest probabilities, or nan for `loss`.
    """

    kind: Kind
    sums: Array
    counts: Array
    confidences: Array

    @property
    def value(self) -> float:
        """The mean over targets."""
        return float(self.sums.sum() / self.counts.sum())

    def kept(self) -> Outcomes:
        """Without the examples whose targets are all ignored.  Raises: OutOfScope where none is left."""
        here = self.counts > 0
        if not here.any():
            raise OutOfScope("every target is ignored: there is nothing to be right or wrong about")
        return Outcomes(self.kind, self.sums[here], self.counts[here], self.confidences[here])


def kind_of(subject: Subject) -> Kind:
    """Whether a network is judged by classes, by signs (binary cross-entropy of 0/1 targets) or by its loss."""
    if subject.classes is not None:
        return "labels"
    function = subject.loss.function
    binary = function in (losses.bce_with_logits, F.binary_cross_entropy_with_logits) or isinstance(function, nn.BCEWithLogitsLoss)
    if not binary:
        return "loss"
    exact = all(bool(((leaf == 0) | (leaf == 1)).all()) for data in (subject.train, subject.test) if data for block in data.blocks for leaf in leaves(block.targets))
    return "binary" if exact else "loss"


def outcomes(subject: Subject, split: str) -> Outcomes:
    """The outcomes of a split, made once.  Cost: a forward pass.  Raises: OutOfScope without test data, or where every target is ignored."""

    def build() -> Outcomes:
        kind = kind_of(subject)
        parts = []
        with measuring(subject), torch.no_grad():
            for block in subject.batches(split):
                parts.append(of_block(subject, block, subject(subject.state, block.inputs), kind))
        return Outcomes(kind, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("sums", "counts", "confidences"))).kept()

    return subject.once(f"outcomes/{split}", build)


def of_block(subject: Subject, block: Block, output: Tensor, kind: Kind) -> Outcomes:
    """The outcomes of one block from the network's output on it.   Shapes: output (n, ...) -> arrays (n,)."""
    if kind == "loss":
        return _losses(subject, block, output)
    if kind == "binary":
        target = leaves(block.targets)[0].reshape(output.shape)
        wrong, shape = (output > 0) != (target > 0.5), (len(block), -1)
        sure = torch.sigmoid(output.double().abs())
        return Outcomes(kind, _sum(wrong.reshape(shape)), _sum(torch.ones_like(wrong).reshape(shape)), _sum(sure.reshape(shape)))
    logits, labels, kept = labelled(subject, block, output)
    wrong = (logits.argmax(-1) != labels) & kept
    sure = torch.where(kept, torch.softmax(logits.double(), -1).amax(-1), 0.0)
    return Outcomes(kind, _sum(wrong), _sum(kept), _sum(sure))


def labelled(subject: Subject, block: Block, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and which of them count.  Shapes: (n, targets, classes), (n, targets), (n, targets); ignored labels are put to 0."""
    target = leaves(block.targets)[0]
    logits = losses.class_last(output, target)
    classes = logits.shape[-1]
    labels, logits = target.reshape(len(block), -1), logits.reshape(len(block), -1, classes)
    kept = (labels != int(getattr(subject.loss.function, "ignore_index", -100))) & (labels >= 0) & (labels < classes)
    return logits, torch.where(kept, labels, 0), kept


def _losses(subject: Subject, block: Block, output: Tensor) -> Outcomes:
    sums, counts = np.zeros(len(block)), np.zeros(len(block))
    for i in range(len(block)):
        target = tree_map(lambda leaf, i=i: leaf[i : i + 1], block.targets)
        counts[i] = subject.loss.count(target) if subject.loss.reduction == "mean" else 1.0
        sums[i] = counts[i] * float(subject.loss(output[i : i + 1], target)) if counts[i] else 0.0
    return Outcomes("loss", sums, counts, np.full(len(block), math.nan))


def _sum(values: Tensor) -> Array:
    return np.asarray(values.reshape(len(values), -1).double().sum(1).cpu().numpy())


def variance(sums: Array, counts: Array, *, factor: float = 1.0) -> float:
    """Variance of sum(sums) / sum(counts) over examples, targets of one example taken together: sum (s_i - r c_i)^2 / (sum c)^2  n / (n - 1), times `factor`.

    Shapes: (n,), (n,) -> a number.
    """
    n = len(sums)
    rest = sums - sums.sum() / counts.sum() * counts
    return factor * float((rest**2).sum()) / float(counts.sum()) ** 2 * n / max(n - 1, 1)


def bounded_interval(sums: Array, counts: Array, *, factor: float = 1.0, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of numbers in [0, 1]: that of Clopper & Pearson for as many independent trials as would have its variance (Korn & Graubard).

    n* = p (1 - p) / Var(p), shortened by (z / t)^2 where targets come in clusters (one example's targets), and never more than there are targets;
    exactly Clopper & Pearson's for one right-or-wrong target an example.  `factor` is 1 - n/N for a sample without replacement; 0 gives the value itself.   Shapes: (n,), (n,) -> two numbers.
    """
    n, total, value = len(sums), float(counts.sum()), float(sums.sum() / counts.sum())
    if factor == 0 or n < 2:
        return (value, value) if factor == 0 else (0.0, 1.0)
    single = bool((counts == 1).all() and np.isin(sums, (0.0, 1.0)).all())
    spread = variance(sums, counts)
    trials = float(n)
    if not single and 0 < value < 1 and spread > 0:
        shorten = (student_quantile(0.975, math.inf) / student_quantile(0.975, n - 1)) ** 2
        trials = value * (1 - value) / spread * shorten
    trials = (trials if single else max(min(trials, 1e6 * total), 1.0)) / factor
    hits, tail = value * trials, (1 - level) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if value > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if value < 1 else 1.0
    return low, high
