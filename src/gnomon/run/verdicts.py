"""Verdicts as documents `gnomon/run/1`: how they are written, with large arrays beside, and read again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.core.catalogue import Listed, catalogue
from gnomon.core.claim import SCALES
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import jsonable
from gnomon.core.registry import TOPICS
from gnomon.run.store import dumps, read_json, write_all

SCHEMA = "gnomon/run/1"
MOST_NUMBERS = 1000
"""More numbers than this stand in an `.npz` beside the document."""


def store_path(folder: Path, claim: str, scale: str) -> Path:
    """Where a store keeps the last verdict on a claim at a scale: `claims/<topic>/<slug>.<scale>.json`."""
    return Path(folder) / "claims" / f"{claim}.{scale}.json"


def results_path(folder: Path, claim: str) -> Path:
    """Where a folder of results keeps the verdict on a claim: `<topic>/<slug>.json`."""
    return Path(folder) / f"{claim}.json"


def write_verdict(path: Path, document: Mapping[str, Any]) -> list[Path]:
    """Write a document, and what is larger than MOST_NUMBERS in an `.npz` of its name; both replace the old ones, or none does.

    Raises: CannotWrite for a place that cannot be written.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    beside = path.with_name(f"{path.stem}.npz")
    contents: dict[Path, str | bytes] = {path: dumps(_moved(dict(document), "", beside.name, arrays))}
    if arrays:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        contents[beside] = buffer.getvalue()
    write_all(contents)
    if not arrays:
        beside.unlink(missing_ok=True)
    return list(contents)


def read_verdict(path: Path) -> dict[str, Any]:
    """A document with its arrays.

    Raises: InvalidInput for a missing or broken file, another kind of document, one written by a newer gnomon, or one whose `.npz` is gone.
    """
    document = read_json(path, schema=SCHEMA)
    loaded: dict[str, Any] = {}
    return _filled(document, path.parent, loaded)


def stored_claims(folder: Path) -> list[dict[str, Any]]:
    """Every verdict of a store or of a folder of results, the newest a claim and scale, by claim and then by scale.

    Each document has one key more, `stale`: whether the claim's file has changed since, or None where there is no such claim any more.
    `<folder>/claims/<topic>/<slug>.<scale>.json` is the layout of a store, `<folder>/<topic>/<slug>.json` that of a folder of results; both are read.
    Raises: InvalidInput for a file that cannot be read, or that was written by a newer gnomon.
    """
    folder = Path(folder)
    known = catalogue()
    found = [read_verdict(path) for pattern in ("claims/*/*.json", *(f"{topic}/*.json" for topic in TOPICS)) for path in sorted(folder.glob(pattern))]
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for document in found:
        key = (document["claim"], SCALES.index(document["scale"]) if document["scale"] in SCALES else len(SCALES))
        if key not in newest or (document["run"]["predicted_at"] or "") >= (newest[key]["run"]["predicted_at"] or ""):
            newest[key] = document | {"stale": is_stale(document, known.get(document["claim"]))}
    return [newest[key] for key in sorted(newest)]


def is_stale(document: Mapping[str, Any], listed: Listed | None) -> bool | None:
    """Whether a verdict was made by another text of the claim's file; None where there is no such claim."""
    return None if listed is None else document["code"] != listed.code_hash


def _moved(part: Any, name: str, file: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The document with every list of more than MOST_NUMBERS numbers replaced by where it stands."""
    if isinstance(part, dict):
        return {key: _moved(entry, f"{name}/{key}" if name else key, file, arrays) for key, entry in part.items()}
    if not isinstance(part, list) or not part:
        return part
    try:
        array = np.asarray(part, dtype=np.float64)
    except (TypeError, ValueError):
        return [_moved(entry, f"{name}/{index}", file, arrays) for index, entry in enumerate(part)]
    if array.size <= MOST_NUMBERS:
        return part
    arrays[name] = array
    return {"file": file, "key": name, "shape": list(array.shape)}


def _filled(part: Any, folder: Path, loaded: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_filled(entry, folder, loaded) for entry in part]
    if not isinstance(part, dict):
        return part
    if part.keys() != {"file", "key", "shape"}:
        return {key: _filled(entry, folder, loaded) for key, entry in part.items()}
    path = folder / Path(part["file"]).name
    try:
        if path.name not in loaded:
            with np.load(path, allow_pickle=False) as arrays:
                loaded[path.name] = dict(arrays)
        return jsonable(loaded[path.name][part["key"]])
    except (OSError, KeyError, ValueError) as error:
        raise InvalidInput(f"The array {part['key']} of a verdict cannot be read from {path}: {error}. Run the claim again.") from error
