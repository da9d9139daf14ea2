"""Elementwise expressions of one layer, written by hand, as one activation: x * sigmoid(x), x / (1 + |x|), 0.5 x (1 + erf(x / sqrt 2))."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from gnomon.core.layers import Layer

NAMES = {
    "abs", "add", "atan", "arctan", "clamp", "clamp_max", "clamp_min", "clip", "cos", "cosh", "div", "erf", "erfc", "exp", "expm1", "ge", "gt", "iadd", "imul", "isub", "itruediv", "le",
    "log", "log1p", "logaddexp", "lt", "maximum", "minimum", "mul", "multiply", "neg", "pow", "ipow", "reciprocal", "rsqrt", "rsub", "sigmoid", "sign", "sin", "sinh", "sqrt", "square",
    "sub", "subtract", "tanh", "truediv", "true_divide", "where",
}  # fmt: skip
"""Operations that make each number of the numbers in its place."""


@dataclasses.dataclass(frozen=True)
class Expression:
    """The function of one number that the nodes from `base` to the last of `nodes` compute; `functions` stand for modules and activations."""

    base: fx.Node
    nodes: tuple[fx.Node, ...]
    functions: Mapping[fx.Node, Callable[..., Any]]
    constants: Mapping[fx.Node, float]

    def __call__(self, value: Tensor) -> Tensor:
        """Its value, in the dtype given."""
        env: dict[fx.Node, Any] = {self.base: value.clone(), **self.constants}
        for node in self.nodes:
            args, keywords = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: env[source])
            if node in self.functions:
                env[node] = self.functions[node](_number(env[node.all_input_nodes[0]], value))
            elif node.op == "call_method":
                env[node] = getattr(args[0], str(node.target))(*args[1:], **keywords)
            else:
                env[node] = node.target(*args, **keywords)  # type: ignore[operator]
        return _number(env[self.nodes[-1]], value)


def _number(made: Tensor, like: Tensor) -> Tensor:
    """1 and 0 for what is true and false."""
    return made if made.is_floating_point() else made.to(like.dtype)


def _identity(value: Tensor) -> Tensor:
    return value


def stops(node: fx.Node) -> bool:
    """Whether no gradient goes through a node: detach(), or under torch.no_grad()."""
    return bool(node.meta.get("no_grad")) or (node.op == "call_method" and node.target in ("detach", "detach_"))


def expression(node: fx.Node, layers: Mapping[fx.Node, Layer], order: Mapping[fx.Node, int], constants: Mapping[fx.Node, float]) -> Expression | None:
    """The expression that a node is the end of, of the nearest one layer that it depends on alone, or None where it is no such thing or a single known activation, factor or sum.

    `order`: the place of each node in the graph; `constants`: buffers of one number.
    """
    layer = layers.get(node)
    if layer is None or layer.kind in ("activation", "identity") or not _elementwise(node, layer):
        return None
    functions: dict[fx.Node, Callable[..., Any]] = {}
    found, frontier = [node], {source for source in node.all_input_nodes if source not in constants}
    while len(frontier) > 1:
        last = max(frontier, key=lambda one: order[one])
        known = layers.get(last)
        if known is None or not _elementwise(last, known):
            return None
        if known.kind == "identity":
            functions[last] = _identity
        elif known.kind == "activation" and known.function is not None:
            functions[last] = known.function
        found.append(last)
        frontier = (frontier - {last}) | {source for source in last.all_input_nodes if source not in constants}
    if len(frontier) != 1:
        return None
    base = frontier.pop()
    if base not in layers or layers[base].output_shape != layer.output_shape or any(map(stops, found)):
        return None
    return Expression(base, tuple(sorted(found, key=lambda one: order[one])), functions, constants)


def _elementwise(node: fx.Node, layer: Layer) -> bool:
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module" and (layer.kind == "identity" or (layer.kind == "activation" and layer.activation != "prelu"))
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return layer.kind in ("activation", "identity") or called.rstrip("_") in NAMES


def buffers(graph_module: fx.GraphModule) -> dict[fx.Node, float]:
    """The nodes that read a buffer of one number, which is a constant."""
    own = {name: value for name, value in graph_module.named_buffers() if value.numel() == 1}
    return {node: float(own[str(node.target)]) for node in graph_module.graph.nodes if node.op == "get_attr" and str(node.target) in own}


def named(made: Expression) -> str:
    """What an expression is made of, for messages."""
    parts = [node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?") for node in made.nodes]
    return "the expression " + ", ".join(str(part) for part in parts)
