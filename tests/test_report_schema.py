"""Documents fit their JSON Schema, and what is broken does not."""

import json
from importlib import resources

import jsonschema
import pytest
import report_document

from gnomon.cli.schema import KINDS
from gnomon.examination.compare import compare

SCHEMAS = {kind: json.loads(resources.files("gnomon.run").joinpath(f"schema/{kind}.json").read_text(encoding="utf-8")) for kind in KINDS}
CHECK, COMPARED = (jsonschema.Draft202012Validator(SCHEMAS[kind]) for kind in ("report", "compare"))


def plain(document):
    return json.loads(json.dumps(document, allow_nan=False))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_itself_valid(kind):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])
    assert SCHEMAS[kind]["$id"] == SCHEMAS[kind]["properties"]["schema"]["const"] == f"gnomon/{kind}/1"


def test_every_schema_can_be_printed():
    assert {path.name for path in resources.files("gnomon.run").joinpath("schema").iterdir()} == {f"{kind}.json" for kind in KINDS}


def test_a_whole_report_fits():
    assert [error.message for error in CHECK.iter_errors(plain(report_document.document()))] == []


def test_the_fixture_holds_every_verdict_and_an_open_interval():
    rows = report_document.document()["rows"]
    assert {row["verdict"] for row in rows} == {"holds", "fails", "inconclusive", "vacuous", "out_of_scope", None}
    assert any(row["measured"]["interval"][1] is None for row in rows)


def without(*path):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def put(value, *path):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("rows"), without("subject", "fingerprint"), without("rows", 0, "verdict"), without("rows", 0, "measured", "error_kind"), without("run", "started"),
        put("gnomon/report/2", "schema"), put("agrees", "rows", 0, "verdict"), put("near", "rows", 0, "relation"), put("17.3", "rows", 0, "measured", "value"),
        put("nice", "rows", 0, "colour"), put(-1, "subject", "parameters"), put([["fails"]], "rows", 0, "elements"), put([1.0], "rows", 0, "measured", "interval"),
        put([1.0, "a"], "rows", 3, "measured", "axes", 0, "values"), put("middle", "plan", "entries", 0, "at"), put({"text": "x"}, "sources", "cohen2021"),
        put({"file": "a.npz"}, "rows", 3, "measured", "value"), put(None, "rows", 0, "why"), put("yes", "rows", 0, "headline"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change):
    document = plain(report_document.document())
    change(document)
    assert not CHECK.is_valid(document)


def test_arrays_may_stand_beside_the_report():
    document = plain(report_document.document())
    put({"file": "report.npz", "key": "rows/3/value", "shape": [181]}, "rows", 3, "measured", "value")(document)
    assert CHECK.is_valid(document)


def comparison():
    """Two reports that differ in a number, an array, a row on each side, and in what can be compared."""
    one, two = report_document.document(), report_document.document()
    del two["rows"][1]
    two["rows"].append({**two["rows"][-1], "title": "another row"})
    two["rows"][0]["measured"] |= {"value": 27.3, "interval": [25.9, None]}
    beside = {"file": "report.npz", "key": "rows/3/value", "shape": [181]}
    array = next(row for row in two["rows"] if isinstance(row["measured"]["value"], list))
    array["measured"] |= {"value": beside, "interval": [beside, beside]}
    return plain(compare(one, two))


def test_a_whole_comparison_fits():
    found = comparison()
    assert [error.message for error in COMPARED.iter_errors(found)] == []
    assert all(found["tally"].values()), "each kind of change is there"
    assert any("moved_elements" in (row["measured"] or {}) for row in found["rows"])


@pytest.mark.parametrize(
    "change",
    [
        without("rows"), without("first", "fingerprint"), without("rows", 0, "verdict_changed"), without("tally", "moved"), put("gnomon/compare/2", "schema"), put(95, "level"),
        put("gone", "rows", 0, "change"), put("agrees", "rows", 0, "first", "verdict"), put([1.0], "rows", 0, "measured", "interval"), put("10", "rows", 0, "measured", "difference"),
        put({"state": "not_comparable"}, "rows", 0, "measured"), put({"state": "moved", "why": "units"}, "rows", 0, "measured"), put([0], "rows", 0, "measured", "moved_elements"),
        put([1.0], "rows", 0, "first", "measured", "samples"), put(-1, "verdicts_changed"),
    ],
)  # fmt: skip
def test_a_broken_comparison_is_refused(change):
    document = comparison()
    change(document)
    assert not COMPARED.is_valid(document)
