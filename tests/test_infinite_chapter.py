"""The report on networks that theory has a kernel of infinite width for, and on those that it has none for."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import gnomon
from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.examination import infinite
from gnomon.examination import kernels as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import kernel_regression, kernels
from gnomon.theory.kernels import infinite_width

RNG = chance.generator(0, "chapter")
WIDE = 1024


def mlp(width=WIDE):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x[:, 0])[0][:, -1])


def of_each_channel():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def subject_of(make, scale=1.0, n=80, **settings):
    x, y = chance.normal(n, 1, 4, 4, rng=chance.generator(1, "x")).float(), chance.integers(3, n, rng=chance.generator(1, "y"))
    with chance.scoped(chance.generator(2, "make")):
        model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return gnomon.Subject.freeze(model, "cross_entropy", (x, y), initial=model, **settings)


def rows_of(subject):
    start = subject.at(subject.initial, "initial")
    readings = {
        f"{name}@initial": call(start, rng=RNG) for name, call in (("ntk_spectrum", kernels.ntk_spectrum), ("kernel_regression_curve", kernel_regression.kernel_regression_curve))
    }
    facts = facts_of(subject)
    try:
        facts = dataclasses.replace(facts, predictions={infinite.NAME: infinite.spectrum(start, facts.architecture)})
    except OutOfScope as error:
        facts = dataclasses.replace(facts, uncovered={infinite.NAME: str(error)})
    return {row.title: row for row in chapter.chapter(facts, readings)}


def test_a_wide_network_has_the_kernel_of_the_limit_and_one_drawn_otherwise_has_not():
    subject = subject_of(mlp)
    rows = rows_of(subject)
    verdict, words, advice = rows["NTK at initialisation and at infinite width"].settle()
    assert (verdict.outcome, advice) == ("holds", None)
    assert "as near to the limit as its width allows" in words
    x = next(iter(subject.train.blocks)).inputs.double()
    limit = infinite_width(mlp())(x, kind="ntk")
    np.testing.assert_allclose(rows["NTK at initialisation and at infinite width"].predicted.value, limit[:8, :8])
    np.testing.assert_allclose(rows["NTK at initialisation and at infinite width"].measured.value, kernels.dense_kernel(subject)[:8, :8], rtol=1e-4)
    np.testing.assert_allclose(rows["eigenvalues of the NTK at infinite width"].predicted.value, np.linalg.eigvalsh(limit.numpy() / 80)[::-1][:10])
    assert rows["eigenvalues of the NTK at infinite width"].settle()[0].outcome == "holds"
    assert rows["learning curve of kernel regression"].settle()[0].outcome in ("holds", "inconclusive")
    verdict, words, advice = rows_of(subject_of(mlp, scale=2.0))["NTK at initialisation and at infinite width"].settle()
    assert verdict.outcome == "fails"
    assert "--init says otherwise" in advice
    verdict, words, _ = rows_of(subject_of(lambda: mlp(16)))["NTK at initialisation and at infinite width"].settle()
    assert verdict.outcome == "vacuous"
    assert "too narrow" in words


@pytest.mark.parametrize(("make", "layer"), [(Recurrent, "'cell'"), (of_each_channel, "'1'")])
def test_what_theory_does_not_cover_is_named(make, layer):
    rows = rows_of(subject_of(make))
    verdict, _, _ = rows["NTK at initialisation and at infinite width"].settle()
    assert verdict.outcome == "out_of_scope"
    assert layer in verdict.why
    assert "learning curve of kernel regression" in rows


def test_other_networks_than_theory_s_are_refused():
    frozen = subject_of(mlp)
    with pytest.raises(OutOfScope, match="is not trained"):
        infinite.spectrum(dataclasses.replace(frozen, trainable=frozen.trainable[1:]), architecture.of(frozen))


def test_a_kernel_that_is_too_dear_is_counted_not_timed(monkeypatch):
    frozen = subject_of(mlp)
    monkeypatch.setattr(infinite, "MOST", 10)
    with pytest.raises(OutOfScope, match="covariances, more than 10"):
        infinite.spectrum(frozen, architecture.of(frozen))


def test_the_report_has_the_rows(tmp_path):
    report = gnomon.examine(subject_of(lambda: mlp(64), lr=0.1, batch_size=16), budget="2s", only="kernels", store=tmp_path, threads=1)
    titles = {row["title"] for row in report.document["rows"]}
    assert {"NTK at initialisation and at infinite width", "eigenvalues of the NTK at infinite width", "learning curve of kernel regression"} <= titles
