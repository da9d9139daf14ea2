import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, cnn, lstm, mlp_regression, take, tied_frozen, tokens
from scipy import stats
from torch import nn

from gnomon.core import registry
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject
from gnomon.examination import generalization as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import generalization, norms
from gnomon.instruments.outcomes import bounded_interval, outcomes, variance
from gnomon.run.plan import unmet
from gnomon.theory import generalization as theory


def scaled_logits(scale, n=4000, classes=5, test=None, seed=0):
    """A network whose inputs are calibrated logits, which it multiplies by `scale`: labels are drawn from the softmax of the inputs."""
    rng = chance.generator(seed, "logits")
    z = 2 * chance.normal(n, classes, rng=rng)
    labels = (z.softmax(1).cumsum(1) < chance.uniform(n, 1, rng=rng)).sum(1).clamp_max(classes - 1)
    model = nn.Linear(classes, classes, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(scale * torch.eye(classes))
    return Subject.freeze(model, "cross_entropy", (z[:500], labels[:500]), (z[500:test], labels[500:test]), chunk=1000)


def chapter_rows(subject):
    readings = {}
    for name, instrument in registry.instruments().items():
        if instrument.topic == "generalization" and not unmet(subject, instrument, "end"):
            with contextlib.suppress(OutOfScope):
                readings[name] = instrument(subject, rng=chance.generator(0, name), **({instrument.knob: instrument.smallest} if instrument.knob else {}))
    return {row.title: (row, *row.settle()) for row in chapter.chapter(facts_of(subject), readings)}


def test_tokens_that_are_ignored_count_for_nothing():
    subject = tokens(n=9)
    block = next(subject.train.chunks(9))
    with torch.no_grad():
        logits = subject(subject.state, block.inputs)
    kept = block.targets != -1
    found = outcomes(subject, "train")
    assert found.value == pytest.approx(float((logits.argmax(-1) != block.targets)[kept].double().mean()), abs=1e-12)
    assert len(found.sums) == 8  # one example has no token left
    assert found.confidences.sum() / found.counts.sum() == pytest.approx(float(logits.softmax(-1).amax(-1)[kept].mean()))


@pytest.mark.parametrize(("errors", "n"), [(0, 30), (3, 40), (40, 40), (500, 1000)])
def test_right_or_wrong_has_the_interval_of_clopper_and_pearson(errors, n):
    sums = np.repeat([1.0, 0.0], [errors, n - errors])
    exact = stats.binomtest(errors, n).proportion_ci(0.95, "exact")
    assert bounded_interval(sums, np.ones(n)) == pytest.approx((exact.low, exact.high))


def test_tokens_of_one_example_are_no_independent_trials():
    """Every example's 10 tokens share its fate: the interval is that of the examples, a little wider, not that of ten times as many trials."""
    rng = np.random.default_rng(0)
    fate = (rng.random(200) < 0.2).astype(float)
    low, high = bounded_interval(10 * fate, np.full(200, 10.0))
    exact = stats.binomtest(int(fate.sum()), 200).proportion_ci(0.95, "exact")
    assert low <= exact.low
    assert high >= exact.high
    assert high - low < 1.1 * (exact.high - exact.low)
    assert variance(10 * fate, np.full(200, 10.0)) == pytest.approx(fate.var(ddof=1) / 200)


def test_the_whole_training_set_adds_no_error_to_the_gap():
    subject = scaled_logits(1.0, 900)
    whole = take(generalization.generalization_gap, subject)
    error = take(generalization.test_error, subject)
    assert whole.ends()[0] == pytest.approx(error.ends()[0] - whole.details["train"])
    part = take(generalization.generalization_gap, subject.sample(100, rng=chance.generator(3)))
    assert part.ends()[1] - part.ends()[0] > whole.ends()[1] - whole.ends()[0]


def test_regression_compares_losses():
    subject = mlp_regression(n=12)
    gap = take(generalization.generalization_gap, subject)
    with torch.no_grad():
        parts = [((subject(subject.state, b.inputs) - b.targets) ** 2).mean(1) for data in (subject.test, subject.train) for b in data.chunks(100)]
    assert float(gap) == pytest.approx(float(parts[0].mean() - parts[1].mean()))
    half = stats.t.ppf(0.975, 7) * float(parts[0].std()) / math.sqrt(8)
    assert gap.ends()[1] - float(gap) == pytest.approx(half)
    for function in (generalization.confidence, generalization.stochastic_error):
        with pytest.raises(OutOfScope):
            take(function, subject)


@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("m", [20, 150])
def test_the_held_out_bound_is_kept_as_often_as_it_says(p, m):
    """The probability of a bound below the truth, summed over all outcomes, is at most 1 - level."""
    values = np.array([float(theory.held_out_bound(k, m, whole=True, level=0.95)) for k in range(m + 1)])
    assert stats.binom.pmf(np.arange(m + 1), m, p)[values < p].sum() <= 0.05 + 1e-12
    chernoff = np.array([float(theory.held_out_bound(k, m, whole=False, level=0.95)) for k in range(m + 1)])
    assert (chernoff >= values - 1e-12).all()


def test_divergence_and_its_inversion():
    assert theory.divergence_inversion(0.97, 2.0) == 1.0  # 1 - p is below what a float can tell from 0
    for q in (0.0, 0.02, 0.5, 0.97):
        for budget in (1e-3, 0.1, 0.7):
            assert theory.binary_divergence(q, theory.divergence_inversion(q, budget)) == pytest.approx(budget, rel=1e-3)
    assert theory.divergence_inversion(0.0, 0.3) == pytest.approx(1 - math.exp(-0.3))
    assert theory.divergence_inversion(0.3, 0.0) == 0.3
    with pytest.raises(InvalidInput):
        theory.divergence_inversion(1.2, 0.1)


def test_pac_bayes_in_closed_form_and_its_grid():
    """Without errors kl(0 || p) = -ln(1 - p)."""
    sigma, n, draws, delta = 16 * 2**-2.5, 5000, 100, 0.01
    bound = theory.pac_bayes_bound(0.0, draws=draws, distance=3.0, sigma=sigma, index=5, examples=n)
    seen = 1 - math.exp(-math.log(4 / delta) / draws)
    budget = (9 / (2 * sigma**2) + math.log(2 * math.sqrt(n) * 2 * math.pi**2 * 36 / (6 * delta))) / n
    assert float(bound) == pytest.approx(theory.divergence_inversion(seen, budget))
    assert bound.role == "bound"
    farther = theory.pac_bayes_bound(0.0, draws=draws, distance=30.0, sigma=sigma, index=5, examples=n)
    fewer = theory.pac_bayes_bound(0.0, draws=draws, distance=3.0, sigma=sigma, index=5, examples=n, at_hand=200)
    assert float(bound) < min(float(farther), float(fewer))
    with pytest.raises(InvalidInput, match="grid"):
        theory.pac_bayes_bound(0.0, draws=draws, distance=3.0, sigma=1.0, index=5, examples=n)


def test_noise_is_what_the_bound_can_pay_for():
    subject = cnn(n=64)
    reading = take(generalization.stochastic_error, subject, draws=32)
    details = reading.details
    share = details["distance"] ** 2 / (2 * details["sigma"] ** 2) / 64
    assert generalization.DIVERGENCE / 2 <= share <= generalization.DIVERGENCE
    assert details["sigma"] == pytest.approx(16 * 2 ** (-details["index"] / 2))
    with pytest.raises(OutOfScope, match="initialisation"):
        take(generalization.stochastic_error, subject.at(subject.initial))
    with pytest.raises(InvalidInput):
        take(generalization.stochastic_error, subject, draws=1)


def test_a_calibrated_network_agrees_with_its_errors():
    _, verdict, words, advice = chapter_rows(scaled_logits(1.0, 40_000))["confidence against errors"]
    assert (verdict.outcome, words, advice) == ("holds", "calibrated on average", None)


@pytest.mark.parametrize(("scale", "word"), [(2.0, "over-confident"), (0.5, "under-confident")])
def test_a_miscalibrated_network_is_told_its_temperature(scale, word):
    subject = scaled_logits(scale)
    fitted = take(generalization.logit_scale, subject)
    assert fitted.ends()[0] < 1 / scale < fitted.ends()[1]
    assert float(fitted) == pytest.approx(generalization.exact_logit_scale(subject), rel=1e-6)
    _, verdict, words, advice = chapter_rows(subject)["confidence against errors"]
    assert verdict.outcome == "fails"
    assert words.startswith(word)
    temperature = float(advice.split("Divide the logits by ")[1].split()[0])
    assert temperature == pytest.approx(scale, rel=0.15)


def test_no_finite_temperature_fits_a_network_that_is_always_right():
    z = torch.eye(3).double().repeat(20, 1)
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    subject = Subject.freeze(model, "cross_entropy", (z, z.argmax(1)), (z, z.argmax(1)))
    with pytest.raises(OutOfScope, match="no finite temperature"):
        take(generalization.logit_scale, subject)


def test_few_errors_do_not_make_the_confidence_certain():
    """No error among 40 at confidence 0.97 is what a calibrated network would often show; the verdict must not be certain."""
    z = torch.tensor([[math.log(0.97 / 0.03), 0.0]]).double().repeat(40, 1)
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    subject = Subject.freeze(model, "cross_entropy", (z, torch.arange(40) % 2), (z, torch.zeros(40, dtype=torch.long)))
    rows = chapter_rows(subject)
    assert rows["confidence against errors"][1].outcome == "inconclusive"


class Circular(nn.Module):
    def __init__(self, size=12):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.head = nn.Linear(4 * size * size, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


def test_a_circular_convolution_has_the_norm_of_its_fourier_blocks():
    """Its singular values are those of the 4 x 3 matrices of the kernel's discrete Fourier transform (12 x 12 of them)."""
    with chance.scoped(chance.generator(0, "circular")):
        model = Circular().double()
    x = chance.normal(10, 3, 12, 12, rng=chance.generator(1))
    subject = Subject.freeze(model, "cross_entropy", (x, torch.arange(10) % 2))
    reading = take(norms.spectral_norms, subject)
    kernel = np.fft.fft2(model.conv.weight.detach().numpy(), s=(12, 12)).transpose(2, 3, 0, 1)
    truth = np.linalg.svd(kernel, compute_uv=False).max()
    assert abs(reading.value[0] - truth) <= reading.error[0] < 0.02 * truth
    assert reading.value[1] == pytest.approx(np.linalg.norm(model.head.weight.detach().numpy(), 2))


def test_layers_without_a_norm_are_named():
    assert any("LSTM" in text for text in take(norms.spectral_norms, lstm()).skipped)
    reading = take(norms.spectral_norms, tied_frozen())
    assert reading.axes[0].values == ("fixed", "first", "second", "twice", "head")
    assert reading.value[1] == reading.value[2]

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            return x @ self.w

    with pytest.raises(OutOfScope, match="no linear"):
        take(norms.spectral_norms, Subject.freeze(Bare(), "mse", (torch.ones(4, 2), torch.ones(4, 2))))


def test_norms_follow_the_state():
    """A subject elsewhere, and weights that a parametrisation makes, are those that the forward pass sees."""
    subject = cnn()
    other = subject.at({key: 2 * value for key, value in subject.state.items()})
    assert take(norms.spectral_norms, other).value == pytest.approx(2 * take(norms.spectral_norms, subject).value)
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5), n_power_iterations=200).double().eval()
    made = Subject.freeze(nn.Sequential(layer, nn.Linear(5, 2).double()), "mse", (torch.randn(8, 6).double(), torch.zeros(8, 2).double()))
    assert take(norms.spectral_norms, made).value[0] == pytest.approx(1, abs=0.02)


def test_margins_in_units_of_the_norms():
    subject = cnn(n=40)
    reading = take(norms.margin_normalized, subject)
    block = next(subject.train.chunks(40))
    with torch.no_grad():
        z = subject(subject.state, block.inputs)
    own = z.gather(1, block.targets[:, None])[:, 0]
    best = torch.stack([torch.cat([row[:y], row[y + 1 :]]).max() for row, y in zip(z, block.targets, strict=True)])
    quantiles = np.quantile((own - best).numpy(), norms.QUANTILES, method="inverted_cdf")
    assert reading.value == pytest.approx(quantiles / np.prod(take(norms.spectral_norms, subject).value))
    doubled = subject.at({key: value * (2.0 if key == "head.weight" else 1.0) for key, value in subject.state.items()})
    assert take(norms.margin_normalized, doubled).details["norm_product"] == pytest.approx(2 * reading.details["norm_product"])


def test_distance_by_layer():
    reading = take(norms.distance_from_initialization, tied_frozen())
    subject = tied_frozen()
    both = torch.cat([(subject.state[k] - subject.initial[k]).reshape(-1) for k in ("first.weight", "first.bias")])
    assert reading.value[reading.axes[0].values.index("first")] == pytest.approx(float(both.norm()))
    assert "fixed" not in reading.axes[0].values
    assert (take(norms.distance_from_initialization, tied_frozen(torch.float32)).error > 0).all()


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_the_chapter_runs_everywhere(build):
    rows = chapter_rows(build(n=24))
    assert sum(row.headline for row, *_ in rows.values()) >= 1
    for row, verdict, words, advice in rows.values():
        assert words
        assert advice is None or any(character.isdigit() for character in advice)
        if row.predicted is not None:
            assert verdict.outcome != "error"


def test_a_regression_gets_a_decided_row():
    x = chance.normal(600, 3, rng=chance.generator(0))
    y = x[:, :1] + 0.1 * chance.normal(600, 1, rng=chance.generator(1))
    model = nn.Linear(3, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    rows = chapter_rows(Subject.freeze(model, "mse", (x[:200], y[:200]), (x[200:], y[200:])))
    _, verdict, _, advice = rows["squared error on new data, clipped"]
    assert verdict.outcome == "holds"
    assert "99.9 %" in advice
    useless = Subject.freeze(nn.Linear(3, 1).double(), "mse", (x[:200], 5 * y[:200]), (x[200:], 5 * y[200:]))
    assert chapter_rows(useless)["squared error on new data, clipped"][1].outcome == "vacuous"
    with pytest.raises(OutOfScope, match="between two limits"):
        take(generalization.held_out_error, Subject.freeze(model, nn.L1Loss(), (x[:200], y[:200]), (x[200:], y[200:])))


def test_signs_are_judged_for_binary_cross_entropy():
    x = chance.normal(300, 4, rng=chance.generator(0))
    y = (x[:, :2] > 0.3).double()
    model = nn.Linear(4, 2).double()
    subject = Subject.freeze(model, "bce_with_logits", (x[:100], y[:100]), (x[100:], y[100:]))
    error = take(generalization.test_error, subject)
    with torch.no_grad():
        wrong = ((model(x[100:]) > 0) != (y[100:] > 0.5)).double().mean()
    assert float(error) == pytest.approx(float(wrong))
    assert error.details["kind"] == "binary"
    assert 0.5 <= float(take(generalization.confidence, subject)) <= 1


def test_advice_never_rests_on_a_vacuous_bound():
    gap = Reading(
        "held_out_error", 0.2, "", error=0.1, error_kind="sample", n=6, details={"kind": "labels", "first_sum": 2.0, "first": 2, "whole": True, "scale": 1.0, "constant": None}
    )
    facts = dataclasses.replace(facts_of(cnn()))
    (row,) = chapter.chapter(facts, {"held_out_error": gap})
    verdict, words, advice = row.settle()
    assert verdict.outcome == "vacuous"
    assert "too few" in words
    assert advice is None
