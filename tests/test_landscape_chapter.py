"""The landscape chapter's traces: predicted where the network is piecewise linear, measured alone where it bends."""

import dataclasses

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.subject import Subject
from gnomon.examination import landscape as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import landscape
from gnomon.theory import landscape as theory


def rows(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), activation, nn.Linear(40, 3))
    x, y = chance.normal(80, 5, rng=chance.generator(0)).float(), chance.integers(3, 80, rng=chance.generator(1))
    subject = Subject.freeze(model, "cross_entropy", (x, y))
    readings = {
        "hessian_trace": landscape.hessian_trace(subject, rng=chance.generator(2), probes=1024), "ggn_trace": landscape.ggn_trace(subject, rng=chance.generator(3)),
    }  # fmt: skip
    return facts_of(subject), readings, {row.title: row for row in chapter.chapter(facts_of(subject), readings)}


def test_the_trace_of_a_relu_network_is_predicted_by_the_gauss_newton_matrix():
    facts, readings, found = rows(nn.ReLU())
    assert facts.bent == ""
    assert set(found) == {"Hessian trace"}
    verdict, _, _ = found["Hessian trace"].settle()
    assert verdict.outcome == "holds"
    assert float(found["Hessian trace"].predicted) == float(readings["ggn_trace"])
    apart = readings | {"ggn_trace": readings["ggn_trace"].replace(value=2 * readings["ggn_trace"].value)}
    wrong = next(iter(chapter.chapter(facts, apart)))
    assert wrong.settle()[0].outcome == "fails"


def test_where_the_network_bends_both_traces_are_measured_and_the_layer_is_named():
    facts, readings, found = rows(nn.Tanh())
    assert set(found) == {"Hessian trace", "Gauss-Newton trace"}
    assert all(row.predicted is None for row in found.values())
    assert "`1`" in found["Gauss-Newton trace"].words
    with pytest.raises(OutOfScope, match="piecewise linear"):
        theory.hessian_trace(readings["ggn_trace"], facts.bent)
    only = list(chapter.chapter(dataclasses.replace(facts, bent=""), {"ggn_trace": readings["ggn_trace"]}))
    assert [row.title for row in only] == ["Gauss-Newton trace"]
