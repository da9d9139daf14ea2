"""The report in a terminal: one screen of plain text."""

from __future__ import annotations

import io
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gnomon.report import words

SKIPPED = 3
"""Skipped things named in the terminal; the rest are counted."""
LONG_UNIT = 12
"""Units longer than this are left to the page."""
WIDE = 96
"""Columns from which the table has a column for each of prediction, measurement and verdict."""

_ASCII = {
    "±": "+/-", "≤": "<=", "≥": ">=", "−": "-", "–": "-", "—": "-", "·": "|", "×": "x", "…": "...", "∞": "inf", "≈": "~", "→": "->", "‘": "'", "’": "'", "“": '"', "”": '"',
    "λ": "lambda", "η": "eta", "σ": "sigma", "χ": "chi", "Θ": "Theta", "γ": "gamma", "ε": "epsilon", "²": "^2", "³": "^3",
}  # fmt: skip


def writer(stream: TextIO | None, width: int | None = None, *, usual: int, least: int) -> tuple[Console, Callable[..., Text]]:
    """A console that keeps what is printed for a stream (standard output if not given), and what makes a text for it: ASCII where the stream is not UTF-8."""
    stream = sys.stdout if stream is None else stream
    plain = "utf" not in (getattr(stream, "encoding", None) or "ascii").lower()
    styled = bool(getattr(stream, "isatty", bool)()) and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    if width is None:
        width = shutil.get_terminal_size((usual, 24)).columns if styled else usual
    console = Console(
        file=io.StringIO(), width=max(width, least), force_terminal=styled, color_system="standard" if styled else None, highlight=False, markup=False, emoji=False,
        legacy_windows=False, force_jupyter=False,
    )  # fmt: skip

    def say(text: str, style: str = "") -> Text:
        return Text(to_ascii(words.clean(text)) if plain else words.clean(text), style=style)

    return console, say


def written(console: Console) -> str:
    """What a console of `writer` kept, without blanks at the ends of lines."""
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def summary(document: Mapping[str, Any], width: int | None = None, paths: Sequence[tuple[Any, int]] = (), *, stream: TextIO | None = None) -> str:
    """The report's summary, ready to print: what was examined, the headline rows, what to do, what was skipped, and the files `(path, bytes)`.

    Plain ASCII where the stream (standard output if not given) is not UTF-8; bold and faint text only where it is a terminal and NO_COLOR is not set.
    Units: `width` in characters; that of the terminal, or 100, if not given.   Cost: none.
    """
    console, say = writer(stream, width, usual=100, least=40)
    console.print(say(_title(document)))
    console.print()
    console.print(_table(document, say, console.width))
    if document["advice"]:
        console.print()
        console.print(say("What to do", "bold"))
        console.print(_numbered(document["advice"], say))
    if document["skipped"]:
        if not document["advice"]:
            console.print()
        console.print(say(_skipped(document["skipped"])))
    if paths:
        console.print()
        files = [f"{path} ({words.size(count)})" for path, count in paths]
        line = " · ".join(files)
        for part in [line] if len(line) <= console.width else files:
            console.print(say(part), soft_wrap=True)
    return written(console)


def _title(document: Mapping[str, Any]) -> str:
    subject, run = document["subject"], document["run"]
    return " · ".join(
        [str(subject["name"]), f"{subject['parameters']:,} parameters", words.examined(subject, ""), f"{words.duration(run['seconds'])}, {words.size(run['peak_bytes'])}"]
    )


def _table(document: Mapping[str, Any], say: Callable[..., Text], width: int) -> Table:
    """The headline rows side by side, or below WIDE columns each as a sentence with its verdict under it."""
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", show_header=wide)
    table.add_column("", no_wrap=True)
    if wide:
        for name, part in (("", 0.19), ("predicted", 0.16), ("measured", 0.22)):
            table.add_column(say(name), max_width=int(part * width))
    table.add_column(say("verdict"))
    before = None
    for row in [row for row in document["rows"] if row["headline"]] or document["rows"]:
        predicted, measured = words.reading_of(row["predicted"]), words.reading_of(row["measured"])
        alone = measured is None or (predicted is not None and predicted.unit != measured.unit and len(predicted.unit) <= LONG_UNIT)
        expected = words.value_text(predicted, prefix=words.sign(row["relation"], predicted), count=False, unit=alone) if predicted else ""
        found = words.value_text(measured, count=False, unit=len(measured.unit) <= LONG_UNIT) if measured else ""
        chapter, verdict = say(f" {row['chapter']}" if row["chapter"] != before else ""), say(_verdict(row), "bold" if row["verdict"] == "fails" else "")
        before = row["chapter"]
        if wide:
            table.add_row(chapter, say(row["title"]), say(expected or "-"), say(found or "-"), verdict)
        else:
            values = ", ".join(f"{label} {value}" for label, value in (("predicted", expected), ("measured", found)) if value)
            table.add_row(chapter, Text("\n").join([say(f"{row['title']}: {values}"), *([verdict] if verdict.plain else [])]))
    return table


def _verdict(row: Mapping[str, Any]) -> str:
    """The chapter's words; a verdict that is not `holds` is named beside them."""
    text, verdict = words.verdict_words(row), row["verdict"]
    named = verdict in (None, "holds") or not row.get("words") or words.VERDICTS[verdict] in text
    return text if named else f"{text} ({words.VERDICTS[verdict]})"


def _numbered(lines: Iterable[str], say: Callable[..., Text]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    for i, line in enumerate(lines, start=1):
        table.add_row(say(f" {i}."), say(line))
    return table


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> str:
    named = "; ".join(f"{entry['what']} ({entry['why']})" for entry in skipped[:SKIPPED])
    rest = len(skipped) - SKIPPED
    return f"Skipped: {named}" + (f"; and {rest} more, see the report." if rest > 0 else "; see the report.")


def to_ascii(text: str) -> str:
    """The text in ASCII: signs and Greek letters by name, accents dropped, the rest as `?`."""
    text = "".join(_ASCII.get(c, c) for c in text)
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).encode("ascii", "replace").decode()
