"""The readings over training as a part of the report: from the file of a Watch, or from a folder of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Reading, format_number
from gnomon.core.subject import Subject
from gnomon.examination import path
from gnomon.examination.landscape import EDGE
from gnomon.examination.row import Row
from gnomon.run.history import SCHEMA, checked, over_steps, training_at
from gnomon.run.store import read_json
from gnomon.theory import landscape as theory

NAME = "training"
TITLE = "Over training"
THEORY = (
    "Training with full batches first raises the sharpness (progressive sharpening) until it meets the limit of stability, $2/\\eta$ for gradient descent, and then keeps it there; "
    "with small batches it stays below. The limit is drawn for the learning rate of each step, as far as that is known. The gradient noise scale usually grows as the loss falls: "
    "larger batches pay off later in training."
)
POINTS = 80
"""Most steps of one reading that go into the report; the file keeps them all."""
NUMBERS = 640
"""Most numbers of all readings together."""


def load(given: Any) -> tuple[dict[str, Any], str]:
    """The history that a subject was given, a document or a file, and what it is called.  Raises: InvalidInput for what is none."""
    if isinstance(given, Mapping):
        return dict(checked(given)), "a history"
    if not isinstance(given, (str, Path)):
        raise InvalidInput(f"A history is a file that gnomon.hooks.Watch wrote, a folder of checkpoints, or a watch.history, not {type(given).__name__}.")
    return dict(checked(read_json(Path(given), schema=SCHEMA), str(given))), Path(given).name


def check_network(document: Mapping[str, Any], subject: Subject, source: str) -> None:
    """See that a history is one of the network examined.  Raises: InvalidInput."""
    own = sum(value.numel() for value in subject.module.parameters())
    if document["subject"]["parameters"] != own:
        theirs = f"{document['subject'].get('name')}, {document['subject']['parameters']:,} parameters"
        raise InvalidInput(f"{source} is the history of another network ({theirs}); the one examined has {own:,}. Give the history of this network.")


def rows(document: Mapping[str, Any], facts: Facts) -> Iterator[Row]:
    """One row a reading; the sharpness stands beside the limit of stability of each step."""
    names = sorted({name for record in document["records"] for name in record["readings"]}, key=lambda name: (name not in ("preconditioned_sharpness", "sharpness"), name))
    for name in names:
        most = min(POINTS, max(NUMBERS // len(names), 2))
        whole = over_steps(document, name)
        if whole is None:
            continue
        size = whole.value[..., 0].size
        found = over_steps(document, name, most=max(min(most, NUMBERS // size), 2)) if size else None
        if found is None:
            continue
        if name in ("sharpness", "preconditioned_sharpness"):
            yield _sharpness(name, document, found, facts)
        else:
            yield Row(f"{name.replace('_', ' ')} over training", measured=found, words=_course(found))
    yield from path.rows(document, facts)


def _course(reading: Reading) -> str:
    """`from 2.31 at step 0 to 0.13 at step 450`."""
    if reading.value.ndim != 1:
        return f"at {reading.value.shape[-1]} {reading.axes[-1].name}s" if reading.axes else ""
    axis = reading.axes[0]
    first, last = (f"{format_number(float(reading.value[i]))} at {axis.name} {int(float(axis.values[i])):,}" for i in (0, -1))
    return f"from {first} to {last}" if len(axis.values) > 1 else first


def _sharpness(name: str, document: Mapping[str, Any], measured: Reading, facts: Facts) -> Row:
    """The sharpness and, where optimizer and step size are known at every step shown, the limit of stability."""
    title = f"{name.replace('_', ' ')} over training"
    axis = measured.axes[0]
    known = [training or facts.training for training in training_at(document, [float(step) for step in axis.values])]
    adaptive = any(training.optimizer in ("adam", "adamw") for training in known)
    try:
        limits = [theory.stability_limit(training) for training in known]
    except OutOfScope:
        return Row(title, measured=measured, words=f"{_course(measured)}; no limit to compare with: the learning rate is not known")
    if adaptive != (name == "preconditioned_sharpness"):
        return Row(title, measured=measured, words=f"{_course(measured)}; Adam's limit is one on the preconditioned sharpness" if adaptive else _course(measured))
    predicted = Reading.predicted(
        "stability_limit_over_training", np.array([float(limit) for limit in limits]), unit=measured.unit, axes=(axis,), source=limits[-1].source, assumes=limits[-1].assumes
    )
    if normalised := [layer.name for layer in facts.architecture.layers if layer.why.startswith("BatchNorm")]:
        why = f"`{normalised[0]}` is batch norm: the sharpness here is that of eval mode, while the steps were taken on a loss that normalises by the batch"
        return Row(title, predicted, measured, out_of_scope=why, words=_course(measured))
    sizes = [training.batch_size for training in known]
    full = all(size is not None and size >= facts.train_population for size in sizes)

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "holds":
            return "at the limit or below it at every step" if full else "below the limit at every step"
        count = verdict.elements.count("fails")
        return f"beyond the limit at {count} of {len(verdict.elements)} steps" if count else "near the limit; the errors do not tell on which side"

    because = (
        "full-batch sharpness hovers about the limit; 20 % is allowed for that, a choice and not the paper's figure" if full else "small batches keep the sharpness below the limit"
    )
    return Row(title, predicted, measured, "at_most", EDGE * np.abs(predicted.value) if full else 0.0, because=because, words=words, headline=True)


def about(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the report says of where the readings come from."""
    steps = [record["step"] for record in document["records"]]
    axis = str(document["settings"].get("axis", "step"))
    kind = "checkpoints" if document["kind"] == "checkpoints" else "records of a watched training"
    span = f", {axis}s {steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else ""
    train = document["subject"]["train"]
    sample = "" if train["examples"] >= train["population"] else f"; read on at most {train['examples']:,} of {train['population']:,} training examples"
    return {
        "kind": document["kind"], "source": source, "records": len(steps), "first": steps[0] if steps else None, "last": steps[-1] if steps else None,
        "readings": list(document["readings"]), "notes": [f"{source}: {len(steps):,} {kind}{span}{sample}", *path.gap_notes(document), *document["notes"]][:20],
    }  # fmt: skip


def skipped(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was left out (what, chapter, why): files, and readings with the number of steps at which they failed and the first reason."""
    out = [(str(entry["what"]), NAME, str(entry["why"])) for entry in document["skipped"]]
    failed: dict[str, list[tuple[int, str]]] = {}
    for record in document["records"]:
        for name, why in record["skipped"].items():
            failed.setdefault(name, []).append((record["step"], why))
    axis = document["settings"].get("axis", "step")
    for name, found in sorted(failed.items()):
        at = f"at {axis} {found[0][0]:,}" if len(found) == 1 else f"at {len(found)} {axis}s, first {found[0][0]:,}"
        out.append((f"{name.replace('_', ' ')} {at}", NAME, found[0][1]))
    return out


def chapter_json() -> dict[str, Any]:
    """The chapter's entry in the report's document."""
    return {"name": NAME, "title": TITLE, "theory": THEORY, "assumes": ["the curvature is that of the mean training loss in eval mode"]}
