"""The components of factorisations in networks, found, told, and followed along a training."""

import numpy as np
import pytest
import torch
from networks import normal
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.factors import Chain, Components, factorizations
from gnomon.core.registry import get_instrument
from gnomon.core.subject import Subject
from gnomon.hooks import Watch
from gnomon.instruments.components import component_norms, effective_components
from gnomon.models import tensor_factorization as tensors
from gnomon.models.deep_matrix import normal_factors, product
from gnomon.models.factor_networks import ComponentSum, HierarchicalTucker, MatrixProduct
from gnomon.run.plan import unmet
from gnomon.studies.contract import entries, images


def frozen(network, *shape):
    return Subject.freeze(network, "mse", (torch.stack([chance.integers(d, 20, rng=chance.generator(d)) for d in shape], 1), normal(20)))


def measured(subject, of=component_norms):
    return of(subject, rng=chance.generator(0))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_matrix_product_reads_its_entries_and_its_components_are_singular_values(depth):
    factors = [factor[0] for factor in normal_factors((4, 5), depth=depth, size=2.0, starts=1, rng=chance.generator(0))]
    whole = product([factor[None] for factor in factors])[0]
    network = MatrixProduct(factors)
    assert torch.allclose(network(torch.cartesian_prod(torch.arange(4), torch.arange(5))).reshape(4, 5), whole)
    reading = measured(frozen(network, 4, 5))
    assert reading.value == pytest.approx(torch.linalg.svdvals(whole).numpy(), rel=1e-9)
    layers = nn.Sequential(*(nn.Linear(factor.shape[1], factor.shape[0], bias=False, dtype=torch.float64) for factor in factors), nn.Tanh())
    for layer, factor in zip(layers, factors, strict=False):
        layer.weight.data = factor
    if depth > 1:
        same = measured(Subject.freeze(layers, "mse", (normal(9, 5), normal(9, 4))))
        assert same.value == pytest.approx(reading.value, rel=1e-9)


def test_a_sum_of_components_is_watched_from_small_norms_on_while_any_optimizer_trains_it(tmp_path):
    """On a tensor of rank 1 one of four components grows; the watched norms are those of the parameters, step by step."""
    vectors = tensors.normal_components((4, 3, 4), components=4, size=0.01, starts=1, rng=chance.generator(1))
    target = tensors.dense([normal(1, 1, d, seed=d) for d in (4, 3, 4)])[0] / 3
    network = ComponentSum([part[0] for part in vectors])
    at = torch.cartesian_prod(*(torch.arange(d) for d in (4, 3, 4)))
    y = target[tuple(at.T)]
    optimizer = torch.optim.SGD(network.parameters(), lr=1.5, momentum=0.5)
    watch = Watch(network, "mse", (at, y), every=80, readings=["component_norms", "effective_components"], out=tmp_path / "history.json", optimizer=optimizer)
    norms = []
    for step in range(481):
        if step % 80 == 0:
            norms.append(torch.stack([part.detach().norm(dim=1) for part in network.vectors]).prod(0).numpy())
        watch.step(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(network(at), y).backward()
        optimizer.step()
    seen = watch["component_norms"]
    assert seen.value == pytest.approx(np.stack(norms, 1), rel=1e-9)
    counting = watch["effective_components"].value[0]
    assert counting[0] > 3
    assert counting[-1] < 2
    assert sorted(seen.value[:, -1])[-1] > 50 * sorted(seen.value[:, -1])[0]
    assert measured(frozen(network, 4, 3, 4)).details["unbalance"]["components"] < 0.5


class Told(nn.Module):
    """Vectors as columns of one parameter and rows of a convolution's kernel, said by the module itself, inside another."""

    def __init__(self, given):
        super().__init__()
        self.a, self.b, self.given = nn.Parameter(normal(3, 4)), nn.Parameter(normal(4, 2, 2, seed=1)), given

    def components(self):
        return self.given

    def forward(self, places):
        return torch.einsum("ar,rbc->abc", self.a, self.b)[tuple(places.T)]


def test_what_is_told_what_is_found_and_what_is_neither():
    told = Told({"pairs": [("a", 1), ("b", 0)]})
    reading = measured(frozen(nn.Sequential(told), 3, 2, 2))
    assert reading.value == pytest.approx((told.a.norm(dim=0) * told.b.flatten(1).norm(dim=1)).detach().numpy())
    assert reading.axes[0].values[0] == "0.pairs 0"
    for given in ({"pairs": [("a", 0), ("b", 0)]}, {"pairs": [("c", 0)]}, {"pairs": [("a", 5)]}):
        with pytest.raises(InvalidInput, match="equally many"):
            measured(frozen(Told(given), 3, 2, 2))
    assert factorizations(nn.ParameterList([normal(5, 2), normal(5, 3)])) == [Components("components", (("0", 0), ("1", 0)))]
    assert factorizations(nn.ParameterList([normal(2, 5), normal(3, 5)])) == [Components("components", (("0", 1), ("1", 1)))]
    assert factorizations(nn.ParameterList([normal(5, 5), normal(5, 5)])) == [], "either a product or a sum: it must be told"
    twice = nn.Linear(3, 3, bias=False)
    assert factorizations(nn.Sequential(twice, twice, nn.ReLU(), nn.Linear(3, 3, bias=False))) == [Chain("0 to 1", ("0.weight", "0.weight"))]
    assert unmet(images(), get_instrument("component_norms"), "end") == ""
    assert unmet(entries(), get_instrument("component_norms"), "end") is None
    with pytest.raises(OutOfScope, match="no factorisation"):
        measured(images())


def test_of_one_component_one_counts_and_of_none_that_is_not_zero_too():
    for scale in (1.0, 0.0):
        network = ComponentSum([scale * torch.eye(3, 4, dtype=torch.float64)[:1], normal(1, 3)])
        assert measured(frozen(network, 4, 3), effective_components).value.tolist() == [1.0]
    assert measured(frozen(ComponentSum([torch.eye(3), torch.eye(3)]).double(), 3, 3), effective_components).value == pytest.approx([3.0])


def test_bad_input():
    for call, said in (
        (lambda: MatrixProduct([normal(2, 3), normal(2, 3)]), "the first to act first"),
        (lambda: MatrixProduct([]), "the first to act first"),
        (lambda: ComponentSum([normal(2, 3), normal(3, 3)]), "alike but for"),
        (lambda: HierarchicalTucker([normal(2, 3), normal(3, 3), normal(2, 1)], (0, 1)), "parent's components"),
    ):
        with pytest.raises(InvalidInput, match=said):
            call()
