"""Learning curves of deep linear networks against gradient descent with short steps, and against each other."""

import numpy as np
import pytest
import torch
from networks import normal

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.deep_matrix import balanced_factors, correlation, descend, effective_rank, normal_factors, product, squared_slope, whitened
from gnomon.theory.deep_linear import mode_loss, mode_strengths, two_layer_maps

S = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_modes_learn_as_predicted(depth):
    start, lr, records = 0.05 * torch.diag(S), 1e-4, [0, 2_000, 10_000]
    made = descend(balanced_factors(start[None], depth), squared_slope(torch.diag(S)), lr=lr, records=records)[:, 0]
    curve = mode_strengths(S, 0.05 * S, [lr * k for k in records], depth=depth)
    assert np.allclose(curve.value, made.diagonal(dim1=-2, dim2=-1), atol=5 * lr * depth)
    losses = mode_loss(S, curve, rest=0.25)
    assert np.allclose(losses.value, (made - torch.diag(S)).square().sum((1, 2)) / 2 + 0.25, atol=50 * lr * depth)


def test_two_layers_in_closed_form_are_those_of_the_equation_and_a_mode_without_strength_decays():
    closed = mode_strengths([2.0, 0.0], [0.1, 0.3], [0.0, 0.7, 500.0]).value
    integrated = mode_strengths([2.0, 0.0], [0.1, 0.3], [0.0, 0.7, 500.0], depth=3).value
    assert closed[0] == pytest.approx([0.1, 0.3])
    assert closed[2] == pytest.approx([2.0, 0.3 / (1 + 600 * 0.5)])
    assert integrated[0] == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("hidden", [2, 4, 7])
def test_any_balanced_weights_give_the_map_of_gradient_descent(hidden):
    corr, lr, records = normal(3, 5), 1e-3, [0, 100, 1_000, 10_000]
    first, second = balanced_factors(0.3 * normal(1, 3, 5, seed=1), 2)
    if hidden < 3:
        first, second = first[:, :hidden], second[..., :hidden]
    else:
        turn = torch.linalg.qr(normal(hidden, hidden, seed=2))[0][:, :3]
        first, second = turn @ first, second @ turn.T
    found = two_layer_maps(first[0], second[0], corr, [lr * k for k in records]).value
    made = descend([first, second], squared_slope(corr), lr=lr, records=records)[:, 0]
    assert np.allclose(found, made, atol=5 * lr)
    rank = np.linalg.svd(found[-1], compute_uv=False)
    assert rank[: min(hidden, 3)] == pytest.approx(torch.linalg.svdvals(corr)[: min(hidden, 3)].numpy(), rel=1e-2)


def test_aligned_weights_give_the_sigmoids():
    first, second = balanced_factors(0.01 * torch.diag(S)[None], 2)
    times = [0.0, 1.0, 3.0, 40.0]
    found = two_layer_maps(first[0], second[0], torch.diag(S), times).value
    assert np.allclose(np.diagonal(found, axis1=1, axis2=2), mode_strengths(S, 0.01 * S, times).value, rtol=1e-9, atol=1e-12)


def test_bad_input():
    for given, said in (((S, 0.1, [1.0], 0), "1 layer or more"), ((-S, 0.1, [1.0], 2), "not negative"), ((S, 0.1, [2.0, 1.0], 2), "not fall")):
        with pytest.raises(InvalidInput, match=said):
            mode_strengths(*given[:3], depth=given[3])
    with pytest.raises(OutOfScope, match="balanced"):
        two_layer_maps(normal(2, 3), normal(4, 2), normal(4, 3), [1.0])
    with pytest.raises(InvalidInput, match="do not fit"):
        two_layer_maps(normal(2, 3), normal(4, 3), normal(4, 3), [1.0])
    with pytest.raises(InvalidInput, match="modes"):
        mode_loss(S[:2], mode_strengths(S, 0.1, [1.0]))
    with pytest.raises(InvalidInput, match="1 factor or more"):
        balanced_factors(normal(1, 2, 2), 0)
    with pytest.raises(InvalidInput, match="depth"):
        normal_factors((2, 2), depth=0, size=1.0, starts=1, rng=chance.generator(0))


def test_descent_takes_the_gradient_of_every_factor():
    factors = normal_factors((3, 4), depth=3, size=1.0, starts=2, rng=chance.generator(1))
    leaves = [factor.clone().requires_grad_() for factor in factors]
    target, seen = normal(3, 4), normal(3, 4, seed=3) > 0
    loss = (seen * (product(leaves) - target)).square().sum() / 2
    moved = [leaf - 0.1 * slope for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)]
    assert torch.allclose(descend(factors, squared_slope(target, seen), lr=0.1, records=[1])[0], product(moved))
    assert float(product(normal_factors((30, 20), depth=3, size=2.0, starts=50, rng=chance.generator(2))).square().sum((1, 2)).mean()) == pytest.approx(4.0, rel=0.1)


def test_whitened_inputs_and_the_effective_rank():
    inputs = normal(50, 4) @ normal(4, 4, seed=1)
    inputs[:, 3] = inputs[:, 0]
    moments = correlation(whitened(inputs), whitened(inputs))
    assert torch.linalg.eigvalsh(moments) == pytest.approx([0, 1, 1, 1], abs=1e-8)
    assert torch.allclose(whitened(inputs, kept=1.0), inputs)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))) == pytest.approx(2.0)
    assert float(effective_rank(torch.zeros(3, 3))) == 1.0
