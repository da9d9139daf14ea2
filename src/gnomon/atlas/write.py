"""Puts an atlas in its folder: all pages or none, and nothing there that is not its own is touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from gnomon.atlas.gather import gather
from gnomon.atlas.site import MANIFEST, SCHEMA, manifest, pages
from gnomon.core.errors import InvalidInput
from gnomon.run.store import dumps, read_json, write_all


def build_atlas(out: Path, folders: Iterable[Path]) -> dict[str, Any]:
    """Make the site of the reading list, the catalogue's claims and the verdicts stored in `folders`; returns its manifest, a document `gnomon/atlas/1`.

    The pages of an older atlas in the same folder are replaced once all new ones are written, and those that are no longer made are removed; other files stay.
    Cost: some 20 ms a claim.
    Raises: InvalidInput for a folder that holds something else, or a claim or verdict that cannot be read; CannotWrite where nothing can be written.
    """
    out = Path(out)
    old = owned(out)
    gathered = gather(folders)
    made = pages(gathered)
    said = manifest(gathered, made)
    write_all({out / address: content for address, content in made.items()} | {out / MANIFEST: dumps(said)})
    for address in old - set(said["files"]):
        with contextlib.suppress(OSError):
            (out / address).unlink()
            (out / address).parent.rmdir()
    return said


def owned(out: Path) -> set[str]:
    """The files of the atlas that stands in a folder, none where it is empty or not there.  Raises: InvalidInput for a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"{out} is a file; the atlas is a folder: give another place with --out.")
    if not (out / MANIFEST).is_file():
        if out.is_dir() and any(out.iterdir()):
            raise InvalidInput(f"{out} is not empty and holds no atlas, so nothing was written. Choose an empty or a new folder with --out.")
        return set()
    try:
        files = read_json(out / MANIFEST, schema=SCHEMA)["files"]
    except InvalidInput as error:
        raise InvalidInput(f"{out} holds no atlas that can be replaced: {error} Choose an empty or a new folder with --out.") from error
    return {str(name) for name in files if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts}
