"""Learning curves of kernel regression: against closed cases and against regression on Gaussian features."""

import math

import numpy as np
import pytest

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.theory.eigenlearning import implicit_ridge, learning_curve, modes

MODES = 40
VALUES = np.arange(1, MODES + 1) ** -1.5
POWER = np.arange(1, MODES + 1) ** -2.0


def test_white_spectra_have_closed_forms():
    """All eigenvalues 1: a fraction n/M of every mode is learned without a ridge; with one the equation for k is quadratic."""
    white, power = np.ones(MODES), np.ones(MODES) / MODES
    np.testing.assert_allclose(learning_curve(white, power, [10, 20, 30]).value, [0.75, 0.5, 0.25], rtol=1e-10)
    for n, ridge in ((10, 0.5), (60, 2.0)):
        b = MODES + ridge - n
        k = (b + math.sqrt(b * b + 4 * n * ridge)) / (2 * n)
        assert implicit_ridge(white, n, ridge=ridge) == pytest.approx(k, rel=1e-10)
        learned = 1 / (1 + k)
        error = n / (n - MODES * learned**2) * ((1 - learned) ** 2 + 0.3)
        found = learning_curve(white, power, [n], ridge=ridge, noise=0.3)
        assert float(found) == pytest.approx(error, rel=1e-10)
        assert found.details["train"][0] == pytest.approx((ridge / (n * k)) ** 2 * error, rel=1e-9)


def test_more_examples_than_modes_are_least_squares():
    found = learning_curve(VALUES, POWER, [50, 200], noise=0.2)
    np.testing.assert_allclose(found.value, [0.2 * n / (n - MODES) for n in (50, 200)], rtol=1e-12)
    np.testing.assert_allclose(found.details["train"], [0.2 * (n - MODES) / n for n in (50, 200)], rtol=1e-12)
    assert learning_curve(VALUES, POWER, [MODES]).value[0] == 0
    with pytest.raises(OutOfScope, match="as many as there are modes"):
        learning_curve(VALUES, POWER, [MODES], noise=0.1)
    beyond = learning_curve(np.append(VALUES, 0.0), np.append(POWER, 0.5), [50])
    assert float(beyond) == pytest.approx(0.5 * 50 / (50 - MODES), rel=1e-12)


def test_the_draw_without_replacement_of_a_pool_s_examples():
    """A kernel that tells every example of a pool from all others and no more: nothing is learned of those that are left."""
    n = 30
    values, power = modes(np.eye(n), np.ones(n))
    np.testing.assert_allclose(values, 1 / n)
    assert power.sum() == pytest.approx(1)
    np.testing.assert_allclose(learning_curve(values, power, [5, 20], population=n).value, [1.0, 1.0], rtol=1e-10)


def test_modes_make_the_kernel_and_the_targets():
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((30, 6)), rng.standard_normal((30, 2))
    values, power = modes(features @ features.T, targets)
    np.testing.assert_allclose(values[:6], np.linalg.svd(features, compute_uv=False) ** 2 / 30)
    assert (values[6:] == 0).all()
    assert power.sum() == pytest.approx((targets**2).sum(1).mean())
    inside = features @ np.linalg.lstsq(features, targets, rcond=None)[0]
    assert power[:6].sum() == pytest.approx((inside**2).sum(1).mean())


@pytest.mark.parametrize(("ridge", "noise"), [(0.0, 0.0), (0.05, 0.1), (1.0, 0.0)])
def test_regression_on_gaussian_features_has_the_predicted_errors(ridge, noise):
    """Means over 400 training sets; the corrections to the mean are of order 1/n, for which 1.5/n is allowed, and four standard errors."""
    rng, sizes = np.random.default_rng(1), (10, 20, 30)
    found = learning_curve(VALUES, POWER, sizes, ridge=ridge, noise=noise)
    for n, predicted, train in zip(sizes, found.value, found.details["train"], strict=True):
        z = rng.standard_normal((400, n, MODES))
        y = z @ np.sqrt(POWER) + math.sqrt(noise) * rng.standard_normal((400, n))
        features = z * np.sqrt(VALUES)
        gram = features @ features.mT
        solved = np.linalg.solve(gram + ridge * np.eye(n), y[..., None])
        off = np.sqrt(VALUES) * (features.mT @ solved)[..., 0] - np.sqrt(POWER)
        test, fitted = (off**2).sum(1) + noise, ((y[..., None] - gram @ solved) ** 2).mean((1, 2))
        assert abs(test.mean() - predicted) < 1.5 / n * predicted + 4 * test.std() / 20
        assert abs(fitted.mean() - train) < 1.5 / n * train + 4 * fitted.std() / 20 + 1e-9


def test_bad_input_is_refused():
    for arguments in (([-1.0, 1.0], 3), ([0.0], 3), ([math.nan], 3), ([], 3)):
        with pytest.raises(InvalidInput, match="Eigenvalues must be finite"):
            implicit_ridge(*arguments)
    with pytest.raises(InvalidInput, match="above 0 and the ridge"):
        implicit_ridge([1.0], 0)
    with pytest.raises(InvalidInput, match="As many squares"):
        learning_curve([1.0], [1.0, 2.0], [3])
    with pytest.raises(InvalidInput, match="below the population"):
        learning_curve([1.0], [1.0], [3], population=3)
    with pytest.raises(InvalidInput, match="all finite"):
        modes(np.eye(3), np.ones(2))
