"""Depth scales of correlations, against the closed forms that the error function has."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.theory.correlation import correlation_depth, correlations, critical_decay, layer_factor, trainable_depth


class Erf:
    """<erf(z) erf(z')> = (2/pi) asin(2k / (1 + 2q)) and what follows of it."""

    def __init__(self, c_w, c_b):
        self.c_w, self.c_b, self.q = c_w, c_b, 1.0
        for _ in range(5000):
            self.q = c_b + c_w * 2 / math.pi * math.asin(2 * self.q / (1 + 2 * self.q))
        self.a = 2 * self.q / (1 + 2 * self.q)

    def map(self, c):
        return (self.c_b + self.c_w * 2 / math.pi * math.asin(self.a * c)) / self.q

    def slope(self, c):
        return self.c_w * 2 / math.pi * self.a / math.sqrt(1 - (self.a * c) ** 2) / self.q

    def half_curvature(self):
        return self.c_w / math.pi * self.a**3 / (1 - self.a**2) ** 1.5 / self.q


@pytest.mark.parametrize(("c_w", "phase"), [(0.9, "ordered"), (2.5, "chaotic")])
def test_the_depth_scale_of_the_error_function_in_both_phases(c_w, phase):
    truth = Erf(c_w, 0.05)
    fixed = 1.0 if phase == "ordered" else brentq(lambda c: truth.map(c) - c, 0.0, 1 - 1e-6)
    found = correlation_depth(torch.erf, weight_variance=c_w, bias_variance=0.05)
    assert found.details["phase"] == phase
    assert found.details["kernel"] == pytest.approx(truth.q, rel=1e-10)
    assert found.details["correlation"] == pytest.approx(fixed, rel=1e-6)
    depth = -1 / math.log(truth.slope(fixed))
    assert abs(float(found) - depth) <= float(found.error) + 1e-9 * depth
    assert float(trainable_depth(torch.erf, weight_variance=c_w, bias_variance=0.05)) == pytest.approx(6 * depth, rel=1e-5)
    seen = correlations(torch.erf, 0.4, depth=4, kernel=truth.q, weight_variance=c_w, bias_variance=0.05)
    path = [0.4]
    for _ in range(3):
        path.append(truth.map(path[-1]))
    np.testing.assert_allclose(seen, path, rtol=1e-8)
    near = layer_factor(torch.erf, (fixed, fixed - 1e-4), first=1, last=4, weight_variance=c_w, bias_variance=0.05)
    assert near == pytest.approx(truth.slope(fixed), rel=1e-3)


def test_at_criticality_the_approach_is_a_power():
    found = critical_decay(torch.erf, bias_variance=0.05)
    truth = Erf(found.details["weight_variance"], 0.05)
    assert truth.slope(1.0) == pytest.approx(1.0, abs=1e-7)
    assert float(found) == pytest.approx(truth.half_curvature(), rel=1e-6)
    with pytest.raises(OutOfScope, match="the network is critical"):
        correlation_depth(torch.erf, weight_variance=found.details["weight_variance"], bias_variance=0.05)


def test_what_has_no_depth_scale_is_refused():
    with pytest.raises(InvalidInput, match="C_W must be above 0"):
        correlation_depth(torch.tanh, weight_variance=-1.0, bias_variance=0.0)
    with pytest.raises(OutOfScope, match="no kernel stays"):
        correlation_depth(torch.tanh, weight_variance=0.5, bias_variance=0.0)
    with pytest.raises(OutOfScope, match="no weight variance is critical"):
        critical_decay(torch.tanh, bias_variance=0.0)
