"""Where an activation has kinks and how its derivatives jump there, found numerically; and what is left of it without them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from gnomon.core.reading import Array
from gnomon.theory.activations import derivative

ORDERS = 11
"""Derivatives whose jumps are known: those of order 0 to 10."""
NODES = 24
"""Chebyshev points at which an interval is looked at."""
SMOOTH, NOISE = 1e-12, 4e-15
"""Last coefficients of a smooth function and those that are rounding, relative to the largest value."""
SEEN, ROUNDED = 1e-7, 1e-9
"""What a kink's jumps amount to within its neighbourhood at least (softplus has one of 2e-9 at 20), and what one of them that is not rounding does."""
CLOSE, LEAST = 2.0**-8, 2.0**-6
"""Width of the interval in which a kink is then searched by its order, and the shortest smooth piece beside one."""
MOST = 16
"""Kinks an activation may have, where none other is said."""
EDGE = 0.2534
"""Ends of the first intervals are this times powers of two, to the left a little less, so that no kink is at an end of one."""


@dataclasses.dataclass(frozen=True)
class Kink:
    """s is smooth but for sum_m jumps[m] w^m / m! where w > 0: w = z - at, or at - z where `at` is negative, away from 0 either way."""

    at: float
    jumps: tuple[float, ...]

    @property
    def up(self) -> bool:
        """Whether w grows with z."""
        return self.at >= 0

    def first(self, orders: int) -> Kink:
        """The same with its first jumps alone."""
        return Kink(self.at, self.jumps[:orders])

    def __call__(self, z: Tensor) -> Tensor:
        """Its part of s."""
        w = z - self.at if self.up else self.at - z
        over, out = w.clamp_min(0), torch.zeros_like(z)
        for m in range(len(self.jumps) - 1, 0, -1):
            out = (out + self.jumps[m] / math.factorial(m)) * over
        return out + self.jumps[0] * (w > 0).to(z)


@dataclasses.dataclass(frozen=True)
class Same:
    """A function that equals others with the same values and slopes at some thousand points, so that what is known of one is not made again for another."""

    key: bytes
    function: Callable[[Any], Any] = dataclasses.field(compare=False)

    def __call__(self, z: Tensor) -> Tensor:
        """Its value."""
        out: Tensor = self.function(z)
        return out

    @classmethod
    def of(cls, function: Callable[[Any], Any], kinks: tuple[Kink, ...]) -> Same:
        """The function behind its key, which holds what is at the kinks too."""
        z = torch.tensor([0.0, *(kink.at for kink in kinks), *np.linspace(-EDGE * 256, EDGE * 256, 4001)], dtype=torch.float64)
        digest = hashlib.sha256(repr(kinks).encode())
        for values in (function(z), derivative(function)(z)):
            digest.update(values.detach().double().numpy().tobytes())
        return cls(digest.digest(), function)


@dataclasses.dataclass(frozen=True)
class Rest:
    """s without what its kinks are made of."""

    function: Callable[[Any], Any]
    kinks: tuple[Kink, ...]

    def __call__(self, z: Tensor) -> Tensor:
        """Its value, in the dtype given."""
        out: Tensor = self.function(z)
        for kink in self.kinks:
            out = out - kink(z)
        return out


def find(function: Callable[[Any], Any], most: int = MOST) -> tuple[Kink, ...]:
    """The kinks of an activation that is smooth between few of them (jumps of itself and of its first two derivatives), or none where it is not of this kind (or has more than `most`).

    Intervals are halved until Chebyshev interpolation tells the function; where it does not at width CLOSE, the pieces on either side say which derivative jumps, and where: at the root of
    the difference of the pieces' derivatives of one order less, or for a jump by bisection.
    Error: places to about 1e-13, jumps of the derivative of order m to 1e-12 times m! or so; both are small errors of where the split is made, not of what is made of it.
    Cost: some thousand values of the function.
    """
    kinks = []
    with np.errstate(all="ignore"):  # a function may have values that are not finite, and is then not smooth there
        brackets = _brackets(function, most)
        for number, (low, high) in enumerate(brackets):
            room = brackets[number - 1][1] if number else -math.inf, brackets[number + 1][0] if number + 1 < len(brackets) else math.inf
            kink = _kink(function, low, high, room)
            if kink is None:
                return ()
            kinks.append(kink)
    return tuple(kink for kink in kinks if any(kink.jumps))


def _values(function: Callable[[Any], Any], z: Float64[Array, "..."]) -> Float64[Array, "..."]:
    with torch.no_grad():
        return np.asarray(function(torch.from_numpy(np.ascontiguousarray(z))).double().numpy())


def _pieces(function: Callable[[Any], Any], low: Float64[Array, "n"], high: Float64[Array, "n"]) -> tuple[Float64[Array, "n nodes"], Float64[Array, "n"]]:
    """Chebyshev coefficients of the function on intervals, and its largest value there."""
    x = chebyshev.chebpts1(NODES)
    values = _values(function, (low[:, None] + high[:, None] + (high - low)[:, None] * x) / 2)
    found = chebyshev.chebvander(x, NODES - 1).T @ values[:, :, None]
    found = found[:, :, 0] * 2 / NODES
    found[:, 0] /= 2
    return found, np.abs(values).max(1)


def _smooth(function: Callable[[Any], Any], low: Float64[Array, "n"], high: Float64[Array, "n"]) -> NDArray[np.bool_]:
    found, size = _pieces(function, low, high)
    smooth: NDArray[np.bool_] = np.abs(found[:, -4:]).max(1) <= SMOOTH * size
    return smooth  # also false where a value is not finite


def _brackets(function: Callable[[Any], Any], most: int) -> list[tuple[float, float]]:
    """Intervals of at most CLOSE in which the function is not smooth, none where they are more than `most`."""
    ends = EDGE * 2.0 ** np.arange(9)
    edges = np.concatenate([-0.93 * ends[::-1], ends])
    low, high = edges[:-1], edges[1:]
    while len(low) and (high - low).max() > CLOSE:
        rough = ~_smooth(function, low, high)
        low, high = low[rough], high[rough]
        if len(low) > 4 * most:
            return []
        wide = high - low > CLOSE
        middle = (low[wide] + high[wide]) / 2
        low, high = np.concatenate([low[wide], middle, low[~wide]]), np.concatenate([middle, high[wide], high[~wide]])
    merged: list[tuple[float, float]] = []
    order = np.argsort(low)
    rough = ~_smooth(function, low, high) if len(low) else np.zeros(0, dtype=bool)
    for i in order[rough[order]]:
        if merged and low[i] - merged[-1][1] < LEAST:
            merged[-1] = merged[-1][0], float(high[i])
        else:
            merged.append((float(low[i]), float(high[i])))
    return merged if len(merged) <= most else []


def _side(function: Callable[[Any], Any], end: float, room: float) -> chebyshev.Chebyshev | None:
    """The function beside `end` as a polynomial, on the longest piece towards `room` on which it is smooth."""
    sign, length = (1.0, 4.0) if room > end else (-1.0, 4.0)
    while length >= LEAST:
        a, b = sorted((end, end + sign * length))
        if length < abs(room - end):
            found, size = _pieces(function, np.array([a]), np.array([b]))
            if np.abs(found[0, -4:]).max() <= SMOOTH * size[0]:
                kept = np.flatnonzero(np.abs(found[0]) > NOISE * size[0])
                return chebyshev.Chebyshev(found[0, : int(kept[-1]) + 1] if len(kept) else [0.0], domain=[a, b])
        length /= 2
    return None


def _kink(function: Callable[[Any], Any], low: float, high: float, room: tuple[float, float]) -> Kink | None:
    """The kink between two ends, or None where the function is not smooth beside it."""
    left, right = _side(function, low, room[0]), _side(function, high, room[1])
    if left is None or right is None:
        return None
    middle, size = (low + high) / 2, 1 + max(abs(float(part(end))) for part, end in ((left, low), (right, high)))
    steps = [float(right.deriv(m)(middle) - left.deriv(m)(middle)) if m else float(right(middle) - left(middle)) for m in range(3)]
    if abs(steps[0]) > 2 * (high - low) * (abs(steps[1]) + abs(steps[2])) + 1e-9 * size:
        at = _jump(function, left, right, low, high)
    else:
        at = middle
        order = 0 if abs(steps[1]) > 2 * (high - low) * abs(steps[2]) + 1e-7 * size else 1
        for _ in range(30):
            one, two = (float(right.deriv(m)(at) - left.deriv(m)(at)) if m else float(right(at) - left(at)) for m in (order, order + 1))
            if two == 0 or not low <= at - one / two <= high:
                break
            at -= one / two
    at = round(at, 9) + 0.0 if abs(at - round(at, 9)) < 1e-11 else at
    left, right = _side(function, at, room[0]), _side(function, at, room[1])
    return None if left is None or right is None else Kink(at, _jumps(left, right, at))


def _jump(function: Callable[[Any], Any], left: chebyshev.Chebyshev, right: chebyshev.Chebyshev, low: float, high: float) -> float:
    """Where the function goes from one piece to the other, by bisection."""
    while True:
        middle = (low + high) / 2
        if not low < middle < high or high - low < 1e-18:
            return high
        value = float(_values(function, np.array([middle]))[0])
        if abs(value - left(middle)) <= abs(value - right(middle)):
            low = middle
        else:
            high = middle


def _jumps(left: chebyshev.Chebyshev, right: chebyshev.Chebyshev, at: float) -> tuple[float, ...]:
    """The derivatives of one piece less those of the other, in the direction away from 0, without those that are rounding."""
    sign, reach = (1.0 if at >= 0 else -1.0), min(float(np.ptp(part.domain)) for part in (left, right))
    ends = [[float(part.deriv(m)(at)) if m else float(part(at)) for m in range(ORDERS)] for part in (left, right)]
    sizes = [max(abs(value) * reach**m / math.factorial(m) for m, value in enumerate(values)) for values in ends]
    found = [sign ** (m + 1) * (b - a) for m, (a, b) in enumerate(zip(*ends, strict=True))]
    parts = [abs(value) * reach**m / math.factorial(m) / max(*sizes, 1e-300) for m, value in enumerate(found)]
    if max(parts) < SEEN:
        return ()
    kept = [value if part > ROUNDED else 0.0 for value, part in zip(found, parts, strict=True)]
    while kept and kept[-1] == 0:
        kept.pop()
    return tuple(kept)
