"""`gnomon cache`: where downloaded data and unfinished measurements are kept."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Annotated

import typer

PARTS = {"data": ("mnist", "fashion-mnist"), "store": ("pending", "runs", "replicates", "claims")}
"""What gnomon writes in the cache; nothing else is counted or deleted."""


def cache(clear: Annotated[bool, typer.Option("--clear", help="Delete what is kept.")] = False) -> None:
    """Show where downloaded data and measurements are kept and how large they are; GNOMON_CACHE chooses another place."""
    from gnomon.core.environment import cache_folder
    from gnomon.core.errors import CannotWrite

    folder = cache_folder()
    sizes = {part: sum(size(folder / part / name) for name in names) for part, names in PARTS.items()}
    if clear:
        try:
            for part, names in PARTS.items():
                for name in names:
                    if (folder / part / name).is_dir():
                        shutil.rmtree(folder / part / name)
                with contextlib.suppress(OSError):
                    (folder / part).rmdir()
        except OSError as error:
            raise CannotWrite(f"Cannot delete {error.filename}: {error.strerror}.") from error
        typer.echo(f"{folder}: {sum(sizes.values()) / 2**20:,.1f} MiB deleted")
        return
    typer.echo(str(folder))
    typer.echo(f"  data   {sizes['data'] / 2**20:10,.1f} MiB  downloaded data sets")
    typer.echo(f"  store  {sizes['store'] / 2**20:10,.1f} MiB  measurements, finished reports and verdicts")


def size(folder: Path) -> int:
    """Bytes in a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
