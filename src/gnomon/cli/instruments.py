"""`gnomon instruments`: what can be measured, what it needs and what it costs."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer


def instruments(
    topic: Annotated[str | None, typer.Option(help="Only those of one topic.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, alone.")] = False,
) -> None:
    """List the instruments: name, topic, what each needs, its knob, and its cost on the small contract network, in full gradients."""
    from gnomon.core import registry
    from gnomon.core.errors import unknown

    if topic is not None and topic not in registry.TOPICS:
        raise unknown("topic", topic, registry.TOPICS)
    found = [entry(instrument) for instrument in registry.instruments().values() if topic in (None, instrument.topic)]
    if json:
        from gnomon.run.store import dumps

        typer.echo(dumps(found), nl=False)
        return
    typer.echo(table(found) if found else f"No instrument is registered for the topic {topic!r} yet.")


def entry(instrument: Any) -> dict[str, Any]:
    """One instrument as plain data.   Units: `cost` counts passes of loss and gradient over all training examples, at the knob's smallest setting."""
    from gnomon.studies.contract import subject_for

    subject = subject_for(instrument, "images")
    knob = {instrument.knob: instrument.smallest} if instrument.knob else {}
    document = inspect.getdoc(instrument.function) or ""
    return {
        "name": instrument.name, "topic": instrument.topic, "says": document.partition("\n")[0], "needs": list(instrument.needs), "at": list(instrument.at),
        "knob": instrument.knob, "smallest": instrument.smallest if instrument.knob else None, "largest": instrument.largest if instrument.knob else None,
        "cost": None if subject is None else round(instrument.cost(subject, **knob).gradients, 3), "shares": instrument.shares, "module": instrument.function.__module__,
    }  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """The instruments in columns, by topic."""
    rows = [("instrument", "topic", "needs", "knob", "gradients", "what it measures")]
    for one in sorted(found, key=lambda one: (one["topic"], one["name"])):
        needs = ", ".join([*one["needs"], *(["initial, for @initial"] if "initial" in one["at"] and "initial" not in one["needs"] else [])])
        knob = "-" if one["knob"] is None else f"{one['knob']} {one['smallest']}-{one['largest']}"
        rows.append((one["name"], one["topic"], needs or "-", knob, "-" if one["cost"] is None else f"{one['cost']:,.3g}", one["says"]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)), row[5]]).rstrip() for row in rows)
