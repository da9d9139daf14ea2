"""Two reports side by side: what was predicted, measured and decided in each, and what differs by more than its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import CHANCE, Array, Reading, jsonable
from gnomon.report import words
from gnomon.run.store import REPORT

SCHEMA = "gnomon/compare/1"
LEVEL = 0.95
"""Level of a difference's interval; over the elements of an array it is Bonferroni's."""


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, names: tuple[str, str] = ("first", "second")) -> dict[str, Any]:
    """The comparison of two reports as a document of the schema `gnomon/compare/1`: rows matched by chapter and title, second minus first.

    A value has `moved` where the 95 % interval of its difference leaves out 0, `same` where it does not.  The interval is Welch's (errors that are chance,
    intervals symmetric); where one is lopsided, the distances to its ends are put together, d - sqrt((y - l_y)^2 + (u_x - x)^2) and its mirror; bounds are
    added to either side.  For an array each element is judged at Bonferroni's level.
    Assumes: the errors of the two are independent; on shared examples or probes the difference is known better than is said.   Cost: none.
    Raises: InvalidInput for documents that are no reports of this schema, or lack parts of one.
    Source: Welch 1947; intervals put together as in Newcombe 1998, method 10.
    """
    try:
        for document, name in zip((first, second), names, strict=True):
            if document.get("schema") != REPORT:
                raise InvalidInput(f"{name} is not a report: expected the schema {REPORT!r}, found {document.get('schema')!r}.")
        one, two = (_keyed(document["rows"]) for document in (first, second))
        titles = {chapter["name"]: chapter["title"] for document in (second, first) for chapter in document["chapters"]}
        order = [*one, *(key for key in two if key not in one)]
        chapters = list(dict.fromkeys(chapter for chapter, _, _ in order))
        rows = [_row(key, one.get(key), two.get(key)) for key in sorted(order, key=lambda key: chapters.index(key[0]))]
        sides = [_side(document, name) for document, name in zip((first, second), names, strict=True)]
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"A report is not whole ({type(error).__name__}: {error}). Give two report.json that gnomon wrote.") from error
    return {
        "schema": SCHEMA, "level": LEVEL, "first": sides[0], "second": sides[1], "notes": list(_notes(first, second)), "chapters": {name: titles.get(name, name) for name in chapters},
        "rows": rows, "tally": {state: sum(row["change"] == state for row in rows) for state in ("moved", "same", "first_only", "second_only", "not_comparable")},
        "verdicts_changed": sum(row["verdict_changed"] for row in rows),
    }  # fmt: skip


def _keyed(rows: list[Mapping[str, Any]]) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """Rows by chapter and title; a title that stands twice in a chapter is numbered."""
    out: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    for row in rows:
        number = sum(key[:2] == (row["chapter"], row["title"]) for key in out)
        out[row["chapter"], row["title"], number] = row
    return out


def _side(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    subject = document["subject"]
    return {
        "file": name, "name": subject["name"], "parameters": subject["parameters"], "data": subject["data"], "examined": words.examined(subject), "trained": words.trained(subject["training"]),
        "fingerprint": subject["fingerprint"], "seed": document["plan"]["seed"],
    }  # fmt: skip


def _notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> Any:
    """What sets the two reports apart beside their rows."""
    one, two = first["subject"], second["subject"]
    if one["fingerprint"] == two["fingerprint"]:
        yield "both reports are of the same weights, data and settings: what moved is chance, the plan or another version"
    for key, label in (("name", "network"), ("parameters", "number of parameters"), ("data", "data"), ("loss", "loss")):
        if one[key] != two[key]:
            yield f"another {label}: {one[key]} and {two[key]}"
    for key in sorted(one["training"].keys() & two["training"].keys()):
        if one["training"][key] != two["training"][key]:
            yield f"{key.replace('_', ' ')}: {one['training'][key]} and {two['training'][key]}"
    if (a := first["environment"].get("gnomon")) != (b := second["environment"].get("gnomon")):
        yield f"made by gnomon {a} and {b}"
    elif first["environment"].get("code") != second["environment"].get("code"):
        yield "made by different code of the same version of gnomon"


def _row(key: tuple[str, str, int], one: Mapping[str, Any] | None, two: Mapping[str, Any] | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "chapter": key[0],
        "title": key[1],
        "first": _part(one),
        "second": _part(two),
        "headline": any(row is not None and row["headline"] for row in (one, two)),
    }
    if one is None or two is None:
        return out | {"change": "second_only" if one is None else "first_only", "measured": None, "predicted": None, "verdict_changed": False}
    measured, predicted = (_changed(one[side], two[side]) for side in ("measured", "predicted"))
    states = [found["state"] for found in (measured, predicted) if found is not None]
    change = next((state for state in ("moved", "not_comparable") if state in states), "same")
    return out | {"change": change, "measured": measured, "predicted": predicted, "verdict_changed": one["verdict"] != two["verdict"]}


def _changed(one: Mapping[str, Any] | None, two: Mapping[str, Any] | None) -> dict[str, Any] | None:
    readings = [words.reading_of(data) for data in (one, two)]
    if any(data is not None and reading is None for data, reading in zip((one, two), readings, strict=True)):
        return {"state": "not_comparable", "why": "the numbers are stored beside the report"}
    return difference(*readings)


def _part(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {key: row[key] for key in ("predicted", "measured", "relation", "verdict", "words")} | {
        side: None if row[side] is None else {field: entry for field, entry in row[side].items() if field not in ("samples", "details", "assumes", "skipped")} for side in ("predicted", "measured")
    }  # fmt: skip


def difference(one: Reading | None, two: Reading | None) -> dict[str, Any] | None:
    """Second less first with its interval, and whether it `moved`, is the `same` within the error, or is `not_comparable`; None where neither is known.

    Shapes: `difference` that of the readings; `interval` a pair of the same; `moved_elements` flat indices.
    """
    if one is None and two is None:
        return None
    why = _unlike(one, two)
    if one is None or two is None or why:
        return {"state": "not_comparable", "why": why}
    gap = np.asarray(two.value - one.value)
    low, high = _interval(one, two, 1 - (1 - LEVEL) / max(gap.size, 1))
    moved = np.flatnonzero((low > 0) | (high < 0))
    out: dict[str, Any] = {"state": "moved" if len(moved) else "same", "difference": jsonable(gap), "interval": [jsonable(low), jsonable(high)]}
    return out | ({"moved_elements": moved.tolist(), "elements": gap.size} if gap.ndim else {})


def _unlike(one: Reading | None, two: Reading | None) -> str:
    """Why two readings cannot be subtracted, or the empty string."""
    if one is None or two is None:
        return f"known in the {'second' if one is None else 'first'} alone"
    if one.unit != two.unit:
        return f"other units: {one.unit or 'none'} and {two.unit or 'none'}"
    if one.value.shape != two.value.shape:
        return f"other shapes: {one.value.shape} and {two.value.shape}"
    if [axis.values for axis in one.axes] != [axis.values for axis in two.axes]:
        return f"taken at other places along {', '.join(axis.name for axis in one.axes)}"
    return "" if np.isfinite(one.value).all() and np.isfinite(two.value).all() else "not finite"


def _interval(one: Reading, two: Reading, level: float) -> tuple[Array, Array]:
    """The interval of two - one at a level; what is no chance is added to either side."""
    gap, certain, lopsided = two.value - one.value, np.zeros(two.value.shape), False
    for reading in (one, two):
        assert reading.interval is not None
        if reading.error_kind not in CHANCE:
            certain = certain + reading.error
        low, high = reading.interval
        lopsided |= (
            bool((np.abs((high - reading.value) - (reading.value - low)) > 0.02 * np.where(np.isfinite(high - low), high - low, math.inf)).any())
            or not np.isfinite(high - low).all()
        )
    if not lopsided:
        half = _welch(one, two, level) + certain
        return gap - half, gap + half
    (below_one, above_one), (below_two, above_two) = (_reach(reading, level) for reading in (one, two))
    return gap - np.hypot(below_two, above_one) - certain, gap + np.hypot(above_two, below_one) + certain


def _welch(one: Reading, two: Reading, level: float) -> Array:
    """Half of Welch's interval from the standard errors and the numbers of replicates; a bound that belongs to a chance error is added."""
    parts = [(reading.error**2, float(reading.n - 1) if reading.n and reading.n > 1 else math.inf) for reading in (one, two) if reading.error_kind in CHANCE]
    total = np.asarray(sum((variance for variance, _ in parts), np.zeros(two.value.shape)))
    spread = np.asarray(sum((variance**2 / freedom for variance, freedom in parts if math.isfinite(freedom)), np.zeros(total.shape)))
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(spread > 0, total**2 / spread, math.inf)
    quantile = np.where(np.isinf(freedom), stats.norm.ppf(0.5 + level / 2), stats.t.ppf(0.5 + level / 2, np.where(np.isinf(freedom), 1e9, freedom)))
    extra = np.zeros(total.shape)
    for reading in (one, two):
        if reading.error_kind in CHANCE:
            extra = extra + np.maximum(_half(reading) - stats.t.ppf(0.975, (reading.n or math.inf) - 1 if (reading.n or 0) > 1 else 1e9) * reading.error, 0.0)
    return np.asarray(quantile * np.sqrt(total) + extra)


def _half(reading: Reading) -> Array:
    assert reading.interval is not None
    return np.asarray((reading.interval[1] - reading.interval[0]) / 2)


def _reach(reading: Reading, level: float) -> tuple[Array, Array]:
    """How far a chance reading's interval goes below and above its value, stretched from 95 % to a level; nothing for what is no chance."""
    if reading.error_kind not in CHANCE:
        return np.zeros(reading.value.shape), np.zeros(reading.value.shape)
    assert reading.interval is not None
    freedom = float(reading.n - 1) if reading.n and reading.n > 1 else 1e9
    stretch = float(stats.t.ppf(0.5 + level / 2, freedom) / stats.t.ppf(0.975, freedom))
    return (reading.value - reading.interval[0]) * stretch, (reading.interval[1] - reading.value) * stretch
