"""The pool on a Ray cluster: the same tasks and the same bits as on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gnomon.core.errors import GnomonError, InvalidInput, require
from gnomon.run.pool import Task, execute


@dataclass(frozen=True)
class RayPool:
    """Workers of a Ray cluster, or of a local one that is started where no `address` is given.

    `jobs` tasks at once, `threads` each, as one process each; a task whose worker or node dies is run again, up to `retries` times.  The nodes need the
    same gnomon and the same model of CPU for the same bits.  `patience` is how many seconds a cluster may take to answer.
    """

    address: str | None = None
    jobs: int = 1
    threads: int = 1
    retries: int = 2
    patience: float = 15.0

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results, in the order in which they end.

        Raises: MissingExtra without Ray, InvalidInput for an address at which no cluster answers, GnomonError where a worker dies again and again.
        """
        ray = require("ray", "ray")
        self.connect()
        remote = ray.remote(num_cpus=self.threads, max_retries=self.retries, retry_exceptions=False)(execute_there)
        waiting = list(reversed(list(enumerate(tasks))))
        flying: dict[Any, int] = {}
        try:
            while waiting or flying:
                while waiting and len(flying) < self.jobs:
                    position, task = waiting.pop()
                    flying[remote.remote(task, self.threads, sys.path)] = position
                (ended,), _ = ray.wait(list(flying), num_returns=1)
                try:
                    result = ray.get(ended)
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from error
                except ray.exceptions.RayError as error:
                    undone = len(waiting) + len(flying)
                    raise GnomonError(
                        f"A Ray worker died {self.retries + 1} times (out of memory?); {undone} of {len(tasks)} tasks are undone: {_last_line(str(error))}"
                    ) from error
                yield flying.pop(ended), result
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)

    def connect(self) -> None:
        """Join the cluster, or start a local one; nothing where this process has one already.

        Raises: InvalidInput where no cluster answers within `patience` seconds.
        """
        ray = require("ray", "ray")
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.address is None:
            ray.init(num_cpus=max(self.jobs * self.threads, 1), include_dashboard=False, log_to_driver=False, configure_logging=False)
            return
        self._check()
        ray.init(address=self.address, log_to_driver=False, configure_logging=False)

    def _check(self) -> None:
        """See that a cluster answers, first its socket and then, in a process that can be ended, Ray itself: its client waits minutes, or ends the process."""
        assert self.address is not None
        host, colon, port = self.address.removeprefix("ray://").rpartition(":")
        if self.address != "auto" and not (colon and port.isdigit()):
            raise InvalidInput(f"--address takes host:port, ray://host:port or auto, not {self.address!r}.")
        advice = "Start one with: ray start --head, and give the address that it prints; or leave --address out for a local one."
        if self.address != "auto":
            try:
                socket.create_connection((host, int(port)), timeout=self.patience / 3).close()
            except (OSError, OverflowError) as error:
                raise InvalidInput(f"No Ray cluster answers at {self.address}: {error}. {advice}") from error
        code = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)"
        try:
            tried = subprocess.run([sys.executable, "-c", code, self.address], capture_output=True, text=True, timeout=self.patience, check=False)
        except subprocess.TimeoutExpired as error:
            raise InvalidInput(
                f"What listens at {self.address} does not answer as a Ray cluster within {self.patience:g} s. If it is one that asks for a token, RAY_AUTH_MODE=token must be set here too. {advice}"
            ) from error
        if tried.returncode:
            raise InvalidInput(f"No Ray cluster can be joined at {self.address}: {_last_line(tried.stderr)}. {advice}")


def execute_there(task: Task, threads: int, path: Sequence[str]) -> Any:
    """Run one task in a Ray worker, which finds the modules that the sender finds, where the node has them at the same place."""
    sys.path += [entry for entry in path if entry not in sys.path]
    return execute(task, threads)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason was given")
