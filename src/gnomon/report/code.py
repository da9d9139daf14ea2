"""Python as HTML whose words carry classes, coloured by the page's style and by no script."""

from __future__ import annotations

import html
import itertools

from markupsafe import Markup

from gnomon.report import words


def highlight(text: str) -> Markup:
    """The text with keywords `k`, strings `s`, comments `c`, numbers `n` and defined names `d` in spans."""
    from pygments.lexers import PythonLexer
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    classes = ((Keyword, "k"), (Operator.Word, "k"), (String, "s"), (Comment, "c"), (Number, "n"), (Name.Function, "d"), (Name.Class, "d"), (Name.Decorator, "d"))

    def css(kind: object) -> str:
        return next((name for family, name in classes if kind in family), "")

    out = []
    for name, group in itertools.groupby(PythonLexer().get_tokens(words.clean(text, "\n")), key=lambda token: css(token[0])):
        inner = html.escape("".join(part for _, part in group), quote=False)
        out.append(f'<span class="{name}">{inner}</span>' if name else inner)
    return Markup("".join(out))
