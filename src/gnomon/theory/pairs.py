"""Expectations of an activation and its derivatives at one and two inputs, exactly: what carries tensors from layer to layer.

With s^(i) the i-th derivative, in the sense of distributions where s has kinks, `two[i, j][a, b]` = <s^(i)(z_a) s^(j)(z_b)>_K.  For scale-invariant s = alpha z + beta |z| all follow from
<s_a s_b> = alpha^2 c + kappa (sqrt(det) + c asin(rho)), kappa = 2 beta^2/pi, since the Gaussian density obeys dp/dK_aa = p_aa/2 and dp/dK_ab = p_ab.  For other
kinks: product rules between them, derivatives beyond the second taken of the density.  For smooth ones: `numerics.chaos`.

On the diagonal a = b and with kinks only sums have a meaning: of two derivatives D20 + D11 = <(s^2)''>/2 and D31 + D22 = <(s'^2)''>/2, of four the sums that make <(s^2)''''>
and <(s'^2)''''>.  The elements there are set so that these sums are right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array
from gnomon.numerics import chaos
from gnomon.numerics.nodes import derivatives
from gnomon.numerics.product_rule import Pieces, TooFine, Variables
from gnomon.theory.activations import Function, scale_invariant
from gnomon.theory.pieces import Piecewise, breaks_of

KINDS = ((0, 0), (2, 0), (1, 1), (4, 0), (3, 1), (2, 2), (5, 1), (4, 2), (3, 3))
TESTED = (0.05, 1.0, 20.0)
"""Kernels at which integration by parts is tried, to tell kinks."""
CONVERGED = 1e-3
"""A series whose end is worth more than this, relative to the largest element, has not converged."""

DIGITS = (13.0, 15.0)
"""Digits of two product rules for two inputs; their distance is the error."""
ROUNDING = 1e-15
"""What rounding amounts to, relative to the size of what is summed, where inputs are far apart."""

Table = dict[tuple[int, int], Float64[Array, "n n"]]


def smoothness(activation: Function) -> int:
    """How many derivatives of an activation, as autograd takes them, are derivatives: 0 where it jumps, 1 where its slope does (ReLU), 2 where its bend does (ELU), 3 for smooth ones.

    A function f is the integral of what autograd says where <f'(z) g(z)> = <f(z) (z g(z)/K - g'(z))> (Stein), tried with g = 1 + z/sqrt(K) at three kernels for s, s' and s''.
    """
    slopes = scale_invariant(activation)
    if slopes is not None:
        return 3 if slopes[0] == slopes[1] else 1
    breaks = breaks_of(activation)
    for order in range(3):
        for kernel in TESTED:
            u, w = chaos.line(tuple(b / math.sqrt(kernel) for b in breaks))
            found = derivatives(activation, math.sqrt(kernel) * u, order + 1)
            left, right = found[order] * (u * (1 + u) - 1) / math.sqrt(kernel), found[order + 1] * (1 + u)
            gap, size = float(w @ (left - right)), float(w @ (np.abs(left) + np.abs(right)))
            if abs(gap) > 1e-5 * size:
                return order
    return 3


def pair_moments(activation: Function, kernel: Float64[Array, "n n"], smooth: int) -> tuple[Table, float]:
    """All of `two` and the error that the largest relative one has.   Shapes: kernel (n, n) -> a table of (n, n).

    Raises: OutOfScope where two inputs are so close, and the activation so far from smooth, that the series does not converge.   Cost: a thousandth of a second an input.
    """
    slopes = scale_invariant(activation)
    if slopes is not None:
        return _closed(slopes, kernel), 1e-14
    return _series(activation, kernel, smooth)


def _closed(slopes: tuple[float, float], k: Float64[Array, "n n"]) -> Table:
    alpha, kappa = (slopes[0] + slopes[1]) / 2, (slopes[0] - slopes[1]) ** 2 / (2 * math.pi)
    own, n = (slopes[0] ** 2 + slopes[1] ** 2) / 2, len(k)
    x, y, size = np.diag(k)[:, None], np.diag(k)[None, :], np.sqrt(np.diag(k))
    rho = np.clip(k / np.outer(size, size), -1, 1)
    off = ~np.eye(n, dtype=bool)
    det = np.where(off, np.maximum(x * y - k**2, 1e-300), 1.0)
    root = np.sqrt(det)
    two: Table = {
        (0, 0): alpha**2 * k + kappa * (root + k * np.arcsin(rho)), (1, 1): alpha**2 + kappa * np.arcsin(rho), (2, 0): kappa * root / x, (2, 2): kappa / root,
        (3, 1): -kappa * k / (x * root), (4, 0): kappa * (y / (x * root) - 2 * root / x**2), (3, 3): kappa * k / root**3, (4, 2): -kappa * y / root**3,
        (5, 1): kappa * k * (2 / (x**2 * root) + y / (x * root**3)),
    }  # fmt: skip
    diagonal: Table = {(0, 0): own * k, (1, 1): np.full_like(k, own)}
    return {kind: np.where(off, value, diagonal.get(kind, np.zeros_like(k))) for kind, value in two.items()}


def _series(activation: Function, k: Float64[Array, "n n"], smooth: int) -> tuple[Table, float]:
    n, size = len(k), np.sqrt(np.diag(k))
    if smooth < 3:
        broken = Piecewise.of(activation)
        cuts = [[broken.pieces(float(own), order=2, digits=digits) for own in np.diag(k)] for digits in DIGITS]
        two, worst = _between(broken, k, cuts)
        breaks = [tuple(edge / part for edge in some.edges[1:-1]) for some, part in zip(cuts[1], size, strict=True)]
        own, bends = (np.concatenate(each) for each in zip(*(_along(activation, part, at, smooth) for part, at in zip(np.split(size, n), breaks, strict=True)), strict=True))
        worst = max(worst, *(_unresolved(activation, float(part), at) for part, at in zip(size, breaks, strict=True)))
    else:
        own, bends = _along(activation, size, (0.0,), smooth)
        two, worst = {}, _unresolved(activation, float(size.max()), (0.0,))
        a = chaos.coefficients(derivatives(activation, size[:, None] * chaos.line()[0], 0)[0])
        for i, j in KINDS:
            two[i, j], tail = chaos.mehler(a, k, i, j)
            off = np.abs(two[i, j][~np.eye(n, dtype=bool)])
            worst = max(worst, tail / max(float(off.max(initial=0.0)), 1e-300) if tail else 0.0)
    second, fourth = own[:, :, 2] * math.sqrt(2) / size[:, None] ** 2, own[:, :, 4] * math.sqrt(24) / size[:, None] ** 4
    exact = {(0, 0): own[:, 0, 0], (1, 1): own[:, 1, 0], (2, 2): bends, (2, 0): second[:, 0] / 2 - own[:, 1, 0], (3, 1): second[:, 1] / 2 - bends}
    exact[4, 0] = (fourth[:, 0] - 8 * exact[3, 1] - 6 * exact[2, 2]) / 2
    exact |= {(5, 1): np.zeros(n), (4, 2): np.zeros(n), (3, 3): fourth[:, 1] / 6}
    for kind, value in exact.items():
        np.fill_diagonal(two[kind], value)
    if worst > CONVERGED:
        raise OutOfScope(
            f"the moments of one input or the series in the correlation of two do not converge (what they leave out is worth {worst:.2g} of them): the activation has kinks and inputs are "
            "close, or it bends within a small part of a large kernel; take fewer inputs or a smaller kernel"
        )
    return two, worst + 1e-13


def _between(broken: Piecewise, k: Float64[Array, "n n"], cuts: list[list[Pieces]]) -> tuple[Table, float]:
    """All of `two` beside the diagonal, and how far two rules and rounding are apart, relative to the largest of a kind, of all with as many derivatives where these are more than two and are summed.

    Raises: OutOfScope where inputs are too close.
    """
    n = len(k)
    two: Table = {kind: np.zeros((n, n)) for kind in KINDS}
    off: Table = {kind: np.zeros((n, n)) for kind in KINDS}
    for a, b in itertools.combinations(range(n), 2):
        variables = Variables(k[np.ix_((a, b), (a, b))])
        found = []
        for digits, pieces in zip(DIGITS, cuts, strict=True):
            try:
                found.append(_pair(broken, variables, variables.rules([pieces[a], pieces[b]], digits)))
            except TooFine:
                close = k[a, b] / math.sqrt(k[a, a] * k[b, b])
                raise OutOfScope(f"inputs {a} and {b} have come so close (correlation {close:.9f}) that moments of kinks are not resolved; take fewer inputs or layers") from None
        for (i, j), (value, back, worth) in found[1].items():
            two[i, j][a, b], two[i, j][b, a] = value, back
            off[i, j][a, b] = max(abs(value - found[0][i, j][0]), abs(back - found[0][i, j][1])) + worth
    largest = {kind: float(np.abs(value).max()) for kind, value in two.items()}
    size = {kind: max(largest[other] for other in KINDS if other == kind or sum(other) == sum(kind) > 2) for kind in KINDS}
    return two, max(float(off[kind].max()) / max(size[kind], 1e-300) for kind in KINDS)


def _pair(broken: Piecewise, variables: Variables, rule: list[tuple[Array, Array]]) -> dict[tuple[int, int], tuple[float, float, float]]:
    """<s^(i)(z_a) s^(j)(z_b)>, the same with a and b exchanged, and what rounding is worth: of at most two derivatives of s, the others taken of the density p.

    With L the inverse of the correlations and (u, v) = L (x, y) for unit variables, derivatives of -1 each make of p: u p, (u^2 - L_xx) p, (u^3 - 3 L_xx u) p and (u v - L_xy) p.
    """
    (x, f), (y, g) = ((at / size, made) for (at, made), size in zip((broken.factors(z, w, ((0,), (1,), (2,)), order=2) for z, w in rule), variables.size, strict=True))
    p, own = variables.densities(x, y), float(variables.inverse[0, 0])
    rho = -float(variables.inverse[0, 1]) / own
    u, v = (x[:, None] - rho * y) * own, (y - rho * x[:, None]) * own
    drawn: dict[tuple[int, int], Callable[[], Array | float]] = {
        (0, 0): lambda: 1.0, (1, 0): lambda: u, (0, 1): lambda: v, (2, 0): lambda: u**2 - own, (0, 2): lambda: v**2 - own, (3, 0): lambda: u**3 - 3 * own * u, (0, 3): lambda: v**3 - 3 * own * v,
        (1, 1): lambda: u * v + rho * own,
    }  # fmt: skip
    tables = {}
    for more, polynomial in drawn.items():
        weight = p * polynomial()
        tables[more] = f @ weight @ g.T, np.abs(f) @ np.abs(weight) @ np.abs(g).T

    def moment(i: int, j: int) -> tuple[float, float]:
        more, scale = (max(i - 2, 0), max(j - 2, 0)), variables.size ** -np.array([max(i - 2, 0), max(j - 2, 0)])
        value, size = (float(part[min(i, 2), min(j, 2)] * scale.prod()) for part in tables[more])
        return value, ROUNDING * math.sqrt(own) * size

    both = {(i, j): (moment(i, j), moment(j, i)) for i, j in KINDS}
    return {kind: (one[0], other[0], max(one[1], other[1])) for kind, (one, other) in both.items()}


def _along(activation: Function, size: Float64[Array, "n"], cuts: tuple[float, ...], smooth: int) -> tuple[Array, Array]:
    """Coefficients of the square of s and of its slope's, and the mean square of its bend (0 where that is no function), at inputs of these sizes.   Shapes: (n, 2, 5), (n,)."""
    u, w = chaos.line(cuts)
    found = derivatives(activation, size[:, None] * u, 2 if smooth >= 2 else 1)
    squares = chaos.coefficients(np.stack([found[0] ** 2, found[1] ** 2], 1), cuts, 5)
    return squares, found[2] ** 2 @ w if smooth >= 2 else np.zeros(len(size))


def _unresolved(activation: Function, size: float, cuts: tuple[float, ...]) -> float:
    """What integrals over the largest input leave out, by a rule of more nodes: means of four factors there, relative."""
    found = []
    for count in (3 * chaos.NODES // 2, chaos.NODES):
        u, w = chaos.line(cuts, count)
        value, slope, bend = derivatives(activation, size * u, 2)
        found.append(np.stack([value**4, slope**4, (bend * slope) ** 2]) @ w)
    fine, coarse = found
    return float((np.abs(fine - coarse) / np.where(fine > 0, fine, 1.0)).max())
