"""The report as a document: rows judged and worded, sources gathered, its size bounded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from gnomon.core import registry
from gnomon.core.errors import GnomonError, OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.examination import history as over_training
from gnomon.examination.row import Row
from gnomon.run.plan import Plan
from gnomon.run.store import REPORT

MOST_BYTES = 250_000
MOST_NUMBERS = 1000


class Readings(dict[str, Reading]):
    """Readings by name, which remembers those that were taken."""

    def __init__(self, readings: Mapping[str, Reading]) -> None:
        super().__init__(readings)
        self.taken: set[str] = set()

    def __getitem__(self, key: str) -> Reading:
        self.taken.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The reading, or the default where it is missing."""
        self.taken.add(key)
        return super().get(key, default)


def assemble(
    facts: Facts, plan: Plan, readings: Mapping[str, Reading], *, failures: Mapping[str, str], skipped: list[tuple[str, str, str]],
    chapters: Mapping[str, ModuleType], data_name: str | None, fingerprint: str, environment: dict[str, Any],
    history: tuple[Mapping[str, Any], str] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:  # fmt: skip
    """The report's document without its `run` key, and the arrays that are too large for it."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    kept, rows = Readings(readings), list[dict[str, Any]]()
    sources: dict[str, Source] = {}
    for name, module in chapters.items():
        try:
            for row in _rows(module, facts, kept):
                rows.append(_row_json(name, row, arrays))
                sources.update(_sources(row))
        except Exception as error:
            logging.getLogger(__name__).exception("chapter %s", name)
            rows.append(_fault_row(name, "the rest of this chapter", f"{type(error).__name__}: {error}"))
        sources.update({source.key: source for source in getattr(module, "SOURCES", ())})
    known = registry.instruments()
    for key, reading in readings.items():
        if key not in kept.taken:
            row = Row(key.replace("_", " "), measured=reading, words="measured; no prediction stands beside it")
            topic = known[key.partition("@")[0]].topic
            rows.append(_row_json(topic, row, arrays))
            sources.update(_sources(row))
    for key, fault in failures.items():
        topic = known[key.partition("@")[0]].topic
        rows.append(_fault_row(topic, key.replace("_", " "), fault))
    if history is not None:
        for row in over_training.rows(history[0], facts):
            rows.append(_row_json(over_training.NAME, row, arrays))
            sources.update(_sources(row))
        skipped = [*skipped, *over_training.skipped(history[0])]
    order = {name: position for position, name in enumerate(chapters)}
    rows.sort(key=lambda row: order.get(row["chapter"], len(order)))
    document: dict[str, Any] = {
        "schema": REPORT, "subject": _subject_json(facts, data_name, fingerprint), "plan": plan.to_json(), "rows": rows,
        "chapters": [_chapter_json(name, module) for name, module in chapters.items()],
        "advice": [row["advice"] for row in rows if row["advice"]],
        "skipped": [{"what": what, "chapter": chapter, "why": why} for what, chapter, why in skipped],
        "sources": {key: {"text": str(Source(key)), "title": Source(key).field("title"), "url": source.url, "bibtex": source.bibtex} for key, source in sorted(sources.items())},
        "environment": environment,
    }  # fmt: skip
    if history is not None:
        document["chapters"].append(over_training.chapter_json())
        document["history"] = over_training.about(*history)
    return document, arrays


def _rows(module: ModuleType, facts: Facts, readings: Readings) -> Iterator[Row]:
    """A chapter's rows; where it raises, what it yielded so far and a row that says so."""
    try:
        yield from module.chapter(facts, readings)
    except OutOfScope as error:
        yield Row("the rest of this chapter", out_of_scope=str(error), words="the theory has nothing to say here")
    except GnomonError as error:
        yield Row("the rest of this chapter", out_of_scope=str(error), words="not covered")


def _empty_row(chapter: str, title: str) -> dict[str, Any]:
    return {
        "chapter": chapter, "title": title, "headline": False, "predicted": None, "measured": None, "relation": "equal", "verdict": None, "why": "", "gap": None, "interval": None,
        "tolerance": None, "because": "", "elements": [], "words": "", "advice": None,
    }  # fmt: skip


def _fault_row(chapter: str, title: str, fault: str) -> dict[str, Any]:
    return _empty_row(chapter, title) | {"verdict": "error", "why": f"gnomon failed here: {fault}. Please report it.", "words": "gnomon failed here"}


def _row_json(chapter: str, row: Row, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    verdict, words, advice = row.settle()
    out = _empty_row(chapter, row.title) | {"headline": row.headline, "relation": row.relation, "because": row.because, "words": words, "advice": advice}
    for side in ("predicted", "measured"):
        reading: Reading | None = getattr(row, side)
        if reading is not None:
            out[side] = _reading_json(reading, f"{chapter}/{row.title}/{side}", arrays)
    if verdict is not None:
        out |= verdict.to_json()
    return out


def _reading_json(reading: Reading, name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    out = reading.to_json()
    if reading.samples is not None and reading.samples.size > MOST_NUMBERS:
        arrays[name] = reading.samples
        del out["samples"]
        out["details"] = {**out.get("details", {}), "samples_in_npz": name}
    return out


def _sources(row: Row) -> dict[str, Source]:
    found = [reading.source for reading in (row.predicted, row.measured) if reading is not None and reading.source is not None]
    return {source.key: source for source in found}


def _subject_json(facts: Facts, data_name: str | None, fingerprint: str) -> dict[str, Any]:
    layers = [{"name": layer.name, "kind": layer.kind} for layer in facts.architecture.layers]
    return {
        "name": facts.name, "data": data_name, "parameters": facts.parameters, "trainable": facts.trainable, "classes": facts.classes, "loss": facts.loss, "reduction": facts.reduction,
        "train": {"examples": facts.train_examples, "population": facts.train_population}, "test": {"examples": facts.test_examples} if facts.test_examples else None,
        "training": facts.training.to_json(), "layers": layers[:100], "fingerprint": fingerprint,
    }  # fmt: skip


def _chapter_json(name: str, module: ModuleType) -> dict[str, Any]:
    return {"name": name, "title": getattr(module, "TITLE", name), "theory": getattr(module, "THEORY", ""), "assumes": list(getattr(module, "ASSUMES", ()))}


def bounded(document: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The document within MOST_BYTES: the largest sets of replicates go to the arrays first."""

    def size(part: Any) -> int:
        return len(json.dumps(part, indent=1))

    while size(document) > MOST_BYTES:
        largest, name = 0, ""
        target: dict[str, Any] | None = None
        for row in document["rows"]:
            for side in ("predicted", "measured"):
                reading = row[side]
                if reading and "samples" in reading and size(reading["samples"]) > largest:
                    largest, target, name = size(reading["samples"]), reading, f"{row['chapter']}/{row['title']}/{side}"
        if target is None:
            break
        arrays[name] = np.asarray(target.pop("samples"), dtype=np.float64)
        target["details"] = {**target.get("details", {}), "samples_in_npz": name}
    return document, arrays
