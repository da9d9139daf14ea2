"""The tensors of the effective theory at order 1/n for an activation, a depth and some inputs: how expectations are taken, the layers in turn, errors.

Smooth activations: exact Hermite series (`exact_sources`), at two cuts whose distance is the error.  Scale-invariant ones, such as ReLU: closed forms and an integral (`kinked_sources`).  Kinks
anywhere: product rules between them (`piecewise_sources`), two of them again; where these would be too large, inputs being nearly dependent, scrambled Sobol points, every scramble a recursion of
its own, which gives a standard error.  What carries tensors from layer to layer is exact in any case (`pairs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import stats
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics import nodes
from gnomon.numerics.product_rule import TooFine
from gnomon.theory import first_order
from gnomon.theory.activations import Function, scale_invariant
from gnomon.theory.criticality import check_growth
from gnomon.theory.exact_sources import exact_sources, lines
from gnomon.theory.first_order import Layer, Through
from gnomon.theory.kinked_sources import kinked_sources
from gnomon.theory.pairs import Table, pair_moments, smoothness
from gnomon.theory.pieces import Piecewise
from gnomon.theory.piecewise_sources import piecewise_sources
from gnomon.theory.sources import Sources, sources

Rates = float | Sequence[float] | Array
Rule = Callable[[Float64[Array, "n n"], Table, int], list[Sources]]
"""What a layer adds, to each of some recursions."""
Cuts = Callable[[float], Sequence[Sources]]
"""Sources that are good to so many digits, and finer ones."""
Prepared = Callable[[Float64[Array, "n n"], Table, int], Cuts]

PRINCIPLES = Source("roberts2022", "chapters 4, 8 and 11")
ASSUMES = ("fully connected, equal widths, Gaussian weights and biases", "weights learn at the rate lambda_W / fan_in, biases at lambda_b")

ROUNDING = 1e-12
"""A tensor that is smaller than this, relative to the largest of its layer, is 0."""
FINEST = 16.0
"""Digits beyond which rounding is all that is left."""
FALLS = 0.9
"""An error that does not fall below this part of what it was will not fall by refining more."""
LEVELS = (32, 48)
"""Nodes of two rules for four signs; their distance is the error."""
FINER = 2.5
"""Digits that the finer of two product rules has more: fewer would add no node to a short piece."""
SPARE = 1.0
"""Digits by which two cuts agree better than they were made for, as a rule: the first try leaves them out."""
SCRAMBLES = 8
POINTS = 8192
CONDITION = 1e-8
"""Correlation matrices whose smallest eigenvalue is below this cannot be inverted to any use."""
NEXT = 2.5
"""How many times depth/width the next order of a tensor is at most, relative to its largest element, over a grid of ensembles."""
COARSEST = 1e-4
"""The tolerance up to which product rules are made coarser before points are drawn."""
CONVERGED = 1e-3
"""A tensor whose error is larger than this, relative to its largest element, has not converged."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensors:
    """K and Theta, the limits of many units, and all tensors at order 1/n of every layer, by the book's letters (`first_order` defines them), with an error for each element.

    Shapes: `kernel`, `ntk`, `G1`, `H1` (depth, n, n); the others (depth, n, n, n, n), None beyond the stage asked for.  `errors` has an array of the same shape for each: a half-width where
    `scrambles` is 0, else a standard error over so many scrambles.
    """

    kernel: Float64[Array, "depth n n"]
    ntk: Float64[Array, "depth n n"]
    G1: Float64[Array, "depth n n"]
    V: Float64[Array, "depth n n n n"]
    errors: Mapping[str, Array]
    scrambles: int = 0
    H1: Float64[Array, "depth n n"] | None = None
    A: Float64[Array, "depth n n n n"] | None = None
    B: Float64[Array, "depth n n n n"] | None = None
    D: Float64[Array, "depth n n n n"] | None = None
    F: Float64[Array, "depth n n n n"] | None = None
    P: Float64[Array, "depth n n n n"] | None = None
    Q: Float64[Array, "depth n n n n"] | None = None
    R: Float64[Array, "depth n n n n"] | None = None
    S: Float64[Array, "depth n n n n"] | None = None
    T: Float64[Array, "depth n n n n"] | None = None
    U: Float64[Array, "depth n n n n"] | None = None

    def half_width(self, name: str) -> Array:
        """Half the 95 % interval of a tensor: the half-width itself, or Student's t times the standard error."""
        return np.asarray(self.errors[name] * (float(stats.t.ppf(0.975, self.scrambles - 1)) if self.scrambles else 1.0))

    def relative_error(self, name: str) -> float:
        """The largest error of a tensor, relative to the largest element of its layer; 0 where the tensor is, within rounding of the others."""
        depth, value, error = len(self.kernel), self.value(name), self.errors[name]
        size = np.abs(value).reshape(depth, -1).max(1)
        largest = np.max([np.abs(self.value(other)).reshape(depth, -1).max(1) for other in self.errors], axis=0)
        real = size > ROUNDING * largest
        return float((error.reshape(depth, -1).max(1)[real] / size[real]).max(initial=0.0))

    def value(self, name: str) -> Array:
        """A tensor by its letter.   Raises: InvalidInput where it was not asked for."""
        found = getattr(self, name) if name in self.errors or name in ("kernel", "ntk") else None
        if found is None:
            raise InvalidInput(f"There is no tensor {name!r} here, only {', '.join(self.errors)}: `through` says how many are computed.")
        return np.asarray(found)

    def reading(self, name: str, *, width: float) -> Reading:
        """A tensor over n, or for G1 and H1 the corrected mean, K + G1/n and Theta + H1/n.

        Shapes: those of the tensor.   Units: those of its moment.   Error: truncation, of the layer's largest element the part r, r/2 for V and r^2 for means, with r the largest relative
        variance of the layer, V/(n K^2) or A/(n Theta^2); for P to U at least NEXT l/n, since the slopes that carry them fluctuate together over all l layers, which K and Theta of the last
        may have forgotten; and what is left of the integration.   Assumes: as `tensors`.   Cost: none.
        Raises: InvalidInput for a width below 1 or a tensor that is not here.
        """
        if width < 1:
            raise InvalidInput(f"The width must be at least 1, not {width}.")
        value, mean = self.value(name), {"G1": self.kernel, "H1": self.ntk}.get(name)
        shape = (len(value), *[1] * (value.ndim - 1))
        spread = [_relative(self.V, self.kernel)] + ([_relative(self.A, self.ntk)] if self.A is not None and name not in ("G1", "V") else [])
        r = np.max(spread, axis=0) / width
        if name in first_order.NAMES["dntk"] + first_order.NAMES["ddntk"]:
            r = np.maximum(r, NEXT * np.arange(1, len(value) + 1) / width)
        largest = np.abs(value if mean is None else mean).reshape(len(value), -1).max(1) * (r / (2 * width if name == "V" else width) if mean is None else r**2)
        axes = (Axis("layer", tuple(map(float, range(1, len(value) + 1)))), *(Axis(f"input {'abcd'[i]}", tuple(map(float, range(value.shape[1])))) for i in range(value.ndim - 1)))
        found = value / width if mean is None else mean + value / width
        return Reading.predicted(
            name, found, unit="", error=largest.reshape(shape) + self.half_width(name) / width, error_kind="truncation", axes=axes, source=PRINCIPLES, assumes=ASSUMES
        )


def _relative(four: Array, two: Array) -> Float64[Array, "depth"]:
    """The largest X_aaaa / Y_aa^2 of each layer."""
    return np.asarray((np.einsum("laaaa->la", four) / np.einsum("laa->la", two) ** 2).max(1))


def tensors(
    activation: Function, *, depth: int, weight_variance: Rates, bias_variance: Rates = 0.0, kernel: Array | float | None = None, inputs: Array | None = None, weight_rates: Rates = 1.0,
    bias_rates: Rates = 1.0, widths: Sequence[float] | None = None, through: Through = "ddntk", tolerance: float | None = None, points: int = POINTS, scrambles: int = SCRAMBLES,
    rng: Generator | None = None,
) -> Tensors:  # fmt: skip
    """All first-order tensors of a fully connected network on several inputs: G1 and V; with the tangent kernel H1, A, B, D, F; its differentials P, Q; and R, S, T, U.

    The definitions and recursions stand in `gnomon.theory.first_order`.  `through` says how far: "kernel", "ntk", "dntk" or "ddntk".

    Shapes: `inputs` (n, features), of which K = C_b + C_W x x^T / features is made, or that `kernel` (n, n) of the first layer itself, a number for one input; rates and variances one number,
    or one a layer.  `widths` (depth - 1,) are the units of the hidden layers where they differ; n is then their harmonic mean.
    Units: those of pre-activations and rates.   Error: `errors` of the result: the distance of two cuts, the finer at most `tolerance` of each tensor's largest element (1e-8, or 1e-4 for more
    than four inputs; what can be had where none is asked for and the kernel is large or inputs with kinks are close); rounding where s is scale invariant; with kinks and inputs that are nearly
    dependent a standard error over `scrambles` of `points` points.   Assumes: weights and biases Gaussian.   Cost: at four inputs two hundredths of a second a layer, at eight a tenth, then n^4;
    with kinks some ten times as much.
    Raises: InvalidInput for a kernel that is none, zero inputs, inputs that are multiples of each other, rates that fit no layer; OutOfScope for activations that jump or grow faster than a
    polynomial, for R to U where the slope or the bend jumps (the square of a delta), where the stated error stays above CONVERGED, or above the tolerance that was asked for.
    Source: Roberts, Yaida & Hanin 2022 (arXiv v2), eqs. (4.8) (the first layer), (4.90) (V) and (4.115) (G1), chapters 8 and 11 and the epilogue (definitions of the others);
    Guillen, Misof & Gerken 2026 (several inputs); recursions derived in `first_order`.
    """
    check_growth(activation)
    _check_settings(depth, through, tolerance, points, scrambles)
    layers = _layers(depth, numbers("C_W", weight_variance), numbers("C_b", bias_variance), numbers("weight_rates", weight_rates), numbers("bias_rates", bias_rates), widths)
    first = layers[0]
    k = _first_kernel(inputs, kernel, first)
    if through != "kernel" and np.linalg.eigvalsh(k - first.bias)[0] < -1e-9 * np.abs(k).max():
        raise InvalidInput(f"The kernel of the first layer is C_b = {first.bias:g} and the inputs' own part, which must be a covariance.")
    smooth = smoothness(activation)
    if smooth == 0:
        raise OutOfScope(
            "the activation jumps (or turns so fast, or hides its slope from autograd, that it cannot be told from one that does): its slope is no function, and the tangent kernel does not exist"
        )
    if smooth < 3 and through == "ddntk":
        raise OutOfScope(
            f"the activation's {('', 'slope', 'bend')[smooth]} jumps: the square of a delta stands in R, S, T and U, which do not exist at finite width; ask for through='dntk'"
        )
    if smooth == 3:
        return _refined(activation, k, layers, through, tolerance, smooth)
    slopes = scale_invariant(activation)
    if slopes is not None:
        return _run(activation, k, layers, through, _closed(slopes), smooth, 0)
    _check_condition(activation, k, 1)
    with contextlib.suppress(TooFine):
        return _refined(activation, k, layers, through, tolerance, smooth)
    generator = rng or chance.generator(0, "tensors")
    found = _converged(_run(activation, k, layers, through, _sampled(activation, points, scrambles, smooth, generator), smooth, scrambles))
    worst = max(found.relative_error(name) for name in found.errors)
    if tolerance is not None and worst > tolerance:
        raise OutOfScope(f"the standard error is {worst:.2g} of the largest element, and {tolerance:.2g} was asked for: take more `points`, or leave `tolerance` out")
    return found


def _check_settings(depth: int, through: Through, tolerance: float | None, points: int, scrambles: int) -> None:
    if not isinstance(depth, int | np.integer) or depth < 1:
        raise InvalidInput(f"The depth must be at least 1 and whole, not {depth!r}.")
    if through not in first_order.ORDER:
        raise InvalidInput(f"`through` is one of {', '.join(first_order.ORDER)}, not {through!r}.")
    if tolerance is not None and not 0 < tolerance < 1:
        raise InvalidInput(f"The tolerance is a part of each tensor's largest element, above 0 and below 1, not {tolerance}.")
    if scrambles < 2 or points < 2 or points & (points - 1):
        raise InvalidInput(f"`points` must be a power of two and `scrambles` at least 2, not {points} and {scrambles}.")


def numbers(what: str, said: Any) -> Array:
    """What was said, in float64.   Raises: InvalidInput where it is no real, finite numbers."""
    try:
        found = np.asarray(said.detach().cpu() if isinstance(said, Tensor) else said)
        if np.iscomplexobj(found):
            raise ValueError("complex")
        found = found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} must be an array of real numbers, which {type(said).__name__} is not: {error}.") from None
    if not np.isfinite(found).all():
        raise InvalidInput(f"{what} must be finite: {int((~np.isfinite(found)).sum())} of {found.size} numbers are not.")
    return found


def _first_kernel(inputs: Any, kernel: Any, first: Layer) -> Float64[Array, "n n"]:
    if (kernel is None) == (inputs is None):
        raise InvalidInput("Give either `inputs` or the first layer's `kernel`.")
    if inputs is None:
        return checked_kernel(np.atleast_2d(numbers("The kernel", kernel)))
    x = numbers("The inputs", inputs)
    if x.ndim != 2 or not x.size:
        raise InvalidInput(f"The inputs must be of shape (inputs, features), one at least of each, not {x.shape}.")
    return checked_kernel(first.bias + first.weight * (x @ x.T) / x.shape[-1])


def checked_kernel(kernel: Float64[Array, "n n"]) -> Float64[Array, "n n"]:
    """The kernel of distinct inputs, made symmetric.   Shapes: (n, n) -> (n, n).   Raises: InvalidInput where it is no covariance, an input is 0, or one is a multiple of another."""
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel) or not np.isfinite(kernel).all() or not np.allclose(kernel, kernel.T):
        raise InvalidInput(f"The kernel must be a finite symmetric matrix (inputs, inputs); what came is of shape {kernel.shape}, or not finite, or not symmetric.")
    size = np.sqrt(np.maximum(np.diag(kernel), 0))
    if (size == 0).any():
        raise InvalidInput(f"Input {int(np.argmin(size))} has kernel 0 (it is zero and there is no bias): leave it out.")
    correlation = kernel / np.outer(size, size)
    if (np.abs(np.triu(correlation, 1)) > 1 - 1e-9).any():
        a, b = np.argwhere(np.abs(np.triu(correlation, 1)) > 1 - 1e-9)[0]
        raise InvalidInput(f"Inputs {a} and {b} are the same up to a factor: leave one out.")
    if np.linalg.eigvalsh(correlation)[0] < -1e-9:
        raise InvalidInput("The kernel is not a covariance matrix: it has a negative eigenvalue.")
    return (kernel + kernel.T) / 2


def _layers(depth: int, weight_variance: Array, bias_variance: Array, weight_rates: Array, bias_rates: Array, widths: Sequence[float] | None) -> list[Layer]:
    if not (weight_variance > 0).all():
        raise InvalidInput(f"C_W must be positive, not {weight_variance}.")
    each = []
    for what, found in (("Variances", weight_variance), ("Variances", bias_variance), ("Learning rates", weight_rates), ("Learning rates", bias_rates)):
        if found.shape not in ((), (depth,)) or not (found >= 0).all():
            raise InvalidInput(f"{what} are one number or one for each of {depth} layers, none negative; their shape is {found.shape}.")
        each.append(np.broadcast_to(found, (depth,)))
    units = np.ones(depth - 1) if widths is None else numbers("Widths", widths)
    if units.shape != (depth - 1,) or not (np.isfinite(units) & (units > 0)).all():
        raise InvalidInput(f"Widths are one positive number for each of {depth - 1} hidden layers, not {widths}.")
    inverse = 1 / units
    shares = np.concatenate([[1.0], inverse / inverse.mean()]) if depth > 1 else np.ones(1)
    return [Layer(*map(float, row)) for row in zip(*each, shares, strict=True)]


def _check_condition(activation: Function, k: Float64[Array, "n n"], layer: int) -> None:
    """See that inputs differ by enough: every two of them where moments have closed forms, else all together, since their kernel is inverted."""
    size = np.sqrt(np.diag(k))
    r = k / np.outer(size, size)
    pairs = scale_invariant(activation) is not None
    if (1 - np.abs(np.triu(r, 1)).max() if pairs else np.linalg.eigvalsh(r)[0]) < CONDITION:
        what = "two inputs have become multiples of each other" if pairs else "one input has become a sum of multiples of others"
        raise OutOfScope(f"by layer {layer} {what} (within {CONDITION:g}): with an activation that has kinks they must differ; take fewer inputs or layers")


def _refining(prepared: Prepared, allowed: float) -> Rule:
    """Two cuts, in each layer so fine that its own sources agree to what is allowed."""
    digits = max(-math.log10(allowed) - SPARE, 1.0)

    def rule(k: Float64[Array, "n n"], two: Table, order: int) -> list[Sources]:
        nonlocal digits
        cuts, before = prepared(k, two, order), math.inf
        while True:
            coarse, fine = cuts(digits)
            apart = fine.distance(coarse)
            if apart <= allowed or digits >= FINEST or apart > FALLS * before:
                if apart < allowed / 10:
                    digits = max(digits - 0.25, 1.0)
                return [coarse, fine]
            before = apart
            digits = min(digits + max(0.5, math.log10(apart / allowed)), FINEST)

    return rule


def _series(activation: Function) -> Prepared:
    def prepared(k: Float64[Array, "n n"], two: Table, order: int) -> Cuts:
        known = lines(activation, k, order)
        return lambda digits: exact_sources(activation, k, two, order=order, digits=digits, known=known)

    return prepared


def _pieces(activation: Function) -> Prepared:
    broken = Piecewise.of(activation)

    def prepared(k: Float64[Array, "n n"], two: Table, order: int) -> Cuts:
        return lambda digits: tuple(piecewise_sources(broken, k, two, order=order, digits=part) for part in (digits, digits + FINER))

    return prepared


def _closed(slopes: tuple[float, float]) -> Rule:
    return lambda k, two, order: [kinked_sources(slopes, k, two, order=order, nodes=level) for level in LEVELS]


def _sampled(activation: Function, points: int, scrambles: int, smooth: int, rng: Generator) -> Rule:
    """Points along the principal axes of each layer, scrambled anew for each and each recursion."""
    children = [chance.child(rng, "scramble", index) for index in range(scrambles)]
    count = iter(range(10**9))

    def rule(k: Float64[Array, "n n"], two: Table, order: int) -> list[Sources]:
        values, vectors = np.linalg.eigh(k)
        layer, root = next(count), (vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1].T
        weights, own = np.full(points, 1 / points), k if smooth == 1 else None
        return [sources(activation, nodes.sobol(len(k), points, rng=chance.child(child, "layer", layer)) @ root, weights, two, order=order, kernel=own) for child in children]

    return rule


def _refined(activation: Function, k: Array, layers: list[Layer], through: Through, asked: float | None, smooth: int) -> Tensors:
    """Cuts made finer until two of them agree to the tolerance.   Raises: TooFine where not even COARSEST can be had by a rule that is made."""
    prepared = _series(activation) if smooth == 3 else _pieces(activation)
    tolerance = asked or (1e-8 if len(k) <= 4 else 1e-4)
    allowed, before, found = tolerance / 2, math.inf, None
    while True:
        try:
            found = _run(activation, k, layers, through, _refining(prepared, allowed), smooth, 0)
        except TooFine:
            if found is not None:
                break
            if asked or tolerance >= COARSEST:
                raise
            tolerance *= 100
            allowed = tolerance / 2
            continue
        worst = max(found.relative_error(name) for name in found.errors)
        if worst <= tolerance:
            return found
        if allowed <= 10**-FINEST or not worst < FALLS * before:
            break
        before = worst
        allowed = max(allowed * min(tolerance / worst / 2, 0.1), 10**-FINEST)
    if asked is None:
        return _converged(found)
    raise OutOfScope(
        f"the error does not fall below {worst:.2g} of the largest element, and {asked:.2g} was asked for: ask for no less, take a smaller kernel, or leave `tolerance` out"
    )


def _converged(found: Tensors) -> Tensors:
    for name in found.errors:
        if found.relative_error(name) > CONVERGED * (30 if found.scrambles else 1):
            raise OutOfScope(
                f"the moments of {name} do not converge (its error is {found.relative_error(name):.2g} of its largest element): the activation bends within a small part of a large kernel, or inputs "
                "with kinks have come close; take fewer inputs, a smaller kernel or more `points`"
            )
    return found


def _run(activation: Function, k: Array, layers: list[Layer], through: Through, rule: Rule, smooth: int, scrambles: int) -> Tensors:
    """The layers in turn: as many recursions as the rule gives sources, two or one a scramble."""
    order = max(first_order.ORDER.index(through), 1)
    first = layers[0]
    theta = first.bias_rate + first.weight_rate * (k - first.bias) / first.weight
    states = [first_order.zero(len(k), through) for _ in range(scrambles or 2)]
    kernels, ntks, rows, drift = [k], [theta], [[state] for state in states], [0.0]
    for number, layer in enumerate(layers[1:], 1):
        if smooth < 3:
            _check_condition(activation, k, number)
        two, error = pair_moments(activation, k, smooth)
        states = [first_order.step(state, two, four.times(layer.share), theta, layer, through) for state, four in zip(states, rule(k, two, order), strict=True)]
        k, theta = first_order.limits(two, theta, layer)
        kernels.append(k)
        ntks.append(theta)
        drift.append(drift[-1] + error)
        for row, state in zip(rows, states, strict=True):
            row.append(state)
    found, errors = {}, {}
    for name in first_order.names(through):
        each = np.stack([np.stack([state[name] for state in row]) for row in rows])
        largest = np.abs(each[-1]).reshape(len(layers), -1).max(1) * np.array(drift)
        if scrambles:
            found[name], errors[name] = each.mean(0), each.std(0, ddof=1) / math.sqrt(scrambles)
        else:
            found[name] = each[1]
            bound = np.abs(each[0] - each[1]).reshape(len(layers), -1).max(1) + largest
            errors[name] = np.broadcast_to(bound.reshape(-1, *[1] * (each.ndim - 2)), each.shape[1:])
    return Tensors(np.stack(kernels), np.stack(ntks), errors=errors, scrambles=scrambles, **found)
