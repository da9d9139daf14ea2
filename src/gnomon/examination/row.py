"""A Row of the report: a prediction beside a measurement, in the chapter's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gnomon.core.judge import Outcome, Relation, Verdict, judge
from gnomon.core.reading import Reading

Words = str | Callable[[Verdict], str | None]


@dataclasses.dataclass(frozen=True)
class Row:
    """What a chapter yields; the verdict is made by `judge` when the row is settled.

    `words` says a verdict in the chapter's language: a string, or a function of the Verdict; `advice` likewise, in one sentence with numbers.
    `out_of_scope` is the reason why the theory has nothing to say here.  `headline` puts the row on the summary.
    """

    title: str
    predicted: Reading | None = None
    measured: Reading | None = None
    relation: Relation = "equal"
    tolerance: Any = None
    scale: float | None = None
    trivial: float | None = None
    because: str = ""
    words: Words = ""
    advice: Words | None = None
    headline: bool = False
    out_of_scope: str | None = None

    def settle(self) -> tuple[Verdict | None, str, str | None]:
        """The verdict (None without a prediction), its words, and the advice, which never rests on a vacuous row."""
        if self.out_of_scope is not None:
            verdict: Verdict | None = Verdict("out_of_scope", self.out_of_scope, self.relation)
        elif self.predicted is None or self.measured is None:
            verdict = None
        else:
            verdict = judge(self.predicted, self.measured, relation=self.relation, tolerance=self.tolerance, scale=self.scale, trivial=self.trivial)
        words, advice = (_said(text, verdict) for text in (self.words, self.advice))
        outcome: Outcome | None = verdict.outcome if verdict else None
        return verdict, words or "", advice if outcome not in ("vacuous", "error") else None


def _said(text: Words | None, verdict: Verdict | None) -> str | None:
    said = text if not callable(text) else text(verdict) if verdict is not None else None
    return said or None
