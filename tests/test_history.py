"""Readings over training in the report: from the file of a Watch, and from a folder of checkpoints."""

import json
from importlib import resources

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import gnomon
from gnomon.cli.main import application
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject
from gnomon.examination import checkpoints
from gnomon.examination.checkpoints import checkpoints_in, number_of, read_weights
from gnomon.hooks import Watch
from gnomon.numerics.operators import loss_value
from gnomon.run.history import History, Recorder, over_steps, round_stride
from gnomon.run.store import Store

REPORT = jsonschema.Draft202012Validator(json.loads(resources.files("gnomon.run").joinpath("schema/report.json").read_text(encoding="utf-8")))
HISTORY = jsonschema.Draft202012Validator(json.loads(resources.files("gnomon.run").joinpath("schema/history.json").read_text(encoding="utf-8")))


def make():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def pair(n=48):
    rng = chance.generator(0, "history")
    return chance.normal(n, 5, rng=rng).float(), chance.integers(3, n, rng=rng)


def model(seed=0):
    with chance.scoped(chance.generator(seed, "model")):
        return make()


def freeze(history=None, module=None):
    return Subject.freeze(module or model(), "cross_entropy", pair(), lr=0.5, batch_size=48, history=history)


@pytest.fixture
def watched(tmp_path):
    """A full-batch training whose learning rate is cut at step 10, and what was read at steps 0, 5, 10, 15."""
    network, (x, y) = model(), pair()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    watch = Watch(network, "cross_entropy", (x, y), every=5, out=tmp_path / "h.json", optimizer=optimizer, batch_size=48, readings=("training_loss", "sharpness", "spectral_norms"))
    for step in range(20):
        if step == 10:
            optimizer.param_groups[0]["lr"] = 0.25
        watch.step(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network, watch, tmp_path / "h.json"


def examined(history, tmp_path, module=None):
    return gnomon.examine(freeze(history, module), budget="1s", only="landscape", store=tmp_path / "store")


def test_the_report_draws_the_history_beside_the_limit_of_each_step(watched, tmp_path):
    network, watch, path = watched
    report = examined(path, tmp_path, network)
    assert [error.message for error in REPORT.iter_errors(json.loads(json.dumps(report.document)))] == []
    rows = {row["title"]: row for row in report.rows if row["chapter"] == "training"}
    assert rows.keys() == {"sharpness over training", "training loss over training", "spectral norms over training"}
    sharpness = rows["sharpness over training"]
    assert sharpness["predicted"]["value"] == [4.0, 4.0, 8.0, 8.0]
    assert sharpness["measured"]["axes"][0]["values"] == [0.0, 5.0, 10.0, 15.0]
    assert sharpness["measured"]["value"] == watch["sharpness"].value.tolist()
    assert sharpness["verdict"] == "holds"
    assert report["training"].training_loss_over_training.value.tolist() == watch["training_loss"].value.tolist()
    assert report["training"].spectral_norms_over_training.value.shape == (2, 4)
    assert report.document["history"]["records"] == 4
    html = report.html()
    assert "Over training" in html
    assert "h.json: 4 records" in html
    from_document = examined(watch.history, tmp_path, network)
    assert [row for row in from_document.rows if row["chapter"] == "training"] == [row for row in report.rows if row["chapter"] == "training"]


def test_what_was_skipped_in_training_is_named_in_the_report(watched, tmp_path):
    network, watch, _ = watched
    document = watch.history
    for record in document["records"][1:3]:
        del record["readings"]["sharpness"]
        record["skipped"]["sharpness"] = "the loss was not finite"
    report = examined(document, tmp_path, network)
    assert {"what": "sharpness at 2 steps, first 5", "chapter": "training", "why": "the loss was not finite"} in report.document["skipped"]


def test_a_long_history_leaves_the_report_small(watched, tmp_path):
    network, watch, _ = watched
    document = watch.history
    record = document["records"][0]
    readings = {f"{name}_{k}": data | {"name": f"{name}_{k}"} for name, data in record["readings"].items() for k in range(6)} | record["readings"]
    document["records"] = [record | {"step": step, "readings": readings} for step in range(0, 30_000, 100)]
    report = examined(document, tmp_path, network)
    assert len(json.dumps(report.document, indent=1)) < 256_000
    steps = report["training"].sharpness_over_training.axes[0].values
    assert steps[0] == 0
    assert steps[-1] == 29_900


def test_what_is_no_history_of_this_network_is_refused(watched, tmp_path, monkeypatch):
    network, watch, path = watched
    with pytest.raises(InvalidInput, match="another network"):
        examined(path, tmp_path, nn.Linear(5, 3))
    for change, message in [
        (lambda d: d.pop("records"), "not a whole history"), (lambda d: d["records"].reverse(), "rise"), (lambda d: d.update(schema="gnomon/history/9"), "expected the schema"),
        (lambda d: d["records"][0]["readings"]["sharpness"].pop("unit"), "not a whole history"), (lambda d: d["records"].__setitem__(0, 3), "not a whole history"),
    ]:  # fmt: skip
        document = watch.history
        change(document)
        with pytest.raises(InvalidInput, match=message):
            examined(document, tmp_path, network)
    with pytest.raises(InvalidInput, match="not int"):
        examined(3, tmp_path, network)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("step_100", ("step", 100)), ("epoch=3-step=300", ("step", 300)), ("checkpoint-500", ("step", 500)), ("0100", ("step", 100)), ("model-20", ("step", 20)),
        ("epoch_7", ("epoch", 7)), ("epoch=07-val_loss=0.31", ("epoch", 7)), ("best_0.93", ("step", None)), ("last", ("step", None)), ("resnet18", ("step", None)),
        ("net_iter400_ema", ("step", 400)),
    ],
)  # fmt: skip
def test_the_step_is_read_from_the_name(name, found):
    assert number_of(name) == found


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of five kinds, one missing between 100 and 300; a foreign file, another network's, a broken one, a pickle, a folder without weights."""
    place = tmp_path / "run"
    place.mkdir()
    networks = {step: model(step) for step in (0, 50, 100, 300, 350)}
    save_file(networks[0].state_dict(), place / "step_0.safetensors")
    torch.save({"state_dict": {f"net.{key}": value for key, value in networks[50].state_dict().items()}, "global_step": 50}, place / "epoch=1-step=50.ckpt")
    torch.save(networks[100].state_dict(), place / "0100.pt")
    (place / "checkpoint-300").mkdir()
    save_file(networks[300].state_dict(), place / "checkpoint-300/model.safetensors")
    (place / "checkpoint-350").mkdir()
    state = networks[350].state_dict()
    for number, part in enumerate(("0.", "2.")):
        save_file({key: value for key, value in state.items() if key.startswith(part)}, place / f"checkpoint-350/model-{number}.safetensors")
    index = {key: f"model-{0 if key.startswith('0.') else 1}.safetensors" for key in state}
    (place / "checkpoint-350/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (place / "log.csv").write_text("loss")
    save_file(nn.Linear(5, 3).state_dict(), place / "step_150.safetensors")
    (place / "step_160.safetensors").write_bytes(b"half a file")
    torch.save(networks[0], place / "step_170.pt")
    (place / "checkpoint-900").mkdir()
    (place / ".hidden").write_text("")
    torch.save(networks[100].state_dict(), place / "step_100_copy.pt")
    return place, networks


def test_a_folder_of_checkpoints_becomes_the_chapter(folder, tmp_path, caplog):
    place, networks = folder
    report = gnomon.examine(freeze(place, networks[350]), budget="4s", only="landscape", store=tmp_path / "store")
    loss = report["training"].training_loss_over_training
    assert loss.axes[0].values == (0.0, 50.0, 100.0, 300.0, 350.0)
    np.testing.assert_allclose(loss.value, [loss_value(freeze(module=networks[step])) for step in networks], rtol=1e-6)
    skipped = {entry["what"]: entry["why"] for entry in report.document["skipped"] if entry["chapter"] == "training" and "checkpoints" not in entry["what"]}
    assert skipped.keys() == {"log.csv", "step_150.safetensors", "step_160.safetensors", "step_170.pt", "checkpoint-900", "step_100_copy.pt"}
    assert "do not match" in skipped["step_150.safetensors"]
    assert "cannot be read" in skipped["step_160.safetensors"]
    assert "pickled" in skipped["step_170.pt"]
    assert "same step" in skipped["step_100_copy.pt"]
    assert all(name in caplog.text for name in skipped)
    assert report.document["history"]["notes"][1] == "no checkpoint between steps 100 and 300; the others are about 50 apart"
    assert REPORT.is_valid(json.loads(json.dumps(report.document)))
    again = gnomon.examine(freeze(place, networks[350]), plan=report, only="landscape", store=tmp_path / "other")
    assert again.document["history"] == report.document["history"]
    assert [row for row in again.rows if row["chapter"] == "training"] == [row for row in report.rows if row["chapter"] == "training"]


def history_of(place, store, networks, **options):
    return checkpoints.history(
        freeze(module=networks[350]), place, budget=1.0, seed=0, threads=1, store=Store(store), identity=["test"], progress=lambda part, text: None, **options
    )[0]


def test_checkpoints_that_were_read_are_kept_when_the_run_is_cut(folder, tmp_path, monkeypatch):
    place, networks = folder
    whole = history_of(place, tmp_path / "a", networks)
    assert [error.message for error in HISTORY.iter_errors(json.loads(json.dumps(whole)))] == []
    record, calls = Recorder.record, []

    def cut(self, state, step, **options):
        if step == 300 and 300 not in calls:
            calls.append(step)
            raise KeyboardInterrupt
        calls.append(step)
        return record(self, state, step, **options)

    monkeypatch.setattr(Recorder, "record", cut)
    readings = whole["readings"]
    with pytest.raises(KeyboardInterrupt):
        history_of(place, tmp_path / "b", networks, readings=readings)
    assert history_of(place, tmp_path / "b", networks, readings=readings)["records"] == whole["records"]
    assert calls == [0, 50, 100, 300, 300, 350]


def test_folders_without_fitting_checkpoints_are_refused(folder, tmp_path):
    _, networks = folder
    with pytest.raises(InvalidInput, match="no folder"):
        checkpoints_in(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidInput, match="empty"):
        checkpoints_in(empty)
    (empty / "best.pt").write_bytes(b"")
    with pytest.raises(InvalidInput, match="no step"):
        checkpoints_in(empty)
    save_file(nn.Linear(5, 3).state_dict(), empty / "step_3.safetensors")
    with pytest.raises(InvalidInput, match="No checkpoint in .* fits"):
        history_of(empty, tmp_path / "s", networks)
    (empty / "index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(InvalidInput, match="leaves the folder"):
        read_weights(empty / "index.json")


def test_epochs_serve_where_there_are_no_steps(tmp_path):
    for epoch in (2, 10):
        save_file(model(epoch).state_dict(), tmp_path / f"epoch={epoch}.safetensors")
    axis, files, _ = checkpoints_in(tmp_path)
    assert (axis, [number for number, _ in files]) == ("epoch", [2, 10])
    save_file(model(1).state_dict(), tmp_path / "step_7.safetensors")
    axis, files, skipped = checkpoints_in(tmp_path)
    assert (axis, [number for number, _ in files], len(skipped)) == ("step", [7], 2)


def test_the_command_line_takes_either_and_refuses_the_rest(watched, folder, tmp_path, monkeypatch):
    _, _, path = watched
    place, _ = folder
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))\n")
    np.savez(tmp_path / "d.npz", x_train=pair()[0].numpy(), y_train=pair()[1].numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNOMON_CACHE", str(tmp_path / "cache"))

    def run(*words):
        words = ["examine", "net.py:make", "--data", "d.npz", "--lr", "0.5", "--batch-size", "48", "--budget", "2s", "--only", "landscape", *map(str, words)]
        return CliRunner().invoke(application(), words)

    for option, value in (("--history", path), ("--checkpoints", place)):
        done = run(option, value, "--json")
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        assert any(row["chapter"] == "training" for row in document["rows"])
        assert f"{option} {value}" in document["run"]["again"]
    (tmp_path / "broken.json").write_text("{")
    for words, message in [
        (("--history", path, "--checkpoints", place), "one of"), (("--history", place), "--checkpoints"), (("--history", "broken.json"), "cannot be read"),
        (("--history", "none.json"), "no file"), (("--checkpoints", "none"), "no folder"),
    ]:  # fmt: skip
        done = run(*words)
        assert done.exit_code == 2
        assert message in done.stderr


def test_readings_over_steps_keep_the_ends_and_the_fewest_replicates():
    def record(step, n):
        reading = gnomon.Reading("a", float(step), "", error=1.0, error_kind="sample", n=n).to_json()
        return {"step": step, "training": None, "readings": {"a": reading}, "skipped": {}}

    document = History({"settings": {}}, [record(step, 20 - step) for step in range(11)]).document()
    whole, few = over_steps(document, "a"), over_steps(document, "a", most=3)
    assert whole.value.tolist() == list(range(11))
    assert few.axes[0].values == (0.0, 5.0, 10.0)
    assert few.n == 10
    assert over_steps(document, "b") is None
    assert [round_stride(least) for least in (0.2, 1, 1.01, 7, 11, 15, 16, 99, 101)] == [1, 1, 2, 8, 15, 15, 20, 100, 150]
