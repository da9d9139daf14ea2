"""Gram matrices against gradients taken one example at a time, for every layer that is treated apart and for those that are not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, lstm, tokens
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.subject import Subject
from gnomon.numerics.gram import gradient_gram, gradient_norms, per_example_losses
from gnomon.numerics.operators import loss_gradient, loss_value
from gnomon.numerics.per_example import plan_of


def one_by_one(subject, split="train"):
    data = subject.train if split == "train" else subject.test
    n, total, rows = len(data), subject.total_weight(split), []
    for i in range(n):
        alone = dataclasses.replace(subject, train=data.select(torch.tensor([i])), _shared={})
        weight = subject.loss.count(alone.train.blocks[0].targets) / total if subject.loss.reduction == "mean" else 1.0
        rows.append(n * weight * loss_gradient(alone)[1] if weight else torch.zeros(subject.dimension, dtype=subject.dtype))
    return torch.stack(rows)


def check(subject, tolerance=1e-12):
    gradients = one_by_one(subject)
    exact = gradients @ gradients.T
    gram = gradient_gram(subject)
    assert gram.dtype == torch.float64
    assert (gram - exact).norm() <= tolerance * exact.norm(), float((gram - exact).norm() / exact.norm())
    assert (gradient_norms(subject) - gradients.norm(dim=1)).norm() <= tolerance * gradients.norm()


@pytest.mark.parametrize("build", NETWORKS, ids=lambda b: b.__name__)
def test_gram_is_that_of_single_gradients(build):
    subject = build()
    check(subject)
    gram = gradient_gram(subject)
    assert float(gram.mean()) == pytest.approx(float(loss_gradient(subject)[1].square().sum()), rel=1e-11)
    assert float(per_example_losses(subject).mean()) == pytest.approx(loss_value(subject), rel=1e-12)
    for memory in (1, 5000, 20_000):
        assert (gradient_gram(subject, memory=memory) - gram).norm() <= 1e-12 * gram.norm()
    for chunk in (1, 3, 7, len(subject.train)):
        other = subject.with_chunk(chunk)
        assert (gradient_gram(other) - gram).norm() <= 1e-12 * gram.norm()
        assert torch.allclose(gradient_norms(other), gradient_norms(subject), rtol=1e-12)
        assert torch.allclose(per_example_losses(other), per_example_losses(subject), rtol=1e-12)
    gradients = one_by_one(subject, "test")
    assert torch.allclose(gradient_gram(subject, split="test"), gradients @ gradients.T, rtol=1e-9, atol=1e-12)
    single = build(torch.float32)
    assert (gradient_gram(single) - gradient_gram(single.to(torch.float64))).norm() <= 1e-5 * gram.norm()


class Flattened(nn.Module):
    """Positions folded into the examples, a second use of a weight by hand, and a raw parameter."""

    def __init__(self):
        super().__init__()
        self.fold, self.head, self.shift = nn.Linear(3, 4), nn.Linear(8, 2), nn.Parameter(torch.ones(4))

    def forward(self, x):
        h = torch.tanh(self.fold(x.reshape(-1, 3)) * self.shift)
        return self.head(h.reshape(len(x), -1))


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(6, 3, padding_idx=0), nn.Linear(3, 3)

    def forward(self, ids):
        return F.linear(torch.tanh(self.mix(self.embedding(ids))), self.embedding.weight).mean(1)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x) + F.linear(x, self.weight)


class Conv1D(nn.Module):
    """As transformers' layer of this name: the weight is (inputs, outputs)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(torch.tanh(self.layer(x.transpose(0, 1)))).mean(0))


def convolution(kind, *args, **settings):
    return lambda: nn.Sequential(kind(*args, **settings), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


CASES = {
    "conv1d circular": (convolution(nn.Conv1d, 2, 3, 3, padding=2, padding_mode="circular"), (2, 7), ()),
    "conv2d grouped dilated strided": (convolution(nn.Conv2d, 4, 6, (2, 3), groups=2, dilation=(2, 1), stride=(1, 2), padding=(1, 2)), (4, 6, 5), ()),
    "conv2d same": (convolution(nn.Conv2d, 2, 3, 4, padding="same", bias=False), (2, 5, 5), ()),
    "conv2d depthwise reflect": (convolution(nn.Conv2d, 3, 3, 3, groups=3, padding=1, padding_mode="reflect"), (3, 4, 4), ()),
    "conv3d": (convolution(nn.Conv3d, 2, 2, 2, stride=2), (2, 4, 4, 5), ()),
    "transposed convolution": (convolution(nn.ConvTranspose2d, 2, 3, 2), (2, 3, 3), ("0.weight", "0.bias")),
    "batch norm 2d": (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 2)), (1, 4, 4), ()),
    "rms norm over two dimensions": (lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm((2, 4)), nn.LayerNorm((2, 4), bias=False), nn.Flatten(), nn.Linear(8, 2)), (2, 3), ()),
    "transformers' Conv1D": (lambda: nn.Sequential(Conv1D(4, 3), nn.Tanh(), Conv1D(2, 4), nn.Flatten(), nn.Linear(4, 2)), (2, 3), ()),
    "positions folded": (Flattened, (2, 3), ("shift",)),
    "sequence first": (SequenceFirst, (2, 3), ()),
    "a layer that does more than its class": (lambda: nn.Sequential(Doubled(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), ("0.weight", "0.bias")),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)), (3,), None),
}


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    build, shape, slow = CASES[name]
    with chance.scoped(chance.generator(0, name)):
        model = build().double()
        model(torch.zeros(1, *shape, dtype=torch.float64))
    rng = chance.generator(1)
    subject = Subject.freeze(model, "cross_entropy", (chance.normal(9, *shape, rng=rng), chance.integers(2, 9, rng=rng)), chunk=4)
    check(subject)
    if slow is not None:
        assert plan_of(subject).slow == slow
    assert not any(layer._forward_hooks for layer in subject.module.modules())


def test_weight_used_by_hand_is_found_out():
    with chance.scoped(chance.generator(0)):
        model = ByHand().double()
    rng = chance.generator(1)
    subject = Subject.freeze(model, "cross_entropy", (chance.integers(6, 8, 4, rng=rng), chance.integers(6, 8, rng=rng)), chunk=3)
    check(subject)
    assert plan_of(subject).slow == ("embedding.weight",)


def test_examples_of_several_lengths():
    """Blocks of another sequence length are filled up with nothing."""
    with chance.scoped(chance.generator(0)):
        model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    rng = chance.generator(1)
    batches = [(chance.integers(6, 3, length, rng=rng), chance.integers(5, 3, length, rng=rng)) for length in (4, 2, 7)]
    subject = Subject.freeze(model, "cross_entropy", batches, chunk=2)
    check(subject)


def test_what_is_slow_is_named(caplog):
    caplog.set_level("INFO", "gnomon.numerics")
    assert plan_of(lstm()).slow == ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0")
    assert "lstm.weight_hh_l0" in caplog.text
    assert plan_of(tokens()).slow == ()


LARGE = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
import torch
from torch import nn
from gnomon.core import rng as chance
from gnomon.core.subject import Subject
from gnomon.numerics.gram import gradient_gram
from gnomon.numerics.operators import loss_gradient
torch.set_num_threads(1)
layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10)]
rng = chance.generator(0)
data = chance.normal(2000, 1, 28, 28, rng=rng).float(), chance.integers(10, 2000, rng=rng)
subject = Subject.freeze(nn.Sequential(*layers), "cross_entropy", data)
assert subject.dimension == 1_199_882
gram, gradient = gradient_gram(subject), loss_gradient(subject)[1].double()
assert gram.shape == (2000, 2000)
assert abs(float(gram.mean() / gradient.square().sum()) - 1) < 1e-5
peak = next(line for line in open("/proc/self/status") if line.startswith("VmPeak"))
print(peak)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited by Linux's rlimit")
def test_gram_of_a_large_network_within_six_gigabytes():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) < 2 * 2**20
