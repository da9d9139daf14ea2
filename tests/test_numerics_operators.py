"""Products against dense linear algebra, splits of the data, routes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, cnn, lstm, mlp_regression, tied_frozen, tokens, transformer
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.dataset import leaves
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics import derivatives
from gnomon.numerics.measuring import _full_precision, measuring
from gnomon.numerics.operators import GaussNewton, Hessian, InputJacobian, ParameterJacobian, loss_gradient, loss_value

networks = pytest.mark.parametrize("build", NETWORKS, ids=lambda b: b.__name__)


def unflat(subject, vector):
    parts = vector.split([p.numel() for p in subject.parameters.values()])
    return {key: part.view_as(p) for (key, p), part in zip(subject.parameters.items(), parts, strict=True)}


def whole(subject):
    block = next(subject.batches(chunk=10**6))
    return block.inputs, block.targets


def dense_loss(subject):
    inputs, targets = whole(subject)
    return lambda theta: subject.loss(subject({**subject.state, **unflat(subject, theta)}, inputs), targets)


def theta(subject):
    return torch.cat([p.reshape(-1) for p in subject.parameters.values()])


def close(a, b, tolerance=1e-12):
    assert a.shape == b.shape
    assert (a - b).norm() <= tolerance * b.norm(), float((a - b).norm() / b.norm())


@networks
def test_products_are_those_of_dense_matrices(build):
    subject = build()
    f, at = dense_loss(subject), theta(subject)
    inputs, targets = whole(subject)
    with measuring(subject):
        # Not torch.func.hessian: its vmap gives wrong second derivatives of layer norms' weights (torch 2.13).
        hessian = torch.autograd.functional.hessian(f, at)
        jacobian = torch.autograd.functional.jacobian(lambda t: subject({**subject.state, **unflat(subject, t)}, inputs), at)
        output = subject(subject.state, inputs)
        bend = torch.autograd.functional.hessian(lambda z: subject.loss(z, targets), output).reshape(output.numel(), -1)
    flat = jacobian.reshape(output.numel(), -1)
    value, gradient = loss_gradient(subject)
    close(gradient, torch.autograd.functional.jacobian(f, at))
    assert value == pytest.approx(float(f(at)), rel=1e-13)
    assert loss_value(subject) == pytest.approx(value, rel=1e-13)
    operator = ParameterJacobian(subject, inputs)
    v, u = chance.normal(subject.dimension, rng=chance.generator(0)), chance.normal(*output.shape, rng=chance.generator(1))
    close(operator(v), (flat @ v).view_as(output))
    close(operator.transpose(u), flat.T @ u.reshape(-1))
    for i in range(3):
        v = chance.normal(subject.dimension, rng=chance.generator(i))
        close(Hessian(subject)(v), hessian @ v)
        close(GaussNewton(subject)(v), flat.T @ (bend @ (flat @ v)))


@networks
def test_double_backward_gives_the_same_products(build):
    subject = build()
    inputs, _ = whole(subject)
    v = chance.normal(subject.dimension, rng=chance.generator(0))
    products = [lambda s: Hessian(s)(v), lambda s: GaussNewton(s)(v), lambda s: ParameterJacobian(s, inputs)(v)]
    if any(leaf.is_floating_point() for leaf in leaves(inputs)):
        x = tuple(chance.normal(*leaf.shape, rng=chance.generator(1)) for leaf in leaves(inputs) if leaf.is_floating_point())
        products.append(lambda s: InputJacobian(s, inputs)(x))
    for product in products:
        forced = build()
        forced.once("numerics.route", lambda: "double")
        close(product(forced), product(subject))


def test_forward_mode_is_used_where_it_exists():
    assert {build.__name__: derivatives.route_of(build()) for build in (cnn, lstm, mlp_regression, tied_frozen, tokens, transformer)} == dict.fromkeys(
        ("cnn", "lstm", "mlp_regression", "tied_frozen", "tokens", "transformer"), "forward"
    )


@networks
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_results_do_not_depend_on_the_split(build, kind):
    subject = build()
    v = chance.normal(subject.dimension, rng=chance.generator(3))
    inputs, _ = whole(subject)
    reference, gradient, pushed = kind(subject)(v), loss_gradient(subject)[1], ParameterJacobian(subject, inputs)(v)
    for chunk in (1, 3, 7, len(subject.train)):
        other = subject.with_chunk(chunk)
        close(kind(other)(v), reference)
        close(loss_gradient(other)[1], gradient)
        jacobian = ParameterJacobian(other, inputs)
        close(jacobian(v), pushed)
        close(jacobian.transpose(pushed), ParameterJacobian(subject, inputs).transpose(pushed))


@networks
def test_input_jacobian(build):
    subject = build()
    inputs, _ = whole(subject)
    if isinstance(inputs, dict):
        inputs = dict(inputs, mask=inputs["mask"] * 0.7)
        x, apply = inputs["mask"], lambda x: subject(subject.state, dict(inputs, mask=x))
    else:
        x, apply = inputs, lambda x: subject(subject.state, x)
    with measuring(subject):
        dense = torch.autograd.functional.jacobian(apply, x)
        shape = apply(x).shape
    dense = dense.reshape(shape.numel(), x.numel())
    operator = InputJacobian(subject, inputs)
    v, u = chance.normal(*x.shape, rng=chance.generator(0)), chance.normal(*shape, rng=chance.generator(1))
    single = isinstance(inputs, torch.Tensor)
    pulled = operator.transpose(u)
    close(operator(v if single else (v,)), (dense @ v.reshape(-1)).reshape(shape))
    close(pulled if single else pulled[0], (dense.T @ u.reshape(-1)).view_as(x))


@networks
def test_quadratic_forms_of_groups(build):
    subject = build()
    v = chance.normal(subject.dimension, rng=chance.generator(0))
    for kind in (Hessian, GaussNewton):
        product = float(v @ kind(subject)(v))
        for groups in (1, 4, 100):
            values, weights = kind(subject).quadratic(v, groups)
            assert len(values) == min(groups, len(subject.train))
            assert float(weights.sum()) == pytest.approx(1)
            assert float((values * weights).sum()) == pytest.approx(product, rel=1e-11, abs=1e-12)


@networks
def test_subject_and_settings_are_left_as_they_were(build):
    subject = build(torch.float32)
    fingerprint, state = subject.fingerprint(), torch.random.get_rng_state()
    settings = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    Hessian(subject)(torch.ones(subject.dimension))
    with pytest.raises(InvalidInput, match="one entry a trainable parameter"), measuring(subject), measuring(subject):
        Hessian(subject)(torch.ones(3))
    assert settings == (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())
    assert fingerprint == subject.fingerprint()
    assert torch.equal(state, torch.random.get_rng_state())
    assert not subject.module.training
    assert all(p.grad is None and not p.requires_grad for p in subject.module.parameters())


@networks
def test_float32_agrees_with_float64(build):
    single = build(torch.float32)
    double = single.to(torch.float64)
    v = chance.normal(single.dimension, rng=chance.generator(0))
    for kind in (Hessian, GaussNewton):
        product = kind(single)(v.float())
        assert product.dtype == torch.float32
        close(product.double(), kind(double)(v), 2e-5)


def test_chunk_without_targets_counts_for_nothing():
    subject = tokens().with_chunk(1)
    block = subject.train.select(torch.tensor([3])).blocks[0]
    assert subject.loss.count(block.targets) == 0
    assert loss_value(subject) == pytest.approx(loss_value(tokens(chunk=100)), rel=1e-13)


class Hard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() < 1)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return Hard.apply(self.layer(x)).square()


def test_operation_without_second_derivative_is_named():
    subject = Subject.freeze(Custom(), "mse", (torch.randn(4, 2), torch.randn(4, 2)))
    assert torch.isfinite(loss_gradient(subject)[1]).all()
    with pytest.raises(OutOfScope, match="Hard"):
        Hessian(subject)(torch.ones(6))


def test_integer_inputs_have_no_input_jacobian():
    subject = Subject.freeze(nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)), "cross_entropy", (torch.randint(5, (4, 2)), torch.randint(2, (4,))))
    with pytest.raises(OutOfScope, match="integers only"):
        InputJacobian(subject, subject.train.blocks[0].inputs)
    with pytest.raises(OutOfScope, match="no test data"):
        loss_gradient(subject, "test")


def test_tf32_is_put_back():
    """The settings exist without a GPU too; on one they are what `measuring` changes."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    with _full_precision():
        assert [place.fp32_precision for place in places] == ["ieee"] * 3
    assert [place.fp32_precision for place in places] == before
