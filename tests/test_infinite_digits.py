"""Digits of analytic kernels: real images against 50 digits, pixel by pixel; expressions and tiles against what they stand for."""

import math

import mpmath as mp
import pytest
import torch
from test_infinite_width import BOTH, Do, mlp
from torch import nn

from gnomon.core import rng as chance
from gnomon.data.images import digits
from gnomon.theory.infinite.tiles import _pieces
from gnomon.theory.kernels import infinite_width


def in_50_digits(x, y, weight, bias, layers):
    """The tangent kernel of 3x3 convolutions with ReLU, a flatten and a readout, by plain loops."""
    height, width = len(x), len(x[0])
    places = [(i, j) for i in range(height) for j in range(width)]

    def patches(part):
        return {(i, j): weight / 9 * mp.fsum(part.get((i + a, j + b), 0) for a in (-1, 0, 1) for b in (-1, 0, 1)) for i, j in places}

    first, second, cov = ({(i, j): mp.mpf(one[i][j]) * mp.mpf(two[i][j]) for i, j in places} for one, two in ((x, x), (y, y), (x, y)))
    tangent = dict.fromkeys(places, mp.mpf(0))
    for _ in range(layers):
        first, second, cov, tangent = (patches(part) for part in (first, second, cov, tangent))
        for at in places:
            q, r, k = first[at] + bias, second[at] + bias, cov[at] + bias
            n = mp.sqrt(q * r)
            angle = mp.acos(min(k / n, 1)) if n else mp.mpf(0)
            slope = (mp.pi - angle) / (2 * mp.pi) if n else 0
            first[at], second[at], cov[at], tangent[at] = q / 2, r / 2, n * mp.sin(angle) / (2 * mp.pi) + k * slope, (tangent[at] + k) * slope
    return weight * mp.fsum(cov[at] + tangent[at] for at in places) / len(places) + bias


@pytest.mark.parametrize("bias", [0.01, 0.0])
def test_real_images_in_50_digits(bias):
    """Flat background, images that are multiples of one another and images that nearly are: correlations of exactly 1, and near it, at different variances."""
    images = next(iter(digits()))[0][:2].double().reshape(2, 1, 8, 8)
    x = torch.cat([images, 0.37 * images[:1], images[:1] + 1e-9 * images[1:]])
    layers = [layer for channels in (1, 8, 8) for layer in (nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU())]
    made = infinite_width(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 1)), parametrization="ntk", weight_variance=2.0, bias_variance=bias)(x, kind="ntk")
    with mp.workdps(50):
        for i, j in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 2)):
            expected = in_50_digits(x[i, 0].tolist(), x[j, 0].tolist(), mp.mpf(2), mp.mpf(bias), 3)
            assert abs(mp.mpf(float(made[i, j])) / expected - 1) <= 1e-13


EXPRESSIONS = {
    "silu": (lambda x: x * torch.sigmoid(x), nn.SiLU()), "silu by exp": (lambda x: x / (1 + torch.exp(-x)), nn.SiLU()), "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), nn.GELU()),
    "mish": (lambda x: x * torch.tanh(nn.functional.softplus(x)), nn.Mish()), "where": (lambda x: torch.where(x > 0, x, 0.1 * x), nn.LeakyReLU(0.1)),
    "largest": (lambda x: torch.maximum(x, 0.1 * x), nn.LeakyReLU(0.1)), "clamp": (lambda x: x.clamp(min=0), nn.ReLU()), "sum": (lambda x: torch.relu(x) + x, Do(lambda x: 2 * nn.functional.leaky_relu(x, 0.5))),
    "square": (lambda x: torch.relu(x) * torch.relu(x), Do(lambda x: torch.relu(x) ** 2)), "shifted": (lambda x: torch.tanh(x) - 2 + torch.tanh(x), Do(lambda x: 2 * torch.tanh(x) - 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_of_one_layer_is_an_activation(name):
    """Written by hand, or as its module: to the tolerance of the series where only one of them has a closed form."""
    written, module = EXPRESSIONS[name]
    x = torch.randn(4, 5, generator=chance.generator(0), dtype=torch.float64)
    for made, expected in zip(infinite_width(mlp(Do(written)))(x, kind=BOTH), infinite_width(mlp(module))(x, kind=BOTH), strict=True):
        torch.testing.assert_close(made, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("count", [1, 3, 8, 40, 1000])
def test_tiles_cover_every_pair_once(count):
    for n in (1, 7, 23):
        for rows, columns, halved in ((range(3, 3 + n), range(3, 3 + n), True), (range(n), range(2, 13), False)):
            found = [(i, j) for here, there in _pieces(rows, columns, count, halved=halved) for i in range(here.start, here.stop) for j in range(there.start, there.stop)]
            wanted = {(i, j) for i in rows for j in columns if not halved or j >= i}
            assert len(found) == len(set(found))
            assert wanted <= set(found) <= {(i, j) for i in rows for j in columns}
