"""`gnomon cite`: BibTeX of what a report, or gnomon, rests on."""

from __future__ import annotations

from typing import Annotated

import typer


def cite(of: Annotated[str | None, typer.Argument(help="A report.json, or a key such as schuirmann1987.  [default: everything]")] = None) -> None:
    """Print the BibTeX of a report's sources, of one source, or of all."""
    from gnomon.core.source import Source, bibliography
    from gnomon.core.source import cite as bibtex

    if of is None:
        typer.echo("\n\n".join(bibliography()[key] for key in sorted(bibliography())))
    elif of.endswith(".json"):
        from pathlib import Path

        from gnomon.run.store import read_json

        typer.echo(bibtex(read_json(Path(of), schema="gnomon/report/1")))
    else:
        typer.echo(bibtex(Source(of)))
