"""`gnomon theory`: predictions for a network that is described in a few numbers."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from gnomon.cli._guard import guarded

Option = typer.Option

theory = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What theory predicts for a network that a few numbers describe.")

CLASSES = {
    "scale-invariant": "every kernel stays as it is",
    "zero": "K* = 0: the kernel falls slowly to 0",
    "half-stable": "kernels on one side are drawn to K*, those on the other leave it",
}


@theory.callback()
def theory_() -> None:
    """What theory predicts for a network that a few numbers describe."""


@theory.command("effective")
@guarded
def effective(
    activation: Annotated[str, Option(help="A name such as gelu, tanh or relu, or file.py:function.")],
    depth: Annotated[int | None, Option(help="Layers; with --width, the table of every layer.")] = None,
    width: Annotated[int | None, Option(help="Units of every layer.")] = None,
    weight_variance: Annotated[float | None, Option(help="C_W, fan-in times the variance of a weight.  [default: the critical one]")] = None,
    bias_variance: Annotated[float | None, Option(help="C_b, the variance of a bias.  [default: the critical one, or 0 with --weight-variance]")] = None,
    kernel: Annotated[float | None, Option(help="K of the first layer, the variance of its pre-activations.  [default: K*, or 1]")] = None,
    outputs: Annotated[int, Option(help="Outputs of the network, for the depth that suits a width.")] = 10,
    json: Annotated[bool, Option("--json", help="Print JSON, alone.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """The critical initialisation of an activation, and what a fully connected network of a depth and width does at it (or at another).

    Where there is no critical point the reason is printed; that is a result, and the exit code 0.
    """
    from gnomon.core.errors import InvalidInput

    if (depth is None) != (width is None):
        raise InvalidInput("The table of every layer takes both --depth and --width.")
    function = activation_of(activation)
    document = predicted(function, depth, width, weight_variance, bias_variance, kernel) | {"activation": activation}
    if document["critical_point"] is not None:
        document["aspect"] = aspect(function, depth, width, outputs)
    if json:
        from gnomon.run.store import dumps

        typer.echo(dumps(document), nl=False)
    else:
        typer.echo(text(document))


def activation_of(said: str) -> Any:
    """The activation of a name, or the one that stands in a file.  Raises: InvalidInput for what is neither."""
    import inspect

    from torch import nn

    from gnomon.core import factory
    from gnomon.theory.activations import named

    if not factory.is_factory(said):
        return named(said)
    found = factory.find(said, what="activation")
    made = found() if found.call.called or inspect.isclass(found.function) else found.function
    return made.double() if isinstance(made, nn.Module) else made


def predicted(activation: Any, depth: int | None, width: int | None, weight_variance: float | None, bias_variance: float | None, kernel: float | None) -> dict[str, Any]:
    """The critical point, or why there is none, and the table where a depth and a width are given, as plain data."""
    import dataclasses

    from gnomon.core.errors import InvalidInput, OutOfScope
    from gnomon.theory.effective import critical_point

    document: dict[str, Any] = {"critical_point": None, "out_of_scope": None}
    try:
        point = critical_point(activation)
        document["critical_point"] = dataclasses.asdict(point) | {"susceptibilities": {"chi_parallel": 1.0, "chi_perp": 1.0}}
    except OutOfScope as error:
        point, document["out_of_scope"] = None, str(error)
    if depth is None or width is None:
        return document
    if weight_variance is None and point is None:
        raise InvalidInput(f"{document['out_of_scope']}. Give --weight-variance for a table at a setting that is not critical.")
    at_critical = weight_variance is None and bias_variance is None
    c_w = weight_variance if weight_variance is not None else point.weight_variance if point else 0.0
    c_b = bias_variance if bias_variance is not None else point.bias_variance if point and at_critical else 0.0
    first = kernel if kernel is not None else max(point.kernel if point and point.kernel else 1.0, c_b)
    if first < c_b:
        raise InvalidInput(
            f"K of the first layer is C_b and what the inputs add to it: it cannot be {first:g} where C_b is {c_b:g}. Give a larger --kernel, or a smaller --bias-variance."
        )
    off = point is not None and point.kind == "half-stable" and abs(first / point.kernel - 1) > 1e-6
    return document | {"network": network(activation, depth, width, c_w, c_b, first) | {"off_critical_kernel": off}}


def aspect(activation: Any, depth: int | None, width: int | None, outputs: int) -> dict[str, Any]:
    """The depth-to-width ratio that suits a network at its critical point, and, of one that is deeper, the residual connection that brings it there."""
    from gnomon.core.errors import OutOfScope
    from gnomon.theory.aspect_ratio import optimal_ratio, optimal_residual

    ratio = optimal_ratio(activation, outputs=outputs)
    found: dict[str, Any] = {"outputs": outputs, "optimal_ratio": ratio.to_json(), "ratio": None, "optimal_residual": None}
    if depth is None or width is None:
        return found
    try:
        residual = optimal_residual(activation, depth=depth, width=width, outputs=outputs).to_json()
    except OutOfScope:
        residual = None
    return found | {"ratio": depth / width, "optimal_residual": residual}


def network(activation: Any, depth: int, width: int, weight_variance: float, bias_variance: float, kernel: float) -> dict[str, Any]:
    """The table of every layer; `vacuous_from` is the first layer at which the error of V/(n K^2) reaches half of it."""
    from gnomon.theory.finite_width import layer_by_layer

    readings = layer_by_layer(activation, depth=depth, width=width, weight_variance=weight_variance, bias_variance=bias_variance, kernel=kernel)
    vertex = readings[1]
    vague = [layer for layer, (value, error) in enumerate(zip(vertex.value, vertex.error, strict=True), 1) if value and error >= value / 2]
    settings = {"depth": depth, "width": width, "weight_variance": weight_variance, "bias_variance": bias_variance, "kernel": kernel}
    return settings | {"vacuous_from": vague[0] if vague else None, "readings": [reading.to_json() for reading in readings], "least_width": least(activation, settings)}


def least(activation: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The widths below which the first order fails and from which it is good, as sentences and numbers, or why they cannot be had."""
    from gnomon.core.errors import OutOfScope
    from gnomon.theory.least_width import least_width, words

    where = {key: settings[key] for key in ("depth", "weight_variance", "bias_variance", "kernel")}
    try:
        fails, good = (least_width(activation, tolerance=part, **where) for part in (0.5, 0.1))
    except OutOfScope as error:
        return {"out_of_scope": str(error)}
    return {"fails_below": float(fails.value[-1]), "good_from": float(good.value[-1]), "words": words(fails, settings["width"])}


def text(document: dict[str, Any]) -> str:
    """The document in words and columns."""
    point = document["critical_point"]
    lines = [f"{document['activation']}: {document['out_of_scope']}"] if point is None else _point(document["activation"], point)
    lines += _aspect(document["aspect"]) if "aspect" in document else []
    return "\n".join(lines + (["", *_table(document["network"])] if "network" in document else []))


def _aspect(found: dict[str, Any]) -> list[str]:
    from gnomon.core.reading import format_number

    best, ratio = found["optimal_ratio"]["value"], found["ratio"]
    said = f"{found['outputs']} output{'s' if found['outputs'] > 1 else ''} share{'' if found['outputs'] > 1 else 's'} most information at depth/width near {format_number(best, 2)}, an order of magnitude"
    if ratio is None:
        return [said]
    times = f"{format_number(ratio / best, 2)} times as deep" if ratio > best else f"{format_number(best / ratio, 2)} times shallower"
    residual = found["optimal_residual"]
    advice = f"; residual connections z' = {residual['value']:.2f} z + W s(z) + b would bring it there" if residual and ratio > 2 * best else ""
    return [f"{said}: this network is {times}{advice}"]


def _point(activation: str, point: dict[str, Any]) -> list[str]:
    exponents = point["exponents"]
    at = "any" if point["kind"] == "scale-invariant" else f"{point['kernel']:.9g}"
    lines = [
        f"{activation}: {point['kind']}, {CLASSES[point['kind']]}",
        f"K* {at}   C_W {point['weight_variance']:.9g}   C_b {point['bias_variance']:.9g}   chi_parallel = chi_perp = 1"
        + (f"   (K* to {point['error']:.0e})" if point["error"] else ""),
    ]
    if point["kind"] == "zero" and exponents["rate"]:
        lines.append(
            f"with depth l: K = ({exponents['rate']:.4g} l)^-{exponents['kernel']:.4g}, its changes along l^-{exponents['parallel']:.4g}, across l^-{exponents['perpendicular']:.4g}"
        )
    elif point["kind"] == "zero":
        lines.append("with depth l: K falls as 1/log l (the activation is linear on either side of 0)")
    elif point["kind"] == "half-stable":
        other = "below" if point["attracts"] == "above" else "above"
        settle = "run away for good" if point["neighbour"] is None else f"go to K = {point['neighbour']:.4g}, where signals stay too and chi_perp is not quite 1"
        lines.append(f"kernels {point['attracts']} K* approach it as 1/({exponents['rate']:.3g} l), l layers on; those {other} {settle}: K of the first layer should be K*")
    return [*lines, f"V/(n K^2) grows as {exponents['vertex_slope']:.4g} l/n"]


def _table(network: dict[str, Any]) -> list[str]:
    from gnomon.core.reading import format_value

    ratio = network["depth"] / network["width"]
    head = f"depth {network['depth']}, width {network['width']} (ratio {ratio:.3g}), C_W {network['weight_variance']:.9g}, C_b {network['bias_variance']:.9g}"
    names = ("layer", "kernel K", "V/(n K^2)", "chi_parallel", "chi_perp")
    columns = [[format_value(v, e, (v - e, v + e)) for v, e in zip(reading["value"], reading["error"], strict=True)] for reading in network["readings"]]
    rows = [names, *((str(layer), *cells) for layer, cells in enumerate(zip(*columns, strict=True), 1))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = ["  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True)) for row in rows]
    off = ["the first layer's K is off K*: the growth of V above and chi = 1 do not hold, the table does"] if network["off_critical_kernel"] else []
    said = [] if network["vacuous_from"] is None else [f"from layer {network['vacuous_from']} on the first order in 1/width is vacuous: the error of V/(n K^2) reaches half of it"]
    least = network["least_width"]
    found = (
        [f"{least['words']} (a tenth from {math.ceil(least['good_from']):,} on)"] if "words" in least else [f"the width below which the first order fails: {least['out_of_scope']}"]
    )
    return [head, *lines, *off, *said, *found]
