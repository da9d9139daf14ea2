"""A task: a call by name, which a pool can send to another process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Task:
    """A call by name, so that it can be sent to another process: `module:function` and its arguments (plain data)."""

    call: str
    arguments: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Pool(Protocol):
    """Runs tasks; yields (position, result) as each ends, so that it can be stored before the next one does."""

    @property
    def jobs(self) -> int:
        """How many tasks run at once."""
        ...

    @property
    def threads(self) -> int:
        """Threads of each task, part of what fixes its bits."""
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results, in the order in which they end."""
        ...
