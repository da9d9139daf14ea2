"""Two-layer networks with many inputs or many units: their training as equations of a few averages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import integrate
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.flow import moments_of

SAAD_1995 = Source("saad1995")


def teacher_student_path(
    student: Float[Tensor, "k k"], cross: Float[Tensor, "k m"], teacher: Float[Tensor, "m m"], *, lr: float, times: Sequence[float], noise: float = 0.0
) -> Reading:
    """The generalization error of a soft committee machine that learns on line from another one, in the limit of many inputs.

    sum_k erf(J_k . x / sqrt 2) learns from sum_m erf(B_m . x / sqrt 2) + noise, with x ~ N(0, 1) and steps lr / N on the half square of the difference delta.
    Of Q = J J', R = J B' and T = B B' alone, with x_i, y_n, delta normal of these covariances and t = steps / N:
    dR_in/dt = lr <d_i y_n>,   dQ_ik/dt = lr <d_i x_k + d_k x_i> + lr^2 <d_i d_k>,   d_i = g'(x_i) delta;   error e = <delta^2> / 2

    Shapes: Q (k, k), R (k, m), T (m, m) at the start, times (T,) -> value (T,); Q and R at these times are the details `student` and `cross`.
    Units: loss.   Error: a bound of 1e-7 of the largest error: the integration's.  At N inputs a run is off by the order of 1 / sqrt(N), its mean by 1 / N.
    Assumes: normal inputs, every example seen once, N >> 1, the second layer fixed at 1.   Cost: an ordinary differential equation of k (k + m) numbers.
    Raises: InvalidInput for shapes, times or overlaps that are no covariance; OutOfScope where the norm grows without bound: lr is above what is stable.
    Source: Saad & Solla 1995 (the equations and their Gaussian averages).
    """
    q, r, t = (part.detach().cpu().double().numpy() for part in (student, cross, teacher))
    moments, k = moments_of(times), len(q)
    if q.shape != (k, k) or r.shape != (k, len(t)) or t.shape != (len(t), len(t)) or not k or not len(t):
        raise InvalidInput(f"Overlaps have the shapes (k, k), (k, m) and (m, m), not {q.shape}, {r.shape} and {t.shape}.")
    if lr <= 0 or noise < 0:
        raise InvalidInput(f"lr must be above 0 and the noise not negative; {lr:g} and {noise:g} came.")
    if float(np.linalg.eigvalsh(np.block([[q, r], [r.T, t]])).min()) < -1e-9 * max(float(np.trace(q) + np.trace(t)), 1e-300):
        raise InvalidInput("The overlaps are no covariance of student and teacher: give J J', J B' and B B' of the same vectors.")

    def unpacked(flat: Array) -> tuple[Array, Array]:
        return flat[: k * k].reshape(k, k), flat[k * k :].reshape(k, len(t))

    def slope(_: float, flat: Array) -> Array:
        return np.concatenate([part.reshape(-1) for part in _velocities(*unpacked(flat), t, lr, noise)])

    start = np.concatenate([q.reshape(-1), r.reshape(-1)])

    def escaped(_: float, flat: Array) -> float:
        return 1e6 - float(abs(flat).max())

    escaped.terminal = True  # type: ignore[attr-defined]
    solved = integrate.solve_ivp(slope, (0.0, max(float(moments[-1]), 1e-12)), start, method="DOP853", t_eval=moments, rtol=1e-9, atol=1e-11, events=escaped)
    if solved.status != 0:
        raise OutOfScope(f"The overlaps grow beyond 1e6 before t = {moments[-1]:g}: lr = {lr:g} is too large, and training has no limit.")
    states = [unpacked(column) for column in solved.y.T]
    value = np.array([generalization_error(*state, t) for state in states])
    return Reading.predicted(
        "generalization_error", value, unit="loss", error=1e-7 * float(value.max()), error_kind="bound", axes=(Axis("steps / inputs", tuple(moments.tolist())),),
        source=SAAD_1995, assumes=("normal inputs, each seen once", "many inputs", "a fixed second layer"),
        details={"student": np.stack([state[0] for state in states]), "cross": np.stack([state[1] for state in states])},
    )  # fmt: skip


def generalization_error(student: Array, cross: Array, teacher: Array) -> float:
    """<(sum g(x_i) - sum g(y_n))^2> / 2 from the overlaps: with <g(u) g(v)> = (2 / pi) arcsin(C_uv / sqrt((1 + C_uu)(1 + C_vv))).

    Shapes: (k, k), (k, m), (m, m) -> a number.   Units: loss.   Error: exact.   Assumes: normal inputs.   Cost: none.   Raises: nothing.
    Source: Saad & Solla 1995; Williams 1997's integral.
    """
    whole = np.block([[student, cross], [cross.T, teacher]])
    scale = np.sqrt(1 + np.diag(whole))
    signs = np.append(np.ones(len(student)), -np.ones(len(teacher)))
    return float(signs @ np.arcsin(np.clip(whole / np.outer(scale, scale), -1, 1)) @ signs / math.pi)


def _velocities(q: Array, r: Array, t: Array, lr: float, noise: float) -> tuple[Array, Array]:
    """dQ/dt and dR/dt; d_i = g'(x_i) (sum_n g(y_n) - sum_l g(x_l) + noise)."""
    k = len(q)
    c = np.block([[q, r], [r.T, t]])
    signs = np.append(-np.ones(k), np.ones(len(t)))
    # <g'(x_i) z_a g(z_b)> for all a and b, summed over b with its sign
    one = np.einsum("iab,b->ia", _three(c, k), signs)
    both = np.einsum("ijab,a,b->ij", _four(c, k), signs, signs)
    if noise:
        determinant = (1 + np.diag(q))[:, None] * (1 + np.diag(q))[None] - q**2
        both = both + noise**2 * 2 / math.pi / np.sqrt(determinant)
    return lr * (one[:, :k] + one[:, :k].T) + lr**2 * both, lr * one[:, k:]


def _three(c: Array, k: int) -> Array:
    """<g'(u) v g(w)>, u = x_i, v = z_a, w = z_b.  Shapes: (k, n, n)."""
    a = 1 + np.diag(c)[:k, None, None]
    uv, uw = c[:k, :, None], c[:k, None, :]
    depth = a * (1 + np.diag(c))[None, None] - uw**2
    return np.asarray(2 / math.pi / np.sqrt(depth) * (c[None] * a - uv * uw) / a)


def _four(c: Array, k: int) -> Array:
    """<g'(u) g'(v) g(w) g(z)>, u = x_i, v = x_j, w = z_a, z = z_b.  Shapes: (k, k, n, n)."""
    one = 1 + np.diag(c)
    u, v = one[:k, None, None, None], one[None, :k, None, None]
    uv = c[:k, :k, None, None]
    uw, uz, vw, vz = c[:k, None, :, None], c[:k, None, None, :], c[None, :k, :, None], c[None, :k, None, :]
    base = u * v - uv**2
    zero = base * c[None, None] - vw * vz * u - uw * uz * v + uv * (uw * vz + uz * vw)

    def part(with_u: Array, with_v: Array, own: Array) -> Array:
        return np.asarray(base * own - with_v**2 * u - with_u**2 * v + 2 * uv * with_u * with_v)

    first, second = part(uw, vw, one[None, None, :, None]), part(uz, vz, one[None, None, None, :])
    return np.asarray(4 / math.pi**2 / np.sqrt(base) * np.arcsin(np.clip(zero / np.sqrt(first * second), -1, 1)))
