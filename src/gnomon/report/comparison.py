"""A prediction beside a measurement, as texts, a table and a picture: what a row of a report and a claim's verdict have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.report import words
from gnomon.report.figure import Figure, describe


def error_text(reading: Reading) -> str:
    """What the error is and over how many draws: `standard error over random probes, 64`."""
    text = words.ERRORS[reading.error_kind] if (reading.error > 0).any() or reading.error_kind == "exact" else "exact"
    return text + (f", n = {reading.n:,}" if reading.n and reading.error_kind not in ("exact", "bound", "truncation") else "")


def tolerance_text(row: Mapping[str, Any]) -> str:
    """The tolerance with its sides: `± 0.05`, or the slack of a one-sided comparison."""
    text = words.numbers_text(row.get("tolerance"))
    if not text or row["verdict"] in (None, "out_of_scope"):
        return ""
    one_sided = row["relation"] in ("at_most", "at_least")
    if text == "0":
        return "none" if one_sided else "0"
    return words.numbers_text(row.get("tolerance"), {"at_most": "+ ", "at_least": "- "}.get(row["relation"], "± ")).replace("- ", "− ")


def gap_text(row: Mapping[str, Any]) -> str:
    """`-2.70, 90 % interval [-3.85, -1.55]` for a single number; the range of gaps for an array."""
    text = words.numbers_text(row.get("gap"))
    if not text:
        return ""
    interval = row.get("interval")
    if isinstance(row.get("gap"), (int, float)) and interval:
        low, high = ("-∞" if interval[0] is None else words.short(interval[0])), ("∞" if interval[1] is None else words.short(interval[1]))
        return f"{text}, 90 % interval [{low}, {high}]"
    return text


def not_holding(names: Sequence[str], elements: Sequence[str]) -> list[dict[str, Any]]:
    """The elements that do not hold, by verdict, so that they are named in sight."""
    out = []
    for verdict in ("fails", "inconclusive", "vacuous", "error", "out_of_scope"):
        found = [name for name, outcome in zip(names, elements, strict=False) if outcome == verdict]
        if found:
            out.append({"verdict": verdict, "name": words.VERDICTS[verdict], "count": len(found), "total": len(elements), "names": found[:12], "more": max(len(found) - 12, 0)})
    return out


def marked(row: Mapping[str, Any], predicted: Reading | None, measured: Reading | None) -> tuple[list[str], list[str]]:
    """The names of the elements that have a verdict, and the verdicts where each belongs to one number of the picture."""
    main, relation, elements = measured or predicted, row["relation"], list(row.get("elements") or [])
    names = words.element_names(main, relation, len(elements), predicted) if main and elements else []
    return names, elements if main is not None and len(names) == main.value.size and relation not in ("order", "monotone") else []


def cell(entry: Any) -> str:
    """A setting in a table: numbers as they are read, lists with a cross between."""
    if entry is None:
        return ""
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, (int, float)):
        return words.typeset(words.plain_number(float(entry)))
    return " × ".join(cell(part) for part in entry) if isinstance(entry, (list, tuple)) else str(entry)


def table(predicted: Reading | None, measured: Reading | None, relation: str, elements: Sequence[str], most: int) -> dict[str, Any] | None:
    """The numbers of an array, row by row; at most `most` of them, those that do not hold first among the kept."""
    main = measured if measured is not None else predicted
    if main is None or main.value.size <= 1:
        return None
    beside = predicted is not None and measured is not None and predicted.value.shape == main.value.shape and relation not in ("order", "monotone", "exponent")
    both = predicted if beside else None
    count, labels = main.value.size, words.index_names(main)
    verdicts = list(elements) if len(elements) == count and relation not in ("order", "monotone") else [""] * count
    shown = list(range(count))
    if count > most:
        notable = [i for i in shown if verdicts[i] not in ("", "holds")][:most]
        room = most - len(notable)
        evenly = {int(k * count / room) for k in range(room)} if room else set()
        shown = sorted(evenly | set(notable))
    rows = [
        {
            "name": labels[i], "predicted": words.typeset(words.element_text(both, i)) if both is not None else None, "measured": words.typeset(words.element_text(main, i)),
            "verdict": verdicts[i], "verdict_name": words.VERDICTS.get(verdicts[i], verdicts[i]),
        }
        for i in shown
    ]  # fmt: skip
    axes = " · ".join(axis.name + (f" ({axis.unit})" if axis.unit else "") for axis in main.axes) or "element"
    label = "measured" if main.role == "measured" else "predicted"
    return {"axes": axes, "rows": rows, "count": count, "predicted": beside, "verdicts": any(verdicts), "label": label, "unit": main.unit}


def figure(title: str, row: Mapping[str, Any], sides: Sequence[Reading], elements: Sequence[str]) -> Figure:
    """The picture of a comparison; of the measurement alone where the two do not fit into one."""
    try:
        return describe(sides, title=title, relation=row["relation"], tolerance=row.get("tolerance"), elements=elements)
    except InvalidInput:
        return describe(sides[-1], title=title, elements=elements)
