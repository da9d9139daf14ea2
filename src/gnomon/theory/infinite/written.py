"""What is written with functions read as the layers that it is: F.linear of a layer's own weights, linear attention in any order of its products, sizes as the numbers that they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from gnomon.theory.infinite.rewrite import called

CONVOLUTIONS: dict[str, type[nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
OWNERS: dict[str, type[nn.Module]] = {"linear": nn.Linear, "layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "group_norm": nn.GroupNorm, **CONVOLUTIONS}
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"), "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"), "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"), **dict.fromkeys(CONVOLUTIONS, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
}  # fmt: skip
TURNS, SCALES = ("transpose", "swapaxes", "swapdims", "permute"), ("mul", "imul", "truediv", "itruediv", "div")


def rewritten(graph_module: fx.GraphModule, root: nn.Module, example: Tensor) -> fx.GraphModule:
    """A copy of a graph for data of one shape, with its layers as layers.  Cost: two forward passes of a few examples, where sizes are read behind weights."""
    made = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    _sized(made, example)
    _as_layers(made, root)
    for node in list(made.graph.nodes):
        _as_product(node)
    for node in list(made.graph.nodes):
        _scores_first(node)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def _numbers(value: Any) -> bool:
    return all(map(_numbers, value)) if isinstance(value, (tuple, list)) else isinstance(value, (int, float))


def _sized(graph_module: fx.GraphModule, example: Tensor) -> None:
    """Sizes that do not depend on the number of examples, as numbers, where what is behind weights reads them: x / x.shape[-1] ** 0.5."""
    asked = ("size", "dim", "ndimension", "numel")
    if not any(called(node) in asked or (called(node) == "getattr" and node.args[1] in ("shape", "ndim")) for node in graph_module.graph.nodes):
        return
    weights = {name for name, module in graph_module.named_modules() if any(True for _ in module.parameters())}
    fed: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        if node.target in weights or node.op == "get_attr" or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    found, known = [], dict[fx.Node, Any]()
    for count in (2, 3):
        interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(torch.cat([example[:1]] * count))
        found.append(interpreter.env)
    for node in graph_module.graph.nodes:
        values = [env.get(node) for env in found]
        if all(map(_numbers, values)) and values[0] == values[1]:
            known[node] = values[0]
    for node in fed:
        if node.op != "output" and any(source in known for source in node.all_input_nodes):
            node.args, node.kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda source: known.get(source, source))


def _as_layers(graph_module: fx.GraphModule, root: nn.Module) -> None:
    """F.conv2d(x, self.weight, ...) in a subclass of nn.Conv2d, F.linear(x, self.fc.weight) and the like as calls of a layer with these weights."""
    for node in list(graph_module.graph.nodes):
        name = called(node)
        if node.op != "call_function" or name not in ARGUMENTS:
            continue
        said = dict(zip(ARGUMENTS[name], node.args, strict=False)) | dict(node.kwargs)
        weights = {key: said.pop(key) for key in ("weight", "bias") if isinstance(said.get(key), fx.Node)}
        source = said.pop("input", None)
        weights = {key: _direction(value, root) for key, value in weights.items()}
        owners = {str(value.target).rpartition(".")[0].removesuffix(".parametrizations.weight") if value.op == "get_attr" else None for value in weights.values()}
        owner = next(iter(owners), None)
        if not isinstance(source, fx.Node) or len(owners) > 1 or (weights and owner is None):
            continue
        layer = _layer(name, said, set(weights), None if owner is None else root.get_submodule(owner))
        if layer is None:
            continue
        for key, value in weights.items():
            layer.register_parameter(key, root.get_parameter(str(value.target)))
        alone = owner and all(name == "parametrizations" for name, _ in root.get_submodule(owner).named_children())
        target = owner if owner and alone else f"{node.name}_layer"
        graph_module.add_submodule(target, layer)
        with node.graph.inserting_before(node):
            node.replace_all_uses_with(node.graph.call_module(target, (source,)))
        _erase(node)


def _erase(node: fx.Node) -> None:
    """Take a node out of its graph, with what nothing else reads but the data."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        if not source.users and source.op != "placeholder":
            _erase(source)


def _direction(weight: fx.Node, root: nn.Module) -> fx.Node:
    """v of a weight norm, g v / |v|, both trained: at g = |v|, where it begins, its kernel is that of the weight itself, whose direction and length g and v move."""
    if weight.op != "call_module" or type(root.get_submodule(str(weight.target))).__name__ != "_WeightNorm":
        return weight
    parts = weight.all_input_nodes
    return parts[1] if len({root.get_parameter(str(one.target)).requires_grad for one in parts}) == 1 else weight


def _layer(name: str, said: dict[str, Any], weights: Iterable[str], owner: nn.Module | None) -> nn.Module | None:
    """An empty layer of the geometry that a function was called with, or None where the weights are not those of a layer of the class that declares them."""
    known = {key: value for key, value in said.items() if value is not None}
    if any(isinstance(value, fx.Node) for value in known.values()) or (owner is not None and not isinstance(owner, OWNERS[name])):
        return None
    if name in ("layer_norm", "rms_norm"):
        shape = known.pop("normalized_shape", None)
        free = {"bias": "bias" in weights} if name == "layer_norm" else {}
        return None if not _numbers(shape) else cast(Callable[..., nn.Module], OWNERS[name])(shape, elementwise_affine="weight" in weights, device="meta", **known, **free)
    if isinstance(owner, nn.GroupNorm):
        return nn.GroupNorm(known["num_groups"], owner.num_channels, known.get("eps", 1e-5), "weight" in weights, device="meta")
    if isinstance(owner, nn.Linear):
        return nn.Linear(owner.in_features, owner.out_features, "bias" in weights, device="meta")
    if isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return cast(Callable[..., nn.Module], CONVOLUTIONS[name])(owner.in_channels, owner.out_channels, owner.kernel_size, bias="bias" in weights, device="meta", **known)
    return None


def _as_product(node: fx.Node) -> None:
    """torch.einsum of two batches of matrices as their product: "bqd,bkd->bqk" is q @ k^T."""
    text = node.args[0] if node.args else None
    if called(node) != "einsum" or not isinstance(text, str) or not all(isinstance(arg, fx.Node) for arg in node.args[1:]):
        return
    parts = text.replace(" ", "").replace("->", ",").split(",")
    if len(parts) != 3 or any(len(set(part)) != 3 or len(part) != 3 or part[0] != parts[0][0] for part in parts):
        return
    (one, two), made = zip(parts[:2], cast(tuple[fx.Node, ...], node.args[1:]), strict=True), parts[2]
    if made[1] not in one[0]:
        one, two = two, one
    summed = set(one[0][1:]) & set(two[0][1:])
    if len(summed) != 1 or summed & set(made) or made[1] not in one[0] or made[2] not in two[0]:
        return
    with node.graph.inserting_before(node):
        left = one[1] if one[0][2] in summed else node.graph.call_method("transpose", (one[1], 1, 2))
        right = two[1] if two[0][1] in summed else node.graph.call_method("transpose", (two[1], 1, 2))
        node.replace_all_uses_with(node.graph.call_function(torch.matmul, (left, right)))
    node.graph.erase_node(node)


def _scores_first(node: fx.Node) -> None:
    """Q (c K^T V) as (c Q K^T) V, as linear attention is known."""
    if called(node) not in ("matmul", "bmm") or len(node.args) != 2 or node.kwargs:
        return
    query, at = node.args
    scales: list[fx.Node] = []
    while isinstance(at, fx.Node) and called(at) in SCALES and len(at.args) == 2 and isinstance(at.args[1], (int, float)) and len(at.users) == 1:
        scales.append(at)
        at = at.args[0]
    if not isinstance(at, fx.Node) or called(at) not in ("matmul", "bmm") or len(at.users) != 1 or len(at.args) != 2:
        return
    turned, values = at.args
    if not isinstance(turned, fx.Node) or called(turned) not in TURNS:
        return
    with node.graph.inserting_before(node):
        scores = node.graph.call_function(torch.matmul, (query, turned))
        for scale in reversed(scales):
            scores = node.graph.create_node(scale.op, scale.target, (scores, *scale.args[1:]))
        node.replace_all_uses_with(node.graph.call_function(torch.matmul, (scores, values)))
    node.graph.erase_node(node)
