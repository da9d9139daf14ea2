"""Layers with weights and their rectifiers in compiled loops: against 40 digits, and against the same layers one operation after the other."""

import itertools
import math
import re

import mpmath as mp
import numba
import numpy as np
import pytest
import torch
from test_infinite_width import BOTH
from torch import nn

from gnomon.core import rng as chance
from gnomon.theory.infinite import compiled, loops
from gnomon.theory.infinite.fused import Rectified
from gnomon.theory.infinite.pair import apart
from gnomon.theory.kernels import infinite_width

SLOPES = {"relu": (nn.ReLU(), 0.0, 1.0), "leaky": (nn.LeakyReLU(0.1), 0.1, 1.0), "steep": (nn.LeakyReLU(3.0), 3.0, 1.0), "turned": (nn.LeakyReLU(-0.5), -0.5, 1.0)}
DISTANCES = (0.0, 1e-12, 1e-7, 1e-3, 0.5, 1.2)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_polynomials_are_what_they_stand_for(kind):
    for g in (1e-12, 1e-6, 0.01, *np.linspace(0.05, 1, 20)):
        g = kind(g)
        with mp.workdps(40):
            angle, root = mp.acos(1 - mp.mpf(float(g))), mp.sqrt(2 * mp.mpf(float(g)))
            expected = angle / root, (mp.sin(angle) - angle * mp.cos(angle)) / root**3
            for table, value in zip((loops.ANGLE, loops.BEND), expected, strict=True):
                made = mp.polyval([mp.mpf(float(kind(c))) for c in reversed(table[kind])], mp.mpf(float(g)))
                assert abs(made / value - 1) < (3e-16 if kind is np.float64 else 1e-7)


def in_40_digits(x, y, low, high, layers, bias):
    """NNGP and tangent kernel of `layers` layers of C_W = 2 with activations of slopes low and high and a readout, of two vectors."""
    (q, r, k), theta = (mp.mpf(1) * 2 * mp.fsum(mp.mpf(a) * mp.mpf(b) for a, b in zip(u, v, strict=True)) / len(x) + bias for u, v in ((x, x), (y, y), (x, y))), None
    mean, bend = mp.mpf(low**2 + high**2) / 2, mp.mpf(high - low) ** 2 / (2 * mp.pi)
    for _ in range(layers):
        theta = k if theta is None else 2 * theta + k
        n = mp.sqrt(q * r)
        angle = mp.acos(max(-1, min(1, k / n)))
        theta *= mean - bend * angle
        q, r, k = 2 * mean * q + bias, 2 * mean * r + bias, 2 * (mean * k + bend * n * (mp.sin(angle) - angle * mp.cos(angle))) + bias
    return k, 2 * theta + k


@pytest.mark.parametrize("bias", [0.0, 0.25])
@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_multilayer_perceptrons_in_40_digits(name, layers, bias):
    """At angles near 0, pi and between, of vectors of other lengths: what is left of n - k and of pi - theta keeps its digits."""
    activation, low, high = SLOPES[name]
    network = nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(2, 2), activation)], nn.Linear(2, 1))
    kernel = infinite_width(network, parametrization="ntk", weight_variance=2.0, bias_variance=bias)
    angles = sorted({turn(distance) for distance in DISTANCES for turn in (lambda d: d, lambda d: math.pi - d)})
    x1, x2 = torch.tensor([[1.5, 0.0]], dtype=torch.float64), torch.tensor([[0.7 * math.cos(a), 0.7 * math.sin(a)] for a in angles], dtype=torch.float64)
    found, single = kernel(x1, x2, BOTH), kernel(x1.float(), x2.float(), BOTH)
    with mp.workdps(40):
        for i, y in enumerate(x2.tolist()):
            size = math.prod(float(in_40_digits(v, v, low, high, layers, bias)[1]) for v in (x1[0].tolist(), y)) ** 0.5
            for expected, made, less in zip(in_40_digits(x1[0].tolist(), y, low, high, layers, bias), found, single, strict=True):
                assert abs(float(made[0, i]) - expected) < 4e-15 * size
                assert abs(float(less[0, i]) - expected) < 1e-6 * size
                left = mp.pi - mp.acos(mp.mpf(y[0]) / mp.hypot(*y))
                if name == "relu" and layers == 1 and not bias and left > 1e-13:  # relative to what is nearly 0: a direction's rounding is all that is lost
                    assert abs(float(made[0, i]) / expected - 1) < 1e-14 + 2e-15 / left


def stacked(*layers, head="pool"):
    dims = next(layer for layer in layers if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    pools = {nn.Conv1d: nn.AdaptiveAvgPool1d, nn.Conv2d: nn.AdaptiveAvgPool2d, nn.Conv3d: nn.AdaptiveAvgPool3d}
    return nn.Sequential(*layers, *([pools[type(dims)](1)] if head == "pool" else []), nn.Flatten(), nn.LazyLinear(1))


def convolutions(activation):
    """Windows of every kind, and the shapes of data that they read."""
    c = nn.Conv2d
    return {
        "same": ((c(2, 4, 3, padding=1), activation, c(4, 4, 3, padding=1), activation, c(4, 4, 1), activation), (2, 6, 5)),
        "valid": ((c(1, 4, 3), activation, c(4, 4, (2, 3)), activation), (1, 8, 7)),
        "padded by more": ((c(1, 4, 3, padding=2), activation, c(4, 4, 2, padding=1), activation), (1, 4, 5)),
        "strides": ((c(1, 4, 3, stride=2, padding=1), activation, c(4, 4, 3, stride=(1, 2), padding=(0, 1)), activation), (1, 9, 10)),
        "patches": ((c(3, 4, 4, stride=4), activation, c(4, 4, 2), activation), (3, 12, 8)),
        "dilated": ((c(1, 4, 3, dilation=2, padding=2), activation, c(4, 4, 3, dilation=(2, 1), padding=1, stride=2), activation), (1, 8, 7)),
        "circular": ((c(1, 4, 3, padding=1, padding_mode="circular"), activation, c(4, 4, 4, padding="same", padding_mode="circular"), activation), (1, 5, 6)),
        "reflect": ((c(1, 4, 3, padding=1, padding_mode="reflect"), activation, c(4, 4, 3, padding=1, padding_mode="replicate"), activation), (1, 5, 4)),
        "one dimension": ((nn.Conv1d(2, 4, 5, padding=2), activation, nn.Conv1d(4, 4, 3, stride=2), activation), (2, 11)),
        "three dimensions": ((nn.Conv3d(1, 4, 3, padding=1), activation, nn.Conv3d(4, 4, 2, stride=2), activation), (1, 4, 2, 5)),
        "features": ((c(7, 4, 3, padding=1), activation, c(4, 4, 3, padding=1), activation), (7, 3, 4)),
    }


def in_turn(monkeypatch, kernel, *data):
    with monkeypatch.context() as context:
        context.setattr(Rectified, "covers", lambda self, x: False)
        return kernel(*data, kind=BOTH)


@pytest.mark.parametrize("head", ["pool", "flatten"])
@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("name", convolutions(None))
def test_every_window_is_that_of_the_layers_one_after_the_other(name, activation, head, monkeypatch):
    """Shifted sums of torch in place of tables; data with and without negative numbers, parts that are 0, a bias and none; float32 beside float64."""
    layers, shape = convolutions(SLOPES[activation][0])[name]
    network = stacked(*layers, head=head)
    x = torch.randn(3, *shape, generator=chance.generator(0), dtype=torch.float64)
    network(x.float())
    x[1, ..., : shape[-1] // 2] = 0
    covered, covers = [], Rectified.covers
    monkeypatch.setattr(Rectified, "covers", lambda self, pair: covered.append(covers(self, pair)) or covered[-1])
    for bias in (0.0, 0.3):
        kernel = infinite_width(network, weight_variance=2.0, bias_variance=bias)
        for data in (x, x.abs()):
            covered.clear()
            made, single = kernel(data, kind=BOTH), kernel(data.float(), kind=BOTH)
            assert len(covered) > 1
            assert all(covered)
            for one, less, other in zip(made, single, in_turn(monkeypatch, kernel, data), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
                torch.testing.assert_close(less.double(), one, rtol=1e-5, atol=1e-7 * float(one.max()))


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_float32_behind_a_flatten(bias):
    """Of an example with itself, with a multiple of it and with nearly itself, where the angle is the root of what rounding leaves."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 1))
    x = torch.randn(4, 1, 6, 6, generator=chance.generator(0), dtype=torch.float64)
    x = torch.cat([x, 3 * x[2:3], x[3:] * (1 + 1e-3 * x[:1])])
    kernel = infinite_width(network, parametrization="ntk", weight_variance=2.0, bias_variance=bias)
    whole = kernel(x, kind="ntk")
    assert isinstance(whole, torch.Tensor)
    size = whole.diagonal().sqrt()
    assert float(((kernel(x.float(), kind="ntk") - whole) / (size[:, None] * size)).abs().max()) < 1e-6


def test_a_slope_at_0_that_is_not_0_where_nothing_arrives(monkeypatch):
    """Of an activation that is its own expression autograd's derivative at 0 may be 1/2."""
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.PReLU(init=0.5), nn.Conv2d(3, 3, 2), nn.Hardtanh(-1e9, 0.0), nn.Flatten(), nn.Linear(12, 1))
    x = torch.randn(3, 1, 4, 4, generator=chance.generator(0), dtype=torch.float64)
    x[0, :, :2] = 0
    kernel = infinite_width(network, bias_variance=0.0)
    for one, other in zip(kernel(x, kind=BOTH), in_turn(monkeypatch, kernel, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_threads_share_the_rows_without_a_change(monkeypatch):
    network = stacked(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    x, vectors = torch.randn(3, 1, 6, 5, generator=chance.generator(0)), torch.randn(7, 9, generator=chance.generator(1))
    network(x)
    deep = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 1))
    alone = [infinite_width(net)(data, kind=BOTH) for net, data in ((network, x), (deep, vectors))]
    monkeypatch.setattr(compiled, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for (net, data), expected in zip(((network, x), (deep, vectors)), alone, strict=True):
        for one, other in zip(infinite_width(net)(data, kind=BOTH), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("components", [3, 40])
def test_distances_of_directions_keep_their_digits(components, full):
    """Of vectors that are the same, nearly the same, and nearly opposite, by differences and by a product that is mended."""
    count = 3 if full or components == 3 else 1
    u = torch.randn(components, 2, count, generator=chance.generator(0), dtype=torch.float64)
    v = torch.cat([u[:, :1], u[:, 1:] * 2 + 1e-7 * torch.randn(u[:, 1:].shape, generator=chance.generator(1), dtype=torch.float64), -u[:, :1] * (1 + 1e-6 * u[:, 1:])], 1)
    u, v = (part / part.square().sum(0).sqrt() for part in (u, v))
    one, two = torch.linspace(0.5, 2, 2 * count, dtype=torch.float64).reshape(2, count), torch.linspace(1, 3, 3 * count, dtype=torch.float64).reshape(3, count)
    near, far = apart(u.movedim(0, -1), v.movedim(0, -1), one, two, full=full, total=True)
    single = apart(u.movedim(0, -1), v.movedim(0, -1), one.float(), two.float(), full=full, total=True)
    with mp.workdps(40):
        for sign, made, less in ((-1, near, single[0]), (1, far, single[1])):
            for at in np.ndindex(*made.shape):
                (i, j), p, q = at[:2], at[2], at[-1]
                square = mp.fsum((mp.mpf(a) + sign * mp.mpf(b)) ** 2 for a, b in zip(u[:, i, p].tolist(), v[:, j, q].tolist(), strict=True)) / 2
                expected = square * mp.mpf(float(one[i, p])) * mp.mpf(float(two[j, q]))
                assert abs(float(made[at]) - expected) <= 1e-13 * abs(expected) + 1e-30
                assert abs(float(less[at]) - expected) <= 2e-5 * abs(expected) + 1e-13


def test_loops_compile_where_no_folder_can_be_written_to(monkeypatch):
    def njit(cache=False, **_):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(loops, "njit", njit)
    assert loops.compiled(max) is max
    assert numba.njit is not njit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loop_over_a_row_is_made_of_vector_instructions(dtype, monkeypatch):
    """It is three times as slow where the compiler goes through it one number at a time, and nothing else would tell."""
    fresh = numba.njit(**loops.HOW)(loops.rectified.py_func)
    monkeypatch.setattr(loops, "rectified", fresh)
    infinite_width(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)))(torch.ones(3, 5, dtype=dtype), kind="ntk")
    (assembly,) = fresh.inspect_asm().values()
    assert re.search(r"sqrtp[sd]|fsqrt\s+v", assembly)


class Last(nn.Module):
    """Layers behind each other at positions, channels last."""

    def __init__(self, *widths):
        super().__init__()
        self.first = nn.Conv1d(2, widths[0], 3, padding=1)
        self.rest = nn.Sequential(nn.ReLU(), *[layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b, bias=b > 4), nn.LeakyReLU(0.3))])
        self.head = nn.Linear(widths[-1], 2)

    def forward(self, x):
        return self.head(self.rest(self.first(x).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("kinds", ["nngp", "ntk", BOTH])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
def test_chains_of_layers_are_the_layers_one_after_the_other(parametrization, kinds, monkeypatch):
    """With and without biases, readouts and positions; an example that is 0 throughout; several tiles."""
    deep = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 4), nn.LeakyReLU(-0.2), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(9, 6, generator=chance.generator(0), dtype=torch.float64)
    rows = torch.randn(4, 2, 5, generator=chance.generator(1), dtype=torch.float64)
    with_none = x.clone()
    with_none[3] = 0
    cut = nn.Sequential(*list(deep)[:-1])
    for network, data in ((deep, x), (deep, with_none), (cut, x), (Last(4, 5, 3), rows), (Last(4), rows)):
        kernel = infinite_width(network, parametrization=parametrization, weight_variance=2.0)
        whole = kernel(data, kind=kinds)
        for tile in (3 << 20, 200):
            with monkeypatch.context() as context:
                context.setattr("gnomon.theory.infinite.tiles.WIDE", tile)
                made = kernel(data, kind=kinds)
                context.setattr(Rectified, "covers", lambda self, pair: False)
                expected = kernel(data, kind=kinds)
            for part in (made, whole):
                torch.testing.assert_close(part, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("vector", [False, True])
def test_series_are_sums_of_powers(terms, vector):
    draw = np.random.default_rng(0).standard_normal
    one, two = draw((2, terms, 5)), draw((3, terms, 5 if vector else 4))
    x = np.tanh(draw((6, 1 if vector else 5, two.shape[2])))
    made, pairs = np.empty_like(x), [(i, j) for i in range(2) for j in range(3)]
    loops.series(0, x.shape[0] * x.shape[1], x, made, one, two, vector)
    for pair, (i, j) in enumerate(pairs):
        products = one[i, :, None] * two[j, :, None] if vector else one[i, :, :, None] * two[j, :, None]
        expected = sum(products[m] * x[pair] ** m for m in range(terms))
        np.testing.assert_allclose(made[pair], expected, rtol=1e-12, atol=1e-12)
