"""Gaussian expectations against closed forms (Cho and Saul's arc-cosine kernels, error functions) and an adaptive library routine."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate

from gnomon.core.errors import InvalidInput
from gnomon.numerics.quadrature import gaussian_expectation, gaussian_expectation_2


def check(result, exact, tolerance=1e-12):
    assert abs(result.value - exact) <= tolerance * max(abs(exact), 1e-3), (result, exact)
    assert result.error <= 1e-10 * max(abs(exact), 1e-3)
    assert abs(result.value - exact) <= 10 * result.error + 1e-15


@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 7.0, 1e4])
def test_one_variable(q):
    check(gaussian_expectation(lambda z: F.relu(z) ** 2, q), q / 2)
    check(gaussian_expectation(lambda z: (z > 0).double(), q), 0.5)
    check(gaussian_expectation(lambda z: F.relu(z), q), math.sqrt(q / (2 * math.pi)))
    check(gaussian_expectation(lambda z: z**4, q), 3 * q * q)
    check(gaussian_expectation(lambda z: torch.erf(z) ** 2, q), 2 / math.pi * math.asin(2 * q / (1 + 2 * q)))
    check(gaussian_expectation(torch.cos, q), math.exp(-q / 2)) if q < 100 else None
    check(gaussian_expectation(lambda z: z.abs(), q, mean=2.0), 2 * math.sqrt(q / 2 / math.pi) * math.exp(-2 / q) + 2 * math.erf(2 / math.sqrt(2 * q)))


def test_kinks_that_are_not_declared_are_found():
    clipped = gaussian_expectation(lambda z: z.clamp(-1, 1) ** 2, 2.0)
    density = lambda z: math.exp(-z * z / 4) / math.sqrt(4 * math.pi)  # noqa: E731
    exact = 2 * (integrate.quad(lambda z: z * z * density(z), 0, 1, epsabs=1e-15)[0] + integrate.quad(density, 1, math.inf, epsabs=1e-15)[0])
    check(clipped, exact)
    jump = gaussian_expectation(lambda z: (z > 0.7).double(), 1.0)
    assert jump.value == pytest.approx(0.5 * math.erfc(0.7 / math.sqrt(2)), abs=1e-12)


@pytest.mark.parametrize("q", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("correlation", [-1.0, -0.7, 0.0, 0.5, 0.99, 1 - 1e-6, 1 - 1e-12, 1.0])
def test_two_variables(q, correlation):
    k11, k22 = q, 2 * q
    k12 = correlation * math.sqrt(k11 * k22)
    angle = math.acos(min(max(correlation, -1.0), 1.0))
    scale = math.sqrt(k11 * k22)
    arc = scale / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle))
    # The correlation itself is rounded: near -1 its error is magnified.
    check(gaussian_expectation_2(F.relu, k11, k12, k22), arc, 1e-11)
    step = gaussian_expectation_2(lambda z: (z > 0).double(), k11, k12, k22)
    assert step.value == pytest.approx((math.pi - angle) / (2 * math.pi), abs=2e-8 if abs(correlation) > 0.9999 else 1e-12)
    check(gaussian_expectation_2(torch.erf, k11, k12, k22), 2 / math.pi * math.asin(2 * k12 / math.sqrt((1 + 2 * k11) * (1 + 2 * k22))), 1e-11)


def test_two_functions_and_no_variance():
    check(gaussian_expectation_2(F.relu, 1.0, 0.4, 2.0, other=lambda z: z), 0.4 / 2)
    check(gaussian_expectation_2(torch.cos, 0.0, 0.0, 2.0), math.exp(-1))
    check(gaussian_expectation_2(torch.cos, 2.0, 0.0, 0.0), math.exp(-1))
    check(gaussian_expectation(torch.cos, 0.0, mean=1.0), math.cos(1))
    clipped = gaussian_expectation_2(lambda z: z.clamp(-1, 1), 2.0, 1.5, 3.0, breaks=(-1.0, 1.0))
    reference = integrate.dblquad(
        lambda y, x: max(-1, min(1, math.sqrt(2) * x)) * max(-1, min(1, 1.5 / math.sqrt(2) * x + math.sqrt(3 - 1.125) * y)) * math.exp(-(x * x + y * y) / 2) / (2 * math.pi),
        -7, 7, -7, 7, epsabs=1e-6,
    )[0]  # fmt: skip
    assert clipped.value == pytest.approx(reference, abs=1e-5)


def test_errors_are_not_hidden():
    missed = gaussian_expectation_2(lambda z: (z > 0.3).double(), 1.0, 0.5, 1.0)
    declared = gaussian_expectation_2(lambda z: (z > 0.3).double(), 1.0, 0.5, 1.0, breaks=(0.3,))
    assert declared.error < 1e-12
    assert abs(missed.value - declared.value) < 10 * missed.error
    grows = gaussian_expectation(lambda z: torch.exp(z * z / 2.001), 1.0)
    assert grows.error > 0.05 * grows.value
    with pytest.raises(InvalidInput, match="variance"):
        gaussian_expectation(torch.cos, -1.0)
    with pytest.raises(InvalidInput, match="not a covariance"):
        gaussian_expectation_2(torch.cos, 1.0, 2.0, 1.0)
    with pytest.raises(InvalidInput, match="not finite"):
        gaussian_expectation(torch.log, 1.0)
    with pytest.raises(InvalidInput, match="each number by itself"):
        gaussian_expectation(lambda z: z.sum(), 1.0)


def test_a_function_in_single_precision_ends_with_an_error_that_says_so():
    """Halving panels does not help where values are rounded: it stops, and the stated error covers the gap to the same function in double precision."""
    calls = 0

    def rounded(z):
        nonlocal calls
        calls += z.numel()
        return torch.tanh(z.float()).to(z.dtype) ** 2

    found, exact = gaussian_expectation(rounded, 1.7), gaussian_expectation(lambda z: torch.tanh(z) ** 2, 1.7)
    assert abs(found.value - exact.value) <= found.error + exact.error
    assert found.error < 1e-6
    assert calls < 1e6
    # many periods need many panels, and are no rounding
    fast = gaussian_expectation(lambda z: torch.sin(30 * z) ** 2, 1e4)
    assert abs(fast.value - 0.5) <= fast.error < 1e-7
