"""The runner of claims, the documents that it makes, and every claim of the catalogue at `smoke`."""

import json
import shutil
from importlib import resources
from pathlib import Path

import claim_plugin
import jsonschema
import numpy as np
import pytest
from claim_plugin import claim

from gnomon.core.catalogue import catalogue, get_claim
from gnomon.core.errors import InvalidInput
from gnomon.core.judge import judge
from gnomon.core.source import Source
from gnomon.run.claims import _shared, facts_of, run_claims
from gnomon.run.store import dumps
from gnomon.run.verdicts import read_verdict, results_path, store_path, stored_claims, write_verdict

CHECK = jsonschema.Draft202012Validator(json.loads(resources.files("gnomon.run").joinpath("schema/run.json").read_text(encoding="utf-8")))
OWN = {name: listed for name, listed in catalogue().items() if listed.module.startswith("gnomon.")}
MOST_MOVED = 10
ROOT = Path(__file__).parent.parent


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Make a plug-in of claims by slug, all of the topic mathematics."""
    counts = tmp_path / "counts"
    counts.touch()
    monkeypatch.setenv("CLAIM_COUNTS", str(counts))

    def made(**claims):
        root = tmp_path / "plugins"
        name = claim_plugin.make(root, {f"mathematics/{slug}": text for slug, text in claims.items()})
        monkeypatch.syspath_prepend(root)
        made.root, made.folder, made.counts = root, root / name, counts
        return made

    return made


def documents(*slugs, store, **options):
    found = list(run_claims([get_claim(f"mathematics/{slug}") for slug in slugs], store=store, **options))
    for document in found:
        CHECK.validate(json.loads(dumps(document)))
    return found


def same(document):
    return dumps({key: value for key, value in document.items() if key != "run"})


@pytest.mark.parametrize("name", OWN)
def test_every_claim_reaches_its_verdict_at_smoke_and_its_sabotage_does_not(name, tmp_path):
    listed = OWN[name]
    (document,) = run_claims([listed], store=tmp_path)
    CHECK.validate(json.loads(dumps(document)))
    assert document["as_expected"], (document["verdict"], document["why"], document["sabotage"])
    moved = document["sabotage"]["moved_tolerances"]
    assert moved is None or moved <= MOST_MOVED, "so gross a sabotage shows little"
    assert listed.code.count("\n") <= 60, "a claim's file has 60 lines at most"
    assert listed.entry == document["entry"], "the entry is spelt out in the file"
    assert Source(**document["source"]).bibtex
    assert set(facts_of(listed)["scales"]) == {"smoke", "standard", "paper"}
    assert document["claim"] in {kept["claim"] for kept in stored_claims(tmp_path)}


def test_no_prediction_is_vacuous_at_the_scale_of_the_atlas():
    """As far as it can be made without preparing anything: measured as predicted, a claim that should hold does."""
    plain = [claim for listed in OWN.values() if (claim := listed.load()).prepare is None and claim.expected == "holds" and claim.relation in ("equal", "at_most", "at_least")]
    assert plain
    for made in plain:
        settings = made.scales["standard"]
        predicted = made.predict(settings)
        tolerance = None if made.tolerance is None else made.tolerance.of(settings)
        verdict = judge(predicted, predicted.replace(error=0.0, error_kind="exact"), relation=made.relation, tolerance=tolerance, scale=made.scale, trivial=made.trivial)
        assert set(verdict.elements or (verdict.outcome,)) == {"holds"}, (made.entry, verdict.why)


def test_the_committed_verdicts_can_be_read_and_are_as_expected():
    """They are made by `gnomon claims run --all --scale standard --results results`."""
    for document in stored_claims(ROOT / "results"):
        CHECK.validate({key: value for key, value in document.items() if key != "stale"})
        assert (document["scale"], document["as_expected"], document["run"]["host"]) == ("standard", True, ""), document["claim"]
        assert document["stale"] is not None, f"{document['claim']} is no claim any more: delete its file"


def test_few_claims_are_left_undecided():
    expected = [listed.load().expected for listed in OWN.values()]
    assert expected.count("inconclusive") <= len(expected) / 10


def test_a_document_says_what_was_predicted_measured_and_judged(plugin, tmp_path):
    plugin(one=claim())
    (document,) = documents("one", store=tmp_path)
    assert (document["claim"], document["topic"], document["entry"], document["version"]) == ("mathematics/one", "mathematics", "B1", 1)
    assert (document["statement"], document["explanation"], document["formula"]) == ("The number one is one, $x = 1$.", "Why it is so.", "x = 1")
    assert document["source"] == {"key": "schuirmann1987", "where": "section 2"}
    assert document["settings"] == {"replicates": 4, "shift": 0.0}
    assert (document["verdict"], document["as_expected"]) == ("holds", True)
    assert document["predicted"]["value"] == 1.0
    measured = document["measured"]
    assert (measured["name"], measured["unit"], measured["n"], measured["error_kind"]) == ("x", "m", 4, "seed")
    assert measured["value"] == pytest.approx(np.mean(measured["samples"]), abs=1e-15)
    assert document["gap"] == pytest.approx(measured["value"] - 1)
    assert document["sabotage"]["verdict"] == "fails"
    assert document["sabotage"]["changes"] == {"shift": 0.5}
    assert document["sabotage"]["moved_tolerances"] == pytest.approx(5.0), "the sabotage draws the same numbers"
    assert document["tolerance_because"] == "a tenth: as good as any"
    assert document["run"]["predicted_at"] < document["run"]["measured_at"]
    assert document["environment"]["threads"] == 1


def test_the_prediction_is_stored_before_a_measurement_starts(plugin, tmp_path):
    body = f"""
def measure(s, *, rng):
    return float(len(list(Path({str(tmp_path / "kept")!r}).rglob("predicted.json")))) + s.shift
"""
    plugin(two=claim("two", body), one=claim("one", body))
    first, second = documents("one", "two", store=tmp_path / "kept")
    assert first["measured"]["samples"] == [1.0] * 4
    assert second["measured"]["samples"] == [2.0] * 4


def test_what_is_stored_is_not_measured_again_and_old_code_is(plugin, tmp_path):
    made = plugin(one=claim())
    (first,) = documents("one", store=tmp_path)
    assert made.counts.read_text().split() == ["predict"] + ["measure"] * 8
    (again,) = documents("one", store=tmp_path)
    assert len(made.counts.read_text().split()) == 9
    assert same(again) == same(first)
    assert again["run"]["predicted_at"] == first["run"]["predicted_at"]
    assert [kept["stale"] for kept in stored_claims(tmp_path)] == [False]
    path = made.folder / "claims/mathematics/one.py"
    path.write_text(path.read_text() + "# another text\n")
    assert [kept["stale"] for kept in stored_claims(tmp_path)] == [True], "a verdict made by older code is shown as such"
    documents("one", store=tmp_path)
    assert len(made.counts.read_text().split()) == 18
    path.unlink()
    assert [kept["stale"] for kept in stored_claims(tmp_path)] == [None]


def test_seeds_differ_and_one_seed_gives_the_same_bytes(plugin, tmp_path):
    plugin(one=claim())
    made = {seed: documents("one", store=tmp_path / str(seed), seed=seed)[0] for seed in (0, 1)}
    (again,) = documents("one", store=tmp_path / "again", seed=0)
    assert same(again) == same(made[0])
    assert made[1]["measured"]["samples"] != made[0]["measured"]["samples"]


def test_two_claims_about_one_experiment_run_it_once(plugin, tmp_path):
    made = plugin(one=claim())
    text = claim("two", f"from {made.folder.name}.claims.mathematics.one import Settings, measure")
    (made.folder / "claims/mathematics/two.py").write_text(text)
    first, second = documents("one", "two", store=tmp_path)
    assert made.counts.read_text().split().count("measure") == 8
    assert first["measured"] == second["measured"]


def test_what_is_prepared_is_built_once_and_shared(plugin, tmp_path):
    body = """
def prepare(s, *, rng):
    count("prepare")
    return 10 + float(torch.randn((), generator=rng)) + float(torch.randn(()))

def predict(s, shared):
    return Reading.predicted("x", shared, unit="")

def measure(s, shared, *, rng):
    return shared + s.shift + 0.001 * float(torch.randn((), generator=rng))
"""
    made = plugin(one=claim("one", body, "prepare=prepare, scale=1.0, tolerance=Tolerance(lambda s: 0.1, '')"))
    (document,) = documents("one", store=tmp_path)
    assert document["as_expected"], document["why"]
    assert made.counts.read_text().split() == ["prepare"]
    told = []
    shutil.rmtree(tmp_path / "claims")
    _shared.cache_clear()
    for path in tmp_path.rglob("predicted.json"):
        path.unlink()
    (again,) = documents("one", store=tmp_path, progress=lambda part, text: told.append(part))
    assert same(again) == same(document), "another process prepares the same"
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_gaps_are_paired_by_replicate(plugin, tmp_path):
    """The replicates spread by 10, their distances from their predictions by nothing."""
    body = """
def prepare(s, *, rng):
    return 10 * torch.randn(s.replicates, generator=rng).double() + 30

def predict(s, shared):
    return Reading.of_samples("x", shared, unit="").replace(role="predicted")

def measure(s, shared, *, rng, index):
    return float(shared[index]) + s.shift
"""
    plugin(one=claim("one", body, "prepare=prepare"))
    (document,) = documents("one", store=tmp_path)
    assert document["as_expected"], document["why"]
    assert document["measured"]["error"] > 1
    assert document["interval"] == pytest.approx([0, 0], abs=1e-9)


def test_a_deterministic_claim_is_judged_by_its_bound(plugin, tmp_path):
    body = """
@dataclass(frozen=True)
class Settings:
    shift: float = 0.0

def measure(s, *, rng):
    return Reading("x", 1.0 + s.shift, "m", error=0.03, error_kind="bound")
"""
    plugin(one=claim("one", body), two=claim("two", body, "tolerance=Tolerance(lambda s: 0.02, '')"))
    first, second = documents("one", "two", store=tmp_path)
    assert (first["verdict"], first["interval"], first["measured"]["error_kind"]) == ("holds", [pytest.approx(-0.03), pytest.approx(0.03)], "bound")
    assert (second["verdict"], second["as_expected"]) == ("inconclusive", False)


def test_bounds_of_replicates_are_carried(plugin, tmp_path):
    body = """
def measure(s, *, rng):
    return Reading("x", 1.0 + s.shift, "m", error=0.03, error_kind="bound", skipped=("a layer",))
"""
    plugin(one=claim("one", body))
    (document,) = documents("one", store=tmp_path)
    assert document["interval"] == [pytest.approx(-0.03), pytest.approx(0.03)]
    assert (document["measured"]["details"]["bound"], document["measured"]["skipped"]) == (pytest.approx(0.03), ["a layer"])


RAISES = """
def measure(s, *, rng):
    raise ZeroDivisionError("oops")
"""
OUT = """
def predict(s):
    raise OutOfScope("the width is finite")
"""
OUT_MEASURED = """
def measure(s, *, rng):
    if s.shift:
        return 1.0
    raise OutOfScope("the loss is not convex")
"""
FAR = """
def measure(s, *, rng):
    return (1.0 if s.shift else 3.0) + 0.01 * float(torch.randn((), generator=rng))
"""
NOISY = """
def measure(s, *, rng, index):
    return 1.0 + s.shift + (-1) ** index
"""
NAN = """
def measure(s, *, rng):
    return float("nan")
"""
SHAPES = """
def measure(s, *, rng, index):
    return [1.0] * (1 + index % 2)
"""


@pytest.mark.parametrize(
    ("body", "options", "verdict", "sabotage", "as_expected", "why"),
    [
        (RAISES, "", "error", "error", False, "ZeroDivisionError: oops"),
        (OUT, "", "out_of_scope", None, False, "the width is finite"),
        (OUT, "expected='out_of_scope', because='always'", "out_of_scope", None, True, "the width is finite"),
        (OUT_MEASURED, "expected='out_of_scope', because='always'", "out_of_scope", "holds", True, "not convex"),
        (FAR, "", "fails", "holds", False, "outside"),
        (FAR, "expected='fails', because='measured so'", "fails", "holds", True, "outside"),
        ("", "expected='fails', because='thought so'", "holds", "fails", False, "inside"),
        ("", "sabotage=Sabotage('of no effect', shift=0.0)", "holds", "holds", False, "inside"),
        ("", "sabotage=Sabotage('of no such setting', shfit=0.0)", "error", None, False, "shfit"),
        ("", "tolerance=Tolerance(lambda s: 0.5, '')", "vacuous", "vacuous", False, "half of what is predicted"),
        (NOISY, "", "inconclusive", "inconclusive", False, "replicates would decide it"),
        (NOISY, "smoke='inconclusive'", "inconclusive", "inconclusive", True, "replicates would decide it"),
        ("", "smoke='inconclusive', sabotage=Sabotage('of no effect', shift=0.0)", "holds", "holds", False, "inside"),
        (NAN, "", "error", "error", False, "NaN"),
        (SHAPES, "", "error", "error", False, "measure must return one shape"),
        ("measure = lambda s, *, rng: 1.0", "", "error", None, False, "functions with a name"),
        ("raise KeyError('at import')", "", "error", None, False, "does not import"),
    ],
)  # fmt: skip
def test_verdicts(plugin, tmp_path, body, options, verdict, sabotage, as_expected, why):
    made = plugin(bad=claim("bad", body, options), good=claim("good"))
    bad, good = documents("bad", "good", store=tmp_path)
    assert (bad["verdict"], (bad["sabotage"] or {}).get("verdict"), bad["as_expected"]) == (verdict, sabotage, as_expected), bad["why"]
    assert why in bad["why"]
    assert good["as_expected"], "the others go on"
    if verdict == "error" and body in (RAISES, NAN):
        assert not list((tmp_path / "replicates").rglob("0.json")) or made.counts.read_text().count("measure") == 8, "what raised is tried again next time"


def test_large_arrays_stand_beside_and_are_read_back(plugin, tmp_path):
    body = """
def predict(s):
    return Reading.predicted("x", torch.linspace(1, 2, 2000), unit="")

def measure(s, *, rng):
    return torch.linspace(1, 2, 2000).double() + s.shift + 0.01 * torch.randn(2000, generator=rng).double()
"""
    plugin(one=claim("one", body, "tolerance=Tolerance(lambda s: 0.2, '')"))
    (document,) = documents("one", store=tmp_path)
    path = store_path(tmp_path, "mathematics/one", "smoke")
    text = path.read_text()
    assert len(text) < 120_000
    assert json.loads(text)["measured"]["samples"] == {"file": "one.smoke.npz", "key": "measured/samples", "shape": [4, 2000]}
    CHECK.validate(json.loads(text))
    assert read_verdict(path) == json.loads(dumps(document))
    path.with_suffix(".npz").unlink()
    with pytest.raises(InvalidInput, match="Run the claim again"):
        read_verdict(path)


def test_stores_and_folders_of_results_are_read(plugin, tmp_path):
    plugin(one=claim(), two=claim("two", options="scales={'smoke': Settings(), 'standard': Settings(8)}"))
    documents("one", "two", store=tmp_path)
    (standard,) = documents("two", store=tmp_path, scale="standard")
    found = stored_claims(tmp_path)
    assert [(kept["claim"], kept["scale"]) for kept in found] == [("mathematics/one", "smoke"), ("mathematics/two", "smoke"), ("mathematics/two", "standard")]
    write_verdict(results_path(tmp_path / "results", "mathematics/two"), standard)
    assert (tmp_path / "results/mathematics/two.json").is_file()
    (kept,) = stored_claims(tmp_path / "results")
    assert same(kept) == same(json.loads(dumps(standard | {"stale": False})))
    path = results_path(tmp_path / "results", "mathematics/two")
    path.write_text(path.read_text().replace("gnomon/run/1", "gnomon/run/2"))
    with pytest.raises(InvalidInput, match=r"newer gnomon \(gnomon/run/2\)"):
        stored_claims(tmp_path / "results")
    path.write_text(path.read_text()[:100])
    with pytest.raises(InvalidInput, match="cannot be read as JSON"):
        stored_claims(tmp_path / "results")
    assert stored_claims(tmp_path / "nowhere") == []


def test_scales_that_are_not_there(plugin, tmp_path):
    plugin(one=claim())
    with pytest.raises(InvalidInput, match="has no settings for the scale 'paper'; it has smoke"):
        documents("one", store=tmp_path, scale="paper")
    with pytest.raises(InvalidInput, match="Did you mean 'smoke'"):
        documents("one", store=tmp_path, scale="smok")


def test_two_plug_ins_with_a_claim_of_one_name(plugin):
    plugin(one=claim())
    plugin(one=claim())
    with pytest.raises(InvalidInput, match="Two claims are called mathematics/one"):
        catalogue()


def test_a_file_that_does_not_import_or_parse_is_listed_with_its_fault(plugin):
    made = plugin(raises=claim("raises", "raise KeyError('no')"), broken='"""Half a file"""\ndef f(:\n', silent="CLAIM = None\n")
    known = catalogue()
    assert "is not Python" in known["mathematics/broken"].summary
    assert "no docstring" in known["mathematics/silent"].summary
    assert facts_of(known["mathematics/raises"])["entry"] == "B1"
    for slug, says in (("raises", "KeyError"), ("broken", "does not import"), ("silent", "holds no claim")):
        facts = facts_of(known[f"mathematics/{slug}"])
        assert says in facts["error"]
        assert facts["scales"] == {}
    assert Path(made.folder).is_dir()
