"""The store: one JSON a result, keyed by a hash of what made it, written atomically, resumable piece by piece."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnomon.core.errors import InvalidInput
from gnomon.core.files import write_all as write_all
from gnomon.core.files import write_atomic as write_atomic

REPORT = "gnomon/report/1"
"""The schema of a report."""


def key_of(*parts: Any) -> str:
    """The key of a result: SHA-256 of the canonical JSON of what made it, 32 hexadecimal digits."""
    return hashlib.sha256(dumps(list(parts)).encode()).hexdigest()[:32]


def dumps(document: Any) -> str:
    """Canonical JSON: sorted keys, no NaN, one trailing newline; equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def read_json(path: Path, *, schema: str) -> dict[str, Any]:
    """A JSON document of a known schema, such as `gnomon/report/1`.

    Raises: InvalidInput for a missing file, broken JSON, another kind of document, or one written by a newer gnomon.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"There is no file {path}; give the document that gnomon wrote.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {error}") from error
    kind, _, number = schema.rpartition("/")
    found = document.get("schema") if isinstance(document, dict) else None
    found_kind, _, found_number = str(found).rpartition("/")
    if found_kind != kind or not found_number.isdigit():
        raise InvalidInput(f"{path} is not a {kind} document (its schema is {found!r}).")
    if int(found_number) > int(number):
        raise InvalidInput(f"{path} was written by a newer gnomon ({found}); this one reads up to {schema}. Upgrade gnomon.")
    return document


class Store:
    """A folder of results.  `pending/<key>/` (or another folder of `pieces`) holds the pieces of a run, `runs/<key>.json` what is finished."""

    def __init__(self, folder: Path, *, pieces: str = "pending") -> None:
        self.folder, self.pieces = Path(folder), pieces

    def piece(self, key: str, name: str) -> dict[str, Any] | None:
        """One piece of a run, or None where it is missing or was cut off."""
        try:
            return json.loads(self._piece_path(key, name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None

    def put_piece(self, key: str, name: str, document: Mapping[str, Any]) -> None:
        """Store one piece of a run."""
        write_atomic(self._piece_path(key, name), dumps(document))

    def _piece_path(self, key: str, name: str) -> Path:
        return self.folder / self.pieces / key / f"{name}.json"

    def finish(self, key: str, document: Mapping[str, Any], *, pending: tuple[str, ...] = ()) -> Path:
        """Store a finished run and drop the pieces of the unfinished ones that led to it."""
        path = self.folder / "runs" / f"{key}.json"
        write_atomic(path, dumps(document))
        for name in pending:
            shutil.rmtree(self.folder / self.pieces / name, ignore_errors=True)
        return path
