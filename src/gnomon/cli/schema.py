"""`gnomon schema`: the JSON Schema of a report."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON Schema of report.json, for programs that read it."""
    from importlib import resources

    typer.echo(resources.files("gnomon.run").joinpath("schema", "report.json").read_text(encoding="utf-8"), nl=False)
