"""Kernels' inner loops, compiled for the processor at hand: distances of directions, layers with their rectifiers, and series, row by row of covariances.

What a chain of operations on whole arrays would write to memory and read again stays in registers and the first cache.  Indices are unsigned; no slice is taken where a loop turns often."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
import numpy.typing as npt
from numba import njit

Numbers = npt.NDArray[Any]
unsigned = np.uintp
"""What indices are made, so that none has to be looked at for counting from the end."""
ONE, TWO, THREE, FOUR = (unsigned(k) for k in range(1, 5))
VARIANCE, DEVIATION, INVERSE, DIRECTIONS = range(4)
"""What stands where among the numbers of one side."""
PIECE = 128
"""Products that are looked through at a time for those to mend."""
BLOCK = 5
"""Components of directions that are compared at a time; there are a multiple of so many."""
ANGLE = {
    np.float64: (
        0.9999999999999999, 0.083333333333381, 0.018749999994887395, 0.005580357359544115, 0.001898866700217143, 0.000699195178549289, 0.0002705562428799403, 0.00011269686358655027,
        2.908058015756967e-05, 7.179378545774666e-05, -0.00012117413285500441, 0.00024170243545992032, -0.0003262055706979571, 0.00033365819930609243, -0.00024256787149814154,
        0.00012100726393978694, -3.6946632563759546e-05, 5.3808098398167465e-06,
    ),
    np.float32: (0.9999999887, 0.08333477336, 0.0187202861, 0.005810106183, 0.001045711809, 0.002360617307, -0.001407597136, 0.0008568279941),
}  # fmt: skip
"""theta / sqrt(2 g) for g = 1 - cos theta in [0, 1] by rising powers of g: interpolated at Chebyshev points, which misses 2e-16 of it, or 2e-8.

As many as there are of BEND, and an even number: other lengths were seen to be left as a loop, and what is around it a number at a time."""
BEND = {
    np.float64: (
        0.33333333333333337, 0.016666666666661147, 0.002678571429099379, 0.000620039662620851, 0.00017262507850480285, 5.377451475704247e-05, 1.8112804232736927e-05, 6.216747433725282e-06,
        3.15483255714117e-06, -1.300837127370211e-06, 4.966711053638617e-06, -6.953578909965689e-06, 8.030480476842602e-06, -6.352707328477203e-06,
        3.468555640410028e-06, -1.146299364463524e-06, 1.8319963296288703e-07, 0.0,
    ),
    np.float32: (0.3333333372, 0.01666629283, 0.002684430931, 0.0005862921802, 0.0002624292381, -6.229623294e-05, 8.289814664e-05, 0.0),
}  # fmt: skip
"""(sin theta - theta cos theta) / (2 g)^{3/2} likewise."""


HOW: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
"""How loops are compiled: without the interpreter's lock, with fused multiplications and additions, and without a look at every divisor."""
inlined = njit(**HOW)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled when it is first called, and kept on disk where there is a place for it."""
    try:
        return njit(cache=True, **HOW)(function)
    except RuntimeError:  # neither this package's folder nor the user's can be written to
        return njit(**HOW)(function)


@inlined
@no_type_check
def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    made = coefficients[len(coefficients) - 1]
    for i in range(len(coefficients) - 2, -1, -1):
        made = made * x + coefficients[i]
    return made


@inlined
@no_type_check
def _summed(x: Numbers, pair: int, row: int, places: tuple[Numbers, ...], wide: Numbers, into: Numbers) -> None:
    """The sum of what a row's window reads, made in `wide` if that is where it stands for more columns than are wanted; `places` as table.windowed has them."""
    rows, starts, stops, ahead, inside, masks, index, wanted = places
    out = wide if len(wanted) else into
    out[:] = 0
    for place in range(len(rows)):
        if rows[place, row] >= 0:
            at, first, count, mask = unsigned(rows[place, row]), unsigned(starts[place]), unsigned(stops[place] - starts[place]), unsigned(inside[place])
            start = unsigned(starts[place] + ahead[place])
            if len(index):
                for q in range(unsigned(len(out))):
                    out[q] += masks[mask, q] * x[pair, at, index[mask, q]]
            elif inside[place] < 0:
                for q in range(count):
                    out[first + q] += x[pair, at, start + q]
            else:
                for q in range(count):
                    out[first + q] += masks[mask, first + q] * x[pair, at, start + q]
    if len(wanted):
        for q in range(unsigned(len(into))):
            into[q] = wide[wanted[q]]


@inlined
@no_type_check
def _scaled(one: Numbers, i: int, p: int, two: Numbers, j: int, vector: bool, norm: Numbers, inverse: Numbers) -> None:
    """The product of standard deviations and its inverse."""
    if vector:
        for q in range(unsigned(len(norm))):
            norm[q] = one[i, DEVIATION, q] * two[j, DEVIATION, q]
            inverse[q] = one[i, INVERSE, q] * two[j, INVERSE, q]
    else:
        u, v = one[i, DEVIATION, p], one[i, INVERSE, p]
        for q in range(unsigned(len(norm))):
            norm[q] = u * two[j, DEVIATION, q]
            inverse[q] = v * two[j, INVERSE, q]


@inlined
@no_type_check
def _apart(one: Numbers, i: int, p: int, two: Numbers, j: int, vector: bool, into: Numbers) -> None:
    """The squared distance of directions."""
    into[:] = 0
    for block in range(DIRECTIONS, one.shape[1], BLOCK):
        k = unsigned(block)
        if vector:
            for q in range(unsigned(len(into))):
                d0, d1, d2 = one[i, k, q] - two[j, k, q], one[i, k + ONE, q] - two[j, k + ONE, q], one[i, k + TWO, q] - two[j, k + TWO, q]
                d3, d4 = one[i, k + THREE, q] - two[j, k + THREE, q], one[i, k + FOUR, q] - two[j, k + FOUR, q]
                into[q] += d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3 + d4 * d4
        else:
            c0, c1, c2, c3, c4 = one[i, k, p], one[i, k + ONE, p], one[i, k + TWO, p], one[i, k + THREE, p], one[i, k + FOUR, p]
            for q in range(unsigned(len(into))):
                d0, d1, d2, d3, d4 = c0 - two[j, k, q], c1 - two[j, k + ONE, q], c2 - two[j, k + TWO, q], c3 - two[j, k + THREE, q], c4 - two[j, k + FOUR, q]
                into[q] += d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3 + d4 * d4


@inlined
@no_type_check
def _rectify(
    near: Numbers, opposite: Numbers, tangent: Numbers, missing: Numbers, norm: Numbers, inverse: Numbers, numbers: Numbers, far: bool, wanted: bool, angles: tuple[float, ...],
    bends: tuple[float, ...], out: Numbers, out_opposite: Numbers, out_tangent: Numbers,
) -> None:  # fmt: skip
    """A row behind a layer and its rectifier, of the sums over its window."""
    each, twice, rate, rest, bend, away, zero, unit, two = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
    for q in range(unsigned(len(near))):
        n = norm[q]
        lost = n * missing[q]
        close = each * near[q] + lost
        close = close if close > zero else zero
        total = each * opposite[q] + (lost + twice) if far else two * n - close
        g = close * inverse[q]
        obtuse = g > unit
        g = total * inverse[q] if obtuse else g
        g = g if g > zero else zero
        k = total - n if obtuse else n - close
        double = g + g
        root = math.sqrt(double)
        angle = root * _polynomial(angles, g)
        turned = bend * (n * double * root * _polynomial(bends, g))
        flat = away * n * (unit - g)
        if wanted:
            out[q] = n + flat - turned if obtuse else close - turned
        else:
            out[q] = turned - flat if obtuse else k + turned
        out_opposite[q] = n * (unit - away) + away * (n * g) + turned if obtuse else total + turned
        slope = away + bend * angle if obtuse else unit - bend * angle
        out_tangent[q] = (each * tangent[q] + (rate * k + rest)) * slope


@compiled
@no_type_check
def rectified(
    rows: tuple[int, int, int],
    read: tuple[Numbers, Numbers, Numbers],
    made: tuple[Numbers, Numbers, Numbers],
    one: Numbers,
    two: Numbers,
    places: tuple[Numbers, ...],
    numbers: Numbers,
    flags: Numbers,
    vector: bool,
    readout: Numbers,
    angles: tuple[float, ...],
    bends: tuple[float, ...],
) -> None:
    """Some rows of what linear layers, each with a piecewise linear activation of slopes l and h behind it, make of n - k, n + k and Theta, in units of m = (l^2 + h^2)/2 of the last.

    Behind a layer  n - k = c S(n - k) + n |u - v|^2,  n + k = c S(n + k) + n |u - v|^2 + 2 b,  Theta = c S(Theta) + w k + r  with S the sum over the first layer's window and u, v directions
    over sqrt(2).  Then with g = 1 - cos theta = (n - k)/n, t = n (sin theta - theta cos theta), e = (h - l)^2/(2 pi m) and f = l h / m = 1 - pi e:
    k -> k + e t,  n - k -> n - k - e t,  n + k -> n + k + e t,  Theta -> (1 - e theta) Theta; beyond pi/2 all of it from pi - theta, of which nothing is taken away.

    `rows` are the first and the last but one of the rows made, and the row of what is read that the first row of a pair stands at;  `read` and `made` are n - k (k where it is not wanted),
    n + k and Theta, (pairs, rows, columns);  `one` and `two` variances, standard deviations, their inverses (0 where they are 0) and directions, (layers, examples, 3 + K, rows or columns)
    and (layers, examples, 3 + K, columns), `vector` whether `one` goes with the columns;  `numbers` are c, 2 b, w, r, e, f, 0, 1, 2 of each layer, `flags` whether n + k is read, and made,
    whether n - k is wanted, and Theta made;  `readout` c, b, w, r of a layer behind the last activation, or no numbers;  `angles` and `bends` those of ANGLE and BEND, all of the rows' dtype.
    Source: Cho & Saul 2009, section 2 (orders 0 and 1, in theta); the forms that keep n - k and pi - theta, and what is missing in a window, are derived here.
    """
    start, stop, offset = rows
    gap, total, ntk = read
    height, length, second, last = made[0].shape[1], made[0].shape[2], two.shape[1], len(one) - 1
    near, opposite, tangent, missing = np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype)
    near_, opposite_, tangent_, spare = np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype)
    norm, inverse, wide = np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(places[5].shape[1], gap.dtype)
    trained = flags[last, 3]
    opposite[:] = 0
    opposite_[:] = 0
    for at in range(start, stop):
        pair, p = unsigned(at // height), unsigned(at % height)
        i, j, row = unsigned(at // height // second), unsigned(at // height % second), offset + at % height
        _summed(gap, pair, row, places, wide, near)
        if flags[0, 0]:
            _summed(total, pair, row, places, wide, opposite)
        if trained and len(ntk) > 0:
            _summed(ntk, pair, row, places, wide, tangent)
        else:
            tangent[:] = 0
        for layer in range(last + 1):
            here, there = one[layer], two[layer]
            _scaled(here, i, p, there, j, vector, norm, inverse)
            _apart(here, i, p, there, j, vector, missing)
            out, out_opposite, out_tangent = near_, opposite_, tangent_
            if layer == last:
                out, out_opposite = made[0][pair, p], made[1][pair, p] if flags[last, 1] else spare
                out_tangent = made[2][pair, p] if trained else tangent_
            _rectify(near, opposite, tangent, missing, norm, inverse, numbers[layer], flags[layer, 0], flags[layer, 2], angles, bends, out, out_opposite, out_tangent)
            near, near_, opposite, opposite_, tangent, tangent_ = near_, near, opposite_, opposite, tangent_, tangent
        if len(readout) > 0:
            each, bias, rate, rest = readout[0], readout[1], readout[2], readout[3]
            for q in range(unsigned(length)):
                out[q] = each * out[q] + bias
                out_tangent[q] = each * out_tangent[q] + (rate * out[q] + rest)


@compiled
@no_type_check
def distances(first: int, last: int, product: Numbers, u: Numbers, v: Numbers, one: Numbers, two: Numbers, made: Numbers, sign: float, near: float, rounding: float) -> None:
    """n (1 + s u v) = n |u + s v|^2 / 2 of unit vectors for some rows of their product, from the differences where it is less than `near`, and 0 below `rounding`.

    Shapes: product (n1 P, n2 Q), u (n1 P, K), v (n2 Q, K), one (n1, P), two (n2, Q) -> made (n1, n2, P, Q), whose dtype may be another.
    """
    height, length = one.shape[1], two.shape[1]
    for at in range(first, last):
        i, p, row = unsigned(at // height), unsigned(at % height), unsigned(at)
        deviation = np.float64(one[i, p])
        for second in range(len(two)):
            j, start = unsigned(second), unsigned(second * length)
            for begin in range(0, length, PIECE):
                few, count, left, right = 0, unsigned(min(PIECE, length - begin)), start + unsigned(begin), unsigned(begin)
                for q in range(count):
                    square = 1.0 + sign * product[row, left + q]
                    few += square < near
                    square = square if square > rounding else 0.0
                    made[i, j, p, right + q] = square * (deviation * two[j, right + q])
                if few > 0:
                    for q in range(count):
                        if 1.0 + sign * product[row, left + q] < near:
                            square = 0.0
                            for k in range(unsigned(u.shape[1])):
                                square += (u[row, k] + sign * v[left + q, k]) ** 2
                            made[i, j, p, right + q] = square / 2 * (deviation * two[j, right + q])


@compiled
@no_type_check
def differences(first: int, last: int, u: Numbers, v: Numbers, one: Numbers, two: Numbers, made: Numbers, sign: float, half: float, vector: bool) -> None:
    """n |u + s v|^2 / 2 for some rows; `sign` and `half`, 1/2, of their dtype.

    Shapes: u (K, n1, P), v (K, n2, Q), one (n1, P), two (n2, Q) -> made (n1 n2, P, Q), or at equal positions, `vector`, (n1 n2, 1, P).
    """
    height = made.shape[1]
    for at in range(first, last):
        pair, p, i, j = unsigned(at // height), unsigned(at % height), unsigned(at // height // len(two)), unsigned(at // height % len(two))
        row = made[pair, p]
        row[:] = 0
        for k in range(unsigned(len(u))):
            if vector:
                for q in range(unsigned(len(row))):
                    apart = u[k, i, q] + sign * v[k, j, q]
                    row[q] += apart * apart
            else:
                here = u[k, i, p]
                for q in range(unsigned(len(row))):
                    apart = here + sign * v[k, j, q]
                    row[q] += apart * apart
        if vector:
            for q in range(unsigned(len(row))):
                row[q] *= half * one[i, q] * two[j, q]
        else:
            scale = half * one[i, p]
            for q in range(unsigned(len(row))):
                row[q] *= scale * two[j, q]


@compiled
@no_type_check
def series(first: int, last: int, x: Numbers, made: Numbers, one: Numbers, two: Numbers, vector: bool) -> None:
    """sum_m a_m b_m x^m by Horner's rule for some rows.

    Shapes: x and made (n1 n2, P, Q), one (n1, terms, P), two (n2, terms, Q), or at equal positions, `vector`, (n1 n2, 1, P), (n1, terms, P), (n2, terms, P).
    """
    height, second, columns = made.shape[1], len(two), unsigned(made.shape[2])
    for at in range(first, last):
        pair, p, i, j = unsigned(at // height), unsigned(at % height), unsigned(at // height // second), unsigned(at // height % second)
        row, by = made[pair, p], x[pair, p]
        row[:] = 0
        for left in range(one.shape[1], 0, -4):
            m = unsigned(left - 1)
            if left < 4:
                for term in range(unsigned(left)):
                    for q in range(columns):
                        row[q] = row[q] * by[q] + one[i, m - term, q if vector else p] * two[j, m - term, q]
            elif vector:
                for q in range(columns):
                    z = by[q]
                    made_ = (row[q] * z + one[i, m, q] * two[j, m, q]) * z + one[i, m - ONE, q] * two[j, m - ONE, q]
                    row[q] = (made_ * z + one[i, m - TWO, q] * two[j, m - TWO, q]) * z + one[i, m - THREE, q] * two[j, m - THREE, q]
            else:
                a, b, c, d = one[i, m, p], one[i, m - ONE, p], one[i, m - TWO, p], one[i, m - THREE, p]
                for q in range(columns):
                    z = by[q]
                    made_ = (row[q] * z + a * two[j, m, q]) * z + b * two[j, m - ONE, q]
                    row[q] = (made_ * z + c * two[j, m - TWO, q]) * z + d * two[j, m - THREE, q]
