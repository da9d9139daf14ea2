"""A verdict on a claim, a document `gnomon/run/1`, as the texts, table and pictures that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from gnomon.core.reading import Reading
from gnomon.report import comparison, svg, words
from gnomon.report.html import NARROW

ELEMENTS = 60
"""Most rows of the table of an array."""


def verdict_view(document: Mapping[str, Any], title: str) -> dict[str, Any]:
    """What a page says of a verdict: the outcome, the numbers, the elements that differ, the pictures, the sabotage and how it was made.   Cost: two pictures."""
    predicted, measured = words.reading_of(document.get("predicted")), words.reading_of(document.get("measured"))
    relation, elements = document["relation"], document.get("elements") or []
    names, marks = comparison.marked(document, predicted, measured)
    wide, narrow = _pictures(title, document, [side for side in (predicted, measured) if side is not None and side.value.size], marks)
    return {
        "verdict": document["verdict"], "verdict_name": words.VERDICTS.get(document["verdict"], str(document["verdict"])), "why": words.typeset(document.get("why") or ""),
        "expected": words.VERDICTS.get(document["expected"], document["expected"]), "as_expected": bool(document["as_expected"]), "because": document.get("because") or "",
        "scale": document["scale"], "seed": document["seed"], "version": document["version"], "stale": bool(document.get("stale")),
        "predicted": _side(predicted, relation), "measured": _side(measured, relation),
        "tolerance": words.typeset(comparison.tolerance_text(document)), "tolerance_because": document.get("tolerance_because") or "",
        "gap": words.typeset(comparison.gap_text(document)), "elements": comparison.not_holding(names, elements),
        "table": comparison.table(predicted, measured, relation, elements, ELEMENTS), "wide": wide, "narrow": narrow,
        "assumes": list(predicted.assumes) if predicted else [], "skipped": [name for side in (predicted, measured) if side for name in side.skipped],
        "sabotage": _sabotage(document.get("sabotage")), "settings": settings_text(document["settings"] or {}),
        "environment": document["environment"], "run": document["run"],
    }  # fmt: skip


def settings_text(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as they stand in a table."""
    return {name.replace("_", " "): comparison.cell(entry) for name, entry in settings.items()}


def _side(reading: Reading | None, relation: str) -> dict[str, str] | None:
    if reading is None:
        return None
    prefix = words.sign(relation, reading) if reading.role != "measured" else ""
    low, high = reading.ends() if reading.value.size == 1 else (0.0, 0.0)
    return {
        "name": reading.name.replace("_", " "), "text": words.typeset(words.value_text(reading, prefix=prefix)), "about": comparison.error_text(reading),
        "interval": words.typeset(f"[{words.short(low)}, {words.short(high)}]") if low < high else "",
    }  # fmt: skip


def _pictures(title: str, document: Mapping[str, Any], sides: Sequence[Reading], elements: Sequence[str]) -> tuple[Markup, Markup]:
    """The picture for a wide page, and for a telephone or a list; both empty where there is nothing to draw."""
    if not sides:
        return Markup(), Markup()
    figure = comparison.figure(title, document, sides, elements)
    small = all(side.value.size == 1 for side in sides)
    narrow = Markup(svg.draw(figure, width=NARROW, style=False))
    return (narrow if small else Markup(svg.draw(figure, width=svg.WIDTH, style=False))), narrow


def _sabotage(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if data is None:
        return None
    measured = words.reading_of(data.get("measured"))
    moved = data.get("moved_tolerances")
    return {
        "because": data["because"], "changes": settings_text(data["changes"]), "measured": words.typeset(words.value_text(measured)) if measured else "",
        "verdict": data["verdict"], "verdict_name": words.VERDICTS.get(data["verdict"], str(data["verdict"])), "why": words.typeset(data.get("why") or ""),
        "note": "", "moved": "" if moved is None else words.typeset(words.short(float(moved))),
    }  # fmt: skip
