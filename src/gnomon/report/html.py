"""The report's page and a reading's notebook view: pure functions of JSON documents and Readings."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.report import comparison, svg, words
from gnomon.report.figure import describe
from gnomon.report.maths import with_maths

SCHEMA = "gnomon/report/1"
LIMIT = 600 * 1024
"""Most bytes of a page."""
NARROW = 340
"""Pixels across a picture on a telephone."""


def render(document: Mapping[str, Any]) -> str:
    """The report as one self-contained HTML page of at most 600 KiB: no script, no request, light and dark.

    Where the whole would be larger, the tables of long arrays are cut, then the second, narrow copies of pictures are left out, then the last pictures;
    the page says so.
    Raises: InvalidInput for a document of another schema.
    """
    if document.get("schema") != SCHEMA:
        raise InvalidInput(f"This is not a report: expected the schema {SCHEMA!r}, found {document.get('schema')!r}. Give the report.json that `gnomon examine` wrote.")
    page, drawn = "", dict[tuple[str, int], str]()
    for elements, narrow, pictures in ((200, True, LIMIT), (40, True, LIMIT), (12, True, LIMIT), (12, False, LIMIT), (6, False, LIMIT // 2), (0, False, LIMIT // 5)):
        view = _Page(document, elements, narrow, pictures, drawn).view()
        page = templates().get_template("report.html").render(view)
        if len(page.encode()) <= LIMIT:
            break
    return page


def reading_html(reading: Reading) -> str:
    """A Reading for a notebook: its value, what its error means, and its picture.  The text takes the notebook's colours."""
    from gnomon.core.source import bibliography

    source = None
    if reading.source is not None:
        source = str(reading.source) if reading.source.key in bibliography() else f"{reading.source.key} {reading.source.where}".strip()
    picture = Markup(svg.draw(describe(reading), width=NARROW if reading.value.size == 1 else 560)) if reading.value.size else ""
    view = {
        "name": reading.name,
        "value": words.typeset(words.value_text(reading)),
        "about": comparison.error_text(reading),
        "picture": picture,
        "source": source,
        "skipped": reading.skipped,
    }
    return templates().get_template("reading.html").render(view)


@functools.cache
def templates() -> Environment:
    """The templates of every page, with the filters and styles that they share."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(folder, encoding="utf-8"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "maths": with_maths,
        "typeset": words.typeset,
        "duration": words.duration,
        "size": words.size,
        "nobreak": _nobreak,
        "capital": words.capital,
        "count": words.short,
    }
    environment.globals |= {"picture_style": Markup(svg.STYLE), "page_style": Markup((folder / "report.css").read_text(encoding="utf-8"))}
    environment.finalize = lambda value: words.clean(value, "\n") if isinstance(value, str) and not isinstance(value, Markup) else value
    return environment


class _Page:
    """What the template shows, gathered from the document; `elements` is the most rows of an array's table, `pictures` the bytes for all pictures, `drawn` those drawn already."""

    def __init__(self, document: Mapping[str, Any], elements: int, narrow: bool, pictures: int, drawn: dict[tuple[str, int], str]) -> None:
        self.document, self.elements, self.narrow, self.room, self.drawn = document, elements, narrow, pictures, drawn
        self.citations: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}
        self.instruments = {entry["instrument"]: f"plan-{_slug(entry['instrument'])}" for entry in document["plan"]["entries"]}
        self.figures = 0

    def view(self) -> dict[str, Any]:
        """The template's variables."""
        document = self.document
        chapters = [self._chapter(chapter) for chapter in self._chapter_list()]
        rows = [row for chapter in chapters for row in chapter["rows"]]
        headlines = [row for row in rows if row["headline"]] or rows
        for row in headlines:
            row["first"] = row is next(other for other in headlines if other["chapter"] == row["chapter"])
        return {
            "subject": document["subject"], "examined": words.examined(document["subject"]), "trained": words.trained(document["subject"]["training"]),
            "chapters": chapters, "headlines": headlines, "tally": _tally(rows), "advice": document["advice"], "skipped": document["skipped"],
            "plan": document["plan"], "instruments": self.instruments, "layers": _layers(document["subject"]["layers"]), "again": document.get("again") or document["run"].get("again") or "",
            "environment": document["environment"], "run": document["run"], "sources": self._sources(),
        }  # fmt: skip

    def _chapter_list(self) -> list[Mapping[str, Any]]:
        listed = {chapter["name"]: chapter for chapter in self.document["chapters"]}
        for name in [row["chapter"] for row in self.document["rows"]] + [entry["chapter"] for entry in self.document["skipped"]]:
            listed.setdefault(name, {"name": name, "title": str(name).capitalize(), "theory": "", "assumes": []})
        return list(listed.values())

    def _chapter(self, chapter: Mapping[str, Any]) -> dict[str, Any]:
        name, before = chapter["name"], set(self.citations)
        rows = [self._row(row, f"{_slug(name)}-{i}") for i, row in enumerate(row for row in self.document["rows"] if row["chapter"] == name)]
        skipped = [entry for entry in self.document["skipped"] if entry["chapter"] == name]
        for row in rows:
            row["chapter_title"] = chapter["title"]
        wide, small = ([row for row in rows if row["picture"] and row["small"] is kind] for kind in (False, True))
        for row in (*wide, *small):
            self.figures += 1
            row["number"] = self.figures
        cited = [key for key in self.citations if key not in before or any(key in row["keys"] for row in rows)]
        return {
            "name": name, "slug": _slug(name), "title": chapter["title"], "theory": chapter["theory"], "rows": rows, "skipped": skipped,
            "assumes": _unique(chapter["assumes"], *(row["assumes"] for row in rows)), "sources": [{"number": self.citations[key], "key": _slug(key), "text": self._source_text(key)} for key in cited],
            "wide": wide, "small": small, "notes": self.document.get("history", {}).get("notes", []) if name == "training" else [],
        }  # fmt: skip

    def _row(self, row: Mapping[str, Any], anchor: str) -> dict[str, Any]:
        predicted, measured = words.reading_of(row["predicted"]), words.reading_of(row["measured"])
        relation, elements = row["relation"], row.get("elements") or []
        main = measured or predicted
        names, marks = comparison.marked(row, predicted, measured)
        picture = self._figure(anchor, row, predicted, measured, marks)
        return {
            "anchor": anchor, "chapter": row["chapter"], "title": row["title"], "headline": row["headline"],
            "verdict": row["verdict"], "verdict_name": words.VERDICTS.get(row["verdict"], str(row["verdict"])),
            "words": words.verdict_words(row), "own_words": row.get("words") or "", "why": row.get("why") or "", "advice": row.get("advice"), "because": row.get("because") or "",
            "predicted": self._side(row["predicted"], predicted, relation), "measured": self._side(row["measured"], measured, relation),
            "tolerance": words.typeset(comparison.tolerance_text(row)), "gap": words.typeset(comparison.gap_text(row)), "elements": comparison.not_holding(names, elements),
            "table": comparison.table(predicted, measured, relation, elements, self.elements),
            "picture": picture, "number": None, "small": bool(main and picture and main.value.size == 1 and (predicted is None or predicted.value.size == 1)),
            "assumes": list(predicted.assumes) if predicted else [], "under": list(measured.assumes) if measured else [],
            "skipped": _unique(*(list(side.skipped) for side in (predicted, measured) if side)),
            "keys": {data["source"]["key"] for data in (row["predicted"], row["measured"]) if data and data.get("source")},
        }  # fmt: skip

    def _side(self, data: Mapping[str, Any] | None, reading: Reading | None, relation: str) -> dict[str, Any] | None:
        """One side of a row: its text, what its error means, and where its source stands on the page."""
        if data is None:
            return None
        predicted = data["role"] != "measured"
        if reading is None:
            text, about, interval = "stored beside the report", "", ""
        else:
            text = words.typeset(words.value_text(reading, prefix=words.sign(relation, reading) if predicted else ""))
            about = comparison.error_text(reading)
            low, high = reading.ends() if reading.value.size == 1 else (0.0, 0.0)
            interval = words.typeset(f"[{words.short(low)}, {words.short(high)}]") if low < high else ""
        source = data.get("source")
        cite = self._cite(source["key"], source.get("where", "")) if source else None
        return {"text": text, "about": about, "interval": interval, "cite": cite, "instrument": None if predicted else self.instruments.get(data["name"]), "name": data["name"]}

    def _cite(self, key: str, where: str) -> dict[str, Any]:
        number = self.citations.setdefault(key, len(self.citations) + 1)
        places = self.places.setdefault(key, [])
        if where and where not in places:
            places.append(where)
        return {"number": number, "key": _slug(key), "text": self._source_text(key) + (f", {where}" if where else "")}

    def _source_text(self, key: str) -> str:
        return str(self.document["sources"].get(key, {}).get("text") or key)

    def _sources(self) -> list[dict[str, Any]]:
        """Cited sources by number, then the rest of the document's."""
        for key in self.document["sources"]:
            self.citations.setdefault(key, len(self.citations) + 1)
        out = []
        for key, number in self.citations.items():
            given = self.document["sources"].get(key, {})
            url, bibtex = str(given.get("url") or ""), str(given.get("bibtex") or "")
            title = re.search(r"^\s*title\s*=\s*[{\"](.*?)[}\"],?\s*$", bibtex, re.MULTILINE | re.IGNORECASE)
            text = self._source_text(key)
            named = str(given.get("title") or (re.sub(r"[{}]", "", title.group(1)) if title else ""))
            out.append({
                "number": number, "key": _slug(key), "text": text, "title": named if named not in text else "", "url": url if re.match(r"https?://", url) else "",
                "bibtex": bibtex, "places": self.places.get(key, []),
            })  # fmt: skip
        return out

    def _figure(self, anchor: str, row: Mapping[str, Any], predicted: Reading | None, measured: Reading | None, elements: Sequence[str]) -> Markup | None:
        """The picture of a row where a reading has axes or there are two to compare."""
        sides = [side for side in (predicted, measured) if side is not None and side.value.size]
        if not sides or (len(sides) == 1 and sides[0].value.size == 1):
            return None
        small = all(side.value.size == 1 for side in sides)
        wide = self._draw(anchor, NARROW if small else svg.WIDTH, sides, row, elements)
        self.room -= len(wide.encode())
        if self.room < 0:
            return Markup('<p class="caption">Left out to keep the page small; its numbers stand in report.json.</p>')
        if small:
            return Markup(wide)
        narrow = self._draw(anchor, NARROW, sides, row, elements) if self.narrow else ""
        return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>' if narrow else f"<div>{wide}</div>")

    def _draw(self, anchor: str, width: int, sides: Sequence[Reading], row: Mapping[str, Any], elements: Sequence[str]) -> str:
        if (anchor, width) not in self.drawn:
            self.drawn[anchor, width] = svg.draw(comparison.figure(str(row["title"]), row, sides, elements), width=width, style=False)
        return self.drawn[anchor, width]


def _tally(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    order = ("holds", "fails", "inconclusive", "vacuous", "out_of_scope", "error", None)
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in order}
    names: dict[str | None, tuple[str, str]] = {"holds": ("holds", "hold"), "fails": ("fails", "fail"), None: ("is measured only", "are measured only")}
    return [{"verdict": verdict, "count": count, "name": names.get(verdict, (words.VERDICTS[verdict],) * 2)[count != 1]} for verdict, count in counts.items() if count]


def _layers(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The list of layers as a table: a column for each simple entry."""
    if not layers:
        return None
    columns = list(dict.fromkeys(key for layer in layers for key, entry in layer.items() if not isinstance(entry, Mapping)))
    columns = [key for key in ("name", "kind") if key in columns] + [key for key in columns if key not in ("name", "kind")]
    return {"columns": columns[:8], "rows": [[comparison.cell(layer.get(key)) for key in columns[:8]] for layer in layers[:200]], "count": len(layers)}


def _nobreak(text: str) -> str:
    """A number stays with its per cent sign, its plus-minus and its error."""
    return re.sub(r"(?<=\d) (?=%)|(?<=±) | (?=±)", "\u00a0", str(text))


def _unique(*lists: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(entry for part in lists for entry in part))


def _slug(text: Any) -> str:
    """A name as part of an anchor; names that differ only in odd characters keep apart by a checksum."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", str(text))
    if plain == str(text):
        return plain
    import zlib

    return f"{plain}-{zlib.crc32(str(text).encode()):08x}"
