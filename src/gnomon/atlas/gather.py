"""Brings together what the atlas shows: the reading list, the claims of the catalogue, and the verdicts that are stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gnomon.atlas.entries import ReadingList, reading_list
from gnomon.core.catalogue import Listed, catalogue
from gnomon.core.claim import SCALES, Claim
from gnomon.core.errors import unknown
from gnomon.core.source import bibliography
from gnomon.run.verdicts import stored_claims

Document = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A claim with its best verdict, if there is one, and those at other scales."""

    listed: Listed
    claim: Claim
    verdict: Document | None
    others: tuple[Document, ...]

    @property
    def outcome(self) -> str | None:
        """The verdict's outcome, or None."""
        return None if self.verdict is None else str(self.verdict["verdict"])


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Everything that the pages are made of; `retired` are verdicts on claims that the catalogue no longer holds."""

    reading: ReadingList
    claims: tuple[Shown, ...]
    retired: tuple[Document, ...]


def gather(folders: Iterable[Path]) -> Gathered:
    """Read the catalogue, and the verdicts in folders of results and stores.

    Raises: InvalidInput for a claim that does not import or names an entry or a source that there is not, and for a verdict that cannot be read or was
    written by a newer gnomon: an atlas that left it out would call the claim not run.
    """
    reading = reading_list()
    verdicts: dict[str, list[Document]] = {}
    for folder in folders:
        for document in stored_claims(folder):
            verdicts.setdefault(document["claim"], []).append(document)
    shown = []
    for name, listed in catalogue().items():
        claim = listed.load()
        if claim.entry not in reading.entries:
            raise unknown(f"entry of the reading list in the claim {name} ({listed.path}):", claim.entry, reading.entries)
        if claim.source.key not in bibliography():
            raise unknown(f"source in the claim {name} ({listed.path}):", claim.source.key, bibliography())
        best = by_scale(verdicts.pop(name, ()))
        shown.append(Shown(listed, claim, best[0] if best else None, tuple(best[1:])))
    return Gathered(reading, tuple(shown), tuple(by_scale(found)[0] for _, found in sorted(verdicts.items())))


def by_scale(documents: Iterable[Document]) -> list[Document]:
    """The best verdict of each scale, the largest scale first; of two at one scale that of the code as it is, then the newer."""

    def worth(document: Document) -> tuple[bool, str]:
        return not document["stale"], str(document["run"]["predicted_at"] or "")

    best: dict[str, Document] = {}
    for document in documents:
        known = best.get(document["scale"])
        if known is None or worth(document) > worth(known):
            best[document["scale"]] = document
    return sorted(best.values(), key=lambda document: -SCALES.index(document["scale"]) if document["scale"] in SCALES else 1)
