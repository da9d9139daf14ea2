"""Short trainings at once, the SVAG test, and the chapter's rows about SGD as a process."""

import dataclasses

import numpy as np
import pytest
import torch
from networks import NETWORKS, batchnorm, mlp_regression
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.subject import Subject
from gnomon.examination import dynamics as chapter
from gnomon.examination import path as path_rows
from gnomon.examination.facts import facts_of
from gnomon.instruments import noise_spectrum, path, sde
from gnomon.numerics import walks
from gnomon.studies.contract import images
from gnomon.theory import noise as theory


def mean_of(n=40, *, lr=0.2, batch=4, start=0.5, spread=1.0, **settings):
    """L = mean (w - y_i)^2 from w = start: curvature 2 and noise that is the same everywhere, Sigma = 4 var y."""
    y = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None] * spread
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, start)
    return Subject.freeze(model, "mse", (torch.ones_like(y), y), **{"optimizer": "sgd", "lr": lr, "batch_size": batch, "chunk": 64, **settings})


def expected_loss(subject, level, steps, factor):
    """Exactly: var y + E (w - mean y)^2 with SVAG's steps."""
    y = next(subject.train.chunks(100)).targets
    keep, k = 1 - 2 * subject.training.lr / level, steps * level
    calm = float(subject.state["weight"]) ** 2 * keep ** (2 * k)
    noise = (subject.training.lr / level) ** 2 * level * factor * 4 * float(y.var())
    return float(y.var(correction=0)) + calm + noise * (1 - keep ** (2 * k)) / (1 - keep**2)


def factor_of(n, batch, sampling):
    return (1 - 1 / n) / batch if sampling == "with_replacement" else 1 / batch - 1 / n


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_runs_have_the_exact_mean_loss_at_every_level(sampling):
    subject = mean_of()
    sgd = Sgd(lr=0.2, batch_size=4, examples=40, sampling=sampling)
    for level in (1, 2, 8):
        ends = walks.walks(subject, sgd, steps=5, runs=2000, level=level, rng=chance.generator(0, sampling, level))
        gap = float(ends.losses.mean()) - expected_loss(subject, level, 5, factor_of(40, 4, sampling))
        assert abs(gap) < 4 * float(ends.losses.std()) / 2000**0.5
    y = next(subject.train.chunks(100)).targets
    assert walks.noise_free(subject, sgd, steps=5) == pytest.approx(float(y.var(correction=0)) + 0.25 * 0.6**10, rel=1e-12)


@pytest.mark.parametrize("change", [{}, {"momentum": 0.7}, {"momentum": 0.7, "nesterov": True}, {"momentum": 0.5, "weight_decay": 0.1, "decay": "coupled"}])
def test_steps_are_those_of_torch(change, monkeypatch):
    subject = mlp_regression(n=12)
    drawn = torch.stack([chance.permutation(12, rng=chance.generator(9, "b", i))[:6].reshape(2, 3) for i in range(4)])
    monkeypatch.setattr(walks, "drawn_batches", lambda *args, **kwargs: iter(drawn))
    sgd = Sgd(lr=0.05, batch_size=3, examples=12, sampling="without_replacement", **change)
    seen = walks.walks(subject, sgd, steps=4, runs=2, rng=chance.generator(0)).losses
    block = next(subject.train.chunks(12))
    for run in range(2):
        state = {key: value.clone().requires_grad_() for key, value in subject.parameters.items()}
        options = {"momentum": sgd.momentum, "nesterov": sgd.nesterov, "weight_decay": sgd.weight_decay}
        optimizer = torch.optim.SGD(list(state.values()), lr=sgd.lr, **options)
        if sgd.momentum:
            whole = torch.autograd.grad(subject.loss(subject({**subject.state, **state}, block.inputs), block.targets), list(state.values()))
            for value, slope in zip(state.values(), whole, strict=True):
                optimizer.state[value]["momentum_buffer"] = slope / (1 - sgd.momentum)
        for chosen in drawn[:, run]:
            optimizer.zero_grad()
            subject.loss(subject({**subject.state, **state}, block.inputs[chosen]), block.targets[chosen]).backward()
            optimizer.step()
        assert float(seen[run]) == pytest.approx(float(subject.loss(subject({**subject.state, **state}, block.inputs), block.targets)), rel=1e-10)


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_runs_at_once_are_runs_one_by_one(build, monkeypatch):
    sgd = Sgd(lr=0.01, batch_size=3, examples=8, sampling="without_replacement")
    subject = build(n=8)
    fast = walks.walks(subject, sgd, steps=2, runs=2, level=2, rng=chance.generator(1))
    monkeypatch.setattr(walks, "_at_once", lambda *args: None)
    monkeypatch.setattr(walks, "_losses_at_once", lambda *args: None)
    slow = walks.walks(build(n=8), sgd, steps=2, runs=2, level=2, rng=chance.generator(1))
    assert fast.losses.numpy() == pytest.approx(slow.losses.numpy(), rel=1e-9)
    assert fast.distances.numpy() == pytest.approx(slow.distances.numpy(), rel=1e-9)


def test_the_traced_operations_are_the_same_to_the_bit(monkeypatch):
    found = []
    for after in (1, 1000):
        monkeypatch.setattr(walks, "TRACED_AFTER", after)
        found.append(sde.svag_gap(images(batch_size=8, chunk=64), rng=chance.generator(0), steps=3).to_json())
    assert found[0] == found[1]


def test_the_gap_is_what_the_equation_lacks():
    """lr x curvature = .8: SGD's noise is larger than that of its equation by 1 / (1 - .4), and the levels say so within their errors."""
    subject = mean_of(lr=0.4, start=0.0)
    reading = sde.svag(subject, rng=chance.generator(2), runs=2000, steps=6, levels=(4, 16), sampling="without_replacement")
    factor = factor_of(40, 4, "without_replacement")
    for level, mean, error in zip(reading.details["levels"], reading.details["means"], reading.details["errors"], strict=True):
        assert abs(mean - expected_loss(subject, level, 6, factor)) < 4 * error
    exact = [expected_loss(subject, level, 6, factor) for level in (1, 10_000)]
    assert float(reading) == pytest.approx(1 - exact[1] / exact[0], abs=4 * float(reading.error) + 0.01)
    assert reading.ends()[0] > 0


@pytest.mark.parametrize("change", [{}, {"momentum": 0.6}, {"optimizer": "nesterov", "momentum": 0.6}, {"momentum": 0.6, "weight_decay": 0.3}])
def test_what_noise_costs_is_predicted_from_its_spectrum(change):
    subject = mean_of(lr=0.2, start=0.0, **change)
    measured = sde.noise_excess_loss(sde.svag(subject, rng=chance.generator(3), runs=2000, steps=6, levels=(2,), sampling="without_replacement"))
    seen = noise_spectrum.noise_curvature(subject, rng=chance.generator(0), probes=32)
    y = next(subject.train.chunks(100)).targets
    predicted = theory.noise_excess_loss(seen.details["nodes"], seen.details["weights"], sde.steps_of(subject, "without_replacement"), steps=6, trace=4 * float(y.var()))
    assert abs(float(measured) - float(predicted)) < 4 * float(measured.error)
    assert float(measured.error) < 0.05 * float(predicted)
    if not change:
        assert float(predicted) == pytest.approx(expected_loss(subject, 1, 6, factor_of(40, 4, "without_replacement")) - float(y.var(correction=0)), rel=1e-9)


def test_a_run_that_diverges_is_kept_with_its_step():
    reading = sde.svag(mean_of(lr=60.0, start=3.0, n=16), rng=chance.generator(0), runs=4, steps=256, levels=(2,), sampling="with_replacement")
    assert float(reading) == 1.0
    assert reading.details["diverged"][0] == 4
    assert 100 < reading.details["diverged_at_step"][0] < 256
    with pytest.raises(OutOfScope, match="4 of 4 runs diverged, the first at step"):
        sde.noise_excess_loss(Reading.from_json(reading.to_json()))
    row = next(row for row in chapter.chapter(facts_of(mean_of(lr=60.0)), {"svag_gap": reading}) if row.title.startswith("SGD beside"))
    assert row.settle()[0].outcome == "out_of_scope"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "adam"}, "adam has none here"),
        ({"optimizer": None, "lr": None}, "unknown optimizer"),
        ({"batch_size": None}, "batch size is not known"),
        ({"batch_size": 40}, "no noise"),
    ],
)
def test_what_has_no_equation_says_why(settings, said):
    subject = mean_of(**settings)
    with pytest.raises(OutOfScope, match=said):
        sde.svag_gap(subject, rng=chance.generator(0))
    row = next(row for row in chapter.chapter(facts_of(subject), {}) if row.title.startswith("SGD beside"))
    assert row.settle()[0].outcome == "out_of_scope"
    assert len(row.out_of_scope) > 30


def test_impossible_settings_are_refused():
    subject = mean_of()
    for change, said in (
        ({"runs": 1}, "runs must be at least 4"),
        ({"levels": (4, 2)}, "must rise"),
        ({"levels": (1, 2)}, "must rise"),
        ({"sampling": "shuffled"}, "shuffled"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(InvalidInput, match=said):
            sde.svag(subject, rng=chance.generator(0), **({"sampling": "with_replacement"} | change))
    with pytest.raises(TypeError, match="sampling"):
        sde.svag(subject, rng=chance.generator(0))
    with pytest.raises(InvalidInput, match="40"):
        walks.walks(subject, Sgd(lr=0.1, batch_size=4, examples=39, sampling="with_replacement"), steps=1, runs=1, rng=chance.generator(0))


def test_the_chapter_sets_prediction_and_measurement_side_by_side():
    subject = images(lr=0.1, batch_size=8, chunk=64)
    readings = {
        "svag_gap": sde.svag_gap(subject, rng=chance.generator(0), steps=8), "noise_curvature": noise_spectrum.noise_curvature(subject, rng=chance.generator(0)),
    }  # fmt: skip
    rows = {row.title: row for row in chapter.chapter(facts_of(subject), {name: Reading.from_json(reading.to_json()) for name, reading in readings.items()})}
    cost, equation = rows["loss that gradient noise costs"], rows["SGD beside its stochastic differential equation"]
    assert cost.settle()[0].outcome in ("holds", "fails", "inconclusive")
    assert "it settles at" in cost.settle()[1]
    bent = dataclasses.replace(readings["noise_curvature"], details=readings["noise_curvature"].details | {"nodes": [[-30.0, 1.0]], "weights": [[1.0, 1.0]]})
    rows = {row.title: row for row in chapter.chapter(facts_of(subject), readings | {"noise_curvature": bent})}
    assert "curve downwards" in rows["loss that gradient noise costs"].out_of_scope
    assert equation.settle()[0].outcome in ("holds", "fails", "inconclusive")
    assert "after 8 steps the loss is" in equation.settle()[1]


def test_batch_norm_is_another_loss():
    facts = dataclasses.replace(facts_of(batchnorm(n=16, optimizer="sgd", lr=0.1, batch_size=4)))
    row = next(row for row in chapter.chapter(facts, {}) if row.title.startswith("SGD beside"))
    assert "is batch norm" in row.out_of_scope


def over(values, *, error=0.0, steps=None):
    steps = tuple(float(step) for step in (range(len(values)) if steps is None else steps))
    return Reading("loss", values, "loss", error=error, error_kind="bound", axes=(Axis("step", steps),))


def test_a_catapult_is_told_from_a_start_above_the_limit_alone():
    thrown = path.catapult(over([1.0, 9.0, 0.3]), over([30.0, 40.0, 8.0]), limit=20.0)
    assert thrown.value.tolist() == [1.5, 9.0, 0.4]
    assert thrown.details["catapult"]
    assert thrown.details["step"] == 1
    assert not path.catapult(over([1.0, 0.8, 0.3]), over([10.0, 12.0, 8.0]), limit=20.0).details["catapult"]
    assert not path.catapult(over([1.0, 9.0, 0.3]), over([30.0, 40.0, 22.0]), limit=20.0).details["catapult"]
    assert path.catapult(over([1.0, 2.0, 0.5, 0.4], steps=[0, 1, 9, 10]), over([30.0, 8.0]), limit=20.0).details["gaps"] == [(1.0, 9.0)]
    with pytest.raises(OutOfScope, match="too few"):
        path.catapult(over([1.0, 2.0]), over([30.0, 8.0]), limit=20.0)
    with pytest.raises(InvalidInput, match="above 0"):
        path.catapult(over([1.0, 2.0, 1.0]), over([30.0, 8.0]), limit=0.0)


def test_distance_and_angles_of_a_known_path():
    subject = mean_of()
    states = [{"weight": torch.tensor([[x]])} for x in (0.0, 3.0, 1.0, 2.0)]
    travelled = path.distance_travelled(subject, states, steps=[0, 10, 20, 30])
    assert travelled.value.tolist() == [3.0, 1.0, 2.0]
    assert travelled.details["path"].tolist() == [3.0, 5.0, 6.0]
    assert path.update_angles(subject, states).value.tolist() == [-1.0, -1.0]
    with pytest.raises(InvalidInput, match="must rise"):
        path.distance_travelled(subject, states, steps=[0, 10, 10, 30])
    with pytest.raises(InvalidInput, match="At least 3 states"):
        path.update_angles(subject, states[:2])


def history(losses, steps):
    records = [
        {"step": step, "training": None, "skipped": {}, "readings": {"training_loss": Reading("training_loss", loss, "loss", error_kind="bound").to_json()}}
        for step, loss in zip(steps, losses, strict=True)
    ]
    return {"kind": "watch", "settings": {}, "records": records}


def test_a_history_shows_its_fluctuation_and_its_gaps():
    rng = np.random.default_rng(0)
    steps = [*range(0, 2000, 100), *range(5000, 25_000, 100)]
    losses = 1 - 1e-5 * np.array(steps) + 0.01 * rng.standard_normal(len(steps))
    document = history(losses, steps)
    row = next(path_rows.rows(document, facts_of(mean_of())))
    low, high = row.measured.ends()
    assert low < 0.01 < high < 0.015
    assert path_rows.gap_notes(document) == ["no records between steps 1,900 to 5,000: what happened there was not seen"]
