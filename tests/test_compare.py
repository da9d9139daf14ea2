"""Two reports side by side: differences are judged by their errors, rows are matched, and what is no report is refused."""

import copy
import json

import numpy as np
import pytest
import report_document
from scipy import stats
from typer.testing import CliRunner

from gnomon.cli.main import application
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Axis, Reading
from gnomon.examination.compare import compare, difference
from gnomon.report.compare import page, table


def of_samples(samples, **fields):
    return Reading.of_samples("x", samples, unit="", error_kind="seed", **fields)


def row_of(comparison, title):
    return next(row for row in comparison["rows"] if row["title"] == title)


def test_the_interval_is_welchs():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 1, 9), rng.normal(0.5, 3, 5)
    found = difference(of_samples(one), of_samples(two))
    low, high = stats.ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found["interval"], [low, high], rtol=1e-9)
    assert found["difference"] == pytest.approx(two.mean() - one.mean())


def test_equal_things_are_called_moved_once_in_twenty_times():
    rng = np.random.default_rng(1)
    moved = sum(difference(of_samples(rng.normal(0, 1, 6)), of_samples(rng.normal(0, 4, 9)))["state"] == "moved" for _ in range(2000))
    assert stats.binomtest(moved, 2000, 0.05).pvalue > 1e-3
    draws = [difference(of_samples(rng.normal(0, 1, (6, 20))), of_samples(rng.normal(0, 1, (6, 20))))["state"] for _ in range(1000)]
    assert draws.count("moved") <= stats.binom.ppf(0.999, 1000, 0.05)


def test_lopsided_intervals_are_put_together():
    one = Reading("x", 0.1, "", error=0.05, error_kind="sample", interval=(0.05, 0.25))
    two = Reading("x", 0.2, "", error=0.05, error_kind="sample", interval=(0.12, 0.4))
    found = difference(one, two)
    np.testing.assert_allclose(found["interval"], [0.1 - np.hypot(0.08, 0.15), 0.1 + np.hypot(0.2, 0.05)])
    assert found["state"] == "same"
    open_end = Reading("x", 5.0, "", error=1.0, error_kind="sample", interval=(4.0, np.inf))
    assert difference(one, open_end)["interval"][1] is None
    assert difference(one, open_end)["state"] == "moved"
    assert difference(open_end, one)["interval"][0] is None
    assert difference(open_end, one)["state"] == "moved"


def test_bounds_are_added_and_elements_are_named():
    one, two = (Reading("x", value, "", error=0.1, error_kind="bound") for value in (1.0, 1.3))
    assert difference(one, two)["interval"] == pytest.approx([0.1, 0.5])
    assert difference(one, two)["state"] == "moved"
    assert difference(one, one.replace(value=1.19))["state"] == "same"
    axes = (Axis("layer", ("a", "b", "c")),)
    one, two = (Reading("x", value, "", error=0.1, error_kind="bound", axes=axes) for value in ([1.0, 2.0, 3.0], [1.0, 2.5, 3.1]))
    found = difference(one, two)
    assert found["moved_elements"] == [1]
    assert found["elements"] == 3
    exact = Reading("x", 3.0, "")
    assert difference(exact, exact)["state"] == "same"
    assert difference(exact, exact.replace(value=3.5))["interval"] == [0.5, 0.5]


def test_what_cannot_be_subtracted_says_why():
    one = Reading("x", [1.0, 2.0], "m", axes=(Axis("layer", ("a", "b")),))
    for other, why in [
        (one.replace(unit="s"), "units"), (Reading("x", 1.0, "m"), "shapes"), (one.replace(axes=(Axis("layer", ("a", "c")),)), "other places along layer"), (None, "first alone"),
        (one.replace(value=[np.inf, 1.0]), "not finite"),
    ]:  # fmt: skip
        found = difference(one, other)
        assert found["state"] == "not_comparable"
        assert why in found["why"]


@pytest.fixture
def reports():
    one, two = report_document.document(), report_document.document()
    del two["rows"][1]
    two["rows"].append(copy.deepcopy(two["rows"][-1]) | {"title": "A new row <b>"})
    sharpness = two["rows"][0]
    sharpness["measured"] |= {"value": 27.3, "interval": [25.9, 28.7]}
    sharpness["verdict"] = "fails"
    two["subject"] = two["subject"] | {"fingerprint": "other", "training": two["subject"]["training"] | {"lr": 0.2}}
    return one, two


def test_rows_are_matched_and_the_rest_is_named(reports):
    found = compare(*reports)
    sharpness = row_of(found, "Sharpness (largest Hessian eigenvalue)")
    assert sharpness["change"] == "moved"
    assert sharpness["verdict_changed"]
    assert sharpness["measured"]["difference"] == pytest.approx(10.0)
    assert row_of(found, "Outlier eigenvalues")["change"] == "first_only"
    assert row_of(found, "A new row <b>")["change"] == "second_only"
    assert found["tally"]["first_only"] == found["tally"]["second_only"] == 1
    assert sum(found["tally"].values()) == len(reports[0]["rows"]) + 1
    assert found["verdicts_changed"] == 1
    assert "lr: 0.1 and 0.2" in found["notes"]
    mirrored = compare(*reversed(reports))
    assert row_of(mirrored, "Sharpness (largest Hessian eigenvalue)")["measured"]["interval"] == pytest.approx([-end for end in reversed(sharpness["measured"]["interval"])])
    same = compare(reports[0], reports[0])
    assert same["tally"]["same"] == len(reports[0]["rows"])
    assert "same weights" in same["notes"][0]


def test_text_and_page_say_what_changed(reports):
    found = compare(*reports, names=("a.json", "b.json"))
    text, html = table(found), page(found)
    assert "holds → fails" in text
    assert "moved: +10" in text
    assert "In the first alone: Outlier eigenvalues." in text
    assert len(table(found, whole=True).splitlines()) > len(text.splitlines())
    assert "holds → fails" in html
    assert "A new row &lt;b&gt;" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_the_command_line(reports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, document in zip(("a.json", "b.json"), reports, strict=True):
        (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "newer.json").write_text(json.dumps(reports[0] | {"schema": "gnomon/report/2"}))
    (tmp_path / "broken.json").write_text(json.dumps({"schema": "gnomon/report/1", "rows": []}))
    (tmp_path / "history.json").write_text(json.dumps({"schema": "gnomon/history/1"}))

    def run(*words):
        return CliRunner().invoke(application(), ["compare", *words])

    done = run("a.json", "b.json", "--json", "--out", "c.html")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(json.dumps(compare(*reports, names=("a.json", "b.json"))))
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    for words, message in [
        (("a.json", "newer.json"), "newer gnomon"), (("a.json", "history.json"), "not a gnomon/report"), (("a.json", "none.json"), "no file"), (("broken.json", "a.json"), "not whole"),
        (("a.json", "b.json", "--out", "."), "names the page"),
    ]:  # fmt: skip
        done = run(*words)
        assert done.exit_code == 2
        assert message in done.stderr
    with pytest.raises(InvalidInput, match="not a report"):
        compare(reports[0], {"schema": "gnomon/history/1"})
