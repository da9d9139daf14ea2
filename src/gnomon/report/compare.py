"""Two reports side by side: in a terminal, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.table import Table

from gnomon.report import words
from gnomon.report.html import templates
from gnomon.report.text import writer, written

CHANGES: Mapping[str, str] = {
    "moved": "moved",
    "same": "same within the error",
    "first_only": "in the first alone",
    "second_only": "in the second alone",
    "not_comparable": "not comparable",
}


def table(comparison: Mapping[str, Any], *, whole: bool = False, stream: TextIO | None = None) -> str:
    """The comparison, ready to print: the headline rows and every row that moved or changed its verdict; all of them with `whole`."""
    console, say = writer(stream, usual=120, least=60)
    for label in ("first", "second"):
        console.print(say(f"{label:6} {heading(comparison[label])}"))
    for note in comparison["notes"]:
        console.print(say(f"       {note}"))
    console.print()
    rows = list(comparison["rows"]) if whole else notable(comparison["rows"])
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    drawn.add_column("", no_wrap=True)
    for name, part in (("", 0.2), ("first", 0.18), ("second", 0.18)):
        drawn.add_column(say(name), max_width=int(part * console.width))
    drawn.add_column(say("second − first"))
    before = None
    for row in rows:
        one, two = (side_text(row[label]) for label in ("first", "second"))
        chapter, before = (row["chapter"] if row["chapter"] != before else ""), row["chapter"]
        drawn.add_row(say(f" {chapter}"), say(row["title"]), say(one), say(two), say(change_text(row), "bold" if row["change"] == "moved" or row["verdict_changed"] else ""))
    console.print(drawn)
    console.print()
    console.print(say(tally_text(comparison)))
    for line in alone(comparison):
        console.print(say(line))
    if len(rows) < len(comparison["rows"]):
        console.print(say(f"{len(comparison['rows']) - len(rows)} of {len(comparison['rows'])} rows are not shown; --all shows them."))
    return written(console)


def page(comparison: Mapping[str, Any]) -> str:
    """The comparison as one self-contained HTML page: no script, no request, light and dark."""
    rows = [
        {
            "chapter": row["chapter"], "title": row["title"], "change": row["change"], "verdict_changed": row["verdict_changed"], "text": words.typeset(change_text(row)),
            "sides": [_page_side(row[label]) for label in ("first", "second")],
        }
        for row in comparison["rows"]
    ]  # fmt: skip
    notable_rows = [rows[i] for i, row in enumerate(comparison["rows"]) if row in notable(comparison["rows"])]
    chapters = [{"title": title, "rows": [row for row in rows if row["chapter"] == name]} for name, title in comparison["chapters"].items()]
    view = {
        "first": comparison["first"], "second": comparison["second"], "headings": [heading(comparison[label]) for label in ("first", "second")], "notes": comparison["notes"],
        "tally": tally_text(comparison), "alone": alone(comparison), "notable": notable_rows, "chapters": chapters,
    }  # fmt: skip
    return templates().get_template("compare.html").render(view)


def notable(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of both reports that are headlines, moved, or changed their verdict."""
    both = [row for row in rows if row["first"] is not None and row["second"] is not None]
    return [row for row in both if row["headline"] or row["change"] == "moved" or row["verdict_changed"]]


def alone(comparison: Mapping[str, Any]) -> list[str]:
    """The rows that stand in one report alone, or cannot be compared, by name."""
    out = []
    for state in ("first_only", "second_only", "not_comparable"):
        if names := [row["title"] for row in comparison["rows"] if row["change"] == state]:
            out.append(f"{words.capital(CHANGES[state])}: {', '.join(names)}.")
    return out


def heading(side: Mapping[str, Any]) -> str:
    """A report in a line."""
    return " · ".join(part for part in (str(side["file"]), str(side["name"]), f"{side['parameters']:,} parameters", side["examined"], side["trained"]) if part)


def side_text(part: Mapping[str, Any] | None) -> str:
    """What one report says in a row: the measurement, and the prediction beside it."""
    if part is None:
        return "-"
    measured, predicted = words.reading_of(part["measured"]), words.reading_of(part["predicted"])
    found = words.value_text(measured, count=False, unit=False) if measured else ""
    expected = words.value_text(predicted, prefix=words.sign(part["relation"], predicted), count=False, unit=False) if predicted else ""
    verdict = words.VERDICTS[part["verdict"]] if part["verdict"] else ""
    return "; ".join(text for text in (found, f"predicted {expected}" if expected else "", verdict) if text) or "-"


def change_text(row: Mapping[str, Any]) -> str:
    """What changed: the difference with its interval, how many elements moved, and the verdicts where they differ."""
    parts = []
    for label in ("measured", "predicted"):
        found = row[label]
        if found is None or (found["state"] == "same" and label == "predicted"):
            continue
        prefix = "" if label == "measured" else "prediction "
        if found["state"] == "not_comparable":
            parts.append(f"{prefix}not comparable: {found['why']}")
        elif "elements" in found:
            parts.append(
                f"{prefix}moved at {len(found['moved_elements'])} of {found['elements']}"
                if found["moved_elements"]
                else f"{prefix}same within the error at all {found['elements']}"
            )
        else:
            low, high = ("∞" if end is None else words.short(end) for end in found["interval"])
            low = "-∞" if found["interval"][0] is None else low
            sign = "+" if found["difference"] > 0 else ""
            ends = [end for end in found["interval"] if end is not None]
            wide = len(ends) < 2 or ends[1] - ends[0] > max(1e-6 * abs(found["difference"]), 1e-12)
            span = f" [{low}, {high}]" if wide else ""
            parts.append(f"{prefix}{'moved' if found['state'] == 'moved' else CHANGES['same']}: {sign}{words.short(found['difference'])}{span}")
    if row["verdict_changed"]:
        parts.insert(0, f"{words.VERDICTS[row['first']['verdict']]} → {words.VERDICTS[row['second']['verdict']]}")
    return "; ".join(parts) or CHANGES[row["change"]]


def tally_text(comparison: Mapping[str, Any]) -> str:
    """How many rows moved, and what that means."""
    tally = comparison["tally"]
    parts = [f"{count} {CHANGES[state]}" for state, count in tally.items() if count]
    changed = comparison["verdicts_changed"]
    text = ", ".join(parts) + f"; {changed} verdict{'s' * (changed != 1)} changed."
    return (
        text + f" Differences are judged at {100 * comparison['level']:g} %: of rows that did not change, one in {round(1 / (1 - comparison['level']))} is called moved by chance."
    )


def _page_side(part: Mapping[str, Any] | None) -> dict[str, Any]:
    if part is None:
        return {"measured": "", "predicted": "", "verdict": None, "verdict_name": "", "words": "", "there": False}
    measured, predicted = words.reading_of(part["measured"]), words.reading_of(part["predicted"])
    return {
        "measured": words.typeset(words.value_text(measured)) if measured else "", "there": True, "words": part["words"], "verdict": part["verdict"],
        "predicted": words.typeset(words.value_text(predicted, prefix=words.sign(part["relation"], predicted))) if predicted else "",
        "verdict_name": words.VERDICTS[part["verdict"]] if part["verdict"] else "",
    }  # fmt: skip
