"""gnomon: deep-learning theory that you can run on your own network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnomon.core.judge import judge
    from gnomon.core.reading import Reading
    from gnomon.core.source import Source, cite
    from gnomon.core.subject import Subject
    from gnomon.examination.report import Report
    from gnomon.examination.run import examine
    from gnomon.studies.critical import tune

    __version__: str

__all__ = ["Reading", "Report", "Source", "Subject", "__version__", "cite", "examine", "judge", "tune"]

_PLACES = {
    "Reading": "core.reading", "Report": "examination.report", "Source": "core.source", "Subject": "core.subject",
    "cite": "core.source", "examine": "examination.run", "judge": "core.judge", "tune": "studies.critical",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: `import gnomon` alone stays light."""
    if name == "__version__":
        from gnomon.core.environment import version

        return version()
    if name not in _PLACES:
        raise AttributeError(f"module 'gnomon' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gnomon.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
