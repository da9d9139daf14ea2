"""Full-batch descent against torch's own optimizer, the sharpness along it against dense Hessians, and critical points against closed forms."""

from functools import partial

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject
from gnomon.data.load import pooled
from gnomon.models.descent import Descent, gauss_newton_path, half_squared_error, sharpness_path, tanh_network
from gnomon.models.factorization import balanced_loss, deep_loss, kept, planted, scattered, two_factors
from gnomon.numerics import dense
from gnomon.numerics.critical import critical_points
from gnomon.numerics.operators import GaussNewton
from gnomon.theory import factorization


def task(n=30, inputs=5, outputs=3, dtype=torch.float64):
    rng = chance.generator(0, "task")
    return chance.normal(n, inputs, rng=rng).to(dtype), chance.normal(n, outputs, rng=rng).to(dtype)


def network(*sizes, dtype=torch.float64):
    with chance.scoped(chance.generator(0)):
        return tanh_network(*sizes).to(dtype)


@pytest.mark.parametrize("sizes", [(5, 3), (5, 7, 3), (5, 7, 6, 4, 3)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_is_that_of_torch(sizes, momentum):
    (x, y), net = task(), network(*sizes)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    descent = Descent(net, x, y, lr=0.05, momentum=momentum)
    descent.run(20)
    descent.run(5)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items()), "the network is left as it was"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum)
    for _ in range(25):
        optimizer.zero_grad()
        half_squared_error(net(x), y).backward()
        optimizer.step()
    assert descent.steps == 25
    for key, value in descent.state().items():
        assert torch.allclose(value, net.state_dict()[key], rtol=1e-11, atol=1e-12), key


def test_a_state_does_not_change_with_later_steps():
    descent = Descent(network(5, 4, 3), *task(), lr=0.1)
    first = descent.state()
    kept_copy = {key: value.clone() for key, value in first.items()}
    descent.run(3)
    assert all(torch.equal(first[key], kept_copy[key]) for key in first)
    assert any(not torch.equal(first[key], value) for key, value in descent.state().items())


def test_what_cannot_be_descended_is_refused():
    x, y = task()
    for wrong in (
        nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(5, 3, bias=False)),
        nn.Sequential(nn.Linear(5, 3), nn.Tanh()),
        nn.Sequential(),
    ):
        with pytest.raises(InvalidInput, match="linear layers with biases and tanh"):
            Descent(wrong, x, y, lr=0.1)
    for options in ({"lr": 0.0}, {"lr": 0.1, "momentum": 1.0}):
        with pytest.raises(InvalidInput, match="lr must be above 0"):
            Descent(network(5, 3), x, y, **options)
    with pytest.raises(InvalidInput, match="overflowed within 3000 steps at lr = 100"):
        Descent(network(5, 3), x, y, lr=100.0).run(3000)
    with pytest.raises(InvalidInput, match="1 to 5 times"):
        sharpness_path(x, y, hidden=(4,), lr=0.1, steps=5, times=6, rng=chance.generator(0))


def test_the_sharpness_along_the_path_is_that_of_the_dense_hessian():
    x, y = task(dtype=torch.float32)
    rng = chance.generator(3)
    path = sharpness_path(x, y, hidden=(6,), lr=0.2, momentum=0.5, steps=40, times=3, rng=rng)
    with chance.scoped(chance.child(rng, "network")):
        net = tanh_network(5, 6, 3)
    descent, truth = Descent(net, x, y, lr=0.2, momentum=0.5), []
    for steps in (13, 13, 14):
        descent.run(steps)
        truth.append(dense.sharpness(Subject.freeze(net, half_squared_error, (x, y)).at(descent.state()).to(torch.float64)))
    assert path == pytest.approx(truth, rel=1e-3)


def test_the_distance_from_gauss_newton_is_that_of_dense_matrices():
    (x, y), rng = task(n=12, dtype=torch.float32), chance.generator(4)
    losses, differences = gauss_newton_path(x, y, hidden=(4,), lr=0.2, steps=(5, 30), rng=rng)
    with chance.scoped(chance.child(rng, "network")):
        net = tanh_network(5, 4, 3)
    descent = Descent(net, x, y, lr=0.2)
    for steps, loss, difference in zip((5, 25), losses, differences, strict=True):
        descent.run(steps)
        there = Subject.freeze(net, half_squared_error, (x, y)).at(descent.state())
        product, basis = GaussNewton(there), torch.eye(there.dimension, dtype=there.dtype)
        newton, whole = torch.stack([product(row) for row in basis]), dense.hessian(there)
        assert loss == pytest.approx(float(half_squared_error(there(there.state, x), y)))
        assert difference == pytest.approx(float(torch.linalg.matrix_norm(whole - newton, 2) / torch.linalg.matrix_norm(newton, 2)), rel=3e-3)
    other = gauss_newton_path(x, y, hidden=(4,), lr=0.2, steps=(5, 30), noise=1.0, rng=rng)
    assert other[0] == pytest.approx(losses), "the noise is no part of the training"
    assert (other[1] > differences).any()


def test_pooled_images_are_means_and_labels_one_hot():
    x, y = pooled("digits", examples=50, side=4)
    whole, _ = pooled("digits", examples=50, side=8)
    assert x.shape == (50, 16)
    assert y.shape == (50, 10)
    assert torch.allclose(x.view(50, 4, 4), whole.view(50, 4, 2, 4, 2).mean((2, 4)), atol=1e-6)
    assert torch.equal(y.sum(1), torch.ones(50))
    with pytest.raises(InvalidInput, match="has 1,437 training examples, not 5,000"):
        pooled("digits", examples=5000, side=8)


def test_critical_points_of_a_polynomial_are_all_found():
    """x^4/4 - x^2/2 + y^2/2 has a saddle at 0 and minima at -1 and 1."""
    points, slopes = critical_points(lambda p: p[0] ** 4 / 4 - p[0] ** 2 / 2 + p[1] ** 2 / 2, chance.normal(200, 2, rng=chance.generator(0)))
    assert float(slopes.max()) < 1e-12
    assert {round(float(x), 9) + 0.0 for x in points[:, 0]} == {-1.0, 0.0, 1.0}


def test_where_the_gradient_has_a_least_norm_that_is_not_zero_it_is_said():
    """x^3/3 + x has no critical point; its gradient is least at 0, where it is 1."""
    points, slopes = critical_points(lambda p: p[0] ** 3 / 3 + p[0], torch.tensor([[0.5], [-2.0]], dtype=torch.float64))
    assert bool(((slopes >= 1) & (slopes < 1.01)).all())
    assert float(points.abs().max()) < 0.1


def test_every_subset_of_singular_values_is_a_critical_point_with_the_predicted_loss_and_curvature():
    """Built from the singular vectors themselves, for every subset of at most `rank`; the Hessian by autograd."""
    target, rank = planted(4, 3, rng=chance.generator(1)), 2
    left, size, right = torch.linalg.svd(target, full_matrices=False)
    assert torch.allclose(size, torch.tensor([1, 2 / 3, 1 / 3], dtype=torch.float64))
    subsets = [[], [0], [1], [2], [0, 1], [0, 2], [1, 2]]
    held = torch.tensor([[j in s for j in range(3)] for s in subsets])
    losses, curvatures = factorization.critical_losses(size, held).value, factorization.least_curvatures(size, held, rank=rank).value
    function = partial(balanced_loss, target=target)
    for place, subset in enumerate(subsets):
        u, v = torch.zeros(4, rank, dtype=torch.float64), torch.zeros(3, rank, dtype=torch.float64)
        for column, j in enumerate(subset):
            u[:, column], v[:, column] = left[:, j] * size[j].sqrt(), right[j] * size[j].sqrt()
        flat = torch.cat([u.reshape(-1), v.reshape(-1)])
        assert float(torch.func.grad(function)(flat).norm()) < 1e-14
        assert float(function(flat)) == pytest.approx(losses[place], abs=1e-14)
        assert float(torch.linalg.eigvalsh(torch.func.hessian(function)(flat))[0]) == pytest.approx(curvatures[place], abs=1e-13)
        assert torch.equal(kept((u @ v.T)[None], target)[0], held[place])
        assert all(torch.equal(*pair) for pair in zip(two_factors(flat, target), (u, v), strict=True))
    assert curvatures[4] == 0.0, "the global minimum"
    assert (curvatures[[0, 1, 2, 3, 5, 6]] < 0).all(), "every other one is a strict saddle"
    with pytest.raises(InvalidInput, match="must be distinct"):
        factorization.critical_losses(torch.ones(3), held)


def test_the_deep_loss_is_that_of_the_product():
    target = planted(3, 3, rng=chance.generator(2))
    flat = scattered(5, 18, rng=chance.generator(3))[-1]
    first, second = flat.view(2, 3, 3)
    assert float(deep_loss(flat, target)) == pytest.approx(float((target - second @ first).square().sum() / 2))
    assert float(deep_loss(flat, target, tilt=1.0) - deep_loss(flat, target)) == pytest.approx(float((target - second @ first)[0, 0] ** 2 / 2))
