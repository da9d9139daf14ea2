"""Mutual information against numerical integration of a mixture, the optimal ratio against the book, residual networks against ensembles."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.examination import aspect
from gnomon.instruments import ensembles
from gnomon.models.residual_chain import residual_chain
from gnomon.theory.aspect_ratio import mutual_information, optimal_ratio, optimal_residual, residual_vertex, vertex_slope
from gnomon.theory.criticality import critical_point


def entropy(n, spread):
    """Of n numbers that are N(0, 1 + spread) or N(0, 1 - spread), all together, by integration over their radius."""
    ends = [(0.5, math.sqrt(1 + spread)), (0.5, math.sqrt(1 - spread))]
    surface = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)

    def density(r):
        return sum(weight * stats.chi.pdf(r, n, scale=scale) for weight, scale in ends)

    def integrand(r):
        radial = density(r)
        return -radial * (math.log(radial) - surface - (n - 1) * math.log(r)) if radial > 0 else 0.0

    return integrate.quad(integrand, 1e-12, 15, epsabs=1e-13, epsrel=1e-12, limit=400)[0]


@pytest.mark.parametrize(("one", "two"), [(1, 1), (1, 2), (3, 2)])
def test_mutual_information_is_that_of_a_mixture_of_two_scales(one, two):
    """k is 1 + d or 1 - d: E d^2 = a, no third moment, and what is left out is of order a^4."""
    left = []
    for a in (0.01, 0.02):
        spread = math.sqrt(a)
        truth = entropy(one, spread) + entropy(two, spread) - entropy(one + two, spread)
        predicted = float(mutual_information(a, one, two))
        third = one * two * (20 + 3 * (one + two)) * a**3 / 48
        assert abs(predicted - truth) < 0.5 * third, "the third order is seen"
        left.append(abs(predicted - truth))
    assert 12 < left[1] / left[0] < 20, "the rest grows with the fourth power"


def test_it_is_largest_where_the_optimal_ratio_says():
    a = np.linspace(0, 0.2, 20_001)
    values = [float(mutual_information(x, 4, 6)) for x in a]
    assert a[int(np.argmax(values))] == pytest.approx(4 / 50, abs=2e-5)
    assert float(optimal_ratio(torch.relu, outputs=10)) == pytest.approx(4 / 50 / 5)
    assert float(optimal_ratio(torch.tanh, outputs=10)) == pytest.approx(4 / 50 * 1.5, rel=1e-6)
    assert float(optimal_ratio(lambda z: 1.0 * z, outputs=1)) == pytest.approx(4 / 23 / 2)


@pytest.mark.parametrize(
    ("activation", "gamma", "slope"), [(lambda z: 1.0 * z, 0.6, 2 * (1 - 0.6**4)), (torch.tanh, 0.8, 2 / 3 * (1 - 0.8**4)), (torch.relu, 0.0, 5.0), (torch.relu, 1.0, 0.0)]
)
def test_slopes_of_residual_networks(activation, gamma, slope):
    """2 (1 - gamma^4) for a linear network, a third of it where K* = 0."""
    assert vertex_slope(activation, residual=gamma) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(("activation", "gamma"), [(torch.relu, 0.7), (torch.nn.functional.gelu, 0.5), (lambda z: 1.0 * z, 0.9)])
def test_a_residual_ensemble_has_the_predicted_vertex(activation, gamma):
    members, width, depth = 12_000, 100, 5
    point, rng = critical_point(activation), chance.generator(0)
    z, layers = chance.normal(members, width, rng=rng) * math.sqrt(point.kernel), []
    for _ in range(depth):
        layers.append(z)
        # given the layer before, W s + b is a Gaussian vector of variance C_W |s|^2 / n + C_b: no weights are needed
        variance = (1 - gamma**2) * (point.weight_variance * activation(z).square().mean(1, keepdim=True) + point.bias_variance)
        z = gamma * z + chance.normal(members, width, rng=rng) * variance.sqrt()
    found = ensembles.four_point_vertex(torch.stack(layers))
    predicted = residual_vertex(activation, depth=depth, width=width, residual=gamma)
    assert (abs(found.value - predicted.value) < 3.5 * found.error + predicted.value**2).all()
    assert (found.error < 0.15 * predicted.value)[1:].all()


def test_deep_layers_add_what_the_slope_says():
    for activation in (torch.relu, torch.nn.functional.gelu):
        found = residual_vertex(activation, depth=400, width=1, residual=0.9).value
        assert found[-1] - found[-2] == pytest.approx(vertex_slope(activation, residual=0.9), rel=1e-5)
        plain = residual_vertex(activation, depth=3, width=1, residual=0.0).value
        assert plain[2] == pytest.approx(2 * vertex_slope(activation), rel=1e-9)


def test_the_residual_factor_puts_a_network_at_its_optimum():
    gamma = optimal_residual(torch.relu, depth=24, width=128, outputs=10)
    assert float(optimal_ratio(torch.relu, outputs=10, residual=float(gamma))) == pytest.approx(24 / 128)
    with pytest.raises(OutOfScope, match="shallower"):
        optimal_residual(torch.relu, depth=2, width=512, outputs=10)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mutual_information(-0.1, 1, 1), "not negative"),
        (lambda: optimal_ratio(torch.tanh, outputs=0), "at least one output"),
        (lambda: vertex_slope(torch.tanh, residual=1.5), r"\[0, 1\]"),
        (lambda: optimal_residual(torch.tanh, depth=0, width=4, outputs=1), "at least 1"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(InvalidInput, match=says):
        call()


def test_where_there_is_no_ratio():
    with pytest.raises(OutOfScope, match="every ratio"):
        optimal_ratio(torch.relu, outputs=1, residual=1.0)
    with pytest.raises(OutOfScope, match="falls with depth"):
        residual_vertex(torch.tanh, depth=3, width=4, residual=0.5)
    with pytest.raises(OutOfScope, match="no critical point"):
        optimal_ratio(torch.sigmoid, outputs=1)


def read(*layers):
    return architecture.read(nn.Sequential(*layers), torch.zeros(2, *((1, 8, 8) if isinstance(layers[0], nn.Conv2d) else (8,))))


def deep(activation, units, classes=10):
    return [layer for a, b in itertools.pairwise((8, *units, classes)) for layer in (nn.Linear(a, b), activation())][:-1]


def test_the_report_says_how_deep_a_network_is_for_its_width():
    (row,) = aspect.rows(read(*deep(nn.ReLU, (20, 20, 40))))
    verdict, words, advice = row.settle()
    assert verdict is None
    assert float(row.measured) == pytest.approx(0.125)
    assert "0.016" in words
    assert "79 %" in words, "sqrt(5 / 8)"
    assert advice.startswith("Widen the hidden layers 7.8 times")
    (row,) = aspect.rows(read(*deep(nn.ReLU, (1000, 1000))))
    assert row.settle()[2] is None
    (row,) = aspect.rows(read(*deep(nn.Sigmoid, (20, 20))))
    assert row.settle()[0].outcome == "out_of_scope"
    assert "negative variance" in row.settle()[0].why


def test_the_row_is_about_fully_connected_layers_through_one_activation():
    convolutional = read(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    assert float(next(aspect.rows(convolutional)).measured) == pytest.approx(2 / 16)
    mixed = read(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))
    assert next(aspect.rows(mixed)).title == "depth over width, 2 to 6"
    assert list(aspect.rows(read(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)))) == []


def test_residual_chains_are_what_their_formula_says_and_descend():
    """One member by hand: its outputs, its tangent kernel by autograd, and ten steps of descent."""
    x, y = chance.normal(5, 3, rng=chance.generator(0, "x")), chance.normal(5, 2, rng=chance.generator(0, "y"))
    drawn = residual_chain(3, 6, 2, depth=4, members=3, residual=0.6, rng=chance.generator(1))
    weights = [w[1].detach().clone().requires_grad_() for w in drawn.weights]

    def outputs(x):
        z = x @ weights[0]
        for w in weights[1:-1]:
            z = 0.6 * z + torch.tanh(z) @ w
        return torch.tanh(z) @ weights[-1]

    torch.testing.assert_close(drawn.outputs(x)[1], outputs(x))
    kernels = [sum(float(g.square().sum()) / len(g) for g in torch.autograd.grad(outputs(one[None])[0, 0], weights)) for one in x]
    np.testing.assert_allclose(drawn.ntk(x)[1].detach().numpy(), kernels)
    lr = 1 / (5 * float(drawn.ntk(x).mean()))
    for _ in range(10):
        slopes = torch.autograd.grad((outputs(x) - y).square().sum() / 2, weights)
        weights[:] = [(w - lr / len(w) * g).detach().requires_grad_() for w, g in zip(weights, slopes, strict=True)]
    assert float(drawn.least_loss((x, y), (x, y), steps=10)[1]) == pytest.approx(float((outputs(x).detach() - y).square().sum(-1).mean()))
    with pytest.raises(InvalidInput, match="residual"):
        residual_chain(3, 6, 2, depth=4, members=3, residual=1.1, rng=chance.generator(1))
