"""The state of a long computation in a file, so that another process goes on where this one was cut."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from gnomon.core.errors import CannotWrite, InvalidInput
from gnomon.core.files import read_tensors, write_tensors

SHARE = 0.05
"""The most that writing takes of the time, as a part of it."""
State = Mapping[str, Tensor]
log = logging.getLogger(__name__)


class Checkpoint:
    """A file of tensors (safetensors) under a label that says what they are the state of.

    A state is written in one go, so that the file is whole at any time, and no more often than takes SHARE of the time: a process that is killed loses at most 20 times what
    writing takes.  A disk that is full from the beginning is an error; one that fills up later is said in the log, and the computation goes on.
    """

    def __init__(self, path: str | Path, label: str) -> None:
        self.path, self.label, self._due, self._written = Path(path), label, 0.0, False

    def load(self) -> dict[str, Tensor] | None:
        """The state in the file, on the CPU; None where there is no file.  Raises: InvalidInput for the state of something else, or a file that is none."""
        if not self.path.exists():
            return None
        tensors, about = read_tensors(self.path)
        if about.get("label") != self.label:
            raise InvalidInput(f"{self.path} holds the state of another computation (another network, other data or settings). Delete it, or give another place.")
        return tensors

    def save(self, state: Callable[[], State], *, now: bool = False) -> None:
        """Write a state, if it is due or `now`.  Raises: CannotWrite where nothing was written yet; where that worked before, the file stays as it was and the next one is tried."""
        start = time.monotonic()
        if not now and start < self._due:
            return
        try:
            write_tensors(self.path, state(), {"label": self.label})
            self._written = True
        except CannotWrite as error:
            if not self._written:
                raise
            log.warning("the state is not kept for now, the computation goes on: %s", error)
        end = time.monotonic()
        self._due = end + (end - start) / SHARE

    def clear(self) -> None:
        """Take the file away: the computation is done."""
        self.path.unlink(missing_ok=True)
