"""Noise scales by other routes than `gradient_noise_scale`, the noise's spectrum and tails, and what it costs in loss."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from networks import cnn, tokens
from test_dynamics import linear, scale_of
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.sgd import Sgd
from gnomon.core.subject import Subject
from gnomon.core.training import Training
from gnomon.examination import dynamics as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import noise, noise_spectrum
from gnomon.numerics import dense
from gnomon.numerics.gram import gradient_gram
from gnomon.theory import noise as theory
from gnomon.theory.stochastic.quadratic import Quadratic
from gnomon.theory.stochastic.stationary import discrete_covariance, excess_loss


def weighed(rows, hessian):
    mean = rows.mean(0)
    rest = rows - mean
    return np.einsum("ip,pq,iq->", rest, hessian, rest) / (len(rows) - 1) / (mean @ hessian @ mean)


def inputs_of(subject):
    return next(subject.train.chunks(len(subject.train))).inputs.double().numpy()


def test_the_hessian_weighed_scale_is_the_closed_form_of_least_squares():
    subject, rows = linear(skew=0.5)
    x = inputs_of(subject)
    assert noise.exact_hessian_noise_scale(subject) == pytest.approx(weighed(rows, 2 * x.T @ x / len(x)), rel=1e-9)


def test_on_a_sample_the_hessian_weighed_interval_covers_the_scale_of_all():
    subject, rows = linear(100, skew=0.2)
    x = inputs_of(subject)
    truth, inside = weighed(rows, 2 * x.T @ x / len(x)), 0
    for i in range(100):
        low, high = noise.hessian_noise_scale(subject.sample(50, rng=chance.generator(1, "half", i)), rng=chance.generator(2, "groups", i), groups=8).ends()
        inside += low <= truth <= high
    assert 0.90 <= inside / 100 <= 1.0


def test_where_the_loss_curves_downwards_there_is_no_hessian_weighed_scale():
    class Top(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.full((2,), 0.1, dtype=torch.float64))

        def forward(self, x):
            return torch.cos(self.w * x).sum(-1, keepdim=True)

    x = torch.linspace(0.5, 1, 32, dtype=torch.float64)[:, None].repeat(1, 2)
    subject = Subject.freeze(Top(), lambda output, target: (output - target).mean(), (x, torch.zeros(32, 1, dtype=torch.float64)))
    with pytest.raises(OutOfScope, match="does not curve upwards"):
        noise.hessian_noise_scale(subject, rng=chance.generator(0))


def norms(replacement, *, population, draws, rng, size=6, signal=0.5, batch=(2, 8)):
    """Squared norms of batch means of a population of Gaussian vectors, and its exact noise scale."""
    rows = rng.standard_normal((population, size)) + signal
    out = []
    for b in batch:
        chosen = [rng.integers(population, size=b) if replacement else rng.permutation(population)[:b] for _ in range(draws)]
        out.append((rows[np.array(chosen)].mean(1) ** 2).sum(1))
    return out, scale_of(rows)


@pytest.mark.parametrize("replacement", [True, False])
def test_two_batch_sizes_cover_the_scale_however_batches_are_drawn(replacement):
    inside = 0
    for seed in range(200):
        (small, big), truth = norms(replacement, population=16, draws=48, rng=np.random.default_rng(seed))
        low, high = noise.noise_scale_of_norms(small, big, small=2, big=8, population=16, replacement=replacement).ends()
        inside += low <= truth <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_confusing_the_two_ways_of_drawing_shows_and_there_is_no_default():
    (small, big), truth = norms(False, population=16, draws=20_000, rng=np.random.default_rng(0))
    right = noise.noise_scale_of_norms(small, big, small=2, big=8, population=16, replacement=False)
    wrong = noise.noise_scale_of_norms(small, big, small=2, big=8, population=16, replacement=True)
    assert right.ends()[0] <= truth <= right.ends()[1]
    assert not wrong.ends()[0] <= truth <= wrong.ends()[1]
    with pytest.raises(TypeError, match="replacement"):
        noise.noise_scale_of_norms(small, big, small=2, big=8, population=16)


def test_the_ratio_of_means_is_not_the_mean_of_ratios():
    (small, big), truth = norms(True, population=64, draws=4000, rng=np.random.default_rng(1))
    f, g = (1 - 1 / 64) / 2, (1 - 1 / 64) / 8
    each = (small - big) / (f * big - g * small)
    assert float(noise.noise_scale_of_norms(small, big, small=2, big=8, population=64, replacement=True)) == pytest.approx(truth, rel=0.1)
    assert abs(each.mean() - truth) > 0.1 * truth


def test_a_gradient_lost_in_noise_leaves_the_interval_of_two_batch_sizes_open():
    (small, big), _ = norms(True, population=64, draws=16, rng=np.random.default_rng(2), signal=0.0)
    low, high = noise.noise_scale_of_norms(small, big, small=2, big=8, population=None, replacement=True).ends()
    assert low > 0
    assert math.isinf(high)


def test_batches_of_a_network_give_its_scale():
    subject, rows = linear(64)
    for replacement in (True, False):
        reading = noise.noise_scale_two_batches(subject, rng=chance.generator(3), small=2, big=16, replacement=replacement, draws=600)
        assert abs(float(reading) - scale_of(rows)) < 4 * float(reading.error) < scale_of(rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"big": 40, "replacement": False}, "without replacement from 32"), ({"small": 8}, "must differ"), ({"small": 0}, "must differ")],
)
def test_batches_that_cannot_be_are_refused(change, said):
    settings = {"small": 2, "big": 8, "population": 32, "replacement": True} | change
    with pytest.raises(InvalidInput, match=said):
        noise.noise_scale_of_norms(np.ones(9) * 2, np.ones(9), **settings)
    with pytest.raises(InvalidInput, match=said):
        noise.OnlineNoiseScale(**settings)


def test_on_line_it_is_the_estimate_of_the_last_steps():
    rng = np.random.default_rng(4)
    online = noise.OnlineNoiseScale(small=2, big=8, population=None, replacement=True, window=32)
    with pytest.raises(InvalidInput, match="at least 8"):
        online.reading()
    kept = []
    for _ in range(50):
        parts = [torch.tensor(rng.standard_normal(5) / 2**0.5 + 0.4) for _ in range(4)]
        online.add([[part[:2], part[2:]] for part in parts])
        mean = torch.stack(parts).mean(0)
        kept.append((np.mean([float(p @ p) for p in parts]), float(mean @ mean)))
    online.add_squares(math.inf, 1.0)
    small, big = np.array(kept[-32:]).T
    assert float(online.reading()) == float(noise.noise_scale_of_norms(small, big, small=2, big=8, population=None, replacement=True))
    with pytest.raises(InvalidInput, match="4 micro-batches of 2; 3"):
        online.add([torch.ones(2)] * 3)


def test_the_probes_of_the_noise_are_its_covariance():
    subject, rows = linear(32, skew=0.4)
    probes = np.stack([noise_spectrum._probe(subject, i)[0].numpy() for i in range(500)])
    products = probes[:, :, None] * probes[:, None, :]
    gap = products.mean(0) - np.cov(rows.T)
    assert (np.abs(gap) < 4.5 * products.std(0) / 500**0.5).all()


def test_the_spectrum_that_noise_sees_is_that_of_the_hessian():
    subject = cnn(n=24)
    details = noise_spectrum.noise_curvature(subject, rng=chance.generator(0), probes=2).details
    hessian = dense.hessian(subject).numpy()
    for index in range(2):
        v = noise_spectrum._probe(subject, index)[0].numpy()
        for power in range(4):
            truth = v @ np.linalg.matrix_power(hessian, power) @ v
            assert details["weights"][index] @ details["nodes"][index] ** power == pytest.approx(truth, rel=1e-8)


def test_alignment_is_the_covariance_along_the_sharpest_directions():
    subject = tokens(n=24)
    reading = noise_spectrum.noise_alignment(subject, rng=chance.generator(0), k=3)
    values, vectors = torch.linalg.eigh(dense.hessian(subject))
    rows = torch.stack([noise_spectrum.summed_gradient(subject, subject.train.select(torch.tensor([i]))) for i in range(24)])
    rows = rows * 24 / subject.total_weight()
    truth = torch.stack([(rows @ vectors[:, -1 - i]).var() for i in range(3)]).numpy()
    assert (np.abs(reading.value - truth) <= reading.error).all()
    assert reading.details["trace"] == pytest.approx(float(rows.var(0).sum()), rel=1e-9)
    assert reading.details["eigenvalues"] == pytest.approx(values.flip(0)[:3].numpy(), rel=1e-3)
    gram = gradient_gram(subject)
    assert reading.details["trace"] == pytest.approx(float((gram.diagonal().sum() - gram.mean() * 24) / 23), rel=1e-9)


def test_tail_indices_of_known_laws():
    rng = np.random.default_rng(0)
    for draws, alpha in ((rng.standard_normal(90_000), 2.0), (rng.standard_cauchy(90_000), 1.0)):
        assert 1 / noise_spectrum.tail_index_estimate(draws, 300) == pytest.approx(alpha, rel=0.05)
    assert noise_spectrum.hill_estimate(rng.pareto(3.0, 200_000) + 1, 0.01) == pytest.approx(3.0, rel=4 / 2000**0.5)
    for wrong in (1, 60_000):
        with pytest.raises(InvalidInput, match="at least 2"):
            noise_spectrum.tail_index_estimate(np.ones(90_000), wrong)


def test_unequal_scales_make_gaussian_noise_look_heavy_and_the_control_says_so():
    """g_i = -y_i elementwise scaled: Gaussian in each coordinate, with scales over four decades."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.standard_normal(200) * 2)
    model = nn.Linear(200, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.tensor(rng.standard_normal((512, 200)) * scales)
    subject = Subject.freeze(model, lambda output, target: (output * target).mean(), (x, torch.ones(512, 1, dtype=torch.float64)))
    reading = noise_spectrum.tail_index(subject, rng=chance.generator(0), batch_size=8, replacement=True, draws=128)
    pooled, control, each, each_control = reading.value
    errors = np.hypot(reading.error[::2], reading.error[1::2])
    assert pooled < 1.5
    assert abs(pooled - control) < 4 * errors[0] < 0.4
    assert abs(each - each_control) < 4 * errors[1] < 0.8
    assert each_control == pytest.approx(2.0, abs=4 * float(reading.error[3]))
    with pytest.raises(InvalidInput, match="fewer than the 512"):
        noise_spectrum.tail_index(subject, rng=chance.generator(0), batch_size=512, replacement=False)


SGD = Sgd(lr=0.1, batch_size=4, examples=40, sampling="with_replacement")


def test_the_chapter_says_what_the_control_says_of_tails():
    """Targets whose fluctuations are Gaussian, of unequal scales, or with tails of index 1: the slope of the loss is theirs."""
    rng, scales = chance.generator(3), torch.logspace(-2, 2, 40, dtype=torch.float64)
    normal, flat = chance.normal(600, 40, rng=rng), torch.linspace(-0.499, 0.499, 600, dtype=torch.float64)
    heavy = torch.tan(math.pi * flat)[torch.stack([chance.permutation(600, rng=rng) for _ in range(40)], 1)]
    for targets, outcomes, words in ((normal * scales, ["holds", "holds"], "no heavier than Gaussian: "), (heavy, ["fails", "fails"], "heavier than Gaussian: ")):
        model = nn.Linear(1, 40, bias=False).double()
        nn.init.zeros_(model.weight)
        subject = Subject.freeze(model, "mse", (torch.ones(600, 1, dtype=torch.float64), targets), optimizer="adam", lr=0.1, batch_size=2)
        found = noise_spectrum.noise_tails(subject, rng=chance.generator(0), draws=512)
        rows = [row for row in chapter.chapter(facts_of(subject), {"noise_tails": found}) if row.title.startswith("tail index")]
        settled = [row.settle() for row in rows]
        assert [verdict.outcome for verdict, _, _ in settled] == outcomes
        assert all(said.startswith(words) for _, said, _ in settled)
    with pytest.raises(OutOfScope, match="batch size is not known"):
        noise_spectrum.noise_tails(dataclasses.replace(subject, training=Training(optimizer="sgd")), rng=rng)
    with pytest.raises(OutOfScope, match="holds all 600"):
        noise_spectrum.noise_tails(dataclasses.replace(subject, training=Training(optimizer="sgd", batch_size=600)), rng=rng)


def test_the_cost_of_noise_in_so_many_steps_is_the_closed_form():
    h, w, k = np.array([[0.5, 8.0], [2.0, 12.0]]), np.array([[1.0, 2.0], [0.5, 3.0]]), 7
    found = theory.noise_excess_loss(h, w, SGD, steps=k)
    keep = 1 - SGD.lr * h
    each = (w * h / 2 * SGD.lr**2 / 4 * 39 / 40 * (1 - keep ** (2 * k)) / (1 - keep**2)).sum(1)
    assert float(found) == pytest.approx(each.mean(), rel=1e-12)
    assert found.error == pytest.approx(each.std(ddof=1) / 2**0.5)
    scaled = theory.noise_excess_loss(h, w, SGD, steps=k, trace=10.0)
    assert float(scaled) == pytest.approx(10 * each.sum() / w.sum(), rel=1e-12)
    assert found.details["downhill"] == 0
    both = theory.noise_excess_loss([[-2.0, 2.0]], [[1.0, 1.0]], SGD, steps=2)
    assert both.details["downhill"] == pytest.approx((1 - 1.2**4) / (1 - 1.2**2) / ((1 - 0.8**4) / (1 - 0.8**2)))


@pytest.mark.parametrize("change", [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}, {"sampling": "without_replacement"}])
def test_after_long_it_is_the_stationary_cost_by_the_lyapunov_equation(change):
    sgd, h, w = SGD.replace(**change), np.array([1.0, 3.0, 6.0]), np.array([0.7, 0.2, 0.4])
    settled = theory.stationary_excess_loss(h, w, sgd)
    covariance = discrete_covariance(Quadratic(np.diag(h), np.diag(w) * 39 / 40), sgd)
    assert float(settled) == pytest.approx(float(excess_loss(covariance, np.diag(h))), rel=1e-9)
    assert float(theory.noise_excess_loss(h, w, sgd, steps=600)) == pytest.approx(float(settled), rel=1e-9)
    slow = sgd.replace(lr=1e-5)
    assert theory.short_step_excess_loss(w.sum(), slow) == pytest.approx(float(theory.stationary_excess_loss(h, w, slow)), rel=1e-3)


def test_above_the_limit_nothing_is_stationary_and_bad_numbers_are_refused():
    with pytest.raises(OutOfScope, match="above the limit of stability in a direction of curvature 25"):
        theory.stationary_excess_loss([[1.0, 25.0]], [[1.0, 1.0]], SGD)
    with pytest.raises(InvalidInput, match="one shape"):
        theory.noise_excess_loss([[1.0]], [[1.0, 2.0]], SGD, steps=1)
    with pytest.raises(InvalidInput, match="at least 1"):
        theory.noise_excess_loss([[1.0]], [[1.0]], SGD, steps=0)
