"""The catalogue of claims: every file `claims/<topic>/<slug>.py` of gnomon and its plug-ins; listing reads the files and imports none."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
from pathlib import Path

from gnomon.core.claim import Claim
from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.plugins import folders, roots
from gnomon.core.registry import TOPICS


@dataclasses.dataclass(frozen=True)
class Listed:
    """A claim as its file stands: `id` is `<topic>/<slug>` with hyphens, the statement the file's docstring."""

    id: str
    module: str
    path: Path

    @property
    def topic(self) -> str:
        """The folder that the file stands in."""
        return self.id.partition("/")[0]

    @property
    def code(self) -> str:
        """The text of the file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def code_hash(self) -> str:
        """SHA-256 of the file, 16 hexadecimal digits."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    @property
    def statement(self) -> str:
        """The docstring of the file.  Raises: InvalidInput for a file without one, or that is not Python."""
        try:
            said = ast.get_docstring(ast.parse(self.code))
        except SyntaxError as error:
            raise InvalidInput(f"{self.path} is not Python: {error}") from error
        if not said:
            raise InvalidInput(f"{self.path} has no docstring: a claim's statement is the first thing in its file.")
        return said

    @property
    def summary(self) -> str:
        """The first paragraph of the statement, in one line; of a file that cannot be read, why."""
        try:
            return " ".join(self.statement.partition("\n\n")[0].split())
        except InvalidInput as error:
            return str(error)

    @property
    def entry(self) -> str | None:
        """The entry of the reading list as the file spells it out, without importing it; None where it does not."""
        try:
            calls = [node for node in ast.walk(ast.parse(self.code)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Claim"]
        except SyntaxError:
            return None
        given = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "entry"]
        return next((value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)), None)

    def load(self) -> Claim:
        """The Claim itself.  Raises: InvalidInput where the file does not import or holds no `CLAIM`."""
        try:
            claim = getattr(importlib.import_module(self.module), "CLAIM", None)
        except Exception as error:
            raise InvalidInput(f"The claim {self.id} does not import: {type(error).__name__}: {error} ({self.path}).") from error
        if not isinstance(claim, Claim):
            raise InvalidInput(f"{self.path} holds no claim: it must end with CLAIM = Claim(...).")
        return claim


def catalogue() -> dict[str, Listed]:
    """Every claim by id, sorted.  Raises: InvalidInput for a folder that is no topic, two claims of one id, or a plug-in that is not there."""
    found: dict[str, Listed] = {}
    for root in roots():
        for folder in folders(root):
            for path in sorted(folder.glob("claims/*/*.py")):
                if path.name.startswith("_"):
                    continue
                if path.parent.name not in TOPICS:
                    raise unknown("topic", path.parent.name, TOPICS)
                listed = Listed(f"{path.parent.name}/{path.stem.replace('_', '-')}", f"{root}.claims.{path.parent.name}.{path.stem}", path)
                if listed.id in found:
                    raise InvalidInput(f"Two claims are called {listed.id}: {found[listed.id].path} and {path}. Rename one.")
                found[listed.id] = listed
    return dict(sorted(found.items()))


def get_claim(name: str) -> Listed:
    """One claim.  Raises: InvalidInput for an unknown id, with the nearest one."""
    known = catalogue()
    if name not in known:
        raise unknown("claim", name, known)
    return known[name]
