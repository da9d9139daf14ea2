"""Intervals cover the truth as often as they say; open where nothing else is honest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.statistics import (
    bootstrap,
    crossing,
    finite_population_factor,
    kendall_pseudo_values,
    parabola_minimum,
    ratio_of_means,
    student_interval,
    student_quantile,
    welch,
)


def test_closed_forms():
    assert student_quantile(0.975, 4) == pytest.approx(2.7764451)
    assert student_quantile(0.975, math.inf) == pytest.approx(1.9599640)
    samples = [1.0, 2.0, 4.0, 5.0]
    result = student_interval(samples)
    reference = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    assert result.interval == pytest.approx((reference.low, reference.high))
    other = [0.0, 1.0, 1.5, 0.3, 2.0]
    reference = stats.ttest_ind(samples, other, equal_var=False).confidence_interval(0.95)
    assert welch(samples, other).interval == pytest.approx((reference.low, reference.high))


def test_finite_population():
    assert finite_population_factor(10, None) == 1
    assert finite_population_factor(10, 10) == 0
    population = np.random.default_rng(0).standard_normal(40)
    hits = sum(
        low <= population.mean() <= high
        for low, high in (student_interval(np.random.default_rng(i).choice(population, 30, replace=False), population=40).interval for i in range(1000))
    )
    assert 930 <= hits <= 970
    with pytest.raises(InvalidInput, match="without replacement"):
        finite_population_factor(11, 10)


@pytest.mark.parametrize(("n", "mean"), [(8, 3.0), (8, 0.7), (20, 0.3), (16, 0.05)])
def test_fieller_covers_the_ratio(n, mean):
    """Also where the denominator is lost in noise: then the interval is open."""
    hits = opened = 0
    for trial in range(1000):
        rng = np.random.default_rng(trial)
        shared = rng.standard_normal(n)
        result = ratio_of_means(5 * mean + 0.5 * shared + 0.2 * rng.standard_normal(n), mean + shared)
        hits += result.interval[0] <= 5 <= result.interval[1]
        opened += math.isinf(result.interval[1])
    assert 930 <= hits <= 1000
    assert (opened == 0) == (mean == 3.0)


def test_fieller_is_the_set_that_the_test_does_not_reject():
    rng = np.random.default_rng(3)
    up, down = rng.standard_normal(12) + 9, rng.standard_normal(12) + 2
    result = ratio_of_means(up, down)
    for end in result.interval:
        assert stats.ttest_1samp(up - end * down, 0).pvalue == pytest.approx(0.05, rel=1e-6)
    assert result.value == pytest.approx(up.mean() / down.mean())
    assert result.interval[0] < result.value < result.interval[1]
    lost = ratio_of_means(rng.standard_normal(12) * 0.1 + 3, rng.standard_normal(12) * 0.1 + 0.01)
    assert lost.interval[0] > 0
    assert lost.interval[1] == math.inf
    assert ratio_of_means([-1.0, -1.1], [0.1, -0.1]).interval == pytest.approx((-math.inf, ratio_of_means([-1.0, -1.1], [0.1, -0.1]).interval[1]))
    assert ratio_of_means([2.0, 2.0], [1.0, 1.0]).interval == pytest.approx((2.0, 2.0))
    negative = ratio_of_means([1.0, 1.1, 0.9], [-1.0, -1.1, -0.9])
    assert negative.value == math.inf
    assert negative.interval == (-math.inf, math.inf)
    with pytest.raises(InvalidInput, match="paired"):
        ratio_of_means([1.0, 2.0], [1.0, 2.0, 3.0])


def test_bootstrap_covers_a_variance():
    hits = 0
    for trial in range(200):
        samples = np.random.default_rng(trial).standard_normal(80)
        low, high = bootstrap(samples, lambda x: float(x.var(ddof=1)), rng=chance.generator(trial), draws=400).interval
        hits += low <= 1 <= high
    assert 178 <= hits <= 198
    assert bootstrap(np.ones(5), lambda x: float(x.mean()), rng=chance.generator(0)).interval == (1, 1)
    with pytest.raises(InvalidInput):
        bootstrap(np.ones(1), lambda x: float(x.mean()), rng=chance.generator(0))


def test_kendall_pseudo_values_have_the_correlation_as_mean_and_cover_it():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 12))
    values = kendall_pseudo_values(x, y)
    assert values.mean() == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    without = [stats.kendalltau(np.delete(x, i), np.delete(y, i)).statistic for i in range(12)]
    assert values == pytest.approx(12 * values.mean() - 11 * np.array(without), abs=1e-12)
    truth, hits = 2 / math.pi * math.asin(0.6), 0
    for _ in range(1000):
        a, b = rng.standard_normal((2, 24))
        low, high = student_interval(kendall_pseudo_values(a, 0.6 * a + 0.8 * b)).interval
        hits += low <= truth <= high
    assert 920 <= hits <= 980
    with pytest.raises(InvalidInput, match="at least 3"):
        kendall_pseudo_values([1.0, 2.0], [1.0, 2.0])


def test_the_minimum_of_a_parabola():
    x = np.array([0.0, 1.0, 3.0, 4.0])
    assert parabola_minimum(x, (x - 1.7) ** 2 + 3) == pytest.approx(1.7)
    assert parabola_minimum(x, x) == 0
    assert parabola_minimum(x, -x) == 4
    with pytest.raises(InvalidInput, match="three points"):
        parabola_minimum(x[:2], x[:2])


def test_where_values_fall_below_a_level():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([5.0, 4.0, 0.0])
    assert crossing(x, y, 3.0) == pytest.approx(2.5)
    assert crossing(x, y, 9.0) == 1
    assert crossing(x, y, -1.0) == 4
