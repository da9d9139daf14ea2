"""Expectations under one or two Gaussian variables, of functions with kinks too, each with an estimate of its error."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput

Function = Callable[[Tensor], Tensor]
REACH = 12.0
"""Standard deviations integrated over, to either side; beyond lie 4e-33 of the mass."""
NODES = (14, 20)
"""Gauss-Legendre nodes a panel; the second rule is used, its distance from the first is the error."""
STEP = 1.5
"""Widest panel, in standard deviations."""
PANELS = (512, 65536)
"""Panels that may still differ at once: a kink leaves one, a function that is rounded more coarsely than it is asked for (to float32, say) all of them, however often they are halved;
more than the first where they differ by more than ROUNDED, relative: then something is left to find out."""
ROUNDED = 1e-6


class Expectation(NamedTuple):
    """An expectation and an estimate of the error of its quadrature, rounding included."""

    value: float
    error: float


@functools.cache
def _legendre(n: int) -> tuple[Float64[Tensor, "{n}"], Float64[Tensor, "{n}"]]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


@functools.cache
def _to_ends(n: int) -> Float64[Tensor, "2 {n}"]:
    """What takes values at Gauss-Legendre nodes to those of their polynomial at -1 and 1.  Shapes: (2, n)."""
    nodes, _ = np.polynomial.legendre.leggauss(n)
    vandermonde = np.polynomial.legendre.legvander
    return torch.from_numpy(np.linalg.solve(vandermonde(nodes, n - 1).T, vandermonde(np.array([-1.0, 1.0]), n - 1).T).T.copy())


def _rule(low: Tensor, high: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on panels, the standard normal density in the weights.  Shapes: low, high (...) -> (..., n) twice."""
    nodes, weights = _legendre(n)
    half = ((high - low) / 2)[..., None]
    x = (low + high)[..., None] / 2 + half * nodes
    return x, half * weights * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _applied(function: Function, z: Tensor) -> Tensor:
    out = function(z)
    if out.shape != z.shape:
        raise InvalidInput(f"The function must act on each number by itself; it turned shape {tuple(z.shape)} into {tuple(out.shape)}.")
    out = out.detach().double()
    if not bool(torch.isfinite(out).all()):
        worst = float(z[~torch.isfinite(out)][0])
        raise InvalidInput(
            f"The function is not finite at {worst:.4g}, within {REACH:g} standard deviations: the expectation may not exist. Take a smaller variance, or a function that is finite there."
        )
    return out


def gaussian_expectation(function: Function, variance: float, *, mean: float = 0.0, breaks: Iterable[float] = (0.0,), tolerance: float = 1e-13) -> Expectation:
    """E f(z) for z ~ N(mean, variance).

    By Gauss-Legendre on panels within 12 standard deviations, split where f has a kink or a jump (`breaks`, in units of z) and halved wherever two
    rules differ, so that kinks elsewhere are found too.

    Shapes: `function` maps a float64 tensor to one of equal shape, element by element.
    Error: the two rules' distance, what the integrand is worth at the outer ends, and rounding.
    Assumes: |f| grows slower than exp(z^2 / (2 variance)).   Cost: about 500 evaluations of f where it is smooth between the breaks.
    Raises: InvalidInput for a negative variance, or where f is not finite.
    """
    if not (variance >= 0 and math.isfinite(variance)):
        raise InvalidInput(f"A variance must be a finite number, at least 0, not {variance}.")
    if variance == 0:
        value = float(_applied(function, torch.tensor([mean], dtype=torch.float64))[0])
        return Expectation(value, abs(value) * 1e-16)
    scale = math.sqrt(variance)
    edges = _edges([(b - mean) / scale for b in breaks])
    low, high = edges[:-1], edges[1:]
    value = error = size = 0.0
    for _ in range(60):
        sums, sizes, values = [], torch.zeros(()), torch.zeros(())
        for n in NODES:
            x, w = _rule(low, high, n)
            values = _applied(function, mean + scale * x)
            sums.append((w * values).sum(-1))
            sizes = (w * values).abs().sum(-1)
        # A jump between a panel's end and its first node escapes both rules: the end itself tells.
        inside = torch.stack([low + 1e-12 * (high - low), high - 1e-12 * (high - low)], -1)
        ends = (_applied(function, mean + scale * inside) - values @ _to_ends(NODES[1]).T).abs() * torch.exp(-(inside**2) / 2) * (high - low)[:, None]
        gaps = torch.maximum((sums[1] - sums[0]).abs(), 1e-3 * ends.amax(-1))
        done = (gaps <= tolerance * max(size + float(sizes.sum()), 1e-300) / 8) | (high - low < 1e-13)
        value, error, size = value + float(sums[1][done].sum()), error + float(gaps[done].sum()), size + float(sizes[done].sum())
        low, high = low[~done], high[~done]
        coarse = float(gaps[~done].sum()) > ROUNDED * (size + float(sizes.sum()))
        if not len(low) or len(low) > PANELS[coarse]:
            break
        middle = (low + high) / 2
        low, high = torch.cat([low, middle]), torch.cat([middle, high])
    value, error = value + float(sums[1][~done].sum()), error + float(gaps[~done].sum())
    outermost = torch.tensor([mean - REACH * scale, mean + REACH * scale], dtype=torch.float64)
    tail = float(_applied(function, outermost).abs().max()) * math.exp(-(REACH**2) / 2)
    return Expectation(value, error + tail + 4e-16 * size)


def gaussian_expectation_2(function: Function, k11: float, k12: float, k22: float, *, other: Function | None = None, breaks: Iterable[float] = (0.0,)) -> Expectation:
    """E f(z1) g(z2) for (z1, z2) ~ N(0, [[K11, K12], [K12, K22]]), with g = f where `other` is not given.

    z1 = sqrt(K11) x, z2 = (K12 / sqrt(K11)) x + sqrt(K22 - K12^2 / K11) y; the inner integral is split where z2 crosses a break, for each x, and panels
    shrink geometrically towards the breaks, so that correlations near 1 are resolved.

    Shapes: `function` and `other` map a float64 tensor to one of equal shape, element by element.
    Error: the distance of two rules, and rounding.   Assumes: kinks and jumps of f and g lie at `breaks`.
    Cost: about 10^6 evaluations of g.
    Raises: InvalidInput where the matrix is not a covariance, or a function is not finite.
    """
    g = other or function
    if not (k11 >= 0 and k22 >= 0 and k12**2 <= k11 * k22 * (1 + 1e-9) and math.isfinite(k11 + k12 + k22)):
        raise InvalidInput(f"[[{k11:.6g}, {k12:.6g}], [{k12:.6g}, {k22:.6g}]] is not a covariance matrix: K12^2 must not exceed K11 K22.")
    breaks = tuple(breaks)
    if k11 == 0:
        at_zero = float(_applied(function, torch.zeros(1, dtype=torch.float64))[0])
        alone = gaussian_expectation(g, k22, breaks=breaks)
        return Expectation(at_zero * alone.value, abs(at_zero) * alone.error)
    first, slope = math.sqrt(k11), k12 / math.sqrt(k11)
    rest = math.sqrt(max(k22 - slope**2, 0.0))
    if rest <= 1e-9 * math.sqrt(k22) or k22 == 0:
        ratio = slope / first
        crossings = [b / ratio for b in breaks] if ratio else []
        return gaussian_expectation(lambda z: function(z) * g(ratio * z), k11, breaks=(*breaks, *crossings))
    centres = [b / first for b in breaks] + ([b / slope for b in breaks] if slope else [])
    edges = _edges(centres, levels=24)
    values, size = [], 0.0
    for n in NODES:
        x, w = _rule(edges[:-1], edges[1:], n)
        x, w = x.reshape(-1), w.reshape(-1)
        outer = w * _applied(function, first * x)
        inner = torch.cat([_inner(g, slope * part, rest, breaks, n) for part in x.split(256)])
        values.append(float((outer * inner).sum()))
        size = float((outer * inner).abs().sum())
    return Expectation(values[1], abs(values[1] - values[0]) + 4e-16 * size)


def _inner(g: Function, means: Float64[Tensor, "m"], scale: float, breaks: tuple[float, ...], n: int) -> Float64[Tensor, "m"]:
    """E g(m + scale y) for every m, panels split and shrinking where m + scale y crosses a break.  Shapes: means (m,) -> (m,)."""
    fixed = torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=torch.float64).expand(len(means), -1)
    graded = torch.tensor([0.0] + [side * STEP * 2.0**-k for k in range(1, 9) for side in (-1, 1)], dtype=torch.float64)
    near = [((b - means) / scale)[:, None] + graded for b in breaks]
    edges = torch.cat([fixed, *near], 1).clamp(-REACH, REACH).sort(1).values
    y, w = _rule(edges[:, :-1], edges[:, 1:], n)
    return (w * _applied(g, means[:, None, None] + scale * y)).sum((1, 2))


def _edges(centres: list[float], levels: int = 0) -> Float64[Tensor, "edges"]:
    """Panels of at most STEP, split at the centres and, with `levels`, halving in width towards them."""
    points = [*np.arange(-REACH, REACH + STEP / 2, STEP).tolist()]
    for centre in centres:
        points += [centre] + [centre + side * STEP * 2.0**-k for k in range(1, levels + 1) for side in (-1, 1)]
    inside = sorted({min(max(p, -REACH), REACH) for p in points})
    return torch.tensor(inside, dtype=torch.float64)
