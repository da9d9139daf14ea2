"""`gnomon cite`: BibTeX of what a report, a claim, or gnomon, rests on."""

from __future__ import annotations

from typing import Annotated

import typer


def cite(of: Annotated[str | None, typer.Argument(help="A report.json, a claim's id, or a key such as schuirmann1987.  [default: everything]")] = None) -> None:
    """Print the BibTeX of the sources of a report or a claim, of one source, or of all."""
    from gnomon.core.source import Source, bibliography
    from gnomon.core.source import cite as bibtex

    if of is None:
        typer.echo("\n\n".join(bibliography()[key] for key in sorted(bibliography())))
    elif of.endswith(".json"):
        from pathlib import Path

        from gnomon.run.store import REPORT, read_json

        typer.echo(bibtex(read_json(Path(of), schema=REPORT)))
    elif "/" in of:
        from gnomon.core.catalogue import get_claim

        typer.echo(bibtex(get_claim(of).load()))
    else:
        typer.echo(bibtex(Source(of)))
