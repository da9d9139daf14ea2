"""`gnomon claims`: list, show and run, through the command line, with claims of a plug-in and of gnomon."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import claim_plugin
import pytest
from claim_plugin import claim
from test_claims import FAR, NOISY, RAISES
from typer.testing import CliRunner

import gnomon
from gnomon.cli.main import application

SLOW = """
def measure(s, *, rng):
    time.sleep(0.1)
    return 1.0 + s.shift + 0.01 * float(torch.randn(400, generator=rng).mean())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with a plug-in of claims of every outcome."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNOMON_CACHE", str(tmp_path / "cache"))
    claims = {
        "mathematics/one": claim("one"),
        "mathematics/far": claim("far", FAR),
        "mathematics/known-far": claim("known-far", FAR, "expected='fails', because='the width is 3'"),
        "mathematics/noisy": claim("noisy", NOISY),
        "physics/raises": claim("raises", RAISES, entry="Z2"),
        "physics/broken": claim("broken", "raise KeyError('at import')"),
        "physics/slow": claim("slow", SLOW, "scales={'smoke': Settings(10), 'paper': Settings(100)}"),
    }
    claim_plugin.make(tmp_path / "plugins", claims)
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(application(), ["claims", *map(str, words)])


def test_list_imports_no_claim_and_says_id_and_statement(place):
    result = invoke("list", "mathematics/*")
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert lines[0] == ["mathematics/far", "The number far is one, $x = 1$."]
    assert [name for name, _ in lines] == ["mathematics/far", "mathematics/known-far", "mathematics/noisy", "mathematics/one"]
    assert invoke("list", "--topic", "physics").stdout.split()[0] == "physics/broken"
    assert invoke("list", "--entry", "Z2").stdout.split()[0] == "physics/raises"
    assert not [name for name in sys.modules if name.partition(".")[0] in os.listdir(place / "plugins") and "." in name]
    assert "effective/relu-four-point-growth" in invoke("list").stdout


def test_list_as_json(place):
    found = {entry["id"]: entry for entry in json.loads(invoke("list", "--json").stdout)}
    entry = found["mathematics/known-far"]
    assert {"id", "topic", "entry", "statement", "source", "expected", "sabotage", "smoke"} <= entry.keys()
    assert (entry["expected"], entry["because"], entry["sabotage"]["changes"]) == ("fails", "the width is 3", {"shift": 0.5})
    assert "KeyError" in found["physics/broken"]["error"]
    assert found["effective/relu-four-point-growth"]["entry"] == "B1"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["mathematics/one", "mathematics/known-far"], 0),
        (["mathematics/*"], 1),
        (["mathematics/one", "mathematics/noisy"], 3),
        (["mathematics/one", "physics/raises", "mathematics/far"], 4),
        (["mathematics/one", "physics/broken"], 4),
    ],
)
def test_exit_codes_and_the_others_go_on(place, words, code):
    result = invoke("run", *words, "--json")
    assert result.exit_code == code, result.output
    verdicts = {document["claim"]: document["as_expected"] for document in json.loads(result.stdout)}
    assert verdicts["mathematics/one"]
    assert all(verdicts.values()) == (code == 0)


def test_a_verdict_in_a_line_and_what_is_kept(place):
    result = invoke("run", "mathematics/one", "--results", "results")
    assert result.exit_code == 0, result.output
    line = result.stdout
    assert re.match(r"predicted 1.00 m   measured (0.999|1.000)", line), line
    assert " m (4 replicates)   tolerance 0.100 (a tenth)   holds   " in line
    assert json.loads(Path("results/mathematics/one.json").read_text())["verdict"] == "holds"
    result = invoke("run", "mathematics/far", "mathematics/known-far", "physics/raises")
    assert re.search(r"mathematics/far\n  predicted 1.00 m   measured (2.9|3.0)", result.stdout)
    assert "\n    expected holds: the interval of the gap" in result.stdout
    assert "fails" in result.stdout
    assert "\n    the width is 3" in result.stdout
    assert "\n    expected holds: ZeroDivisionError: oops" in result.stdout
    shown = invoke("show", "mathematics/one").stdout
    for text in ("The number one is one", "Why it is so.", "Schuirmann 1987, section 2 (reading list: B1)", "shift = 0.5: another number", "tolerance 0.100", "smoke, 20", "holds"):
        assert text in shown
    assert "It has not been run here: gnomon claims run mathematics/noisy" in invoke("show", "mathematics/noisy").stdout
    assert json.loads(invoke("show", "mathematics/one", "--json").stdout)["verdicts"][0]["stale"] is False
    assert invoke("run", "mathematics/one", "-q").output == ""


BAD = {
    "an unknown id": (["run", "mathematics/on"], "Did you mean 'mathematics/one'"),
    "a pattern of nothing": (["run", "nothing/*"], "No claim matches 'nothing/*'"),
    "nothing at all": (["run"], "Say which claims"),
    "an unknown topic": (["run", "--topic", "mathematic"], "Did you mean 'mathematics'"),
    "an unknown entry": (["list", "--entry", "B11"], "Did you mean 'B1'"),
    "an unknown scale": (["run", "mathematics/one", "--scale", "smok"], "Did you mean 'smoke'"),
    "a scale that is not there": (["run", "mathematics/one", "--scale", "paper"], "has no settings for the scale 'paper'"),
    "an unknown pool": (["run", "mathematics/one", "--pool", "dask"], "Unknown pool 'dask'"),
    "an address without ray": (["run", "mathematics/one", "--address", "auto"], "add --pool ray"),
    "an address that is none": (["run", "mathematics/one", "--pool", "ray", "--address", "nowhere"], "host:port"),
    "a store that cannot be written": (["run", "mathematics/one", "--store", "/proc/store"], "--store"),
    "results that cannot be written": (["run", "mathematics/one", "--results", "/proc/results"], "--results"),
    "an unknown claim shown": (["show", "mathematics/on"], "Did you mean 'mathematics/one'"),
    "a broken claim shown": (["show", "physics/broken"], "does not import: KeyError: 'at import'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(place, case):
    words, says = BAD[case]
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert says in result.stderr, result.stderr
    assert "Traceback" not in result.output


def test_claims_without_the_scale_are_left_out_of_a_sweep(place):
    result = invoke("run", "--topic", "mathematics", "--scale", "paper")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "left out, without settings for 'paper': mathematics/far" in result.stderr


def test_a_claim_is_cited(place):
    result = CliRunner().invoke(application(), ["cite", "mathematics/one"])
    assert result.stdout.startswith("@article{schuirmann1987"), result.output
    assert "Did you mean" in CliRunner().invoke(application(), ["cite", "mathematics/on"]).stderr
    assert json.loads(CliRunner().invoke(application(), ["schema", "run"]).stdout)["title"] == "gnomon: a verdict"


def test_a_run_that_was_interrupted_and_then_killed_goes_on_and_ends_in_the_same_bytes(place):
    """Through the real command: Ctrl-C with two workers, then kill -9 in this process, then the rest."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place / "plugins"), str(Path(gnomon.__file__).parents[1])])}

    def command(store, *more):
        return [sys.executable, "-m", "gnomon.cli.main", "claims", "run", "physics/slow", "mathematics/one", "--store", store, *more]

    def kept():
        return {path: path.stat().st_mtime_ns for path in Path("cut/replicates").rglob("*.json") if path.name != "predicted.json"}

    for least, signal_number, more in ((2, signal.SIGINT, ("--jobs", "2")), (6, signal.SIGKILL, ())):
        process = subprocess.Popen(command("cut", *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        while process.poll() is None and len(kept()) < least:
            time.sleep(0.01)
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (130 if signal_number == signal.SIGINT else -signal.SIGKILL), errors
        assert "Traceback" not in errors
    before = kept()
    assert 6 <= len(before) < 28
    assert not list(Path("cut/claims").rglob("slow*"))
    for store in ("cut", "whole"):
        done = subprocess.run(command(store, "--json"), capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert before.items() <= kept().items(), "what was stored is not measured again"
    for name in ("physics/slow", "mathematics/one"):
        first, second = (json.loads(Path(f"{store}/claims/{name}.smoke.json").read_text()) for store in ("cut", "whole"))
        assert first.pop("run") != second.pop("run")
        assert first == second
