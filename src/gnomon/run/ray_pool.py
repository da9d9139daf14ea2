"""The pool on a Ray cluster: the same tasks and the same bits as on one machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from gnomon.core.errors import GnomonError, InvalidInput, require
from gnomon.run.pool import Task, execute, ignore_interrupt

CLIENT = "the client of Ray"
START_SECONDS = 120.0
"""Seconds that a local cluster has to start."""
LEAVE_SECONDS = 3.0
"""Seconds that Ray's client has to take its leave; what it has started on this machine ends with it."""
ADVICE = "Start one with: ray start --head, and give the address that it prints; or leave --address out for a local one."


class DriverDied(GnomonError):
    """The process that speaks with the cluster ended without a word: Ray's client ends its process where it loses a node."""


@dataclass(frozen=True)
class RayPool:
    """Workers of a Ray cluster, or of a local one that is started where no `address` is given.

    `jobs` tasks at once, `threads` each, as one process each; a task whose worker or node dies is run again, up to `retries` times.  The nodes need the
    same gnomon and the same model of CPU for the same bits.  `patience` is how many seconds a cluster may take to answer.

    A process of its own speaks with the cluster, because Ray's client ends its process where the cluster goes away; what was undone then is begun again, as often as a task is.
    """

    address: str | None = None
    jobs: int = 1
    threads: int = 1
    retries: int = 2
    patience: float = 15.0

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """The results, in the order in which they end.

        Raises: MissingExtra without Ray, InvalidInput for an address at which no cluster answers, GnomonError where a worker, or the cluster, dies again and again.
        """
        require("ray", "ray")
        left, attempts = dict(enumerate(tasks)), 0
        while left:
            try:
                for position, result in self._attempt(left, len(tasks)):
                    del left[position]
                    yield position, result
            except DriverDied as error:
                attempts += 1
                if attempts > self.retries:
                    raise GnomonError(
                        f"Ray's client died, or started no cluster, {attempts} times; {len(left)} of {len(tasks)} tasks are undone. Ray's own logs, in /tmp/ray/session_latest/logs, say why."
                    ) from error

    def _attempt(self, left: Mapping[int, Task], count: int) -> Iterator[tuple[int, Any]]:
        if self.address is not None:
            self._check(self.address)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        driver = context.Process(name=CLIENT, target=drive, args=(there, self, dict(left), count), daemon=True)
        driver.start()
        there.close()
        try:
            if not here.poll(START_SECONDS if self.address is None else self.patience):
                if self.address is None:
                    raise DriverDied("A local cluster did not start.")
                raise InvalidInput(
                    f"What listens at {self.address} does not answer as a Ray cluster within {self.patience:g} s. If it is one that asks for a token, RAY_AUTH_MODE=token must be set here too. {ADVICE}"
                )
            while (message := _received(here)) is not None:
                if isinstance(message, BaseException):
                    raise message
                if message:
                    yield message
            driver.join(LEAVE_SECONDS)
        finally:
            driver.kill()
            driver.join()

    def _check(self, address: str) -> None:
        """Check that something listens at the address.  Raises: InvalidInput."""
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if address == "auto":
            return
        if not (colon and port.isdigit()):
            raise InvalidInput(f"--address takes host:port, ray://host:port or auto, not {address!r}.")
        try:
            socket.create_connection((host, int(port)), timeout=self.patience / 3).close()
        except (OSError, OverflowError) as error:
            raise InvalidInput(f"No Ray cluster answers at {address}: {error}. {ADVICE}") from error


def _received(connection: Connection) -> Any:
    """What the driver, a process of this one's own, says: () once it has joined, (position, result), an error to raise, None at the end."""
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, OSError) as error:
        raise DriverDied("Ray's client ended its process.") from error


def drive(connection: Connection, pool: RayPool, left: Mapping[int, Task], count: int) -> None:
    """Run the tasks on the cluster and send what comes; in a process of its own."""
    ignore_interrupt()

    def send(message: Any) -> None:
        connection.send_bytes(pickle.dumps(message))

    try:
        _join(pool.address, max(pool.jobs * pool.threads, 1))
        send(())
        for found in _results(pool, left, count):
            send(found)
        send(None)
    except BrokenPipeError:  # nobody waits for it
        return
    except Exception as error:
        try:
            send(error)
        except (pickle.PicklingError, TypeError, AttributeError):
            send(GnomonError(f"{type(error).__name__}: {error}"))


def _join(address: str | None, cpus: int) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
        return
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise InvalidInput(f"No Ray cluster can be joined at {address}: {_last_line(str(error))}. {ADVICE}") from error


def _results(pool: RayPool, left: Mapping[int, Task], count: int) -> Iterator[tuple[int, Any]]:
    import ray

    remote = ray.remote(num_cpus=pool.threads, max_retries=pool.retries, retry_exceptions=False)(execute_there)
    waiting: list[tuple[int, Task]] = list(left.items())[::-1]
    flying: dict[Any, int] = {}
    while waiting or flying:
        while waiting and len(flying) < pool.jobs:
            position, task = waiting.pop()
            flying[remote.remote(task, pool.threads, sys.path)] = position
        (ended,), _ = ray.wait(list(flying), num_returns=1)
        try:
            result = ray.get(ended)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            undone = len(waiting) + len(flying)
            raise GnomonError(f"A Ray worker died {pool.retries + 1} times (out of memory?); {undone} of {count} tasks are undone: {_last_line(str(error))}") from error
        yield flying.pop(ended), result


def execute_there(task: Task, threads: int, path: Sequence[str]) -> Any:
    """Run one task in a Ray worker, which finds the modules that the sender finds, where the node has them at the same place."""
    sys.path += [entry for entry in path if entry not in sys.path]
    return execute(task, threads)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason was given")
