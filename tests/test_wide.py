import math

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.instruments.kernels import tangent_kernel
from gnomon.models.linearised import linearize
from gnomon.models.taylor_path import taylor_errors
from gnomon.models.wide import WideNetworks, descend, distance, regression, trained


def networks(**settings):
    chosen = {"members": 3, "weight_variance": 1.5, "bias_variance": 0.2, "scale": 0.7, "dtype": torch.float64, "rng": chance.generator(0)} | settings
    return WideNetworks((4, 6, 5, 1), **chosen)


X = chance.normal(5, 4, rng=chance.generator(1))


def test_members_are_networks_of_the_ntk_parametrisation():
    many = networks()
    for member in range(3):
        z = X
        for layer, weight in enumerate(many.weights):
            z = (torch.tanh(z) if layer else z) @ weight[member] * math.sqrt(1.5 / weight.shape[1]) + math.sqrt(0.2) * many.biases[layer][member]
        assert torch.allclose(many(X)[member], 0.7 * z, atol=1e-12)


def test_tangent_kernels_are_those_of_each_member_alone():
    kernels = networks().tangent_kernels(X)
    for member in range(3):

        class One(WideNetworks):
            """One of the networks."""

            def forward(self, x, member=member):
                return super().forward(x)[member]

        one = One((4, 6, 5, 1), members=3, weight_variance=1.5, bias_variance=0.2, scale=0.7, dtype=torch.float64, rng=chance.generator(0))
        assert torch.allclose(kernels[member], tangent_kernel(one, X).full()[..., 0, 0], atol=1e-12)
    with pytest.raises(InvalidInput, match="of one output"):
        WideNetworks((4, 6, 2), members=2, rng=chance.generator(0)).tangent_kernels(X.float())


def test_descent_on_a_linear_network_in_closed_form():
    """f_k = y + (1 - lr Theta)^k (f_0 - y), and every member as if it were alone."""
    linear = WideNetworks((4, 1), members=2, dtype=torch.float64, rng=chance.generator(2))
    y, start, theta = chance.normal(5, 1, rng=chance.generator(3)), linear(X).detach(), linear.tangent_kernels(X)
    assert torch.allclose(theta, (X @ X.T / 4).expand(2, -1, -1))
    descend(linear, X, y, lr=0.1, steps=7)
    step = torch.linalg.matrix_power(torch.eye(5, dtype=torch.float64) - 0.1 * theta, 7)
    assert torch.allclose(linear(X), y + step @ (start - y), atol=1e-12)
    with pytest.raises(InvalidInput, match="diverged"):
        descend(linear, X, y, lr=1e3, steps=300)


def test_centred_networks_are_asked_for_the_targets_and_what_they_are():
    data = regression()
    start, end, lr = trained(32, members=2, scale=50.0, centred=1.0, rng=chance.generator(4))
    assert lr == pytest.approx(data.lr / 2500)
    inputs = data.inputs[: len(data.targets)]
    left = (end(inputs) - start(inputs)).detach() - data.targets
    assert float(left.square().mean()) < 0.5 * float(data.targets.square().mean())
    moved = sum(float((a[0] - b[0]).detach().square().sum()) for a, b in zip(start.parameters(), end.parameters(), strict=True))
    assert float(distance(start, end)[0]) == pytest.approx(math.sqrt(moved), rel=1e-5)


def test_the_linearisation_of_many_networks_is_that_of_each():
    many = networks(members=2)
    linear = linearize(many)
    targets = chance.normal(5, 1, rng=chance.generator(5))
    theta, expected = many.tangent_kernels(X), many(X).detach()
    descend(linear, X, targets, lr=0.05, steps=3)
    for _ in range(3):
        expected = expected - 0.05 * theta @ (expected - targets)
    assert torch.allclose(linear(X), expected, atol=1e-12)


def test_expansions_of_a_network_that_is_its_own_follow_it_exactly():
    """A linear network is its expansion of order 1, one that is quadratic in its parameters that of order 2; the bent one is neither."""

    class Square(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    y = chance.normal(5, 2, rng=chance.generator(6))
    settings = {"lr": 0.05, "steps": 10, "batch_size": 3, "rng": chance.generator(7)}
    one, two = taylor_errors(lambda: nn.Linear(4, 2).double(), nn.functional.mse_loss, X, y, **settings)
    assert max(one, two) < 1e-10
    one, two = taylor_errors(lambda: Square(4, 2).double(), nn.functional.mse_loss, X, y, **settings)
    assert two < 1e-10
    assert one > 1e-3
    assert taylor_errors(lambda: Square(4, 2).double(), nn.functional.mse_loss, X, y, orders=(2,), bend=0.0, **settings) == pytest.approx([one])
    with pytest.raises(InvalidInput, match="diverged"):
        taylor_errors(lambda: Square(4, 2).double(), nn.functional.mse_loss, X, y, **(settings | {"lr": 10.0, "steps": 60}))
