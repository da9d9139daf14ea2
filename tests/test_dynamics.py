import dataclasses
import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, cnn, mlp_regression, token_weight, tokens
from scipy import optimize
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject
from gnomon.core.training import Training
from gnomon.examination import dynamics as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import dynamics
from gnomon.numerics.gram import gradient_gram
from gnomon.numerics.moments import gradient_moments
from gnomon.numerics.per_example import plan_of
from gnomon.theory import dynamics as theory


def linear(n=64, *, skew=0.0, noise=1.0, dtype=torch.float64, seed=0, fitted=False, **settings):
    """Least squares with one output: the gradient of example i is 2 (w.x_i - y_i) x_i."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4)) * np.exp(skew * rng.standard_normal((n, 1)))
    y = x @ rng.standard_normal((4, 1)) + noise * rng.standard_normal((n, 1)) * np.exp(skew * rng.standard_normal((n, 1)))
    w = np.linalg.lstsq(x, y, rcond=None)[0] if fitted else rng.standard_normal((4, 1))
    model = nn.Linear(4, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w.T))
    data = torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)
    return Subject.freeze(model, "mse", data, **{"lr": 0.05, "batch_size": 8, "chunk": 256, **settings}), 2 * (x @ w - y) * x


def scale_of(rows):
    mean = rows.mean(0)
    return ((rows - mean) ** 2).sum() / (len(rows) - 1) / (mean @ mean)


def test_truth_is_the_closed_form_of_least_squares():
    subject, rows = linear(skew=0.5)
    assert dynamics.exact_noise_scale(subject) == pytest.approx(scale_of(rows), rel=1e-10)


def test_examples_count_by_their_tokens():
    """g_i = N (w_i / W) grad loss_i, one example having no token left."""
    subject = tokens(n=12)
    rows = []
    whole = sum(token_weight(block.targets) for block in subject.train.chunks(1))
    for block in subject.train.chunks(1):
        parameters = {key: value.clone().requires_grad_() for key, value in subject.parameters.items()}
        weight = token_weight(block.targets)
        loss = subject.loss(subject({**subject.state, **parameters}, block.inputs), block.targets) if weight else sum(0 * p.sum() for p in parameters.values())
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        rows.append(12 * weight / whole * torch.cat([g.reshape(-1) for g in gradients]).numpy())
    assert dynamics.exact_noise_scale(subject) == pytest.approx(scale_of(np.array(rows)), rel=1e-9)


def test_both_parts_are_unbiased_for_unequal_groups(monkeypatch):
    """19 of 40 examples in 4 groups of 5, 5, 5 and 4."""
    monkeypatch.setattr(dynamics.moments, "cheap", lambda subject: False)
    subject, rows = linear(40, skew=0.5)
    traces, squares = [], []
    for i in range(400):
        part = subject.sample(19, rng=chance.generator(5, "part", i))
        details = dynamics.gradient_noise_scale(part, rng=chance.generator(6, "groups", i), groups=4).details
        traces.append(details["trace"])
        squares.append(details["gradient_square"])
    for seen, truth in ((traces, rows.var(0, ddof=1).sum()), (squares, (rows.mean(0) ** 2).sum())):
        assert abs(np.mean(seen) - truth) < 4 * np.std(seen) / 20


@pytest.mark.parametrize(("dtype", "skew"), [(torch.float32, 0.3), (torch.float64, 0.0)])
@pytest.mark.parametrize("by_groups", [False, True])
def test_the_interval_covers_the_truth(dtype, skew, by_groups, monkeypatch):
    if by_groups:
        monkeypatch.setattr(dynamics.moments, "cheap", lambda subject: False)
    subject, rows = linear(100, skew=skew, dtype=dtype)
    inside, plan = 0, {"numerics.per_example": plan_of(subject)}
    for i in range(200):
        part = subject.sample(50, rng=chance.generator(1, "half", i))
        part._shared.update(plan)
        low, high = dynamics.gradient_noise_scale(part, rng=chance.generator(2, "groups", i), groups=16).ends()
        inside += low <= scale_of(rows) <= high
    assert 0.90 <= inside / 200 <= 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_over_all_examples_dense_layers_give_the_exact_value(dtype):
    subject, rows = linear(100, skew=0.5, dtype=dtype)
    reading = dynamics.gradient_noise_scale(subject, rng=chance.generator(0))
    assert abs(float(reading) - scale_of(rows)) <= reading.error < 1e-3 * scale_of(rows)
    assert reading.error_kind == "bound"


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_moments_are_those_of_the_gram_matrix(build):
    subject, rows = build(n=12), torch.tensor([0, 3, 4, 11])
    gram = gradient_gram(subject)
    for memory in (1 << 30, 0):
        found = gradient_moments(subject, rows, memory=memory)
        scale = float(gram.diagonal().max())
        assert float((found.squares - gram.diagonal()).abs().max()) < 1e-12 * scale
        assert float((found.along - gram.mean(1)[rows]).abs().max()) < 1e-12 * scale
        assert found.mean_square == pytest.approx(float(gram.mean()), abs=1e-12 * scale)


def test_a_gradient_lost_in_noise_leaves_the_interval_open():
    subject, _ = linear(400, fitted=True)
    reading = dynamics.gradient_noise_scale(subject.sample(100, rng=chance.generator(0, "part")), rng=chance.generator(0), groups=16)
    low, high = reading.ends()
    assert math.isinf(high)
    assert math.isfinite(float(reading))
    assert float(reading) >= low > 20
    assert str(reading).startswith("> ")


def test_two_passes_give_the_same_estimate(monkeypatch):
    subject = cnn(n=40)
    one = dynamics.gradient_noise_scale(subject, rng=chance.generator(3), groups=16)
    monkeypatch.setattr(dynamics, "HELD_BYTES", 0)
    two = dynamics.gradient_noise_scale(subject, rng=chance.generator(3), groups=16)
    assert float(one) == pytest.approx(float(two), rel=1e-9)
    assert two.ends()[0] <= one.ends()[0] < one.ends()[1] <= two.ends()[1]


def test_few_examples_and_bad_settings():
    subject, _ = linear(20)
    reading = dynamics.gradient_noise_scale(cnn(n=20), rng=chance.generator(0), groups=32)
    assert reading.details["groups"] == 10
    assert any("10 groups instead of 32" in text for text in reading.assumes)
    with pytest.raises(OutOfScope, match="at least 8 examples"):
        dynamics.gradient_noise_scale(linear(7)[0], rng=chance.generator(0))
    with pytest.raises(InvalidInput, match="at least 4"):
        dynamics.gradient_noise_scale(subject, rng=chance.generator(0), groups=0)
    same = Subject.freeze(nn.Linear(1, 1, bias=False), "mse", (torch.ones(16, 1), torch.zeros(16, 1)))
    with pytest.raises(OutOfScope, match="no noise"):
        dynamics.gradient_noise_scale(same, rng=chance.generator(0))


def step_rows(subject, draws=4):
    change = dynamics.sgd_step_change(subject, rng=chance.generator(1), draws=draws)
    terms = dynamics.sgd_step_terms(subject, rng=chance.generator(2), draws=draws)
    return change, terms, theory.sgd_step(terms.details["first"], terms.details["second"], subject.training.lr)


def test_on_a_quadratic_the_second_order_is_exact():
    """Whatever rng either side is given, both speak of the same batches."""
    change, _, predicted = step_rows(linear(skew=0.3)[0])
    assert float(change) == pytest.approx(float(predicted), rel=1e-12)
    assert change.details["batches"] == 4
    assert change.details["spread"] > 0


def test_the_error_of_the_expansion_is_of_third_order():
    gaps = []
    for lr in (0.04, 0.02):
        change, _, predicted = step_rows(mlp_regression(n=24, lr=lr))
        gaps.append(abs(float(change) - float(predicted)))
    assert 6 < gaps[0] / gaps[1] < 10


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_terms_agree_with_plain_autograd(build):
    subject = build(n=16)
    reading = dynamics.sgd_step_terms(subject, rng=chance.generator(0), draws=dynamics.FEWEST_DRAWS)
    assert np.abs(reading.value - dynamics.exact_step_terms(subject)).max() <= 1e-9 * np.abs(reading.value).max()


def test_whole_batches_and_impossible_steps():
    subject, rows = linear(batch_size=64)
    change, terms, _ = step_rows(subject)
    assert change.details["batches"] == 1
    assert terms.details["first"][0] == pytest.approx((rows.mean(0) ** 2).sum())
    unknown = dynamics.sgd_step_change(linear(batch_size=None)[0], rng=chance.generator(0))
    assert any("not known" in text for text in unknown.assumes)
    with pytest.raises(OutOfScope, match="infinite"):
        dynamics.sgd_step_change(linear(lr=1e200)[0], rng=chance.generator(0))
    with pytest.raises(OutOfScope, match="learning rate"):
        dynamics.sgd_step_change(linear(lr=None)[0], rng=chance.generator(0))
    with pytest.raises(InvalidInput):
        dynamics.sgd_step_terms(subject, rng=chance.generator(0), draws=0)


def test_best_learning_rate_grows_with_the_batch_as_stated():
    """Against the minimum, found numerically, of -lr |G|^2 + lr^2 / 2 h (|G|^2 + tr Sigma / B)."""
    square, trace, curvature = 0.7, 30.0, 2.5

    def best(batch):
        return optimize.minimize_scalar(lambda lr: -lr * square + lr**2 / 2 * curvature * (square + trace / batch), method="brent", options={"xtol": 1e-12}).x

    noise = trace / square
    assert theory.lr_ratio(noise, 8, 64) == pytest.approx(best(64) / best(8), rel=1e-6)
    assert theory.steps_ratio(noise, 8, 64) == pytest.approx(best(8) / best(64), rel=1e-6)
    assert theory.lr_ratio(noise, 1e-6, 2e-6) == pytest.approx(2, rel=1e-6)
    assert theory.best_step(0.1, -0.1 * square, 0.1**2 / 2 * curvature * square) == pytest.approx(best(1e15), rel=1e-6)
    with pytest.raises(InvalidInput):
        theory.steps_ratio(noise, 0, 4)
    with pytest.raises(InvalidInput):
        theory.sgd_step([1.0], [1.0, 2.0], 0.1)


def rows_for(subject, noise, **training):
    facts = dataclasses.replace(facts_of(subject), training=Training("sgd", 0.1, **training))
    return {row.title: (row, *row.settle()) for row in chapter.chapter(facts, {"gradient_noise_scale": noise})}


@pytest.mark.parametrize(
    ("batch", "interval", "outcome", "words"),
    [(8, (150.0, 250.0), "holds", "far below"), (128, (150.0, 250.0), "holds", "below"), (200, (150.0, 250.0), "inconclusive", "near"), (300, (150.0, 250.0), "fails", "above"), (8, (150.0, math.inf), "holds", "far below")],
)  # fmt: skip
def test_the_chapter_places_the_batch(batch, interval, outcome, words):
    subject, _ = linear(1024)
    noise = Reading("gradient_noise_scale", 200.0, "examples", error=25.0, error_kind="sample", n=32, interval=interval)
    row, verdict, said, advice = rows_for(subject, noise, batch_size=batch)["gradient noise scale"]
    assert row.headline
    assert verdict.outcome == outcome
    assert said.endswith(words)
    assert any(character.isdigit() for character in advice)


def test_the_chapter_without_noise_or_batch():
    subject, _ = linear(64)
    noise = Reading("gradient_noise_scale", 200.0, "examples", error=25.0, error_kind="sample", n=32)
    assert rows_for(subject, noise, batch_size=64)["gradient noise scale"][1].outcome == "out_of_scope"
    assert rows_for(subject, noise)["gradient noise scale"][1] is None
    assert list(chapter.chapter(facts_of(subject), {})) == []


def test_the_step_row_holds_where_the_expansion_does():
    subject = mlp_regression(n=24, lr=0.02)
    change, terms, _ = step_rows(subject)
    rows = {row.title: row.settle() for row in chapter.chapter(facts_of(subject), {"sgd_step_change": change, "sgd_step_terms": terms})}
    verdict, words, _ = rows["one step's change of the loss"]
    assert verdict.outcome == "holds"
    assert "as slope and curvature say" in words
    other = dataclasses.replace(facts_of(subject), training=Training("sgd", 0.04, batch_size=4))
    moved = [row.predicted for row in chapter.chapter(other, {"sgd_step_change": change, "sgd_step_terms": terms})]
    assert float(moved[0]) != pytest.approx(float(rows["one step's change of the loss"][0].gap * 0 + float(change)), rel=0.2)
