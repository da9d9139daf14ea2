"""Plug-ins in temporary folders, joined by an entry point as `pip install` would."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def install(folder: Path, package: str, files: dict[str, str], *, name: str | None = None) -> dict[str, str]:
    """Write a package and its entry point in a folder; returns the environment in which gnomon finds it."""
    for path, text in {"__init__.py": "", **files}.items():
        place = folder / package / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        for parent in place.relative_to(folder).parents:
            if str(parent) != ".":
                (folder / parent / "__init__.py").touch()
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gnomon.plugins]\n{name or package} = {package}\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1", "GNOMON_CACHE": str(folder / "cache"), "COLUMNS": "120"}


def worked_example() -> dict[str, str]:
    """The files of the package that CONTRIBUTING.md writes."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n[#%] my_theory/(\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {path: body.lstrip("\n") for path, body in blocks}
