"""The traced graph with every node a function of its arguments: in-place operations, repeated parts, attributes and activations of concatenations written as what they compute."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from gnomon.core import layers as describing
from gnomon.core.errors import OutOfScope

PARTS = ("chunk", "split", "tensor_split")
JOINS = ("cat", "concat", "concatenate")
VIEWS = {
    *PARTS, "getitem", "view", "reshape", "flatten", "unflatten", "transpose", "swapaxes", "swapdims", "permute", "movedim", "squeeze", "unsqueeze", "expand", "view_as", "reshape_as", "narrow",
    "select", "unbind", "t", "detach", "contiguous",
}  # fmt: skip
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls, empty for others."""
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", "") if node.op == "call_function" else ""  # type: ignore[return-value]


def functional(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same network, with what is read after an operation in place what that left, and each part of channels taken once.  Cost: none."""
    modules = dict(graph_module.named_modules())
    for node in list(graph_module.graph.nodes):
        if called(node) == "getattr" and node.args[1] == "mT":
            with node.graph.inserting_before(node):
                turned = node.graph.call_method("transpose", (node.args[0], -2, -1))
            node.replace_all_uses_with(turned)
            node.graph.erase_node(node)
    for node in list(graph_module.graph.nodes):
        if _in_place(node, modules):
            _left_behind(node, modules)
    for node in list(graph_module.graph.nodes):
        _distributed(node, modules)
    _once(graph_module.graph)
    for node in reversed(graph_module.graph.nodes):
        if called(node) in ("_assert", "_assert_is_none"):  # that arguments not given are their defaults
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    for node in [node for node in graph_module.graph.nodes if node.op == "placeholder"][1:]:
        if not node.users:
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def _in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node changes the tensor that it reads."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_function" and node.target not in IN_PLACE and not called(node).endswith("_"):
        return bool(_argument(node, "inplace"))
    name = called(node)
    return node.target in IN_PLACE or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a function, by its name."""
    if name in node.kwargs:
        return node.kwargs[name]
    try:
        return inspect.signature(cast(Callable[..., Any], node.target)).bind(*node.args).arguments.get(name)
    except (TypeError, ValueError):
        return None


def _left_behind(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """What reads the changed tensor afterwards, under any name of it, reads the result; the operation itself works on a copy."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return
    source, order = node.args[0], {one: place for place, one in enumerate(node.graph.nodes)}
    names = _names(source, modules, _hands_on)
    for other in _names(source, modules, _shares):
        if other not in names and any(order[user] > order[node] for user in other.users):
            raise OutOfScope(
                f"{node.name!r} changes in place a part or a view of {other.name!r}, which is read again afterwards: its kernel is not followed through that; write the operation out of place"
            )
    for name in names:
        name.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])
    if len(source.users) > 1 or not _behind_weights(source, modules):
        with node.graph.inserting_before(node):
            node.replace_input_with(source, node.graph.call_method("clone", (source,)))


def _behind_weights(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is not the data, nor a view of them."""
    stack, seen = [node], set()
    while stack:
        one = stack.pop()
        if one.op == "call_module" and any(True for _ in modules[str(one.target)].parameters()):
            return True
        stack += [source for source in one.all_input_nodes if source not in seen]
        seen.update(one.all_input_nodes)
    return False


def _names(node: fx.Node, modules: dict[str, nn.Module], by: Callable[[fx.Node, dict[str, nn.Module]], bool]) -> list[fx.Node]:
    """The nodes that hold the same memory, handed on from node to node."""
    found, stack = [], [node]
    while stack:
        one = stack.pop()
        if one not in found:
            found.append(one)
            stack += [user for user in one.users if by(user, modules)]
            stack += [source for source in one.all_input_nodes if by(one, modules)]
    return found


def _shares(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what a node gives may lie where what it reads does."""
    if node.op == "call_module" and isinstance(modules[str(node.target)], (nn.Flatten, nn.Unflatten)):
        return True
    return called(node) in VIEWS or _hands_on(node, modules)


def _hands_on(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether it gives the very tensor that it reads: identities, and dropout in eval mode."""
    if node.op == "call_module":
        return describing.of_module("", modules[str(node.target)]).kind == "identity"
    return called(node) in ("dropout", "dropout1d", "dropout2d", "dropout3d", "contiguous", "detach")


def _distributed(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """An activation of a concatenation is the concatenation of activations."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or called(source) not in JOINS or node.all_input_nodes != [source]:
        return
    parts = source.args[0] if source.args else None
    if not isinstance(parts, (tuple, list)) or not _is_activation(node, modules):
        return
    with node.graph.inserting_before(node):
        made = [node.graph.create_node(node.op, node.target, (part, *node.args[1:]), dict(node.kwargs)) for part in parts]
        joined = node.graph.create_node(source.op, source.target, (made, *source.args[1:]), dict(source.kwargs))
    node.replace_all_uses_with(joined)
    node.graph.erase_node(node)
    for part in made:
        _distributed(part, modules)


def _is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return not any(True for _ in module.parameters()) and describing.of_module("", module).kind == "activation"
    others = tuple(arg for arg in node.args if not isinstance(arg, fx.Node))
    return node.op in ("call_function", "call_method") and describing.of_operation("", node.target, others, node.kwargs, 1).kind == "activation"


def _once(graph: fx.Graph) -> None:
    """Each part of channels taken once: `x.chunk(2)[0] * x.chunk(2)[1]` reads the parts of one x."""
    seen: dict[tuple[object, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op in ("call_function", "call_method") and (node.target is operator.getitem or getattr(node.target, "__name__", node.target) in PARTS):
            first = seen.setdefault((getattr(node.target, "__name__", node.target), str(node.args), str(node.kwargs)), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)


def with_examples(graph_module: fx.GraphModule, example: Tensor) -> None:
    """Give what depends on no example, such as arange(T) that an embedding of positions reads, a dimension for examples.  Cost: a forward pass where there is any."""
    modules = dict(graph_module.named_modules())
    fed: set[fx.Node] = set()
    readers = []
    for node in graph_module.graph.nodes:
        shape = called(node) in ("size", "dim") or (called(node) == "getattr" and node.args[1] in ("shape", "device", "dtype", "ndim"))
        if node.op == "placeholder" or (not shape and any(source in fed for source in node.all_input_nodes)):
            fed.add(node)
        elif node.op == "call_module" and isinstance(modules[str(node.target)], (nn.Embedding, nn.Linear)):
            readers.append((node, 1 if isinstance(modules[str(node.target)], nn.Embedding) else 2))
    if not readers:
        return
    interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(example)
    for node, rank in readers:
        value = interpreter.env[node.args[0]]
        if value.ndim == rank and (rank == 1 or len(value) != 1):
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(node.all_input_nodes[0], graph_module.graph.call_method("unsqueeze", (node.all_input_nodes[0], 0)))
    graph_module.recompile()
