"""The pool: independent tasks, by name, on the processes of this machine; the same bits from any number of workers."""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

from gnomon.core.errors import GnomonError


@dataclass(frozen=True)
class Task:
    """A call by name, so that it can be sent to another process: `module:function` and its arguments (plain data)."""

    call: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Pool(Protocol):
    """Runs tasks; yields (position, result) as each ends, so that it can be stored before the next one does."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results, in the order in which they end."""
        ...


def execute(task: Task, threads: int) -> Any:
    """Run one task in this process at a fixed number of threads."""
    import torch

    torch.set_num_threads(threads)
    module, _, function = task.call.partition(":")
    return getattr(importlib.import_module(module), function)(**task.arguments)


@dataclass(frozen=True)
class ProcessPool:
    """Processes of this machine (spawned), `threads` each.  A task whose worker dies is run again, up to `retries` times."""

    jobs: int = 1
    threads: int = 1
    retries: int = 2

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results, in the order in which they end.  Raises: GnomonError where a worker dies again and again."""
        left, attempts = dict(enumerate(tasks)), 0
        while left:
            try:
                yield from self._attempt(left)
            except BrokenProcessPool as error:
                attempts += 1
                if attempts > self.retries:
                    raise GnomonError(f"A worker process died {attempts} times (out of memory?); {len(left)} of {len(tasks)} tasks are undone. Try fewer jobs.") from error

    def _attempt(self, left: dict[int, Task]) -> Iterator[tuple[int, Any]]:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(self.jobs, mp_context=context) as executor:
            futures = {executor.submit(execute, task, self.threads): position for position, task in left.items()}
            try:
                for future in concurrent.futures.as_completed(futures):
                    result = future.result()
                    del left[futures[future]]
                    yield futures[future], result
            finally:
                for future in futures:
                    future.cancel()
