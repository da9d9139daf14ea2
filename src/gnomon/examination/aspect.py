"""Rows of the chapter `effective` about depth and width: the ratio that the network has beside the one that suits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gnomon.core.architecture import Architecture, chains, steps
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Reading, format_number
from gnomon.examination.row import Row
from gnomon.theory import effective as theory
from gnomon.theory.activations import Function
from gnomon.theory.aspect_ratio import optimal_ratio, optimal_residual
from gnomon.theory.criticality import critical_point

FAR = 2.0
"""The optimal ratio is an order of magnitude: a network within this factor of it is near."""


def rows(architecture: Architecture) -> Iterator[Row]:
    """One row on the longest chain of fully connected layers, at which the effective theory is aimed; none where there is no hidden layer.  Cost: a few hundred quadratures."""
    chain = _longest(architecture)
    if len(chain) < 3:
        return
    function = theory.activation_after(architecture, steps(architecture)[chain[1]])
    hidden = [architecture[name].units for name in chain[:-1]]
    ratio, outputs = sum(1 / units for units in hidden), architecture[chain[-1]].units
    title = f"depth over width, {chain[0]} to {chain[-1]}"
    try:
        best, point = float(optimal_ratio(function, outputs=outputs)), critical_point(function)
    except OutOfScope as error:
        yield Row(title, out_of_scope=f"the effective theory expands about a critical point: {error}")
        return
    vertex = point.exponents.vertex_slope * ratio
    measured = Reading("depth_to_width", ratio, "", source=None, assumes=("the sum of 1/width over the hidden layers",))
    words = (
        f"{format_number(ratio, 2)}; {outputs} outputs share most information near {format_number(best, 2)}, an order of magnitude; "
        f"at criticality the mean squares of a layer's units vary by {format_number(100 * vertex**0.5, 2)} % from one initialisation to the next"
    )
    yield Row(title, measured=measured, words=words, advice=_advice(function, chain, ratio, best, outputs))


def _longest(architecture: Architecture) -> tuple[str, ...]:
    """The longest run of linear layers without positions within a chain, through one and the same activation."""
    reached, best = steps(architecture), tuple[str, ...]()
    for chain in chains(architecture):
        run: list[str] = []
        for name in chain:
            layer, follows = architecture[name], reached[name]
            if layer.kind != "linear" or len(layer.output_shape) != 1:
                run = []
                continue
            same = len(run) < 2 or _names(architecture, follows.through) == _names(architecture, reached[run[1]].through)
            run = [*run, name] if same else [run[-1], name]
            best = max(best, tuple(run), key=len)
    return best


def _names(architecture: Architecture, through: Sequence[str]) -> list[str]:
    return [architecture[name].activation for name in through if architecture[name].function is not None]


def _advice(function: Function, chain: Sequence[str], ratio: float, best: float, outputs: int) -> str | None:
    if ratio <= FAR * best:
        return None
    try:
        residual = float(optimal_residual(function, depth=len(chain) - 1, width=max(round((len(chain) - 1) / ratio), 1), outputs=outputs))
    except OutOfScope:
        return None
    return f"Widen the hidden layers {format_number(ratio / best, 2)} times, or add residual connections, z' = {residual:.2f} z + W s(z) + b: the network is deeper than its width carries."
