"""The reading list: what stands in `entries.toml`, read and checked."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from importlib import resources
from typing import Any

from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.registry import TOPICS


@dataclasses.dataclass(frozen=True)
class Paper:
    """What to read, and where it is: at most one of an arXiv number, a DOI and an address."""

    cite: str
    arxiv: str = ""
    doi: str = ""
    url: str = ""

    @property
    def address(self) -> str:
        """Where the paper is, or the empty string."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else f"https://doi.org/{self.doi}" if self.doi else self.url


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the reading list: `id` is a section's letter and a number, `asks` says what can be checked of it; a `map` covers a field, as a survey does."""

    id: str
    title: str
    authors: str
    year: str
    papers: tuple[Paper, ...]
    topics: tuple[str, ...]
    asks: str
    map: bool = False

    @property
    def section(self) -> str:
        """The letter of the section."""
        return self.id[0]


@dataclasses.dataclass(frozen=True)
class ReadingList:
    """Sections by letter, and entries by id, both in order."""

    sections: dict[str, str]
    entries: dict[str, Entry]


@functools.cache
def reading_list() -> ReadingList:
    """The reading list that gnomon carries."""
    return parse(resources.files("gnomon.atlas").joinpath("entries.toml").read_text(encoding="utf-8"))


def parse(text: str) -> ReadingList:
    """A reading list from TOML.  Raises: InvalidInput for what is missing, named twice or unknown, with the entry's id."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"The reading list is not TOML: {error}.") from error
    sections = {str(letter): str(title) for letter, title in data.get("sections", {}).items()}
    entries: dict[str, Entry] = {}
    for fields in data.get("entry", ()):
        entry = _entry(fields)
        if entry.section not in sections:
            raise unknown(f"section of entry {entry.id}:", entry.section, sections)
        if entry.id in entries:
            raise InvalidInput(f"The reading list has two entries {entry.id}; give one of them another number.")
        entries[entry.id] = entry
    return ReadingList(sections, entries)


def _entry(fields: dict[str, Any]) -> Entry:
    name = fields.get("id") or f"titled {fields.get('title')!r}"
    try:
        papers = tuple(Paper(**paper) for paper in fields["papers"])
        entry = Entry(**{**fields, "papers": papers, "topics": tuple(fields["topics"]), "asks": " ".join(fields["asks"].split())})
    except (KeyError, TypeError) as error:
        wanted = ", ".join(field.name for field in dataclasses.fields(Entry))
        raise InvalidInput(f"Entry {name} of the reading list cannot be read ({error}); an entry has {wanted}.") from error
    for topic in entry.topics:
        if topic not in TOPICS:
            raise unknown(f"topic of entry {entry.id}:", topic, TOPICS)
    return entry
