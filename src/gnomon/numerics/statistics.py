"""Intervals that instruments need: Student's and normal, bootstrap, Welch, ratios of means, sampling from a finite population."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Real
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput

Array = NDArray[np.float64]

DOMINANT = 0.15
"""A part of the squared deviations that one sample has only where the tail is longer than the samples reach."""
TAIL = 100
"""Fewer samples say nothing of a tail."""


class Estimate(NamedTuple):
    """A value with its standard error and its interval; an end of the interval may be infinite."""

    value: float
    error: float
    interval: tuple[float, float]


def student_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t; the normal one for infinitely many degrees of freedom."""
    # scipy.stats gives the same numbers a hundred times slower, which counts where readings are taken during a training
    return float(special.stdtrit(degrees, probability) if math.isfinite(degrees) else special.ndtri(probability))


def _samples(samples: ArrayLike) -> Float64[Array, "n"]:
    drawn = np.asarray(samples, dtype=np.float64)
    if drawn.ndim != 1 or len(drawn) < 2:
        raise InvalidInput(f"At least two samples in one dimension are needed for an error; an array of shape {drawn.shape} came.")
    return drawn


def student_interval(samples: ArrayLike, level: float = 0.95, *, population: int | None = None) -> Estimate:
    """The mean of samples, its standard error s / sqrt(n) and Student's t interval; with `population`, for n drawn without replacement out of so many.

    Shapes: samples (n,), n >= 2.   Assumes: samples are independent and near normal, or many.   Raises: InvalidInput for fewer than two samples.
    """
    drawn = _samples(samples)
    mean, error = float(drawn.mean()), float(drawn.std(ddof=1)) / math.sqrt(len(drawn))
    error *= finite_population_factor(len(drawn), population)
    half = student_quantile(0.5 + level / 2, len(drawn) - 1) * error
    return Estimate(mean, error, (mean - half, mean + half))


def skewed_interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of samples from a skewed distribution: Student's t after a cubic transformation that removes the skewness of the studentised mean.

    g(T) = T + c T^2 / 3 + c^2 T^3 / 27 + c / (6 n) with T = (mean - mu) / s and the sample's skewness c; sqrt(n) g(T) is nearly normal, and
    g^-1(y) = 3 ((1 + c (y - c / (6 n)))^(1/3) - 1) / c.   Without skewness it is Student's interval.

    Shapes: samples (n,), n >= 2.   Assumes: samples are independent.   Raises: InvalidInput for fewer than two samples.   Source: Hall 1992.
    """
    drawn = _samples(samples)
    n, mean, spread = len(drawn), float(drawn.mean()), float(drawn.std(ddof=1))
    half = student_quantile(0.5 + level / 2, n - 1) / math.sqrt(n)
    skew = float(stats.skew(drawn, bias=False)) if n > 2 and spread > 1e-12 * abs(mean) else 0.0
    if abs(skew) < 1e-6:
        return mean - half * spread, mean + half * spread
    ends = [3 / skew * (float(np.cbrt(1 + skew * (y - skew / (6 * n)))) - 1) for y in (half, -half)]
    return mean - spread * ends[0], mean - spread * ends[1]


def tailed_interval(samples: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Interval of the mean of samples with a long tail, as products over wide networks have, element by element.

    That of `skewed_interval`, at the degrees of freedom that a kurtosis k leaves to the variance, 2 n / (k - 1).  It is open towards the tail where it is not seen to its end: where one
    sample makes up more than DOMINANT of the squared deviations, or where there are fewer than TAIL samples.

    Shapes: samples (n, *shape), n >= 3 -> two of (*shape).   Assumes: samples are independent.   Raises: InvalidInput for fewer than three samples.   Source: Hall 1992 (the transformation).
    """
    drawn = np.asarray(samples, dtype=np.float64)
    if drawn.ndim < 1 or len(drawn) < 3:
        raise InvalidInput(f"At least 3 samples are needed for the skewness of their mean; an array of shape {drawn.shape} came.")
    n, mean = len(drawn), drawn.mean(0)
    away = drawn - mean
    square = (away**2).mean(0)
    flat = square <= 1e-24 * mean**2
    scale = np.where(flat, 1.0, square)
    skew = (away**3).mean(0) / scale**1.5 / math.sqrt(n)
    degrees = np.clip(2 * n / np.maximum((away**4).mean(0) / scale**2 - 1, 1e-9), 1.0, n - 1)
    half = special.stdtrit(degrees, 0.5 + level / 2)
    small = np.abs(skew) < 1e-6
    safe = np.where(small, 1.0, skew)
    below, above = (np.where(small, y, 3 / safe * (np.cbrt(1 + safe * (y - safe / 6)) - 1)) * np.sqrt(square / (n - 1)) for y in (half, -half))
    farthest = np.take_along_axis(away, np.abs(away).argmax(0)[None], 0)[0]
    unseen = ~flat & ((farthest**2 > DOMINANT * n * square) | (n < TAIL))
    return np.where(unseen & (farthest < 0), -math.inf, mean - below), np.where(unseen & (farthest > 0), math.inf, mean - above)


def finite_population_factor(n: int, population: int | None) -> float:
    """sqrt(1 - n/N): what a standard error is multiplied by for n drawn without replacement out of N; 1 where N is None, 0 where all were drawn.

    Var(mean) = (1 - n/N) s^2 / n, with s^2 the sample variance (divisor n - 1).
    Raises: InvalidInput where more were drawn than there are.   Source: Cochran 1977, theorem 2.2.
    """
    if population is None:
        return 1.0
    if n > population:
        raise InvalidInput(f"{n} examples cannot be drawn without replacement from {population}; give a population at least as large, or None.")
    return math.sqrt(1 - n / population)


def welch(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Estimate:
    """The difference of two means (first - second) and its interval, variances unequal.

    nu = (a + b)^2 / (a^2 / (n - 1) + b^2 / (m - 1)) degrees of freedom, with a = s_1^2 / n and b = s_2^2 / m.
    Shapes: first (n,), second (m,), n and m at least 2.   Raises: InvalidInput for fewer.   Source: Welch 1947.
    """
    one, two = _samples(first), _samples(second)
    a, b = float(one.var(ddof=1)) / len(one), float(two.var(ddof=1)) / len(two)
    value, error = float(one.mean() - two.mean()), math.sqrt(a + b)
    degrees = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(two) - 1)) if a + b > 0 else math.inf
    half = student_quantile(0.5 + level / 2, degrees) * error
    return Estimate(value, error, (value - half, value + half))


def ratio_of_means(numerator: ArrayLike, denominator: ArrayLike, level: float = 0.95, *, factor: float = 1.0) -> Estimate:
    """The ratio of the means of paired samples, with Fieller's interval.

    {r : (x - r y)^2 <= t^2 (v_xx - 2 r v_xy + r^2 v_yy)}, with the means x, y and the (co)variances v of the means: the ratios that a t test of
    mean(numerator - r denominator) = 0 does not reject.  Where the denominator's mean is not distinguishable from 0 the set is not bounded: the interval
    is then open on one side, in the direction of growing |r|, or on both.

    Shapes: numerator (n,), denominator (n,), paired, n >= 2.   Error: by the delta method, infinite where the mean of the denominator is not positive.
    Assumes: the true denominator is at least 0, as a squared norm is (this picks the side that is open).   `factor` multiplies the standard errors of
    the means (`finite_population_factor`).
    Raises: InvalidInput for unequal numbers of samples, or fewer than two.   Source: Fieller 1954.
    """
    up, down = _samples(numerator), _samples(denominator)
    if len(up) != len(down):
        raise InvalidInput(f"A ratio of means takes paired samples; {len(up)} and {len(down)} came.")
    x, y = float(up.mean()), float(down.mean())
    (v_xx, v_xy), (_, v_yy) = (np.cov(up, down) / len(up) * factor**2).tolist()
    value = x / y if y > 0 else math.inf if x >= 0 else -math.inf
    error = math.sqrt(max(v_xx - 2 * value * v_xy + value**2 * v_yy, 0.0)) / y if y > 0 else math.inf
    square = student_quantile(0.5 + level / 2, len(up) - 1) ** 2
    a, b, c = y * y - square * v_yy, x * y - square * v_xy, x * x - square * v_xx
    discriminant = b * b - a * c
    if a > 0:
        # Not negative but for rounding: the ratio itself satisfies the inequality.
        root = math.sqrt(max(discriminant, 0.0))
        low, high = (b - root) / a, (b + root) / a
        # An equation's small root is computed from the large one, without cancellation.
        if b > 0 and high != 0:
            low = c / (a * high)
        elif b < 0 and low != 0:
            high = c / (a * low)
        # Where the best estimate of the denominator is not positive though it must be, every larger ratio is as likely.
        return Estimate(value, error, (low, high)) if y > 0 else Estimate(value, error, (-math.inf, math.inf))
    if c <= 0 or discriminant <= 0:
        return Estimate(value, error, (-math.inf, math.inf))
    roots = sorted(((b - math.sqrt(discriminant)) / a, (b + math.sqrt(discriminant)) / a)) if a else [c / (2 * b)] * 2
    return Estimate(value, error, (roots[1], math.inf) if x > 0 else (-math.inf, roots[0]))


def bootstrap(samples: Any, statistic: Callable[[Array], float], *, rng: Generator, level: float = 0.95, draws: int = 1000) -> Estimate:
    """A statistic of samples, its standard deviation over resamples with replacement, and the BCa interval (bias corrected and accelerated).

    Shapes: samples (n, ...), n >= 2, resampled along the first dimension; `statistic` maps such an array to a number.
    Assumes: samples are independent.   Cost: draws + n + 1 evaluations of the statistic.
    Raises: InvalidInput for fewer than two samples.   Source: Efron 1987.
    """
    drawn = np.asarray(samples, dtype=np.float64)
    n = len(drawn)
    if n < 2:
        raise InvalidInput("A bootstrap takes at least two samples.")
    value = float(statistic(drawn))
    chosen = chance.integers(n, draws, n, rng=rng).numpy()
    replicates = np.sort([float(statistic(drawn[rows])) for rows in chosen])
    error = float(replicates.std(ddof=1))
    if error == 0:
        return Estimate(value, 0.0, (value, value))
    below = (np.sum(replicates < value) + 0.5 * np.sum(replicates == value)) / draws
    bias = float(stats.norm.ppf(min(max(float(below), 0.5 / draws), 1 - 0.5 / draws)))
    left_out = np.array([float(statistic(np.delete(drawn, i, axis=0))) for i in range(n)])
    away = left_out.mean() - left_out
    scale = float((away**2).sum()) ** 1.5
    acceleration = float((away**3).sum()) / (6 * scale) if scale > 0 else 0.0

    def end(probability: float) -> float:
        z = bias + float(stats.norm.ppf(probability))
        return float(np.quantile(replicates, stats.norm.cdf(bias + z / (1 - acceleration * z))))

    return Estimate(value, error, (end(0.5 - level / 2), end(0.5 + level / 2)))


def effective_number(sizes: Float64[Array, "n"]) -> float:
    """How many of some sizes count: the exponential of the entropy of their shares, exp(-sum_i p_i ln p_i), p_i = s_i / sum_j s_j; 1 where all are 0.

    Shapes: (n,), none below 0.   Units: none.   Error: rounding.   Cost: none.   Source: Roy & Vetterli 2007.
    """
    shares = sizes[sizes > 0] / sizes.sum() if sizes.sum() > 0 else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def kendall_pseudo_values(x: Array | Sequence[float], y: Array | Sequence[float]) -> Float64[Array, "n"]:
    """Jackknife pseudo-values of Kendall's rank correlation: their mean is tau, their standard error that of tau over draws of the pairs.

    tau = S / (n (n - 1)),  S = sum_i s_i,  s_i = sum_j sign(x_i - x_j) sign(y_i - y_j);   p_i = n tau - (n - 1) tau_(without i)

    Shapes: (n,), (n,) -> (n,).   Units: none.   Error: that of the mean is the jackknife's, biased upwards, by little for n of 20 and more.
    Assumes: the pairs are independent.   Cost: n^2.   Raises: InvalidInput for fewer than three pairs or two lengths.
    Source: Kendall 1938; Efron & Stein 1981 (the jackknife of a symmetric statistic).
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(first)
    if first.shape != second.shape or first.ndim != 1 or n < 3:
        raise InvalidInput(f"A rank correlation takes two lists of one length, at least 3, not shapes {first.shape} and {second.shape}.")
    rows = (np.sign(first[:, None] - first) * np.sign(second[:, None] - second)).sum(1)
    whole = rows.sum()
    return np.asarray(whole / (n - 1) - (whole - 2 * rows) / (n - 2))


def parabola_minimum(x: Float64[Array, "points"], y: Float64[Array, "points"]) -> float:
    """Where the parabola through the least of some values and its two neighbours is least, within the ends of x; the end itself where the least value stands there.

    Shapes: (points,) twice, x growing -> ().   Cost: none.   Raises: InvalidInput for fewer than three points.
    """
    if len(x) < 3 or x.shape != y.shape:
        raise InvalidInput(f"A parabola takes three points, not arrays of shapes {x.shape} and {y.shape}.")
    least = int(np.argmin(y))
    if least in (0, len(x) - 1):
        return float(x[least])
    bend, slope, _ = np.polyfit(x[least - 1 : least + 2], y[least - 1 : least + 2], 2)
    return float(-slope / (2 * bend))


def crossing(x: Real[np.ndarray, "points"], y: Real[np.ndarray, "points"], level: float) -> float:
    """Where values first fall below a level, between points linearly; the last x where they do not, the first where they begin below.

    Shapes: (points,) twice, x growing -> ().   Cost: none.
    """
    below = int(np.argmax(y < level))
    if not y[below] < level:
        return float(x[-1])
    if below == 0:
        return float(x[0])
    return float(x[below - 1] + (x[below] - x[below - 1]) * (y[below - 1] - level) / (y[below - 1] - y[below]))
