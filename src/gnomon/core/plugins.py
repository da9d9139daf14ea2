"""Plug-ins: packages laid out like gnomon that join through the entry point group `gnomon.plugins`."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from gnomon.core.errors import InvalidInput

GROUP = "gnomon.plugins"
"""Each entry names a package that holds some of gnomon's rooms: `instruments/`, `examination/`, `claims/`, and `sources.bib`."""


def roots() -> tuple[str, ...]:
    """The packages whose rooms are walked: gnomon and every installed plug-in, by name.  Raises: InvalidInput for two plug-ins of one name."""
    found: dict[str, str] = {}
    for entry in metadata.entry_points(group=GROUP):
        package = entry.value.partition(":")[0].strip()
        if found.setdefault(entry.name, package) != package:
            raise InvalidInput(
                f"Two plug-ins are called {entry.name!r}: the packages {found[entry.name]!r} and {package!r}. Uninstall one, or rename its entry point in {GROUP!r}."
            )
    return ("gnomon", *sorted(set(found.values())))


def folders(root: str) -> list[Path]:
    """Where a package's files are; nothing is imported.  Raises: InvalidInput where it is not there."""
    spec = importlib.util.find_spec(root)
    if spec is None:
        raise InvalidInput(f"The plug-in {root!r} does not import: no package of this name is found. Uninstall it, or mend its entry point in {GROUP!r}.")
    return [Path(place) for place in spec.submodule_search_locations or ()]
