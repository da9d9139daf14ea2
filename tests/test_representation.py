import contextlib
import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, cnn, mlp_regression, take, tokens, transformer
from torch import nn

from gnomon.core import contract, registry
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.examination import representation as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import neural_collapse as collapse
from gnomon.instruments import representation
from gnomon.run.plan import unmet
from gnomon.theory import representation as theory


def head_on(x, y, weight, test=None, bias=None):
    """A linear head alone, whose features are its inputs."""
    model = nn.Sequential(nn.Linear(x.shape[1], len(weight))).to(x.dtype)
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[0].bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return Subject.freeze(model, "cross_entropy", (x, y), test or (x, y))


def simplex(classes, features, scale=3.0):
    """Vertices of a regular simplex in the first dimensions, turned at random."""
    vertices = torch.eye(classes, dtype=torch.float64) - 1 / classes
    rotation = torch.linalg.qr(chance.normal(features, features, rng=chance.generator(0, "rotation"))).Q
    return scale * torch.cat([vertices, torch.zeros(classes, features - classes, dtype=torch.float64)], 1) @ rotation


def collapsed(classes=4, features=6, n=10, noise=0.0, shift=0.7):
    means = simplex(classes, features)
    y = torch.arange(classes).repeat_interleave(n)
    x = means[y] + shift + noise * chance.normal(len(y), features, rng=chance.generator(1, "noise"))
    return head_on(x, y, 5 * means, bias=-5 * shift * means.sum(1))


def test_a_collapsed_network_has_the_predicted_statistics():
    found = take(collapse.neural_collapse, collapsed())
    assert np.allclose(found.value, theory.neural_collapse(4, 6).value, atol=1e-10)
    assert found.details["error"] == 0
    assert found.details["fewest"] == found.details["most"] == 10


def test_variability_is_the_ratio_of_the_variances_for_two_classes():
    """Two classes at +-a on one axis with within-class variance s^2 along it: Sigma_B = a^2, NC1 = s^2 / (2 a^2), cosine -1."""
    x = torch.tensor([[2.5, 1.0], [1.5, -1.0], [-1.5, 1.0], [-2.5, -1.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])
    found = take(collapse.neural_collapse, head_on(x, y, torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)))
    assert found.value[0] == pytest.approx(0.25 / (2 * 4))
    assert found.value[2] == pytest.approx(-1)
    # W / |W| = diag / sqrt 2, M / |M| = ((1, 0), (-1, 0)) / sqrt 2
    assert found.value[4] == pytest.approx(math.sqrt((1 + 1) / 2))


@pytest.mark.parametrize("build", NETWORKS)
def test_spectra_are_those_of_singular_values_and_determinants(build):
    subject = build(n=24)
    for function, exact in ((representation.effective_rank, representation.exact_effective_rank), (representation.coding_rate, representation.exact_coding_rate)):
        found = take(function, subject)
        assert np.allclose(found.value, exact(subject), rtol=1e-5)
        assert (np.abs(found.value - exact(subject)) <= found.error).all()


@pytest.mark.parametrize("build", NETWORKS)
def test_nothing_exceeds_its_largest_value(build):
    subject = build(n=24)
    for function, most in ((representation.effective_rank, theory.largest_effective_rank), (representation.coding_rate, theory.largest_coding_rate)):
        found = take(function, subject)
        assert (found.value <= most(found.details["dimensions"], found.details["examples"]).value + found.error).all()


def test_equal_singular_values_reach_the_largest_values():
    x = torch.linalg.qr(torch.cat([torch.ones(8, 1), torch.eye(8)[:, :7]], 1).double()).Q[:, 1:4] * 3  # centred, orthogonal, equal columns
    subject = head_on(x, torch.arange(8) % 2, torch.eye(2, 3, dtype=torch.float64))
    assert take(representation.effective_rank, subject).value[0] == pytest.approx(3, rel=1e-9)
    assert theory.largest_effective_rank([3], 8).value[0] == 3
    unit = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    rate = take(representation.coding_rate, head_on(unit, torch.arange(8) % 2, torch.eye(2, 4, dtype=torch.float64)))
    assert rate.value[0] == pytest.approx(theory.largest_coding_rate([4], 8).value[0], rel=1e-9)


def test_orthogonal_classes_save_what_the_paper_s_formula_says():
    """Two classes, each one direction, orthogonal: R = 1/2 * 2 ln(1 + 2/(n e^2) n/2), R_c = 1/2 ln(1 + 2/e^2)."""
    x = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, dtype=torch.float64)
    y = torch.tensor([0] * 5 + [1] * 5)
    found = take(representation.rate_reduction, head_on(x, y, torch.eye(2, dtype=torch.float64)))
    assert found.value[0] == pytest.approx(math.log(1 + 2) - 0.5 * math.log(1 + 4), rel=1e-9)
    mixed = take(representation.rate_reduction, head_on(x, torch.arange(10) % 2, torch.eye(2, dtype=torch.float64)))
    assert mixed.value[0] == pytest.approx(0, abs=0.05)


def test_probes_read_what_is_linear_and_only_that():
    rng = chance.generator(0, "probe")
    x = chance.normal(600, 5, rng=rng)
    ring = (x.square().sum(1) > 4.35).long()  # the median of chi-square with five degrees of freedom

    class Squares(nn.Module):
        """Its head reads squares, from which the ring is linear."""

        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(5, 5, bias=False), nn.Linear(5, 2)

        def forward(self, z):
            return self.head(self.first(z).square())

    model = Squares().double()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(5))
        model.head.weight.copy_(torch.stack([-torch.ones(5), torch.ones(5)]))
        model.head.bias.copy_(torch.tensor([4.35, -4.35]))
    found = take(representation.linear_probe, Subject.freeze(model, "cross_entropy", (x[:400], ring[:400]), (x[400:], ring[400:])))
    assert found.value[0] < 0.65
    assert found.value[1] > 0.95
    assert found.details["own"] == 1.0


def test_many_features_are_added_up_with_lengths_kept():
    rows = chance.normal(40, 5000, rng=chance.generator(0, "rows"))
    kept = representation._kept(rows, "layer")
    assert kept.shape == (40, representation.FEATURES)
    ratio = kept.square().sum(1) / rows.square().sum(1)
    assert abs(float(ratio.mean()) - 1) < 0.05
    assert torch.equal(kept, representation._kept(rows, "layer"))


def test_the_layers_that_are_not_read_are_named():
    class Turned(nn.Module):
        """Its inner layer reads time first."""

        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.inner(x.transpose(0, 1)).mean(0))

    x, y = torch.randn(9, 4, 3, generator=chance.generator(0)), torch.arange(9) % 2
    found = take(representation.effective_rank, Subject.freeze(Turned(), "cross_entropy", (x, y), (x, y)))
    assert found.axes[0].values == ("head", "output")
    assert "inner" in found.skipped[0]


def test_what_has_no_classes_says_so():
    for function in (representation.rate_reduction, representation.linear_probe, collapse.neural_collapse):
        with pytest.raises(OutOfScope, match="labels an example"):
            take(function, tokens())
    x, y = torch.randn(12, 1, 4, 4, generator=chance.generator(0)), torch.arange(12) % 3
    convolutional = Subject.freeze(nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), "cross_entropy", (x, y))
    with pytest.raises(OutOfScope, match="`0`"):
        take(collapse.neural_collapse, convolutional)
    one_class = head_on(x[:6].flatten(1)[:, :3].double(), torch.zeros(6, dtype=torch.long), torch.eye(2, 3, dtype=torch.float64))
    with pytest.raises(OutOfScope, match="one class"):
        take(collapse.neural_collapse, one_class)
    assert unmet(mlp_regression(), registry.get_instrument("neural_collapse"), "end")


@pytest.mark.parametrize("name", ["effective_rank", "coding_rate", "neural_collapse"])
def test_on_a_subsample_the_interval_covers_what_all_examples_give(name):
    rng = chance.generator(0, "cover")
    y = chance.integers(3, 200, rng=rng)
    x = chance.normal(200, 4, rng=rng) + 2 * torch.eye(3, 4, dtype=torch.float64)[y]
    subject = head_on(x, y, torch.eye(3, 4, dtype=torch.float64))
    instrument = registry.get_instrument(name)
    truth = instrument.truth(subject)
    inside = []
    for k in range(100):
        found = instrument(subject.sample(100, rng=chance.generator(k, "half")), rng=chance.generator(0))
        inside.append((found.interval[0] <= truth) & (truth <= found.interval[1]))
    assert found.error_kind == "sample"
    assert 0.9 <= np.mean(inside) <= 1.0


def test_the_rate_reduction_of_a_subsample_is_said_to_be_that_of_the_examples_seen():
    found = take(representation.rate_reduction, cnn(n=40).sample(20, rng=chance.generator(0)))
    assert found.error_kind == "bound"
    assert "20 examples out of 40, of which alone this is" in found.assumes


def test_theory_refuses_what_it_cannot_take():
    with pytest.raises(OutOfScope, match="simplex"):
        theory.neural_collapse(10, 5)
    with pytest.raises(InvalidInput, match="two classes"):
        theory.neural_collapse(1, 5)
    with pytest.raises(InvalidInput, match="two examples"):
        theory.largest_effective_rank([3], 1)
    with pytest.raises(InvalidInput, match="distortion"):
        theory.largest_coding_rate([3], 4, 0.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"error": 0.02}, "training error is 2 %"), ({"most": 20}, "not balanced"), ({"loss": 0.5}, "not late"), ({}, None)],
)
def test_each_condition_of_collapse_is_checked(change, match):
    given = {"error": 0.0, "loss": 1e-3, "classes": 4, "fewest": 10, "most": 11, "reduced": 0.01, "balance": 0.2} | change
    why = theory.uncollapsed(**given)
    assert why is None if match is None else match in why


def rows_of(subject):
    readings = {}
    for name, instrument in registry.instruments().items():
        if instrument.topic == "representation" and not unmet(subject, instrument, "end"):
            with contextlib.suppress(OutOfScope):
                readings[name] = contract.take(instrument, subject)
    return {row.title: (row, *row.settle()) for row in chapter.chapter(facts_of(subject), readings)}


def test_the_chapter_tells_collapsed_from_not():
    _, verdict, words, _ = rows_of(collapsed(noise=0.01))["neural collapse"]
    assert verdict.outcome == "holds"
    assert "collapsed" in words
    _, verdict, words, _ = rows_of(collapsed(noise=0.5))["neural collapse"]
    assert verdict.outcome == "fails"
    assert "not collapsed, though the training error is 0" in words


def test_with_training_errors_collapse_is_out_of_scope_and_the_values_stay():
    row, verdict, words, _ = rows_of(cnn(n=40))["neural collapse"]
    assert verdict.outcome == "out_of_scope"
    assert "training error" in words
    assert row.measured.value.shape == (6,)


def test_a_head_that_is_not_at_its_best_is_told_and_one_that_is_agrees():
    rng = chance.generator(0, "head")
    y = chance.integers(3, 500, rng=rng)
    x = chance.normal(500, 6, rng=rng) + 4 * torch.eye(3, 6, dtype=torch.float64)[y]
    good, bad = torch.eye(3, 6, dtype=torch.float64), torch.eye(3, 6, dtype=torch.float64) + 0.8 * chance.normal(3, 6, rng=rng)
    title = "accuracy of a probe of the last features"
    _, verdict, _, advice = rows_of(head_on(x[:300], y[:300], good, (x[300:], y[300:])))[title]
    assert verdict.outcome == "holds"
    assert advice is None
    _, verdict, words, advice = rows_of(head_on(x[:300], y[:300], bad, (x[300:], y[300:])))[title]
    assert verdict.outcome == "fails"
    assert "better by" in words
    assert "fitted anew" in advice


@pytest.mark.parametrize("build", [mlp_regression, tokens, transformer])
def test_what_can_be_said_without_classes_is_said(build):
    rows = rows_of(build())
    assert "possible directions" in rows["effective rank by layer"][2]
    assert "of what features spread over all directions would" in rows["coding rate by layer"][2]


def test_of_many_examples_some_are_read_and_the_error_says_so(monkeypatch):
    monkeypatch.setattr(representation, "EXAMPLES", 30)
    found = take(representation.coding_rate, cnn(n=60))
    assert found.details["examples"] == 30
    assert found.error_kind == "sample"
