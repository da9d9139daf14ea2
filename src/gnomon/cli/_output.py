"""Where results go, checked before the work, and the progress bar."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gnomon.core.errors import CannotWrite, InvalidInput

PROBE_BYTES = 2**20
"""More than a report takes."""


def check_page(path: Path) -> None:
    """See that a page can be written to a path and its JSON beside it, before any work.  Raises: InvalidInput for a folder, CannotWrite for what cannot be written."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; give a file: --out {path / 'report.html'}")
    if path.suffix == ".json":
        raise InvalidInput(f"--out names the page, and the JSON is written beside it: --out {path.with_suffix('.html')}")
    for target in (path, path.with_suffix(".json")):
        if target.exists() and not target.is_file():
            raise CannotWrite(f"{target} is not a regular file; choose another place with --out.")
        if target.exists() and not os.access(target, os.W_OK):
            raise CannotWrite(f"{target} is write-protected; choose another place with --out.")
    if not path.parent.is_dir():
        raise InvalidInput(f"There is no folder {path.parent}; make it first, or choose another place with --out.")
    check_folder(path.parent, "choose another place with --out")


def check_folder(folder: Path, advice: str) -> None:
    """See that a folder, made if need be, takes a file of the size of a report.  Raises: CannotWrite."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CannotWrite(f"Cannot write in {folder}: {error.strerror}. Nothing was changed; {advice}.") from error


@contextlib.contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[Callable[[float, str], None]]:
    """A function of (part done, what is being done) that draws a bar on a terminal, or prints lines with -v where stderr is none."""
    if quiet or not (verbose or sys.stderr.isatty()):
        yield lambda part, text: None
    elif not sys.stderr.isatty():
        yield lambda part, text: print(f"{part:4.0%} {text}", file=sys.stderr, flush=True)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda part, text: bar.update(task, completed=part, description=text)
