"""The pool: independent tasks, by name, in this process or on the processes of this machine; the same bits from any number of workers."""

from __future__ import annotations

import concurrent.futures
import importlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from gnomon.core.errors import GnomonError
from gnomon.core.task import Pool as Pool
from gnomon.core.task import Task as Task


def execute(task: Task, threads: int) -> Any:
    """Run one task in this process at a fixed number of threads, torch's and those of numpy's linear algebra."""
    from gnomon.core.environment import fixed_threads

    with fixed_threads(threads):
        module, _, function = task.call.partition(":")
        return getattr(importlib.import_module(module), function)(**task.arguments)


@dataclass(frozen=True)
class LocalPool:
    """This process, one task after another: what one job takes without the seconds that a new process needs to import torch."""

    threads: int = 1
    jobs: int = field(default=1, init=False)

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results, in order."""
        for position, task in enumerate(tasks):
            yield position, execute(task, self.threads)


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
        executor = concurrent.futures.ProcessPoolExecutor(min(self.jobs, len(left)), mp_context=context, initializer=ignore_interrupt)
        futures = {executor.submit(execute, task, self.threads): position for position, task in left.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                result = future.result()
                del left[futures[future]]
                yield futures[future], result
        except BaseException:
            # what still runs would hold up a Ctrl-C until its end, and its result is lost anyway
            for process in list((executor._processes or {}).values()):
                process.terminate()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent process, which stores what is done and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
