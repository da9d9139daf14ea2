"""`gnomon compare`: two reports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(help="A report.json.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    out: Annotated[Path | None, typer.Option(help="Write the comparison as a page, such as compare.html.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON, alone, on standard output.")] = False,
    whole: Annotated[bool, typer.Option("--all", help="Show the rows that are the same within the error too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """Set two reports side by side: what is predicted, measured and decided in each, and what differs by more than its error."""
    from gnomon.core.errors import InvalidInput
    from gnomon.examination.compare import compare as compared
    from gnomon.report.compare import page, table
    from gnomon.run.store import REPORT, dumps, read_json, write_atomic

    comparison = compared(*(read_json(path, schema=REPORT) for path in (first, second)), names=(str(first), str(second)))
    if out is not None:
        if out.is_dir() or out.suffix == ".json":
            raise InvalidInput(f"--out names the page: --out {out / 'compare.html' if out.is_dir() else out.with_suffix('.html')}")
        write_atomic(out, page(comparison))
    typer.echo(dumps(comparison) if json else table(comparison, whole=whole), nl=False)
