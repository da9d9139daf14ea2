"""What becomes of errors: one clear message on stderr and an exit code; a traceback only with -v."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from gnomon.core.errors import GnomonError

INTERRUPTED, FAULT = 130, 4


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors become messages and exit codes: 2 for what the user can mend, 4 for a fault of gnomon, 130 for Ctrl-C."""

    @functools.wraps(command)
    def inner(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BaseException as error:
            raise typer.Exit(explain(error, verbose=bool(kwargs.get("verbose")))) from error

    return inner


def explain(error: BaseException, *, verbose: bool) -> int:
    """Print what an error means on stderr and return the exit code.  Raises: SystemExit and the like again."""
    if isinstance(error, KeyboardInterrupt):
        typer.echo("\nStopped. What has been measured is kept: run the same command again to go on.", err=True)
        return INTERRUPTED
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, BrokenPipeError):
        # the reader of stdout has gone; python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if verbose:
        typer.echo("".join(traceback.format_exception(error)), err=True)
    if not isinstance(error, GnomonError):
        from gnomon.run.budget import as_memory_error

        error = as_memory_error(error, "running this command") or error
    if isinstance(error, GnomonError):
        typer.echo(f"gnomon: {error}", err=True)
        return error.exit_code
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
    typer.echo(f"gnomon: a fault of gnomon, please report it: {type(error).__name__}: {error} ({where})." + ("" if verbose else " -v shows where it came from."), err=True)
    return FAULT
