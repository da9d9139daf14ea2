"""First-order tensors of activations with kinks anywhere: nested quadrature, closed forms, scrambled points, coarser and finer rules, real networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.numerics import nodes
from gnomon.theory import first_order
from gnomon.theory.exact_sources import exact_sources
from gnomon.theory.pairs import KINDS, _between, _closed, pair_moments, smoothness
from gnomon.theory.pieces import Piecewise
from gnomon.theory.piecewise_sources import piecewise_sources
from gnomon.theory.sources import sources
from gnomon.theory.tensors import tensors

RANDOM = np.random.default_rng(3).normal(size=(5, 6))


def clamped(z):
    return (1.3 * z).clamp(-0.4, 1.7)


def bent(z):
    return F.gelu(z) + 0.3 * (z + 0.7).abs()


def test_two_inputs_of_a_clamp_by_nested_quadrature():
    """All that a clamp is made of, written out: s, its slope between the kinks, deltas of a^2/2 sign at them."""
    k, a, ends = np.array([[0.8, 0.5], [0.5, 1.4]]), 1.3, (-0.4 / 1.3, 1.7 / 1.3)
    table = pair_moments(clamped, k, 1)[0]
    found = piecewise_sources(Piecewise.of(clamped), k, table, order=2, digits=11)

    def s(z):
        return min(max(a * z, -0.4), 1.7)

    def given(f, at, variance, mean):
        def weighted(z):
            return f(z) * math.exp(-((z - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

        edges = [-12.0, *ends, 12.0]
        return sum(integrate.quad(weighted, low, high, epsabs=1e-12, epsrel=1e-11)[0] for low, high in itertools.pairwise(edges) if at(low, high))

    everywhere, inside = (lambda low, high: True), (lambda low, high: low == ends[0])
    rest, slope = 1.4 - 0.25 / 0.8, 0.5 / 0.8
    # <q_0 p_0 s_1 p_1>: the derivative of p^2/2 is a^2/2 at the lower kink and -a^2/2 at the upper
    truth = sum(sign * a**2 / 2 * math.exp(-(t**2) / 1.6) / math.sqrt(1.6 * math.pi) * a * given(s, inside, rest, slope * t) for t, sign in zip(ends, (1, -1), strict=True))
    assert found.qspp[0, 1, 0, 1] == pytest.approx(truth, rel=1e-9)
    truth = given(lambda z: s(z) ** 2 * given(lambda y: s(y) ** 2, everywhere, rest, slope * z), everywhere, 0.8, 0.0)
    assert found.ssss[0, 0, 1, 1] + table[0, 0][0, 0] * table[0, 0][1, 1] == pytest.approx(truth, rel=1e-9)
    truth = given(lambda z: s(z) * a**2 * given(s, inside, rest, slope * z), inside, 0.8, 0.0)
    assert found.full_sspp[0, 1, 0, 1] == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("correlation", [0.4, -0.95, 0.998])
def test_pairs_by_a_product_rule_have_their_closed_forms(correlation):
    """ReLU's, deltas and their derivatives at both inputs included."""
    cross = correlation * math.sqrt(0.7 * 1.9)
    k = np.array([[0.7, cross], [cross, 1.9]])
    broken = Piecewise.of(torch.relu)
    found, error = _between(broken, k, [[broken.pieces(own, order=2, digits=digits) for own in (0.7, 1.9)] for digits in (13.0, 15.0)])
    truth = _closed((1.0, 0.0), k)
    assert error < 1e-10
    for kind in KINDS:
        assert abs(found[kind] - truth[kind])[[0, 1], [1, 0]].max() <= (error + 1e-13) * np.abs(truth[kind]).max(), kind


@pytest.mark.parametrize(("function", "smooth"), [(clamped, 1), (F.hardswish, 1), (F.elu, 2), (bent, 1)])
def test_four_inputs_by_scrambled_points(function, smooth):
    """Points know nothing of where kinks are: bends are taken away by parts.  Within six standard errors of 16 scrambles, which 500 numbers miss once in a hundred times."""
    k, count = RANDOM[:4] @ RANDOM[:4].T / 6, 2**12
    table, root = pair_moments(function, k, smooth)[0], np.linalg.cholesky(k)
    found = piecewise_sources(Piecewise.of(function), k, table, order=2, digits=9)
    own = k if smooth == 1 else None
    sampled = [sources(function, nodes.sobol(4, count, rng=chance.generator(index)) @ root.T, np.full(count, 1 / count), table, order=2, kernel=own) for index in range(16)]
    for name in ("ssss", "sspp", "pppp", "qspp"):
        each = np.stack([getattr(part, name) for part in sampled])
        error = each.std(0, ddof=1) / 4
        assert error.max() < 0.01 * np.abs(getattr(found, name)).max(), name
        assert (np.abs(each.mean(0) - getattr(found, name)) <= 6 * error + 1e-12).all(), name


def test_four_inputs_of_a_smooth_function_by_its_series():
    """Cut where it has no kinks, GELU has the expectations of its Hermite series."""
    k = RANDOM[:4] @ RANDOM[:4].T / 12
    table = pair_moments(F.gelu, k, 3)[0]
    found = piecewise_sources(Piecewise(F.gelu, ((-0.7, 0.0, 0.0, 0.0), (0.4, 0.0, 0.0, 0.0))), k, table, order=2, digits=9)
    assert found.distance(exact_sources(F.gelu, k, table, order=2, digits=10)[1]) < 1e-8


@pytest.mark.parametrize(("function", "depth"), [(F.hardtanh, 4), (F.hardsigmoid, 3), (bent, 2)])
def test_the_stated_error_holds_a_finer_rule(function, depth):
    settings = {"inputs": RANDOM[:3], "depth": depth, "weight_variance": 1.7, "bias_variance": 0.1, "through": "dntk"}
    coarse, fine = (tensors(function, tolerance=tolerance, **settings) for tolerance in (1e-4, 1e-8))
    assert coarse.scrambles == fine.scrambles == 0
    for name in first_order.names("dntk"):
        assert fine.relative_error(name) <= 1e-8
        assert (np.abs(coarse.value(name) - fine.value(name)) <= coarse.errors[name] + fine.errors[name]).all(), name


def test_kinks_that_are_slight_and_inputs_that_are_nearly_dependent():
    assert smoothness(lambda z: torch.tanh(z) + 0.01 * F.relu(z - 0.4)) == 1
    settings = {"activation": F.hardtanh, "depth": 2, "weight_variance": 1.5, "through": "dntk"}
    near = tensors(inputs=np.array([[1.0, 0.0], [1.0, 0.06]]), **settings)
    assert near.scrambles == 0
    assert max(near.relative_error(name) for name in near.errors) <= 1e-8
    with pytest.raises(OutOfScope, match="inputs 0 and 1 have come so close"):
        tensors(inputs=np.array([[1.0, 0.0], [1.0, 1e-3]]), **settings)
