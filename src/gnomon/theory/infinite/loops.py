"""One layer of weights and the rectifier behind it in one pass over their covariances, row by row: loops compiled for the processor at hand, which keep in its registers what a chain of operations would write to memory."""

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


@compiled
@no_type_check
def rectified(
    rows: tuple[int, int, int],
    read: tuple[Numbers, Numbers, Numbers],
    made: tuple[Numbers, Numbers, Numbers],
    one: Numbers,
    two: Numbers,
    places: tuple[Numbers, ...],
    numbers: tuple[float, ...],
    flags: tuple[bool, bool, bool, bool, bool],
    angles: tuple[float, ...],
    bends: tuple[float, ...],
) -> None:
    """Some rows of what a linear layer and a piecewise linear activation of slopes l and h make of n - k, n + k and Theta, in units of m = (l^2 + h^2)/2.

    Behind the layer  n - k = c S(n - k) + n |u - v|^2,  n + k = c S(n + k) + n |u - v|^2 + 2 b,  Theta = c S(Theta) + w k + r  with S the sum over the window and u, v directions over sqrt(2).
    Then with g = 1 - cos theta = (n - k)/n, t = n (sin theta - theta cos theta), e = (h - l)^2/(2 pi m) and f = l h / m = 1 - pi e:
    k -> k + e t,  n - k -> n - k - e t,  n + k -> n + k + e t,  Theta -> (1 - e theta) Theta; beyond pi/2 all of it from pi - theta, of which nothing is taken away.

    `rows` are the first and the last but one of the rows made, and the row of what is read that the first row of a pair stands at;  `read` and `made` are n - k (k where the last of `flags`, wanted, is false),
    n + k and Theta, (pairs, rows, columns);  `one` and `two` variances, standard deviations, their inverses (0 where they are 0) and directions,
    (examples, 3 + K, rows or columns) and (examples, 3 + K, columns);
    `numbers` are c, 2 b, w, r, e, f, 0, 1, 2, `angles` and `bends` those of ANGLE and BEND, all of the dtype of the rows;  `flags`: whether `one` goes with the columns, whether n + k is read, and made, whether Theta is made, and wanted.
    """
    start, stop, offset = rows
    gap, total, ntk = read
    each, twice, rate, rest, bend, away, zero, unit, two_ = numbers
    vector, far, beyond, trained, wanted = flags
    height, length, second = made[0].shape[1], made[0].shape[2], len(two)
    near, opposite, tangent, missing = np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype)
    norm, inverse, spare, other = np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype), np.empty(length, gap.dtype)
    wide = np.empty(places[5].shape[1], gap.dtype)
    opposite[:] = zero
    tangent[:] = zero
    for at in range(start, stop):
        pair, p = unsigned(at // height), unsigned(at % height)
        i, j, row = unsigned(at // height // second), unsigned(at // height % second), offset + at % height
        _summed(gap, pair, row, places, wide, near)
        if far:
            _summed(total, pair, row, places, wide, opposite)
        if trained and len(ntk) > 0:
            _summed(ntk, pair, row, places, wide, tangent)
        _scaled(one, i, p, two, j, vector, norm, inverse)
        _apart(one, i, p, two, j, vector, missing)
        out, out_total, out_ntk = made[0][pair, p], made[1][pair, p] if beyond else spare, made[2][pair, p] if trained else other
        for q in range(unsigned(length)):
            n = norm[q]
            lost = n * missing[q]
            close = each * near[q] + lost
            close = close if close > zero else zero
            away_from = each * opposite[q] + (lost + twice) if far else two_ * n - close
            g = close * inverse[q]
            obtuse = g > unit
            g = away_from * inverse[q] if obtuse else g
            g = g if g > zero else zero
            k = away_from - n if obtuse else n - close
            double = g + g
            root = math.sqrt(double)
            angle = root * _polynomial(angles, g)
            turned = bend * (n * double * root * _polynomial(bends, g))
            flat = away * n * (unit - g)
            if wanted:
                out[q] = n + flat - turned if obtuse else close - turned
            else:
                out[q] = turned - flat if obtuse else k + turned
            out_total[q] = n * (unit - away) + away * (n * g) + turned if obtuse else away_from + turned
            slope = away + bend * angle if obtuse else unit - bend * angle
            out_ntk[q] = (each * tangent[q] + (rate * k + rest)) * slope


@compiled
@no_type_check
def distances(first: int, last: int, product: Numbers, u: Numbers, v: Numbers, one: Numbers, two: Numbers, made: Numbers, sign: float, near: float, rounding: float) -> None:
    """n (1 + s u v) = n |u + s v|^2 / 2 of unit vectors for some rows of their product, from the differences where it is less than `near`, and 0 below `rounding`.

    Shapes: product (n1 P, n2 Q), u (K, n1 P), v (K, n2 Q), one (n1, P), two (n2, Q) -> made (n1, n2, P, Q), whose dtype may be another.
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
                            for k in range(len(u)):
                                square += (u[k, row] + sign * v[k, left + q]) ** 2
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
