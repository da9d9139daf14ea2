"""The architecture of a network: named layers in the order in which data flow, all that theory may know of it beside scalars."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from gnomon.core import layers as describing
from gnomon.core import rng as chance
from gnomon.core.dataset import Tree
from gnomon.core.errors import GnomonError, InvalidInput, unknown
from gnomon.core.layers import PARAMETRISED, PART, Layer
from gnomon.core.subject import Subject, first_tensor

ROOT = "network"
"""The name of the only layer of a network that is a layer itself."""

__all__ = ["PARAMETRISED", "Architecture", "Layer", "Step", "chains", "child_of", "nodes", "of", "quiet", "read", "steps", "trace"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The layers of a network in data-flow order; without a graph (`traced` False, `reason` says why) in the order of their calls.

    A layer that is called again later appears once with its weights, at its first call; its later calls are layers of kind `other`.
    """

    layers: tuple[Layer, ...]
    traced: bool
    reason: str = ""
    init: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise unknown("layer", name, [layer.name for layer in self.layers])

    @property
    def parametrised(self) -> tuple[Layer, ...]:
        """Linear, convolution and embedding layers: those whose pre-activations theory predicts."""
        return tuple(layer for layer in self.layers if layer.kind in PARAMETRISED)


@dataclasses.dataclass(frozen=True)
class Step:
    """How a parametrised layer is reached: from which one (None: its input must be measured), through which activations and reshapes, and why a chain starts here.

    `branches`: what lies between is read by another layer too, so gradients do not come from this one alone.
    """

    layer: str
    source: str | None
    through: tuple[str, ...] = ()
    why: str = ""
    branches: bool = False


def of(subject: Subject) -> Architecture:
    """The architecture of a subject with the initialisation that its user declares, read once.  Cost: two forward passes of two examples."""

    def build() -> Architecture:
        block = next(subject.train.chunks(2))
        return read(subject.module, subject.to_device(block.inputs), init=subject.init)

    return subject.once("architecture", build)


def read(module: nn.Module, inputs: Tree, *, init: tuple[str, ...] = ()) -> Architecture:
    """Read a module into named layers with fans, geometry, shapes and declared initialisation.

    The module is traced with torch.fx and the traced graph run on `inputs`; where that fails (control flow, recurrent loops over lengths, Hugging Face
    models) or gives another output, the layers come from hooks in the order of their calls, without a graph.  *Declared* is the default of the layer's
    class or what `init` says: `kaiming`, `xavier`, `orthogonal` for every linear and convolution layer (bias 0), `layer=variance` for one layer's weights.

    Shapes: `inputs` a small batch, examples first.   Assumes: eval mode, which is set while reading and put back.   Cost: two forward passes of `inputs`.
    Raises: InvalidInput for an unknown scheme or layer in `init`.
    """
    scheme, single = describing.parse_init(init)
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {}) if isinstance(inputs, tuple) else ((inputs,), {})
    with chance.preserved(), quiet(module), torch.no_grad():
        try:
            layers, reason = _traced(module, args, kwargs), ""
        except GnomonError:
            raise
        except Exception as error:  # fx raises whatever the traced code raises on a proxy
            layers, reason = (
                _called(module, args, kwargs),
                f"{'' if isinstance(error, InvalidTrace) else type(error).__name__ + ': '}{(str(error).strip().splitlines() or ['no message'])[0][:160]}",
            )
    known = {layer.name: layer for layer in layers if layer.parameters}
    for name in single:
        if name not in known:
            raise unknown("layer with weights", name, known)
    owners = _owners(module)
    families = _families(module)
    done = []
    for layer in layers:
        layer = describing.declare(_family(layer, families), scheme)
        if layer.name in single:
            layer = dataclasses.replace(layer, weight_variance=single[layer.name], weight_kurtosis=3.0, declared=f"{layer.name}={single[layer.name]:g}")
        done.append(dataclasses.replace(layer, parameters=tuple(owners[key if layer.name == ROOT else f"{layer.name}.{key}"] for key in layer.parameters)))
    return Architecture(_tied(tuple(done), single), not reason, reason, tuple(init))


def _owners(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter the name under which the state holds it: tied ones are held once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in module.named_parameters(remove_duplicate=False)}


def _tied(layers: tuple[Layer, ...], single: Mapping[str, float]) -> tuple[Layer, ...]:
    """Tied weights belong to their first layer, declared by the embedding among the tied or by the layer that the user named; the others are not covered."""
    said: dict[tuple[str, ...], Layer] = {}
    for layer in sorted((x for x in layers if x.parameters), key=lambda x: (x.name in single, x.kind == "embedding")):
        said[layer.parameters] = layer
    owner: dict[tuple[str, ...], str] = {}
    done = []
    for layer in layers:
        if layer.parameters and owner.setdefault(layer.parameters, layer.name) != layer.name:
            why = f"its weights are those of {owner[layer.parameters]}"
            layer = Layer(layer.name, "other", layer.inputs, input_shape=layer.input_shape, output_shape=layer.output_shape, why=why)
        elif layer.parameters:
            teller = said[layer.parameters]
            layer = dataclasses.replace(layer, weight_variance=teller.weight_variance, weight_kurtosis=teller.weight_kurtosis, declared=teller.declared)
        done.append(layer)
    return tuple(done)


def _families(module: nn.Module) -> dict[str, Any]:
    """The configurations of Hugging Face models in the module, by the prefix of their layers' names."""
    found = {}
    for name, child in module.named_modules():
        config = getattr(child, "config", None)
        if hasattr(config, "initializer_range") and any(base.__name__ == "PreTrainedModel" for base in type(child).__mro__):
            found[name] = config
    return found


def _family(layer: Layer, families: Mapping[str, Any]) -> Layer:
    """A layer of a Hugging Face model: normal weights of standard deviation `initializer_range`, bias 0 (GPT-2 divides those of `c_proj` by sqrt(2 n_layer))."""
    config = next((c for prefix, c in families.items() if not prefix or layer.name.startswith(prefix + ".")), None)
    if config is None or layer.weight_variance is None or layer.kind not in PARAMETRISED:
        return layer
    variance, text = float(config.initializer_range) ** 2, "initializer_range^2"
    if getattr(config, "model_type", "") == "gpt2" and layer.name.endswith("c_proj"):
        variance, text = variance / (2 * config.n_layer), "initializer_range^2/(2 n_layer)"
    return dataclasses.replace(layer, weight_variance=variance, bias_variance=0.0, weight_kurtosis=3.0, declared=text)


@contextlib.contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode, attention's fused path off (it calls no submodule), both put back."""
    modes = [(child, child.training) for child in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child, mode in modes:
            child.training = mode


class _Tracer(fx.Tracer):
    """Modules with children are looked into, torch's own ones too, so that no layer hides in them; `activations` are those of somebody's own that act on each number."""

    activations: frozenset[nn.Module] = frozenset()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one layer."""
        alone = m.__module__.startswith("torch.nn") and not any(True for _ in m.children())
        return alone or isinstance(m, (nn.MultiheadAttention, nn.RNNBase)) or describing.is_hf_conv1d(m) or m in self.activations


class _InPlace(fx.Proxy):
    """A traced tensor that knows `x += y` from `x = x + y`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Faithful(_Tracer):
    """Operations in place are traced as such, and those under torch.no_grad() marked."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """A node of the graph."""
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            node.meta["no_grad"] = True
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a tensor."""
        return _InPlace(node, self)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the shape of every node's (first) tensor; None for a node that is no tensor."""

    shapes: dict[fx.Node, tuple[int, ...] | None]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        tensor = result if isinstance(result, Tensor) else next((part for part in result if isinstance(part, Tensor)), None) if isinstance(result, (tuple, list)) else None
        self.shapes[n] = None if tensor is None else tuple(tensor.shape)
        return result


def child_of(module: nn.Module, layer: Layer) -> nn.Module:
    """The submodule that a layer is."""
    return module if layer.name == ROOT else module.get_submodule(layer.name)


def _traced(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Layer]:
    if not any(True for _ in module.children()):
        raise InvalidTrace("it is one layer")
    signature = inspect.signature(module.forward)
    bound = signature.bind(*args, **kwargs)
    absent = {key: p.default for key, p in signature.parameters.items() if key not in bound.arguments and p.default is not inspect.Parameter.empty}
    if any(signature.parameters[key].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) for key in bound.arguments):
        raise InvalidTrace("forward takes *args or **kwargs")
    graph_module = trace(module, absent)
    given = [bound.arguments.get(key, absent.get(key)) for key in signature.parameters if key in bound.arguments or key in absent]
    output, layers = _run(graph_module, *given)
    true = first_tensor(module(*args, **kwargs))
    if output.shape != true.shape or not torch.allclose(output, true, equal_nan=True, rtol=1e-3, atol=1e-5):
        raise InvalidTrace("the traced graph gives another output than the network")
    return list(layers.values())


def trace(module: nn.Module, absent: Mapping[str, Any] | None = None, *, in_place: bool = False, buffers: bool = False) -> fx.GraphModule:
    """The module's torch.fx graph, every layer a node; `absent` are the values of arguments that are not given.

    `in_place`: x += y is told from x = x + y; `buffers`: what is done to buffers is traced too.   Cost: none.   Raises: what the traced code raises on a proxy.
    """
    tracer = _Faithful() if in_place else _Tracer()
    tracer.proxy_buffer_attributes = buffers
    tracer.activations = frozenset(child for child in module.modules() if describing.acts_elementwise(child))  # while it traces a module cannot be called
    with torch.enable_grad():
        graph = tracer.trace(module, concrete_args=dict(absent) if absent else None)
    return fx.GraphModule(tracer.root, graph)


def nodes(module: nn.Module, graph_module: fx.GraphModule, inputs: Tensor, *, scheme: describing.Scheme | None = None) -> dict[fx.Node, Layer]:
    """The layer that each node of a traced graph is, as `read` describes it.  Shapes: inputs a small batch.  Cost: one forward pass of `inputs`."""
    with chance.preserved(), quiet(module), torch.no_grad():
        layers = _run(graph_module, inputs)[1]
    return {node: describing.declare(layer, scheme) for node, layer in layers.items()}


def _run(graph_module: fx.GraphModule, *given: Any) -> tuple[Tensor, dict[fx.Node, Layer]]:
    recorder = _Recorder(graph_module)
    recorder.shapes = {}
    output = first_tensor(recorder.run(*given))
    return output, _layers_of_graph(graph_module.graph, dict(graph_module.named_modules()), recorder.shapes)


class InvalidTrace(Exception):
    """A traced graph that is not the network."""


def _layers_of_graph(graph: fx.Graph, modules: Mapping[str, nn.Module], shapes: Mapping[fx.Node, tuple[int, ...] | None]) -> dict[fx.Node, Layer]:
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    layers: dict[fx.Node, Layer] = {}
    for node in graph.nodes:
        if node.op == "output" or shapes.get(node) is None:
            continue
        sources = [source for source in node.all_input_nodes if source in names]
        if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], int) and _is_tuple(node.args[0], modules):
            names[node] = names[node.args[0]]
            continue
        name = str(node.target) if node.op in ("call_module", "get_attr", "placeholder") else node.name
        repeated = name in taken
        names[node] = name if not repeated else _fresh(f"{name} (call {sum(t.split(' (call')[0] == name for t in taken) + 1})", taken)
        taken.add(names[node])
        layer = _layer_of_node(node, names[node], modules, len(sources), repeated)
        seen, made = (shapes[sources[0]] if sources else None) or (), shapes[node] or ()
        layers[node] = dataclasses.replace(layer, inputs=tuple(names[s] for s in sources), input_shape=seen[1:], output_shape=made[1:])
    return layers


def _is_tuple(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and isinstance(modules[str(node.target)], (nn.RNNBase, nn.MultiheadAttention))


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "'"
    return name


def _layer_of_node(node: fx.Node, name: str, modules: Mapping[str, nn.Module], tensors: int, repeated: bool) -> Layer:
    if node.op == "placeholder":
        return Layer(name, "input")
    if node.op == "get_attr":
        return Layer(name, "other", why="a parameter or buffer of the network, not data")
    if node.op == "call_module":
        layer = describing.of_module(name, modules[str(node.target)])
        return Layer(name, "other", why="it is called again with the same weights") if repeated and layer.parameters else layer
    others = tuple(arg for arg in node.args if not (isinstance(arg, fx.Node)))
    last = bool(node.args) and not isinstance(node.args[0], (fx.Node, tuple, list))
    return describing.of_operation(name, node.target, others, node.kwargs, tensors, last=last)


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Layer]:
    """Layers in the order of their calls, from hooks; no graph, so `inputs` are empty."""
    layers: dict[str, Layer] = {}

    def keep(name: str) -> Any:
        def hook(child: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            if name not in layers:
                seen = next((tuple(part.shape[1:]) for part in given if isinstance(part, Tensor)), ())
                with contextlib.suppress(InvalidInput):
                    made = tuple(first_tensor(output).shape[1:])
                    layers[name] = dataclasses.replace(describing.of_module(name, child), input_shape=seen, output_shape=made)

        return hook

    handles = [child.register_forward_hook(keep(name or ROOT)) for name, child in module.named_modules() if _is_layer(child)]
    try:
        module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(layers.values())


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) or describing.is_hf_conv1d(module) or not any(True for _ in module.children())


def steps(architecture: Architecture) -> dict[str, Step]:
    """For every parametrised layer, how it is reached from the one before through covered operations only, or why its chain starts at it.

    Covered are elementwise activations, reshapes that keep a feature's variance (all positions into features, or features into positions), identity and
    dropout in eval mode.  A chain starts at data, and again, by name, after pooling, normalisation, a sum of branches, attention, recurrence, a grouped
    convolution (its channels are not averaged over) and anything else.
    """
    by_name = {layer.name: layer for layer in architecture.layers}
    readers: dict[str, int] = {}
    for layer in architecture.layers:
        for source in layer.inputs:
            readers[source] = readers.get(source, 0) + 1
    return {layer.name: _step(layer, by_name, readers, architecture) for layer in architecture.parametrised}


def _step(layer: Layer, by_name: Mapping[str, Layer], readers: Mapping[str, int], architecture: Architecture) -> Step:
    if layer.kind == "embedding":  # it reads numbers of rows
        return Step(layer.name, None, why="data")
    if not architecture.traced:
        return Step(layer.name, None, why=f"the network could not be traced ({architecture.reason})")
    through: list[str] = []
    branches, current = False, layer
    while True:
        if len(current.inputs) != 1:
            return Step(layer.name, None, why=f"`{current.name}` reads {len(current.inputs)} tensors")
        before = by_name[current.inputs[0]]
        branches = branches or readers[before.name] > 1
        if before.kind == "input":
            return Step(layer.name, None, why="data")
        if before.kind in PARAMETRISED:
            why = _unfit(before, layer, [by_name[name] for name in through])
            return Step(layer.name, None, why=why) if why else Step(layer.name, before.name, tuple(reversed(through)), branches=branches)
        if before.kind not in ("activation", "identity", "flatten"):
            while before.why == PART and by_name[before.inputs[0]].why:
                before = by_name[before.inputs[0]]
            return Step(layer.name, None, why=f"`{before.name}` ({before.why})")
        through.append(before.name)
        current = before


def _unfit(before: Layer, layer: Layer, between: list[Layer]) -> str:
    """Why what a parametrised layer makes cannot be followed into the next one, or the empty string.  `between` runs backwards."""
    if before.weight_variance is None:
        return f"`{before.name}` ({before.why})"
    if before.groups > 1:
        return f"`{before.name}` (grouped convolution: its channels are not averaged over)"
    for reshape in between:
        if reshape.kind == "flatten" and reshape.input_shape != reshape.output_shape:
            into_features = len(reshape.output_shape) == 1 and math.prod(reshape.input_shape) == reshape.output_shape[0]
            into_positions = len(reshape.input_shape) == 1 and math.prod(reshape.output_shape) == reshape.input_shape[0]
            if not (into_features or into_positions):
                return f"`{reshape.name}` (a reshape that mixes positions with features or examples)"
    if len(layer.input_shape) > 1 and (before.kind == "conv") != (layer.kind == "conv") and before.output_shape == layer.input_shape:
        return f"`{layer.name}` reads positions of `{before.name}` as features"
    return ""


def chains(architecture: Architecture) -> tuple[tuple[str, ...], ...]:
    """The longest runs of parametrised layers in which each is reached from the one before through covered operations, without branches."""
    reached = steps(architecture)
    runs: list[list[str]] = []
    for name, step in reached.items():
        run = next((r for r in runs if r[-1] == step.source), None) if step.source and not step.branches else None
        if run is None:
            runs.append([name])
        else:
            run.append(name)
    return tuple(tuple(run) for run in runs)
