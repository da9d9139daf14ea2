"""Sources: papers as BibTeX in `sources.bib`, and where in the paper a formula stands."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from gnomon.core.errors import unknown
from gnomon.core.plugins import folders, roots


@dataclasses.dataclass(frozen=True)
class Source:
    """A place in the literature: the key of an entry of `sources.bib` and where in it (equation, theorem, table)."""

    key: str
    where: str = ""

    def at(self, where: str) -> Source:
        """The same paper at another place."""
        return dataclasses.replace(self, where=where)

    @property
    def bibtex(self) -> str:
        """The BibTeX entry.  Raises: InvalidInput where the key is not in `sources.bib`."""
        known = bibliography()
        if self.key not in known:
            raise unknown("source", self.key, known)
        return known[self.key]

    def field(self, name: str) -> str:
        """A field of the BibTeX entry, braces removed, or the empty string."""
        match = re.search(rf"^\s*{name}\s*=\s*[{{\"](.*?)[}}\"],?\s*$", self.bibtex, re.MULTILINE | re.IGNORECASE)
        return re.sub(r"[{}]", "", match.group(1)) if match else ""

    def __str__(self) -> str:
        authors = self.field("author").split(" and ")
        names = [author.split(",")[0].strip() if "," in author else author.split()[-1] for author in authors if author.strip()]
        who = " & ".join(names) if len(names) <= 2 else f"{names[0]} et al."
        return f"{who} {self.field('year')}" + (f", {self.where}" if self.where else "")

    @property
    def url(self) -> str:
        """Where the paper is: its DOI or arXiv page, or the empty string."""
        if doi := self.field("doi"):
            return f"https://doi.org/{doi}"
        if eprint := self.field("eprint"):
            return f"https://arxiv.org/abs/{eprint}"
        return self.field("url")


@functools.cache
def bibliography() -> dict[str, str]:
    """Every entry of `core/sources.bib` and of the `sources.bib` that plug-ins bring, by key; gnomon's own come first where keys meet."""
    own = resources.files("gnomon.core").joinpath("sources.bib").read_text(encoding="utf-8")
    others = [place / "sources.bib" for root in roots() if root != "gnomon" for place in folders(root)]
    return {key: entry for text in [*(path.read_text(encoding="utf-8") for path in others if path.is_file()), own] for key, entry in _entries(text).items()}


def _entries(text: str) -> dict[str, str]:
    return {match.group(1): match.group(0).strip() for match in re.finditer(r"^@\w+\{([^,\s]+),.*?^\}", text, re.MULTILINE | re.DOTALL)}


def cite(thing: Any) -> str:
    """BibTeX of everything that a Source, a Reading, or a report (or its JSON) rests on, each entry once, sorted by key."""
    return "\n\n".join(Source(key).bibtex for key in sorted(set(_keys(thing))))


def _keys(thing: Any) -> Iterator[str]:
    if isinstance(thing, Source):
        yield thing.key
    elif isinstance(thing, Mapping):
        yield from thing.get("sources", ())
    elif isinstance(getattr(thing, "document", None), Mapping):
        yield from _keys(thing.document)
    elif isinstance(getattr(thing, "source", None), Source):
        yield thing.source.key
