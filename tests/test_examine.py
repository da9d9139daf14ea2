"""`examine` as a whole: repeatable to the bit, resumable after kill -9, extensible by a file; predictions move with what they depend on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import gnomon
from gnomon.core import registry, rng
from gnomon.core.errors import InvalidInput
from gnomon.run.store import dumps

NET = """
from torch import nn

def make_model(width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""
GNOMON = [sys.executable, "-c", "from gnomon.cli.main import run; run()"]


def digits(n=300, classes=10):
    x, y = load_digits(return_X_y=True)
    kept = y < classes
    x, y = (x[kept][: n + 100] / 16).astype(np.float32), y[kept][: n + 100]
    return (x[:n], y[:n]), (x[n:], y[n:])


def subject(width=16, classes=10, lr=0.1, batch_size=32, seed=0):
    def make():
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))

    with rng.scoped(rng.generator(seed)):
        model = make()
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    train, test = digits(classes=classes)
    x, y = torch.as_tensor(train[0]), torch.as_tensor(train[1])
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return gnomon.Subject.freeze(model, "cross_entropy", train, test, initial=initial, make=make, lr=lr, batch_size=batch_size)


def without_run(document):
    return dumps({key: value for key, value in document.items() if key != "run"})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return gnomon.examine(subject(), budget="4s", store=tmp_path_factory.mktemp("store"))


def test_every_chapter_is_decided(report):
    decided = {row["chapter"] for row in report.rows if row["verdict"] in ("holds", "fails")}
    assert decided == set(registry.chapters())
    assert not [row for row in report.rows if row["verdict"] == "error"]


def test_the_same_plan_gives_the_same_bytes_and_moves_no_global_state(report, tmp_path):
    torch.manual_seed(5)
    before, threads = (random.getstate(), torch.random.get_rng_state()), torch.get_num_threads()
    again = gnomon.examine(subject(), plan=report, store=tmp_path)
    assert without_run(again.document) == without_run(report.document)
    assert (random.getstate() == before[0], torch.equal(torch.random.get_rng_state(), before[1]), torch.get_num_threads() == threads) == (True, True, True)


def test_another_seed_gives_other_draws(report, tmp_path):
    document = json.loads(dumps(report.document))
    document["plan"]["seed"] = 1
    assert without_run(gnomon.examine(subject(), plan=document, store=tmp_path).document) != without_run(report.document)


def test_readings_are_attributes_of_chapters(report):
    assert report["landscape"].sharpness.value > 0
    with pytest.raises(AttributeError, match="sharpness"):
        report["landscape"].sharpnes  # noqa: B018
    with pytest.raises(InvalidInput, match="landscape"):
        report["landscpe"]
    assert "gnomon" in report._repr_html_()


def test_advice_never_rests_on_a_vacuous_row(report):
    assert not [row for row in report.rows if row["advice"] and row["verdict"] in ("vacuous", "error", None) and row["predicted"]]


def test_saved_files_are_small_and_complete(report, tmp_path):
    sizes = {path.suffix: size for path, size in report.save(tmp_path / "r.html")}
    assert sizes[".html"] <= 600 * 1024
    assert sizes[".json"] <= 256 * 1024
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "gnomon/report/1"


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"width": 32}, {"classes": 5}], ids=["lr", "width", "classes"])
def test_predictions_move_with_what_they_depend_on(report, change, tmp_path):
    other = gnomon.examine(subject(**change), budget="4s", store=tmp_path)

    def predicted(of):
        return {(row["chapter"], row["title"]): row["predicted"]["value"] for row in of.rows if row["predicted"]}

    before, after = predicted(report), predicted(other)
    moved = {chapter for (chapter, title), value in before.items() if (chapter, title) in after and value != after[chapter, title]}
    assert moved >= {"lr": {"landscape", "dynamics"}, "width": {"generalization", "effective"}, "classes": {"landscape", "generalization"}}[next(iter(change))]


def test_bad_arguments_are_named():
    with pytest.raises(InvalidInput, match="Did you mean 'landscape'"):
        gnomon.examine(subject(), only="landscap")
    with pytest.raises(InvalidInput, match="5m"):
        gnomon.examine(subject(), budget="soon")
    with pytest.raises(InvalidInput, match=r"Subject\.freeze"):
        gnomon.examine(nn.Linear(2, 2))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (x, y), (x_test, y_test) = digits()
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return tmp_path


def command(folder, out, *more, store="store"):
    return [
        *GNOMON,
        "examine",
        "net.py:make_model",
        "--data",
        "digits.npz",
        "--lr",
        "0.1",
        "--batch-size",
        "32",
        "--budget",
        "5s",
        "--quiet",
        "--out",
        out,
        "--store",
        store,
        *more,
    ]


def environment(**more):
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more


def document_of(folder, name):
    return without_run(json.loads((folder / name).read_text()))


def test_killed_four_times_and_resumed_gives_the_same_bytes_and_so_do_two_threads_in_the_environment(folder):
    def pieces():
        return [path for path in (folder / "store" / "pending").rglob("*.json") if path.name != "plan.json"]

    def planned():
        return list((folder / "store" / "pending").rglob("plan.json"))

    moments = [lambda: time.monotonic() - started > 0.7, planned, lambda: len(pieces()) >= 2, lambda: len(pieces()) >= 6]
    for moment in moments:
        started = time.monotonic()
        process = subprocess.Popen(command(folder, "resumed.html"), cwd=folder, env=environment(OMP_NUM_THREADS="1"))
        while not moment() and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, "the run was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "resumed.html").exists()
    assert pieces()
    subprocess.run(command(folder, "resumed.html"), cwd=folder, env=environment(OMP_NUM_THREADS="1"), check=True)
    assert not pieces(), "what is finished is put away"
    whole = command(folder, "whole.html", "--plan", "resumed.json", store="other")
    subprocess.run(whole, cwd=folder, env=environment(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2"), check=True)
    assert document_of(folder, "resumed.json") == document_of(folder, "whole.json")


PLUGIN = {
    "instruments/counting.py": '''
from gnomon.core.reading import Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source

@instrument(topic="mathematics", cost=lambda subject: Cost(gradients=0.1))
def parameter_count(subject, *, rng):
    """Trainable parameters.  Shapes: value ()."""
    return Reading("parameter_count", float(subject.dimension), "parameters", source=Source("cohen2021"))
''',
    "examination/mathematics.py": '''
from gnomon.core.reading import Reading
from gnomon.examination.row import Row

TITLE = "Counting"

def chapter(facts, readings):
    """Rows."""
    yield Row("parameters counted", Reading.predicted("p", float(facts.trainable), unit="parameters"), readings["parameter_count"], "equal", 0.1, words="counted twice", headline=True)
''',
}


def test_a_plug_in_is_found_by_the_command_line_and_the_report(folder):
    root = folder / "plugins"
    for name, text in PLUGIN.items():
        path = root / "counting_plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (root / "counting_plugin" / "__init__.py").touch()
    info = root / "counting_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gnomon.plugins]\ncounting = counting_plugin\n")
    path = os.pathsep.join([str(root), *sys.path])
    subprocess.run(command(folder, "r.html", "--only", "mathematics"), cwd=folder, env=environment() | {"PYTHONPATH": path}, check=True)
    rows = json.loads((folder / "r.json").read_text())["rows"]
    assert [(row["chapter"], row["verdict"]) for row in rows] == [("mathematics", "holds")]
    assert "counted twice" in Path(folder / "r.html").read_text()
