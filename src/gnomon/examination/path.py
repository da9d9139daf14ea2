"""Rows of the chapter `training` about the path itself: how the loss fluctuates between records, and whether a catapult threw the training to flatter ground."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gnomon.core.errors import OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.reading import Reading, format_number
from gnomon.core.source import Source
from gnomon.examination.row import Row
from gnomon.instruments.path import catapult, gaps
from gnomon.run.history import over_steps, training_at
from gnomon.theory import landscape as theory

FEWEST = 8
"""Records of the loss from which a fluctuation is read."""


def rows(document: Mapping[str, Any], facts: Facts) -> Iterator[Row]:
    """The rows that the history's loss and sharpness allow."""
    losses = over_steps(document, "training_loss")
    if losses is None:
        return
    if len(losses.value) >= FEWEST:
        yield _fluctuation(losses)
    sharpness = over_steps(document, "sharpness")
    if sharpness is not None and len(sharpness.value) >= 2 and len(losses.value) >= 3:
        yield from _catapult(document, losses, sharpness, facts)


def _fluctuation(losses: Reading) -> Row:
    """The part of the loss that changes sign from record to record in the second half: second differences know nothing of a straight trend."""
    late = losses.value[len(losses.value) // 2 :]
    turns = np.diff(late, n=2) / math.sqrt(6)
    size, count = math.sqrt(float((turns**2).mean())), len(turns)
    measured = Reading("loss_fluctuation", size, "loss", error=size / math.sqrt(2 * count), error_kind="sample", n=count + 1, source=Source("mandt2017"))
    share = 100 * size / abs(float(late.mean())) if late.mean() else math.inf
    words = f"{format_number(share, 2)} % of the loss from record to record, over the last {len(late)}, on the same examples each time"
    return Row("fluctuation of the training loss", measured=measured, words=words)


def _catapult(document: Mapping[str, Any], losses: Reading, sharpness: Reading, facts: Facts) -> Iterator[Row]:
    """A row where the training started above its limit of stability; nothing else is a catapult."""
    training = training_at(document, [float(sharpness.axes[0].values[0])])[0] or facts.training
    if training.optimizer not in ("sgd", "nesterov") or training.lr is None:
        return
    try:
        found = catapult(losses, sharpness, limit=float(theory.stability_limit(training)))
    except OutOfScope:
        return
    if found.value[0] <= 1 or int(float(sharpness.axes[0].values[0])) > 0:
        return
    first, grown, last = (format_number(float(x), 2) for x in found.value)
    said = "a catapult" if found.details["catapult"] else "above the limit at the start, but no catapult"
    words = f"{said}: the sharpness went from {first} to {last} times the limit, the loss up to {grown} times its first value"
    yield Row("catapult", measured=found, words=words)


def gap_notes(document: Mapping[str, Any]) -> list[str]:
    """Where a watched training has no records, in words: intervals more than twice the usual one.  Checkpoints are as far apart as their owner wanted."""
    if document["kind"] != "watch":
        return []
    axis = str(document["settings"].get("axis", "step"))
    missing = gaps([float(record["step"]) for record in document["records"]])
    if not missing:
        return []
    first = ", ".join(f"{int(a):,} to {int(b):,}" for a, b in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"no records between {axis}s {first}{more}: what happened there was not seen"]
