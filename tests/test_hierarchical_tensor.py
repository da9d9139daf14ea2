"""Hierarchical tensor factorisations against entries taken one by one, automatic gradients, flows of their own and other factorisations."""

import itertools

import pytest
import torch
from networks import normal

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models import hierarchical_tensor as trees
from gnomon.models import tensor_factorization as tensors
from gnomon.models.factor_descent import squared_slope
from gnomon.models.factor_networks import HierarchicalTucker
from gnomon.theory import factorization

MODES = (3, 2, 4, 2, 3)
TREES = [trees.binary_tree(5), ((4, 0), (1, 2, 3)), (0, (1, (2, (3, 4)))), (3, 1, 0, 2, 4)]


def unbalanced(tree, modes=MODES, starts=2):
    widths = {label: 2 + len(label) % 3 for label, node in trees.nodes(tree) if not isinstance(node, int)}
    return [0.8 * normal(starts, *shape, seed=place) for place, shape in enumerate(trees.weight_shapes(modes, tree, widths))]


def places(modes):
    return torch.tensor(list(itertools.product(*(range(d) for d in modes))))


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_the_tensor_and_the_descent_are_those_of_its_entries(tree):
    """Every entry by its own recursion, and autograd through these."""
    weights = unbalanced(tree)
    target, seen = normal(*MODES, seed=50), (normal(*MODES, seed=51) > 0).double()
    moved = trees.descend(weights, tree, squared_slope(target, seen), lr=0.01, records=[1])[0]
    for start in range(2):
        network = HierarchicalTucker([weight[start] for weight in weights], tree).double()
        entries = network(places(MODES)).reshape(MODES)
        assert torch.allclose(entries, trees.dense(weights, tree)[start])
        (seen * (entries - target)).square().sum().div(2).backward()
        for parameter, after in zip(network.weights, moved, strict=True):
            assert torch.allclose(parameter - 0.01 * parameter.grad, after[start])


def test_a_tree_of_one_node_is_a_sum_of_components():
    vectors = tensors.normal_components((3, 2, 4), components=5, size=0.5, starts=2, rng=chance.generator(0))
    weights, slope = [*(part.mT for part in vectors), torch.ones(2, 5, 1).double()], squared_slope(normal(3, 2, 4))
    assert torch.allclose(trees.dense(weights, (0, 1, 2)), tensors.dense(vectors))
    assert torch.allclose(trees.component_norms(weights, (0, 1, 2))[0, 1, 2], tensors.component_norms(vectors))
    assert torch.allclose(trees.component_pulls(weights, (0, 1, 2), slope)[0, 1, 2], tensors.component_pulls(vectors, slope(tensors.dense(vectors))))


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_balanced_local_components_move_as_their_equation_says(tree):
    """Weights are balanced at every node, stay so, and each norm moves with its power; pulls are those of the tensor without the other local components."""
    weights, slope, lr = trees.balanced_weights(MODES, tree, widths=4, size=1.2, starts=2, rng=chance.generator(1)), squared_slope(normal(*MODES, seed=50)), 1e-6
    pulls, norms = trees.component_pulls(weights, tree, slope), trees.component_norms(weights, tree)
    after = trees.component_norms(trees.descend(weights, tree, slope, lr=lr, records=[1])[0], tree)
    gradient = slope(trees.dense(weights, tree))
    for place, (label, node) in enumerate(trees.nodes(tree)):
        if isinstance(node, int):
            continue
        assert weights[place].norm(dim=(1, 2)) == pytest.approx([1.2, 1.2])
        predicted = factorization.local_component_velocities(norms[label], pulls[label], len(node))
        assert predicted.value == pytest.approx(((after[label] - norms[label]) / lr).numpy(), rel=1e-3, abs=1e-6)
        alone = [weight.clone() for weight in weights]
        alone[place][:, 1:] = 0.0
        through = -(gradient * trees.dense(alone, tree)).flatten(1).sum(1) / norms[label][:, 0]
        assert torch.allclose(through, pulls[label][:, 0])


def test_flow_keeps_the_differences_of_squared_norms():
    tree, weights = trees.binary_tree(4), unbalanced(trees.binary_tree(4), (3, 2, 3, 2))
    made = trees.descend(weights, tree, squared_slope(normal(3, 2, 3, 2, seed=9)), lr=2e-4, records=[500])[0]

    def differences(parts):
        known = {label: part for (label, _), part in zip(trees.nodes(tree), parts, strict=True)}
        return torch.cat([known[0, 1].square().sum(2) - known[0,].square().sum(1), known[0, 1, 2, 3].square().sum(2) - known[2, 3].square().sum(1)], 1)

    assert float((trees.dense(made, tree) - trees.dense(weights, tree)).abs().max()) > 0.3, "it moved"
    assert torch.allclose(differences(made), differences(weights), atol=3e-3)


def test_the_hierarchical_rank_is_that_of_the_widths():
    tree = ((0, 3), (1, 2))
    tensor = trees.dense(trees.balanced_weights((4, 5, 4, 6), tree, widths={(0, 3): 3, (1, 2): 2, (0, 1, 2, 3): 4}, size=1.0, starts=2, rng=chance.generator(0)), tree)
    values = trees.hierarchical_singular_values(tensor, tree)
    assert {label: int((sigma > 1e-10 * sigma[:, :1]).sum(1).max()) for label, sigma in values.items()} == {(0,): 3, (3,): 3, (0, 3): 2, (1,): 2, (2,): 2, (1, 2): 2}
    by_hand = torch.linalg.svdvals(torch.stack([tensor[:, a, :, :, b].flatten(1) for a in range(4) for b in range(6)], 1))
    assert torch.allclose(values[0, 3], by_hand)


def test_the_target_of_a_completion_and_the_least_sharpness():
    slope = trees.completion((3, 3, 3, 3), trees.binary_tree(4), rank=2, share=0.25, rng=chance.generator(0))
    assert slope.observed.sum() == round(81 / 4)
    assert float(slope.target.norm()) == pytest.approx(1.0)
    assert int(torch.linalg.matrix_rank(slope.target.reshape(9, 9), rtol=1e-9)) == 2
    assert float(factorization.least_sharpness(-8.0, 3)) == pytest.approx(3 * 16)
    assert float(factorization.least_sharpness(8.0, 3, components=8)) == pytest.approx(3 * 16 / 2)
    assert float(factorization.least_sharpness(5.0, 1)) == 1.0


def test_bad_input():
    good = unbalanced(((0, 1), 2), (2, 3, 2))
    for call, said in (
        (lambda: trees.binary_tree(1), "2 modes or more"),
        (lambda: trees.weight_shapes((2, 3), (0, 0), 2), "each of 0 to 1 once"),
        (lambda: trees.weight_shapes((2, 3, 2), (0, 1), 2), "each of 0 to 2 once"),
        (lambda: trees.weight_shapes((2, 3), ((0,), 1), 2), "two children or more"),
        (lambda: trees.weight_shapes((2, 3), (0, 1), {(0,): 2}), "a width each"),
        (lambda: trees.weight_shapes((2, 3), (0, 1), 0), "at least 1"),
        (lambda: trees.weight_shapes((2, 3), (0, 1), 2.5), "whole numbers"),
        (lambda: trees.weight_shapes((2, 3), "01", 2), "made of tuples"),
        (lambda: trees.balanced_weights((2, 3), (0, 1), widths=2, size=0.0, starts=1, rng=chance.generator(0)), "above 0"),
        (lambda: trees.descend(good[:-1], ((0, 1), 2), lambda w: w, lr=0.1, records=[1]), "for each of its nodes"),
        (lambda: trees.descend([good[1], *good[1:]], ((0, 1), 2), squared_slope(normal(2, 3, 2)), lr=0.1, records=[1]), "cannot be taken"),
        (lambda: trees.descend([good[0].mT, *good[1:]], ((0, 1), 2), lambda w: w, lr=0.1, records=[1]), "parent's components"),
        (lambda: trees.hierarchical_singular_values(normal(1, 2, 2), (0, 1, 2)), "does not hold each"),
        (lambda: factorization.local_component_velocities(torch.ones(2), torch.ones(2), 0), "at least 1 child"),
        (lambda: factorization.least_sharpness(1.0, 2, components=0), "at least 1 component"),
    ):
        with pytest.raises(InvalidInput, match=said):
            call()
    assert torch.equal(trees.dense(good, [[0, 1], 2]), trees.dense(good, ((0, 1), 2))), "lists do too"
