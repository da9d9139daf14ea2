"""Trained networks on average: a network whose training is a recursion of three numbers, one step, symmetry, real networks that are trained."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import eigh_tridiagonal

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models import perceptrons
from gnomon.theory import end_of_training
from gnomon.theory.end_of_training import trained
from gnomon.theory.one_step import one_step
from gnomon.theory.tensors import tensors

INPUTS = np.array([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7], [0.4, -0.8, 0.9]])
TARGETS = np.array([[1.0, -0.5], [0.3, 0.8]])
SMOOTH = {"depth": 3, "weight_variance": 1.3, "bias_variance": 0.1, "weight_rates": 0.8, "bias_rates": 0.6}


def corrections(found, **settings):
    """Both of order 1/n, times n, and both limits."""
    near, far = trained(found, width=1, **settings), trained(found, width=10**13, **settings)
    return [(np.asarray(a.value) - np.asarray(b.value), np.asarray(b.value)) for a, b in ((near.outputs, far.outputs), (near.covariance, far.covariance))]


def linear_network(n, c_w, k, rate, y, lr, steps):
    """Exact mean and variance of z = w.v, v = V x, after descent: |w|^2, |v|^2 and z are a closed recursion, their law is known, and Gauss quadrature of polynomials is exact."""
    i, nodes = np.arange(1.0, 24), np.arange(24)
    square, a = eigh_tridiagonal(2 * nodes + n / 2, np.sqrt(i * (i + n / 2 - 1)))
    angle, c = eigh_tridiagonal(np.zeros(24), np.sqrt(i * (i + n - 3) / ((2 * i + n - 3) ** 2 - 1)))
    w, v, cosine = np.meshgrid(2 * square * c_w / n, 2 * square * k, angle, indexing="ij")
    weight = np.einsum("i,j,k->ijk", a[0] ** 2, a[0] ** 2, c[0] ** 2)
    z = cosine * np.sqrt(w * v)
    for _ in range(steps):
        p, q = lr * rate / n * (z - y), lr * rate * k / c_w * (z - y)
        z, w, v = z * (1 + p * q) - q * w - p * v, w - 2 * p * z + p * p * v, v - 2 * q * z + q * q * w
    mean = (weight * z).sum()
    return np.array([mean, (weight * (z - mean) ** 2).sum()])


@pytest.mark.parametrize(("lr", "steps"), [(0.3, 1), (0.3, 3), (0.5, 4), (0.02, 60)])
def test_a_linear_network_of_two_layers_is_exact(lr, steps):
    """n times what is left of the limit, extrapolated to infinite width."""
    c_w, k, rate, y = 1.3, 0.9, 0.8, 1.5
    found = tensors(lambda z: z, kernel=k, depth=2, weight_variance=c_w, weight_rates=rate, bias_rates=0.0)
    made = corrections(found, targets=np.array([[y]]), lr=lr, time=lr * steps)
    limit = np.array([float(part[1].squeeze()) for part in made])
    rows = np.stack([n * (linear_network(n, c_w, k, rate, y, lr, steps) - limit) for n in (100, 200, 400, 800)])
    for power in (2, 4, 8):
        rows = (power * rows[1:] - rows[:-1]) / (power - 1)
    np.testing.assert_allclose([float(part[0].squeeze()) for part in made], rows[0], rtol=1e-6)


def test_one_step_is_one_step():
    found = tensors(torch.tanh, inputs=INPUTS, **SMOOTH)
    y = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -0.6]])
    made = trained(found, targets=y, lr=0.2, time=0.2, width=50)
    np.testing.assert_allclose(made.outputs.value, one_step(found, targets=y, lr=0.2, width=50).outputs.value, rtol=0, atol=1e-12)


def test_flow_is_descent_in_small_steps_and_ends_where_it_stays():
    """Extrapolated from two steps to none, the error of second order; and late is the end."""
    found = tensors(torch.nn.functional.gelu, inputs=INPUTS, **SMOOTH)
    parts = [corrections(found, targets=TARGETS, time=1.0, lr=lr) for lr in (0.0, 0.0025, 0.005)]
    for (flow, _), (half, _), (whole, _) in zip(*parts, strict=True):
        np.testing.assert_allclose(2 * half - whole, flow, rtol=0, atol=1e-3 * np.abs(flow).max())
        assert np.abs(whole - flow).max() > 3e-3 * np.abs(flow).max(), "steps matter"
    for lr in (0.0, 0.1):
        for (late, _), (end, _) in zip(corrections(found, targets=TARGETS, time=100.0, lr=lr), corrections(found, targets=TARGETS, lr=lr), strict=True):
            np.testing.assert_allclose(late, end, rtol=0, atol=1e-9 * np.abs(end).max())
            assert np.abs(end[:, :2]).max() < 1e-12, "what was trained on is learnt"


def test_many_outputs_are_what_a_few_say():
    """Six classes, one example of each of two of them: by two more outputs than targets span, and by all combinations."""
    found = tensors(torch.nn.functional.gelu, inputs=INPUTS, **SMOOTH)
    y = np.eye(6)[:, [4, 1]] - 1 / 6
    for settings in ({"time": 0.5}, {"lr": 0.05}):
        (mean, _), (spread, _) = corrections(found, targets=y, **settings)
        rates, vectors = np.linalg.eigh(found.ntk[-1][:2, :2])
        back = np.eye(3)
        back[:, :2] = np.concatenate([vectors, found.ntk[-1][2:, :2] @ vectors / rates])
        weights = end_of_training.Clock(rates, 1, settings.get("time", math.inf), settings.get("lr", 0.0)).weights()
        every, pairs = end_of_training._corrections(found, back, weights, y)
        np.testing.assert_allclose(mean, every, rtol=0, atol=1e-10 * np.abs(every).max())
        np.testing.assert_allclose(spread, np.einsum("iiab->iab", pairs), rtol=0, atol=1e-10 * np.abs(pairs).max())


def test_a_deep_linear_network_says_on_average_what_its_kernel_says():
    """One example is learnt: reflecting what is orthogonal to it changes no law, so the mean on others is that of the limit, while the single corrections are not small."""
    found = tensors(lambda z: z, inputs=INPUTS[:2], depth=4, weight_variance=1.1, bias_rates=0.0)
    (mean, limit), (spread, _) = corrections(found, targets=np.array([[2.0]]))
    assert abs(mean[0, 1]) < 1e-9 < 0.1 < min(found.A[-1, 0, 1, 0, 0], found.S[-1, 1, 0, 0, 0])
    assert abs(spread[0, 1, 1]) > 0.1
    assert limit[0, 1] == pytest.approx(2.0 * (INPUTS[0] @ INPUTS[1]) / (INPUTS[0] @ INPUTS[0]))


def test_real_networks_that_are_trained():
    """Two outputs, two inputs learnt half-way and a third: every element of the mean and the covariance within the next order and four standard errors."""
    width, lr, steps, x, y = 32, 0.3, 5, torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)
    drawn = perceptrons.draw(torch.tanh, features=3, width=width, members=2_500, outputs=2, rng=chance.generator(1), **SMOOTH)
    z = torch.cat([torch.stack([each.trained(x[:2], y.T, lr, steps).outputs(x).detach() for each in (networks, networks.mirrored())]) for networks in drawn], 1).mT.numpy()
    found = tensors(torch.tanh, inputs=INPUTS, **SMOOTH)
    made, far = (trained(found, targets=TARGETS, width=n, lr=lr, time=lr * steps) for n in (width, 10**13))
    centred = z - z.mean((0, 1))
    samples = ((made.outputs, far.outputs, z.mean(0)), (made.covariance, far.covariance, np.einsum("smia,smib->smiab", centred, centred).mean(0)))
    for predicted, limit, each in samples:
        error, departs = each.std(0) / math.sqrt(len(each)), np.abs(np.asarray(predicted.value) - np.asarray(limit.value))
        next_order = 2.5 * SMOOTH["depth"] / width * departs.max()
        assert (np.abs(each.mean(0) - np.asarray(predicted.value)) < next_order + 4 * error).all()
        assert float(np.max(predicted.error)) > next_order
    mean = samples[0][2].mean(0)
    assert np.abs(mean - np.asarray(made.outputs.value)).max() < 0.5 * np.abs(mean - np.asarray(far.outputs.value)).max(), "nearer than the limit"


def test_what_is_refused():
    found = tensors(torch.tanh, kernel=np.array([[1.0, 0.3], [0.3, 1.0]]), depth=2, weight_variance=1.0)
    for wrong in ({"targets": np.ones((1, 3))}, {"targets": np.full((1, 1), np.nan)}, {"width": 0}):
        with pytest.raises(InvalidInput, match="up to 2 inputs"):
            trained(found, **({"targets": np.ones((1, 2)), "width": 10} | wrong))
    with pytest.raises(InvalidInput, match="whole number of steps"):
        trained(found, targets=np.ones((1, 2)), width=10, time=1.0, lr=0.3)
    with pytest.raises(InvalidInput, match="rounding hides"):
        trained(found, targets=np.ones((1, 2)), width=10, lr=1e-12)
    with pytest.raises(InvalidInput, match="not be negative"):
        trained(found, targets=np.ones((1, 2)), width=10, time=-1.0)
    with pytest.raises(InvalidInput, match="more than 48"):
        trained(tensors(torch.tanh, inputs=np.eye(7) + 0.1, depth=2, weight_variance=1.0, through="kernel"), targets=np.eye(7), width=10)
    with pytest.raises(OutOfScope, match="diverges"):
        trained(found, targets=np.ones((1, 2)), width=10, lr=2.0)
    with pytest.raises(InvalidInput, match="no tensor"):
        trained(tensors(torch.relu, kernel=1.0, depth=2, weight_variance=2.0, through="dntk"), targets=np.ones((1, 1)), width=10)
    line = tensors(lambda z: z, inputs=np.array([[1.0, 0.0], [0.6, 0.8], [0.3, -0.5]]), depth=2, weight_variance=1.0, bias_rates=0.0)
    with pytest.raises(OutOfScope, match="never learnt"):
        trained(line, targets=np.ones((1, 3)), width=10)
