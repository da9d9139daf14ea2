"""Claims and their verdicts as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnomon.core.reading import Reading, format_number, format_value
from gnomon.core.source import Source


def lines(document: Mapping[str, Any], *, named: bool) -> str:
    """A verdict in a line, with its reason under it where it is not the expected one, or is expected to be another than `holds`."""
    parts = [*_numbers(document), str(document["verdict"]).replace("_", " "), f"{document['run']['seconds']:.1f} s"]
    under = []
    if document["verdict"] != document["expected"]:
        under.append(f"expected {document['expected']}: {document['why']}")
    elif document["verdict"] != "holds":
        under.append(document["because"] or document["why"])
    if not document["as_expected"] and document["sabotage"] and document["verdict"] == document["expected"]:
        under.append(f"its sabotage ({document['sabotage']['because']}) {document['sabotage']['verdict']}: {document['sabotage']['why']}")
    head = [f"{document['claim']}\n  "] if named else [""]
    return head[0] + "   ".join(parts) + "".join(f"\n  {'  ' if named else ''}{text}" for text in under)


def _numbers(document: Mapping[str, Any]) -> list[str]:
    """What was predicted and measured: of an array, the element that is nearest to its tolerance, or farthest beyond."""
    if document["predicted"] is None or document["measured"] is None or document["gap"] is None:
        return []
    predicted, measured = Reading.from_json(document["predicted"]), Reading.from_json(document["measured"])
    gap, limit = np.asarray(document["gap"], dtype=np.float64), np.asarray(document["tolerance"], dtype=np.float64)
    assert measured.interval is not None
    if gap.shape != measured.value.shape:  # a slope, or differences of neighbours
        return [f"measured {gap.size} values", f"gap {format_number(float(gap.flat[0]))}" if gap.size == 1 else f"least difference {format_number(float(gap.min()))}"]
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = int(np.nanargmax(np.where(limit > 0, np.abs(gap) / limit, np.abs(gap)).reshape(-1)))

    def at(array: Any) -> float:
        return float(np.broadcast_to(array, measured.value.shape).reshape(-1)[worst])

    members = document["settings"].get("members")
    count = "" if not measured.n or measured.n < 2 else f" ({measured.n} x {members:,} members)" if members else f" ({measured.n} replicates)"
    where = ""
    if gap.size > 1:
        axis = measured.axes[0] if len(measured.axes) == 1 else None
        value = axis.values[worst] if axis else worst
        where = f"at {axis.name if axis else 'element'} {value if isinstance(value, str) else format(value, 'g')}, one of {gap.size}: "
    short = re.split(r"[:;,(]", document["tolerance_because"])[0].strip()
    return [
        f"{where}predicted {format_number(at(predicted.value))} {measured.unit}".rstrip(),
        f"measured {format_value(at(measured.value), at(measured.error), (at(measured.interval[0]), at(measured.interval[1])), measured.unit)}{count}",
        f"tolerance {format_number(at(limit))}" + (f" ({short})" if short else ""),
    ]


def shown(listed: Any, facts: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> str:
    """A claim with all that its file states, and the last verdicts on it."""
    claim = listed.load()
    out = [facts["id"], f"  {facts['statement']}"]
    if facts["explanation"]:
        out += ["", *(f"  {line}" for line in facts["explanation"].splitlines())]
    out += ["", f"  source     {Source(**facts['source'])} (reading list: {facts['entry']})", f"  relation   {facts['relation']}, expected: {facts['expected']}"]
    out += [f"             {facts['because']}"] if facts["because"] else []
    changes = ", ".join(f"{name} = {value}" for name, value in facts["sabotage"]["changes"].items())
    out += [f"  sabotage   {changes}: {facts['sabotage']['because']}", f"  tolerance  {facts['tolerance_because']}"]
    for scale, settings in facts["scales"].items():
        limit = "" if claim.tolerance is None else f"; tolerance {_range(claim.tolerance.of(claim.scales[scale]))}"
        out.append(f"  {scale.ljust(9)}  {', '.join(f'{name} = {value}' for name, value in settings.items())}{limit}")
    for document in verdicts:
        stale = ", by an older version of the claim's file" if document["stale"] else ""
        out += ["", f"  {document['scale']}, {(document['run']['predicted_at'] or 'not predicted')[:10]}{stale}", f"  {lines(document, named=False)}"]
    if not verdicts:
        out += ["", f"  It has not been run here: gnomon claims run {facts['id']}"]
    return "\n".join(out)


def _range(limit: Any) -> str:
    array = np.asarray(limit, dtype=np.float64).reshape(-1)
    return format_number(float(array[0])) if array.size == 1 else f"{format_number(float(array.min()))} to {format_number(float(array.max()))}"
