"""`gnomon schema`: the JSON Schemas of gnomon's documents."""

from __future__ import annotations

from typing import Annotated

import typer

KINDS = ("report", "run", "history", "compare", "atlas")


def schema(of: Annotated[str, typer.Argument(help="report (report.json), run (a claim's verdict), history, compare (two reports) or atlas (atlas.json).")] = "report") -> None:
    """Print the JSON Schema of report.json, of a claim's verdict, of a history, of a comparison or of an atlas, for programs that read them."""
    from importlib import resources

    from gnomon.core.errors import unknown

    if of not in KINDS:
        raise unknown("document", of, KINDS)
    typer.echo(resources.files("gnomon.run").joinpath("schema", f"{of}.json").read_text(encoding="utf-8"), nl=False)
