"""Text with `$...$` as HTML: formulas become MathML, everything else is escaped."""

from __future__ import annotations

import html
import re
from xml.etree.ElementTree import Element

from markupsafe import Markup

from gnomon.report import words

_TAGS = frozenset({
    "math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mfrac", "msqrt",
    "mroot", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose", "mmultiscripts", "mprescripts", "none", "mfenced",
})  # fmt: skip
_ATTRIBUTES = frozenset({
    "display", "mathvariant", "stretchy", "fence", "separator", "form", "lspace", "rspace", "accent", "accentunder", "linethickness",
    "displaystyle", "scriptlevel", "columnalign", "width", "height", "depth", "minsize", "maxsize", "movablelimits", "notation", "open", "close",
    "largeop", "symmetric",
})  # fmt: skip


def with_maths(text: str) -> Markup:
    """Escaped text whose `$...$` are MathML; a formula that cannot be read stays as it was written."""
    parts = re.split(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$", str(text))
    out = [formula(part) if i % 2 else Markup.escape(words.clean(part.replace("\\$", "$"))) for i, part in enumerate(parts)]
    return Markup("").join(out)


def paragraphs(text: str) -> list[Markup]:
    """A docstring's paragraphs with their formulas; one that is a single formula stands as a block of its own."""
    found = [" ".join(part.replace("$$", "$").split()) for part in re.split(r"\n\s*\n", text.strip())]
    alone = [re.fullmatch(r"\$((?:[^$\\]|\\.)+)\$[.,]?", part) for part in found]
    return [formula(match.group(1), "block") if match else with_maths(part) for part, match in zip(found, alone, strict=True)]


def formula(latex: str, display: str = "inline") -> Markup:
    """LaTeX as MathML with the tags and attributes of mathematics alone, in the line or as a `block`; what cannot be read stays as LaTeX."""
    from latex2mathml.converter import convert_to_element

    try:
        tree = convert_to_element(words.clean(latex))
        body = "".join(_serialise(child) for child in tree)
    except Exception:  # latex2mathml raises many kinds of error, some of them its own and some not
        return Markup('<code class="tex">{}</code>').format(words.clean(latex))
    return Markup('<math xmlns="http://www.w3.org/1998/Math/MathML" display="{}" alttext="{}">{}</math>').format(display, words.clean(latex), Markup(body))


def _serialise(element: Element) -> str:
    """The element as markup; its text holds entities of latex2mathml, so it is unescaped once and escaped again."""
    tag = str(element.tag)
    inner = _text(element.text) + "".join(_serialise(child) + _text(child.tail) for child in element)
    if tag not in _TAGS:
        return inner
    if tag == "mo" and len(element.text or "") > 1 and (element.text or "").isalpha():
        return f'<mi mathvariant="normal">{inner}</mi>'
    attributes = "".join(f' {key}="{html.escape(str(value))}"' for key, value in element.attrib.items() if key in _ATTRIBUTES)
    return f"<{tag}{attributes}>{inner}</{tag}>"


def _text(text: str | None) -> str:
    return html.escape(words.clean(html.unescape(text))) if text else ""
