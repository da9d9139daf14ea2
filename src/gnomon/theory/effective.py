"""Signals at initialisation: variances of pre-activations and gradients, layer by layer, with what one network of finite width may differ by.

Notation: layer l has weights of variance v and biases of variance C_b, C_W = fan_in v; s is the activation after it, n_l its units; K is the second moment
of its pre-activations z, and <.>_K an expectation over z ~ N(0, K).

*Forward.*  Given what layer l+1 reads, x = s(z^l), its pre-activations have second moment C_b + v sum_j x_j^2: exactly, whatever the weights' distribution.
In the limit of many units the mean of s^2 is its expectation, so K^(l+1) = C_b + C_W <s^2>_{K^l}.  A convolution at position p sums over the positions q
of its patch that lie inside: K^(l+1)(p) = C_b + v C_in sum_q <s^2>_{K^l(q)}; each example and each position has its own K.

*Fluctuations.*  At width n the kernel of one network is random.  Let k = K-hat^l be it, r_l = Var(k)/K^2.  Units are independent given k, so
    Var(K-hat^(l+1)) = Var(E[.|k]) + E Var(.|k) = C_W^2 [ (d<s^2>/dK)^2 Var(k) + (<s^4> - <s^2>^2)/n_l ]   to leading order,
the recursion of the four-point vertex V = n Var(k) with chi_par = C_W d<s^2>/dK.  Divided by (K^(l+1))^2, with share = C_W <s^2>/K^(l+1):
    r_(l+1) = share^2 [ (K d ln<s^2>/dK)^2 r_l + (<s^4>/<s^2>^2 - 1)/n_l ].
The mean of z^2 over the n_l units of the layer itself then has relative variance r_l + 2 (1 + r_l)/n_l.  Positions and examples are taken as fully
correlated, so this is an upper bound for convolutions and for averages over examples.

*Backward.*  The gradient with respect to z_j^l is s'(z_j) sum_i W_ij delta_i^(l+1).  With weights independent of what runs forward (exact for a random
projection of the output in the limit of many units) g^l = E delta^2 = <s'^2>_K v sum g^(l+1) over what the unit feeds; for a convolution the adjoint of
the patch sum.  Given delta^(l+1) and k, the units' contributions are independent, Gaussian times s', so the relative variance grows by
(3 <s'^4>/<s'^2>^2 - 1)/n_l + (K d ln<s'^2>/dK)^2 r_l a layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.architecture import Architecture, Layer, Step, chains, steps
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import Function, Moments, compose, critical_weight_variance, moments, square_curvature
from gnomon.theory.criticality import critical_point as critical_point
from gnomon.theory.least_width import least_width as least_width
from gnomon.theory.tensors import tensors as tensors

PRINCIPLES = Source("roberts2022", "chapters 4 and 5")
HE_2015 = Source("he2015", "section 2.2")
POOLE_2016 = Source("poole2016", "section 2")
SCHOENHOLZ_2017 = Source("schoenholz2017", "section 3")

_ASSUMED = ("weights are independent of the forward pass; many units", "at a chain's last layer the gradient is the same at every position on average")

CRITICAL = 1e-6
"""A susceptibility that is 1 up to this is 1."""
WEIGHT_TOLERANCE = 0.01
"""One percent of a weight variance moves no other row of the chapter beyond its own tolerance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Signal:
    """The second moment of a layer's pre-activations: `kernel` (examples, *positions), its mean, and its relative variance r over networks.

    `arrived` are the moments of the activation through which the layer before it is read, shaped like that layer's kernel; None where a chain starts.
    """

    kernel: Array
    mean: float
    fluctuation: float
    arrived: Moments | None = None


def activation_after(architecture: Architecture, step: Step) -> Function:
    """The activation between a layer and the one before it, composed where there are several."""
    return compose([f for name in step.through if (f := architecture[name].function) is not None])


def heads(architecture: Architecture) -> tuple[str, ...]:
    """The layers at which a chain starts: theory needs the second moments of what they read."""
    return tuple(name for name, step in steps(architecture).items() if step.source is None)


def forward(architecture: Architecture, *, maps: Mapping[str, Array], squares: Mapping[str, Array]) -> dict[str, Signal]:
    """Second moments of the pre-activations of every covered layer, K^(l+1) = C_b + C_W <s^2>_{K^l}, per example and position.

    Shapes: `maps[layer]` (examples, *positions), the mean over features or channels of the square of what a chain's first layer reads (for an embedding, 1
    where a token is read and 0 where padding is); `squares[layer]` (draws,), the mean over examples and output positions of the sum of squares that one unit
    reads.  A first layer without a map has its mean from `squares` alone, and then no layer may follow it.
    Units: those of the pre-activations, squared.   Error: 1/width, see `preactivation_variance`.
    Assumes: independent weights and biases of mean 0 with the declared variances; many units.   Cost: one quadrature a layer and distinct variance.
    Raises: InvalidInput where a first layer has neither.   Source: Roberts, Yaida & Hanin 2022, eqs. (4.8) and (5.4) (arXiv v2); Poole et al. 2016, section 2.
    """
    done: dict[str, Signal] = {}
    for name, step in steps(architecture).items():
        layer = architecture[name]
        if layer.weight_variance is None:
            continue
        if step.source is None:
            if name in maps:
                kernel = _read(layer, _checked(layer, np.asarray(maps[name], dtype=np.float64)))
            elif name in squares:
                kernel = np.atleast_1d(layer.bias_variance + layer.weight_variance * np.mean(squares[name]))
            else:
                raise InvalidInput(f"Layer {name!r} starts a chain, so the second moment of what it reads is needed: give it in `maps` or `squares`.")
            done[name] = Signal(kernel, float(kernel.mean()), 0.0)
        elif step.source in done:
            before = done[step.source]
            found = moments(activation_after(architecture, step), before.kernel)
            kernel = _read(layer, _reshaped(architecture, step, found.square))
            mean = float(kernel.mean())
            share = 1 - layer.bias_variance / mean if mean else 0.0
            done[name] = Signal(kernel, mean, _fluctuation(before, found, architecture[step.source].units, share), found)
    return done


def _checked(layer: Layer, square: Array) -> Array:
    expected = layer.input_shape if layer.kind == "embedding" else layer.input_shape[1:] if layer.kind == "conv" else layer.input_shape[:-1]
    if layer.input_shape and square.shape[1:] != expected:
        raise InvalidInput(f"The map of what layer {layer.name!r} reads must have shape (examples, {', '.join(map(str, expected))}), not {square.shape}.")
    return square


def _read(layer: Layer, square: Array) -> Array:
    """C_b + v times the sum of second moments that one unit reads, at every position."""
    assert layer.weight_variance is not None
    if layer.kind == "conv":
        per_position = layer.fan_in // math.prod(layer.kernel)
        return layer.bias_variance + layer.weight_variance * per_position * _patch_sum(layer, torch.from_numpy(np.ascontiguousarray(square))).numpy()
    return layer.bias_variance + layer.weight_variance * layer.fan_in * square


def _patch_sum(layer: Layer, square: Float64[Tensor, "examples ..."]) -> Float64[Tensor, "examples ..."]:
    """The sum over the positions of the kernel's patch, padding by the layer's mode.  Shapes: (examples, *positions) to (examples, *output positions)."""
    pads = [end for pair in reversed(layer.padding) for end in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(square[:, None], pads, mode=mode) if any(pads) else square[:, None]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(layer.kernel)]
    return convolve(padded, torch.ones(1, 1, *layer.kernel, dtype=square.dtype), stride=layer.stride, dilation=layer.dilation)[:, 0]


def _reshaped(architecture: Architecture, step: Step, square: Array) -> Array:
    """Second moments after the reshapes of a step: positions become features (their mean), or features positions (the same everywhere)."""
    for name in step.through:
        layer = architecture[name]
        if layer.kind != "flatten" or layer.input_shape == layer.output_shape:
            continue
        if len(layer.output_shape) == 1:
            square = square.reshape(len(square), -1).mean(axis=1)
        else:
            square = np.broadcast_to(square.reshape(len(square), *[1] * (len(layer.output_shape) - 1)), (len(square), *layer.output_shape[1:]))
    return square


def _fluctuation(before: Signal, found: Moments, units: int, share: float) -> float:
    """r_(l+1) = share^2 [ (K d ln<s^2>/dK)^2 r_l + (<s^4>/<s^2>^2 - 1)/n_l ], moments averaged over examples and positions."""
    mean = float(found.square.mean())
    if mean == 0:
        return 0.0
    response = float((before.kernel * found.growth).mean()) / mean
    spread = float(np.sqrt(np.maximum(found.fourth - found.square**2, 0.0)).mean()) / mean
    return share**2 * (response**2 * before.fluctuation + spread**2 / units)


def preactivation_variance(architecture: Architecture, names: Sequence[str], signals: Mapping[str, Signal], squares: Mapping[str, Array]) -> Reading:
    """Second moment of the pre-activations of each layer at initialisation.

    K^(l+1) = C_b + C_W <s^2>_{K^l};  relative truncation sqrt(r_l + 2 (1 + r_l)/n_l)  (derived in this module's docstring).

    Shapes: value (layers,); samples (draws, layers) where a chain starts from a measured moment, the value that goes with it, draw by draw; `signals` from
    `forward`, `squares` as there.
    Units: none.   Error: truncation, the standard deviation of one network of this width about the limit.
    Assumes: as `forward`; where a chain starts anew, that layer's own input, measured.   Cost: none.
    Raises: InvalidInput for a layer that theory does not cover.   Source: Roberts, Yaida & Hanin 2022, eq. (5.4) (arXiv v2), chapter 4 (fluctuations).
    """
    reached = steps(architecture)
    draws = max((np.size(s) for s in squares.values()), default=0)
    values, errors, samples, assumes = [], [], [], []
    for name in names:
        if name not in signals:
            raise InvalidInput(f"Layer {name!r} is not covered by the recursion; leave it out of `names`.")
        layer, signal, step = architecture[name], signals[name], reached[name]
        mean = signal.mean
        if step.source is None and name in squares:
            assert layer.weight_variance is not None
            sample = layer.bias_variance + layer.weight_variance * np.asarray(squares[name], dtype=np.float64)
            mean = float(sample.mean())
            samples.append(np.broadcast_to(sample, (draws,)))
        else:
            samples.append(np.full(draws, mean))
        if step.source is None and step.why != "data":
            assumes.append(f"{name} starts from its measured input: {'after ' if architecture.traced else ''}{step.why}")
        values.append(mean)
        errors.append(mean * math.sqrt(signal.fluctuation + 2 * (1 + signal.fluctuation) / max(layer.units, 1)))
    paired = np.stack(samples, axis=1) if draws > 1 else np.zeros((1, 1))
    return Reading.predicted(
        "preactivation_variance", values, unit="", error=errors, error_kind="truncation", axes=(Axis("layer", tuple(names)),),
        samples=paired if np.ptp(paired, axis=0).any() else None, source=PRINCIPLES, assumes=_grouped(assumes),
    )  # fmt: skip


def _grouped(assumes: list[str]) -> tuple[str, ...]:
    """The assumptions, those with one reason told once."""
    by_reason: dict[str, list[str]] = {}
    for text in assumes:
        layer, _, reason = text.partition(" starts from its measured input: ")
        by_reason.setdefault(reason, []).append(f"`{layer}`")
    first = ("weights and biases are independent, of mean 0 and of the declared variance; many units",)
    return first + tuple(f"{_listed(layers)}: from the measured moment of what is read, {reason}" for reason, layers in by_reason.items())


def _listed(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclasses.dataclass(frozen=True)
class Slope:
    """The step from one layer to the next of its chain.

    `chi` C_W <s'^2> and `chi_parallel` C_W d<s^2>/dK inside the layer (no padding), `gradient` the mean square of the gradient at the first relative to the
    last of the chain, `fluctuation` its relative variance over networks, `kernel` the mean K at the first, `c_w` that of the next layer.
    """

    layer: str
    following: str
    last: str
    chi: float
    chi_parallel: float
    gradient: float
    fluctuation: float
    kernel: float
    c_w: float


def backward(architecture: Architecture, signals: Mapping[str, Signal]) -> dict[str, Slope]:
    """Slopes and gradient variances along every chain of at least two layers.

    chi_perp = C_W <s'^2>_K,  chi_par = C_W d<s^2>/dK,  g^l = <s'^2>_{K^l} v sum g^(l+1) over what a unit feeds (for convolutions the adjoint of the patch sum,
    stride, padding and dilation included).

    Shapes: `signals` from `forward`; one Slope for every layer that another of its chain follows.   Units: none.   Error: `fluctuation`.
    Assumes: as `forward`; weights independent of the forward pass; the gradient at a chain's last layer the same at every position and example on average.
    Cost: none to speak of.   Source: He et al. 2015, section 2.2 (backward); Schoenholz et al. 2017, section 4; padding derived here.
    """
    reached = steps(architecture)
    found: dict[str, Slope] = {}
    for chain in chains(architecture):
        covered = [name for name in chain if name in signals]
        if len(covered) < 2:
            continue
        gradient = np.ones_like(signals[covered[-1]].kernel)
        relative, fluctuation = gradient.mean(), 0.0
        for name, following in reversed(list(itertools.pairwise(covered))):
            step, layer, signal = reached[following], architecture[following], signals[name]
            here = signals[following].arrived
            assert layer.weight_variance is not None
            assert here is not None
            gradient = here.slope * _fed(architecture, step, layer, gradient, signal.kernel)
            relative = float(gradient.mean())
            slope = float(here.slope.mean())
            kurtosis = 3 * float(here.slope_fourth.mean()) / slope**2 if slope else 1.0
            response = float((signal.kernel * here.slope_growth).mean()) / slope if slope else 0.0
            fluctuation += (kurtosis - 1) / architecture[name].units + response**2 * signal.fluctuation
            c_w = layer.weight_variance * layer.fan_in
            found[name] = Slope(name, following, covered[-1], c_w * slope, c_w * float(here.growth.mean()), relative, fluctuation, signal.mean, c_w)
    return {name: found[name] for name in reached if name in found}


def _fed(architecture: Architecture, step: Step, layer: Layer, gradient: Float64[Array, "examples ..."], kernel: Float64[Array, "*kernel"]) -> Float64[Array, "*kernel"]:
    """v times the sum of the next layer's gradient variances over what one unit of this layer feeds.  Shapes: like `kernel`."""
    assert layer.weight_variance is not None
    if layer.kind == "conv":
        shape = (len(gradient), *layer.input_shape[1:])
        zero = torch.zeros(shape, dtype=torch.float64)
        gradient = torch.func.vjp(lambda x: _patch_sum(layer, x), zero)[1](torch.from_numpy(np.ascontiguousarray(gradient)))[0].numpy()
        gradient = gradient * (layer.units // layer.groups)
    else:
        gradient = gradient * layer.units
    for name in reversed(step.through):
        reshape = architecture[name]
        if reshape.kind == "flatten" and reshape.input_shape != reshape.output_shape:
            gradient = gradient.reshape(len(gradient), -1).mean(axis=1)
    return layer.weight_variance * np.broadcast_to(gradient.reshape(gradient.shape + (1,) * (kernel.ndim - gradient.ndim)), kernel.shape)


def gradient_variance(architecture: Architecture, names: Sequence[str], slopes: Mapping[str, Slope]) -> Reading:
    """Mean square of the gradient with respect to each layer's pre-activations, relative to that at the last layer of its chain.

    g^l / g^L = prod over the layers between of <s'^2>_K v (what a unit feeds);  relative truncation sqrt(r), see the module's docstring.

    Shapes: value (layers,); `slopes` from `backward`.   Units: none.   Error: truncation, the standard deviation of one network of this width.
    Assumes: as `backward`.   Cost: none.   Raises: InvalidInput for a layer that no other of its chain follows.
    Source: He et al. 2015, section 2.2.
    """
    found = _chosen(slopes, names)
    values = [slope.gradient for slope in found]
    errors = [slope.gradient * math.sqrt(slope.fluctuation) for slope in found]
    return Reading.predicted("gradient_variance", values, unit="", error=errors, error_kind="truncation", axes=(Axis("layer", tuple(names)),), source=HE_2015, assumes=_ASSUMED)


def _chosen(found: Mapping[str, Slope], names: Sequence[str]) -> list[Slope]:
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidInput(f"No layer of its chain follows {missing[0]!r}, so it has no slope; leave it out of `names`.")
    return [found[name] for name in names]


def weight_variance(architecture: Architecture, names: Sequence[str]) -> Reading:
    """The declared variance of each layer's weights.

    Shapes: value (layers,).   Units: none.   Error: truncation, 1 % plus two standard deviations of the mean square of the N weights of one
    network, sqrt((<w^4>/<w^2>^2 - 1)/N), which is sqrt(2/N) for normal and sqrt(0.8/N) for uniform ones.
    Assumes: independent weights of mean 0.   Cost: none.   Raises: InvalidInput for a layer without a declared variance.   Source: derived here.
    """
    values, errors = [], []
    for name in names:
        layer = architecture[name]
        if layer.weight_variance is None:
            raise InvalidInput(f"Layer {name!r} has no declared variance ({layer.why}); leave it out of `names`.")
        values.append(layer.weight_variance)
        errors.append(layer.weight_variance * (WEIGHT_TOLERANCE + 2 * math.sqrt((layer.weight_kurtosis - 1) / max(layer.weights, 1))))
    by_text: dict[str, list[str]] = {}
    for name in names:
        by_text.setdefault(architecture[name].declared, []).append(f"`{name}`")
    declared = tuple(f"{_listed(layers)}: {text}" for text, layers in by_text.items())
    return Reading.predicted("weight_variance", values, unit="", error=errors, error_kind="truncation", axes=(Axis("layer", tuple(names)),), assumes=declared)


def depth_scale(chi: float) -> float:
    """The number of layers over which a difference of two inputs, or a gradient, changes by a factor e: xi = 1/|ln chi|.

    Units: layers.   Error: exact for equal layers.   Assumes: the same slope chi at every layer.   Source: Schoenholz et al. 2017, section 3.
    """
    return math.inf if chi == 1 else 0.0 if chi <= 0 else 1 / abs(math.log(chi))


def slope(architecture: Architecture, names: Sequence[str], slopes: Mapping[str, Slope]) -> Reading:
    """The slope chi of each step of a chain: by what factor the squared norm of the gradient grows from the next layer to this one.

    chi = n_l g^l / (n_(l+1) g^(l+1)) with n counting units at all positions: C_W <s'^2>_K, less what zero padding loses at the edges.

    Shapes: value (layers,); `slopes` from `backward`.   Units: none.   Error: truncation, the standard deviation of one network of this width.
    Assumes: as `backward`.   Cost: none.   Raises: InvalidInput for a layer that no other of its chain follows.
    Source: Schoenholz et al. 2017, sections 3 and 4.
    """
    values, errors = [], []
    for step in _chosen(slopes, names):
        after = slopes.get(step.following)
        chi = step.gradient * _elements(architecture, step.layer) / ((after.gradient if after else 1.0) * _elements(architecture, step.following))
        values.append(chi)
        errors.append(chi * math.sqrt(max(step.fluctuation - (after.fluctuation if after else 0.0), 0.0)))
    return Reading.predicted("slope", values, unit="", error=errors, error_kind="truncation", axes=(Axis("layer", tuple(names)),), source=SCHOENHOLZ_2017, assumes=_ASSUMED)


def mean_slope(architecture: Architecture, chain: Sequence[str], slopes: Mapping[str, Slope]) -> Reading:
    """The geometric mean of the slopes along a chain, whose depth scale says over how many layers signals and gradients live.

    chi = (n_1 g^1 / (n_L g^L))^(1/(L-1)).

    Shapes: value (); `slopes` from `backward`.   Units: none.   Error: truncation, that of one network of this width: sqrt(r)/(L-1), relative.   Assumes: as `backward`.
    Cost: none.   Raises: InvalidInput for a chain of one layer.   Source: Schoenholz et al. 2017, sections 3 and 4.
    """
    first = _chosen(slopes, chain[:1])[0]
    count = len(chain) - 1
    value = (first.gradient * _elements(architecture, chain[0]) / _elements(architecture, chain[-1])) ** (1 / count)
    return Reading.predicted("mean_slope", value, unit="", error=value * math.sqrt(first.fluctuation) / count, error_kind="truncation", source=SCHOENHOLZ_2017, assumes=_ASSUMED)


def _elements(architecture: Architecture, name: str) -> int:
    return math.prod(architecture[name].output_shape)


@dataclasses.dataclass(frozen=True)
class CriticalScale:
    """By what `factor` the standard deviation of a layer's weights must be multiplied to be critical, and C_W as declared and where it is critical.

    `bias` is the variance of the biases that it takes, None where the declared one will do.
    """

    layer: str
    activation: str
    factor: float
    declared: str
    critical: float
    bias: float | None = None


def critical_scales(architecture: Architecture, slopes: Mapping[str, Slope]) -> tuple[CriticalScale, ...]:
    """For every step of every chain the weight scale of its later layer that is critical: C_W <s'^2>_K = 1 at a fixed point of K that keeps signals, chi_parallel <= 1.

    Where the fixed point with the declared biases repels (GELU, SiLU: signals would explode) it is that of `critical_point`, with its biases.

    Shapes: `slopes` from `backward`.   Units: none.   Error: that of `critical_weight_variance`.   Assumes: the later layer's biases stay as declared (scale-invariant
    activations: none), unless `bias` says otherwise.   Cost: a root search an activation that is not scale invariant.   Source: as `critical_weight_variance`.
    """
    reached, found = steps(architecture), []
    known: dict[tuple[str, float, float], tuple[float, float | None] | None] = {}
    for step in slopes.values():
        through = reached[step.following]
        later = architecture[step.following]
        named = [text for name in through.through if (text := architecture[name].activation)]
        key = (" ".join(named), later.bias_variance, round(math.log(max(step.kernel, 1e-6))))
        if key not in known:
            known[key] = _kept(activation_after(architecture, through), later.bias_variance, math.exp(key[2]))
        at = known[key]
        if at is not None and step.c_w > 0:
            found.append(CriticalScale(step.following, " and ".join(named) or "no activation", math.sqrt(at[0] / step.c_w), later.declared, *at))
    return tuple(found)


def _kept(function: Function, bias_variance: float, near: float) -> tuple[float, float | None] | None:
    """C_W where small differences and the kernel are kept, and the C_b that it takes where it is another."""
    at = critical_weight_variance(function, bias_variance=bias_variance, near=near)
    if at is None or at[1] == 0 or at[0] * float(moments(function, np.array([at[1]])).growth[0]) <= 1 + CRITICAL:
        return None if at is None else (at[0], None)
    try:
        point = critical_point(function, near=near)
    except OutOfScope:
        return None
    return point.weight_variance, point.bias_variance


@dataclasses.dataclass(frozen=True, eq=False)
class Expansion:
    """A deep network of equal widths n, layer by layer: E z^2 = K + D/n and Cov(z_i^2, z_j^2) = V/n up to higher orders in 1/n."""

    kernel: Float64[Array, "depth"]
    correction: Float64[Array, "depth"]
    vertex: Float64[Array, "depth"]


def expansion(activation: Function, *, depth: int, weight_variance: float, bias_variance: float = 0.0, kernel: float = 1.0) -> Expansion:
    """The recursions of the kernel, its correction at finite width and the four-point vertex of a fully connected network at initialisation.

    Units of layer l+1 are independent given k = C_b + C_W mean s^2, so, with g(K) = <s^2>_K, expanding E g(k) and Var(k) about K:
    K' = C_b + C_W g(K);   D' = chi_par D + C_W g''(K) V / 2;   V' = chi_par^2 V + C_W^2 (<s^4>_K - g^2),   chi_par = C_W g'(K).
    The first layer is Gaussian: D = V = 0.

    Shapes: (depth,), the pre-activations of layers 1 .. depth; `kernel` is K of the first, `weight_variance` C_W, times 1/n that of a weight.
    Units: those of the pre-activations, squared (`kernel`, `correction`) and to the fourth (`vertex`).   Error: that of the quadrature.
    Assumes: fully connected, equal widths, Gaussian weights and biases, one input.   Cost: a few quadratures a layer.
    Raises: InvalidInput where a moment of the activation is not finite.   Source: Roberts, Yaida & Hanin 2022, eqs. (5.108) to (5.110) (arXiv v2); derived above.
    """
    rows = [(kernel, 0.0, 0.0)]
    for _ in range(depth - 1):
        k, correction, vertex = rows[-1]
        found = moments(activation, np.array([k]))
        chi = weight_variance * float(found.growth[0])
        spread = float(found.fourth[0] - found.square[0] ** 2)
        second = weight_variance * square_curvature(activation, k) / 2
        rows.append((bias_variance + weight_variance * float(found.square[0]), chi * correction + second * vertex, chi**2 * vertex + weight_variance**2 * spread))
    return Expansion(*np.array(rows).T)


def _layers(first: int, depth: int) -> tuple[Axis, ...]:
    return (Axis("layer", tuple(float(layer) for layer in range(first, depth + 1))),)


def mean_field_variance(activation: Function, *, depth: int, width: int, weight_variance: float, bias_variance: float = 0.0, kernel: float = 1.0, first: int = 1) -> Reading:
    """The second moment of the pre-activations in the limit of many units, K^(l+1) = C_b + C_W <s^2>_{K^l}.

    Shapes: value (depth - first + 1,), layers `first` .. `depth`.   Units: none.   Error: truncation, the next order |D|/n of `expansion`; 0 in the first two layers, which are exact.
    Assumes: as `expansion`.   Cost: as `expansion`.   Raises: as `expansion`.
    Source: Roberts, Yaida & Hanin 2022, eq. (5.4) (arXiv v2) (K); Poole et al. 2016, section 2 (K); `expansion` (D).
    """
    found = expansion(activation, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance, kernel=kernel)
    return Reading.predicted(
        "preactivation_variance", found.kernel[first - 1 :], unit="", error=np.abs(found.correction[first - 1 :]) / width, error_kind="truncation", axes=_layers(first, depth),
        source=POOLE_2016, assumes=("fully connected, equal widths, Gaussian weights and biases",),
    )  # fmt: skip


def four_point_vertex(activation: Function, *, depth: int, width: int, weight_variance: float, bias_variance: float = 0.0, kernel: float = 1.0, first: int = 1) -> Reading:
    """The normalised four-point vertex V / (n K^2) of a deep network at initialisation: the relative covariance of the squares of two pre-activations of a layer.

    V^(l+1) = chi_par^2 V^(l) + C_W^2 (<s^4>_K - <s^2>_K^2), to leading order in 1/n.

    Shapes: value (depth - first + 1,), layers `first` .. `depth`.   Units: none.   Error: truncation, half its square: what follows where layers multiply, (1 + r/l)^l - 1 = r + r^2/2.
    Assumes: as `expansion`.   Cost: as `expansion`.   Raises: as `expansion`.
    Source: Roberts, Yaida & Hanin 2022, eqs. (5.108) to (5.110) (arXiv v2) (of K, V and G1); derived at `expansion`.
    """
    found = expansion(activation, depth=depth, weight_variance=weight_variance, bias_variance=bias_variance, kernel=kernel)
    value = (found.vertex / (width * found.kernel**2))[first - 1 :]
    return Reading.predicted(
        "four_point_vertex", value, unit="", error=value**2 / 2, error_kind="truncation", axes=_layers(first, depth), source=PRINCIPLES.at("chapter 4"),
        assumes=("fully connected, equal widths, Gaussian weights and biases",),
    )  # fmt: skip


def linear_norm_fluctuation(*, depth: int, width: int) -> Reading:
    """Relative variance of the squared norm of the pre-activations of a deep linear network at initialisation, exactly and at any width.

    |z'|^2 / |z|^2 is a chi-square of n degrees over n, whatever z, so E |z|^4 / (E |z|^2)^2 - 1 = (1 + 2/n)^l - 1 at layer l.

    Shapes: value (depth,).   Units: none.   Error: exact.   Assumes: linear layers of n units without biases, independent normal weights of variance C_W / n.
    Cost: none.   Source: Roberts, Yaida & Hanin 2022, eqs. (3.21) to (3.25) (arXiv v2); derived here.
    """
    layer = np.arange(1, depth + 1)
    return Reading.predicted("norm_fluctuation", (1 + 2 / width) ** layer - 1, unit="", axes=_layers(1, depth), source=PRINCIPLES.at("chapter 3"))
