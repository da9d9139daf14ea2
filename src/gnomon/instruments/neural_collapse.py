"""Neural collapse: how far the last features and the head are from the geometry that late training leads to."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from torch import Generator

from gnomon.core import architecture
from gnomon.core.errors import OutOfScope
from gnomon.core.layers import Layer
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments import representation
from gnomon.instruments.representation import OUTPUT, Features, Numbers, features, measured, with_labels
from gnomon.numerics.operators import loss_value

PAPYAN_HAN_2020 = Source("papyanhan2020")

STATISTICS = (
    "variability within classes", "spread of the class means' norms", "mean cosine of class means", "spread of the cosines", "head off the class means",
    "nearest mean disagrees",
)  # fmt: skip
RESOLVED = 1e-10
"""Eigenvalues of the between-class covariance below this part of the largest are taken as 0: it has at most classes - 1 that are not."""


@dataclasses.dataclass(frozen=True)
class _Last:
    """The features that the head reads, its weights, labels and decisions.  Shapes: `rows` (n, d), `head` (classes, d), `labels` and `decisions` (n,)."""

    rows: Array
    head: Array
    labels: Array
    decisions: Array


def _head(subject: Subject) -> Layer:
    """The linear layer that makes the logits.  Raises: OutOfScope that names the last layer with weights where it is no such layer."""
    known = architecture.of(subject).parametrised
    if not known:
        raise OutOfScope("the network has no layer with weights")
    last = known[-1]
    if last.kind != "linear" or last.units != subject.classes or not last.parameters:
        raise OutOfScope(
            f"neural collapse is that of the input of the linear layer that makes the logits; the last layer with weights, `{last.name}`, is none with {subject.classes} outputs"
        )
    return last


def _last(subject: Subject) -> tuple[_Last, Features]:
    found = features(subject)
    rows, labels = with_labels(found)
    head = _head(subject)
    if head.name not in rows:
        raise OutOfScope(f"`{head.name}` does not read one row for each example")
    if found.dimensions[head.name] > representation.FEATURES:
        raise OutOfScope(f"`{head.name}` reads {found.dimensions[head.name]:,} features, more than the {representation.FEATURES:,} that are kept")
    if len(np.unique(labels)) != subject.classes or np.bincount(labels).min() < 2:
        raise OutOfScope(f"each of the {subject.classes} classes needs two examples at least among the {len(labels):,} seen")
    weight = subject.state[head.parameters[0]].double().cpu().numpy()
    weight = weight if weight.shape == (subject.classes, rows[head.name].shape[1]) else weight.T
    return _Last(rows[head.name], weight, labels, rows[OUTPUT].argmax(1)), found


def _means(last: _Last, chosen: Numbers) -> tuple[Array, Array]:
    """Class means less their own mean (classes are weighed alike), and that mean.  Shapes: (classes, d), (d,)."""
    rows, labels = last.rows[chosen], last.labels[chosen]
    means = np.stack([rows[labels == c].mean(0) if (labels == c).any() else np.zeros(rows.shape[1]) for c in range(len(last.head))])
    return means - means.mean(0), means.mean(0)


def _cosines(means: Array) -> Array:
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-300)
    return np.asarray((unit @ unit.T)[np.triu_indices(len(means), 1)])


def _statistics(last: _Last, chosen: Numbers) -> Array:
    means, centre = _means(last, chosen)
    rows, labels, classes = last.rows[chosen], last.labels[chosen], len(last.head)
    # Sigma_B = M^T M / C has the eigenvectors M^T u / (sqrt(C) sqrt(lambda)) of the classes x classes Gram matrix: nothing of d x d is formed
    values, vectors = np.linalg.eigh(means @ means.T / classes)
    kept = values > RESOLVED * max(values[-1], 1e-300)
    axes = means.T @ vectors[:, kept] / np.sqrt(classes * values[kept])
    within = rows - centre - means[labels]
    variability = float((((within @ axes) ** 2).mean(0) / values[kept]).sum()) / classes
    norms, cosines = np.linalg.norm(means, axis=1), _cosines(means)
    duality = np.linalg.norm(last.head / np.linalg.norm(last.head) - means / max(float(np.linalg.norm(means)), 1e-300))
    nearest = _squared_distances(rows - centre, means).argmin(1)
    return np.array([variability, norms.std() / max(norms.mean(), 1e-300), cosines.mean(), cosines.std(), duality, float((nearest != last.decisions[chosen]).mean())])


def _squared_distances(rows: Array, means: Array) -> Array:
    return np.stack([((rows - mean) ** 2).sum(1) for mean in means], 1)


def exact_statistics(subject: Subject) -> Array:
    """By covariance matrices and the pseudo-inverse, class by class, for the contract tests."""
    last, _ = _last(subject)
    c = len(last.head)
    means = np.array([last.rows[last.labels == k].mean(0) for k in range(c)])
    centre = means.mean(0)
    within = sum(np.outer(h - means[k], h - means[k]) for h, k in zip(last.rows, last.labels, strict=True)) / len(last.rows)
    between = sum(np.outer(m - centre, m - centre) for m in means) / c
    norms = [float(np.linalg.norm(m - centre)) for m in means]
    cosines = [float((means[i] - centre) @ (means[j] - centre)) / (norms[i] * norms[j]) for i in range(c) for j in range(i)]
    off = last.head / math.sqrt(float((last.head**2).sum())) - (means - centre) / math.sqrt(sum(size**2 for size in norms))
    nearest = [int(np.argmin([np.linalg.norm(h - m) for m in means])) for h in last.rows]
    return np.array([
        float(np.trace(within @ np.linalg.pinv(between, rcond=RESOLVED, hermitian=True))) / c, float(np.std(norms) / np.mean(norms)), float(np.mean(cosines)),
        float(np.std(cosines)), math.sqrt(float((off**2).sum())), float(np.mean(np.array(nearest) != last.decisions)),
    ])  # fmt: skip


def _rounding(last: _Last, precision: float) -> Array:
    """Rounding in the features moves each statistic by about its part of the class means' size; the pseudo-inverse by the condition of what it inverts; examples near a tie may change sides."""
    everyone = np.arange(len(last.rows), dtype=np.int64)
    means, centre = _means(last, everyone)
    values = np.linalg.eigvalsh(means @ means.T / len(means))
    kept = values[values > RESOLVED * max(values[-1], 1e-300)]
    condition = float(kept[-1] / kept[0]) if len(kept) else 1.0
    part = min(precision * float(np.linalg.norm(last.rows, axis=1).max()) / max(float(np.linalg.norm(means, axis=1).min()), 1e-300), 1.0)
    distances = np.sort(_squared_distances(last.rows - centre, means), 1)
    ties = float((distances[:, 1] - distances[:, 0] <= 4 * part * distances[:, 1]).mean())
    return np.array([_statistics(last, everyone)[0] * min(part * condition, 1.0), part, part, part, part, ties]) + 1e-12


def _cost(subject: Subject) -> Cost:
    return Cost(gradients=2 * representation.FORWARD)


@instrument(topic="representation", needs=("labels",), truth=exact_statistics, shares="effective_rank", cost=_cost)
def neural_collapse(subject: Subject, *, rng: Generator) -> Reading:
    """Neural collapse of the last features h and the head W: four properties that late training leads to, by six statistics.

    With class means mu_c, their mean mu_G, M the rows mu_c - mu_G, Sigma_W the covariance within classes and Sigma_B = M^T M / C:
    NC1 tr(Sigma_W Sigma_B^+) / C;   NC2 std / mean over c of |mu_c - mu_G|, and mean and std of the cosines between them;
    NC3 | W / |W|_F - M / |M|_F |_F;   NC4 the part of the examples for which argmax_c of the logits is not argmin_c |h - mu_c|.

    Shapes: value (6,).   `details`: training `error` and mean `loss` on the examples seen, `fewest` and `most` examples of a class, `features`, `classes`, the `layer`.
    Units: none.   Error: rounding; on a subsample the jackknife over groups of examples, its bias taken off and added to the error.
    Assumes: the features are what the linear layer that makes the logits reads.   Cost: shared with `effective_rank`, and the loss.
    Raises: OutOfScope where no linear layer makes the logits, for several labels an example, or a class with fewer than two examples.
    Source: Papyan, Han & Donoho 2020 (NC1 to NC4).
    """
    last, found = _last(subject)
    counts = np.bincount(last.labels, minlength=len(last.head))
    details = {
        "error": float((last.decisions != last.labels).mean()), "loss": loss_value(subject) / (len(subject.train) if subject.loss.reduction == "sum" else 1), "fewest": int(counts.min()),
        "most": int(counts.max()), "features": last.rows.shape[1], "classes": len(last.head), "layer": _head(subject).name,
    }  # fmt: skip
    rounding = _rounding(last, representation.precision(subject))
    axes = (Axis("statistic", STATISTICS),)
    whole = dataclasses.replace(found, dimensions={}, skipped=())
    return measured(
        subject, "neural_collapse", lambda chosen: _statistics(last, chosen), len(last.labels), rounding, axes=axes, source=PAPYAN_HAN_2020, found=whole, details=details,
        strata=last.labels,
    )  # fmt: skip
