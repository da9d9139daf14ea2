"""The chapter `effective`: how signals and gradients travel through the network at initialisation, and the weight scale that is critical."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gnomon.core.architecture import Architecture, chains, steps
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Array, Axis, Reading, format_number
from gnomon.examination import aspect, width_effects
from gnomon.examination.row import Row
from gnomon.theory import effective as theory

ORDER = 50
TITLE = "Signals at initialisation"
THEORY = (
    "In a wide random network the second moment $K$ of the pre-activations follows a recursion, $K^{(l+1)} = C_b + C_W \\langle \\phi(z)^2 \\rangle_{K^{(l)}}$, "
    "with $C_W$ the fan-in times the variance of the weights. Small differences of inputs, and the squared norm of gradients, are multiplied at each layer by the slope "
    "$\\chi = C_W \\langle \\phi'(z)^2 \\rangle_K$: below 1 they die out over $\\xi = 1/|\\ln \\chi|$ layers (ordered), above 1 they explode (chaotic), at 1 they live (critical). "
    "One network of $n$ units differs from the limit by a relative $\\sqrt{2/n}$ and what the layers before add; this is the tolerance. "
    "Where pooling, normalisation, a sum of branches or attention interrupts a chain of layers, the recursion starts anew from the measured moment of what the next layer reads."
)
ASSUMES = (
    "the network is as its factory draws it, before training",
    "weights are independent, of mean 0 and of the declared variance (--init says it where it is not the layers' default)",
)

NEAR = 0.05
"""A standard deviation within 5 % of the critical one is called critical."""


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    forward, backward, weights = (readings.get(name) for name in ("preactivation_variance", "gradient_variance", "weight_variance"))
    if forward is not None:
        maps, squares = _statistics(forward)
        signals = theory.forward(facts.architecture, maps=maps, squares=squares)
        slopes = theory.backward(facts.architecture, signals)
        yield from _slopes(facts.architecture, backward, slopes)
        yield from _forward(facts.architecture, forward, signals, squares)
        if backward is not None:
            yield from _backward(facts.architecture, backward, slopes)
    if weights is not None:
        yield from _weights(facts.architecture, weights)
        yield from aspect.rows(facts.architecture)
        yield from width_effects.rows(facts.architecture, readings.get("width_effects"))


def _statistics(forward: Reading) -> tuple[dict[str, Array], dict[str, Array]]:
    maps, squares = ({str(name): np.asarray(values, dtype=np.float64) for name, values in forward.details.get(part, {}).items()} for part in ("maps", "squares"))
    return maps, squares


def _part(reading: Reading, names: Sequence[str]) -> Reading:
    """A reading at some of its layers, without what only theory needed of it."""
    at = [reading.axes[0].values.index(name) for name in names]
    assert reading.interval is not None
    return reading.replace(
        value=reading.value[at], error=reading.error[at], interval=tuple(end[at] for end in reading.interval), samples=None if reading.samples is None else reading.samples[:, at],
        axes=(Axis("layer", tuple(names)),), details={},
    )  # fmt: skip


def _covered(architecture: Architecture, measured: Reading) -> list[str]:
    declared = {layer.name for layer in architecture.layers if layer.weight_variance is not None}
    return [str(name) for name in measured.axes[0].values if name in declared]


def _differs(predicted: Reading, measured: Reading, verdict: Verdict, what: str) -> str:
    """Where a row fails, each layer with both numbers."""
    off = [i for i, outcome in enumerate(verdict.elements) if outcome == "fails"]
    told = [f"`{measured.axes[0].values[i]}` {what} {format_number(predicted.value[i])}, measured {format_number(measured.value[i])}" for i in off[:4]]
    return "; ".join(told) + (f"; and {len(off) - 4} more" if len(off) > 4 else "")


def _words(predicted: Reading, measured: Reading, verdict: Verdict, holds: str, what: str = "predicted") -> str:
    if verdict.outcome == "fails":
        return _differs(predicted, measured, verdict, what)
    if verdict.outcome == "vacuous":
        return "too few units for theory to say more than the order of magnitude"
    if verdict.outcome == "inconclusive":
        return "more re-drawn networks would decide"
    few = verdict.elements.count("vacuous")
    return holds + (f" in {len(verdict.elements) - few} of {len(verdict.elements)} layers; the others have too few units to tell" if few else "")


def _span(values: Array) -> str:
    low, high = (format_number(float(end)) for end in (values.min(), values.max()))
    return low if low == high else f"from {low} to {high}"


def _forward(architecture: Architecture, reading: Reading, signals: Mapping[str, theory.Signal], squares: Mapping[str, Array]) -> Iterator[Row]:
    names = _covered(architecture, reading)
    if not names:
        return
    predicted, measured = theory.preactivation_variance(architecture, names, signals, squares), _part(reading, names)
    span = f"{_span(measured.value)}, as predicted"
    because = "one network of finite width differs from the limit by a relative sqrt(r + 2/n)"
    yield Row("variance of pre-activations", predicted, measured, "equal", because=because, words=lambda verdict: _words(predicted, measured, verdict, span))


def _backward(architecture: Architecture, reading: Reading, slopes: Mapping[str, theory.Slope]) -> Iterator[Row]:
    names = _followed(architecture, reading)
    if not names:
        return
    predicted, measured = theory.gradient_variance(architecture, names, slopes), _part(reading, names)
    because = "one network of finite width differs from the limit by what each layer adds, (3<s'^4>/<s'^2>^2 - 1)/n"
    span = "gradients reach every layer as predicted"
    yield Row("variance of gradients", predicted, measured, "equal", because=because, words=lambda verdict: _words(predicted, measured, verdict, span))


def _followed(architecture: Architecture, reading: Reading) -> list[str]:
    """The layers of a gradient reading whose whole chain, up to the last layer, has declared variances."""
    declared = {layer.name for layer in architecture.layers if layer.weight_variance is not None}
    whole = {name for chain in chains(architecture) if declared.issuperset(chain) for name in chain[:-1]}
    return [str(name) for name in reading.axes[0].values if name in whole]


def _slopes(architecture: Architecture, reading: Reading | None, slopes: Mapping[str, theory.Slope]) -> Iterator[Row]:
    names = [] if reading is None else _followed(architecture, reading)
    if reading is None or not names:
        if max((len(chain) for chain in chains(architecture)), default=0) < 2:
            why = f"no two layers follow each other through activations alone: {_interruptions(architecture)}"
            yield Row("slope chi", out_of_scope=why, words="no chain of layers to speak of", headline=True)
        return
    chain = max((c for c in chains(architecture) if set(c[:-1]) <= set(names)), key=len)
    predicted, measured = theory.mean_slope(architecture, chain, slopes), _measured_mean(reading, chain)
    value, count = float(predicted), len(chain) - 1
    scale = theory.depth_scale(value)
    shown = "infinite" if np.isinf(scale) else f"{format_number(scale, 2)} layers"

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "fails":
            return f"slope {format_number(float(measured))} where {format_number(value)} is predicted: see the variance of weights"
        if verdict.outcome in ("vacuous", "inconclusive"):
            return _words(predicted, measured, verdict, "")
        if scale >= count:
            return f"critical for this depth: {count} step{'s' * (count > 1)}, depth scale {shown}"
        total = format_number(value**count if value > 1 else value**-count, 2)
        phase = "chaotic: squared gradients grow" if value > 1 else "ordered: squared gradients shrink"
        return f"{phase} {total}-fold over {count} step{'s' * (count > 1)}, depth scale {shown}"

    def advice(verdict: Verdict) -> str | None:
        return None if verdict.outcome != "holds" or scale >= count else _advice(theory.critical_scales(architecture, slopes))

    where = f"{chain[0]} to {chain[-1]}"
    because = "one network of finite width differs from the limit; the geometric mean over the steps divides that by their number"
    yield Row(f"slope chi, {where}", predicted, measured, "equal", because=because, words=words, advice=advice, headline=True)
    if len(names) > 1:
        by_layer, seen = theory.slope(architecture, names, slopes), _measured_slopes(architecture, reading, names)
        holds = f"{_span(by_layer.value)}, as predicted"
        yield Row("slope chi by layer", by_layer, seen, "equal", because="one network of finite width", words=lambda verdict: _words(by_layer, seen, verdict, holds))


def _advice(scales: Sequence[theory.CriticalScale]) -> str | None:
    """One sentence: which layers' weights to scale by how much; layers with one factor together, the largest groups first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for scale in scales:
        if abs(scale.factor - 1) > NEAR:
            biases = "" if scale.bias is None else f" and give them biases of variance {format_number(scale.bias)}"
            groups.setdefault((format_number(scale.factor), scale.activation, scale.declared.partition(",")[0], format_number(scale.critical), biases), []).append(scale.layer)
    told = []
    for (factor, activation, declared, critical, biases), layers in sorted(groups.items(), key=lambda item: -len(item[1]))[:2]:
        named = ", ".join(f"`{name}`" for name in layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
        why = f"declared variance {declared}; critical after {activation} is {critical}/fan_in{', with the declared biases no kernel stays' if biases else ''}"
        told.append(f"multiply the standard deviation of the weights of {named} by {factor}{biases} ({why})")
    sentence = "; ".join(told)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else None


def _interruptions(architecture: Architecture) -> str:
    reasons = list(dict.fromkeys(step.why for step in steps(architecture).values() if step.source is None and step.why != "data"))
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "") if reasons else "there is one layer"


def _norms(reading: Reading, name: str) -> Array:
    """Per network, the squared norm of the gradient at a layer relative to the mean square at its chain's last layer."""
    assert reading.samples is not None
    elements = reading.details["elements"]
    at = reading.axes[0].values.index(name)
    return np.asarray(reading.samples[:, at] * elements[name])


def _measured_mean(reading: Reading, chain: Sequence[str]) -> Reading:
    """The mean slope along a chain: the mean over networks of the ratio of squared norms, to the power 1/(L-1); its replicates are linearised about it."""
    ratio = _norms(reading, chain[0]) / reading.details["elements"][chain[-1]]
    count, mean = len(chain) - 1, float(ratio.mean())
    value = mean ** (1 / count)
    linear = value * (1 + (ratio / mean - 1) / count)
    return Reading.of_samples("mean_slope", linear, unit="", error_kind="seed", source=reading.source, assumes=reading.assumes, skipped=reading.skipped)


def _measured_slopes(architecture: Architecture, reading: Reading, names: Sequence[str]) -> Reading:
    """Per network, the ratio of squared norms of the gradients at neighbouring layers of a chain."""
    after = {a: b for chain in chains(architecture) for a, b in itertools.pairwise(chain)}
    last = set(reading.details["last"].values())
    norms = {name: _norms(reading, name) for name in names} | {name: np.asarray(float(reading.details["elements"][name])) for name in last}
    samples = np.stack([norms[name] / np.maximum(norms[after[name]], 1e-300) for name in names], axis=1)
    return Reading.of_samples(
        "slope", samples, unit="", error_kind="seed", axes=(Axis("layer", tuple(names)),), source=reading.source, assumes=reading.assumes, skipped=reading.skipped
    )


def _weights(architecture: Architecture, reading: Reading) -> Iterator[Row]:
    names = _covered(architecture, reading)
    if not names:
        return
    predicted, measured = theory.weight_variance(architecture, names), _part(reading, names)

    def advice(verdict: Verdict) -> str | None:
        off = [i for i, outcome in enumerate(verdict.elements) if outcome == "fails"]
        if not off:
            return None
        times = {names[i]: format_number(float(np.sqrt(measured.value[i] / predicted.value[i]))) for i in off[:4] if predicted.value[i] > 0}
        ratios = ", ".join(f"{factor} times the declared one in `{name}`" for name, factor in times.items())
        said = " ".join(f"--init {names[i]}={measured.value[i]:.3g}" for i in off[:4])
        return f"Say how the network is drawn ({said}), or draw it as declared: the standard deviation of the weights is {ratios or 'not 0, as declared'}."

    because = "1 % and two standard deviations of the mean square of one layer's weights"
    yield Row(
        "variance of weights, declared and drawn", predicted, measured, "equal", because=because,
        words=lambda verdict: _words(predicted, measured, verdict, "drawn as declared", "declared"), advice=advice,
    )  # fmt: skip
