"""Critical points, universality classes and the phase diagram, against closed forms, brute recursion and real networks."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special
from scipy.interpolate import CubicSpline
from torch import nn
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.ensemble import draw_preactivations
from gnomon.theory import phases
from gnomon.theory.effective import critical_point


def dense(function, kernel, panels=4001):
    """<f>_K by the trapezoid rule on a fixed fine grid, in numpy: a second method."""
    z = np.linspace(-12, 12, panels)
    return integrate.trapezoid(function(math.sqrt(kernel) * z) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), z)


# --- critical points


@pytest.mark.parametrize(("function", "slopes"), [(torch.relu, (1, 0)), (nn.LeakyReLU(0.3), (1, 0.3)), (lambda z: z, (1, 1)), (torch.abs, (1, -1))])
def test_scale_invariant_activations_are_critical_at_every_kernel(function, slopes):
    found = critical_point(function)
    two, four = sum(s**2 for s in slopes) / 2, sum(s**4 for s in slopes) / 2
    assert (found.kind, found.bias_variance, found.attracts) == ("scale-invariant", 0.0, "")
    assert found.weight_variance == pytest.approx(1 / two, rel=1e-14)
    assert found.exponents.vertex_slope == pytest.approx(3 * four / two**2 - 1)


def test_gelu_is_critical_where_its_closed_form_says():
    """<s^2> = K/4 [1 + (2/pi) asin(K/(1+K)) + (4/pi) K / ((1+K) sqrt(1+2K))]; <s s''> = 0 comes to K^2 - 3K - 2 = 0."""
    found = critical_point(F.gelu)
    k = (3 + math.sqrt(17)) / 2
    square = k / 4 * (1 + 2 / math.pi * math.asin(k / (1 + k)) + 4 / math.pi * k / ((1 + k) * math.sqrt(1 + 2 * k)))

    def slope_square(z):
        return (special.ndtr(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)) ** 2

    c_w = 1 / dense(slope_square, k)
    assert found.kind == "half-stable"
    assert found.kernel == pytest.approx(k, rel=1e-11)
    assert found.weight_variance == pytest.approx(c_w, rel=1e-10)
    assert found.bias_variance == pytest.approx(k - c_w * square, rel=1e-9)
    assert (found.weight_variance, found.bias_variance) == pytest.approx((1.98305826, 0.17292239), abs=5e-9), "the setting of ntkunlimited's examples"
    assert found.error < 1e-10


def test_swish_is_critical_where_a_dense_rule_says():
    found = critical_point(F.silu)

    def parts(z):
        sigma = special.expit(z)
        return z * sigma, sigma * (1 + z * (1 - sigma)), sigma * (1 - sigma) * (2 + z * (1 - 2 * sigma))

    k = optimize.brentq(lambda k: dense(lambda z: parts(z)[0] * parts(z)[2], k), 5, 30, xtol=1e-12)
    c_w = 1 / dense(lambda z: parts(z)[1] ** 2, k)
    assert (found.kernel, found.weight_variance) == pytest.approx((k, c_w), rel=1e-9)
    assert found.bias_variance == pytest.approx(k - c_w * dense(lambda z: parts(z)[0] ** 2, k), rel=1e-8)


@pytest.mark.parametrize(
    ("function", "start", "settles"),
    [
        (lambda z: z + torch.sin(z) ** 2, 0.2, True),
        (lambda z: torch.tanh(z) ** 3, 0.38, True),
        (lambda z: z * torch.sigmoid(1.7 * z), None, True),
        (F.mish, 5.0, False),
    ],
)
def test_what_runs_away_settles_at_the_next_kernel_that_stays(function, start, settles):
    """By the recursion itself, layer by layer; that of SiLU is slower than any patience, but stretching its argument by b divides every kernel by b^2."""
    found = critical_point(function)
    if start is None:
        silu = critical_point(F.silu)
        assert (found.kernel, found.neighbour) == pytest.approx((silu.kernel / 1.7**2, silu.neighbour / 1.7**2), rel=1e-6)
        return
    kernel = start
    for _ in range(1500):
        kernel = min(found.bias_variance + found.weight_variance * dense(lambda z: function(torch.from_numpy(z)).numpy() ** 2, kernel, panels=401), 1e6)
    assert found.neighbour == (pytest.approx(kernel, rel=1e-5) if settles else None)
    assert settles or kernel > 100 * found.kernel


@pytest.mark.parametrize(("function", "third"), [(torch.tanh, -2.0), (torch.sin, -1.0), (torch.arctan, -2.0), (lambda z: torch.tanh(2 * z) / 2, -8.0)])
def test_the_class_of_tanh(function, third):
    """C_W g(K)/K = 1 + (s'''/s') K + ..., and chi_perp falls by the same: K = 1/(|s'''/s'| l), exponents 1, 2 and 1, V/(nK^2) = 2l/(3n)."""
    found = critical_point(function)
    assert (found.kind, found.kernel, found.weight_variance, found.bias_variance, found.attracts) == ("zero", 0.0, pytest.approx(1, abs=1e-14), 0.0, "above")
    exponents = found.exponents
    assert (exponents.kernel, exponents.parallel) == (1, 2)
    assert (exponents.perpendicular, exponents.rate) == pytest.approx((1, -third), rel=1e-6)
    assert exponents.vertex_slope == pytest.approx(2 / 3, rel=1e-12)


@pytest.mark.parametrize(("function", "power"), [(torch.tanh, 1.0), (torch.sin, 1.0), (F.elu, 0.5), (F.softsign, 0.5), (F.selu, 0.5)])
def test_brute_recursion_decays_as_the_exponents_say(function, power):
    """20,000 layers by the recursion itself, tabulated; the first correction to the power law is of relative order log(l)/l."""
    found = critical_point(function)
    logs = np.linspace(math.log(1e-13), 0, 400)
    excess = CubicSpline(logs, [_ratio(function, found.weight_variance, math.exp(x)) for x in logs])
    k, layers = 0.5, 20_000
    for _ in range(layers):
        k *= 1 + float(excess(math.log(k)))
    exponents = found.exponents
    assert exponents.kernel == pytest.approx(1 / power)
    assert k == pytest.approx((exponents.rate * layers) ** -exponents.kernel, rel=0.02)


def _ratio(function, c_w, kernel):
    """C_W g(K)/K - 1 by Gauss-Legendre on either side of 0."""
    x, w = np.polynomial.legendre.leggauss(120)
    u = torch.from_numpy(6 * (x + 1))
    density = torch.exp(-(u**2) / 2) * 6 / math.sqrt(2 * math.pi) * torch.from_numpy(w)
    total = sum((density * (c_w * function(side * math.sqrt(kernel) * u) ** 2 / kernel - u**2)).sum() for side in (1, -1))
    return float(total)


def test_linear_near_zero_is_the_limit_of_the_class():
    found = critical_point(F.hardtanh)
    assert (found.kind, found.weight_variance, found.attracts, found.exponents.kernel) == ("zero", 1.0, "above", 0.0)
    assert critical_point(F.relu6).weight_variance == pytest.approx(2)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (torch.sigmoid, "below chi_perp at every kernel.*C_b = .*-4, a negative variance"), (F.softplus, "above chi_perp at every kernel"),
        (lambda z: F.softplus(z) - math.log(2), "K = 0, where they meet, repels"), (lambda z: z**3, "above chi_perp.*slope is 0"),
        (torch.cos, "below chi_perp"), (lambda z: 0 * z, "0 everywhere"), (torch.ones_like, "<s'\\^2> is 0"),
        (torch.exp, "faster than a polynomial"), (torch.sinh, "faster than a polynomial"), (lambda z: torch.exp(z**2 / 100), "faster than a polynomial"),
        (torch.sqrt, "not a number"),
    ],
)  # fmt: skip
def test_where_there_is_no_critical_point_the_reason_is_told(function, says):
    with pytest.raises(OutOfScope, match=says):
        critical_point(function)


def test_what_is_no_activation_is_refused():
    with pytest.raises(InvalidInput, match=r"after `.double\(\)`"):
        critical_point(nn.PReLU())
    with pytest.raises(InvalidInput, match="element by element"):
        critical_point(lambda z: z.sum())


@pytest.mark.parametrize("function", [F.gelu, F.silu, F.mish, F.hardswish])
def test_half_stable_points_attract_one_side_and_lose_the_other(function):
    found = critical_point(function)

    def after(kernel, layers=3):
        for _ in range(layers):
            kernel = found.bias_variance + found.weight_variance * float(phases.expect(lambda z: function(z) ** 2, np.array([kernel]))[0])
        return kernel

    sign = 1 if found.attracts == "above" else -1
    near, far = found.kernel * (1 + sign * 0.005), found.kernel * (1 - sign * 0.005)
    assert abs(after(near) - found.kernel) < abs(near - found.kernel)
    assert abs(after(far) - found.kernel) > abs(far - found.kernel)


# --- phases


def test_susceptibilities_are_one_at_the_critical_point_and_known_for_erf():
    found = critical_point(F.gelu)
    np.testing.assert_allclose(phases.susceptibilities(F.gelu, kernel=found.kernel, weight_variance=found.weight_variance).value, 1, atol=1e-9)
    k, c_w = 0.7, 1.3
    along, across = c_w * 4 / math.pi / ((1 + 2 * k) * math.sqrt(1 + 4 * k)), c_w * 4 / math.pi / math.sqrt(1 + 4 * k)
    np.testing.assert_allclose(phases.susceptibilities(torch.erf, kernel=k, weight_variance=c_w).value, [along, across], rtol=1e-10)
    with pytest.raises(InvalidInput, match="positive"):
        phases.susceptibilities(torch.tanh, kernel=0.0, weight_variance=1.0)


def erf_bias(c_w):
    """C_b on the critical line of erf, from <erf^2> = (2/pi) asin(2K/(1+2K)) and <erf'^2> = (4/pi)/sqrt(1+4K)."""
    k = ((4 * c_w / math.pi) ** 2 - 1) / 4
    return k - c_w * 2 / math.pi * math.asin(2 * k / (1 + 2 * k))


def test_the_critical_line_of_erf_is_its_closed_form():
    line = phases.critical_line(torch.erf)
    np.testing.assert_allclose(line.axes[0].values, [erf_bias(c_w) for c_w in line.value], rtol=1e-6, atol=1e-12)
    assert line.plot() is not None


def test_the_critical_line_of_tanh_starts_at_one_and_passes_where_it_is_known_to():
    line = phases.critical_line(torch.tanh)
    assert np.interp(0.0, line.axes[0].values, line.value) == pytest.approx(1, abs=3e-3)
    assert np.interp(0.05, line.axes[0].values, line.value) == pytest.approx(1.76, abs=0.01), "Schoenholz et al. 2017 use (1.76, 0.05)"


def test_critical_lines_that_are_not_there():
    assert (phases.critical_line(torch.relu).value == 2).all()
    with pytest.raises(OutOfScope, match="no critical line"):
        phases.critical_line(F.softplus)
    with pytest.raises(InvalidInput, match="two points"):
        phases.critical_line(torch.tanh, points=1)


def test_the_phase_diagram_of_erf_divides_where_its_closed_form_does():
    weights, biases = np.linspace(0.5, 3, 11), np.linspace(0.01, 0.4, 7)
    found = phases.phase_diagram(torch.erf, weight_variances=weights, bias_variances=biases)
    for i, bias in enumerate(biases):
        border = optimize.brentq(lambda c_w, bias=bias: erf_bias(c_w) - bias, math.pi / 4 + 1e-9, 10)
        assert found.details["phase"][i] == ["ordered" if c_w < border else "chaotic" for c_w in weights]
    k = optimize.brentq(lambda k: biases[3] + weights[4] * 2 / math.pi * math.asin(2 * k / (1 + 2 * k)) - k, 1e-6, 50, xtol=1e-14)
    assert abs(found.value[3, 4] - weights[4] * 4 / math.pi / math.sqrt(1 + 4 * k)) < found.error[3, 4] + 1e-9
    assert found.error.max() < 1e-3
    assert found.plot() is not None


def test_the_phase_diagram_of_relu_and_bad_settings():
    found = phases.phase_diagram(torch.relu, weight_variances=[1.0, 2.0, 3.0], bias_variances=[0.0, 0.2])
    assert found.details["phase"] == [["ordered", "critical", "chaotic"]] * 2
    with pytest.raises(InvalidInput, match="not negative"):
        phases.phase_diagram(torch.relu, weight_variances=[-1.0], bias_variances=[0.0])
    with pytest.raises(OutOfScope, match="flat"):
        phases.phase_diagram(torch.sign, weight_variances=[1.0], bias_variances=[0.0])


@pytest.mark.parametrize(("c_w", "phase"), [(1.2, "ordered"), (2.6, "chaotic")])
def test_real_networks_forget_or_part_close_inputs_as_the_phase_says(c_w, phase):
    """Two inputs that nearly agree, through 12 layers of 60 tanh networks of 60 units."""
    close = torch.ones(2, 60, dtype=torch.float64)
    close[1, :30] += 0.1
    made = draw_preactivations(torch.tanh, close, depth=12, width=60, members=60, weight_variance=c_w, bias_variance=0.05, rng=chance.generator(0))
    apart = (made[:, :, 0] - made[:, :, 1]).square().mean((1, 2))
    found = phases.phase_diagram(torch.tanh, weight_variances=[c_w], bias_variances=[0.05])
    assert found.details["phase"] == [[phase]]
    growth = float(apart[7] / apart[4]) ** (1 / 3)
    assert (growth > 1) == (phase == "chaotic")
