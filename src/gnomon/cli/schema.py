"""`gnomon schema`: the JSON Schemas of gnomon's documents."""

from __future__ import annotations

from typing import Annotated

import typer

KINDS = ("report", "run")


def schema(of: Annotated[str, typer.Argument(help="report (report.json) or run (the verdict on a claim).")] = "report") -> None:
    """Print the JSON Schema of report.json, or of a claim's verdict, for programs that read them."""
    from importlib import resources

    from gnomon.core.errors import unknown

    if of not in KINDS:
        raise unknown("document", of, KINDS)
    typer.echo(resources.files("gnomon.run").joinpath("schema", f"{of}.json").read_text(encoding="utf-8"), nl=False)
