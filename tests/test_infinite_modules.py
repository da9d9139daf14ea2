"""Kernels of modules as people write them: in place, by slices, with positions, frozen, tied, normalised; the same function written plainly has the same kernel."""

import math

import pytest
import torch
from test_infinite_width import BOTH, Do
from torch import nn
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.instruments.kernels import empirical_ntk
from gnomon.theory.kernels import infinite_width

W = 24


class Written(nn.Module):
    """Layers that a function reads by name."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def read(function):
    """What is made of the first layer's outputs."""
    return lambda m, x: function(m, m.a(x))


def residual(function):
    return lambda: Written(function, a=nn.Linear(6, W), b=nn.Linear(W, W), h=nn.Linear(W, 2), act=nn.ReLU(inplace=True), drop=nn.Dropout())


def dense(function):
    layers = {"a": nn.Conv1d(2, W, 3, padding=1), "b": nn.Conv1d(W, W, 3, padding=1), "c": nn.Conv1d(2 * W, W, 3, padding=1), "h": nn.Linear(3 * W, 2)}
    return lambda: Written(function, **layers)


def positions(function):
    def make():
        made = Written(function, e=nn.Embedding(7, W), p=nn.Embedding(4, W), a=nn.Linear(W, W), h=nn.Linear(W, 2))
        made.register_buffer("at", torch.arange(4)[None])
        return made

    return make


def halves(function):
    return lambda: Written(function, a=nn.Linear(6, 2 * W), h=nn.Linear(W, 2))


def patches(function):
    return lambda: Written(function, a=nn.Conv2d(2, W, 2, stride=2), q=nn.Linear(W, W), k=nn.Linear(W, W), v=nn.Linear(W, W), b=nn.Linear(W, W), h=nn.Linear(W, 2))


def attended(m, x, turned):
    x = m.a(x).flatten(2).transpose(1, 2)
    return m.b((m.q(x) @ turned(m.k(x)) / math.sqrt(W)) @ m.v(x))


def values_first(m, x):
    x = m.a(x).flatten(2).transpose(1, 2)
    return m.b(m.q(x) @ (m.k(x).transpose(1, 2) @ m.v(x) / x.shape[-1] ** 0.5))


def by_einsum(m, x):
    x = m.a(x).flatten(2).transpose(1, 2)
    return m.b(torch.einsum("bqd,bde->bqe", m.q(x), torch.einsum("bkd,bke->bde", m.k(x), m.v(x))) / math.sqrt(W))


def padded_by_hand(m, x):
    z = F.pad(torch.relu(F.conv1d(F.pad(x, (1, 1)), m.a.weight, m.a.bias)), (1, 1))
    z = m.c(torch.cat([torch.relu(F.conv1d(z, m.b.weight, m.b.bias)), z[:, :, 1:-1]], 1))
    return F.pad(torch.relu(z), (0, -1))[:, :, 3:].mean(2)


def padded(m, x):
    z = torch.relu(m.a(x))
    return torch.relu(m.c(torch.cat([torch.relu(m.b(z)), z], 1)))[:, :, 3:-1].mean(2)


def dense_after(m, x):
    first = m.a(x)
    second = torch.cat([first, m.b(torch.relu(first))], 1)
    return m.h(torch.relu(torch.cat([second, m.c(torch.relu(second))], 1)).mean(2))


def dense_before(m, x):
    first = m.a(x)
    second = m.b(torch.relu(first))
    third = m.c(torch.cat([torch.relu(first), torch.relu(second)], 1))
    return m.h(torch.cat([torch.relu(first), torch.relu(second), torch.relu(third)], 1).mean(2))


def in_place(m, x):
    x = m.a(x)
    branch = m.b(m.act(m.drop(x)))  # dropout hands its input on, so that x is changed too
    return m.h(x + branch)


def added(m, x):
    x = m.a(x)
    kept = x
    x += m.b(torch.relu(x))
    return m.h(torch.relu(kept))


class Squashed(nn.Module):
    """An activation of one's own that works in place."""

    def forward(self, x):
        return x.tanh_()


def own(m, x):
    x = m.a(x)
    return m.h(m.b(m.act(x)) + x)


SAME = {
    "a module of one's own in place": (lambda: Written(own, a=nn.Linear(6, W), b=nn.Linear(W, W), h=nn.Linear(W, 2), act=Squashed()), residual(read(lambda m, z: m.h(m.b(torch.tanh(z)) + torch.tanh(z)))), (3, 6)),
    "in place": (residual(in_place), residual(read(lambda m, z: m.h(torch.relu(z) + m.b(torch.relu(z))))), (3, 6)),
    "added in place": (residual(added), residual(read(lambda m, z: m.h(torch.relu(z + m.b(torch.relu(z)))))), (3, 6)),
    "tanh_": (residual(lambda m, x: m.h(m.a(x).tanh_())), residual(lambda m, x: m.h(torch.tanh(m.a(x)))), (3, 6)),
    "self.training": (residual(lambda m, x: m.h(F.dropout(torch.relu(m.a(x)), 0.5, m.training))), residual(lambda m, x: m.h(torch.relu(m.a(x)))), (3, 6)),
    "slices": (halves(read(lambda m, z: m.h(z[:, :W] * torch.sigmoid(z[..., W:])))), halves(read(lambda m, z: m.h(z.chunk(2, 1)[0] * torch.sigmoid(z.chunk(2, 1)[1])))), (3, 6)),
    "an activation of a concatenation": (dense(dense_after), dense(dense_before), (3, 2, 5)),
    "places of positions": (positions(lambda m, t: m.h(torch.relu(m.a(m.e(t) + m.p(torch.arange(t.shape[1])))).mean(1))), positions(lambda m, t: m.h(torch.relu(m.a(m.e(t) + m.p(t * 0 + m.at))).mean(1))), "tokens"),
    "places of a buffer": (positions(lambda m, t: m.h(torch.relu(m.a(m.e(t) + m.p(m.at.expand(t.shape[0], 4)))).mean(1))), positions(lambda m, t: m.h(torch.relu(m.a(m.e(t) + m.p(t * 0 + m.at))).mean(1))), "tokens"),
    "upsampled": (patches(lambda m, x: m.h(F.interpolate(torch.relu(m.a(x)), scale_factor=2).mean((2, 3)))), patches(lambda m, x: m.h(torch.relu(m.a(x)).mean((2, 3)))), (3, 2, 4, 4)),
    "the first token": (patches(lambda m, x: m.h(F.gelu(attended(m, x, lambda k: k.mT)[:, 0]))), patches(lambda m, x: m.h(F.gelu(attended(m, x, lambda k: k.transpose(1, 2))[:, :1]).mean(1))), (3, 2, 4, 4)),
    "linear attention, values first": (patches(lambda m, x: m.h(F.gelu(values_first(m, x)).mean(1))), patches(lambda m, x: m.h(F.gelu(attended(m, x, lambda k: k.mT)).mean(1))), (3, 2, 4, 4)),
    "linear attention by einsum": (patches(lambda m, x: m.h(F.gelu(by_einsum(m, x)).mean(1))), patches(lambda m, x: m.h(F.gelu(attended(m, x, lambda k: k.mT)).mean(1))), (3, 2, 4, 4)),
    "a sum over places": (patches(lambda m, x: m.h(torch.relu(m.a(x)).flatten(2).sum(-1) / 4)), patches(lambda m, x: m.h(torch.relu(m.a(x)).mean((2, 3)))), (3, 2, 4, 4)),
    "sizes behind weights": (patches(read(lambda m, z: m.h(F.avg_pool2d(torch.relu(z), z.size()[2:]).flatten(1) * 5 / z.shape[1] ** 0.5))), patches(lambda m, x: m.h(torch.relu(m.a(x)).mean((2, 3)) * (5 / W**0.5))), (3, 2, 4, 4)),
    "turned places": (patches(read(lambda m, z: m.h(torch.roll(torch.relu(z), (1, 0), (2, 3)).flip(3).rot90(1, (2, 3))[:, :, 1, 0]))), patches(lambda m, x: m.h(torch.relu(m.a(x))[:, :, 1, 1])), (3, 2, 4, 4)),
    "padded by hand": (dense(padded_by_hand), dense(padded), (3, 2, 5)),
    "a layer's weights in a function": (residual(lambda m, x: m.h(F.linear(torch.relu(F.linear(x, m.a.weight, m.a.bias)), m.b.weight, m.b.bias))), residual(lambda m, x: m.h(m.b(torch.relu(m.a(x))))), (3, 6)),
    "a product with itself": (residual(read(lambda m, z: m.h(z * z))), residual(read(lambda m, z: m.h(torch.square(z)))), (3, 6)),
    "a step": (residual(read(lambda m, z: m.h((z > 0).double()))), residual(read(lambda m, z: m.h(0.5 * torch.sign(z) + 0.5))), (3, 6)),
}  # fmt: skip


class Optional(nn.Module):
    """Arguments that are not given, the places of an image summed up and squeezed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, W, 2), nn.Linear(W, 2)

    def forward(self, x, mask=None, scale=2.0, *, flag=True):
        x = torch.relu(self.a(x)) * scale
        if mask is not None:
            x = x * mask
        return self.b(nn.functional.adaptive_avg_pool2d(x, 1).squeeze()) if flag else x


class Many(Optional):
    """Any number of tensors."""

    def forward(self, *tensors):
        return super().forward(tensors[0])


def test_arguments_that_are_not_given_are_their_defaults():
    x = torch.randn(3, 2, 4, 4, generator=chance.generator(0), dtype=torch.float64)
    plain = nn.Sequential(nn.Conv2d(2, W, 2), nn.ReLU(), Do(lambda x: 2 * x), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(W, 2))
    for made, want in zip(infinite_width(Optional())(x, kind=BOTH), infinite_width(plain)(x, kind=BOTH), strict=True):
        torch.testing.assert_close(made, want, rtol=1e-12, atol=0)
    with pytest.raises(InvalidInput, match=r"takes \*tensors"):
        infinite_width(Many())
    with pytest.raises(InvalidInput, match=r"torch.uint8; .*\.float\(\)"):
        infinite_width(Optional())(torch.ones(2, 2, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("name", SAME)
def test_a_network_written_otherwise_has_the_same_kernel(name):
    """Both ways of writing have the same function, and to rounding the same kernels, whichever part is asked for."""
    written, plain, shape = SAME[name]
    rng = chance.generator(0, name)
    with chance.scoped(rng):
        x = torch.randint(7, (3, 4)) if shape == "tokens" else torch.randn(*shape, dtype=torch.float64)
        one = written().double().eval()
        two = plain().double().eval()
    two.load_state_dict(one.state_dict())
    before = x.clone()
    torch.testing.assert_close(one(x.clone()), two(x), rtol=1e-12, atol=1e-12)
    kernel, want = infinite_width(one.train()), infinite_width(two)(x, kind=BOTH)
    for made, whole in zip(kernel(x, kind=BOTH), want, strict=True):
        torch.testing.assert_close(made, whole, rtol=1e-6 if shape == "tokens" else 1e-12, atol=0)
    for made, whole in zip(kernel(x[:1], x[1:], BOTH), want, strict=True):
        torch.testing.assert_close(made, whole[:1, 1:], rtol=1e-6 if shape == "tokens" else 1e-12, atol=0)
    assert torch.equal(x, before)
    assert one.training


def test_data_changed_in_place_are_the_user_s_and_stay():
    x = torch.randn(3, 6, generator=chance.generator(0))
    before = x.clone()
    network = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(6, 2))
    torch.testing.assert_close(infinite_width(network)(x), infinite_width(nn.Linear(6, 2))(torch.relu(x)))
    assert torch.equal(x, before)


def test_what_is_frozen_has_no_part_in_the_tangent_kernel():
    """The kernels of two halves that are trained in turn add up, and the outputs' covariance does not change."""
    x = torch.randn(4, 6, generator=chance.generator(0), dtype=torch.float64)
    network = nn.Sequential(nn.Linear(6, W), nn.LayerNorm(W), nn.Tanh(), nn.Linear(W, W), nn.ReLU(), nn.Linear(W, 2))
    for parametrization in ("standard", "ntk"):
        network.requires_grad_(True)
        nngp, whole = infinite_width(network, parametrization=parametrization)(x, kind=BOTH)
        parts = []
        for trained in (("0", "1", "3.bias"), ("3.weight", "5")):
            for key, value in network.named_parameters():
                value.requires_grad_(key.startswith(trained))
            same, part = infinite_width(network, parametrization=parametrization)(x, kind=BOTH)
            assert torch.equal(same, nngp)
            parts.append(part)
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
    network.requires_grad_(False)
    assert torch.equal(infinite_width(network, parametrization="ntk")(x, kind="ntk"), whole)


def without_gradient(m, x):
    with torch.no_grad():
        return m.a(x)


@pytest.mark.parametrize("stopped", [lambda m, x: m.a(x).detach(), without_gradient])
def test_a_stopped_gradient_is_that_of_frozen_weights(stopped):
    """What detach() and torch.no_grad() leave out of the tangent kernel; behind an activation nothing is known to go on through it."""
    x = torch.randn(4, 6, generator=chance.generator(0), dtype=torch.float64)
    network, plain = residual(lambda m, x: m.h(torch.tanh(m.b(torch.relu(stopped(m, x))))))(), residual(lambda m, x: m.h(torch.tanh(m.b(torch.relu(m.a(x))))))()
    plain.a.requires_grad_(False)
    for made, want in zip(infinite_width(network)(x, kind=BOTH), infinite_width(plain)(x, kind=BOTH), strict=True):
        torch.testing.assert_close(made, want, rtol=1e-12, atol=0)
    with pytest.raises(OutOfScope, match="both branches read 'a'"):  # a straight-through estimator
        infinite_width(residual(read(lambda m, z: m.h(z + (torch.sign(z) - z).detach())))())(x)


def test_a_weight_norm_has_the_kernel_of_the_weight_that_it_makes():
    """g v / |v| begins at g = |v|; its g moves the length and its v the direction of a row, together the row."""
    x = torch.randn(3, 2, 6, generator=chance.generator(0), dtype=torch.float64)
    layers = nn.Conv1d(2, W, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * W, 3)
    want = infinite_width(nn.Sequential(*layers))(x, kind="ntk")
    nn.utils.parametrizations.weight_norm(layers[0])
    network = nn.Sequential(*layers)
    assert torch.equal(infinite_width(network)(x, kind="ntk"), want)
    network, plain = network.double(), nn.Sequential(nn.Conv1d(2, W, 3), *layers[1:]).double()
    plain[0].weight, plain[0].bias = nn.Parameter(network[0].weight.detach()), network[0].bias
    one, two = (torch.as_tensor(empirical_ntk(made, x).value) for made in (network, plain))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)  # g is |v| to float32


@pytest.mark.parametrize(("norm", "activation"), [(nn.LayerNorm, "relu"), (nn.RMSNorm, "tanh"), (nn.LayerNorm, "glu"), (nn.LayerNorm, "2 leaky_relu")])
def test_a_trained_gain_before_an_activation_moves_with_what_the_activation_reads(norm, activation):
    """d f / d gain_i = v_i u_i s'(u_i): its part is C_W E u s'(u) u' s'(u'), here by the average over two million pairs, and no product of means."""
    x = torch.randn(3, 6, generator=chance.generator(0), dtype=torch.float64)
    shift = norm is nn.LayerNorm
    act = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "glu": nn.GLU(), "2 leaky_relu": Do(lambda u: F.leaky_relu(2 * u, 0.3))}[activation]
    network = nn.Sequential(nn.Linear(6, W, bias=False), norm(W, eps=0.0), act, nn.Linear(W // 2 if activation == "glu" else W, 1, bias=False))
    network[0].requires_grad_(False), network[3].requires_grad_(False)
    if shift:
        network[1].bias.requires_grad_(False)
    found = infinite_width(network, parametrization="ntk", weight_variance=1.5)(x, kind="ntk")
    u = x / x.norm(dim=1, keepdim=True)
    z = torch.randn(1_000_000, 6, generator=chance.generator(1), dtype=torch.float64) @ u.T
    z = torch.cat([z, -z])
    if activation == "glu":
        other = torch.randn(1_000_000, 6, generator=chance.generator(2), dtype=torch.float64) @ u.T
        other = torch.cat([other, -other.flip(0)])
        gate = torch.sigmoid(other)
        slopes = [z * gate, z * other * gate * (1 - gate)]
    else:
        z.requires_grad_()
        (slope,) = torch.autograd.grad(act(z).sum(), z)
        slopes = [(z * slope).detach()]
    want = 1.5 * sum(part.T @ part / len(part) for part in slopes)
    assert ((found - want).abs() <= 0.01 * want.diagonal().max()).all()  # 1/sqrt(2e6) times the root of the fourth moment, seven times


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.h(torch.relu(self.a(x) + self.b(x)))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (halves(read(lambda m, z: m.h(z.chunk(2, 1)[0].tanh_() * z[:, W:])))(), {}, "changes in place a part or a view of 'a'"),
        (nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 1), nn.Upsample(scale_factor=2, mode="linear"), nn.Flatten(), nn.Linear(48, 1)), {}, "other than to the nearest position"),
        (Tied(), {}, "'b': it shares weights with 'a'"),
        (nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 1)), {"parametrization": "ntk"}, "'1': a PReLU.*LeakyReLU"),
        (halves(read(lambda m, z: m.h(z[:, :W] + torch.tanh(z[:, W - 1 : 2 * W - 1]))))(), {}, "overlap"),
        (halves(lambda m, x: m.h(F.linear(x, 2 * m.a.weight)[:, :W]))(), {}, "through such a layer"),
        (nn.Sequential(nn.Linear(6, 4), Do(lambda x: x[:2]), nn.Linear(4, 1)), {}, "some of the examples"),
        (nn.Sequential(nn.Linear(6, 4), Do(lambda x: x[:, 0:1])), {}, None),
        (nn.Sequential(nn.Linear(6, 4), Do(lambda x: x[:, 0, None])), {}, "an index other than|single channels"),
        (residual(read(lambda m, z: m.h(torch.tanh(z + F.layer_norm(m.b(z), (W,))))))(), {}, None),
        (Written(lambda m, x: m.h(torch.tanh(m.a(x) + m.n(m.b(x)))), a=nn.Linear(6, W), b=nn.Linear(6, W), n=nn.LayerNorm(W), h=nn.Linear(W, 1)), {"parametrization": "ntk"}, "whose gain is trained"),
    ],
)  # fmt: skip
def test_what_modules_do_that_theory_does_not_is_named(network, options, message):
    x = torch.randn(3, 6, generator=chance.generator(0))
    if message is None:
        assert infinite_width(network, **options)(x).shape == (3, 3)
        return
    with pytest.raises(OutOfScope, match=message):
        infinite_width(network, **options)(x)


def test_where_tracing_stops_is_said():
    with pytest.raises(InvalidInput, match=r"cannot be traced at test_infinite_modules.py, line .*if x.sum"):
        infinite_width(residual(branching)())


def branching(m, x):
    if x.sum() > 0:
        return m.h(x)
    return x
