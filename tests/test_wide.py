import math

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.instruments.kernels import tangent_kernel
from gnomon.models import wide
from gnomon.models.linearised import linearize
from gnomon.models.perceptrons import draw
from gnomon.models.taylor_path import taylor_errors

X = chance.normal(5, 4, rng=chance.generator(1)).float()


def networks(width=6, members=3):
    (made,) = wide.tanh_networks(4, width, members=members, weight_variance=1.5, rng=chance.generator(0))
    return made


class Network(nn.Module):
    """s f of one of the networks, in the NTK parametrisation written out: normal weights times sqrt(C_W / fan_in), and s outside."""

    def __init__(self, many, member, scale=1.0):
        super().__init__()
        self.scale, self.factors = scale, [math.sqrt(1.5 / weight.shape[-1]) for weight in many.weights]
        self.weights = nn.ParameterList([weight[member] / factor for weight, factor in zip(many.weights, self.factors, strict=True)])

    def forward(self, x):
        for layer, (weight, factor) in enumerate(zip(self.weights, self.factors, strict=True)):
            x = factor * (torch.tanh(x) if layer else x) @ weight.T
        return self.scale * x


def test_scaled_networks_learn_as_if_the_scale_stood_outside():
    """Outputs, tangent kernels, training and the distance travelled, beside one network at a time by autograd."""
    many, y = wide.scaled(networks(), 0.3), chance.normal(5, 1, rng=chance.generator(3)).float()
    outputs, kernels = many.outputs_and_ntk(X)
    after = wide.descended(many, X, y, lr=0.2, steps=4)
    for member in range(3):
        one = Network(networks(), member, 0.3)
        start = [parameter.detach().clone() for parameter in one.parameters()]
        assert torch.allclose(outputs[member], one(X), atol=1e-6)
        assert torch.allclose(kernels[member], tangent_kernel(one, X).full()[..., 0, 0], atol=1e-6)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.2)
        for _ in range(4):
            optimizer.zero_grad()
            ((one(X) - y).square().sum() / 2).backward()
            optimizer.step()
        assert torch.allclose(after.outputs(X)[member], one(X), atol=1e-5)
        moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one.parameters(), start, strict=True)))
        assert float(wide.distance(many, after)[member]) == pytest.approx(moved, rel=1e-4)


def test_the_linearisation_of_a_network_moves_by_its_kernel():
    one, y = Network(networks(), 0).double(), chance.normal(5, 1, rng=chance.generator(5))
    linear, x = linearize(one), X.double()
    theta, expected = tangent_kernel(one, x).full()[..., 0, 0], one(x).detach()
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        ((linear(x) - y).square().sum() / 2).backward()
        optimizer.step()
        expected = expected - 0.05 * theta @ (expected - y)
    assert torch.allclose(linear(x), expected, atol=1e-12)


def test_centred_networks_are_asked_for_the_targets_and_what_they_are():
    data = wide.regression()
    (found,) = wide.trained(32, members=2, scale=50.0, centred=1.0, rng=chance.generator(4))
    start, end, lr = found
    assert lr == pytest.approx(data.lr / 2500)
    inputs = data.inputs[: len(data.targets)]
    left = end.outputs(inputs) - start.outputs(inputs) - data.targets
    assert float(left.square().mean()) < 0.5 * float(data.targets.square().mean())


def test_what_does_not_go_is_said():
    with pytest.raises(InvalidInput, match="diverged"):
        wide.descended(networks(), X, torch.ones(5, 1), lr=1e3, steps=30)
    (biased,) = draw(torch.tanh, features=4, depth=2, width=3, members=2, weight_variance=1.0, bias_variance=0.1, rng=chance.generator(0))
    with pytest.raises(InvalidInput, match="no biases"):
        wide.scaled(biased, 2.0)


def test_expansions_of_a_network_that_is_its_own_follow_it_exactly():
    """A linear network is its expansion of order 1, one that is quadratic in its parameters that of order 2; the bent one is neither."""

    class Square(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    y = chance.normal(5, 2, rng=chance.generator(6))
    settings = {"lr": 0.05, "steps": 10, "batch_size": 3, "rng": chance.generator(7)}
    one, two = taylor_errors(lambda: nn.Linear(4, 2).double(), nn.functional.mse_loss, X.double(), y, **settings)
    assert max(one, two) < 1e-10
    one, two = taylor_errors(lambda: Square(4, 2).double(), nn.functional.mse_loss, X.double(), y, **settings)
    assert two < 1e-10
    assert one > 1e-3
    assert taylor_errors(lambda: Square(4, 2).double(), nn.functional.mse_loss, X.double(), y, orders=(2,), bend=0.0, **settings) == pytest.approx([one])
    with pytest.raises(InvalidInput, match="diverged"):
        taylor_errors(lambda: Square(4, 2).double(), nn.functional.mse_loss, X.double(), y, **(settings | {"lr": 10.0, "steps": 60}))
