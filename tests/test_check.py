"""`gnomon check` and `gnomon instruments`: the contract on plug-ins, the worked example of CONTRIBUTING.md among them."""

import json
import os
import subprocess
import sys

import pytest
from plugin import install, worked_example

from gnomon.core import catalogue, plugins, registry
from gnomon.core.errors import InvalidInput

HEAD = """
import torch
from gnomon.core import rng as chance
from gnomon.core.reading import Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.numerics.operators import loss_value

@instrument(topic="mathematics", truth=lambda subject: 0.0, cost=lambda subject: Cost(gradients=0.1))
"""
GOOD = '''def planted(subject, *, rng):
    """A mean of five normal numbers, which is 0.  Shapes: value ()."""
    return Reading.of_samples("planted", chance.normal(5, rng=rng), unit="", error_kind="probe", source=Source("hutchinson1989"))
'''
BAD = {
    "moves-state": (
        '''def planted(subject, *, rng):
    """Draws from the global random state.  Shapes: value ()."""
    torch.randn(3)
    return Reading.of_samples("planted", chance.normal(5, rng=rng), unit="", error_kind="probe", source=Source("hutchinson1989"))
''',
        "the global random state was moved",
    ),
    "zero-error": (
        '''def planted(subject, *, rng):
    """A random number that is said to be certain.  Shapes: value ()."""
    return Reading("planted", float(chance.normal(1, rng=rng)), "", error=0.0, error_kind="probe", n=5, source=Source("hutchinson1989"))
''',
        "the error is 0",
    ),
    "split": (
        '''def planted(subject, *, rng):
    """A mean of batch means, which depends on the split.  Shapes: value ()."""
    means = [float(subject.loss(subject(subject.state, block.inputs), block.targets)) for block in subject.batches()]
    return Reading.of_samples("planted", [*means, sum(means) / len(means)], unit="loss", error_kind="probe", source=Source("hutchinson1989"))
''',
        "when the data are split otherwise",
    ),
}


PATH = {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}


def gnomon(env, *words):
    return subprocess.run([sys.executable, "-m", "gnomon.cli.main", *words], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("fault", BAD)
def test_a_planted_bad_plug_in_fails(fault, tmp_path):
    body, said = BAD[fault]
    env = install(tmp_path, "planted_plugin", {"instruments/planted.py": HEAD + body})
    done = gnomon(env, "check", "planted_plugin", "--draws", "50")
    assert done.returncode == 1, done.stderr
    assert said in done.stdout


def test_a_good_plug_in_passes_by_its_folder_alone(tmp_path):
    env = install(tmp_path, "planted_plugin", {"instruments/planted.py": HEAD + GOOD})
    done = gnomon(env | PATH, "check", str(tmp_path / "planted_plugin"), "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0
    assert {finding["outcome"] for finding in findings} == {"kept"}
    assert {"coverage", "untouched", "split"} <= {finding["check"] for finding in findings}


def test_the_worked_example_of_contributing(tmp_path):
    env = install(tmp_path, "my_theory", worked_example())
    done = gnomon(env, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    done = gnomon(env, "examine", "--only", "initial_loss", "--budget", "10s", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [(row["chapter"], row["verdict"]) for row in rows] == [("initial_loss", "holds")], done.stderr
    listed = json.loads(gnomon(env, "instruments", "--topic", "information", "--json").stdout)
    assert "initial_loss" in [one["name"] for one in listed]
    done = gnomon(env, "claims", "run", "information/initial-loss", "--scale", "smoke", "--store", str(tmp_path / "store"), "--json")
    claims = json.loads(done.stdout)
    (claim,) = claims if isinstance(claims, list) else [claims]
    assert done.returncode == 0, done.stderr
    assert (claim["verdict"], claim["sabotage"]["verdict"], claim["as_expected"]) == ("holds", "fails", True)


def test_a_plug_in_that_does_not_import_is_named(tmp_path):
    env = install(tmp_path, "broken_plugin", {"instruments/planted.py": "import there_is_no_such_package\n"})
    for words in (("check",), ("instruments",)):
        done = gnomon(env, *words)
        assert done.returncode == 2
        assert "broken_plugin" in done.stderr
        assert "there_is_no_such_package" in done.stderr


@pytest.mark.parametrize(("argument", "said"), [("no_such_plugin", "no package of this name"), (".", "no Python package")])
def test_what_is_no_plug_in_is_said(argument, said, tmp_path):
    done = subprocess.run([sys.executable, "-m", "gnomon.cli.main", "check", argument], cwd=tmp_path, env=os.environ | PATH, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


class Entry:
    def __init__(self, name, value):
        self.name, self.value = name, value


def test_two_plug_ins_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [Entry("mine", "package_a"), Entry("mine", "package_b")])
    with pytest.raises(InvalidInput, match=r"package_a.*package_b"):
        plugins.roots()
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [Entry("mine", "package_a"), Entry("mine", "package_a")])
    assert plugins.roots() == ("gnomon", "package_a"), "one package that is found twice is one plug-in"


def test_two_chapters_of_one_name_are_refused(monkeypatch):
    landscape = registry.chapters()["landscape"]
    monkeypatch.setattr(registry, "modules", lambda room: iter([landscape, landscape]))
    with pytest.raises(InvalidInput, match=r"Two chapters are called 'landscape'.*READS"):
        registry.chapters()


def test_claims_are_listed_without_an_import(tmp_path, monkeypatch):
    (tmp_path / "claims" / "mathematics").mkdir(parents=True)
    (tmp_path / "claims" / "mathematics" / "two_and_two.py").write_text('"""Two and two are four."""\nraise RuntimeError("imported")\n')
    monkeypatch.setattr(catalogue, "roots", lambda: ("planted",))
    monkeypatch.setattr(catalogue, "folders", lambda root: [tmp_path])
    listed = catalogue.catalogue()
    assert {key: claim.statement for key, claim in listed.items()} == {"mathematics/two-and-two": "Two and two are four."}
    with pytest.raises(InvalidInput, match="Did you mean 'mathematics/two-and-two'"):
        catalogue.get_claim("mathematics/two-and-tow")
    (tmp_path / "claims" / "mathematcs").mkdir()
    (tmp_path / "claims" / "mathematcs" / "x.py").write_text('"""X."""\n')
    with pytest.raises(InvalidInput, match="Did you mean 'mathematics'"):
        catalogue.catalogue()
