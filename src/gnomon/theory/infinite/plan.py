"""A traced network read as a recipe for kernels: for every layer what it does to a `Pair`, or a refusal that names it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor, fx, nn

from gnomon.core import architecture
from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.layers import PARAMETRISED, Layer
from gnomon.theory.activations import compose
from gnomon.theory.infinite import elementwise, normalisation, places, rules
from gnomon.theory.infinite import pair as pairs
from gnomon.theory.infinite.duals import Dual
from gnomon.theory.infinite.linear import Linear
from gnomon.theory.infinite.means import Mean
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recipe import Entry, Known, Options, Plan, Reads, Rule, Step, Variance, layouts
from gnomon.theory.infinite.recognise import dual, factor
from gnomon.theory.infinite.rewrite import PARTS
from gnomon.theory.infinite.shapes import permutation, pooling, taken
from gnomon.theory.infinite.window import Window

INSTEAD = "; what can be done: average the kernels of finite wide networks, gnomon.instruments.kernels.monte_carlo_kernel"
MATMUL, TURN = ("matmul", "bmm"), ("transpose", "swapaxes", "swapdims", "mT", "permute")


class Reader:
    """Reads a graph node by node; `plan` is what came of it."""

    def __init__(self, module: nn.Module, graph_module: fx.GraphModule, example: Tensor, options: Options) -> None:
        self.module, self.graph_module, self.options = module, graph_module, options
        self.layers = architecture.nodes(module, graph_module, example, scheme=options.scheme)
        self.names = {node: layer.name for node, layer in self.layers.items()}
        self.known: dict[str, Known] = {}
        self.steps: list[Step] = []
        self.entries: dict[str, Entry] = {}
        self.variances: dict[str, tuple[float, float, str]] = {}
        self.data: dict[fx.Node, Layer | None] = {}
        self.expressions: dict[fx.Node, elementwise.Expression] = {}
        self.owners: dict[int, str] = {}
        self.slices: dict[str, list[tuple[int, int]]] = {}
        self.some = any(part.requires_grad for part in module.parameters())
        self._check_names()

    def plan(self) -> Plan:
        """Read every node that the output needs.  Raises: OutOfScope naming what is not covered."""
        output = next(node for node in self.graph_module.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            raise OutOfScope(f"the network returns a {type(output).__name__.removeprefix('immutable_')}; the kernel is that of one tensor: wrap the network so that it returns one")
        needed, stack, constants = set(), [output], elementwise.buffers(self.graph_module)
        order = {node: place for place, node in enumerate(self.graph_module.graph.nodes)}
        fed = self._fed_by_weights()
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                made = elementwise.expression(node, self.layers, order, constants) if node in fed else None
                if made is not None and made.base in fed:
                    self.expressions[node] = made
                stack.extend([made.base] if node in self.expressions and made is not None else node.all_input_nodes)
        for node in self.graph_module.graph.nodes:
            if node in needed:
                self._read(node)
                if elementwise.stops(node) and node not in self.data and node in self.names:
                    self.known[self.names[node]] = places.still(self.steps[-1], self.names[node], self.known[self.names[node]])
        if output in self.data:
            raise OutOfScope("no layer with weights stands between the data and the output: there is no kernel of random weights")
        name, known = self.names[output], self._of(output)
        if known.scores:
            self.refuse(self.layers[output], "the network returns attention's scores")
        own = layouts(self.steps, {layer.name: layer for layer in self.layers.values()})
        return Plan(self.entries, self.steps, name, self.variances, own, math.prod(known.positions), self._readout(known), self.graph_module, self.data)

    def _fed_by_weights(self) -> set[fx.Node]:
        """The nodes that depend on a layer with weights."""
        fed: set[fx.Node] = set()
        for node in self.graph_module.graph.nodes:
            if (node in self.layers and self.layers[node].kind in PARAMETRISED) or any(source in fed for source in node.all_input_nodes):
                fed.add(node)
        return fed

    def _readout(self, known: Known) -> float | None:
        """The output's covariance in the parametrisations in which it vanishes at initialisation but for the bias: see `infinite_width`."""
        kind = self.options.parametrization
        if kind in ("standard", "ntk"):
            return None
        if not known.gaussian or len(known.roots) != 1:
            raise OutOfScope(f"in the parametrisation {kind!r} the output must be that of one layer with weights, the readout; it is made of {', '.join(sorted(known.roots))}")
        if kind == "mean_field" and len(self.variances) != 2:
            raise OutOfScope(
                f"in the parametrisation 'mean_field' every layer is a mean over its inputs, so that behind a second hidden layer all pre-activations are 0 at initialisation in the limit "
                f"({len(self.variances)} layers with weights: {', '.join(self.variances)}); use 'mup', which is the same for one hidden layer (Yang & Hu 2021)"
            )
        return self.variances[next(iter(known.roots)).partition(rules.PART)[0]][1]

    def _check_names(self) -> None:
        names = [layer.name for layer in self.layers.values() if layer.kind in PARAMETRISED]
        for what, given in (("weight", self.options.weight_variance), ("bias", self.options.bias_variance)):
            for name in given if isinstance(given, Mapping) else ():
                if name not in names:
                    raise unknown(f"layer with weights (in the {what} variances)", name, names)

    def refuse(self, layer: Layer, why: str) -> NoReturn:
        """Raise OutOfScope for a layer."""
        raise OutOfScope(f"no infinite-width kernel is known here for layer {layer.name!r}: {why}{INSTEAD}")

    def _read(self, node: fx.Node) -> None:
        layer = self.layers.get(node)
        if layer is None:  # a shape, a number: computed on the data where it depends on data alone
            if all(source in self.data for source in node.all_input_nodes):
                self.data[node] = None
            return
        if node in self.expressions:
            made = self.expressions[node]
            self._activation(dataclasses.replace(layer, kind="activation", activation=elementwise.named(made), function=made), made.base)
            return
        if layer.kind == "input" and any(self.layers[other].kind == "input" for other in self.data if other in self.layers):
            self.refuse(layer, "the network reads more than one tensor; wrap it so that it reads one")
        sources = [source for source in node.all_input_nodes if source in self.layers]
        module = self.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if layer.kind in PARAMETRISED:
            self._weights(node, layer, sources)
            return
        if "batch" in layer.why.lower() and "norm" in layer.why.lower():
            self.refuse(layer, normalisation.BATCH)
        if node.op == "get_attr":
            value = self.graph_module.get_parameter(str(node.target)) if str(node.target) in dict(self.graph_module.named_parameters()) else None
            if value is not None:
                self.refuse(
                    layer,
                    "a parameter that is not read by a layer whose class declares its distribution (nn.Linear, a convolution, nn.Embedding); read it through such a layer, or make it a buffer",
                )
        if all(source in self.data for source in sources):
            if module is not None and any(True for _ in module.parameters()) and layer.kind != "activation":
                self.refuse(layer, layer.why if layer.why and layer.kind != "norm" else "it has weights of its own and reads the data directly")
            self.data[node] = layer
            return
        self._random(node, layer, sources, module)

    def _random(self, node: fx.Node, layer: Layer, sources: list[fx.Node], module: nn.Module | None) -> None:
        called = type(module).__name__ if module is not None else node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        mixed = [source for source in sources if source in self.data]
        if mixed and not (layer.kind == "add" or called in ("cat", "concat", "concatenate")):
            self.refuse(layer, "it joins data and random features in a way that is not covered")
        if called in MATMUL or any(self._of(source).scores for source in sources if source not in self.data):
            self._attend(layer, sources, str(called))
        elif called in PARTS or (called == "getitem" and getattr(sources[0].target, "__name__", sources[0].target) in PARTS):
            self._part(node, layer, sources[0], str(called))
        elif places.covers(str(called)):
            self._move(node, layer, sources[0], module)
        elif called == "getitem":
            self._take(node, layer, sources[0])
        elif called in ("GLU", "glu"):
            self._glu(node, layer, sources[0], module)
        elif called in TURN:
            self._turn(node, layer, sources[0], str(called))
        elif called in ("mul", "imul") and len(sources) == 2:
            self._product(layer, sources)
        elif layer.kind == "identity":
            self._emit(layer, (self.names[sources[0]],), lambda given, _: given[0], self._of(sources[0]), folds=True)
        elif layer.kind == "activation":
            self._activation(layer, sources[0])
        elif layer.kind == "flatten":
            self._flatten(layer, sources[0])
        elif layer.kind == "add":
            self._sum(node, layer, sources)
        elif called in ("cat", "concat", "concatenate"):
            self._concatenate(node, layer, sources)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
            self._normalise(layer, sources[0], module)
        elif layer.kind == "pool":
            self._pool(node, layer, sources[0], module, str(called))
        else:
            why = rules.SOFTMAX if layer.kind == "attention" else layer.why or f"{called} is not covered"
            self.refuse(layer, f"{called}: {normalisation.INSTANCE}" if "instance" in layer.why.lower() else why)

    def _of(self, node: fx.Node) -> Known:
        return self.known[self.names[node]]

    def _emit(
        self, layer: Layer, names: tuple[str, ...], rule: Rule, known: Known, *, reads: Reads = "same", folds: bool = False, pools: bool = False, nonlinear: Dual | None = None
    ) -> None:
        keeps = layer.kind != "flatten" or bool(known.positions)
        kinked = nonlinear is not None and nonlinear.kinked
        self.steps.append(Step(layer.name, names, rule, reads, known.positions, pools, keeps, folds, nonlinear is not None, kinked=kinked))
        self.known[layer.name] = known

    def _enter(self, node: fx.Node, kind: str, last: bool) -> str:
        """The entry through which a node of data is read."""
        name = f"{self.names[node]} (read by {kind}{', channels last' if last else ''})"
        if name not in self.entries:
            self.entries[name] = Entry(node, kind, last)
            self.steps.append(Step(name, ()))
        return name

    def _weights(self, node: fx.Node, layer: Layer, sources: list[fx.Node]) -> None:
        child, source = self.graph_module.get_submodule(layer.name), sources[0]
        self._check_own(layer, child)
        weight, bias, how = self._variances(layer, child)
        self.variances[layer.name] = (weight, bias, how)
        last = layer.kind != "conv"
        positions = layer.output_shape[:-1] if last else layer.output_shape[1:]
        known = Known(gaussian=True, centred=True, roots=frozenset({layer.name}), last=last, positions=positions)
        if layer.groups > 1:
            self._check_groups(layer, source)
        if source not in self.data:
            before = self._of(source)
            if before.positions and before.last != last:
                self.refuse(
                    layer,
                    "it reads positions as features (as the token mixing of an MLP-Mixer does): all channels share its weights, over which they are not averaged, so that the kernel stays "
                    "random at any width; flatten before it, or mix positions by a convolution or a pooling",
                )
        name = self._enter(source, layer.kind, last) if source in self.data else self.names[source]
        standard, has_bias = self.options.parametrization == "standard", getattr(child, "bias", None) is not None
        moves, shifts = self._trained(child)
        tangent = (float(layer.fan_in), float(has_bias)) if standard else (weight, bias)
        if isinstance(child, nn.Embedding) and (child.padding_idx is not None or child.max_norm is not None):
            self.refuse(layer, "an embedding with a padding row or a bounded norm: its rows are not identically distributed")
        windows = tuple(Window(k, s, *p, d, layer.padding_mode) for k, s, p, d in zip(layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True))
        rule = Linear(windows, weight, bias, tangent[0] * moves, tangent[1] * shifts)
        self._emit(layer, (name,), rule, known, reads="near" if windows else "same", folds=True)

    def _trained(self, child: nn.Module) -> list[bool]:
        """Whether weight and bias are; where nothing requires a gradient, all is taken as trained."""
        return [isinstance(part, Tensor) and (part.requires_grad or not self.some) for part in (child.weight, getattr(child, "bias", None))]

    def _check_own(self, layer: Layer, child: nn.Module) -> None:
        """The weights must be the layer's alone."""
        for part in child.parameters():
            owner = self.owners.setdefault(id(part), layer.name)
            if owner != layer.name:
                self.refuse(layer, f"it shares weights with {owner!r}, and those of every layer are taken to be independent; give each its own")

    def _check_groups(self, layer: Layer, source: fx.Node) -> None:
        """Groups of many channels have the kernel of one group: each reads channels that are distributed as all are."""
        if source in self.data:
            self.refuse(layer, "a grouped convolution of the data: its groups read different channels, so that they are not identically distributed; write groups=1")
        if layer.fan_in == math.prod(layer.kernel):
            self.refuse(layer, "a depthwise (grouped) convolution: a group of one channel has no limit of many, and is not Gaussian; write groups=1")
        if not self._of(source).alike:
            self.refuse(layer, "a grouped convolution of a concatenation: its groups read channels of different branches")

    def _variances(self, layer: Layer, child: nn.Module) -> tuple[float, float, str]:
        def given(what: Variance, name: str) -> float | None:
            return what.get(name) if isinstance(what, Mapping) else what

        weight, bias, how = given(self.options.weight_variance, layer.name), given(self.options.bias_variance, layer.name), "given"
        if weight is None:
            if layer.weight_variance is None:
                self.refuse(layer, f"{layer.why}; give its weight_variance")
            weight, how = layer.fan_in * layer.weight_variance, layer.declared
        has_bias = getattr(child, "bias", None) is not None
        if not has_bias and isinstance(self.options.bias_variance, Mapping) and bias:
            raise InvalidInput(f"Layer {layer.name!r} has no bias, but a bias variance was given for it.")
        bias = layer.bias_variance if bias is None else bias if has_bias else 0.0
        return float(weight), float(bias), how

    def _activation(self, layer: Layer, source: fx.Node) -> None:
        before, by = self._of(source), factor(layer)
        if layer.activation == "prelu" and self.options.parametrization != "standard":
            self.refuse(layer, "a PReLU, whose trained slope has in this parametrisation a part of leading order in the tangent kernel that is not covered; use a LeakyReLU")
        if layer.activation == "reciprocal":
            self.refuse(layer, "a constant divided by random features, whose variance is infinite")
        if by is not None:
            chain = (*before.chain, layer) if before.chain else ()
            square = by**2
            self._emit(
                layer,
                (self.names[source],),
                lambda given, _: given[0].scaled(square),
                dataclasses.replace(before, chain=chain, means=tuple(one.scaled(by) for one in before.means)),
                folds=True,
            )
            return
        chain, base = (*before.chain, layer), before.base or self.names[source]
        if not (before.gaussian or before.chain):
            if self.layers[source].kind == "add":
                self.refuse(
                    layer,
                    "an activation of a sum in which an activation, or the data, goes round: the sum is not Gaussian, and its kernel an integral over one pair of Gaussians more for each such block "
                    "(relu(x + branch) with x behind an activation); begin the branch with the activation and leave none on the sum, also before the first block",
                )
            self.refuse(
                layer,
                "an activation of features that are not identically distributed Gaussians (after a concatenation, a product, a normalisation of activations, a flatten or a reshape of them): put a layer with weights, or the activation, before it",
            )
        applied, rule = self._applied(layer, chain, self.known[base])
        mean = Mean(base, applied, compose([one.function for one in chain if one.function is not None]))
        known = dataclasses.replace(before, gaussian=False, centred=False, chain=chain, base=base, gain="", means=(mean,))
        self._emit(layer, (base,), rule, known, reads=self.known[base].reach, nonlinear=applied)

    def _applied(self, layer: Layer, chain: tuple[Layer, ...], base: Known) -> tuple[Dual, rules.Activation]:
        """The dual of activations and their rule; a trained gain right before them is no mean over channels."""
        applied = dual(chain, self.options.tolerance)
        if base.gain == "mixed" and self.options.parametrization != "standard":
            self.refuse(
                layer,
                "an activation of a sum (or of a pooling over gains of each position's own) with features whose gain is trained: in this parametrisation the gain's part of the tangent kernel is of leading order, and no factor of the activation's; "
                "put a layer with weights between, or give the normalisation elementwise_affine=False",
            )
        if base.gain not in ("own", "placed"):
            return applied, rules.Activation(applied)
        whole = compose([one.function for one in chain if one.function is not None])
        return applied, rules.Activation(applied, rules.gained(applied, whole, self.options.tolerance, placed=base.gain == "placed"))

    def _flatten(self, layer: Layer, source: fx.Node) -> None:
        before = self._of(source)
        if layer.input_shape == layer.output_shape:
            self._emit(layer, (self.names[source],), lambda given, _: given[0], before, folds=True)
            return
        channel = -1 if before.last else 0
        if len(layer.output_shape) > 1 and before.positions and layer.input_shape[channel] == layer.output_shape[channel]:
            positions = layer.output_shape[:-1] if before.last else layer.output_shape[1:]
            self._emit(
                layer, (self.names[source],), lambda given, _: given[0].reshaped(positions), before.at(positions, lambda x: x.reshape(-1, *positions)), reads="all", folds=True
            )
            return
        if len(layer.output_shape) != 1:
            self.refuse(layer, "a reshape other than one of positions among themselves or of all of them into features")
        many = math.prod(before.positions) > 1
        known = dataclasses.replace(before, positions=(), last=True, gaussian=before.gaussian and not many, chain=(), base="", means=(), alike=before.alike and not many)
        self._emit(layer, (self.names[source],), lambda given, _: pairs.flattened(given[0]), known, reads="all")

    def _sum(self, node: fx.Node, layer: Layer, sources: list[fx.Node]) -> None:
        if len(sources) != 2 or len(node.args) != 2 or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
            self.refuse(layer, "a sum with a constant, with itself or with a factor" if len(sources) < 2 else "a sum with a factor")
        names, knowns = self._branches(layer, sources)
        if knowns[0].positions != knowns[1].positions:
            self.refuse(layer, "a sum of branches of different shapes")
        shared = rules.shared(knowns)
        if shared:
            self.refuse(layer, f"both branches read {', '.join(sorted(shared))!r} without weights between, so that they are not independent")
        made = rules.summed(names, knowns, minus="sub" in getattr(node.target, "__name__", str(node.target)))
        if isinstance(made, str):
            self.refuse(layer, made)
        names, rule, known, reads = made
        self._emit(layer, names, rule, known, reads=reads)

    def _branches(self, layer: Layer, sources: list[fx.Node]) -> tuple[tuple[str, ...], list[Known]]:
        """The branches that meet, with data read in the layout of the random ones."""
        last = next(self._of(source).last for source in sources if source not in self.data)
        names, knowns = [], []
        for source in sources:
            if source in self.data:
                shape = self.layers[source].output_shape
                names.append(self._enter(source, "linear" if last else "conv", last))
                knowns.append(Known(False, False, frozenset({"the data"}), last, shape[:-1] if last else shape[1:]))
            else:
                names.append(self.names[source])
                knowns.append(self._of(source))
        if any(known.last != last and known.positions for known in knowns):
            self.refuse(layer, "its branches keep their channels in different dimensions")
        return tuple(names), knowns

    def _product(self, layer: Layer, sources: list[fx.Node]) -> None:
        names, knowns = self._branches(layer, sources)
        if any(source in self.data for source in sources):
            self.refuse(layer, "a product of data and random features")
        if knowns[0].positions != knowns[1].positions:
            self.refuse(layer, "a product of branches of different shapes")
        shared = rules.shared(knowns)
        if shared:
            self.refuse(layer, f"both branches read {', '.join(sorted(shared))!r} without weights between, so that they are not independent")
        alike = all(known.alike for known in knowns)
        known = Known(False, any(known.centred for known in knowns), knowns[0].roots | knowns[1].roots, knowns[0].last, knowns[0].positions, alike=alike)
        self._emit(layer, names, lambda given, _: pairs.multiply(*given), known)

    def _part(self, node: fx.Node, layer: Layer, source: fx.Node, called: str) -> None:
        """Some of the channels, which are distributed as all are; other parts are independent of them."""
        before = self._of(source)
        if called in PARTS:
            if not self._along_channels(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0), before) or not before.alike:
                self.refuse(layer, "a part of other than the channels, or of channels of different branches")
            self.known[layer.name] = before
            return
        of = self.names[source]
        roots = frozenset(f"{root}{rules.PART}{node.args[1]} of {of!r}" if rules.PART not in root else f"{root}, {node.args[1]} of {of!r}" for root in before.roots)
        name = self.names[next(one for one in source.all_input_nodes if one in self.layers)]
        self._emit(layer, (name,), lambda given, _: given[0], dataclasses.replace(before, roots=roots), folds=True)

    def _take(self, node: fx.Node, layer: Layer, source: fx.Node) -> None:
        """Slices: of the channels, which is a part of them, or of positions."""
        before, of, shape = self._of(source), self.names[source], self.layers[source].output_shape
        places = taken(node.args[1], shape, last=before.last)
        if isinstance(places, str):
            self.refuse(layer, places)
        channels, positions, gone = places
        if channels is None:
            sizes = [len(range(*part.indices(n))) for part, n in zip(positions, before.positions, strict=True)]
            left = tuple(n for axis, n in enumerate(sizes) if axis not in gone)
            known = before.at(left, lambda x: x[(slice(None), *positions)].reshape(-1, *left))
            self._emit(layer, (of,), lambda given, _: rules.selected(given[0], positions, gone), known, reads="all")
            return
        start, stop = channels
        if not before.alike or any((start, stop) != other and start < other[1] and other[0] < stop for other in self.slices.setdefault(of, [])):
            self.refuse(layer, "slices of the channels that overlap, or of channels of different branches")
        self.slices[of].append((start, stop))
        roots = frozenset(f"{root}{rules.PART if rules.PART not in root else ', '}{start}:{stop} of slices of {of!r}" for root in before.roots)
        self._emit(layer, (of,), lambda given, _: given[0], dataclasses.replace(before, roots=roots), folds=True)

    def _move(self, node: fx.Node, layer: Layer, source: fx.Node, module: nn.Module | None) -> None:
        made = places.moved(node, layer, self._of(source), module)
        if isinstance(made, str):
            self.refuse(layer, made)
        self._emit(layer, (self.names[source],), *made, reads="all")

    def _along_channels(self, dim: object, before: Known) -> bool:
        return isinstance(dim, int) and dim % (len(before.positions) + 2) == (len(before.positions) + 1 if before.last else 1)

    def _glu(self, node: fx.Node, layer: Layer, source: fx.Node, module: nn.Module | None) -> None:
        """a sigmoid(b), a and b the two halves of the channels: the product of independent branches of the same kernel."""
        before = self._of(source)
        dim = module.dim if isinstance(module, nn.GLU) else node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
        if not self._along_channels(dim, before) or not (before.gaussian and before.alike):
            self.refuse(layer, "a gated linear unit of other than the channels of Gaussian pre-activations; give it dim, and a layer with weights directly before it")
        gate, applied = self._applied(layer, (Layer(layer.name, "activation", activation="sigmoid", function=torch.sigmoid),), before)
        self._emit(layer, (self.names[source],), rules.gate(applied), dataclasses.replace(before, gaussian=False, chain=(), base="", gain=""), reads=before.reach, nonlinear=gate)

    def _turn(self, node: fx.Node, layer: Layer, source: fx.Node, called: str) -> None:
        """A permutation that moves the channels to the end or to the front."""
        before, rank = self._of(source), len(layer.output_shape) + 1
        if permutation(node, called, rank) != ([0, rank - 1, *range(1, rank - 1)] if before.last else [0, *range(2, rank), 1]):
            self.refuse(layer, "a permutation other than one that moves the channels to the end or to the front")
        self._emit(layer, (self.names[source],), lambda given, _: given[0], dataclasses.replace(before, last=not before.last), folds=True)

    def _attend(self, layer: Layer, sources: list[fx.Node], called: str) -> None:
        """Linear attention, (Q K^T) V: scores and factors of them leave no step, their product with the values does."""
        if any(source in self.data for source in sources):
            self.refuse(layer, "attention to the data themselves, without layers with weights for queries, keys and values")
        knowns = [self._of(source) for source in sources]
        by, first, second = factor(layer), knowns[0], knowns[-1]
        scored = first.scores is not None
        pair = called in MATMUL and len(sources) == 2 and not second.scores and len(second.positions) == 1
        if first.scores is not None and (by is not None or layer.kind == "identity"):
            size = first.scores[2] * (1 if by is None else by**2)
            self.known[layer.name] = dataclasses.replace(first, scores=(*first.scores[:2], size))
        elif pair and not scored and first.last and not second.last and len(first.positions) == 1:
            self._check_attention(layer, knowns)
            scores = self.names[sources[0]], self.names[sources[1]], float(self.layers[sources[0]].output_shape[-1])
            self.known[layer.name] = Known(False, True, first.roots | second.roots, True, first.positions, scores=scores)
        elif pair and first.scores is not None and second.last:
            self._check_attention(layer, knowns)
            query, key, size = first.scores
            known = Known(False, True, first.roots | second.roots, True, first.positions, alike=False)
            names = query, key, self.names[sources[1]]
            self._emit(layer, names, lambda given, asked: pairs.attended(given[0], given[1], given[2], size, asked), known, reads="all", pools=True)
        else:
            self.refuse(layer, rules.SOFTMAX)

    def _check_attention(self, layer: Layer, knowns: list[Known]) -> None:
        if not all(known.centred for known in knowns) or rules.shared(knowns):
            self.refuse(layer, "attention whose queries, keys and values are not those of layers with weights of their own")

    def _concatenate(self, node: fx.Node, layer: Layer, sources: list[fx.Node]) -> None:
        names, knowns = self._branches(layer, sources)
        last = knowns[0].last
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if not self._along_channels(dim, knowns[0]):
            self.refuse(layer, "a concatenation along another dimension than that of the channels")
        counts = [self.layers[source].output_shape[-1 if last else 0] for source in sources]
        if isinstance(node.args[0], (tuple, list)) and len(node.args[0]) != len(sources):
            self.refuse(layer, "a concatenation of a tensor with itself")
        roots = frozenset().union(*(known.roots for known in knowns))
        known = Known(False, all(known.centred for known in knowns), roots, last, knowns[0].positions, alike=False)
        self._emit(layer, names, lambda given, _: pairs.concatenated(list(zip(given, counts, strict=True))), known)

    def _normalise(self, layer: Layer, source: fx.Node, module: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm) -> None:
        before = self._of(source)
        norm = normalisation.read(module, before, layer.input_shape[-1 if before.last else 0])
        if isinstance(norm, str):
            self.refuse(layer, norm)
        names, rule, known, reads = normalisation.step(self.names[source], before, norm, self._trained(module))
        self._emit(layer, names, rule, known, reads=reads)

    def _pool(self, node: fx.Node, layer: Layer, source: fx.Node, module: nn.Module | None, called: str) -> None:
        before = self._of(source)
        windows = pooling(node, layer, before, module, called)
        if isinstance(windows, str):
            self.refuse(layer, windows)
        positions = layer.output_shape[:-1] if before.last else layer.output_shape[1:]
        squeeze = len(positions) != len(before.positions)
        axes = [axis for axis, window in enumerate(windows) if window is not None]
        times = math.prod(before.positions[axis] for axis in axes) if called == "sum" else 1

        def rule(given: list[Pair], asked: Asked) -> Pair:
            out = pairs.pooled(given[0], windows, asked)
            return (pairs.squeezed(out, axes) if squeeze else out).scaled(times**2)

        known = before.at(positions, lambda x: times * pairs.averaged(x, windows, 1).reshape(-1, *positions), joins=True)
        self._emit(layer, (self.names[source],), rule, known, reads="all", pools=True)
