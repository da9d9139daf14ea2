"""A Report: the document of an examination, with its readings at hand."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.core.errors import unknown
from gnomon.core.reading import Reading
from gnomon.report.html import render
from gnomon.report.text import summary
from gnomon.run.store import dumps, write_all


class Chapter:
    """The readings of one chapter as attributes: `report["landscape"].sharpness`."""

    def __init__(self, name: str, readings: Mapping[str, Reading]) -> None:
        self._name, self._readings = name, dict(readings)

    def __getattr__(self, name: str) -> Reading:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._readings:
            raise AttributeError(str(unknown(f"reading of chapter {self._name}", name, self._readings)))
        return self._readings[name]

    def __dir__(self) -> list[str]:
        return sorted(self._readings)

    def __repr__(self) -> str:
        return f"{self._name}: " + ", ".join(f"{name} = {reading}" for name, reading in self._readings.items())


class Report:
    """What `examine` returns: shown inline in a notebook, saved as one HTML page and one JSON."""

    def __init__(self, document: dict[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]], readings: Mapping[str, Reading]) -> None:
        self.document, self.arrays, self.readings = document, dict(arrays), dict(readings)

    def __getitem__(self, chapter: str) -> Chapter:
        names = [row["chapter"] for row in self.document["rows"]]
        if chapter not in names:
            raise unknown("chapter", chapter, set(names))
        found: dict[str, Reading] = {}
        for row in self.document["rows"]:
            if row["chapter"] == chapter and row["measured"] is not None:
                reading = self.readings.get(row["measured"]["name"]) or Reading.from_json(row["measured"])
                found[reading.name] = reading
        return Chapter(chapter, found)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the report, as in its JSON."""
        return list(self.document["rows"])

    def html(self) -> str:
        """The self-contained page."""
        return render(self.document)

    def _repr_html_(self) -> str:
        import html

        return f'<iframe srcdoc="{html.escape(self.html(), quote=True)}" style="width:100%;height:48rem;border:0" title="gnomon report"></iframe>'

    def __str__(self) -> str:
        return summary(self.document)

    def save(self, html: str | Path, json: str | Path | None = None) -> list[tuple[Path, int]]:
        """Write the page and the JSON beside it (and, where arrays are large, an .npz); all replace the old ones, or none does.

        Returns the files with their sizes in bytes.   Raises: CannotWrite for a place that cannot be written; the old files stay.
        """
        page = Path(html)
        data = Path(json) if json is not None else page.with_suffix(".json")
        contents: list[tuple[Path, bytes]] = [(page, self.html().encode()), (data, dumps(self.document).encode())]
        if self.arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self.arrays)
            contents.append((data.with_suffix(".npz"), buffer.getvalue()))
        write_all(dict(contents))
        return [(path, len(content)) for path, content in contents]
