"""How sharp a minimum is: the rise of the loss in a ball, at worst and on average, sharpness that rescaling cannot move, and the volume around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics import dense
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.operators import PRODUCT, Hessian, loss_gradient, loss_value
from gnomon.numerics.parameter_space import at_vector, parameters_of

KWON_2021 = Source("kwon2021")
FORET_2021 = Source("foret2021")
ANDRIUSHCHENKO_2023 = Source("andriushchenko2023")
CHAUDHARI_2017 = Source("chaudhari2017")
FEWEST_EFFECTIVE = 4
"""Probes that must carry a mean of exponentials before its error bar is believed on both sides."""


def dense_adaptive_sharpness(subject: Subject) -> float:
    """The largest eigenvalue of diag|w| H diag|w|, by the whole matrix.  Cost: P products and an eigenvalue problem of size P."""
    scale = parameters_of(subject).abs()
    return float(torch.linalg.eigvalsh(scale[:, None] * dense.hessian(subject) * scale)[-1])


@instrument(
    topic="landscape", truth=dense_adaptive_sharpness, knob="products", smallest=32, largest=256,
    cost=lambda subject, products: Cost(gradients=PRODUCT * products, bytes=operator_bytes(subject) + 24 * subject.dimension * subject.dtype.itemsize),
)  # fmt: skip
def adaptive_sharpness(subject: Subject, *, rng: Generator, products: int = 64) -> Reading:
    """Largest eigenvalue of diag|w| H diag|w|: sharpness in a ball that is measured in units of the weights themselves.

    At a minimum, max over |d / w| <= rho of L(w + d) - L(w) is rho^2 / 2 times it, to second order in rho.  It is the same for all networks that rescaling
    ReLU units makes of one another, where the largest eigenvalue of H itself may be anything.

    Shapes: value ().   Units: loss.   Error: the residual bound, rounding included.   Assumes: eval mode; the curvature is that of the examples seen.
    Cost: at most `products` Hessian products.   Raises: InvalidInput for fewer than one product.
    Source: Kwon et al. 2021, section 3; Andriushchenko et al. 2023, section 3 (the limit of a small ball).
    """
    if products < 1:
        raise InvalidInput(f"products must be at least 1, not {products}.")
    hessian, scale, like = Hessian(subject), parameters_of(subject).abs(), subject.state[subject.trainable[0]]
    eigen = lanczos_eigenvalues(
        lambda v: scale * hessian(scale * v), subject.dimension, k=1, rng=chance.generator(0, "hessian/adaptive"), like=like, max_products=max(products, 3),
    )  # fmt: skip
    n, population = len(subject.train), subject.train.population
    assumes = (() if n == population else (f"on {n:,} of {population:,} examples",)) + (() if bool(eigen.converged[0]) else ("not converged; the bound says how far",))
    details = {"converged": bool(eigen.converged[0]), "products": eigen.products}
    return Reading(
        "adaptive_sharpness", float(eigen.values[0]), "loss", error=float(eigen.bounds[0]), error_kind="bound", source=KWON_2021.at("section 3"), assumes=assumes, details=details
    )


def _scale(subject: Subject, radius: float, adaptive: bool) -> Tensor:
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidInput(f"The radius must be positive and finite, not {radius}.")
    weights = parameters_of(subject)
    return weights.abs() if adaptive else torch.ones_like(weights)


def average_sharpness(subject: Subject, *, rng: Generator, radius: float = 0.05, probes: int = 16, adaptive: bool = False, split: str = "train") -> Reading:
    """Mean rise of the loss on a sphere of some radius: E L(w + T u) - L(w), with |u| = rho uniform, T = 1 or diag|w| if `adaptive`.

    To second order it is rho^2 tr(T H T) / (2 P).  Each probe is a pair u, -u, from which the gradient drops out.

    Shapes: value (); samples (probes,).   Units: loss.   Error: standard error over probes, Student's t.   Assumes: eval mode; the loss is that of the examples seen.
    Cost: 2 `probes` + 1 forward passes.   Raises: InvalidInput for fewer than two probes, or a radius that is not positive.
    Source: Andriushchenko et al. 2023, section 3.
    """
    if probes < 2:
        raise InvalidInput(f"A standard error needs at least two probes, not {probes}.")
    scale, start, base = _scale(subject, radius, adaptive), parameters_of(subject), loss_value(subject, split)
    samples = []
    for index in range(probes):
        u = chance.normal(subject.dimension, rng=chance.child(rng, "probe", index), like=start)
        step = scale * u * (radius / u.norm())
        samples.append((loss_value(at_vector(subject, start + step), split) + loss_value(at_vector(subject, start - step), split)) / 2 - base)
    name = "average_adaptive_sharpness" if adaptive else "average_sharpness"
    return Reading.of_samples(name, samples, unit="loss", error_kind="probe", source=ANDRIUSHCHENKO_2023.at("section 3"), details={"radius": radius})


def worst_sharpness(subject: Subject, *, rng: Generator, radius: float = 0.05, steps: int = 10, starts: int = 2, adaptive: bool = False) -> Reading:
    """Largest rise of the training loss found in a ball: max over |u| <= rho of L(w + T u) - L(w), with T = 1 or diag|w| if `adaptive`.

    Ascent in the metric of the ball, u <- rho T g / |T g| with g the gradient at w + T u: its first step from u = 0 is that of SAM, on a quadratic loss it is power iteration.
    The first start is the centre, the others are random points of the sphere.

    Shapes: value ().   Units: loss.   Error: what is found lies in the ball, so the maximum is at least this large: the interval is open above.
    Assumes: eval mode; the loss is that of the examples seen.   Cost: `starts` x `steps` gradients and as many forward passes.
    Raises: InvalidInput for no step or start, a radius that is not positive, or a loss that is not finite in the ball.
    Source: Foret et al. 2021, section 2; Kwon et al. 2021, section 3.
    """
    if min(steps, starts) < 1:
        raise InvalidInput(f"steps and starts must be at least 1, not {steps} and {starts}.")
    scale, start = _scale(subject, radius, adaptive), parameters_of(subject)
    base, gradient = loss_gradient(subject)
    best, found = -math.inf, []
    for index in range(starts):
        u = scale * gradient
        if index or not float(u.norm()):
            u = chance.normal(subject.dimension, rng=chance.child(rng, "start", index), like=start)
        for _ in range(steps):
            u = u * (radius / u.norm())
            value, gradient_there = loss_gradient(at_vector(subject, start + scale * u))
            if not math.isfinite(value):
                raise InvalidInput(f"The loss is {value} in the ball of radius {radius:g}. Take a smaller radius.")
            best = max(best, value - base)
            u = scale * gradient_there
            if not float(u.norm()):
                break
        found.append(best)
    name = "worst_adaptive_sharpness" if adaptive else "worst_sharpness"
    source = KWON_2021.at("section 3") if adaptive else FORET_2021.at("section 2")
    return Reading(
        name, best, "loss", error_kind="bound", interval=(best, math.inf), source=source, details={"radius": radius, "best_after_each_start": found},
        assumes=("a lower bound of the maximum: the best point that ascent found",),
    )  # fmt: skip


def local_entropy(
    subject: Subject, *, rng: Generator, widths: Sequence[float] = (0.003, 0.01, 0.03, 0.1), probes: int = 64, inverse_temperature: float = 1.0, split: str = "train",
) -> Reading:  # fmt: skip
    """Log of the share of a Gaussian ball that the minimum's low loss fills: F(s) = log E exp(-b (L(w + s z) - L(w))), z standard normal.

    On a quadratic loss at a minimum F(s) = -1/2 log det(1 + b s^2 H).  With b the number of examples it is the log of a posterior volume, relative to the prior's.

    Shapes: value (widths,).   Units: nats.
    Error: jackknife standard error over probes; the jackknife's correction of the bias (the log of a mean lies low) is applied, and its size is in the interval.
    `details["effective"]` is how many probes carry the mean: where that is fewer than four, the few best of them decide, others may be better by far, and the interval is open above.
    Assumes: eval mode; the loss is that of the examples seen; probes beyond a loss that is not finite count for nothing.
    Cost: `probes` forward passes a width.   Raises: InvalidInput for fewer than four probes, or a width or temperature that is not positive.
    Source: Chaudhari et al. 2017, section 3.
    """
    if probes < 4:
        raise InvalidInput(f"A jackknife needs at least four probes, not {probes}.")
    if not widths or not all(math.isfinite(x) and x > 0 for x in (*widths, inverse_temperature)):
        raise InvalidInput(f"widths and inverse_temperature must be positive, not {tuple(widths)} and {inverse_temperature}.")
    start, base = parameters_of(subject), loss_value(subject, split)
    parts, effective = [], []
    for place, width in enumerate(widths):
        rises = []
        for index in range(probes):
            z = chance.normal(subject.dimension, rng=chance.child(rng, f"width {place}", index), like=start)
            rises.append(loss_value(at_vector(subject, start + width * z), split) - base)
        exponents = -inverse_temperature * np.where(np.isfinite(rises), rises, np.inf)
        parts.append(jackknife(exponents, log_mean_exp))
        weights = np.exp(exponents - exponents.max())
        effective.append(float(weights.sum() ** 2 / (weights**2).sum()))
    value, error, bias = np.asarray(parts).T
    total = np.hypot(error, bias)
    half = stats.t.ppf(0.975, probes - 1) * total
    return Reading(
        "local_entropy", value, "nats", error=total, error_kind="probe", n=probes, source=CHAUDHARI_2017.at("section 3"),
        interval=(value - half, np.where(np.asarray(effective) < FEWEST_EFFECTIVE, np.inf, value + half)),
        axes=(Axis("width", tuple(float(w) for w in widths), "parameter", "log"),), details={"effective": effective, "bias": bias, "inverse_temperature": inverse_temperature},
    )  # fmt: skip


def log_mean_exp(exponents: np.ndarray[Any, Any]) -> float:
    """log of the mean of exp, without overflow.  Raises: InvalidInput where none is finite."""
    top = float(exponents.max())
    if not math.isfinite(top):
        raise InvalidInput("The loss is not finite at any probe. Take smaller widths.")
    return top + math.log(float(np.exp(exponents - top).mean()))


def jackknife(samples: np.ndarray[Any, Any], statistic: Callable[[np.ndarray[Any, Any]], float]) -> tuple[float, float, float]:
    """A statistic less its bias, its standard error and that bias, from leaving out one sample at a time.

    t_i without sample i:  bias = (n - 1) (mean t_i - t),  error^2 = (n - 1) / n sum (t_i - mean t_i)^2.
    """
    n, whole = len(samples), statistic(samples)
    parts = np.asarray([statistic(np.delete(samples, i)) for i in range(n)])
    bias = (n - 1) * (float(parts.mean()) - whole)
    return whole - bias, math.sqrt((n - 1) / n * float(((parts - parts.mean()) ** 2).sum())), bias
