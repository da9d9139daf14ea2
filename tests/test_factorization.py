"""Flows of matrix and tensor factorisations against each other, differences and automatic gradients."""

import numpy as np
import pytest
import torch
from networks import normal

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models import deep_matrix as matrices
from gnomon.models import tensor_factorization as tensors
from gnomon.models.factorization import observed, of_rank
from gnomon.theory import factorization


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_the_end_to_end_equation_is_followed_by_descent_on_the_factors(depth, shape):
    target, start, lr, records = normal(*shape), 0.3 * normal(*shape, seed=1), 1e-3, [0, 500, 2_000]
    slope = matrices.squared_slope(target)
    path = factorization.end_to_end_path(start, slope, [lr * k for k in records], depth=depth)
    made = matrices.descend(matrices.balanced_factors(start[None], depth), slope, lr=lr, records=records)[:, 0]
    assert np.allclose(path.value, made, atol=10 * lr)


def test_singular_values_move_as_their_equation_says():
    target, start, depth, h = normal(4, 3), normal(4, 3, seed=1), 3, 1e-4
    slope = matrices.squared_slope(target)
    path = factorization.end_to_end_path(start, slope, [0.0, h, 2 * h], depth=depth)
    values = np.linalg.svd(path.value, compute_uv=False)
    here = torch.from_numpy(path.value[1])
    assert factorization.singular_value_velocities(here, slope(here), depth).value == pytest.approx((values[2] - values[0]) / (2 * h), rel=1e-4, abs=1e-4)
    batch = factorization.singular_value_velocities(here.expand(5, 4, 3), slope(here).expand(5, 4, 3), depth).value
    assert batch.shape == (5, 3)


def test_the_bounds_of_the_completion_hold_along_a_path_of_the_flow():
    target, seen = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double()
    start = torch.tensor([[0.3, 0.1], [0.2, 0.3]]).double()
    made = torch.from_numpy(factorization.end_to_end_path(start, matrices.squared_slope(target, seen), [20.0, 40.0, 100.0], depth=3).value)
    losses = (seen * (made - target)).square().sum((1, 2)) / 2
    bounds = factorization.two_by_two_completion(losses.tolist()).value
    assert (made[:, 0, 0].numpy() >= bounds[:, 0]).all()
    assert (torch.linalg.svdvals(made)[:, 1].numpy() <= bounds[:, 1]).all()
    assert bounds[2, 0] > 3, "the bound says something there"
    with pytest.raises(InvalidInput, match="between 0 and 1/2"):
        factorization.two_by_two_completion([0.1, 0.6])


@pytest.mark.parametrize("modes", [(3, 4), (3, 4, 2), (2, 3, 2, 4)])
def test_descent_on_a_tensor_takes_the_gradient_of_every_vector(modes):
    start = tensors.normal_components(modes, components=5, size=0.5, starts=3, skew=2.0, rng=chance.generator(0))
    leaves = [part.clone().requires_grad_() for part in start]
    target, seen = normal(*modes), (normal(*modes, seed=1) > 0).double()
    loss = (seen * (tensors.dense(leaves) - target)).square().sum() / 2
    moved = tensors.descend(start, tensors.squared_slope(target, seen), lr=0.1, records=[1])[0]
    for before, slope, after in zip(start, torch.autograd.grad(loss, leaves), moved, strict=True):
        assert torch.allclose(before - 0.1 * slope, after)


def test_components_move_as_their_equation_says():
    start = tensors.normal_components((3, 4, 2), components=5, size=0.5, starts=2, rng=chance.generator(0))
    norms = tensors.component_norms(start)
    assert torch.allclose(start[0].norm(dim=-1) ** 3, norms)
    slope, lr = tensors.squared_slope(normal(3, 4, 2)), 1e-6
    pulls = tensors.component_pulls(start, slope(tensors.dense(start)))
    after = tensors.component_norms(tensors.descend(start, slope, lr=lr, records=[1])[0])
    assert factorization.component_velocities(norms, pulls, 3).value == pytest.approx(((after - norms) / lr).numpy(), rel=1e-3, abs=1e-4)
    one = [part[:, :1] for part in start]
    assert torch.allclose(tensors.dense(one).flatten(1).norm(dim=1), norms[:, 0])


def test_of_two_modes_a_tensor_is_a_matrix():
    start = tensors.normal_components((4, 3), components=3, size=0.5, starts=2, rng=chance.generator(0))
    target, seen = normal(4, 3), observed(4, 0.5, rng=chance.generator(1))[:, :3]
    slope = matrices.squared_slope(target, seen)
    as_tensor = tensors.dense(tensors.descend(start, slope, lr=0.05, records=[50])[0])
    as_matrix = matrices.descend([start[1], start[0].mT], slope, lr=0.05, records=[50])[0]
    assert torch.allclose(as_tensor, as_matrix)


def test_the_matrices_that_are_completed():
    made = of_rank(6, 2, rng=chance.generator(0))
    assert torch.linalg.svdvals(made) == pytest.approx([1.0, 0.5, 0, 0, 0, 0], abs=1e-12)
    assert observed(6, 0.25, rng=chance.generator(0)).sum() == 9


def test_bad_input():
    for call, said in (
        (lambda: factorization.singular_value_velocities(normal(2, 2), normal(2, 2), 0), "at least 1 factor"),
        (lambda: factorization.singular_value_velocities(normal(2, 2), normal(2, 3), 2), "one shape"),
        (lambda: factorization.end_to_end_path(normal(2, 2), lambda w: w, [1.0, 0.5], depth=2), "not fall"),
        (lambda: factorization.component_velocities(-torch.ones(2), torch.ones(2), 3), "not negative"),
        (lambda: factorization.component_exponent(0), "at least 1 factor"),
        (lambda: tensors.normal_components((3,), components=1, size=1.0, starts=1, rng=chance.generator(0)), "2 to 16 modes"),
        (lambda: tensors.normal_components((3, 3), components=0, size=1.0, starts=1, rng=chance.generator(0)), "components"),
        (lambda: tensors.descend([normal(1, 1, 2), normal(1, 1, 2)], lambda w: w, lr=-1.0, records=[1]), "above 0"),
        (lambda: tensors.descend([normal(1, 1, 2), normal(1, 2, 2)], lambda w: w, lr=1.0, records=[1]), "alike but for"),
        (lambda: tensors.descend([normal(1, 1, 2), normal(1, 1, 3)], tensors.squared_slope(normal(1, 2, 3, 1)), lr=1.0, records=[1]), "cannot be taken"),
    ):
        with pytest.raises(InvalidInput, match=said):
            call()


def test_a_product_of_bits_is_explained_by_a_low_tensor_rank_and_noise_is_not():
    bits = (normal(200, 5) > 0).double()
    targets = bits[:, :1] * bits[:, 1:2]
    targets = torch.cat([targets, normal(200, 1, seed=1)], 1)
    assert tensors.explained_by_rank(bits, targets[:, :1], rank=2, lr=0.02, steps=600, rng=chance.generator(0)) > 0.98
    assert tensors.explained_by_rank(bits, targets[:, 1:], rank=2, lr=0.02, steps=600, rng=chance.generator(0)) < 0.2
    with pytest.raises(InvalidInput, match="0 and 1"):
        tensors.explained_by_rank(2 * bits, targets, rank=1, lr=0.02, steps=1, rng=chance.generator(0))
