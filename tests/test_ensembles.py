"""Ensembles of networks at initialisation: how they are drawn, their moments, and the expansion in 1/width."""

import numpy as np
import pytest
import torch
from scipy import stats

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.instruments.ensembles import four_point_vertex, norm_fluctuation, preactivation_variance
from gnomon.models import ensemble
from gnomon.models.ensemble import draw_preactivations
from gnomon.models.piecewise import PiecewiseCNN
from gnomon.numerics.quadrature import gaussian_expectation
from gnomon.theory import effective
from gnomon.theory.activations import square_curvature


def draw(**changes):
    settings = {"depth": 3, "width": 5, "members": 7, "weight_variance": 2.0, "bias_variance": 0.1, "rng": chance.generator(1)} | changes
    return draw_preactivations(torch.tanh, torch.arange(10.0).reshape(2, 5), **settings)


def test_members_differ_across_batches_and_a_draw_is_the_same_again(monkeypatch):
    monkeypatch.setattr(ensemble, "BATCH_NUMBERS", 60)
    whole = draw()
    assert whole.shape == (3, 7, 2, 5)
    assert torch.equal(draw(), whole)
    assert not torch.equal(draw(rng=chance.generator(2)), whole)
    assert len(torch.unique(whole[0, :, 0, 0])) == 7


def test_layers_have_the_variance_of_their_weights_and_biases_given_the_layer_before():
    inputs = torch.tensor([[1.0, 2.0, 2.0]])
    made = draw_preactivations(torch.tanh, inputs, depth=2, width=4, members=40_000, weight_variance=1.5, bias_variance=0.2, rng=chance.generator(0))[:, :, 0]
    for layer, given in ((0, torch.full((40_000,), 3.0, dtype=torch.float64)), (1, torch.tanh(made[0]).square().mean(-1))):
        scaled = made[layer] / (0.2 + 1.5 * given).sqrt()[:, None]
        assert stats.kstest(scaled[:, 0].numpy(), "norm").pvalue > 1e-3
        assert abs(float((scaled[:, 0] * scaled[:, 1]).mean())) < 4 / 200


def test_orthogonal_weights_conserve_norms_and_are_uniform():
    made = draw_preactivations(lambda z: z, torch.tensor([[3.0, 0.0, 4.0]]), depth=4, width=3, members=5_000, weight_variance=4.0, law="orthogonal", rng=chance.generator(0))[
        :, :, 0
    ]
    norms = made.square().sum(-1)
    torch.testing.assert_close(norms, torch.tensor([4.0, 16, 64, 256], dtype=torch.float64)[:, None].expand_as(norms) * 25)
    assert stats.kstest((made[0, :, 0] / 10).numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3, "a coordinate of a point on the sphere in three dimensions is uniform"


@pytest.mark.parametrize(("changes", "says"), [({"law": "norml"}, "normal"), ({"members": 0}, "at least 1"), ({"law": "orthogonal", "width": 6}, "as many features as units")])
def test_what_cannot_be_drawn(changes, says):
    with pytest.raises(InvalidInput, match=says):
        draw(**changes)


def mixture(blocks, members, width, shape=4.0):
    """Layers of independent units given k, which is Gamma: Var(k)/E(k)^2 = 1/shape."""
    rng = np.random.default_rng(0)
    k = rng.gamma(shape, size=(blocks, members, 1))
    return torch.from_numpy(np.sqrt(k) * rng.standard_normal((blocks, members, width)))


def test_moments_of_blocks_are_unbiased():
    """Each layer here is a block of its own: their mean is the truth, at 30 networks too."""
    z = mixture(20_000, 30, 3)
    for measured, truth in ((four_point_vertex(z).value, 1 / 4), (norm_fluctuation(z).value, 1 / 4 + 2 * (1 + 1 / 4) / 3)):
        error = measured.std() / len(measured) ** 0.5
        assert abs(measured.mean() - truth) < 4 * error + 0.003, "what is left of the bias is of second order in 1/members"
        assert error < 0.006
    np.testing.assert_allclose(preactivation_variance(z[:3]).value, z[:3].square().mean((1, 2)))


def test_blocks_that_are_too_small():
    with pytest.raises(InvalidInput, match="at least 30"):
        norm_fluctuation(torch.randn(2, 29, 4))
    with pytest.raises(InvalidInput, match="pair"):
        four_point_vertex(torch.randn(2, 50, 1))


@pytest.mark.parametrize(("slope", "growth"), [(0.0, 5.0), (1.0, 2.0), (0.5, 6 * (1 + 0.5**4) / (1 + 0.5**2) ** 2 - 1)])
def test_the_vertex_of_scale_invariant_activations(slope, growth):
    """C_W^2 (<s^4> - <s^2>^2) / K^2 a layer, with C_W = 2 / (1 + a^2)."""
    found = effective.four_point_vertex(lambda z: torch.where(z > 0, z, slope * z), depth=6, width=50, weight_variance=2 / (1 + slope**2), kernel=3.0)
    np.testing.assert_allclose(found.value, growth * np.arange(6) / 50, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.error, found.value**2 / 2)
    assert found.axes[0].values == (1, 2, 3, 4, 5, 6)


def test_the_expansion_is_exact_at_the_third_layer_of_a_quadratic_network():
    """s = z^2:  g = <s^2> = 3 K^2,  E z^2 = C_b + 3 C_W (K^2 + Var k),  Var k = C_W^2 (<z^8> - <z^4>^2) / n = 96 C_W^2 K^4 / n."""
    c_w, c_b, k = 0.3, 0.1, 1.2
    found = effective.expansion(lambda z: z**2, depth=3, weight_variance=c_w, bias_variance=c_b, kernel=k)
    second = c_b + 3 * c_w * k**2
    np.testing.assert_allclose(found.kernel, [k, second, c_b + 3 * c_w * second**2], rtol=1e-9)
    np.testing.assert_allclose(found.vertex[:2], [0, 96 * c_w**2 * k**4], rtol=1e-9)
    np.testing.assert_allclose(found.correction, [0, 0, 3 * c_w * found.vertex[1]], rtol=1e-8)
    limit = effective.mean_field_variance(lambda z: z**2, depth=3, width=10, weight_variance=c_w, bias_variance=c_b, kernel=k, first=2)
    np.testing.assert_allclose(limit.value, found.kernel[1:])
    np.testing.assert_allclose(limit.error, found.correction[1:] / 10)


@pytest.mark.parametrize("function", [torch.tanh, torch.nn.functional.gelu])
def test_the_curvature_of_a_second_moment_against_differences(function):
    def square(k):
        return gaussian_expectation(lambda z: function(z) ** 2, k).value

    step = 1e-3
    difference = (square(0.8 + step) - 2 * square(0.8) + square(0.8 - step)) / step**2
    assert square_curvature(function, 0.8) == pytest.approx(difference, rel=1e-5)


def test_the_norm_of_a_linear_network_against_the_moments_of_chi_square():
    found = effective.linear_norm_fluctuation(depth=4, width=7)
    np.testing.assert_allclose(found.value, (stats.chi2(7).moment(2) / 49) ** np.arange(1, 5) - 1)


def test_the_piecewise_network_is_straight_along_each_parameter_unless_it_is_bent():
    images = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    for curvature in (0.0, 0.1):
        with chance.scoped(chance.generator(0)):
            network = PiecewiseCNN(channels=2, curvature=curvature).double().eval()
        values = []
        with torch.no_grad():
            for _ in range(3):
                values.append(network(images))
                network[5].weight[0, 0] += 1e-3
        second = float((values[0] - 2 * values[1] + values[2]).abs().max())
        assert values[0].shape == (4, 3)
        assert second < 1e-14 if curvature == 0 else second > 1e-10
