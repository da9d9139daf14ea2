"""How many examples a function of one direction takes: counts and spectra in closed form, kernel regression and networks against them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.single_index import Curve, Networks, on_line_curve, regression_curve, target
from gnomon.theory.eigenlearning import learning_curve
from gnomon.theory.single_index import harmonics, information_exponent, kernel_sample_exponent, kernel_samples, network_sample_exponent, sphere_spectrum


def exponential(x1, x2):
    return (x1 @ x2.T / x1.shape[1]).exp()


def linear(x1, x2):
    return x1 @ x2.T / x1.shape[1]


@pytest.mark.parametrize("dimension", [2, 3, 7])
def test_harmonics_add_up_to_the_monomials(dimension):
    for degree in range(6):
        assert sum(harmonics(dimension, degree - j) for j in range(0, degree + 1, 2)) == math.comb(dimension + degree - 1, degree)


def test_the_information_exponent():
    cases = (
        (lambda z: z + z**2, 1),
        (torch.relu, 1),
        (lambda z: z**2, 2),
        (torch.abs, 2),
        (lambda z: z**3 - 3 * z, 3),
        (lambda z: z**4 - 6 * z**2, 4),
        (lambda z: torch.cos(3 * z), 2),
    )
    assert [information_exponent(function) for function, _ in cases] == [s for _, s in cases]
    assert information_exponent(lambda z: (z > 1).double() - (z < -1).double(), breaks=(-1.0, 1.0)) == 1
    assert information_exponent(lambda z: target(z[:, None], 0.5)) == 1
    with pytest.raises(OutOfScope, match="constant"):
        information_exponent(torch.ones_like)
    for wrong in (lambda z: z.sum(), lambda z: 1 / (z - z)):
        with pytest.raises(InvalidInput, match="finite"):
            information_exponent(wrong)


def test_the_spectrum_of_a_square_is_in_two_degrees():
    """t^2 = 1 / d + (d - 1) / d P_2(t)."""
    for d in (3, 10, 300):
        found, counts, rest = sphere_spectrum(lambda x1, x2: linear(x1, x2) ** 2, d)
        assert found[0] == pytest.approx(1 / d)
        assert found[2] * counts[2] == pytest.approx((d - 1) / d)
        assert rest == pytest.approx(0, abs=1e-12)
        assert not found[[1, 3, 4, 5]].any()
    with pytest.raises(InvalidInput, match="no positive function"):
        sphere_spectrum(lambda x1, x2: linear(x1, x2) - linear(x1, x2) ** 3, 5)


def test_the_spectrum_is_that_of_a_gram_matrix():
    """Over many points of a sphere of few dimensions the matrix has the eigenvalues, each as often as there are harmonics."""
    x = torch.nn.functional.normalize(chance.normal(1500, 3, rng=chance.generator(0))) * 3**0.5
    seen = torch.linalg.eigvalsh(exponential(x, x) / len(x)).flip(0).numpy()
    found, counts, _ = sphere_spectrum(exponential, 3)
    at = np.concatenate([[0], counts.cumsum()]).astype(int)
    for degree in range(4):
        assert seen[at[degree] : at[degree + 1]].mean() == pytest.approx(found[degree], rel=0.1)


def test_counts_stand_for_repeated_eigenvalues():
    values, power, counts = np.array([1.0, 0.3, 0.01, 0.0]), np.array([0.5, 1.0, 0.2, 0.1]), np.array([2, 5, 40, 3])
    spread = [np.repeat(values, counts), np.repeat(power / counts, counts)]
    for ridge, population in ((0.0, None), (0.1, 500)):
        one = learning_curve(values, power, [5, 20, 90], counts=counts, ridge=ridge, population=population)
        many = learning_curve(*spread, [5, 20, 90], ridge=ridge, population=population)
        np.testing.assert_allclose(one.value, many.value, rtol=1e-10)
        np.testing.assert_allclose(one.details["train"], many.details["train"], rtol=1e-8, atol=1e-12)
    with pytest.raises(InvalidInput, match="counts"):
        learning_curve(values, power, [5], counts=counts[:2])


def test_kernel_regression_takes_as_many_examples_as_predicted():
    d, level = 12, 0.3
    predicted = kernel_samples([exponential], [d], [0, 1, (d - 1) / (d + 2)], level=level)
    found = np.log([regression_curve(exponential, d, level=level, most=2000, tests=300, rng=chance.generator(seed)).needed(level) for seed in range(20)])
    assert found.mean() == pytest.approx(math.log(predicted.value[0]), abs=4 * found.std(ddof=1) / 20**0.5 + float(predicted.error[0] / predicted.value[0]))


def test_the_exponents_of_high_dimensions_are_the_degrees():
    dimensions = (1000, 2000, 4000)
    for degree in (1, 2, 3):
        samples = kernel_samples([exponential] * 3, dimensions, [0] * degree + [1], level=0.5)
        found = kernel_sample_exponent(degree, samples)
        assert found.details["slope"] == pytest.approx(degree, abs=0.01)
        assert float(found) == degree
    assert [float(network_sample_exponent(s, dimensions)) for s in (1, 2, 3, 4)] == [1, 1, 2, 3]
    logarithm = np.polyfit(np.log(dimensions), np.log(np.log(dimensions)), 1)[0]
    assert float(network_sample_exponent(2, dimensions).error - network_sample_exponent(1, dimensions).error) == pytest.approx(logarithm)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_step_is_that_of_automatic_differentiation(scale):
    rng, lr = chance.generator(0), 0.1
    networks = Networks.draw(5, 6, 2, scale=scale, rng=rng)
    x, y = chance.normal(2, 3, 5, rng=rng).float(), chance.normal(2, 3, rng=rng).float()
    assert networks.outputs(x).abs().max() < 1e-6
    modules = []
    for member in range(2):
        first, last = nn.Linear(5, 6), nn.Linear(6, 1, bias=False)
        with torch.no_grad():
            first.weight.copy_(networks.weights[member])
            first.bias.copy_(networks.biases[member, :, 0])
            last.weight.copy_(networks.outer[member].T)
        module = nn.Sequential(first, nn.ReLU(), last)
        for _ in range(2):
            slopes = torch.autograd.grad((scale / 6 * module(x[member])[:, 0] - y[member]).square().sum() / 2, list(module.parameters()))
            with torch.no_grad():
                for parameter, slope in zip(module.parameters(), slopes, strict=True):
                    parameter -= lr * 6 / scale**2 * slope
        modules.append((first, last))
    for _ in range(2):
        networks.learn(x, y, lr)
    for member, (first, last) in enumerate(modules):
        torch.testing.assert_close(networks.weights[member], first.weight.data)
        torch.testing.assert_close(networks.biases[member, :, 0], first.bias.data)
        torch.testing.assert_close(networks.outer[member].T, last.weight.data)


def test_at_a_large_scale_weights_move_by_one_over_it_for_the_same_outputs():
    moved, outputs, x = [], [], chance.normal(1, 40, 8, rng=chance.generator(1)).float()
    for scale in (100.0, 200.0):
        start, networks = (Networks.draw(8, 32, 1, scale=scale, rng=chance.generator(0)) for _ in range(2))
        for step in range(30):
            seen = chance.normal(1, 4, 8, rng=chance.child(chance.generator(2), "x", step)).float()
            networks.learn(seen, target(seen), 0.03)
        moved.append(float((networks.weights - start.weights).norm()))
        outputs.append(networks.outputs(x))
    assert moved[0] / moved[1] == pytest.approx(2, rel=0.02)
    assert float((outputs[0] - outputs[1]).norm() / outputs[1].norm()) < 0.05
    assert float(outputs[1].norm()) > 0.1 * 40**0.5


def test_in_float64_networks_take_as_many_examples():
    found = [Networks.draw(8, 16, 4, like=torch.zeros((), dtype=dtype), rng=chance.generator(0)) for dtype in (torch.float32, torch.float64)]
    curves = [on_line_curve(networks, lr=0.2, level=0.5, most=2000, tests=100, rng=chance.generator(1)) for networks in found]
    assert curves[0].needed(0.5) == pytest.approx(curves[1].needed(0.5), rel=1e-3)
    assert found[1].weights.dtype == torch.float64
    assert curves[0].errors[-1] < 0.5 < curves[0].errors[-2]


def test_where_a_curve_falls_below_a_level():
    curve = Curve(torch.tensor([10.0, 100.0, 1000.0]).double(), torch.tensor([1.0, 0.6, 0.2]).double())
    assert curve.needed(0.4) == pytest.approx(10**2.5)
    assert curve.needed(0.1) == pytest.approx(1000)


def test_bad_input():
    with pytest.raises(OutOfScope, match="does not see"):
        kernel_samples([linear], [10], [0, 1, 1], level=0.25)
    with pytest.raises(InvalidInput, match="not positive definite"):
        regression_curve(linear, 5, level=0.01, most=64, rng=chance.generator(0))
    with pytest.raises(InvalidInput, match="smaller one"):
        on_line_curve(Networks.draw(8, 4, 1, rng=chance.generator(0)), lr=50.0, level=0.1, most=5000, rng=chance.generator(0))
    for call, said in (
        (lambda: Networks.draw(8, 5, 1, rng=chance.generator(0)), "even width"), (lambda: harmonics(1, 2), "at least 2"), (lambda: network_sample_exponent(0, (2, 4)), "at least 1"),
        (lambda: network_sample_exponent(1, (8, 8)), "two dimensions"), (lambda: kernel_samples([linear], [10], [0, 1], level=2.0), "between 0 and 1"), (lambda: kernel_samples([linear], [10], [0, -1], level=0.5), "squares"), (lambda: sphere_spectrum(linear, 2), "at least 3"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=said):
            call()
