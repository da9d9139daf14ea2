"""One step of gradient descent on average: real networks that take it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models import perceptrons
from gnomon.theory.one_step import one_step
from gnomon.theory.tensors import tensors


@pytest.mark.parametrize(("function", "c_w", "c_b", "lr"), [(torch.tanh, 1.3, 0.1, 0.5), (F.gelu, 1.983, 0.173, 0.1)])
def test_real_networks_take_the_step(function, c_w, c_b, lr):
    """Two outputs, two inputs: every element of the mean outputs and of the kernel's change, within the next order and four standard errors."""
    depth, width = 3, 48
    x = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7]], dtype=torch.float64)
    targets = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=torch.float64)
    settings = {"depth": depth, "weight_variance": c_w, "bias_variance": c_b, "weight_rates": 0.8, "bias_rates": 0.6}
    outputs, change = [], []
    for networks in perceptrons.draw(function, features=3, width=width, members=4_000, outputs=2, rng=chance.generator(1), **settings):
        after = networks.stepped(x, targets.T, lr)
        z, theta = after.outputs_and_ntk(x)
        outputs.append(z)
        change.append(theta - networks.outputs_and_ntk(x)[1])
    z, moved = torch.cat(outputs).mT, torch.cat(change)
    found = one_step(tensors(function, inputs=x.numpy(), **settings), targets=targets.numpy(), lr=lr, width=width)
    for predicted, samples, value in ((found.outputs, z, np.asarray(found.outputs.value)), (found.ntk_change, moved, np.asarray(found.ntk_change.value)[0])):
        error = samples.std(0).numpy() / math.sqrt(len(samples))
        assert (np.abs(samples.mean(0).numpy() - value) < float(np.max(predicted.error)) + 4 * error).all()
        assert float(np.max(predicted.error)) < 0.3 * np.abs(value).max(), "a truncation that says something"
        assert error.max() < 0.1 * np.abs(value).max(), "an ensemble that says something"


def test_a_step_of_a_linear_network_without_hidden_layers_is_exact():
    """One layer: the kernel is fixed, and E z' = lr Theta y."""
    found = tensors(lambda z: z, inputs=np.eye(2) + 1, depth=1, weight_variance=1.0)
    made = one_step(found, targets=np.array([[1.0, 2.0]]), lr=0.1, width=10)
    np.testing.assert_allclose(made.outputs.value, 0.1 * np.array([[1.0, 2.0]]) @ found.ntk[0])
    np.testing.assert_allclose(made.ntk_change.value, 0)


def test_what_a_step_refuses():
    found = tensors(torch.tanh, kernel=1.0, depth=2, weight_variance=1.0)
    with pytest.raises(InvalidInput, match=r"\(outputs, 1\)"):
        one_step(found, targets=np.ones((1, 2)), lr=0.1, width=10)
    with pytest.raises(InvalidInput, match="no tensor 'R'"):
        one_step(tensors(torch.tanh, kernel=1.0, depth=2, weight_variance=1.0, through="dntk"), targets=np.ones((1, 1)), lr=0.1, width=10)
