"""Activations against networks taken apart by hand; hooks leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from networks import batchnorm, cnn, lstm, tied_frozen, tokens

from gnomon.core.errors import InvalidInput
from gnomon.numerics.activations import layer_activations


def test_outputs_and_inputs():
    subject = cnn()
    block = next(subject.batches())
    names = ["conv1", "conv2", "head"]
    out = layer_activations(subject, subject.state, block.inputs, names)
    assert torch.equal(out["conv1"], torch.nn.functional.conv2d(block.inputs, subject.state["conv1.weight"], subject.state["conv1.bias"], padding=1))
    assert torch.equal(out["head"], subject(subject.state, block.inputs))
    into = layer_activations(subject, subject.state, block.inputs, names, what="inputs")
    assert torch.equal(into["conv2"], torch.tanh(out["conv1"]))
    initial = layer_activations(subject, subject.initial, block.inputs, ["head"])
    assert not torch.equal(initial["head"], out["head"])
    assert not any(layer._forward_hooks for layer in subject.module.modules())


def test_operations_in_place_do_not_show():
    subject = batchnorm()
    block = next(subject.batches())
    out = layer_activations(subject, subject.state, block.inputs, ["body.1", "body.2"])
    assert torch.equal(torch.nn.functional.silu(out["body.1"]), out["body.2"])


def test_a_layer_called_twice_and_tuples_and_dicts():
    subject = tied_frozen()
    block = next(subject.batches())
    out = layer_activations(subject, subject.state, block.inputs, ["twice", "head"])
    assert list(out) == ["twice", "twice#2", "head"]
    into = layer_activations(subject, subject.state, block.inputs, ["twice"], what="inputs")
    assert torch.equal(into["twice#2"], torch.tanh(out["twice"]))
    subject = lstm()
    block = next(subject.batches())
    assert layer_activations(subject, subject.state, block.inputs, ["lstm"])["lstm"].shape == (5, 4, 4)
    subject = tokens()
    block = next(subject.batches())
    assert layer_activations(subject, subject.state, block.inputs, ["mix", ""])[""].shape == (5, 5, 7)


def test_bad_names():
    subject = cnn()
    block = next(subject.batches())
    with pytest.raises(InvalidInput, match="Did you mean 'head'"):
        layer_activations(subject, subject.state, block.inputs, ["heads"])
    bare = tokens()
    with pytest.raises(InvalidInput, match="no layer"):
        layer_activations(bare, bare.state, next(bare.batches()).inputs, ["nothing"])
    assert not any(layer._forward_hooks for layer in subject.module.modules())
