"""What gradient noise costs in loss, from the Hessian's spectrum as the noise sees it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.theory.stochastic.quadratic import transition

MANDT_2017 = Source("mandt2017")
LIU_2021 = Source("liu2021")


def noise_excess_loss(nodes: ArrayLike, weights: ArrayLike, sgd: Sgd, *, steps: int, trace: float | None = None) -> Reading:
    """What noise adds to the mean loss in so many steps, beyond the same steps without noise: tr(H C_k) / 2 with the covariance C_k of the steps.

    C_0 = 0,  C' = A C A' + f b Sigma b';  along each direction of curvature h the recursion is of second moments of (theta, v), so that
    tr(H C_k) / 2 = sum_m w_m h_m c_k(h_m) / 2 with the quadrature sum_m w_m F(h_m) = tr(F(H) Sigma).  Plain SGD: c_k = lr^2 f (1 - (1 - lr h)^2k) / (1 - (1 - lr h)^2).

    Shapes: nodes, weights (probes, m), averaged over probes -> ().   Units: loss.   Sigma has divisor N - 1; where its trace is known, `trace` takes the place of the
    probes' own, and the ratio of the two means is taken.
    Error: probe, the spread over probes.  `details` has `downhill`, what directions that curve downwards take off as a share of what the others add: a quadratic has no
    bottom there, and noise grows along them without end.
    Assumes: Hessian and noise stay what they are at the start; batches independent.   Cost: `steps` products of 2 x 2 matrices.
    Raises: InvalidInput for shapes that disagree or no step.
    Source: Mandt, Hoffman & Blei 2017, section 3 (noise about a quadratic loss); the finite number of steps is derived here.
    """
    if steps < 1:
        raise InvalidInput(f"steps must be at least 1, not {steps}.")
    sgd.independent("what noise costs")
    h, w = _measure(nodes, weights)
    a, b = transition(h.ravel(), sgd)
    noise = _factor(sgd) * np.outer(b, b)
    c = np.zeros_like(a)
    for _ in range(steps):
        c = a @ c @ np.swapaxes(a, 1, 2) + noise
    cost = w * h * c[:, 0, 0].reshape(h.shape) / 2
    up, down = float(cost[h > 0].sum()), -float(cost[h < 0].sum())
    details = {"steps": steps, "downhill": down / up if up else math.inf if down else 0.0}
    return _reading("noise_excess_loss", cost.sum(1), w, trace, MANDT_2017.at("section 3"), sgd, details)


def stationary_excess_loss(nodes: ArrayLike, weights: ArrayLike, sgd: Sgd, *, trace: float | None = None) -> Reading:
    """Where that ends after many steps: the stationary fluctuation of the loss, tr(H C) / 2 with C = A C A' + f b Sigma b'.

    Plain SGD: lr f / 2 sum_m w_m / (2 - lr h_m), near lr f tr Sigma / 4 for short steps.

    Shapes: as `noise_excess_loss`.   Units: loss.   Error: probe, the spread over probes.   `details` has `relaxation`, the number of steps in which the slowest node with a
    hundredth of the noise's cost forgets, and `flat`, the share of the noise in directions that do not curve upwards, which never settle and are left out.
    Assumes: as `noise_excess_loss`, for long.   Cost: none.   Raises: OutOfScope above the limit of stability, which it names; InvalidInput for shapes that disagree.
    Source: Mandt, Hoffman & Blei 2017, section 3; for steps that are not short Liu, Ziyin & Ueda 2021.
    """
    sgd.independent("what noise costs")
    h, w = _measure(nodes, weights)
    flat = h.ravel() <= 1e-9 * max(float(h.max()), 1e-300)
    a, b = transition(np.where(flat, 1e-9 * abs(float(h.max())), h.ravel()), sgd)
    radius = np.abs(np.linalg.eigvals(a)).max(1)
    if (radius[~flat] >= 1).any():
        worst = float(h.ravel()[~flat][radius[~flat] >= 1].max())
        raise OutOfScope(f"lr {sgd.lr:g} is above the limit of stability in a direction of curvature {worst:.3g} (2 / lr is {2 / sgd.lr:.3g}): no fluctuation is stationary")
    k = len(b)
    left = np.eye(k * k) - np.einsum("iab,icd->iacbd", a, a).reshape(len(a), k * k, k * k)
    c = np.linalg.solve(left, np.broadcast_to((_factor(sgd) * np.outer(b, b)).reshape(k * k, 1), (len(a), k * k, 1)))[:, 0, 0]
    cost = np.where(flat, 0.0, w.ravel() * h.ravel() * c / 2).reshape(h.shape)
    counts = (cost > 0.01 * cost.sum()).ravel() & ~flat
    slowest = float(radius[counts].max()) if counts.any() else 1.0
    details = {"relaxation": -1 / math.log(slowest) if 0 < slowest < 1 else math.inf, "flat": float(w.ravel()[flat].sum() / w.sum())}
    return _reading("stationary_excess_loss", cost.sum(1), w, trace, LIU_2021, sgd, details)


def short_step_excess_loss(trace: float, sgd: Sgd) -> float:
    """The stationary fluctuation of the loss for short steps, whatever the curvature: lr f tr Sigma / (4 (1 - b)).

    Units: loss.   Error: the next order, lr times the curvature.   Assumes: as `stationary_excess_loss`.   Cost: none.   Source: Mandt, Hoffman & Blei 2017, section 3.
    """
    sgd.independent("what noise costs")
    return sgd.lr * _factor(sgd) * trace / (4 * (1 - sgd.momentum))


def _factor(sgd: Sgd) -> float:
    """What Sigma with divisor N - 1 is multiplied by; `noise_factor` is that of divisor N."""
    return sgd.noise_factor * (sgd.examples - 1) / sgd.examples


def _measure(nodes: ArrayLike, weights: ArrayLike) -> tuple[Array, Array]:
    h, w = np.atleast_2d(np.asarray(nodes, dtype=np.float64)), np.atleast_2d(np.asarray(weights, dtype=np.float64))
    if h.shape != w.shape or h.ndim != 2 or not w.sum() > 0:
        raise InvalidInput(f"nodes and weights must have one shape (probes, m) and weigh something; {h.shape} and {w.shape} came.")
    return h, w


def _reading(name: str, samples: Array, weights: Array, trace: float | None, source: Source, sgd: Sgd, details: dict[str, float]) -> Reading:
    n, value, rest = len(samples), float(samples.mean()), samples - samples.mean()
    if trace is not None:
        sizes = weights.sum(1)
        scale = trace / float(sizes.mean())
        rest, value = scale * (samples - value / float(sizes.mean()) * sizes), scale * value
    error = float(rest.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Reading.predicted(
        name, value, unit="loss", error=error, error_kind="probe" if error else "exact", n=n, source=source,
        assumes=("Hessian and noise stay what they are at the start", f"batches of {sgd.batch_size:,} of {sgd.examples:,} examples, each drawn anew"), details=details,
    )  # fmt: skip
