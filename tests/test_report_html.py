import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_document
from report_document import row

import gnomon.report
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.report.html import LIMIT, reading_html, render
from gnomon.report.maths import with_maths

VOID = {"meta", "link", "br", "circle", "rect", "path", "polygon"}


class Page(HTMLParser):
    """Every element of a page, and whether its tags are balanced."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.open, self.wrong = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def text():
    return render(report_document.document())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_is_whole_and_balanced(text, page):
    assert text.lstrip().startswith("<!doctype html>")
    assert page.wrong == []
    assert page.open == []


def test_nothing_is_loaded_and_nothing_runs(text, page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert [a["href"] for tag, a in page.elements if tag == "link"] == ["data:,"]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "@import" not in text
    assert not re.search(r"url\(", text)
    assert page.attributes("src") == []


def test_links_inside_the_page_lead_somewhere(page):
    identifiers = page.attributes("id")
    assert len(identifiers) == len(set(identifiers))
    inside = [target[1:] for target in page.attributes("href") if target.startswith("#")]
    assert len(inside) > 40
    assert set(inside) <= set(identifiers)
    outside = [target for target in page.attributes("href") if not target.startswith(("#", "data:,"))]
    assert all(target.startswith("https://") for target in outside)


def test_every_picture_says_what_it_shows(text):
    pictures = re.findall(r'<svg class="gf".*?</svg>', text, re.DOTALL)
    assert len(pictures) > 15
    for picture in pictures:
        assert 'role="img"' in picture
        title, about = re.search(r"<title>(.+?)</title><desc>(.+?)</desc>", picture, re.DOTALL).groups()
        assert len(title) > 4
        assert re.search(r"\d", about)


def test_every_row_shows_its_numbers_errors_and_verdict(page):
    for said in (
        "≤ 20",
        "17.30 ± 0.70",
        "> 300 examples",
        "0.0830 ± 0.0030",
        "0.340 ± 0.020",
        "700 ± 150 examples",
        "[−0.0517, −0.0457]",
        "out of scope",
        "vacuous",
        "inconclusive",
        "measured",
    ):
        assert said in page.words.replace("\u00a0", " "), said
    for made in report_document.document()["rows"]:
        assert made["title"][1:] in page.words
        for part in ("because", "words"):
            assert made[part].replace(" %", "\u00a0%") in page.words


def test_every_reading_with_a_source_is_one_click_from_it(text):
    for made in report_document.document()["rows"]:
        anchor = re.search(
            rf'<tr class="has-note" id="([^"]+)"><td class="quantity">{re.escape(made["title"][:1].upper() + made["title"][1:]).replace("&", "&amp;")}.*?</tr>', text, re.DOTALL
        )
        for side in ("predicted", "measured"):
            if made[side] and made[side].get("source"):
                assert f'href="#source-{made[side]["source"]["key"]}"' in anchor.group(0)


def test_failing_elements_are_named_outside_the_folded_table(text):
    seen = re.sub(r"<details>.*?</details>", "", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL), flags=re.DOTALL)
    for name in ("conv3", "encoder.layers.31.self_attention.output_projection", "conv2 to relu2"):
        assert name in seen
    assert "encoder.layers.30.self_attention.output_projection" not in seen
    assert "encoder.layers.30.self_attention.output_projection" in text


def test_the_document_is_left_alone_and_gives_the_same_bytes(text):
    document = report_document.document()
    before = copy.deepcopy(document)
    assert render(document) == text
    assert document == before
    assert render(json.loads(json.dumps(document))) == text


def test_size(text):
    assert len(text.encode()) < 250_000


def test_no_number_is_silly(page):
    assert not re.search(r"\d\.\d{9,}", page.words)
    assert not re.search(r"(?<![\d.\w])[-−]0(\.0*)?(?![\d.])", page.words)
    assert "nan" not in page.words.lower().split()
    assert not re.search(r"\de[-+]\d", page.words)


ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\u202e"


def poisoned(value):
    if isinstance(value, dict):
        return {key: entry if key in KEPT else poisoned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(entry) for entry in value]
    return value + ATTACK if isinstance(value, str) else value


KEPT = {"schema", "verdict", "relation", "error_kind", "role", "scale", "at", "elements", "url"}


def test_nothing_that_a_user_names_becomes_markup():
    document = poisoned(report_document.document())
    document["chapters"][0]["theory"] = f"before $x{ATTACK}$ and $\\text{{{ATTACK}}}$ after {ATTACK}"
    page = Page(render(document))
    assert "alert(1)" in page.words
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.wrong == []
    assert "\x1b" not in page.words
    assert "\u202e" not in page.words


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "//evil.example", "JAVASCRIPT:alert(1)", " javascript:x", "file:///etc/passwd"])
def test_only_web_addresses_become_links(url):
    document = report_document.document()
    document["sources"]["cohen2021"]["url"] = url
    assert not any(target.strip().lower().startswith(("javascript", "data:text", "//", "file")) for target in Page(render(document)).attributes("href"))


def test_a_huge_report_stays_within_600_kib():
    document = report_document.document()
    names = tuple(f"block.{i}.a_rather_long_name_of_a_layer.weight" for i in range(400))
    rng = np.random.default_rng(0)
    for k in range(30):
        axes = (Axis("layer", names),)
        predicted = Reading.predicted("v", np.ones(400), unit="", error=0.1, error_kind="truncation", axes=axes)
        measured = Reading.of_samples("v", 1 + 0.01 * rng.standard_normal((10, 400)), unit="", error_kind="seed", axes=axes)
        document["rows"].append(row("effective", f"variance {k}", predicted, measured))
        plane = Reading("m", rng.standard_normal((60, 60)), "", axes=(Axis("row", tuple(range(60))), Axis("column", tuple(range(60)))))
        document["rows"].append(row("representation", f"matrix {k}", None, plane))
    text = render(document)
    assert len(text.encode()) <= LIMIT
    assert Page(text).wrong == []
    assert "report.json" in text


def test_empty_and_odd_documents():
    document = report_document.document()
    document |= {"rows": [], "chapters": [], "advice": [], "skipped": [], "sources": {}}
    document["plan"]["entries"], document["subject"]["layers"], document["subject"]["test"] = [], [], None
    document["subject"]["data"] = document["subject"]["classes"] = None
    document["subject"]["training"] = {"optimizer": None, "lr": None, "momentum": 0.0, "batch_size": None}
    assert "No chapter had anything to compare" in Page(render(document)).words
    odd = report_document.chapters_only("landscape")
    odd["chapters"] = []
    odd["rows"][3]["measured"] |= {"value": {"file": "report.npz", "key": "x", "shape": [181]}, "error": None}
    del odd["again"]
    page = Page(render(odd))
    assert "stored beside the report" in page.words
    assert page.wrong == []


def test_another_schema_is_refused():
    with pytest.raises(InvalidInput, match=r"gnomon/run/1.*report\.json"):
        render({"schema": "gnomon/run/1"})


def test_a_run_error_row_and_an_infinite_prediction_are_shown():
    document = report_document.document()
    depth = Reading.predicted("depth_scale", float("inf"), unit="layers")
    document["rows"].append(row("effective", "Depth scale", depth, Reading("depth_scale", 12.0, "layers", error=1.0, error_kind="sample", n=9), tolerance=1.0))
    assert document["rows"][-1]["verdict"] == "error"
    page = Page(render(document))
    assert "∞ layers" in page.words
    assert "the prediction is not finite" in page.words


def test_formulas_become_mathml_and_bad_ones_stay_readable():
    made = str(with_maths(r"the limit $\lambda_{\max} \le \frac{2}{\eta}$ & $5 of \$6"))
    assert "<mfrac>" in made
    assert "&amp; $5 of $6" in made
    assert "λ" in made
    assert "\\frac{" in str(with_maths(r"see $\frac{1}{$ here"))
    assert "<script" not in str(with_maths(r"$\text{<script>x</script>} \href{javascript:x}{y} < 3$"))


def test_colours_have_enough_contrast():
    css = (Path(gnomon.report.__file__).parent / "templates" / "report.css").read_text()
    light, dark = re.findall(r"--paper:(#\w+);--ink:(#\w+);--muted:(#\w+);--rule:#\w+;--accent:(#\w+);--tint:(#\w+)", css)[:2]
    for paper, *inks, tint in (light, dark):
        for ink in inks:
            for ground in (paper, tint):
                assert contrast(ink, ground) >= 4.5, (ink, ground)


def contrast(one, other):
    def luminance(colour):
        full = "".join(c * 2 for c in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = [int(full[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_reading_shows_itself_in_a_notebook():
    reading = Reading.of_samples("trace <b>", np.array([1.0, 1.1, 0.9, 1.2]), unit="loss", error_kind="probe", source=Source("nobody0000", "eq. (1)"), skipped=("norm2",))
    made = reading._repr_html_()
    assert made == reading_html(reading)
    page = Page(made)
    assert page.wrong == []
    assert "1.050 ± 0.065 loss" in page.words
    assert "trace <b>" in page.words
    assert "norm2" in page.words
    assert "nobody0000 eq. (1)" in page.words
    assert "<svg" in Reading("spectrum", np.arange(5.0), "", axes=(Axis("k", tuple(range(5))),))._repr_html_()
    assert "no values" in Reading("none", np.zeros(0), "")._repr_html_()
