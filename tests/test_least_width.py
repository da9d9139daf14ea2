"""The width below which the first order in 1/width fails: against the exact vertex, and what the command says of it."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F
from typer.testing import CliRunner

from gnomon.cli.main import application
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.theory.effective import least_width
from gnomon.theory.least_width import words
from gnomon.theory.phases import normalised_slope


@pytest.mark.parametrize(("function", "c"), [(lambda z: z, 2), (torch.relu, 5)])
@pytest.mark.parametrize("tolerance", [0.5, 0.1])
def test_it_lies_where_the_exact_vertex_leaves_the_first_order(function, c, tolerance):
    """(1 + c/n)^(L-1) - 1 exceeds c (L - 1)/n by `tolerance` of it at a width within the stated error, at every depth."""
    found = least_width(function, depth=40, tolerance=tolerance)
    assert found.value[0] == 0, "one layer is Gaussian at every width"
    for depth in (8, 20, 40):
        exact = brentq(lambda n, depth=depth: ((1 + c / n) ** (depth - 1) - 1) / (c * (depth - 1) / n) - 1 - tolerance, 1, 1e5)
        assert abs(found.value[depth - 1] - exact) <= found.error[depth - 1]


def test_at_gelus_critical_point_the_tangent_kernel_needs_more_width_than_the_vertex():
    found = least_width(F.gelu, depth=64)
    assert found.value[-1] == found.details["ntk_variance"][-1] > 2 * found.details["four_point_vertex"][-1]
    growth = np.log2(found.details["ntk_variance"][63] / found.details["ntk_variance"][31])
    assert growth > 2, "its variance grows towards the third power of depth, the vertex with the first"
    assert "tangent kernel" in words(found, 8)
    assert "fails" in words(found, 8)
    assert "fails" not in words(found, 10_000)
    with pytest.raises(OutOfScope, match="negative variance"):
        least_width(torch.sigmoid, depth=3)
    with pytest.raises(InvalidInput, match="tolerance"):
        least_width(torch.tanh, depth=3, tolerance=0)


def test_the_command_prints_it():
    result = CliRunner().invoke(application(), ["theory", "effective", "--activation", "relu", "--depth", "24", "--width", "64"])
    assert "fails at this depth and width: below width 115" in result.stdout
    said = CliRunner().invoke(application(), ["theory", "effective", "--activation", "relu", "--depth", "24", "--width", "640", "--json"])
    found = json.loads(said.stdout)["network"]["least_width"]
    assert (found["fails_below"], found["good_from"]) == (pytest.approx(115), pytest.approx(575))
    assert "fails" not in found["words"]


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(("function", "c_w", "c_b"), [(torch.relu, 2.0, 0.0), (torch.tanh, 1.5, 0.2), (F.gelu, 0.7, 0.1)])
def test_the_slope_of_normalised_layers_is_that_of_real_ones(where, function, c_w, c_b):
    """The squared norm of gradients over two layers of a chain with LayerNorm, 400 units, twelve networks: within four standard errors, and these are small."""
    width, rng, ratios = 400, torch.Generator().manual_seed(0), []
    for _ in range(12):
        z = (torch.randn(1, width, generator=rng, dtype=torch.float64) * (c_w + c_b) ** 0.5).requires_grad_()
        made = []
        for _ in range(3):
            w = torch.randn(width, width, generator=rng, dtype=torch.float64) * (c_w / width) ** 0.5
            read = function(F.layer_norm(z, (width,))) if where == "before" else F.layer_norm(function(z), (width,))
            z = read @ w.T + c_b**0.5 * torch.randn(width, generator=rng, dtype=torch.float64)
            made.append(z)
        first, last = torch.autograd.grad((z * torch.randn(width, generator=rng, dtype=torch.float64)).sum(), [made[0], made[2]])
        ratios.append(float(first.square().sum() / last.square().sum()))
    found = float(normalised_slope(function, where=where, weight_variance=c_w, bias_variance=c_b))
    error = np.std(ratios, ddof=1) / len(ratios) ** 0.5
    assert abs(np.mean(ratios) - found**2) < 4 * error < 0.4 * found**2
    if where == "before" and not c_b:
        assert found == pytest.approx(1), "ReLU's own two moments are equal"
    with pytest.raises(InvalidInput, match="C_W positive"):
        normalised_slope(function, where=where, weight_variance=0.0)
