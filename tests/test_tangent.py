"""The mean tangent kernel by layers: closed forms, and gradients of real networks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.theory import tangent
from gnomon.theory.effective import critical_point


def test_scale_invariant_networks_grow_linearly():
    """At C_W = 2 and without biases every layer of a ReLU network adds lambda_b + lambda_W K/2."""
    found = tangent.ntk_contributions(torch.relu, depth=7, width=100, weight_variance=2.0, square=1.5, weight_rates=3.0, bias_rates=0.5)
    np.testing.assert_allclose(found.value, 0.5 + 3.0 * 1.5, rtol=1e-9)


@pytest.mark.parametrize(("activation", "module", "c_w", "c_b"), [(torch.tanh, nn.Tanh(), 1.4, 0.1), (F.gelu, nn.GELU(), 1.98, 0.17)])
def test_gradients_of_real_networks_have_the_parts(activation, module, c_w, c_b):
    width, depth, members = 128, 4, 150
    rates = np.array([1.0, 0.5, 2.0, 0.7])
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(width, width).double() for _ in range(depth)]
    net = nn.Sequential(*[part for layer in layers for part in (layer, module)][:-1])
    x, parts = torch.ones(width).double(), []
    for _ in range(members):
        for layer in layers:
            layer.weight.data.normal_(0, (c_w / width) ** 0.5, generator=generator)
            layer.bias.data.normal_(0, c_b**0.5, generator=generator)
        net.zero_grad()
        net(x)[0].backward()
        parts.append([rate * float(layer.weight.grad.square().sum() / width + 2 * layer.bias.grad.square().sum()) for layer, rate in zip(layers, rates, strict=True)])
    found = tangent.ntk_contributions(activation, depth=depth, width=width, weight_variance=c_w, bias_variance=c_b, weight_rates=rates, bias_rates=2 * rates)
    error = np.std(parts, axis=0, ddof=1) / members**0.5
    assert (np.abs(np.mean(parts, axis=0) - found.value) < found.error + 4 * error).all()
    assert (4 * error < 0.2 * found.value).all(), "an ensemble that says something"


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, F.gelu])
def test_equivalent_rates_make_layers_alike(activation):
    """The first layers are left out, where the power laws have not set in; with equal rates tanh's layers differ by their number."""
    point, depth = critical_point(activation), 80
    settings = {"depth": depth, "width": 1000, "weight_variance": point.weight_variance, "bias_variance": point.bias_variance}
    settings["square"] = ((point.kernel or 1.0) - point.bias_variance) / point.weight_variance
    weights, biases = tangent.equivalent_learning_rates(activation, depth=depth).value
    for rates in ({"weight_rates": weights, "bias_rates": 0.0}, {"weight_rates": 0.0, "bias_rates": biases}):
        parts = tangent.ntk_contributions(activation, **settings, **rates).value[20:]
        assert parts.max() / parts.min() < 1.25
    if point.kind == "zero":
        plain = tangent.ntk_contributions(activation, **settings, weight_rates=0.0).value[20:]
        assert plain.max() / plain.min() > 3


def test_the_rates_of_tanh_are_one_over_the_layer_and_one():
    weights, biases = tangent.equivalent_learning_rates(torch.tanh, depth=8).value
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
    np.testing.assert_allclose(biases, 1 / np.arange(1, 9), rtol=1e-6)


def test_what_is_refused():
    with pytest.raises(InvalidInput, match="one for each of 3 layers"):
        tangent.ntk_contributions(torch.tanh, depth=3, width=8, weight_variance=1.0, weight_rates=[1.0, 2.0])
    with pytest.raises(InvalidInput, match="at least 1"):
        tangent.ntk_contributions(torch.tanh, depth=0, width=8, weight_variance=1.0)
    with pytest.raises(OutOfScope, match="logarithm|1/log l"):
        tangent.equivalent_learning_rates(F.hardtanh, depth=3)
    with pytest.raises(OutOfScope, match="no critical point"):
        tangent.equivalent_learning_rates(torch.sigmoid, depth=3)
