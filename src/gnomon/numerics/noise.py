"""tr Sigma and |G|^2 of per-example gradients from groups of examples, in any inner product, and the interval of their ratio."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gnomon.core.reading import Array
from gnomon.numerics.statistics import student_quantile


@dataclasses.dataclass(frozen=True)
class Spread:
    """Group sums about the mean: n_k; |r_k|^2 and r_k . mean with r_k = s_k - n_k mean; |mean|^2; and the variance over pairs of r_j . r_k / sqrt(n_j n_k)."""

    sizes: Array
    squares: Array
    along: Array
    mean_square: float
    cross: float | None


@dataclasses.dataclass(frozen=True)
class NoiseRatio:
    """Estimates of tr Sigma and |G|^2 with the (co)variances of both, and the number of groups."""

    trace: float
    square: float
    v_trace: float
    v_square: float
    covariance: float
    groups: int

    def interval(self) -> tuple[float, float]:
        """Fieller's 95 % interval of trace / square; for the upper end the trace's error is taken on the log scale (it is skewed as chi-square is)."""
        t = student_quantile(0.975, self.groups - 1)
        spread = t * math.sqrt(self.v_trace) / self.trace
        stretch = math.expm1(spread) / spread if spread > 0 else 1.0
        return self._ends(t, 1.0)[0], self._ends(t, stretch)[1]

    def told(self) -> tuple[float, float, tuple[float, float]]:
        """trace / square with its standard error and interval; where the estimate of the square is not positive, the value is the interval's lower end."""
        low, high = self.interval()
        value = self.trace / self.square if self.square > 0 else low
        t = student_quantile(0.975, self.groups - 1)
        return value, (high - low) / (2 * t) if math.isfinite(high) else max(value - low, value) / t, (low, high)

    def _ends(self, t: float, stretch: float) -> tuple[float, float]:
        square = max(self.square, 0.0)  # a squared norm is not negative, though its estimate may be
        a = square**2 - t * t * self.v_square
        b = self.trace * square - t * t * stretch * self.covariance
        c = self.trace**2 - t * t * stretch**2 * self.v_trace
        root = math.sqrt(max(b * b - a * c, 0.0))
        if a == 0:
            return 0.0, math.inf
        return max((b - root) / a, 0.0), (b + root) / a if a > 0 else math.inf


def noise_ratio(spread: Spread, population: int, *, without: Sequence[Spread] = ()) -> NoiseRatio:
    """tr Sigma and |G|^2 without bias, and their errors by leaving out one group at a time, for n of N examples dealt to groups at random.

    S^2 = sum_k n_k |g_k - g|^2 / (K - 1) and |G|^2 = |g|^2 - (1 - n/N) S^2 / n are unbiased whatever the groups' sizes.  The jackknife's variance of S^2 has
    two parts: that of dealing n given examples to groups, 2 (1 - 1/b) v / K with v the variance of the scalar product of two groups' deviations and b examples
    in a group, which stays when n = N; and that of having drawn n of N, to which, as to everything about |G|^2, the factor 1 - n/N belongs.
    Where the inner product is made from the examples too, `without` holds the same sums in the product that each group in turn is left out of.
    """
    sizes, n, groups = spread.sizes, float(spread.sizes.sum()), len(spread.sizes)
    rest, left = n - sizes, 1 - n / population
    trace = float((spread.squares / sizes).sum()) / (groups - 1)
    square = spread.mean_square - left * trace / n
    if without:
        all_parts = np.array([(other.squares / sizes).sum() for other in without])
        own, along = (np.array([getattr(other, field)[j] for j, other in enumerate(without)]) for field in ("squares", "along"))
        mean_square: Array | float = np.array([other.mean_square for other in without])
    else:
        all_parts, own, along, mean_square = np.asarray((spread.squares / sizes).sum()), spread.squares, spread.along, spread.mean_square
    traces = (all_parts - own / sizes - own / rest) / (groups - 2)
    norms = mean_square - 2 * along / rest + own / rest**2 - traces / rest
    by_one = np.cov(traces, norms) * (groups - 1) ** 2 / groups
    dealing = float(by_one[0, 0])
    if spread.cross is not None:
        dealing = min(2 * max(1 - groups / n, 0.0) * spread.cross / groups, dealing) if left > 0 else 2 * max(1 - groups / n, 0.0) * spread.cross / groups
    v_trace = dealing + left * max(float(by_one[0, 0]) - dealing, 0.0)
    return NoiseRatio(trace, square, v_trace, left * float(by_one[1, 1]), left * float(by_one[0, 1]), groups)


def noise_ratio_of_examples(mean_square: float, squares: Array, rows: NDArray[np.int64], along: Array, population: int) -> NoiseRatio:
    """The same where every example is a group of its own: |g|^2, all |g_i|^2, and g_i . g for some rows, over which the jackknife's variances are taken.

    S^2 = (sum_i |g_i|^2 - n |g|^2) / (n - 1); over all N examples both numbers are exact.  Where the rows' |g_i|^2 spread more or less than all do, which are
    known, the error of S^2 is scaled by as much: few large gradients, which make tails heavy, are then not missed.

    Shapes: squares (n,), rows and along (m,).   Units: those of |g|^2.
    """
    n = len(squares)
    left = 1 - n / population
    total = float(squares.sum()) - n * mean_square
    trace = total / (n - 1)
    square = mean_square - left * trace / n
    if left == 0:
        return NoiseRatio(trace, square, 0.0, 0.0, 0.0, n)
    own, along = squares[rows] - 2 * along + mean_square, along - mean_square
    traces = (total - own - own / (n - 1)) / (n - 2)
    norms = mean_square - 2 * along / (n - 1) + own / (n - 1) ** 2 - traces / (n - 1)
    seen = float(squares[rows].var())
    scale = math.sqrt(float(squares.var()) / seen) if seen > 0 else 1.0
    apart = np.stack([scale * (traces - traces.mean()), norms - norms.mean()])
    (v_trace, covariance), (_, v_square) = (apart @ apart.T / (len(rows) - 1) * (n - 1) ** 2 / n * left).tolist()
    return NoiseRatio(trace, square, v_trace, v_square, covariance, len(rows))
