"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gnomon.core.errors import CannotWrite, InvalidInput


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file beside the old one and put it in its place: a reader sees the old content or the new, never half of it.

    `durable` waits until the disk has it, so that it outlasts a power cut too.
    Raises: CannotWrite for a full disk, a read-only place or a device; what stood there stays as it was.
    """
    write_all({Path(path): content}, durable=durable)


def write_all(contents: Mapping[Path, str | bytes], *, durable: bool = True) -> None:
    """Write several files beside the old ones, and put them in place once all are there.

    Raises: CannotWrite for a full disk, a read-only place or a device; then every old file stays as it was.
    """
    staged: dict[Path, str] = {}
    path = Path()
    try:
        for path, content in contents.items():
            if path.exists() and not path.is_file():
                raise CannotWrite(f"{path} is not a regular file; nothing was written. Choose another place (--out).")
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, staged[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(staged[path], 0o644)
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(f"Cannot write {path}: {error.strerror or error}. Nothing was changed; free some space or choose another place.") from error
    finally:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors beside the old file and put it in its place, as `write_atomic` does; no second copy of them is made in memory.

    Raises: CannotWrite; what stood there stays as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        save_file(dict(tensors), temporary, dict(metadata))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CannotWrite(f"Cannot write {path}: {error}. What stood there is as it was; free some space or choose another place.") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file, on the CPU, and its metadata.  Raises: InvalidInput for what is no such file, or cut."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path} cannot be read as safetensors ({error}). Delete it, or give another place.") from error
