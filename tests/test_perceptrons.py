"""Stacked networks against the same networks one by one, and the moments of their tangent kernels against closed forms."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.instruments import ensembles
from gnomon.models import perceptrons
from gnomon.models.perceptrons import draw

SETTINGS = {"features": 3, "depth": 3, "width": 4, "members": 5, "weight_variance": 1.7, "bias_variance": 0.2, "weight_rates": (0.5, 1.0, 2.0), "bias_rates": (0.3, 0.0, 0.7)}


@pytest.fixture(scope="module")
def x():
    return chance.normal(2, 3, rng=chance.generator(0, "x"))


def only(**changes):
    return next(iter(draw(torch.tanh, **(SETTINGS | {"rng": chance.generator(0)} | changes))))


def single(networks, member):
    """One member as a torch module, with its parameters' learning rates."""
    layers, rates = [], []
    for layer, (w, b) in enumerate(zip(networks.weights, networks.biases, strict=True)):
        linear = nn.Linear(w.shape[2], w.shape[1], dtype=torch.float64)
        linear.weight.data, linear.bias.data = w[member].clone(), b[member, 0].clone()
        layers += [linear, nn.Tanh()]
        rates += [networks.weight_rates[layer] / w.shape[2], networks.bias_rates[layer]]
    return nn.Sequential(*layers[:-1]), rates


def jacobian(module, x):
    """(examples, units) gradients, flat, and the second derivatives of the first unit, dense."""
    names = [name for name, _ in module.named_parameters()]
    sizes = [p.numel() for p in module.parameters()]

    def function(flat):
        parts = flat.split(sizes)
        return torch.func.functional_call(module, {n: v.reshape(p.shape) for n, v, p in zip(names, parts, module.parameters(), strict=True)}, (x,))

    flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    return torch.func.jacrev(function)(flat), torch.func.jacfwd(torch.func.jacrev(lambda t: function(t)[:, 0]))(flat), sizes


def test_outputs_kernels_and_their_differential_are_those_of_the_networks_one_by_one(x):
    networks = only()
    outputs, ntk = networks.outputs_and_ntk(x)
    hidden_outputs, hidden = networks.hidden_ntk(x)
    differential = networks.dntk(x)
    for member in range(5):
        module, rates = single(networks, member)
        first, second, sizes = jacobian(module, x)
        scale = torch.cat([torch.full((size,), rate, dtype=torch.float64) for size, rate in zip(sizes, rates, strict=True)])
        kernel = torch.einsum("aip,p,bjp->abij", first, scale, first)
        torch.testing.assert_close(outputs[member], module(x).detach())
        torch.testing.assert_close(hidden_outputs[member], outputs[member])
        torch.testing.assert_close(ntk[member], kernel[:, :, 0, 0])
        torch.testing.assert_close(hidden[member], torch.stack([kernel[0, 0], kernel[0, 1], kernel[1, 1]]))
        steps = first[:, 0] * scale
        torch.testing.assert_close(differential[member], torch.einsum("bp,apq,cq->abc", steps, second, steps))


def test_one_step_is_that_of_an_optimizer(x):
    networks, targets = only(), chance.normal(2, 4, rng=chance.generator(1))
    after = networks.stepped(x, targets, 0.05)
    for member in range(5):
        module, rates = single(networks, member)
        optimizer = torch.optim.SGD([{"params": [p], "lr": 0.05 * rate} for p, rate in zip(module.parameters(), rates, strict=True)])
        ((module(x) - targets).square().sum() / 2).backward()
        optimizer.step()
        torch.testing.assert_close(after.outputs(x)[member], module(x).detach())


def test_parameters_have_their_law_in_both_dtypes_and_come_in_pieces(monkeypatch):
    monkeypatch.setattr(perceptrons, "HELD_NUMBERS", 5_000)
    monkeypatch.setattr(perceptrons, "LEAST_NUMBERS", 2_500)
    for dtype in (torch.float32, torch.float64):
        pieces = list(draw(torch.relu, features=7, depth=2, width=50, members=40, weight_variance=2.0, bias_variance=0.3, dtype=dtype, rng=chance.generator(0)))
        assert [len(piece.weights[0]) for piece in pieces] == [1] * 40
        for layer, fan_in in enumerate((7, 50)):
            w, b = (torch.cat([part.weights[layer] for part in pieces]), torch.cat([part.biases[layer] for part in pieces]))
            assert w.dtype == dtype
            assert abs(float(w.double().square().mean()) * fan_in / 2 - 1) < 5 * math.sqrt(2 / w.numel())
            assert abs(float(b.double().square().mean()) / 0.3 - 1) < 5 * math.sqrt(2 / b.numel())
    again = list(draw(torch.relu, features=7, depth=2, width=50, members=40, weight_variance=2.0, bias_variance=0.3, dtype=torch.float64, rng=chance.generator(0)))
    assert all(torch.equal(a.weights[1], b.weights[1]) for a, b in zip(pieces, again, strict=True))


def test_covariances_of_kernels_of_a_linear_network_with_one_hidden_layer():
    """With C_W = 1, |x|^2/n_0 = q and rates r:  A = 2 r^2 q^2, B = r^2 q^2, D = 2 r q^2, F = r q^2, at every width."""
    x, rate, q = torch.full((1, 4), 1.5, dtype=torch.float64), 0.5, 2.25
    parts = [
        networks.hidden_ntk(x)
        for networks in draw(lambda z: 1.0 * z, features=4, depth=2, width=6, members=20_000, weight_variance=1.0, weight_rates=rate, bias_rates=0.0, rng=chance.generator(0))
    ]
    found = ensembles.ntk_covariances(*(torch.cat(part) for part in zip(*parts, strict=True)))
    truth = {"A": 2 * rate**2 * q**2, "B": rate**2 * q**2, "D": 2 * rate * q**2, "F": rate * q**2}
    for name, reading in found.items():
        assert 0 < float(reading.error.item()) < 0.1 * truth[name]
        assert abs(float(reading) - truth[name]) < 3 * float(reading.error.item()), name


def test_fluctuation_and_its_error_bar():
    """Gamma variables of shape 4 have relative variance 1/4; the stated error is the spread over repeats."""
    kernel = torch.distributions.Gamma(4.0, 1.0)
    with chance.scoped(chance.generator(0)):
        drawn = kernel.sample((200, 500)).double()
    readings = [ensembles.ntk_fluctuation(block) for block in drawn]
    values = torch.tensor([float(reading) for reading in readings])
    assert abs(float(values.mean()) - 0.25) < 3 * float(values.std()) / math.sqrt(200)
    inside = sum(low <= 0.25 <= high for low, high in (reading.ends() for reading in readings))
    assert 180 <= inside <= 198


@pytest.mark.parametrize(("changes", "says"), [({"members": 0}, "at least 1"), ({"weight_variance": -1.0}, "not negative"), ({"bias_rates": (1.0, 2.0)}, "each of 3 layers")])
def test_what_cannot_be_drawn(changes, says):
    with pytest.raises(InvalidInput, match=says):
        only(**changes)


@pytest.mark.parametrize(
    ("activation", "kinks"),
    [(torch.relu, True), (nn.Hardtanh(), True), (nn.ReLU6(), True), (nn.LeakyReLU(0.9), True), (torch.tanh, False), (nn.GELU(), False), (nn.ELU(), False), (torch.sin, False)],
)
def test_kinks_are_seen_and_refused_where_autograd_leaves_them_out(activation, kinks, x):
    assert perceptrons.has_kinks(activation) == kinks
    networks = dataclasses.replace(only(), activation=activation)
    if kinks:
        with pytest.raises(OutOfScope, match="kink"):
            networks.dntk(x)
    else:
        assert torch.isfinite(networks.dntk(x)).all()


def test_a_network_of_one_layer_has_a_kernel_that_does_not_change(x):
    assert not only(depth=1, weight_rates=1.0, bias_rates=1.0).dntk(x).any()


def test_covariances_need_pairs_and_many_networks():
    with pytest.raises(InvalidInput, match="pair of units"):
        ensembles.ntk_covariances(torch.zeros(40, 1, 1), torch.zeros(40, 1, 1, 1))
    with pytest.raises(InvalidInput, match="at least 30"):
        ensembles.ntk_fluctuation(torch.ones(10))
