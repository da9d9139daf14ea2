"""How long noisy descent stays in a well: Kramers' rate, and the exact mean passage time in one dimension."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.integrate import cumulative_simpson
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.source import Source
from gnomon.numerics.potentials import Potential, curvature

KRAMERS_1940 = Source("kramers1940")
HANGGI_1990 = Source("hanggi1990")


def kramers_rate(potential: Potential, minimum: Float[Tensor, "d"], saddle: Float[Tensor, "d"], *, temperature: float) -> Reading:
    """Rate of escape of dX = -grad U dt + sqrt(2 T) dW from a minimum over a saddle.

    k = |l_1| / (2 pi) sqrt(det H_min / |det H_saddle|) exp(-(U_saddle - U_min) / T), l_1 the one negative curvature;   in one dimension
    k = sqrt(U''_min |U''_saddle|) / (2 pi) exp(-dU / T).

    Shapes: minimum (d,), saddle (d,), value ().   Units: 1 / time.   Error: truncation, .75 T / dU of the value: the next order is about half of T / dU for a quartic barrier.
    Assumes: T << dU; one way out.   Cost: two Hessians.
    Raises: OutOfScope for a barrier below 2 T; InvalidInput where the first point is no minimum or the second no saddle with one way down.
    Source: Kramers 1940 (one dimension); Hanggi, Talkner & Borkovec 1990, section IV (many).
    """
    if temperature <= 0:
        raise InvalidInput(f"The temperature must be above 0, not {temperature:g}.")
    rise = float(potential(saddle) - potential(minimum))
    below, above = (torch.linalg.eigvalsh(curvature(potential, point)) for point in (minimum, saddle))
    if not (bool((below > 0).all()) and int((above < 0).sum()) == 1 and bool((above != 0).all())):
        raise InvalidInput(f"Kramers' rate takes a minimum and a saddle with one negative curvature; their curvatures are {below.tolist()} and {above.tolist()}.")
    if rise < 2 * temperature:
        raise OutOfScope(f"the barrier, {rise:.3g}, is not above twice the temperature, {temperature:g}: the escape is not a rare event")
    value = abs(float(above[0])) / (2 * math.pi) * math.exp(float(below.log().sum() - above.abs().log().sum()) / 2 - rise / temperature)
    source = KRAMERS_1940 if len(minimum) == 1 else HANGGI_1990.at("section IV")
    return Reading.predicted(
        "escape_rate", value, unit="1 / time", error=0.75 * temperature / rise * value, error_kind="truncation", source=source,
        assumes=(f"T << barrier (here {temperature / rise:.3g} of it)",), details={"barrier": rise},
    )  # fmt: skip


def mean_passage_time(potential: Potential, start: float, end: float, *, temperature: float, wall: float, points: int = 20_001) -> Reading:
    """Mean time from `start` until `end` is first reached, in one dimension, with a wall on the other side that sends back.

    tau = 1/T int_start^end dy exp(U(y) / T) int_wall^y dz exp(-U(z) / T)

    Shapes: value ().   Units: time.   Error: bound, the difference from half as many points.   Assumes: a wall so high up that it is never reached, or a real one.
    Cost: evaluations of U at `points`.   Raises: InvalidInput where the start is not between wall and end, or the temperature not positive.
    Source: Hanggi, Talkner & Borkovec 1990, section VII (mean first-passage times).
    """
    if temperature <= 0 or not (wall < start < end or end < start < wall):
        raise InvalidInput(f"The start must lie between wall and end, and the temperature be above 0; wall {wall:g}, start {start:g}, end {end:g}, T {temperature:g} came.")
    sign = 1.0 if end > wall else -1.0

    def integral(count: int) -> float:
        inside, outside = np.linspace(wall, start, count), np.linspace(start, end, count)
        lower, upper = (potential(torch.from_numpy(part)[:, None]).detach().numpy() / temperature for part in (inside, outside))
        least = min(lower.min(), upper.min())
        before = float(cumulative_simpson(np.exp(least - lower), x=sign * inside)[-1])
        within = cumulative_simpson(np.exp(least - upper), x=sign * outside, initial=0.0)
        return float(cumulative_simpson(np.exp(upper - least) * (before + within), x=sign * outside)[-1]) / temperature

    value = integral(points)
    return Reading.predicted(
        "mean_passage_time", value, unit="time", error=max(abs(value - integral(points // 2 + 1)), 1e-12 * value), error_kind="bound", source=HANGGI_1990.at("section VII"),
        assumes=("one dimension", "a wall that is never reached"),
    )  # fmt: skip
