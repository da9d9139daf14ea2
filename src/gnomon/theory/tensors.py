"""The tensors of the effective theory at order 1/n for an activation, a depth and some inputs: choice of nodes, the layers in turn, errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from scipy import stats
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array
from gnomon.numerics import nodes
from gnomon.theory import first_order
from gnomon.theory.activations import Function
from gnomon.theory.criticality import check_growth
from gnomon.theory.first_order import Layer, Through
from gnomon.theory.pairs import pair_moments, smoothness
from gnomon.theory.sources import Sources, sources
from gnomon.theory.exact_sources import exact_sources

Rates = float | Sequence[float] | Array
Rule = Callable[[Float64[Array, "n n"]], tuple[Float64[Array, "nodes n"], Float64[Array, "nodes"]]]

MOST_NODES = 600_000
"""A grid of more nodes than this is not made; inputs are sampled instead."""
COARSER = 0.8
"""A grid of this part of the digits says what the error of the whole one is."""
LEVELS = (16, 24)
SCRAMBLES = 6
POINTS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Tensors:
    """The limits K and Theta of every layer and its tensors at order 1/n, by the book's letters, with an error for each element.

    Shapes: `kernel`, `ntk`, `G1`, `H1` (depth, n, n); the others (depth, n, n, n, n), None beyond the stage asked for.  `errors` has an array of the same shape for each: the half-width that
    a coarser grid suggests where `scrambles` is 0, else a standard error over as many scrambles of the points.
    """

    kernel: Float64[Array, "depth n n"]
    ntk: Float64[Array, "depth n n"]
    G1: Float64[Array, "depth n n"]
    V: Float64[Array, "depth n n n n"]
    errors: Mapping[str, Float64[Array, "..."]]
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

    def half_width(self, name: str) -> Float64[Array, "..."]:
        """Half the 95 % interval of a tensor: the bound, or Student's t times the standard error."""
        return self.errors[name] * (float(stats.t.ppf(0.975, self.scrambles - 1)) if self.scrambles else 1.0)

    def relative_error(self, name: str) -> float:
        """The largest error of a tensor relative to its largest element, over layers."""
        value, error = getattr(self, name), self.errors[name]
        return max((float(e.max() / np.abs(v).max()) for v, e in zip(value, error, strict=True) if np.abs(v).max()), default=0.0)


def tensors(
    activation: Function, *, depth: int, weight_variance: float, bias_variance: float = 0.0, kernel: Array | None = None, inputs: Array | None = None,
    weight_rates: Rates = 1.0, bias_rates: Rates = 1.0, through: Through = "ddntk", tolerance: float = 1e-8, points: int = POINTS, scrambles: int = SCRAMBLES,
    rng: Generator | None = None,
) -> Tensors:  # fmt: skip
    """All first-order tensors."""
    check_growth(activation)
    k = np.asarray(kernel, dtype=np.float64)
    layers = _layers(depth, weight_variance, bias_variance, weight_rates, bias_rates)
    smooth = smoothness(activation)
    rules = [lambda k,two,order, d=d: exact_sources(activation, k, two, order=order, digits=d) for d in ((-math.log10(tolerance))+4, -math.log10(tolerance)+6)]
    return _run(activation, k, layers, through, rules, smooth, 0)


def _layers(depth: int, weight_variance: float, bias_variance: float, weight_rates: Rates, bias_rates: Rates) -> list[Layer]:
    rates = []
    for said in (weight_rates, bias_rates):
        found = np.asarray(said, dtype=np.float64)
        if found.shape not in ((), (depth,)) or not (found >= 0).all():
            raise InvalidInput(f"Learning rates are one number or one for each of {depth} layers, not negative; their shape is {found.shape}.")
        rates.append(np.broadcast_to(found, (depth,)))
    return [Layer(weight_variance, bias_variance, float(w), float(b)) for w, b in zip(*rates, strict=True)]


def _run(activation: Function, k: Array, layers: list[Layer], through: Through, rules: list[Rule], smooth: int, scrambles: int) -> Tensors:
    order = max(first_order.ORDER.index(through), 1)
    first = layers[0]
    theta = first.bias_rate + first.weight_rate * (k - first.bias) / first.weight
    states = [first_order.zero(len(k), through) for _ in rules]
    kernels, ntks, rows = [k], [theta], [[state] for state in states]
    drift = [0.0]
    for layer in layers[1:]:
        two, error = pair_moments(activation, k, smooth)
        states = [first_order.step(state, two, rule(k, two, order), theta, layer, through) for state, rule in zip(states, rules, strict=True)]
        k, theta = first_order.limits(two, theta, layer)
        kernels.append(k)
        ntks.append(theta)
        drift.append(drift[-1] + error)
        for row, state in zip(rows, states, strict=True):
            row.append(state)
    found, errors = {}, {}
    for name in first_order.names(through):
        each = np.stack([np.stack([state[name] for state in row]) for row in rows])
        if scrambles:
            found[name], errors[name] = each.mean(0), each.std(0, ddof=1) / math.sqrt(scrambles)
        else:
            found[name] = each[1]
            largest = np.abs(each[0] - each[1]).reshape(len(layers), -1).max(1).reshape(-1, *[1] * (each.ndim - 2))
            errors[name] = np.broadcast_to(largest, each.shape[1:])
    return Tensors(np.stack(kernels), np.stack(ntks), errors=errors, scrambles=scrambles, **found)
