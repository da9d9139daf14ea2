"""What a result was made with: versions, device, threads, and the hash of gnomon's own files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gnomon.core.errors import InvalidInput
from gnomon.core.plugins import folders, roots


def version() -> str:
    """gnomon's version."""
    try:
        return metadata.version("gnomon")
    except metadata.PackageNotFoundError:
        return "0.1.0"


def cache_folder() -> Path:
    """Where gnomon keeps downloaded data and what `examine` has measured: `GNOMON_CACHE`, or `gnomon` in the system's folder for caches."""
    if given := os.environ.get("GNOMON_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gnomon"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gnomon" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnomon"


@functools.cache
def code_hash() -> str:
    """SHA-256 of the Python files of gnomon and its plug-ins, by path."""
    digest = hashlib.sha256()
    for root in [Path(__file__).resolve().parent.parent, *(place for name in roots() if name != "gnomon" for place in folders(name))]:
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Run torch at a fixed number of threads and numpy's linear algebra at one, so that the environment changes no bit; put back on leaving.

    Raises: InvalidInput for less than one thread.
    """
    import torch
    from threadpoolctl import threadpool_limits

    if threads < 1:
        raise InvalidInput(f"threads must be at least 1, not {threads}.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def environment(*, threads: int, device: str) -> dict[str, Any]:
    """Versions, threads and device: what may change the bits of a result."""
    import numpy
    import scipy
    import torch

    return {
        "gnomon": version(), "code": code_hash()[:16], "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__, "scipy": scipy.__version__,
        "system": platform.system(), "machine": platform.machine(), "threads": threads, "device": device,
    }  # fmt: skip
