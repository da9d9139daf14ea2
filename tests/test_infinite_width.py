"""The kernels of infinitely wide networks: against neural-tangents, 50-digit quadrature, and finite networks."""

import json
import math
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.theory.infinite.duals import Arguments, Erf, Gaussian, Gelu, Monomial, PiecewiseLinear, RectifiedPower, Sign, Wave
from gnomon.theory.kernels import infinite_width

REFERENCE = json.loads((Path(__file__).parent / "data" / "neural_tangents.json").read_text(encoding="utf-8"))
BOTH = ("nngp", "ntk")


class Do(nn.Module):
    """A function as a module that is looked into."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.nothing = nn.Identity()

    def forward(self, x):
        return self.nothing(self.function(x))


class Residual(nn.Module):
    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x):
        return x + self.inner(x)


class Concatenation(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(32, 1)

    def forward(self, x):
        return self.out(torch.cat([torch.relu(self.one(x)), torch.erf(self.two(x))], -1))


def mlp(activation):
    return nn.Sequential(nn.Linear(5, 16), activation, nn.Linear(16, 16), activation, nn.Linear(16, 1))


def cnn(*layers):
    return nn.Sequential(*layers)


C1, C2 = lambda **more: nn.Conv2d(2, 8, 3, **{"padding": 1} | more), lambda **more: nn.Conv2d(8, 8, 3, **{"padding": 1} | more)
NETWORKS = {
    "relu": mlp(nn.ReLU()), "leaky_relu": mlp(nn.LeakyReLU(0.2)), "abs": mlp(Do(torch.abs)), "erf": mlp(Do(torch.erf)), "gelu": mlp(nn.GELU()), "sin": mlp(Do(torch.sin)), "cos": mlp(Do(torch.cos)),
    "gaussian": mlp(Do(lambda x: torch.exp(-(x**2)))), "cube": mlp(Do(lambda x: x**3)),
    "sign": nn.Sequential(nn.Linear(5, 16), Do(torch.sign), nn.Linear(16, 1)),
    "standard": nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 1)),
    "layer_norm": nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16, elementwise_affine=False), nn.ReLU(), nn.Linear(16, 1)),
    "residual": nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), Residual(nn.ReLU(), nn.Linear(16, 16)), nn.ReLU(), nn.Dropout(), nn.Linear(16, 1)),
    "concatenation": Concatenation(),
    "conv_flatten": cnn(C1(), nn.ReLU(), C2(padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 1)),
    "conv_valid_stride": cnn(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, stride=2), Do(torch.erf), nn.Flatten(), nn.Linear(8, 1)),
    "conv_circular": cnn(C1(padding_mode="circular"), nn.ReLU(), C2(padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 1)),
    "conv_global": cnn(C1(), nn.ReLU(), C2(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)),
    "conv_pool": cnn(C1(), nn.ReLU(), nn.AvgPool2d(2), C2(), nn.ReLU(), Do(lambda x: x.mean((2, 3))), nn.Linear(8, 1)),
    "conv_pool_flatten": cnn(C1(), nn.ReLU(), nn.AvgPool2d(2, 1), C2(), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 1)),
}  # fmt: skip


def reference_data(name, dtype=torch.float64):
    if name.startswith("conv"):
        images = torch.tensor(REFERENCE["images"], dtype=dtype).movedim(-1, 1)
        return images[:2], images[2:]
    vectors = torch.tensor(REFERENCE["vectors"], dtype=dtype)
    return vectors[:4], vectors[4:]


def kernel_of(name):
    kind = "standard" if name == "standard" else "ntk"
    return infinite_width(NETWORKS[name], parametrization=kind, weight_variance=REFERENCE["weight_variance"], bias_variance=REFERENCE["bias_variance"])


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_those_of_neural_tangents(name):
    x1, x2 = reference_data(name)
    for kind, made in zip(BOTH, kernel_of(name)(x1, x2, BOTH), strict=True):
        expected = torch.tensor(REFERENCE["kernels"][name][kind], dtype=torch.float64)
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=0)


def quadrature(function, breaks, q1, q2, cosine):
    """E f(x) f(y) in 50 digits: y = sqrt(q2)(c u + sqrt(1 - c^2) v), integrated over the half planes where f is smooth."""
    mp.mp.dps = 30
    angle = mp.acos(cosine)
    # in polar coordinates the kinks of f(x), at angles +-pi/2, and of f(y), at angle +- pi/2, are rays
    rays = sorted({mp.mpf(0), 2 * mp.pi} | ({mp.pi / 2, 3 * mp.pi / 2, (angle + mp.pi / 2) % (2 * mp.pi), (angle + 3 * mp.pi / 2) % (2 * mp.pi)} if breaks else set()))

    def ring(phi):
        one, two = mp.sqrt(q1) * mp.cos(phi), mp.sqrt(q2) * mp.cos(phi - angle)
        return function(one, two)

    return mp.quad(ring, rays) / (2 * mp.pi)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_and_halves_agree(name):
    """float32 within 1e-5; both halves of a symmetric kernel, and the kernel of two sets that are one."""
    x1, x2 = reference_data(name)
    kernel, both = kernel_of(name), torch.cat([x1, x2])
    for kind in BOTH:
        whole = kernel(both, kind=kind)
        assert torch.equal(whole, whole.T)
        torch.testing.assert_close(whole[: len(x1), len(x1) :], kernel(x1, x2, kind), rtol=1e-12, atol=0)
        torch.testing.assert_close(whole, kernel(both, both.clone(), kind), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(kernel(both.float(), kind=kind).double(), whole, rtol=1e-5, atol=0)
