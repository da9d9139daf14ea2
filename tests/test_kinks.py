"""Duals of activations with kinks: against 30 digits, against closed forms, against finite networks; and where kinks are found."""

import math

import mpmath as mp
import pytest
import torch
from test_infinite_width import BOTH, Do, mlp
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.theory.infinite.duals import Arguments, PiecewiseLinear, RectifiedPower
from gnomon.theory.infinite.kinked import Kinked
from gnomon.theory.infinite.kinks import find
from gnomon.theory.infinite.recognise import _hardsigmoid
from gnomon.theory.kernels import infinite_width

INF, ONE = mp.inf, mp.mpf(1)


def exponential(alpha, scale=1.0, rate=1.0):
    """ELU and its kin: scale z above 0, scale alpha (e^{rate z} - 1) below."""
    return [(-INF, 0, [-scale * alpha], 0), (-INF, 0, [scale * alpha], rate), (0, INF, [0, scale], 0)]


def between(low, high, below, inside, above):
    return [(-INF, low, below, 0), (low, high, inside, 0), (high, INF, above, 0)]


SCALE, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
# the activation, and its pieces: from, to, coefficients of a polynomial, and the rate of an exponential that it is multiplied by
ACTIVATIONS = {
    "elu": (nn.ELU(), exponential(1.0)),
    "elu 0.6": (nn.ELU(0.6), exponential(mp.mpf(0.6))),
    "selu": (nn.SELU(), exponential(mp.mpf(ALPHA), mp.mpf(SCALE))),
    "celu 0.75": (nn.CELU(0.75), exponential(mp.mpf(0.75), 1, 1 / mp.mpf(0.75))),
    "hardswish": (nn.Hardswish(), between(-3, 3, [0], [0, ONE / 2, ONE / 6], [0, 1])),
    "hardsigmoid": (_hardsigmoid, between(-3, 3, [0], [ONE / 2, ONE / 6], [1])),
    "hardtanh": (nn.Hardtanh(), between(-1, 1, [-1], [0, 1], [1])),
    "relu6": (nn.ReLU6(), between(0, 6, [0], [0, 1], [6])),
    "softshrink": (nn.Softshrink(0.4), between(-mp.mpf(0.4), mp.mpf(0.4), [mp.mpf(0.4), 1], [0], [-mp.mpf(0.4), 1])),
    "hardshrink": (nn.Hardshrink(0.3), between(-mp.mpf(0.3), mp.mpf(0.3), [0, 1], [0], [0, 1])),
    "threshold": (nn.Threshold(0.25, 0.125), [(-INF, mp.mpf(0.25), [mp.mpf(0.125)], 0), (mp.mpf(0.25), INF, [0, 1], 0)]),
    "clamp": (lambda z: z.clamp(-0.75, 1.25), between(-mp.mpf(0.75), mp.mpf(1.25), [-mp.mpf(0.75)], [0, 1], [mp.mpf(1.25)])),
    "hand-written": (lambda z: torch.maximum(z, torch.where(z < -1, 0.25 * z - 0.25, 0.5 * z)), between(-1, 0, [-ONE / 4, ONE / 4], [0, ONE / 2], [0, 1])),
}  # fmt: skip
POINTS = ((1.25, 0.5, 1, 1e-12), (2.25, 0.75, -1, 0.3))
"""Variances, the sign of the correlation and the distance of its size from 1."""


def smoothed(pieces, mean, deviation):
    """E s(mean + deviation u): truncated moments of a tilted Gaussian, piece by piece."""
    out = mp.mpf(0)
    for low, high, coefficients, rate in pieces:
        centre = mean + rate * deviation**2
        a, b = (low - centre) / deviation, (high - centre) / deviation
        moments = [(mp.erfc(a / mp.sqrt(2)) - mp.erfc(b / mp.sqrt(2))) / 2 if a > 0 else (mp.erfc(-b / mp.sqrt(2)) - mp.erfc(-a / mp.sqrt(2))) / 2]
        for j in range(1, len(coefficients)):
            ends = [mp.mpf(0) if mp.isinf(raw) else mp.mpf(raw) ** (j - 1) * mp.npdf(t) for raw, t in ((low, a), (high, b))]
            moments.append(centre * moments[j - 1] + (j - 1) * deviation**2 * (moments[j - 2] if j > 1 else 0) + deviation * (ends[0] - ends[1]))
        out += mp.exp(rate * mean + (rate * deviation) ** 2 / 2) * sum(c * m for c, m in zip(coefficients, moments, strict=True))
    return out


def in_30_digits(pieces, q1, q2, cosine, sine):
    """E s(x) s(y): over y given x in closed form, over x between kinks, and closely where y given x meets one."""
    one, two = mp.sqrt(q1), mp.sqrt(q2)

    def integrand(u):
        value = sum(sum(c * (one * u) ** j for j, c in enumerate(piece[2])) * mp.exp(piece[3] * one * u) for piece in pieces if piece[0] <= one * u < piece[1])
        return mp.npdf(u) * value * smoothed(pieces, two * cosine * u, two * sine)

    kinks = {piece[0] for piece in pieces} - {-INF}
    cuts = {mp.mpf(cut) for cut in (-9, -3, 0, 3, 9)} | {kink / one for kink in kinks}
    cuts |= {kink / (two * cosine) + k * sine / abs(cosine) for kink in kinks for k in (-9, 0, 9)}
    return mp.quad(integrand, sorted(cut for cut in cuts if abs(cut) <= 9), method="gauss-legendre", maxdegree=5)


def slopes(pieces):
    return [(low, high, [(j + 1) * c[j + 1] + rate * c[j] if j + 1 < len(c) else rate * c[j] for j in range(len(c))], rate) for low, high, c, rate in pieces]


def arguments(q1, q2, sign, distance, **asked):
    """Numbers in float64 of a correlation in 30 digits."""
    n, small = mp.sqrt(mp.mpf(q1) * mp.mpf(q2)), mp.mpf(distance)
    near, far = (small, 2 - small) if sign > 0 else (2 - small, small)
    numbers = [torch.tensor([float(v)], dtype=torch.float64) for v in (q1, q2, n * near, n * far)]
    return Arguments(numbers[0], numbers[1], None, numbers[2], numbers[3], torch.ones(1, dtype=torch.float64), **asked), sign * (1 - small), mp.sqrt(small * (2 - small))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_duals_are_those_of_30_digits(name):
    """Value and derivative to 1e-10 of the product of the root mean squares, near a correlation of 1 too."""
    function, pieces = ACTIVATIONS[name]
    dual = Kinked(function, find(function), name, 1e-6)
    with mp.workdps(30):  # nine standard deviations reach to 1e-18
        for q1, q2, sign, distance in POINTS:
            at, cosine, sine = arguments(q1, q2, sign, distance, wanted=False)
            image = dual.image(at)
            sizes = dual.variance(at.first).sqrt() * dual.variance(at.second).sqrt()
            for made, of, size in ((image.cov, pieces, float(sizes)), (image.tangent, slopes(pieces), 1.0)):
                assert abs(mp.mpf(float(made)) - in_30_digits(of, mp.mpf(q1), mp.mpf(q2), cosine, sine)) <= 1e-10 * size


@pytest.mark.parametrize(("stretch", "distance"), [(0.0, 1e-12), (1e-6, 1e-12), (0.0, 1e-5)])
def test_near_copies_keep_their_digits_behind_a_kink(stretch, distance):
    """The angle of the images, which the next kink reads, to 1e-11 where a difference of covariances would leave 1e-8."""
    function, pieces = ACTIVATIONS["hardtanh"]
    dual, q = Kinked(function, find(function), "hardtanh", 1e-6), 1.25
    other = q * math.exp(2 * stretch)
    with mp.workdps(40):
        at, cosine, sine = arguments(q, other, 1, distance)
        image, tiny = dual.image(at._replace(tangent=None)), mp.mpf(10) ** -36
        one, two = (in_30_digits(pieces, mp.mpf(v), mp.mpf(v), ONE, tiny) for v in (q, other))
        n = mp.sqrt(one * two)
        expected = mp.sqrt(2 * (n - in_30_digits(pieces, mp.mpf(q), mp.mpf(other), cosine, sine)) / n)
        assert abs(mp.sqrt(2 * mp.mpf(float(image.gap)) / n) - expected) <= 1e-11


@pytest.mark.parametrize(
    ("closed", "function"),
    [
        (PiecewiseLinear(0.0, 1.0), torch.relu),
        (PiecewiseLinear(-0.4, 1.0), lambda z: torch.where(z > 0, z, -0.4 * z)),
        (RectifiedPower(2), lambda z: torch.relu(z) ** 2),
    ],
)
def test_what_has_a_closed_form_has_the_same_dual(closed, function):
    """Between correlations of exactly -1 and 1, at variances from 1e-6 to 1e4; the shape of a tile."""
    first, second, c = torch.logspace(-6, 4, 7).double()[:, None, None], torch.logspace(3, -5, 5).double()[None, :, None], torch.linspace(-1, 1, 9).double()
    n = first.sqrt() * second.sqrt()
    at = Arguments(first, second, n * c, n * (1 - c), n * (1 + c), torch.ones(7, 5, 9).double())
    image, expected = Kinked(function, find(function), "s", 1e-6).image(at), closed.image(at)
    size, slope = closed.variance(first).sqrt() * closed.variance(second).sqrt(), closed.image(at._replace(gap=0 * n * c, total=2 * n + 0 * c, cov=n + 0 * c)).tangent
    gap = None if expected.gap is None else expected.factor * expected.gap
    cov = expected.factor * expected.cov if expected.cov is not None else size - gap
    for made, truth, scale in ((image.cov, cov, size), (image.gap, gap, size), (image.tangent, expected.factor * expected.tangent, expected.factor * slope.abs())):
        assert ((made - truth).abs() <= 1e-12 * scale).all()


PLACES = {
    "clamps": (lambda z: (z / 3).clamp(-1 / 3, 0.1), [-1.0, 0.3]), "two near each other": (lambda z: torch.relu(z) - torch.relu(z - 0.03), [0.0, 0.03]),
    "of the slope's slope": (lambda z: torch.relu(z - 0.3) ** 2, [0.3]), "of a tanh": (lambda z: (torch.tanh(z.abs()) - 0.5).abs(), [-math.atanh(0.5), 0.0, math.atanh(0.5)]),
    "jumps": (lambda z: torch.where(z > 1.7, 2.0, torch.sigmoid(z)), [1.7]), "none": (torch.tanh, []), "none, steep": (lambda z: torch.tanh(30 * z), []),
    "none that counts": (nn.Softplus(), []), "not smooth beside it": (lambda z: z.abs().sqrt(), []), "too many": (torch.round, []),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_kinks_are_found(name):
    function, places = PLACES[name]
    assert [kink.at for kink in find(function)] == pytest.approx(places, abs=1e-12)


SAME = {
    "elu": (lambda x: torch.where(x > 0, x, torch.expm1(x)), nn.ELU()), "hardswish": (lambda x: x * (x + 3).clamp(0, 6) / 6, nn.Hardswish()), "relu6": (lambda x: torch.relu(x) - torch.relu(x - 6), nn.ReLU6()),
    "hardtanh": (lambda x: torch.minimum(torch.relu(x + 1), 2 * torch.sign(x * 0 + 1)) - 1, nn.Hardtanh()), "softshrink": (lambda x: x - x.clamp(-0.5, 0.5), nn.Softshrink()),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_an_expression_with_kinks_is_its_module(name):
    """To 1e-10, in float32 to 1e-5, with an input of zeros, copies, multiples and near copies, through two layers."""
    x = torch.randn(6, 5, generator=chance.generator(0), dtype=torch.float64)
    x = torch.cat([x, torch.zeros(1, 5), x[:1], -x[:1], 2 * x[:1], x[:1] + 1e-9 * x[1:2]]).double()
    module = mlp(SAME[name][1])
    made, expected, biased, single = (
        torch.stack(infinite_width(network, weight_variance=1.5, bias_variance=bias)(data, kind=BOTH))
        for network, bias, data in ((mlp(Do(SAME[name][0])), 0.0, x), (module, 0.0, x), (module, 0.1, x), (module, 0.1, x.float()))
    )
    assert torch.isfinite(made).all()
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)
    assert all(float(torch.linalg.eigvalsh(one).min()) >= -1e-9 * float(one.max()) for one in (made, biased))
    torch.testing.assert_close(single.double(), biased, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.SELU(), nn.Hardtanh(), nn.Hardshrink()], ids=lambda one: type(one).__name__)
def test_wide_networks_have_this_covariance(activation):
    """The second layer's mean squares over 40 networks of 400 units, within 4.5 standard errors and the next order in the width."""
    generator, width, networks = chance.generator(3), 400, 40
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(5, width), activation, nn.Linear(width, width), activation, nn.Linear(width, 1))
    expected = infinite_width(network, weight_variance=1.5, bias_variance=0.1)(x)
    found = []
    for _ in range(networks):
        features = x
        for fan_in in (5, width):
            weight, bias = torch.randn(width, fan_in, generator=generator, dtype=torch.float64), torch.randn(width, generator=generator, dtype=torch.float64)
            features = activation(features @ weight.T * math.sqrt(1.5 / fan_in) + bias * math.sqrt(0.1))
        found.append(1.5 * features @ features.T / width + 0.1)
    samples = torch.stack(found)
    error = samples.std(0) / math.sqrt(networks)
    assert ((samples.mean(0) - expected).abs() <= 4.5 * error + expected.diagonal().max() / width).all()


def test_a_series_that_would_not_be_exact_enough_is_refused():
    """An exponential of a scale far below the variance: the number is said."""
    network = mlp(nn.CELU(0.02))
    with pytest.raises(OutOfScope, match="celu.*Hermite series of 768 terms leaves .*larger `tolerance`"):
        infinite_width(network, weight_variance=2.0)(torch.randn(3, 5, generator=chance.generator(0)))
