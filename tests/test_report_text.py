import io

import pytest
import report_document

from gnomon.report.text import summary, to_ascii


class Stream(io.StringIO):
    def __init__(self, encoding="utf-8", terminal=False):
        super().__init__()
        self._encoding, self._terminal = encoding, terminal

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return self._terminal


PATHS = [("report.html", 217_000), ("report.json", 80_000)]


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_it_fits_the_width_and_one_screen(width):
    text = summary(report_document.document(), width, PATHS, stream=Stream())
    assert max(len(line) for line in text.splitlines()) <= width
    assert width < 100 or len(text.splitlines()) <= 40
    assert text.endswith("report.html (212 KiB) · report.json (78 KiB)\n" if width > 44 else "report.html (212 KiB)\nreport.json (78 KiB)\n")
    assert "\x1b" not in text


def test_it_says_what_the_page_says():
    text = flat(summary(report_document.document(), 140, PATHS, stream=Stream()))
    assert text.startswith("CNN · 1,199,882 parameters · Fashion-MNIST, examined on 1,024 of 60,000 · 4 min 4 s")
    for said in (
        "≤ 20", "17.30 ± 0.70", "below the edge of stability", "> 300 examples", "0.506 to 2.23", "conv3 is not as declared (fails)", "(vacuous)", "What to do 1. Sharpness is 17.3",
        "Skipped: layer norm2",
    ):  # fmt: skip
        assert said in text, said
    assert "Hessian trace" not in text


def test_rows_without_a_headline_stand_in_where_there_is_none():
    document = report_document.chapters_only("dynamics")
    for row in document["rows"]:
        row["headline"] = False
    assert "critical batch size" in flat(summary(document, 140, stream=Stream())).lower()


def test_ascii_where_the_stream_is_not_utf8():
    text = summary(report_document.document(), 100, PATHS, stream=Stream("ascii"))
    assert text.isascii()
    assert "17.30 +/- 0.70" in text
    assert "<= 20" in text
    assert "?" not in text
    assert to_ascii("χ → λ·é 漢") == "chi -> lambda|e ?"


def test_style_only_in_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    styled = summary(report_document.document(), 100, stream=Stream(terminal=True))
    assert "\x1b[1m" in styled
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in summary(report_document.document(), 100, stream=Stream(terminal=True))


def test_names_cannot_reach_the_terminal():
    document = report_document.document()
    document["subject"]["name"] = "net\x1b[2J\x07[bold]x[/bold]"
    document["rows"][0]["words"] = "fine\x1b]0;title\x07"
    document["skipped"][0]["what"] = "a\nb"
    text = summary(document, 100, stream=Stream())
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x[/bold]" in text


def test_many_skipped_things_are_counted():
    document = report_document.document()
    document["skipped"] = [{"what": f"part {k}", "chapter": "landscape", "why": "no"} for k in range(12)]
    text = flat(summary(document, 100, stream=Stream()))
    assert "part 2 (no); and 9 more" in text
    assert "part 3" not in text


def test_nothing_is_said_of_what_is_not_there():
    document = report_document.document()
    document |= {"advice": [], "skipped": []}
    text = summary(document, 100, stream=Stream())
    assert "What to do" not in text
    assert "Skipped" not in text
