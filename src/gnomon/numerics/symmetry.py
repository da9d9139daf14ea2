"""The permutations of units that leave a network's function as it is, read off its traced graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.layers import PART, Layer, is_hf_conv1d
from gnomon.core.subject import State, Subject
from gnomon.numerics.measuring import measuring

GATES: Mapping[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@dataclasses.dataclass(frozen=True)
class Place:
    """A dimension of a parameter or buffer along which a group of units runs: index = (o * size + unit) * inner + i, with o below `outer`, i below `inner`."""

    key: str
    dimension: int
    outer: int = 1
    inner: int = 1


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that are permuted together: those of a layer, or of all layers that a residual sum binds to one order.

    `blocks`: units stay together in so many blocks of equal size (groups of GroupNorm), which are permuted, and so are the units inside each.
    `carriers`: layers whose outputs have the units along the dimension given (the examples' dimension counted).
    """

    name: str
    size: int
    blocks: int
    places: tuple[Place, ...]
    carriers: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """The groups of a network in the order of data flow; `fixed` says, layer by layer, what keeps its units in place and why."""

    groups: tuple[Group, ...]
    fixed: tuple[str, ...]
    buffers: frozenset[str]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Where a tensor has its units: `group` 0 is that of units in a fixed order; `parameter` names a tensor of the network that is no data."""

    group: int
    position: int = 0
    outer: int = 1
    inner: int = 1
    parameter: str = ""


class _Reader:
    """Follows units through the layers: groups are joined where tensors are added, and fixed where what happens is not covered."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.modules = subject, dict(subject.module.named_modules())
        named = [*subject.module.named_parameters(remove_duplicate=False), *subject.module.named_buffers(remove_duplicate=False)]
        first: dict[int, str] = {}
        self.owner = {name: first.setdefault(id(value), name) for name, value in named}
        self.parent, self.names, self.sizes, self.blocks = [0], ["input"], [0], [1]
        self.places: list[tuple[int, Place]] = []
        self.axes: dict[str, _Axis] = {}
        self.frozen: set[str] = set()
        self.fixed: list[str] = []

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def join(self, first: int, second: int) -> bool:
        """Make two groups one; False where their sizes or blocks do not fit."""
        first, second = sorted((self.root(first), self.root(second)))
        blocks = {self.blocks[first], self.blocks[second]} - {1}
        if first == second or first == 0:
            self.parent[second] = first
            return True
        if self.sizes[first] != self.sizes[second] or len(blocks) > 1:
            return False
        self.parent[second], self.blocks[first] = first, max(blocks, default=1)
        return True

    def new(self, layer: Layer, units: int) -> int:
        self.parent.append(len(self.parent))
        self.names.append(layer.name)
        self.sizes.append(units)
        self.blocks.append(1)
        return len(self.parent) - 1

    def put(self, group: int, layer: Layer, parameter: str, dimension: int, outer: int = 1, inner: int = 1) -> None:
        key = self.owner.get(parameter if layer.name == architecture.ROOT else f"{layer.name}.{parameter}")
        if key is not None:
            self.places.append((group, Place(key, dimension, outer, inner)))

    def read(self, layer: Layer) -> _Axis:
        """The axis of what a layer puts out, its places noted; what is not covered fixes what it reads."""
        sources = [self.axes[name] for name in layer.inputs]
        data = [axis for axis in sources if not axis.parameter]
        if layer.kind == "input":
            return _Axis(0)
        if layer.why == "a parameter or buffer of the network, not data":
            return _Axis(0, parameter=self.owner.get(layer.name, layer.name))
        why = layer.why if layer.kind == "other" and layer.why != PART else ""
        module = self.modules.get(layer.name) if layer.name != architecture.ROOT else self.subject.module
        axis = None if why else self._followed(layer, module, sources, data)
        return self._stop(layer, sources, why) if axis is None else axis

    def _stop(self, layer: Layer, sources: Sequence[_Axis], why: str = "") -> _Axis:
        self.fixed.append(f"`{layer.name}` ({why or layer.why or 'units are not followed through it'})")
        for axis in sources:
            self.join(0, axis.group)
            self.frozen.add(axis.parameter)
        owner = self.modules.get(layer.name.split(" (call")[0])
        if owner is not None and layer.name:
            self.frozen.update(self.owner[f"{layer.name.split(' (call')[0]}.{key}"] for key, _ in owner.named_parameters(remove_duplicate=False))
        return _Axis(0)

    def _followed(self, layer: Layer, module: nn.Module | None, sources: Sequence[_Axis], data: Sequence[_Axis]) -> _Axis | None:
        if layer.kind == "embedding":
            group = self.new(layer, layer.units)
            self.put(group, layer, "weight", 1)
            return _Axis(group, len(layer.output_shape) - 1)
        if not data or (len(sources) > 1 and layer.kind not in ("add", "attention")):
            return None
        read, last = data[0], len(layer.input_shape) - 1
        if read.group and layer.kind in ("linear", "recurrent", "attention") and read.position != last:
            return None
        if layer.kind == "linear" and module is not None:
            turned = is_hf_conv1d(module)
            self.put(read.group, layer, "weight", int(not turned), read.outer, read.inner)
            return self._made(layer, layer.units, len(layer.output_shape) - 1, {"weight": int(turned), "bias": 0})
        if layer.kind == "conv":
            return self._convolution(layer, read)
        if layer.kind == "recurrent":
            return self._recurrent(layer, module, read)
        if layer.kind == "attention":
            return self._attention(layer, module, data)
        if layer.kind == "norm":
            return self._norm(layer, module, read)
        if layer.kind == "add":
            return self._sum(layer, sources, data)
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            self.put(read.group, layer, "weight", 0, read.outer, read.inner)
        return self._reshaped(layer, read)

    def _made(self, layer: Layer, units: int, position: int, dimensions: Mapping[str, int]) -> _Axis:
        group = self.new(layer, units)
        for parameter, dimension in dimensions.items():
            self.put(group, layer, parameter, dimension)
        return _Axis(group, position)

    def _convolution(self, layer: Layer, read: _Axis) -> _Axis | None:
        if read.group and (read.position, read.outer, read.inner) != (0, 1, 1):
            return None
        if layer.groups == 1:
            self.put(read.group, layer, "weight", 1)
            return self._made(layer, layer.units, 0, {"weight": 0, "bias": 0})
        if layer.fan_in != math.prod(layer.kernel):  # more than one channel in a group
            return None
        each = layer.units // layer.groups
        self.put(read.group, layer, "weight", 0, 1, each)
        self.put(read.group, layer, "bias", 0, 1, each)
        return _Axis(read.group, 0, 1, each)

    def _recurrent(self, layer: Layer, module: nn.Module | None, read: _Axis) -> _Axis | None:
        gates = next((count for kind, count in GATES.items() if isinstance(module, kind)), 0)
        if not gates or not isinstance(module, nn.RNNBase) or module.bidirectional or module.proj_size:
            return None
        for depth in range(module.num_layers):
            self.put(read.group, layer, f"weight_ih_l{depth}", 1, read.outer, read.inner)
            group = self.new(layer, module.hidden_size)
            for parameter in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                self.put(group, layer, f"{parameter}_l{depth}", 0, gates)
            self.put(group, layer, f"weight_hh_l{depth}", 1)
            read = _Axis(group, len(layer.output_shape) - 1)
        return read

    def _attention(self, layer: Layer, module: nn.Module | None, data: Sequence[_Axis]) -> _Axis | None:
        """What an attention layer reads and puts out is permuted; the features inside its heads stay."""
        if not isinstance(module, nn.MultiheadAttention) or module.in_proj_weight is None or module.bias_k is not None:
            return None
        if any((axis.position, axis.outer, axis.inner) != (data[0].position, 1, 1) or not self.join(axis.group, data[0].group) for axis in data):
            return None
        self.put(data[0].group, layer, "in_proj_weight", 1)
        self.fixed.append(f"`{layer.name}` (the features inside its heads; what it reads and puts out is permuted)")
        return self._made(layer, module.embed_dim, len(layer.output_shape) - 1, {"out_proj.weight": 0, "out_proj.bias": 0})

    def _norm(self, layer: Layer, module: nn.Module | None, read: _Axis) -> _Axis | None:
        plain = (read.outer, read.inner) == (1, 1)
        if isinstance(module, _NormBase) and read.position == 0:
            for parameter in ("weight", "bias", "running_mean", "running_var"):
                self.put(read.group, layer, parameter, 0, read.outer, read.inner)
            return read
        if isinstance(module, nn.GroupNorm) and read.position == 0 and (plain or module.num_groups == 1):
            group, blocks = self.root(read.group), module.num_groups if module.num_groups < module.num_channels else 1
            if group and blocks > 1:
                if self.blocks[group] not in (1, blocks):
                    return None
                self.blocks[group] = blocks
            for parameter in ("weight", "bias"):
                self.put(read.group, layer, parameter, 0, read.outer, read.inner)
            return read
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            dimension = read.position - (len(layer.input_shape) - len(module.normalized_shape))
            for parameter in ("weight", "bias") if dimension >= 0 else ():
                self.put(read.group, layer, parameter, dimension, read.outer, read.inner)
            return read
        return read if module is None or isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmax2d)) else None

    def _sum(self, layer: Layer, sources: Sequence[_Axis], data: Sequence[_Axis]) -> _Axis | None:
        first = next((axis for axis in data if axis.group), data[0])
        if any((axis.position, axis.outer, axis.inner) != (first.position, first.outer, first.inner) for axis in data if axis.group):
            return None
        back = len(layer.output_shape) - first.position
        if not all(self.join(axis.group, first.group) for axis in data):
            return None
        for axis in sources:
            value = self.subject.state.get(axis.parameter)
            if value is not None and value.ndim >= back and value.shape[value.ndim - back] > 1:
                self.places.append((first.group, Place(axis.parameter, value.ndim - back, first.outer, first.inner)))
        return first

    def _reshaped(self, layer: Layer, read: _Axis) -> _Axis | None:
        """Where the units are after an activation, a reshape, pooling or a part of positions; what this guesses wrong, `read_symmetry` sees by trying it."""
        before, after, position = layer.input_shape, layer.output_shape, read.position
        if not read.group:
            return read
        if len(before) == len(after) and before[position] == after[position]:
            return read
        if len(after) == 1 and layer.kind == "flatten" and math.prod(before) == after[0]:
            outer, inner = math.prod(before[:position]), math.prod(before[position + 1 :])
            return _Axis(read.group, 0, read.outer * outer, read.inner * inner)
        if position == len(before) - 1 and after and after[-1] == before[-1]:
            return dataclasses.replace(read, position=len(after) - 1)
        if position == 0 and after and after[0] == before[0]:
            return read
        return None


def read_symmetry(subject: Subject) -> Symmetry:
    """The permutations of units under which a network stays the same function.

    Units are followed through the traced graph: linear layers, convolutions (depthwise ones too), embeddings, LSTM, GRU and RNN in one direction, what attention reads and puts
    out, normalisation, pooling, activations, flattening, residual sums.  What is not covered fixes, by name, the order of what it reads.  One random permutation of
    every group is then tried: the output must stay.

    Cost: four forward passes of a few examples, made once for a subject.
    Raises: OutOfScope where the network cannot be traced, where no unit may be permuted, or where the permutation tried changes the output (the layers named).
    Source: Ainsworth et al. 2022, section 3.
    """
    return subject.once("numerics.symmetry", lambda: _read(subject))


def _read(subject: Subject) -> Symmetry:
    graph = architecture.of(subject)
    if not graph.traced and len(graph.layers) != 1:
        raise OutOfScope(f"units are followed through a traced graph, and the network could not be traced ({graph.reason})")
    reader = _Reader(subject)
    for layer in graph.layers:
        reader.axes[layer.name] = reader.read(layer)
    seen = {name for layer in graph.layers for name in layer.inputs}
    for layer in graph.layers:
        if layer.name not in seen:  # the network's output, in the order of the targets
            reader.join(0, reader.axes[layer.name].group)
    for group, place in reader.places:
        if place.key in reader.frozen:
            reader.join(0, group)
    groups = []
    for root in range(1, len(reader.parent)):
        if reader.root(root) != root:
            continue
        places = tuple(dict.fromkeys(place for group, place in reader.places if reader.root(group) == root))
        carriers = tuple(
            (name, axis.position + 1) for name, axis in reader.axes.items() if reader.root(axis.group) == root and (axis.outer, axis.inner) == (1, 1) and name in reader.modules
        )
        groups.append(Group(reader.names[root], reader.sizes[root], reader.blocks[root], places, carriers))
    buffers = frozenset(name for name, _ in subject.module.named_buffers())
    symmetry = Symmetry(tuple(groups), tuple(reader.fixed), buffers)
    if not groups:
        raise OutOfScope("no unit of the network may be permuted" + (f": {'; '.join(reader.fixed[:4])}" if reader.fixed else ", it has no hidden layer"))
    _check(subject, symmetry)
    return symmetry


def _check(subject: Subject, symmetry: Symmetry) -> None:
    """Try one random permutation of every group; where the output moves, name the groups that move it."""
    exact = subject.to(torch.float64) if subject.device.type != "mps" else subject
    block = next(exact.batches(chunk=8))
    slack = 1e-6 if exact.dtype == torch.float64 else 1e-2
    with measuring(exact), torch.no_grad():
        output = exact(exact.state, block.inputs)

        def moves(groups: tuple[Group, ...]) -> bool:
            part = dataclasses.replace(symmetry, groups=groups)
            state = permuted(part, exact.state, random_permutations(part, rng=chance.generator(0, "symmetry")))
            return not torch.allclose(exact(state, block.inputs), output, rtol=slack, atol=slack * float(output.abs().max()))

        if moves(symmetry.groups):
            guilty = [f"`{group.name}`" for group in symmetry.groups if moves((group,))]
            raise OutOfScope(f"permuting the units of {', '.join(guilty[:4]) or 'the hidden layers'} changes the output: something after them depends on their order")


def random_permutations(symmetry: Symmetry, *, rng: Generator) -> tuple[Tensor, ...]:
    """A random permutation of every group, its blocks kept together.  Shapes: (size,) each."""
    drawn = []
    for index, group in enumerate(symmetry.groups):
        stream, each = chance.child(rng, "group", index), group.size // group.blocks
        order = chance.permutation(group.blocks, rng=stream)
        drawn.append(torch.cat([int(block) * each + chance.permutation(each, rng=stream) for block in order]))
    return tuple(drawn)


def permuted(symmetry: Symmetry, state: State, permutations: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state with its units in another order: unit i of a group becomes what was unit p[i].  Shapes: one (size,) a group."""
    out = dict(state)
    for group, order in zip(symmetry.groups, permutations, strict=True):
        for place in group.places:
            out[place.key] = reordered(out[place.key], place, order)
    return out


def reordered(value: Tensor, place: Place, order: Tensor) -> Tensor:
    """A tensor with the units along one place in another order.  Shapes: order (size,)."""
    split = value.unflatten(place.dimension, (place.outer, len(order), place.inner))
    return split.index_select(place.dimension + 1, order.to(value.device)).flatten(place.dimension, place.dimension + 2)
