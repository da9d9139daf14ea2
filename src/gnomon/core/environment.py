"""What a result was made with: versions, device, threads, and the hash of gnomon's own files."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


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
    """SHA-256 of gnomon's own Python files, by path."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def environment(*, threads: int, device: str) -> dict[str, Any]:
    """Versions, threads and device: what may change the bits of a result."""
    import numpy
    import scipy
    import torch

    return {
        "gnomon": version(), "code": code_hash()[:16], "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__, "scipy": scipy.__version__,
        "system": platform.system(), "machine": platform.machine(), "threads": threads, "device": device,
    }  # fmt: skip
