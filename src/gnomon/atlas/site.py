"""The atlas as pages: which there are, what stands on each, and how they link; `report/` renders them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from gnomon.atlas.entries import Entry
from gnomon.atlas.gather import Gathered, Shown
from gnomon.core.environment import version
from gnomon.core.judge import Outcome
from gnomon.core.registry import TOPICS
from gnomon.report.claim import settings_text, verdict_view
from gnomon.report.code import highlight
from gnomon.report.maths import paragraphs
from gnomon.report.pages import MEANINGS, RELATIONS, name_of, page, style_sheet

SCHEMA = "gnomon/atlas/1"
MANIFEST = "atlas.json"
ORDER: tuple[Outcome | None, ...] = ("holds", "fails", "inconclusive", "vacuous", "out_of_scope", "error", None)

Row = Mapping[str, Any]


def pages(gathered: Gathered) -> dict[str, str]:
    """Every page by its address in the site, and the style sheet.   Cost: two pictures and three pages a claim that has been run."""
    reading = gathered.reading
    rows = {shown.listed.id: _row(shown) for shown in gathered.claims}
    listed = list(rows.values())
    common = {"version": version()}
    out = {"style.css": style_sheet()}

    def put(address: str, template: str, **view: Any) -> None:
        out[address] = page(template, address=address, **common, **view)

    put("index.html", "index", **_index(gathered, listed))
    put("about.html", "about", verdicts=[_meaning(outcome) for outcome in ORDER], example=listed[0]["id"] if listed else "topic/name")
    for entry in reading.entries.values():
        own = [row for row in listed if row["entry"] == entry.id]
        related = [row for row in listed if row["entry"] != entry.id and row["topic"] in entry.topics] if entry.map else []
        put(f"entries/{entry.id}.html", "entry", entry=entry, section=reading.sections[entry.section], claims=own, tally=tally(own), related=related)
    for topic in TOPICS:
        own = [row for row in listed if row["topic"] == topic]
        entries = [entry for entry in reading.entries.values() if topic in entry.topics]
        put(f"topics/{topic}.html", "list", title=topic.capitalize(), kicker="Topic", about="", claims=own, tally=tally(own), entries=entries)
    for outcome in ORDER:
        own = [row for row in listed if row["verdict"] == outcome]
        put(f"verdicts/{slug(outcome)}.html", "list", title=name_of(outcome).capitalize(), kicker="Verdict", about=MEANINGS[outcome], claims=own, tally=(), entries=())
    for shown in gathered.claims:
        row = rows[shown.listed.id]
        put(row["page"], "claim", claim=row | _claim(shown), entry=reading.entries[shown.claim.entry], view=row["view"], source=_source(shown), others=_others(shown))
    return out


def manifest(gathered: Gathered, addresses: Iterable[str]) -> dict[str, Any]:
    """What the atlas holds, for programs: a document `gnomon/atlas/1` with the claims, the counts, and the files that it wrote."""
    claims = [
        {
            "claim": shown.listed.id, "entry": shown.claim.entry, "topic": shown.listed.topic, "page": address_of(shown),
            "statement": shown.listed.summary, "verdict": shown.outcome,
            **({} if shown.verdict is None else {"scale": shown.verdict["scale"], "as_expected": shown.verdict["as_expected"], "older_code": shown.verdict["stale"]}),
        }
        for shown in gathered.claims
    ]  # fmt: skip
    entries = [{"id": entry.id, "title": entry.title, "claims": sum(shown.claim.entry == entry.id for shown in gathered.claims)} for entry in gathered.reading.entries.values()]
    counts = collections.Counter(shown.outcome for shown in gathered.claims)
    return {
        "schema": SCHEMA, "gnomon": version(), "claims": claims, "entries": entries, "verdicts": {slug(outcome): counts[outcome] for outcome in ORDER},
        "retired": [document["claim"] for document in gathered.retired], "files": sorted({*addresses, MANIFEST}),
    }  # fmt: skip


def slug(outcome: str | None) -> str:
    """A verdict as part of an address."""
    return "not-run" if outcome is None else outcome.replace("_", "-")


def address_of(shown: Shown) -> str:
    """Where a claim's page stands."""
    return f"claims/{shown.listed.id}.html"


def tally(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How many claims have which verdict, those that none has left out."""
    counts = collections.Counter(row["verdict"] for row in rows)
    many = {"holds": "hold", "fails": "fail"}
    return [
        {"verdict": outcome, "slug": slug(outcome), "count": counts[outcome], "name": many.get(str(outcome), name_of(outcome)) if counts[outcome] != 1 else name_of(outcome)}
        for outcome in ORDER
        if counts[outcome]
    ]


def _row(shown: Shown) -> dict[str, Any]:
    """A claim as it stands in a list."""
    statement, *explanation = paragraphs(shown.listed.statement)
    view = None if shown.verdict is None else verdict_view(shown.verdict, f"{shown.listed.id}: predicted against measured")
    notes = [] if view is None else [f"{view['scale']} scale", *(["not as expected"] if not view["as_expected"] else []), *(["older code"] if view["stale"] else [])]
    sides = {side: view[side]["text"] if view and view[side] else "" for side in ("predicted", "measured")}
    said = ", ".join(f"{side} {text}" for side, text in sides.items() if text)
    return {
        "id": shown.listed.id, "page": address_of(shown), "anchor": shown.listed.id.replace("/", "-"), "statement": statement, "explanation": explanation,
        "entry": shown.claim.entry, "topic": shown.listed.topic, "verdict": shown.outcome, "verdict_name": name_of(shown.outcome), "note": ", ".join(notes),
        "again": f"gnomon claims run {shown.listed.id} --scale {_scale(shown)}", "view": view, "sides": f"{said[:1].upper()}{said[1:]}.", **sides,
    }  # fmt: skip


def _scale(shown: Shown) -> str:
    """The scale to run at: that of the verdict, or the one whose verdicts the atlas is made for."""
    if shown.verdict is not None:
        return str(shown.verdict["scale"])
    return "standard" if "standard" in shown.claim.scales else "smoke"


def _claim(shown: Shown) -> dict[str, Any]:
    """What a claim's own page says beyond a row."""
    claim = shown.claim
    scales = [{"name": name, "settings": settings_text(_settings(claim.scales[name]))} for name in claim.scales]
    package, _, rest = shown.listed.module.partition(".claims.")
    return {
        "relation": RELATIONS[claim.relation], "expected": claim.expected, "version": claim.version, "scales": scales,
        "settings": list(dict.fromkeys(name for scale in scales for name in scale["settings"])), "code": highlight(shown.listed.code),
        "file": str(PurePosixPath(package.replace(".", "/"), "claims", *rest.split(".")).with_suffix(".py")),
        "sabotage": {"because": claim.sabotage.because, "changes": settings_text(claim.sabotage.changes)},
    }  # fmt: skip


def _settings(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _source(shown: Shown) -> dict[str, str]:
    source = shown.claim.source
    return {"text": str(source), "title": source.field("title"), "url": source.url, "bibtex": source.bibtex}


def _others(shown: Shown) -> list[dict[str, Any]]:
    return [{"scale": other["scale"], "verdict_name": name_of(other["verdict"]), "stale": other["stale"]} for other in shown.others]


def _index(gathered: Gathered, rows: Sequence[Row]) -> dict[str, Any]:
    def line(entry: Entry) -> dict[str, Any]:
        own = [row for row in rows if row["entry"] == entry.id]
        return {"id": entry.id, "title": entry.title, "authors": entry.authors, "year": entry.year, "counts": tally(own)}

    entries = gathered.reading.entries.values()
    sections = [{"letter": letter, "title": title, "entries": [line(entry) for entry in entries if entry.section == letter]} for letter, title in gathered.reading.sections.items()]
    topics = [{"name": topic, "summary": str(sum(row["topic"] == topic for row in rows) or "not yet")} for topic in TOPICS]
    retired = [
        {"claim": old["claim"], "verdict_name": name_of(old["verdict"]), "scale": old["scale"], "version": old["version"], "statement": old["statement"]}
        for old in gathered.retired
    ]
    return {
        "count": len(rows), "entries": len(entries), "entries_with_claims": len({row["entry"] for row in rows}), "unexpected": [row for row in rows if row["view"] and not row["view"]["as_expected"]],
        "tally": tally(rows), "topics": topics, "sections": sections, "retired": retired,
    }  # fmt: skip


def _meaning(outcome: Outcome | None) -> dict[str, Any]:
    return {"verdict": outcome, "verdict_name": name_of(outcome), "note": "", "about": MEANINGS[outcome]}
