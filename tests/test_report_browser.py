"""The page in a real browser: nothing loaded, no error, no overflow on a telephone, light and dark."""

import numpy as np
import pytest
import report_document
from report_document import row

from gnomon.core.reading import Axis, Reading
from gnomon.report.html import render


def crowded():
    """The fixture with everything that may be long made long."""
    document = report_document.document()
    long = "encoder.layers.17.self_attention.output_projection.parametrizations.weight.original0"
    document["subject"]["name"] = "MyVeryLongNetworkClassNameWithoutAnySpaceInIt" * 2
    document["again"] += f" --weights /a/rather/long/path/{long}.safetensors"
    document["rows"][0]["title"] = long
    document["rows"][0]["words"] = long
    document["rows"][1]["because"] = long * 2
    document["skipped"].append({"what": long, "chapter": "landscape", "why": long})
    document["advice"].append(long)
    document["plan"]["entries"][0]["instrument"] = long.replace(".", "_")
    names = tuple(f"{long}.{k}" for k in range(12))
    reading = Reading("v", np.linspace(-3e-7, 4e7, 12), "a rather long unit / parameter²", error=1e5, error_kind="sample", axes=(Axis("a rather long name of an axis", names),))
    document["rows"].append(row("landscape", "Long names", None, reading, headline=True))
    return document


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [report_document.document, crowded], ids=["report", "crowded"])
def test_the_page_in_a_browser(browser, tmp_path, make, scheme):
    path = tmp_path / "report.html"
    path.write_text(render(make()), encoding="utf-8")
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, java_script_enabled=True)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()]
    assert said == []
    page.evaluate("document.querySelectorAll('details').forEach(entry => { entry.open = true })")
    for width in (390, 320, 700, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        over = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll,svg,.away') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert over == []
        shown = page.evaluate(
            "[...document.querySelectorAll('svg.gf')].filter(e => e.getBoundingClientRect().width > 0).map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width)"
        )
        assert len(shown) >= 12
        assert width < 390 or min(shown) > 0.9
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in paper.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness < 150) if scheme == "dark" else (brightness > 700)
    context.close()


def test_the_page_needs_no_script(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(report_document.document()), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.inner_text("h1") == "CNN"
    page.click("summary >> nth=0")
    assert page.is_visible("details[open] >> nth=0")
    page.click("a.cite >> nth=0")
    assert page.url.endswith("#source-cohen2021")
    context.close()


def test_mathematics_is_laid_out(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(report_document.document()), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.locator("math").count() >= 10
    box = page.locator("math mfrac").first.bounding_box()
    assert box["height"] > 15
    page.close()
