"""The pages of the atlas: pure functions of plain values, one template each, on one style sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnomon.report import svg, words
from gnomon.report.html import templates

MEANINGS: Mapping[str | None, str] = {
    "holds": "Measured and predicted are equivalent: the 90 % interval of their gap lies inside the tolerance.",
    "fails": "They differ: the interval of the gap lies outside the tolerance. A published result that fails under its own assumptions is a finding; one that fails outside them shows where it ends.",
    "inconclusive": "The interval crosses the edge of the tolerance; the page says about how many replicates would decide it.",
    "vacuous": "The tolerance is so wide, or the bound so weak, that nothing which could be measured would contradict it.",
    "out_of_scope": "An assumption of the theory was checked and is not met.",
    "error": "The run did not come to its end; the page says why.",
    None: "No verdict is stored; the page gives the command that makes one.",
}
"""What a verdict says, for whoever meets it first; None is a claim that has not been run."""

RELATIONS: Mapping[str, str] = {
    "equal": "measured and predicted are equal within the tolerance",
    "at_most": "what is measured is at most what is predicted",
    "at_least": "what is measured is at least what is predicted",
    "exponent": "the slope of what is measured, on logarithmic axes, is the predicted one within the tolerance",
    "order": "what is measured is in the order that is predicted",
    "monotone": "what is measured moves one way all along",
}
"""A claim's relation in words."""


def name_of(verdict: str | None) -> str:
    """A claim's verdict in words."""
    return "not run yet" if verdict is None else words.VERDICTS.get(verdict, str(verdict))


def page(template: str, *, address: str, **view: Any) -> str:
    """One page from `templates/atlas/<template>.html`.  `address` is its place in the site, from which links to the others are relative."""
    return templates().get_template(f"atlas/{template}.html").render(root="../" * address.count("/"), **view)


def style_sheet() -> str:
    """The style that every page links: that of the report, of its pictures, and what the atlas adds."""
    folder = Path(__file__).parent / "templates"
    return "\n".join(((folder / "report.css").read_text(encoding="utf-8"), svg.STYLE, (folder / "atlas" / "atlas.css").read_text(encoding="utf-8")))
