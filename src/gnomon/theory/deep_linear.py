"""Exact learning curves of deep linear networks under gradient flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.flow import moments_of

SAXE_2014 = Source("saxe2014")
FUKUMIZU_1998 = Source("fukumizu1998")
BALANCED = 1e-6
"""Largest |W_{j+1}' W_{j+1} - W_j W_j'|, relative to the weights' squared norms, that counts as balanced."""


def mode_strengths(singular: Sequence[float] | Tensor, initial: Sequence[float] | Tensor | float, times: Sequence[float], *, depth: int = 2) -> Reading:
    """How strongly the network has learnt each singular mode of the input-output correlation, whose strength in the data is s, from the strength u_0.

    du/dt = depth u^(2 - 2 / depth) (s - u);   two layers:  u(t) = s e^(2 s t) / (e^(2 s t) - 1 + s / u_0),   one:  u(t) = s + (u_0 - s) e^(-t)

    The sigmoid of two layers is learnt at about t = log(s / u_0 - 1) / (2 s): strong modes first.  Gradient descent with the rate lr makes t = lr x steps.
    Shapes: singular (k,), initial (k,) or a number for all, times (T,) -> value (T, k).   Units: those of the correlation.
    Error: exact for one and two layers; a bound of 1e-8 of the largest strength for more, where the equation is integrated.
    Assumes: the loss |W_d ... W_1 X - Y|^2 / (2 n) with whitened inputs, X X' / n = 1; weights that are balanced and aligned with the modes (they are nearly so from
    small random weights); gradient flow.   Cost: none; an ordinary differential equation a mode for more than two layers.
    Raises: InvalidInput for a depth below 1, strengths that are negative, times that are negative or fall.
    Source: Saxe, McClelland & Ganguli 2014, sections 1.2 (two layers) and 2 (deeper).
    """
    s = np.asarray(singular, dtype=np.float64).reshape(-1)
    start = np.broadcast_to(np.asarray(initial, dtype=np.float64), s.shape)
    t = moments_of(times)
    if depth < 1 or depth != int(depth):
        raise InvalidInput(f"A deep linear network has a depth of 1 layer or more, not {depth}.")
    if (s < 0).any() or (start < 0).any() or not (np.isfinite(s).all() and np.isfinite(start).all()):
        raise InvalidInput("Strengths of modes are finite and not negative: give singular values, and take a mode's sign into its vectors.")
    value, error = (_integrated(s, start, t, depth), 1e-8 * float(max(s.max(), start.max()))) if depth > 2 else (_closed(s, start, t[:, None], depth), 0.0)
    axes = (Axis("time", tuple(t.tolist()), ""), Axis("mode", tuple(float(k) for k in range(1, len(s) + 1))))
    assumes = ("whitened inputs", "balanced weights, aligned with the modes", "gradient flow: lr × sharpness << 1")
    return Reading.predicted("mode_strength", value, unit="", error=error, error_kind="bound" if error else "exact", axes=axes, source=SAXE_2014, assumes=assumes)


def _closed(s: Array, start: Array, t: Array, depth: int) -> Array:
    if depth == 1:
        return np.asarray(s + (start - s) * np.exp(-t))
    decay = np.exp(-2 * s * t)
    # s / (1 - e + e s / u_0), which at s = 0 is u_0 / (1 + 2 u_0 t)
    gained = np.where(s > 0, -np.expm1(-2 * s * t) / np.where(s > 0, s, 1.0), 2 * t)
    return np.asarray(start / (gained * start + decay))


def _integrated(s: Array, start: Array, t: Array, depth: int) -> Array:
    def slope(_: float, u: Array) -> Array:
        return np.asarray(depth * np.clip(u, 0, None) ** (2 - 2 / depth) * (s - u))

    if t[-1] == 0:
        return np.broadcast_to(start, (len(t), len(s))).copy()
    solved = integrate.solve_ivp(slope, (0.0, float(t[-1])), start, method="DOP853", t_eval=t, rtol=1e-10, atol=1e-12 * max(float(s.max()), 1e-300))
    if not solved.success:
        raise OutOfScope(f"The equation of the modes could not be integrated ({solved.message}): take earlier times, or strengths of order 1")
    return np.asarray(solved.y.T)


def mode_loss(singular: Sequence[float] | Tensor, strengths: Reading, *, rest: float = 0.0) -> Reading:
    """The training loss along `mode_strengths`: sum over modes (s - u)^2 / 2, and the rest that no linear network removes.

    L = |Y|^2 / (2 n) - sum s^2 / 2 + sum (s - u)^2 / 2,   rest = |Y|^2 / (2 n) - sum s^2 / 2

    Shapes: (k,), strengths (T, k) -> (T,).   Units: loss.   Error: that of the strengths, carried to first order.
    Assumes: as `mode_strengths`; modes that are left out begin at 0 and stay there.   Cost: none.   Raises: InvalidInput for other numbers of modes.
    Source: Saxe, McClelland & Ganguli 2014, section 1.2.
    """
    s = np.asarray(singular, dtype=np.float64).reshape(-1)
    if strengths.value.ndim != 2 or strengths.value.shape[1] != len(s):
        raise InvalidInput(f"{len(s)} singular values do not fit strengths of shape {strengths.value.shape}: the last dimension holds the modes.")
    gaps = s - strengths.value
    error = (abs(gaps) * strengths.error).sum(1)
    return strengths.replace(name="loss", value=(gaps**2).sum(1) / 2 + rest, unit="loss", error=error, axes=strengths.axes[:1])


def two_layer_maps(first: Float[Tensor, "h d"], second: Float[Tensor, "c k"], correlation: Float[Tensor, "e f"], times: Sequence[float]) -> Reading:
    """W_2 W_1 of a two-layer linear network at these times, from any balanced weights, aligned with the data or not.

    Q = (W_1, W_2')' (d + c, h),   F = ((0, S'), (S, 0)),   d(Q Q')/dt = F Q Q' + Q Q' F - (Q Q')^2 where W_2' W_2 = W_1 W_1':
    Q Q'(t) = e^(F t) Q_0 (1 + Q_0' int_0^t e^(2 F s) ds Q_0)^(-1) Q_0' e^(F t),   W_2 W_1 being its lower left block

    Shapes: first (h, d), second (c, h), correlation S = Y X' / n (c, d), times (T,) -> value (T, c, d).   Units: those of the correlation.   Error: exact up to rounding.
    Assumes: the loss |W_2 W_1 X - Y|^2 / (2 n) with whitened inputs; balanced weights; gradient flow.   Cost: an eigendecomposition of d + c, and Cholesky factors of size h, one for each 4 time constants of the strongest mode.
    Raises: OutOfScope for weights that are not balanced; InvalidInput for shapes that do not fit and bad times.
    Source: Fukumizu 1998 (the Riccati equation of Q Q'); written here without the inverse of F, so that any correlation will do.
    """
    w1, w2, corr = (part.detach().cpu().double() for part in (first, second, correlation))
    t = moments_of(times)
    if w1.ndim != 2 or w2.ndim != 2 or w2.shape[1] != w1.shape[0] or corr.shape != (w2.shape[0], w1.shape[1]):
        raise InvalidInput(f"The layers (h, d), (c, h) and the correlation (c, d) do not fit: {tuple(w1.shape)}, {tuple(w2.shape)} and {tuple(corr.shape)}.")
    apart = float((w2.T @ w2 - w1 @ w1.T).norm()) / max(float(w2.square().sum() + w1.square().sum()), 1e-300)
    if apart > BALANCED:
        raise OutOfScope(f"The exact solution is that of balanced weights, W_2' W_2 = W_1 W_1'; here they differ by {apart:.2g} of the weights' squared norms.")
    d = w1.shape[1]
    whole = torch.zeros(d + len(corr), d + len(corr), dtype=torch.float64)
    whole[:d, d:], whole[d:, :d] = corr.T, corr
    values, vectors = torch.linalg.eigh(whole)
    start = vectors.T @ torch.cat([w1.T, w2])
    made, before = [], 0.0
    for time in t.tolist():
        start, before = _advance(values, start, time - before), time
        made.append((vectors @ start @ start.T @ vectors.T)[d:, :d])
    axes = (Axis("time", tuple(t.tolist())), Axis("output", tuple(float(k) for k in range(len(corr)))), Axis("input", tuple(float(k) for k in range(d))))
    assumes = ("whitened inputs", "balanced weights", "gradient flow: lr × sharpness << 1")
    return Reading.predicted("linear_map", torch.stack(made), unit="", axes=axes, source=FUKUMIZU_1998, assumes=assumes)


def _advance(values: Float[Tensor, "n"], q: Float[Tensor, "n h"], time: float) -> Float[Tensor, "n h"]:
    """Q later by `time`, up to a rotation, in the eigenbasis of F; in steps short enough that no mode is lost to rounding beside the strongest."""
    steps = max(int(np.ceil(float(values.max()) * time / 4)), 1)
    grown = (values * time / steps).exp()
    spent = torch.where(values.abs() > 1e-12, torch.expm1(2 * values * time / steps) / (2 * torch.where(values.abs() > 1e-12, values, 1.0)), time / steps)
    for _ in range(steps):
        factor = torch.linalg.cholesky(torch.eye(q.shape[1], dtype=q.dtype) + q.T @ (spent[:, None] * q))
        q = torch.linalg.solve_triangular(factor, (grown[:, None] * q).T, upper=False).T
    return q
