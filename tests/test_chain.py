"""Chains of linear layers: which networks are read as one, and their products against dense matrices."""

from __future__ import annotations

import functools

import pytest
import torch
from networks import cnn, lstm, mlp_regression, tied_frozen, tokens, transformer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from gnomon.core import rng as chance
from gnomon.core.subject import Subject
from gnomon.numerics import chain, dense, derivatives
from gnomon.numerics.fisher import EmpiricalFisher, Fisher
from gnomon.numerics.memory import kept_bytes
from gnomon.numerics.operators import GaussNewton, Hessian

ACTIVATIONS = [nn.Tanh, nn.ReLU, functools.partial(nn.ReLU, inplace=True), nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, functools.partial(nn.ELU, inplace=True), nn.LeakyReLU]
LOSSES = {
    "mean": "cross_entropy",
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "weights": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)),
    "smoothing": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), label_smoothing=0.1),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "own": lambda output, targets: (output.exp().sum(1).log() - output.gather(1, targets[:, None])[:, 0]).mean(),
}


class Written(nn.Module):
    """Layers called in `forward`, with scalings, reshapes, dropout and two functions in a row."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 5), nn.Linear(5, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        h = F.dropout(0.5 * torch.sin(self.first(x.flatten(1))), training=self.training)
        h = F.softplus(torch.tanh(self.second(h.view(h.size(0), -1)))) / h.shape[1]
        return -2.0 * self.third(h)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(x + torch.tanh(self.first(x)))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Custom(nn.Module):
    def forward(self, x):
        return Reversed.apply(x)


def perceptron(activation=nn.Tanh, *more):
    return nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 4), activation(), *more, nn.Linear(4, 3))


def subject_of(build, loss="cross_entropy", dtype=torch.float64, shape=(6,), chunk=5, **settings):
    with chance.scoped(chance.generator(0, "chain")):
        model = build().to(dtype)
    rng = chance.generator(1)
    return Subject.freeze(model, loss, (chance.normal(13, *shape, rng=rng).to(dtype), chance.integers(3, 13, rng=rng)), chunk=chunk, **settings)


def is_chain(subject):
    return chain.read(subject, derivatives.first_block(subject, 2)) is not None


def whole(operator, dtype=torch.float64):
    return operator.block(torch.eye(operator.dimension, dtype=dtype))


def check(subject, tolerance=1e-13):
    for operator, truth in ((Hessian(subject), dense.hessian(subject)), (GaussNewton(subject), dense.gauss_newton(subject))):
        assert float((whole(operator, subject.dtype) - truth).norm()) <= tolerance * float(truth.norm())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_products_are_those_of_dense_matrices(activation, monkeypatch):
    subject = subject_of(lambda: perceptron(activation))
    dense.hessian(subject)
    for name in ("hessian_map", "sandwich_map"):
        monkeypatch.setattr(derivatives, name, None)  # the general route is not taken
    check(subject)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses(loss):
    subject = subject_of(perceptron, loss)
    assert is_chain(subject)
    check(subject)


def test_single_precision():
    check(subject_of(perceptron, dtype=torch.float32), 3e-6)


def test_a_forward_that_is_written_out():
    subject = subject_of(Written, shape=(2, 3))
    assert is_chain(subject)
    check(subject)


def test_positions_shared_weights_and_regression():
    tokens_in = subject_of(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten()), lambda o, t: (o.cos().sum(1) * t).mean(), shape=(3, 6))
    for subject in (tied_frozen(), mlp_regression(), tokens_in):
        assert is_chain(subject)
        check(subject)


def test_parts_of_a_network_and_frozen_ones():
    subject = subject_of(perceptron)
    names = list(subject.trainable)
    offsets = torch.tensor([0, *(p.numel() for p in subject.parameters.values())]).cumsum(0).tolist()
    for chosen in (["0"], ["4"], ["2.bias"], ["0.weight", "4.bias"], ["2.weight", "4.weight"]):
        part = Hessian(subject).restricted(chosen)
        rows = torch.cat([torch.arange(offsets[i], offsets[i + 1]) for i, name in enumerate(names) if any(name == c or name.startswith(c + ".") for c in chosen)])
        truth = dense.hessian(subject)[rows][:, rows]
        assert is_chain(part.subject)
        assert float((whole(part) - truth).norm()) <= 1e-13 * float(truth.norm())


def test_the_head_of_any_network_is_a_chain():
    subject = cnn()
    assert not is_chain(subject)
    assert is_chain(Hessian(subject).restricted("head").subject)


def test_other_networks_are_not_chains():
    """Convolution, recurrence, attention, sums of branches, norms, weights that are computed, a derivative of one's own, parameters of activations."""
    mixed = [functools.partial(perceptron, nn.Tanh, layer) for layer in (Custom(), nn.PReLU(), nn.Softmax(1), nn.LayerNorm(4), nn.BatchNorm1d(4))]
    others = [subject_of(build) for build in (Residual, lambda: nn.Sequential(weight_norm(nn.Linear(6, 3))), *mixed)]
    for subject in (cnn(), lstm(), transformer(), tokens(), *others):
        assert not is_chain(subject)
        assert Hessian(subject)(torch.ones(subject.dimension, dtype=torch.float64)).isfinite().all()


def test_hooks():
    """What a hook does forward is read; what it does backward is not, and such a network is no chain."""
    scaled, reversed_, added = (perceptron().double() for _ in range(3))
    scaled[1].register_forward_hook(lambda layer, x, h: 2 * h)
    reversed_[1].register_full_backward_hook(lambda layer, x, g: (-x[0],))
    added[2].register_forward_hook(lambda layer, x, h: h + x[0].sum(1, keepdim=True))
    assert is_chain(subject_of(lambda: scaled))
    check(subject_of(lambda: scaled))
    assert not is_chain(subject_of(lambda: reversed_))
    assert not is_chain(subject_of(lambda: added))


def test_products_do_not_depend_on_the_split_or_on_what_is_kept():
    v = chance.normal(subject_of(perceptron).dimension, rng=chance.generator(2))
    for kind in (Hessian, GaussNewton, Fisher, EmpiricalFisher):
        products = [kind(subject_of(perceptron, chunk=chunk), keep=keep)(v) for chunk in (1, 4, 13) for keep in (0, 2**30)]
        assert all(float((product - products[0]).norm()) <= 1e-14 * float(v.norm()) for product in products)


def test_kept_bytes_are_those_of_the_arrays():
    """Of h, s', dL/dz and dL/dh s'' for 9 hidden units, of dL/dz for 3 outputs, of the inputs turned: 8 bytes each."""
    assert kept_bytes(subject_of(perceptron)) == 13 * 8 * (4 * 9 + 3 + 6)
