import json
from importlib import resources

import jsonschema
import pytest
import report_document

SCHEMA = json.loads(resources.files("gnomon.run").joinpath("schema/report.json").read_text(encoding="utf-8"))
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def plain(document):
    return json.loads(json.dumps(document, allow_nan=False))


def test_the_schema_is_itself_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


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
