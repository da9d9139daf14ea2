"""The recursions at order 1/n on several inputs: closed forms, a second quadrature, and ensembles of real networks."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.instruments import ensembles
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory import effective, finite_width
from gnomon.theory.tensors import tensors

RANDOM = np.random.default_rng(0).normal(size=(4, 6))
COVARIANCE = RANDOM @ RANDOM.T / 6


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_linear_networks_have_their_closed_form_on_any_number_of_inputs(n):
    """V_(ab)(cd) = (l - 1)(K_ac K_bd + K_ad K_bc) and D = 0 at C_W = 1: a Wishart matrix a layer."""
    k = COVARIANCE[:n, :n]
    depth = 3
    found = tensors(lambda z: z, kernel=k, depth=depth, weight_variance=1.0)
    pairs = np.einsum("ac,bd->abcd", k, k) + np.einsum("ad,bc->abcd", k, k)
    for layer in range(depth):
        np.testing.assert_allclose(found.kernel[layer], k, atol=1e-12)
        np.testing.assert_allclose(found.V[layer], layer * pairs, atol=1e-10)
        np.testing.assert_allclose(found.G1[layer], 0, atol=1e-10)


def relu_pair(a, b, c):
    """<relu relu> of a covariance [[a, c], [c, b]]: Cho & Saul's arc-cosine kernel of degree 1."""
    theta = math.acos(min(c / math.sqrt(a * b), 1.0))
    return math.sqrt(a * b) * (math.sin(theta) + (math.pi - theta) * math.cos(theta)) / (2 * math.pi)


def relu_squares(a, b, c):
    """<relu^2 relu^2>: the arc-cosine kernel of degree 2."""
    theta = math.acos(min(c / math.sqrt(a * b), 1.0))
    return a * b * (3 * math.sin(theta) * math.cos(theta) + (math.pi - theta) * (1 + 2 * math.cos(theta) ** 2)) / (2 * math.pi)


def test_relu_on_two_inputs_is_exact():
    a, b, c = 1.3, 0.7, -0.4
    found = tensors(torch.relu, kernel=np.array([[a, c], [c, b]]), depth=3, weight_variance=2.0, bias_variance=0.1, through="dntk")
    g = relu_pair(a, b, c)
    k2 = np.array([[0.1 + a, 0.1 + 2 * g], [0.1 + 2 * g, 0.1 + b]])
    np.testing.assert_allclose(found.kernel[1], k2, rtol=1e-12)
    squares = relu_squares(a, b, c)
    v = found.V[1]
    np.testing.assert_allclose([v[0, 0, 0, 0], v[1, 1, 1, 1], v[0, 0, 1, 1], v[0, 1, 0, 1]], [5 * a**2, 5 * b**2, 4 * squares - a * b, 4 * (squares - g**2)], rtol=1e-11)
    # the third layer: the vertex is carried by the derivatives of the closed form, taken here by differences
    a2, b2, c2 = k2[0, 0], k2[1, 1], k2[0, 1]
    step = 1e-5

    def slope(da, db, dc):
        up, down = (2 * relu_pair(a2 + s * da, b2 + s * db, c2 + s * dc) for s in (step, -step))
        return (up - down) / (2 * step)

    gradient = np.array([slope(1, 0, 0), slope(0, 1, 0), slope(0, 0, 1)])
    middle = np.array([[v[0, 0, 0, 0], v[0, 0, 1, 1], v[0, 0, 0, 1]], [v[1, 1, 0, 0], v[1, 1, 1, 1], v[1, 1, 0, 1]], [v[0, 1, 0, 0], v[0, 1, 1, 1], v[0, 1, 0, 1]]])
    carried = gradient @ middle @ gradient
    fresh = 4 * (relu_squares(a2, b2, c2) - relu_pair(a2, b2, c2) ** 2)
    assert found.V[2, 0, 1, 0, 1] == pytest.approx(carried + fresh, rel=1e-8)


@pytest.mark.parametrize(("function", "n"), [(torch.tanh, 2), (F.gelu, 2), (F.elu, 2), (torch.tanh, 3), (F.gelu, 4)])
def test_each_input_alone_has_the_recursion_of_one(function, n):
    """The other recursion has adaptive quadratures in one dimension."""
    k = COVARIANCE[:n, :n]
    found = tensors(function, kernel=k, depth=3, weight_variance=1.4, bias_variance=0.1, through="kernel")
    for a in range(n):
        alone = effective.expansion(function, depth=3, weight_variance=1.4, bias_variance=0.1, kernel=float(k[a, a]))
        np.testing.assert_allclose(found.kernel[:, a, a], alone.kernel, atol=1e-9)
        np.testing.assert_allclose(found.G1[:, a, a], alone.correction, atol=1e-8)
        np.testing.assert_allclose(found.V[:, a, a, a, a], alone.vertex, atol=1e-8)


def test_more_inputs_change_nothing_of_the_others():
    both, three = (tensors(torch.sin, kernel=COVARIANCE[:n, :n], depth=3, weight_variance=1.2, bias_variance=0.2, through="kernel") for n in (2, 3))
    np.testing.assert_allclose(three.V[:, :2, :2, :2, :2], both.V, atol=1e-9)
    np.testing.assert_allclose(three.G1[:, :2, :2], both.G1, atol=1e-9)


def blocks(activation, *, width, depth, members, count, c_w, c_b, seed=0):
    """Estimates of Cov(z_ia z_ib, z_jc z_jd) and of E z_a z_b on two inputs from blocks of networks, for the last layer."""
    inputs = torch.stack([torch.ones(width), torch.ones(width)]).double()
    inputs[1, : width // 2] = -0.5
    covariances, seconds = [], []
    for block in range(count):
        made = draw_preactivations(
            activation, inputs, depth=depth, width=width, members=members, weight_variance=c_w, bias_variance=c_b, rng=chance.child(chance.generator(seed), "block", block)
        )[-1]
        products = torch.einsum("mai,mbi->miab", made, made)
        total = products.sum(1)
        mean = total.mean(0) / width
        joint = torch.einsum("mab,mcd->abcd", total, total) - torch.einsum("miab,micd->abcd", products, products)
        covariances.append(joint / (members * width * (width - 1)) - torch.einsum("ab,cd->abcd", mean, mean))
        seconds.append(mean)
    kernel = (inputs @ inputs.T / width * c_w + c_b).numpy()
    return kernel, torch.stack(covariances).numpy(), torch.stack(seconds).numpy()


@pytest.mark.parametrize(("function", "c_w", "c_b"), [(torch.tanh, 1.5, 0.05), (F.gelu, 1.983, 0.173), (torch.sin, 1.3, 0.1)])
def test_real_networks_have_the_vertex_and_the_corrected_kernel(function, c_w, c_b):
    """Every element, within the stated truncation and four standard errors of the ensemble."""
    width, depth = 40, 4
    kernel, covariances, seconds = blocks(function, width=width, depth=depth, members=1_000, count=16, c_w=c_w, c_b=c_b)
    settings = {"kernel": kernel, "depth": depth, "width": width, "weight_variance": c_w, "bias_variance": c_b}
    for predicted, samples in ((finite_width.four_point_vertices(function, **settings), covariances), (finite_width.next_to_leading_kernel(function, **settings), seconds)):
        error = samples.std(0, ddof=1) / math.sqrt(len(samples))
        assert (np.abs(samples.mean(0) - predicted.value[-1]) < predicted.error[-1] + 4 * error).all()
        assert (predicted.error[-1] < 0.3 * np.abs(predicted.value[-1]).max()).all(), "a truncation that says something"
        assert (error < 0.1 * np.abs(predicted.value[-1]).max()).all(), "an ensemble that says something"


@pytest.mark.parametrize(("slope", "c"), [(1.0, 2.0), (0.0, 5.0)])
def test_the_exact_vertex_of_real_networks_as_narrow_as_eight(slope, c):
    width, depth = 8, 4
    found = finite_width.exact_four_point_vertex(nn.LeakyReLU(slope), depth=depth, width=width)
    np.testing.assert_allclose(found.value, [(1 + c / width) ** layer - 1 for layer in range(depth)])
    samples = []
    for block in range(20):
        made = draw_preactivations(
            nn.LeakyReLU(slope), torch.ones(1, width), depth=depth, width=width, members=4_000, weight_variance=1.0, rng=chance.child(chance.generator(3), "block", block)
        )[:, :, 0]
        squares = made.square()
        centred = squares - squares.mean((1, 2), keepdim=True)
        kurtosis = squares.square().mean((1, 2)) / squares.mean((1, 2)) ** 2 - 3
        pairs = (centred.sum(2).square() - centred.square().sum(2)).mean(1) / (width * (width - 1))
        samples.append(torch.stack([torch.as_tensor(ensembles.four_point_vertex(made).value), kurtosis, pairs / centred.square().mean((1, 2))]))
    drawn = torch.stack(samples).numpy()
    predicted = np.stack([found.value, finite_width.excess_kurtosis(found).value, finite_width.square_correlation(found).value])
    error = drawn.std(0, ddof=1) / math.sqrt(len(drawn))
    # the plain kurtosis and correlation of a block are biased by about their variance within it, a twentieth of the squared spread of blocks times their number
    assert (np.abs(drawn.mean(0) - predicted) < 4 * error + 0.05 * predicted).all()


def test_the_kernel_of_all_pairs():
    inputs = np.random.default_rng(1).normal(size=(5, 8))
    k = inputs @ inputs.T / 8
    found = finite_width.kernel_matrix(torch.erf, kernel=k, depth=2, weight_variance=1.7, bias_variance=0.1)
    scale = np.sqrt(1 + 2 * np.diag(k))
    np.testing.assert_allclose(found.value[1], 0.1 + 1.7 * 2 / math.pi * np.arcsin(2 * k / np.outer(scale, scale)), rtol=1e-9)
    relu = finite_width.kernel_matrix(torch.relu, kernel=k, depth=2, weight_variance=2.0).value[1]
    np.testing.assert_allclose(relu, [[2 * relu_pair(k[a, a], k[b, b], k[a, b]) for b in range(5)] for a in range(5)], rtol=1e-9)
    deep = finite_width.kernel_matrix(torch.tanh, kernel=k[:2, :2], depth=4, weight_variance=1.5, bias_variance=0.1)
    other = tensors(torch.tanh, kernel=k[:2, :2], depth=4, weight_variance=1.5, bias_variance=0.1)
    np.testing.assert_allclose(deep.value, other.kernel, atol=1e-9)
    assert deep.error.max() < 1e-6


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (np.ones((2, 2)), "Inputs 0 and 1 are the same"), (np.array([[1.0, -2.0], [-2.0, 4.0]]), "Inputs 0 and 1 are the same"), (np.array([[0.0]]), "kernel 0"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "symmetric"), (np.full((1, 1), np.nan), "kernel must be finite"),
    ],
)  # fmt: skip
def test_kernels_that_are_none(kernel, says):
    with pytest.raises(InvalidInput, match=says):
        tensors(torch.tanh, kernel=kernel, depth=2, weight_variance=1.0)


def test_what_is_out_of_scope_is_named():
    with pytest.raises(OutOfScope, match="by layer .* inputs have become multiples"):
        tensors(torch.relu, kernel=np.array([[1.0, 0.99], [0.99, 1.0]]), depth=40, weight_variance=0.5, bias_variance=0.5, through="dntk")
    with pytest.raises(OutOfScope, match="faster than a polynomial"):
        tensors(torch.exp, kernel=np.eye(1), depth=2, weight_variance=1.0)
    with pytest.raises(OutOfScope, match="leading order"):
        finite_width.exact_four_point_vertex(torch.tanh, depth=3, width=8)
