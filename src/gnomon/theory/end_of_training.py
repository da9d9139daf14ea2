r"""What a network of finite width has learnt, on average over initialisations and how much it varies, on inputs that it was trained on and on others, at any time and at the end.

Notation as in `first_order`; the first m inputs are trained on, targets y (0 elsewhere), loss sum |z - y|^2 / 2, residuals e = z - y at initialisation, indices run over inputs and outputs at once.
In the limit of many units the outputs on training inputs relax at the eigenvalues l of their Theta, and z - Theta_*T Theta_TT^-1 (z - y)_T stays as it is on the others, an l of 0.
Along these modes, A any and B, C, D of training inputs, with h = H - Theta, d_ABC = dH_ABC + dH_BAC and X_ABCD its change along -D,

    dz_A/dt = -l_A e_A - h_AB e_B,     dh_AB/dt = -d_ABC e_C,     d(d_ABC)/dt = -X_ABCD e_D,
    X_ABCD = ddI_ABCD + ddII_ABCD + ddII_ACBD + the same with A and B changed.

At order 1/n nothing else changes.  So, with f[..] the divided differences of f(l) = exp(-l t), which are the integrals over the times between,

    e_A(t) = f[l_A] e_A + f[l_A, l_B] h_AB e_B + f[l_A, l_B, l_C] h_AB h_BC e_C + f[l_A, l_B, l_B + l_C] d_ABC e_B e_C + f[l_A, l_B, l_B + l_C, l_B + l_C + l_D] X_ABCD e_B e_C e_D,

exactly up to higher orders.  Its mean and its covariance are those of a Gaussian z with the tensors of `first_order`: with W = y y + K,

    E e_A(t) = -f y_A - f H1_AB y_B/n - f <h_AB h_BC> y_C - f (<d_ABC z_B> y_C + <d_ABC z_C> y_B) - f <X_ABCD> (y_B W_CD + y_C K_BD + y_D K_BC),
    Cov e_A(t) e_B(t) = f f (K + G1/n)_AB + f f <h_AC h_BD> W_CD + f_A [f (<z_A z_C h_BC> + H1_BC K_AC/n) + f <h_BC h_CD> K_AD + f (<z_A d_BCD> W_CD + <d_BCD z_C> K_AD + <d_BCD z_D> K_AC)
        + f <X_BCDE> (K_AC W_DE + K_AD W_CE + K_AE W_CD)] + the same with A and B changed.

At the end f[0, l_1, .., l_k] = 1/((-l_1) .. (-l_k)) and 0 where l_A > 0: what was trained on is learnt, the rest remembers on which path (a method that is nearly, not quite, a kernel's).
Gradient descent with step lr: the same with r = 1 - lr l for l, products r_B r_C for sums, f(r) = r^steps, a factor -lr at each index that is gained, and what a finite step adds,

    -lr f[A, B] h,   lr^2 f[A, B, C] h h,   lr^2 (r_B f[A, B, BC] d + f[A, BC] dH/2),
    -lr^3 (r_B r_BC f[A, B, BC, BCD] X + r_B f[A, B, BCD] ((ddI_ABCD + ddI_BACD)/2 + ddII_ABCD) + r_BC f[A, BC, BCD] (ddI_ABCD + ddII_ABCD + ddII_ACBD)/2 + f[A, BCD] ddI_ABCD/6).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float64
from scipy.linalg import expm

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory import first_order
from gnomon.theory.tensors import ASSUMES, Tensors

PRINCIPLES = Source("roberts2022", "chapters 11 and infinity")
NEXT = 2.5
"""The next order, relative, is some NEXT * depth/width, or what the first order itself is of the limit where that is more: ReLU's vertex has it."""
LARGEST = 48
"""Inputs times outputs, of which all combinations of four are formed."""
CONDITION = 1e-10
"""Smallest eigenvalue of the training inputs' tangent kernel, relative to the largest, that can be divided by."""

Weights = tuple[Array, Array, Array, tuple[Array, ...], tuple[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """After training: the mean outputs (outputs, inputs), and each output's covariance over initialisations (outputs, inputs, inputs), whose diagonal is the variance."""

    outputs: Reading
    covariance: Reading


@dataclasses.dataclass(frozen=True)
class Clock:
    """How modes decay: m at `rates` and `others` that stay, under gradient flow (lr = 0: points l, joined by sums) or descent (points 1 - lr l, joined by products)."""

    rates: Float64[Array, "m"]
    others: int
    time: float
    lr: float

    def weights(self) -> Weights:
        """Those of e, h e, h h e, of d (and dH) e e, and of X (and what finite steps add, in the order of the module's docstring) e e e.   Shapes: (n), (n, m), (n, m, m) ..."""
        lr, once = self.lr, self._divided
        b = 1 - lr * self.rates if lr else self.rates
        row = np.concatenate([b, np.full(self.others, 1.0 if lr else 0.0)])
        join = np.multiply.outer if lr else np.add.outer
        step, bc = -lr if lr else 1.0, join(b, b)
        bcd = join(bc, b)
        a1, a2, a3 = row[:, None], row[:, None, None], row[:, None, None, None]
        b1, b2, bc1 = b[:, None], b[:, None, None], bc[:, :, None]
        first, second = step * once(a1, b), step**2 * once(a2, b1, b)
        turned, bent = once(a2, b1, bc), once(a3, b2, bc1, bcd)
        if not lr:
            return once(row), first, second, (turned,), (bent,)
        cubic = (b2 * bc1 * bent, b2 * once(a3, b2, bcd), bc1 * once(a3, bc1, bcd) / 2, once(a3, bcd) / 6)
        return once(row), first, second, (step**2 * b1 * turned, step**2 * once(a2, bc) / 2), tuple(step**3 * part for part in cubic)

    def _divided(self, *points: Array) -> Array:
        """f[x_0, .., x_k]: the corner of f of a bidiagonal matrix (Opitz 1964), at the end a product.   Shapes: those of the points, broadcast."""
        each = np.broadcast_arrays(*points)
        if math.isinf(self.time):
            still = each[0] == (1.0 if self.lr else 0.0)
            gaps = [np.where(still, each[0] - x, 1.0) for x in each[1:]]
            return np.where(still, 1 / np.prod(gaps, axis=0), 0.0)
        matrix = np.zeros((*each[0].shape, len(each), len(each)))
        for i, x in enumerate(each):
            matrix[..., i, i], matrix[..., i, i + 1 : i + 2] = x, 1.0
        after = np.linalg.matrix_power(matrix, round(self.time / self.lr)) if self.lr else expm(-self.time * matrix)
        return np.asarray(after[..., 0, -1])


def trained(found: Tensors, *, targets: Float64[Array, "outputs m"], width: int, time: float = math.inf, lr: float = 0.0) -> Trained:
    """Mean and covariance of a network trained by gradient flow (`lr` 0) or descent on sum |z - y|^2 / 2 of the first m inputs of `found`, at order 1/n, on all its inputs.

    The formulas stand in this module's docstring.  `time` is learning rate times steps, in units of the rates that `found` was made with; infinite is the end of training.

    Shapes: `targets` (outputs, m).   Units: outputs.   Error: truncation, 2.5 depth/width of the largest correction, or the correction's share of the limit where that is more, and
    (2.5 depth/width)^2 of the limit's largest element.   Assumes: as `tensors`, all of them.   Cost: (outputs inputs)^4 numbers, of outputs two more than targets span.
    Raises: InvalidInput for targets of another shape, sizes below 1, a time that is no multiple of `lr`, an `lr` that rounding hides, more than LARGEST outputs (at most two more than targets span) times inputs, or tensors that end before R to U;
    OutOfScope where the tangent kernel of the training inputs cannot be inverted, or `lr` is beyond 2/l of its largest eigenvalue, where descent diverges.
    Source: Roberts, Yaida & Hanin 2022, chapters 11 and infinity (the truncated dynamics and its end); the solution by divided differences, and all expectations, derived above.
    """
    y = _checked(found, targets, width, time, lr)
    count, m, n, part = len(y), y.shape[1], found.kernel.shape[1], NEXT * len(found.kernel) / width
    theta = found.ntk[-1]
    rates, vectors = np.linalg.eigh(theta[:m, :m])
    if rates[0] <= CONDITION * rates[-1]:
        raise OutOfScope("the tangent kernel of the training inputs has an eigenvalue of 0: some combination of them is never learnt; leave inputs out")
    if lr * rates[-1] >= 2:
        raise OutOfScope(f"a learning rate of {lr:g} is beyond 2/l = {2 / rates[-1]:.4g} of the largest eigenvalue, where gradient descent diverges at any width")
    if lr and lr * rates[0] < CONDITION:
        raise InvalidInput(f"With steps of {lr:g} the slowest mode moves by {lr * rates[0]:.1g} of itself, which rounding hides: take lr=0, gradient flow.")
    back = np.eye(n)  # outputs from modes
    back[:, :m] = np.concatenate([vectors, theta[m:, :m] @ vectors / rates])
    weights = Clock(rates, n - m, time, lr).weights()
    mean, spread = _all_outputs(found, back, weights, y)
    left = (back * weights[0]) @ np.linalg.inv(back)
    wanted = np.hstack([y, np.zeros((count, n - m))])
    kernel = np.broadcast_to(left @ found.kernel[-1] @ left.T, spread.shape)
    axes = (Axis("output", tuple(map(float, range(count)))), *(Axis(f"input {letter}", tuple(map(float, range(n)))) for letter in "ab"))
    return Trained(
        _reading("outputs_after_training", wanted - wanted @ left.T, mean / width, part, axes[:2]),
        _reading("covariance_after_training", kernel, spread / width, part, axes),
    )


def _all_outputs(found: Tensors, back: Float64[Array, "n n"], weights: Weights, y: Float64[Array, "outputs m"]) -> tuple[Array, Array]:
    """n times the corrections of means and of each output's covariance.   Shapes: -> (outputs, n), (outputs, n, n).

    Outputs can be rotated into each other, and those whose targets are 0 come in one by one alike: where there are many, two numbers of them say what any number does.
    """
    turn, size, _ = np.linalg.svd(y, full_matrices=False)
    rank = int((size > 1e-12 * size.max()).sum())
    few = min(len(y), rank + 2)
    if few * len(back) > LARGEST:
        raise InvalidInput(f"{few} outputs (as targets span) times {len(back)} inputs are more than {LARGEST}, and all combinations of four are formed: take fewer of either.")
    if few == len(y):
        mean, spread = _corrections(found, back, weights, y)
        return mean, np.asarray(np.einsum("iiab->iab", spread))
    turn, more_outputs = turn[:, :rank], len(y) - rank - 1
    (mean, spread), (next_mean, next_spread) = (_corrections(found, back, weights, np.vstack([turn.T @ y, np.zeros((more, y.shape[1]))])) for more in (1, 2))
    mean = mean + more_outputs * (next_mean[:-1] - mean)
    spread = spread + more_outputs * (next_spread[:-1, :-1] - spread)
    rest = 1 - np.square(turn).sum(1)
    turned = np.einsum("ip,iq,pqab->iab", turn, turn, spread[:rank, :rank])
    return np.asarray(turn @ mean[:rank]), np.asarray(turned + rest[:, None, None] * spread[rank, rank])


def _corrections(found: Tensors, back: Float64[Array, "n n"], weights: Weights, y: Float64[Array, "outputs m"]) -> tuple[Array, Array]:
    """The same by all combinations, and of all pairs of outputs.   Shapes: -> (outputs, n), (outputs, outputs, n, n)."""
    (count, m), n = y.shape, len(back)
    again = np.kron(back, np.eye(count))
    rows, wanted = np.linalg.inv(again), np.concatenate([y.T.ravel(), np.zeros((n - m) * count)])
    mean, spread = _moments(_in_modes(found, rows, m * count), weights, rows @ wanted, m * count)
    return np.asarray((again @ mean).reshape(n, count).T), np.asarray(np.einsum("aibj->ijab", (again @ spread @ again.T).reshape(n, count, n, count)))


@dataclasses.dataclass(frozen=True)
class _Moments:
    """The tensors along modes: first indices of h, dH, X any, other legs of training modes.   Shapes: N modes and outputs, M of them trained."""

    k: Float64[Array, "N N"]
    g1: Float64[Array, "N N"]
    h1: Float64[Array, "N M"]
    hh: Float64[Array, "N M N M"]
    zzh: Float64[Array, "N M N M"]
    quadratic: tuple[Float64[Array, "N M M N"], ...]
    cubic: tuple[Float64[Array, "N M M M"], ...]


def _in_modes(found: Tensors, rows: Float64[Array, "N N"], trained: int) -> _Moments:
    last = {name: found.value(name)[-1] for name in ("kernel", *first_order.names("ddntk"))}
    count, few = len(rows) // len(last["kernel"]), rows[:trained]

    def legs(x: Array, *maps: Array) -> Array:
        for axis, each in enumerate(maps):
            x = np.moveaxis(np.tensordot(each, x, axes=(1, axis)), 0, axis)
        return x

    def four(one: str, two: str, three: str) -> Array:
        """d_ij d_kl one_abcd + d_ik d_jl two_acbd + d_il d_jk three_adbc, for an order of indices behind a colon."""
        made = 0.0
        for said, units in ((one, "ij,kl"), (two, "ik,jl"), (three, "il,jk")):
            name, order = said.split(":")
            made = made + np.einsum(f"{order},{units}->aibjckdl", last[name], np.eye(count), np.eye(count))
        return np.asarray(made).reshape((len(rows),) * 4)

    def both(x: Array) -> Array:
        return x + x.transpose(1, 0, 2, 3)

    dh = four("Q:abcd", "Q:acbd", "P:abcd")
    third, joined = four("R:abcd", "R:acdb", "R:adbc"), four("S:abcd", "T:acdb", "U:adbc")
    turned = third + joined + joined.transpose(0, 2, 1, 3)
    two = {name: np.kron(last[name], np.eye(count)) for name in ("kernel", "G1", "H1")}
    return _Moments(
        legs(two["kernel"], rows, rows), legs(two["G1"], rows, rows), legs(two["H1"], rows, few),
        legs(four("A:abcd", "B:acbd", "B:adbc"), rows, few, rows, few), legs(four("D:abcd", "F:acbd", "F:adbc"), rows, few, rows, few),
        tuple(legs(x, rows, few, few, rows) for x in (both(dh), dh)),
        tuple(legs(x, rows, few, few, few) for x in (both(turned), both(third) / 2 + joined, turned, third)),
    )  # fmt: skip


def _moments(t: _Moments, weights: Weights, wanted: Array, trained: int) -> tuple[Array, Array]:
    """n times the corrections of the mean and of the covariance of the modes, by the module's docstring.   Shapes: -> (N,), (N, N)."""
    count = len(t.k) // len(weights[0])
    kept, first, second = (_wide(each, count) for each in weights[:3])
    dz = np.sum([_wide(each, count)[..., None] * x for each, x in zip(weights[3], t.quadratic, strict=False)], axis=0)
    cubic = np.sum([_wide(each, count) * x for each, x in zip(weights[4], t.cubic, strict=False)], axis=0)
    y, k, own = wanted[:trained], t.k[:, :trained], t.k[:trained, :trained]
    w, h1 = np.outer(y, y) + own, first * t.h1
    hh = np.einsum("abc,abbc->ac", second, t.hh[:, :, :trained])
    dzt = dz[..., :trained]
    mean = -(h1 + hh) @ y - np.einsum("abcb,c->a", dzt, y) - np.einsum("abcc,b->a", dzt, y)
    mean -= np.einsum("abcd,b,cd->a", cubic, y, w) + np.einsum("abcd,c,bd->a", cubic, y, own) + np.einsum("abcd,d,bc->a", cubic, y, own)
    # what goes with the undisturbed mode a: h and h h, z, d and X
    drift = h1 + hh + np.einsum("bcdc->bd", dzt) + np.einsum("bdcc->bd", dzt)
    drift += np.einsum("bcde,de->bc", cubic, w) + np.einsum("bdce,de->bc", cubic, w) + np.einsum("bdec,de->bc", cubic, w)
    mixed = k @ drift.T + np.einsum("bc,acbc->ab", first, t.zzh) + np.einsum("bcda,cd->ab", dz, w)
    mixed *= kept[:, None]
    spread = np.einsum("ac,bd,acbd,cd->ab", first, first, t.hh, w, optimize=True)
    return mean, kept[:, None] * t.g1 * kept + spread + mixed + mixed.T


def _wide(x: Array, count: int) -> Array:
    """The same for all combinations of outputs.   Shapes: (n, m, ..) -> (n outputs, m outputs, ..)."""
    return np.asarray(np.kron(x, np.ones((count,) * x.ndim)))


def _reading(name: str, limit: Array, moved: Array, part: float, axes: tuple[Axis, ...]) -> Reading:
    largest, size = float(np.abs(moved).max()), float(np.abs(limit).max())
    error = max(part, largest / size if size else 0.0) * largest + part**2 * size
    return Reading.predicted(name, limit + moved, unit="", error=error, error_kind="truncation", axes=axes, source=PRINCIPLES, assumes=ASSUMES)


def _checked(found: Tensors, targets: Array, width: int, time: float, lr: float) -> Float64[Array, "outputs m"]:
    y, inputs = np.asarray(targets, dtype=np.float64), found.kernel.shape[1]
    if y.ndim != 2 or not 1 <= y.shape[1] <= inputs or not len(y) or width < 1 or not np.isfinite(y).all():
        raise InvalidInput(f"Targets must be finite, of shape (outputs, up to {inputs} inputs), and the width be at least 1, not {y.shape} and {width}.")
    if not (time >= 0 and lr >= 0 and math.isfinite(lr)):
        raise InvalidInput(f"The time and the learning rate must not be negative, not {time:g} and {lr:g}.")
    if lr and math.isfinite(time) and abs(time / lr - round(time / lr)) > 1e-6 * max(1.0, time / lr):
        raise InvalidInput(f"The time is the learning rate times a whole number of steps, not {time / lr:.6g} of them.")
    return y
