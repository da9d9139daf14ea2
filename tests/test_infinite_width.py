"""The kernels of infinitely wide networks: against neural-tangents, 50-digit quadrature, and finite networks."""

import itertools
import json
import math
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, NotEnoughMemory, OutOfScope
from gnomon.theory.infinite.duals import Arguments, Erf, Gaussian, Gelu, Monomial, PiecewiseLinear, RectifiedPower, Sign, Wave
from gnomon.theory.infinite.series import Series
from gnomon.theory.kernels import NotPositiveDefinite, gradient_flow, infinite_width, posterior, ridge_regression

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


def halves(x):
    return x.chunk(2, -1)


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


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_and_halves_agree(name):
    """float32 within 1e-5; both halves of a symmetric kernel, and the kernel of two sets that are one."""
    x1, x2 = reference_data(name)
    kernel, both = kernel_of(name), torch.cat([x1, x2])
    for kind in BOTH:
        whole = kernel(both, kind=kind)
        assert torch.equal(whole, whole.T)
        torch.testing.assert_close(whole[: len(x1), len(x1) :], kernel(x1, x2, kind), rtol=1e-12, atol=0)
        # behind a pooling n - k comes from a subtraction, so that between equal examples of two sets half the digits of the angle are lost
        torch.testing.assert_close(whole, kernel(both, both.clone(), kind), rtol=1e-7 if "conv_pool" in name else 1e-12, atol=1e-14)
        torch.testing.assert_close(kernel(both.float(), kind=kind).double(), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["relu", "conv_flatten", "conv_pool"])
def test_blocks_are_parts_of_the_whole_and_say_beforehand_what_they_take(name):
    x = torch.cat(reference_data(name))
    kernel = kernel_of(name)
    whole, tiles = kernel(x, kind=BOTH), kernel.tiles(x, kind=BOTH)
    assert tiles.shape == (len(x), len(x))
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(1, 3), slice(2, 4)), (slice(2, 4), slice(0, 3)), (None, slice(3, 4))):
        for made, full in zip(tiles.block(rows, columns), whole, strict=True):
            expected = full[rows or slice(None), columns]
            torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-14)
            assert tiles.cost(rows, columns).result == 2 * expected.numel() * 8
    assert tiles.cost().covariances < 2 * kernel.tiles(x, x.clone(), kind=BOTH).cost().covariances
    assert tiles.cost().covariances == sum(tiles.cost(slice(i, i + 1), slice(i, None)).covariances for i in range(len(x)))
    with pytest.raises(InvalidInput, match="contiguous range"):
        tiles.block(slice(3, 3))


def test_slabs_and_tiles_do_not_change_the_kernel(monkeypatch):
    """One position's row at a time, and one pair of examples at a time, give what all at once do."""
    images = torch.randn(3, 2, 6, 5, generator=chance.generator(0), dtype=torch.float64)
    padded = [nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode) for mode in ("zeros", "circular", "reflect", "replicate")]
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), *[layer for conv in padded for layer in (conv, nn.LeakyReLU(0.2))], nn.Conv2d(8, 8, 1, stride=(2, 1)), nn.Tanh(), nn.Conv2d(8, 8, (2, 3), stride=2, padding=1, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))  # fmt: skip
    flat = nn.Sequential(*list(network)[:-3], nn.Flatten(), nn.Linear(32, 1))
    for each in (network, flat):
        whole = infinite_width(each)(images, kind=BOTH)
        for name in ("propagation.SLAB", "tiles.TILE", "tiles.WIDE"):
            monkeypatch.setattr(f"gnomon.theory.infinite.{name}", 8)
            for made, expected in zip(infinite_width(each)(images, kind=BOTH), whole, strict=True):
                torch.testing.assert_close(made, expected, rtol=1e-11, atol=0)
        monkeypatch.undo()


def relu(z):
    return z if z > 0 else mp.mpf(0)


def leaky(z):
    return z if z > 0 else z * mp.mpf(0.1)


# the dual, the activation, its derivative, and the degree of an activation that is homogeneous (None: it is smooth)
DUALS = {
    "relu": (PiecewiseLinear(0.0, 1.0), relu, lambda z: mp.mpf(z > 0), 1),
    "leaky": (PiecewiseLinear(0.1, 1.0), leaky, lambda z: mp.mpf(1) if z > 0 else mp.mpf(0.1), 1),
    "abs": (PiecewiseLinear(-1.0, 1.0), abs, mp.sign, 1),
    "identity": (PiecewiseLinear(1.0, 1.0), lambda z: z, lambda z: mp.mpf(1), 1),
    "square of relu": (RectifiedPower(2), lambda z: relu(z) ** 2, lambda z: 2 * relu(z), 2),
    "cube of relu": (RectifiedPower(3), lambda z: relu(z) ** 3, lambda z: 3 * relu(z) ** 2, 3),
    "sign": (Sign(), mp.sign, None, 0),
    "square": (Monomial(2), lambda z: z**2, lambda z: 2 * z, 2),
    "cube": (Monomial(3), lambda z: z**3, lambda z: 3 * z**2, 3),
    "erf": (Erf(), mp.erf, lambda z: 2 / mp.sqrt(mp.pi) * mp.exp(-(z**2)), None),
    "gelu": (Gelu(), lambda z: z * mp.erfc(-z / mp.sqrt(2)) / 2, lambda z: mp.erfc(-z / mp.sqrt(2)) / 2 + z * mp.exp(-(z**2) / 2) / mp.sqrt(2 * mp.pi), None),
    "sin": (Wave(odd=True), mp.sin, mp.cos, None),
    "cos": (Wave(odd=False), mp.cos, lambda z: -mp.sin(z), None),
    "gaussian": (Gaussian(0.75), lambda z: mp.exp(-mp.mpf(0.75) * z**2), lambda z: -mp.mpf(1.5) * z * mp.exp(-mp.mpf(0.75) * z**2), None),
}  # fmt: skip
Q1, Q2 = 1.25, 0.5
CORRELATIONS = ((1, 1e-12), (-1, 1e-12), (1, 1e-3), (-1, 1e-3), (1, 0.7))
"""The sign of the correlation and the distance of its size from 1."""


def homogeneous(function, degree, angle):
    """E f(x) f(y) in 50 digits for f(a z) = a^degree f(z), a > 0: in polar coordinates the radius gives 2^degree degree!, and kinks lie on rays."""
    turns = [mp.pi / 2, 3 * mp.pi / 2, (angle + mp.pi / 2) % (2 * mp.pi), (angle + 3 * mp.pi / 2) % (2 * mp.pi)]
    rays = sorted([mp.mpf(0), *turns, 2 * mp.pi])
    pieces = [(a, b) for a, b in itertools.pairwise(rays) if b > a]
    # the mean over a piece, whose inner points are on one side of every kink
    ring = sum(mp.quad(lambda phi: function(mp.cos(phi)) * function(mp.cos(phi - angle)), piece) for piece in pieces)
    return ring / (2 * mp.pi) * 2**degree * mp.factorial(degree) * mp.mpf(Q1 * Q2) ** (mp.mpf(degree) / 2)


def trapezoid(function, cosine, sine):
    """E f(x) f(y) for an entire f by the trapezoidal rule in both variables, which converges faster than geometrically."""
    step, reach = mp.mpf(1) / 3, 42
    nodes = [(k * step, mp.exp(-((k * step) ** 2) / 2) * step / mp.sqrt(2 * mp.pi)) for k in range(-reach, reach + 1)]
    one, two = mp.sqrt(mp.mpf(Q1)), mp.sqrt(mp.mpf(Q2))
    return mp.fsum(weight * function(one * u) * mp.fsum(other * function(two * (cosine * u + sine * v)) for v, other in nodes) for u, weight in nodes)


@pytest.mark.parametrize("name", DUALS)
@pytest.mark.parametrize(("sign", "distance"), CORRELATIONS)
def test_duals_are_those_of_quadrature_in_50_digits(name, sign, distance):
    dual, function, derivative, degree = DUALS[name]
    with mp.workdps(50):
        small = mp.mpf(distance)
        cosine, sine = sign * (1 - small), mp.sqrt(small * (2 - small))
        n = mp.sqrt(mp.mpf(Q1 * Q2))
        numbers = [
            torch.tensor(float(v), dtype=torch.float64) for v in (Q1, Q2, n * cosine, n * (1 - cosine) if sign < 0 else n * small, n * small if sign < 0 else n * (1 + cosine))
        ]
        image = dual.image(Arguments(*(v.reshape(1) for v in numbers), tangent=torch.ones(1, dtype=torch.float64), wanted=False))
        for made, f, order in ((image.factor * image.cov, function, degree), (image.factor * image.tangent, derivative, None if degree is None else degree - 1)):
            if f is None:
                assert float(made) == 0  # the derivative of sign, as autograd takes it
                continue
            expected = trapezoid(f, cosine, sine) if degree is None else homogeneous(f, order, mp.atan2(sine, cosine))
            assert abs(mp.mpf(float(made)) - expected) <= 1e-10 * abs(expected)


def empirical(network, x, parameters=None):
    """The product of outputs and the tangent kernel of one network."""
    outputs, parameters = network(x)[:, 0], parameters or list(network.parameters())
    rows = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(out, parameters, retain_graph=True)]) for out in outputs]
    jacobian = torch.stack(rows)
    return torch.stack([torch.outer(outputs, outputs).detach(), jacobian @ jacobian.T])


def test_variances_are_read_from_the_scheme_or_given():
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3, bias=False))
    x = torch.randn(2, 6)
    assert infinite_width(network).variances(x) == {
        "0": (pytest.approx(1 / 3), 1 / 18, "1/(3 fan_in), nn.Linear's default"),
        "2": (pytest.approx(1 / 3), 0.0, "1/(3 fan_in), nn.Linear's default"),
    }
    found = infinite_width(network, weight_variance="kaiming").variances(x)
    assert [found[name][:2] for name in ("0", "2")] == [(pytest.approx(2.0), 0.0)] * 2
    assert infinite_width(network, weight_variance="xavier").variances(x)["0"][0] == pytest.approx(2 * 6 / 30)
    assert infinite_width(network, weight_variance="orthogonal").variances(x)["0"][0] == pytest.approx(6 / 24)
    found = infinite_width(network, weight_variance={"0": 1.5}, bias_variance=0.2).variances(x)
    assert found["0"] == (1.5, 0.2, "given")
    assert found["2"][:2] == (pytest.approx(1 / 3), 0.0)


def test_zero_inputs_and_dead_patches_have_autograd_s_derivatives():
    """With biases that start at 0 an input of 0 has pre-activations of 0, at which ReLU's derivative is 0: only the last bias counts."""
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]], dtype=torch.float64)
    nngp, ntk = infinite_width(network, weight_variance="kaiming")(x, kind=BOTH)
    assert nngp[0].tolist() == [0.0, 0.0]
    assert ntk[0].tolist() == [1.0, 1.0]
    nn.init.zeros_(network[0].bias)
    nn.init.zeros_(network[2].bias)
    torch.testing.assert_close(empirical(network, x)[1][0], ntk[0])
    for activation in (nn.LeakyReLU(0.3), nn.GELU(), nn.Tanh(), nn.Softplus()):
        kernels = infinite_width(nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 1)), weight_variance="kaiming")(x, kind=BOTH)
        assert all(torch.isfinite(kernel).all() for kernel in kernels)


@pytest.mark.parametrize("scale", [1.0, 2.0, -1.0, -3.0])
def test_near_copies_keep_their_digits(scale):
    """x and scale x + small: theta is known in closed form, and the tangent kernel of one hidden layer follows it to 1e-12."""
    x = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for small in (1e-7, 1e-9, 0.0):
        y = torch.tensor([[scale, small * abs(scale), 0.0]], dtype=torch.float64)
        theta = math.atan2(small, math.copysign(1, scale))
        ntk = infinite_width(nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)), parametrization="ntk", weight_variance=1.0)(x, y, "ntk")
        slope, n = (math.pi - theta) / (2 * math.pi), abs(scale) / 3 * math.hypot(1, small)
        p = math.pi - theta if scale > 0 else math.atan2(small, 1)
        image = n * ((math.sin(theta) + p * math.cos(theta)) if scale > 0 else p**3 / 3) / (2 * math.pi)
        slope = p / (2 * math.pi)
        assert float(ntk) == pytest.approx(slope * n * math.cos(theta) + image, rel=1e-12, abs=1e-40)


def test_training_follows_the_differential_equation():
    """Against exponentials of the matrices themselves, at time 0, in between, and at the end; the end is ridge regression without a ridge, and for the readout the posterior without noise."""
    x, new = (torch.tensor(part, dtype=torch.float64) for part in (REFERENCE["vectors"][:4], REFERENCE["vectors"][4:]))
    y = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.5, 1.0], [0.0, -1.0]], dtype=torch.float64)
    kernel = kernel_of("relu")
    own, across, tests = kernel(x, None, BOTH), kernel(new, x, BOTH), kernel(new, None, BOTH)
    for kind, which in (("nngp", 0), ("ntk", 1)):
        for time in (0.0, 0.3, 20.0):
            left = torch.linalg.solve(own[which], torch.eye(4, dtype=torch.float64) - torch.linalg.matrix_exp(-time * own[which]))
            made = gradient_flow(kernel, x, y, new, time=time, kind=kind)
            torch.testing.assert_close(made.mean, across[which] @ left @ y)
            reach = across[which] @ left
            torch.testing.assert_close(made.covariance, tests[0] + reach @ own[0] @ reach.T - reach @ across[0].T - across[0] @ reach.T)
        end = gradient_flow(kernel, x, y, new, time=math.inf, kind=kind)
        torch.testing.assert_close(end.mean, ridge_regression(kernel, x, y, new, kind=kind))
    bayes = posterior(kernel, x, y, new)
    end = gradient_flow(kernel, x, y, new, time=math.inf, kind="nngp")
    torch.testing.assert_close(end.mean, bayes.mean)
    torch.testing.assert_close(end.covariance, bayes.covariance)
    torch.testing.assert_close(gradient_flow(kernel, x, y, time=math.inf).mean, y)
    assert gradient_flow(kernel, x, y[:, 0], new, time=1.0).mean.shape == (2,)
    noisy = posterior(kernel, x, y, new, noise=0.1)
    torch.testing.assert_close(noisy.mean, across[0] @ torch.linalg.solve(own[0] + 0.1 * torch.eye(4, dtype=torch.float64), y))


def test_a_singular_kernel_says_its_eigenvalue_and_offers_jitter():
    x = torch.tensor(REFERENCE["vectors"], dtype=torch.float64)[[0, 1, 0]]
    y, kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64), kernel_of("relu")
    with pytest.raises(NotPositiveDefinite, match="smallest eigenvalue is .*give jitter"):
        gradient_flow(kernel, x, y, time=math.inf)
    with pytest.raises(NotPositiveDefinite, match="eigenvalue"):
        posterior(kernel, x, y, x)
    with pytest.raises(NotPositiveDefinite, match="eigenvalue"):
        ridge_regression(kernel, x, y, x)
    torch.testing.assert_close(gradient_flow(kernel, x, y, time=math.inf, jitter=1e-6).mean, y, rtol=1e-4, atol=0)
    assert torch.isfinite(gradient_flow(kernel, x, y, time=5.0).mean).all()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 1)

    def forward(self, x):
        if x.sum() > 0:
            return self.inner(x)
        return -self.inner(x)


class Shared(nn.Module):
    """Both branches of a sum read one layer without weights between."""

    def __init__(self, twice=False):
        super().__init__()
        self.inner, self.norm, self.twice = nn.Linear(5, 5), nn.LayerNorm(5), twice

    def forward(self, x):
        z = self.inner(x)
        return self.inner(torch.relu(z)) if self.twice else self.norm(z) + z


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)), "'1': BatchNorm couples the examples.*GroupNorm or LayerNorm, which theory covers"),
        (nn.Sequential(nn.Linear(5, 4), nn.Softmax(1), nn.Linear(4, 1)), "'1': Softmax"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)), "'3': an activation of features that are not identically distributed Gaussians"),
        (Shared(), "both branches read 'inner'"),
        (Shared(twice=True), "called again with the same weights.*monte_carlo_kernel"),
        (nn.Sequential(nn.Linear(5, 4), Do(lambda x: x.abs().sqrt()), nn.Linear(4, 1)), "sqrt.*Hermite series of 768 terms leaves .*tolerance"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no layer with weights"),
        (
            nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Residual(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 1)),
            "activation of a sum.*not Gaussian.*begin the branch with the activation",
        ),
        (nn.Sequential(nn.Linear(5, 4), Do(lambda x: halves(x)[0] * nn.functional.layer_norm(halves(x)[0], (2,))), nn.Linear(2, 1)), "both branches read"),
        (nn.Sequential(nn.Linear(5, 4), Do(lambda x: x * halves(torch.cat([x, x], 1))[0]), nn.Linear(4, 1)), "with itself"),
        (nn.Sequential(Do(lambda x: x.unsqueeze(1)), nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(12, 1)), "'2': a depthwise"),
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Do(lambda x: 1 / x), nn.Linear(4, 1)), "a constant divided by random features"),
        (nn.Sequential(Do(lambda x: x.unsqueeze(1)), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 1)), "'3': MaxPool1d"),
        (nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 4, 1), nn.Flatten(), nn.Linear(8, 1)), "'1': a reshape other than"),
        (
            nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 1), nn.ReLU(), Do(lambda x: x), nn.Linear(5, 4), nn.Flatten(), nn.Linear(16, 1)),
            "'4': it reads positions as features.*MLP-Mixer",
        ),
    ],
)
def test_what_is_not_covered_is_named(network, message):
    with pytest.raises(OutOfScope, match=message):
        infinite_width(network)(torch.randn(2, 5, generator=chance.generator(0)), kind="ntk")


def test_a_larger_tolerance_is_taken_and_kept():
    """The root of the absolute value, whose slope has no bound: its dual from the series against draws, within what was allowed."""
    network = nn.Sequential(nn.Linear(5, 4, bias=False), Do(lambda x: x.abs().sqrt()), nn.Linear(4, 1, bias=False))
    x = torch.tensor(REFERENCE["vectors"], dtype=torch.float64)
    made = infinite_width(network, parametrization="ntk", weight_variance=1.0, tolerance=1e-2)(x)
    q = x.square().mean(1)
    draws = torch.randn(200_000, 5, generator=chance.generator(0), dtype=torch.float64) / math.sqrt(5)
    features = (draws @ x.T).abs().sqrt()
    assert (made - features.T @ features / len(draws)).abs().max() <= 1e-2 * float(q.max()) + 4 / math.sqrt(len(draws))


@pytest.mark.parametrize(("function", "slope"), [(torch.tanh, lambda z: 1 - torch.tanh(z) ** 2), (nn.functional.softplus, torch.sigmoid)])
def test_a_series_holds_its_tolerance_between_small_and_large_variances(function, slope):
    """Against quadrature in two dimensions; 600 variances are interpolated, five are not."""
    dual, at = Series(function, "s", 1e-4), torch.arange(0, 600, 120)
    first, second, c = torch.linspace(0.01, 0.1, 600, dtype=torch.float64), torch.linspace(9, 4, 600, dtype=torch.float64), torch.linspace(-1, 1, 600, dtype=torch.float64)
    k = c * first.sqrt() * second.sqrt()
    image = dual.image(Arguments(first, second, k, None, None, torch.ones_like(k)))
    few = dual.image(Arguments(first[at], second[at], k[at], None, None, torch.ones_like(k[at])))
    u, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(150))
    weights = weights / weights.sum()
    for found, one, alone in ((image.cov, function, few.cov), (image.tangent, slope, few.tangent)):
        torch.testing.assert_close(found[at], alone, rtol=0, atol=1e-4)
        for i in at.tolist():
            x, y = first[i].sqrt() * u[:, None], second[i].sqrt() * (c[i] * u[:, None] + (1 - c[i] ** 2).sqrt() * u)
            truth, sizes = ((weights[:, None] * weights) * one(x) * one(y)).sum(), [(weights * one(q[i].sqrt() * u) ** 2).sum().sqrt() for q in (first, second)]
            assert abs(float(found[i] - truth)) <= 1.01e-4 * float(sizes[0] * sizes[1])
    variance = torch.stack([(weights * function(q.sqrt() * u) ** 2).sum() for q in first[at]])
    torch.testing.assert_close(dual.variance(first)[at], variance, rtol=1e-10, atol=0)
    torch.testing.assert_close(dual.variance(first)[at], dual.variance(first[at]), rtol=1e-11, atol=0)


def test_bad_input_is_refused_with_what_to_do():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.ones(2, 5)
    with pytest.raises(InvalidInput, match=r"cannot be traced at test_infinite_width.py, line \d+ \(`if x.sum\(\) > 0:`\).*must not branch"):
        infinite_width(Branching())
    kernel = infinite_width(network)
    with pytest.raises(InvalidInput, match="not finite, in 1 examples, the first of them 1"):
        kernel(torch.tensor([[1.0] * 5, [math.nan] * 5]))
    with pytest.raises(InvalidInput, match="alike but for the number"):
        kernel(x, torch.ones(2, 4))
    with pytest.raises(InvalidInput, match="does not take data of shape"):
        kernel(torch.ones(2, 7))
    with pytest.raises(InvalidInput, match="float32 or float64"):
        kernel(x.half())
    with pytest.raises(InvalidInput, match="kind of kernel 'ntkk'.*Did you mean 'ntk'"):
        kernel(x, kind="ntkk")
    with pytest.raises(InvalidInput, match="finite and at least 0"):
        infinite_width(network, weight_variance=-1.0)
    with pytest.raises(InvalidInput, match="Unknown layer with weights.*'4'"):
        infinite_width(network, weight_variance={"4": 1.0})(x)
    with pytest.raises(InvalidInput, match="Unknown initialisation"):
        infinite_width(network, weight_variance="kaimin")
    with pytest.raises(InvalidInput, match="one row for each of the 2"):
        gradient_flow(kernel, x, torch.ones(3), time=1.0)
    with pytest.raises(InvalidInput, match="time must be a number of at least 0"):
        gradient_flow(kernel, x, torch.ones(2), time=math.nan)


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (lambda x: nn.functional.avg_pool2d(x, 2), nn.AvgPool2d(2)),
        (lambda x: nn.functional.avg_pool2d(x, (2, 3), stride=1, padding=1), nn.AvgPool2d((2, 3), 1, 1)),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 2), nn.AdaptiveAvgPool2d(2)),
    ],
)
def test_poolings_written_as_functions_are_their_modules(function, module):
    x = torch.tensor(REFERENCE["images"], dtype=torch.float64).movedim(-1, 1)

    def kernels(pool):
        return infinite_width(nn.Sequential(C1(), nn.ReLU(), pool, nn.Conv2d(8, 8, 2), nn.ReLU(), Do(lambda x: x.mean((2, 3))), nn.Linear(8, 1)))(x, kind=BOTH)

    for one, two in zip(kernels(Do(function)), kernels(module), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "before",
    [
        (nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(2), Do(lambda x: x.transpose(1, 2)), nn.Linear(8, 8)),
        (nn.Conv2d(2, 8, 3), nn.ReLU(), Do(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(8, 8), Do(lambda x: x.flatten(1, 2))),
        (nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(2), Do(lambda x: x.permute(0, 2, 1))),
    ],
)
def test_channels_at_the_end_are_channels(before):
    x = torch.tensor(REFERENCE["images"], dtype=torch.float64).movedim(-1, 1)
    plain = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))
    expected = infinite_width(plain)(x, kind=BOTH)
    for made, one in zip(infinite_width(nn.Sequential(*before, nn.ReLU(), Do(lambda x: x.mean(1)), nn.Linear(8, 1)))(x, kind=BOTH), expected, strict=True):
        torch.testing.assert_close(made, one, rtol=1e-12, atol=0)


def test_what_would_not_fit_is_refused_before_it_is_made():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(NotEnoughMemory, match=r"one pair of them .* GB .*16,777,216 covariances.*more `memory`"):
        infinite_width(network, memory=10**9)(torch.ones(2, 1, 64, 64))
    with pytest.raises(NotEnoughMemory, match="The kernel of 30 x 30 examples"):
        infinite_width(NETWORKS["relu"], memory=3000)(torch.ones(30, 5))


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 1)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    infinite_width(network)(torch.ones(2, 5), kind=BOTH)
    assert network.training
    assert network[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
