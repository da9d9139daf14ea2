"""Store, budget and plan."""

import dataclasses
import json
import os
import stat

import pytest
import torch
from torch import nn

from gnomon.core.errors import CannotWrite, InvalidInput
from gnomon.core.registry import Cost, Instrument
from gnomon.core.subject import Subject
from gnomon.run.budget import as_memory_error, available_bytes, seconds
from gnomon.run.plan import Plan, affordable, make_plan
from gnomon.run.store import Store, dumps, key_of, read_json, write_all, write_atomic


def subject(n=4096):
    return Subject.freeze(nn.Linear(3, 2), "cross_entropy", (torch.randn(n, 3), torch.randint(0, 2, (n,))))


def fake(name, cost, *, topic="landscape", knob="probes", needs=(), smallest=8, largest=64, shares=None, at=("end",), size=0):
    def function(subject, *, rng, probes=8):
        raise AssertionError("planning never measures")

    function.__name__ = name
    return Instrument(function, topic, needs, at, None, knob, smallest, largest, lambda s, probes=1: Cost(cost(probes), size), shares)


def plan(instruments, gradients, **more):
    options = {"budget": 60.0, "seed": 0, "threads": 1, "memory": None} | more
    return make_plan(subject(), {i.name: i for i in instruments}, gradients=gradients, **options)


def test_a_plan_keeps_within_its_gradients_and_cheap_ones_leave_the_rest():
    cheap, dear = fake("cheap", lambda probes: 0.5, knob=None), fake("dear", lambda probes: 3.0 * probes)
    for gradients in (1.0, 5.0, 15.0, 300.0, 5000.0):
        made = plan([cheap, dear], gradients)
        assert made.gradients <= gradients
        by_name = {entry.instrument: entry for entry in made.entries}
        assert by_name["cheap"].examples == 4096 or gradients == 1.0
        assert by_name["dear"].value in (8, 16, 32, 64)
    assert by_name["dear"].value == 64
    assert by_name["dear"].examples == 4096


def test_examples_first_then_the_knob():
    made = plan([fake("dear", lambda probes: 3.0 * probes)], 3.0 * 8 * 0.3).entries[0]
    assert (made.examples, made.value) == (1024, 8)


def test_what_is_not_affordable_is_skipped_with_what_it_takes():
    made = plan([fake("huge", lambda probes: 1e6 * probes)], 10.0)
    assert made.entries == ()
    assert "budget does not reach" in made.skipped[0][2]


def test_what_a_chapter_rests_on_is_skipped_last():
    base, extra = fake("base", lambda probes: 20.0 * probes), fake("extra", lambda probes: 5.0 * probes)
    made = plan([dataclasses.replace(base, essential=True), extra], 20.0 * 8 * 64 / 4096 + 0.1)
    assert [entry.instrument for entry in made.entries] == ["base"]
    made = plan([dataclasses.replace(base, essential=True), extra], 20.0 * 8 * 64 / 4096 - 0.1)
    assert [entry.instrument for entry in made.entries] == ["extra"], "what fits is not lost with what does not"


def test_what_does_not_fit_in_memory_is_skipped_with_the_number():
    made = plan([fake("fat", lambda probes: 1.0, size=10 * 2**30)], 100.0, memory=2**30)
    assert "10,240 MiB" in made.skipped[0][2]


def test_needs_are_named():
    made = plan([fake("gap", lambda probes: 1.0, needs=("test",)), fake("drift", lambda probes: 1.0, at=("initial",))], 10.0)
    assert "no test data" in made.skipped[1][2]
    assert "initialisation" in made.skipped[0][2]


def test_instruments_that_share_work_get_the_same_examples_and_knob():
    made = plan([fake("a", lambda probes: 3.0 * probes), fake("b", lambda probes: 1.0, shares="a"), fake("c", lambda probes: 2.0 * probes)], 50.0)
    entries = {entry.instrument: entry for entry in made.entries}
    assert (entries["a"].examples, entries["a"].value) == (entries["b"].examples, entries["b"].value)


def test_plans_survive_json_and_timing_noise_seldom_changes_what_is_bought():
    made = plan([fake("a", lambda probes: 3.0 * probes)], 50.0)
    assert Plan.from_json(json.loads(dumps(made.to_json()))) == made
    assert affordable(60, 1e-4, 1000) == affordable(60, 1.01e-4, 1000)
    assert affordable(60, 1e-4, 1000) <= 0.8 * 600


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("5m", 300), ("1.5h", 5400), ("45", 45), (30, 30)])
def test_budgets(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "five", "-3m", "0s", "3d"])
def test_bad_budgets(text):
    with pytest.raises(InvalidInput, match="5m"):
        seconds(text)


def test_a_cut_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomic(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_several_files_are_replaced_together_or_not_at_all(tmp_path):
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    write_all({page: "old", data: "old"})
    data.unlink()
    data.mkdir()
    with pytest.raises(CannotWrite):
        write_all({page: "new", data: "new"})
    assert page.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_a_device_is_no_place_for_a_report():
    before = os.stat("/dev/full").st_mode
    with pytest.raises(CannotWrite):
        write_atomic("/dev/full", "x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert before == os.stat("/dev/full").st_mode


def test_store_pieces_and_finish(tmp_path):
    store, key = Store(tmp_path), key_of("report", {"b": 1, "a": [1.5, None]})
    assert key == key_of("report", {"a": [1.5, None], "b": 1})
    assert store.piece(key, "x") is None
    store.put_piece(key, "x", {"value": 0.1})
    (tmp_path / "pending" / key / "cut.json").write_text('{"value": 0.')
    assert store.piece(key, "x") == {"value": 0.1}
    assert store.piece(key, "cut") is None
    path = store.finish(key, {"schema": "gnomon/report/1"}, pending=(key,))
    assert read_json(path, schema="gnomon/report/1")["schema"] == "gnomon/report/1"
    assert not (tmp_path / "pending" / key).exists()


@pytest.mark.parametrize(
    ("content", "match"), [("{", "JSON"), ('{"schema": "gnomon/report/2"}', "newer"), ('{"schema": "x/1"}', "not a gnomon/report"), ("[]", "not a gnomon/report")]
)
def test_documents_that_cannot_be_read(tmp_path, content, match):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match=match):
        read_json(path, schema="gnomon/report/1")
    with pytest.raises(InvalidInput, match="no file"):
        read_json(tmp_path / "none.json", schema="gnomon/report/1")


def test_memory_errors_become_numbers():
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes. Error code 12")
    assert "4,096 MiB" in str(as_memory_error(error, "testing"))
    assert as_memory_error(RuntimeError("shape mismatch"), "testing") is None
    assert available_bytes() > 0
