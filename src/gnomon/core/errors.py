"""Errors whose message says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class GnomonError(Exception):
    """Base of every error that gnomon raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 4


class InvalidInput(GnomonError, ValueError):
    """Something that the user gave cannot be used as it is."""

    exit_code = 2


class NotEnoughMemory(GnomonError, MemoryError):
    """The work would not fit; the message says how much it takes and which knob makes it fit."""

    exit_code = 2


class CannotWrite(GnomonError, OSError):
    """A result could not be written; what stood there before is intact."""

    exit_code = 2


class MissingExtra(GnomonError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""

    exit_code = 2


class OutOfScope(GnomonError):
    """An assumption of a theory or an instrument was checked and is not met; becomes a verdict, never a silent pass."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known name nearest to `name`, or all of them when none is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return "Known names: " + (", ".join(options) if options else "none") + "."


def unknown(what: str, name: str, known: Iterable[str]) -> InvalidInput:
    """The error for an unknown name, with the nearest known one."""
    return InvalidInput(f"Unknown {what} {name!r}. {suggest(name, known)}")


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra installs it.  Raises: MissingExtra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"{module} is not installed. Install it with: pip install 'gnomon[{extra}]'") from error
