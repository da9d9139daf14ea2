"""Derivatives of stacked networks along their own gradients against autograd on each alone, and all tensors of ensembles against the recursions."""

import dataclasses

import numpy as np
import pytest
import torch
from real_tensors import derivatives
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.instruments import ensembles
from gnomon.models.differentials import Differentials, differentials
from gnomon.models.perceptrons import draw
from gnomon.theory.tensors import tensors

X = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize(("function", "depth"), [(torch.tanh, 3), (F.gelu, 4), (lambda z: z**2, 2)])
def test_derivatives_are_those_that_autograd_takes_of_each_network(function, depth):
    rates = [(0.8, 0.5, 1.1, 0.3)[:depth], (0.6, 0.2, 0.0, 0.9)[:depth]]
    networks = next(
        draw(
            function,
            features=3,
            depth=depth,
            width=5,
            outputs=2,
            members=2,
            weight_variance=1.3,
            bias_variance=0.1,
            weight_rates=rates[0],
            bias_rates=rates[1],
            rng=chance.generator(0),
        )
    )
    found = differentials(networks, X)
    for member in range(2):
        parameters, scale = [], []
        for weights, biases, w_rate, b_rate in zip(networks.weights, networks.biases, *rates, strict=True):
            parameters += [weights[member], biases[member, 0]]
            scale += [w_rate / weights.shape[-1], b_rate]
        z, h, p, q, third, s, t, u = derivatives(function, X, scale, tuple(parameters))
        v = z[:, 1]
        joined = found.joined[member]
        for ours, truth in (
            (found.outputs[member], z), (found.ntk[member], h), (found.ntk_along[member], torch.einsum("d,ab->dab", v, h[0, 1])), (found.second_mixed[member], torch.einsum("abc,d->abcd", q, v)),
            (found.third[member], third), (joined[0, 0, 1, 1], s), (joined[0, 1, 0, 1], t), (joined[0, 1, 1, 0], u),
        ):  # fmt: skip
            torch.testing.assert_close(ours, truth)
        exchanged = differentials(
            dataclasses.replace(networks, weights=(*networks.weights[:-1], networks.weights[-1].flip(1)), biases=(*networks.biases[:-1], networks.biases[-1].flip(2))), X
        )
        torch.testing.assert_close(exchanged.second_along[member], torch.einsum("abc,d->abcd", p, z[:, 0]))


@pytest.mark.parametrize(("function", "c_w", "c_b"), [(torch.tanh, 1.3, 0.1), (F.gelu, 1.983, 0.173), (torch.sin, 1.2, 0.1)])
def test_all_tensors_of_real_networks_are_those_of_the_recursions(function, c_w, c_b):
    """Every element of two inputs within 2.5 L/n of the tensor's largest and four standard errors; most ensembles know it to a tenth."""
    width, depth = 40, 3
    settings = {"depth": depth, "weight_variance": c_w, "bias_variance": c_b, "weight_rates": 0.8, "bias_rates": 0.6}
    drawn = draw(function, features=3, width=width, members=3_000, dtype=torch.float32, rng=chance.generator(1), **settings)
    measured = ensembles.first_order_tensors(width=width, **vars(Differentials.stacked(differentials(networks, X) for networks in drawn)))
    found, says = tensors(function, inputs=X.numpy(), **settings), 0
    for name, reading in measured.items():
        value = found.value(name)[-1] + {"kernel": found.G1, "ntk": found.H1}.get(name, 0 * found.value(name))[-1] / width
        largest, error = np.abs(value).max(), np.asarray(reading.error)
        assert (np.abs(np.asarray(reading.value) - value) < 2.5 * depth / width * largest + 4 * error).all(), name
        says += bool((error < 0.1 * largest).all())
    assert len(measured) == 13
    assert says >= 10, "an ensemble that says something"


@pytest.mark.parametrize("members", [30, 100, 300])
@pytest.mark.parametrize(("slope", "c"), [(1.0, 2.0), (0.0, 5.0)])
def test_intervals_of_the_vertex_hold_the_exact_one_in_spite_of_its_tail(slope, c, members):
    """200 ensembles of networks of 4 layers, 20 wide: V / (n K^2) = (1 + c/n)^3 - 1, of which Student's interval holds 70 to 90 %."""
    width, depth, draws = 20, 4, 200
    x = torch.ones(1, width, dtype=torch.float64)
    drawn = draw(lambda z: torch.where(z > 0, z, slope * z), features=width, depth=depth, width=width, members=draws * members, weight_variance=2 / (1 + slope**2), bias_rates=0.0, dtype=torch.float32, rng=chance.generator(5))  # fmt: skip
    z = torch.cat([networks.outputs(x)[:, 0] for networks in drawn]).unflatten(0, (draws, members))
    low, high = ensembles.four_point_vertex(z).interval
    truth = (1 + c / width) ** (depth - 1) - 1
    assert 180 <= ((low <= truth) & (truth <= high)).sum() <= 199


def test_what_cannot_be_looked_at():
    settings = {"features": 3, "depth": 2, "width": 4, "members": 2, "weight_variance": 1.0, "rng": chance.generator(0)}
    with pytest.raises(InvalidInput, match="Two different outputs"):
        differentials(next(draw(torch.tanh, outputs=1, **settings)), X)
    for function in (torch.relu, F.elu):
        with pytest.raises(OutOfScope, match="bend of the activation jumps"):
            differentials(next(draw(function, **settings)), X)
