"""Predictions about robustness: how far the decision boundary is to first order, and what noise of which size flips."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64
from scipy import optimize, stats

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source

MOOSAVI_2016 = Source("moosavi2016", "section 3, multiclass classifiers")
ASSUMES = ("the logits are linear between an example and the boundary",)


def linear_distances(margins: Float64[Array, "n K"], slopes: Float64[Array, "n J"]) -> Float64[Array, "n"]:
    """Distance of each example to the nearest boundary of logits that are linear: min_j (f_y - f_j) / |grad f_y - grad f_j|; infinite where no logit moves.

    Shapes: margins (n, K), slopes (n, K) -> (n,).   Units: input.   Error: exact for a linear classifier; else the next order is the curvature of the margins.
    Raises: InvalidInput for unlike shapes, or a margin that is negative: such an example is on the other side already.
    Source: Moosavi-Dezfooli et al. 2016, section 3 (the DeepFool step for multiclass classifiers).
    """
    if margins.shape != slopes.shape or margins.ndim != 2 or not margins.shape[1]:
        raise InvalidInput(f"Margins and slopes are one number for each example and other class; shapes {margins.shape} and {slopes.shape} came.")
    if (margins < 0).any() or (slopes < 0).any():
        raise InvalidInput("Margins and slopes are not negative: give the examples that are classified correctly.")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(slopes > 0, margins / slopes, math.inf)
    return np.asarray(ratio.min(1))


def first_order_distance(margins: Float64[Array, "n K"], slopes: Float64[Array, "n J"], kept: Bool[np.ndarray, "n"] | None = None) -> Reading:
    """Mean distance to the decision boundary to first order; `kept` picks examples.

    r = min_j (f_y - f_j) / |grad f_y - grad f_j|

    Shapes: margins (n, K), slopes (n, K); value (), samples (n,), one an example, to be paired with the distances that an attack finds.
    Units: input.   Error: standard error over examples.   Assumes: the logits are linear up to the boundary.   Cost: none.
    Raises: OutOfScope where fewer than two examples have a boundary to first order; InvalidInput as `linear_distances`.
    Source: Moosavi-Dezfooli et al. 2016, section 3.
    """
    distances = linear_distances(margins, slopes)
    distances = distances if kept is None else distances[kept]
    if len(distances) < 2 or not np.isfinite(distances).all():
        raise OutOfScope("the gradient of the logits vanishes at the examples: to first order there is no boundary")
    return Reading.of_samples("first_order_distance", distances, unit="input", role="predicted", source=MOOSAVI_2016, assumes=ASSUMES)


def first_order_accuracy(distances: Float64[Array, "n"], examples: int, sizes: tuple[float, ...]) -> Reading:
    """Accuracy under perturbations of a size to first order: the part of `examples` whose linear distance exceeds it; those without a distance are wrong already.

    Shapes: distances (n,), n <= examples; value (sizes,), samples (examples, sizes), the n first.   Units: none.   Error: standard error over examples.
    Assumes: the logits are linear up to the boundary.   Cost: none.   Raises: InvalidInput for more distances than examples.
    Source: Moosavi-Dezfooli et al. 2016, section 3.
    """
    if len(distances) > examples:
        raise InvalidInput(f"{len(distances)} distances cannot come from {examples} examples.")
    kept = np.concatenate([distances[:, None] > np.asarray(sizes), np.zeros((examples - len(distances), len(sizes)), dtype=bool)]).astype(np.float64)
    axes = (Axis("perturbation", sizes, "input"),)
    return Reading.of_samples("first_order_accuracy", kept, unit="", role="predicted", source=MOOSAVI_2016, axes=axes, assumes=ASSUMES)


def flipping_noise(distances: Float64[Array, "n"], share: float) -> float:
    """Standard deviation of Gaussian noise on every input at which it flips a share of the examples: mean Phi(-r_i / s) = share.

    Noise of standard deviation s moves an example by N(0, s^2) across a flat boundary at distance r, whatever the dimension.

    Shapes: distances (n,).   Units: input.   Error: to first order, the nearest boundary alone.   Assumes: flat boundaries.   Cost: none.
    Raises: InvalidInput for a share outside (0, 1/2): noise flips fewer than half.
    Source: derived here; Gaussian noise and the distance to flat boundaries as Franceschi et al. 2018.
    """
    if not 0 < share < 0.5 or not (distances > 0).any():
        raise InvalidInput(f"The share of flipped examples must lie in (0, 0.5) and distances must be positive; {share:g} came.")
    scale = float(np.median(distances[distances > 0]))
    return float(optimize.brentq(lambda s: float(stats.norm.cdf(-distances / s).mean()) - share, 1e-9 * scale, 1e9 * scale, xtol=1e-12 * scale))
