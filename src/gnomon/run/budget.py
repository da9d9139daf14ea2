"""Time and memory: a budget as seconds, the machine's free memory, errors of allocation as numbers."""

from __future__ import annotations

import os
import re

from gnomon.core.errors import InvalidInput, NotEnoughMemory

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(budget: str | float) -> float:
    """A budget such as `90s`, `5m`, `1.5h` or a number of seconds.  Raises: InvalidInput for anything else and for less than a second."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(budget))
    value = float(match.group(1)) * _UNITS[match.group(2) or "s"] if match else 0.0
    if value < 1:
        raise InvalidInput(f"The budget {budget!r} is not a time of at least one second; write it as 90s, 5m or 1h.")
    return value


def available_bytes() -> int | None:
    """Memory that can still be taken: the least of the machine's, the address-space limit's and the control group's; None where unknown."""
    known = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            known += [int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")]
    except OSError:
        pass
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            with open("/proc/self/statm", encoding="ascii") as file:
                known.append(max(limit - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE"), 0))
    except (ImportError, OSError):
        pass
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as top, open("/sys/fs/cgroup/memory.current", encoding="ascii") as now:
            if (text := top.read().strip()) != "max":
                known.append(max(int(text) - int(now.read()), 0))
    except (OSError, ValueError):
        pass
    return min(known) if known else None


def peak_bytes() -> int:
    """The most memory that this process has held so far, or 0 where the system does not tell."""
    try:
        import resource
        import sys

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    except ImportError:
        return 0


def as_memory_error(error: BaseException, doing: str) -> NotEnoughMemory | None:
    """The NotEnoughMemory behind an allocation failure of torch or Python, or None where the error is another."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|bad_alloc", text):
        return None
    asked = re.search(r"allocate (\d+) bytes|allocate ([\d.]+ [KMG]iB)", text)
    amount = f"{int(asked.group(1)) / 2**20:,.0f} MiB more" if asked and asked.group(1) else f"{asked.group(2)} more" if asked else "more than there is"
    free = available_bytes()
    there = f"; {free / 2**20:,.0f} MiB were free" if free is not None else ""
    return NotEnoughMemory(f"Not enough memory while {doing}: it takes {amount}{there}. Examine fewer examples (--examples), or a smaller network, or free some memory.")
