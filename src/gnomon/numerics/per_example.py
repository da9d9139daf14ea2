"""Per-example gradients in compact form: from layer inputs and output gradients where a layer is known, by differentiation one example at a time where not."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Tree, length
from gnomon.core.subject import Subject
from gnomon.numerics.derivatives import FAILURES, gradients, output_of
from gnomon.numerics.functional_linear import caught, used_at
from gnomon.numerics.layers import Call, Columns, Kind, Outer, gradient_of, kind_of
from gnomon.numerics.measuring import measuring
from gnomon.numerics.mixing import refuse_mixing

logger = logging.getLogger("gnomon.numerics")
Feature = Outer | Float[Tensor, "_ _"]
Direction = Float[Tensor, "n ..."]
"""The gradient of a loss with respect to the outputs, or what stands for it."""
TRIAL = (3, 5)
"""Numbers of examples whose shapes tell which dimension of a layer's input runs over the examples."""


@dataclasses.dataclass(frozen=True)
class Use:
    """One layer that uses a parameter as its weight or bias; a linear map without a layer uses its rows from `start` on."""

    layer: str
    role: str
    start: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """A trainable parameter: the layers that use it and, where all act by outer products, positions and sizes (T, l, r)."""

    name: str
    shape: torch.Size
    uses: tuple[Use, ...]
    outer: tuple[int, int, int] | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How each trainable parameter's per-example gradients are found: `direct` from layers, `slow` by differentiating one example at a time."""

    direct: tuple[Parameter, ...]
    slow: tuple[str, ...]
    axes: dict[str, str]
    vectorised: bool

    def loose(self, subject: Subject) -> dict[str, Tensor]:
        """The parameters that linear maps without a layer use."""
        return {p.name: subject.state[p.name] for p in self.direct if any(use.start is not None for use in p.uses)}


def plan_of(subject: Subject) -> Plan:
    """The plan for a subject, made once and checked against differentiation one example at a time on five examples.  Raises: OutOfScope where its forward mixes examples."""

    def make() -> Plan:
        refuse_mixing(subject)
        with measuring(subject):
            return _make_plan(subject)

    return subject.once("numerics.per_example", make)


def _make_plan(subject: Subject) -> Plan:
    layers = {key: layer for key, layer in subject.module.named_modules() if kind_of(layer)}
    block = subject.train.blocks[0]
    axes = _axes(subject, layers, block, {})
    canonical = {id(value): key for key, value in subject.module.named_parameters()}
    uses: dict[str, list[Use]] = {key: [] for key in subject.trainable}
    for key, layer in layers.items():
        for role, value in layer._parameters.items():
            name = canonical.get(id(value)) if value is not None else None
            if name in uses and key in axes:
                uses[name].append(Use(key, role))
    sites = _axes(subject, {}, block, {key: subject.state[key] for key in subject.trainable if not uses[key]})
    for key in sites:
        for name, role, start in used_at(key):
            uses[name].append(Use(key, role, start))
    axes |= sites
    candidates = tuple(Parameter(key, subject.state[key].shape, tuple(uses[key])) for key in subject.trainable if uses[key])
    draft = Plan(candidates, (), axes, False)
    inputs = _cycled(subject, block, TRIAL[1])
    with torch.no_grad():
        output = subject(subject.state, inputs)
    direction = chance.normal(*output.shape, rng=chance.generator(0, "per-example"), like=output)
    truth = dict(zip(subject.trainable, _looped(subject, subject.trainable, inputs, direction), strict=True))
    size = math.sqrt(sum(float(column.square().sum()) for column in truth.values()))
    close, negligible = (1e-8, 1e-13) if subject.dtype == torch.float64 else (1e-3, 1e-6)
    found = _attempt(subject, draft, inputs, direction)
    good = []
    for parameter in candidates:
        feature = found.get(parameter.name)
        if feature is None:
            continue
        try:
            columns = feature if isinstance(feature, Tensor) else feature.columns(parameter.shape)
        except RuntimeError:  # a subclass of a layer that does something else with its input
            continue
        gap = float((columns - truth[parameter.name]).norm()) if columns.shape == truth[parameter.name].shape else math.inf
        if gap <= max(close * float(truth[parameter.name].norm()), negligible * size):
            outer = None
            if isinstance(feature, Outer):
                outer = feature.left.shape[1], int(parameter.shape[0]), feature.right.shape[-1]
            good.append(dataclasses.replace(parameter, outer=outer))
    slow = tuple(key for key in subject.trainable if key not in {parameter.name for parameter in good})
    if slow:
        logger.info("per-example gradients of %s are taken one example at a time: %s", subject.name, ", ".join(slow))
    return Plan(tuple(good), slow, axes, bool(slow) and _vmap_works(subject, slow, inputs, direction, truth, close, negligible * size))


def _attempt(subject: Subject, draft: Plan, inputs: Tree, direction: Direction) -> dict[str, Feature]:
    """Gradients from layers; without the layers that get a copy for each example where the network does not bear those; none where all else fails."""
    shared = {key for key, axis in draft.axes.items() if axis == "none"}
    rest = tuple(p for p in draft.direct if not any(use.layer in shared for use in p.uses))
    for plan in (draft, dataclasses.replace(draft, direct=rest)):
        try:
            return _from_layers(subject, plan, inputs)[1](direction, False)
        except (*FAILURES, AssertionError, IndexError, ValueError, TypeError) as error:
            logger.info("per-example gradients from layers failed: %s", str(error).partition("\n")[0])
    return {}


def _cycled(subject: Subject, block: Block, n: int) -> Tree:
    """The first n inputs of a block, from its beginning again where there are fewer."""
    which = torch.arange(n) % len(block)
    return subject.to_device(tree_map(lambda leaf: leaf[which], block.inputs))


def _axes(subject: Subject, layers: dict[str, nn.Module], block: Block, loose: Mapping[str, Tensor]) -> dict[str, str]:
    """For each layer whose calls all agree: `first` or `second` (the dimension of the examples, or a multiple of them), or `none` (the same for all).

    A linear map without a layer that reads a matrix reads examples within positions (`within`), as attention folds them.
    """
    shapes = []
    for n in TRIAL:
        with torch.no_grad(), captured(layers, {}, n, loose) as calls:
            subject(subject.state, _cycled(subject, block, n))
        shapes.append({key: [tuple(call.input.shape) for call in of_layer] for key, of_layer in calls.items()})
    few, many = shapes
    axes = {}
    for key in few.keys() & many.keys():
        if len(few[key]) != len(many[key]):
            continue
        kinds = {_axis(a, b) for a, b in zip(few[key], many[key], strict=True)}
        kind = kinds.pop()
        if loose:
            if not kinds and kind in ("first", "second"):
                axes[key] = "within" if kind == "first" and len(many[key][0]) == 2 and many[key][0][0] > TRIAL[1] else kind
            continue
        if not kinds and (kind == "first" or (kind == "second" and kind_of(layers[key]) in ("linear", "normalised")) or (kind == "none" and kind_of(layers[key]) == "embedding")):
            axes[key] = kind
    return axes


def _axis(few: tuple[int, ...], many: tuple[int, ...]) -> str:
    if few == many:
        return "none"
    if len(few) == len(many):
        if few[1:] == many[1:] and few[0] * TRIAL[1] == many[0] * TRIAL[0]:
            return "first"
        if few[0] == many[0] and few[2:] == many[2:] and few[1:2] == TRIAL[:1] and many[1:2] == TRIAL[1:]:
            return "second"
    return "unknown"


@contextlib.contextmanager
def captured(layers: dict[str, nn.Module], axes: dict[str, str], n: int, loose: Mapping[str, Tensor] | None = None) -> Iterator[dict[str, list[Call]]]:
    """Record every call of the layers, examples first; outputs become part of the graph, and copies of them go on, so that nothing downstream changes them."""
    calls: dict[str, list[Call]] = {}

    def record(key: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(output, Tensor) or not isinstance(x, Tensor):
            return output
        if axes.get(key) == "none":
            # Positions are the same for every example: give each its own copy, so that their gradients stay apart.
            if x.ndim > 1 and len(x) == 1:
                x, output = x[0], output[0]
            x, output = x.expand(n, *x.shape), output.expand(n, *output.shape)
        held = output if output.requires_grad else output.detach().requires_grad_(torch.is_grad_enabled())
        mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
        statistics = (mean, variance) if isinstance(mean, Tensor) and isinstance(variance, Tensor) else None
        calls.setdefault(key, []).append(Call(x.detach(), held, statistics))
        return held.clone()

    def catch(key: str, x: Tensor, output: Tensor) -> Tensor:
        if axes and key not in axes:
            return output
        held = output if output.requires_grad else output.detach().requires_grad_(torch.is_grad_enabled())
        calls.setdefault(key, []).append(Call(x.detach(), held))
        return held.clone()

    handles = [
        layer.register_forward_hook(lambda module, args, kwargs, output, key=key: record(key, module, args, kwargs, output), with_kwargs=True) for key, layer in layers.items()
    ]
    try:
        with caught(loose or {}, catch):
            yield calls
    finally:
        for handle in handles:
            handle.remove()


def features(subject: Subject, plan: Plan, block: Block, scale: float) -> dict[str, Feature]:
    """The per-example gradients of `scale` times a chunk's loss, by parameter, in compact form.

    Shapes: each an Outer or columns (n, size).   Assumes: called inside `measuring`.   Raises: NotFinite with the number of the first example whose loss has no finite slope.
    """
    output, pull = pulling(subject, plan, block.inputs)
    direction = torch.zeros_like(output)
    if scale:
        leaf = output.detach().requires_grad_()
        with torch.enable_grad():
            (direction,) = gradients(scale * subject.loss(leaf, block.targets), [leaf])
    if not bool(torch.isfinite(direction).all()):
        bad = int((~torch.isfinite(direction).flatten(1).all(1)).nonzero()[0])
        raise NotFinite(bad)
    return pull(direction, False)


class NotFinite(Exception):
    """The loss of one example of a chunk has a gradient that is not finite; `index` is its place in the chunk."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


Pull = Callable[[Direction, bool], dict[str, Feature]]
"""From directions in the output, one an example, to J_i^T of each one, by parameter, in compact form; and whether the graph is wanted again."""


def pulling(subject: Subject, plan: Plan, inputs: Tree) -> tuple[Direction, Pull]:
    """The network's output on a chunk, and what takes directions in it back to the parameters, example by example.

    Shapes: output (n, ...); the features each an Outer or columns (n, size).   Assumes: called inside `measuring`.   Cost: one forward pass; each pull about as much.
    """
    output, layers = _from_layers(subject, plan, inputs)

    def pull(direction: Direction, again: bool) -> dict[str, Feature]:
        found = layers(direction, again)
        if plan.slow:
            one_by_one = _vectorised if plan.vectorised else _looped
            found.update(zip(plan.slow, one_by_one(subject, plan.slow, inputs, direction), strict=True))
        return found

    return output, pull


def _from_layers(subject: Subject, plan: Plan, inputs: Tree) -> tuple[Direction, Pull]:
    modules = dict(subject.module.named_modules())
    used = {use.layer: modules[use.layer] for parameter in plan.direct for use in parameter.uses if use.start is None}
    loose = plan.loose(subject)
    if not used and not loose:
        with torch.no_grad():
            return subject(subject.state, inputs), lambda direction, again: {}
    with torch.enable_grad(), captured(used, plan.axes, length(inputs), loose) as calls:
        output = subject(subject.state, inputs)
    flat = [(key, call) for key, of_layer in calls.items() for call in of_layer]
    n = len(output)

    def pull(direction: Direction, again: bool) -> dict[str, Feature]:
        back = gradients(output, [call.output for _, call in flat], direction, again=again)
        seen: dict[str, list[tuple[Call, Tensor]]] = {}
        for (key, call), g in zip(flat, back, strict=True):
            if plan.axes[key] in ("second", "within"):
                call, g = (dataclasses.replace(call, input=_examples_first(call.input, plan.axes[key], n)), _examples_first(g, plan.axes[key], n))
            seen.setdefault(key, []).append((call, g.detach()))
        found: dict[str, Feature] = {}
        for parameter in plan.direct:
            parts = [_part(modules, parameter, use, call, g, n) for use in parameter.uses for call, g in seen.get(use.layer, ())]
            found[parameter.name] = _summed(parts, parameter) if parts else direction.new_zeros(n, parameter.size)
        return found

    return output.detach(), pull


def _examples_first(x: Tensor, axis: str, n: int) -> Tensor:
    return (x if axis == "second" else x.reshape(-1, n, x.shape[-1])).movedim(1, 0)


def _part(modules: dict[str, nn.Module], parameter: Parameter, use: Use, call: Call, g: Tensor, n: int) -> Feature:
    """What one call adds to a parameter's per-example gradients."""
    if use.start is None:
        layer = modules[use.layer]
        return gradient_of(layer, _kind(layer), use.role, call, g, n)
    g = g.reshape(n, -1, g.shape[-1])
    g = pad(g, (use.start, parameter.shape[0] - use.start - g.shape[-1]))
    return g.sum(1) if use.role == "bias" else Outer(g, call.input.reshape(n, -1, call.input.shape[-1]))


def _kind(layer: nn.Module) -> Kind:
    kind = kind_of(layer)
    assert kind is not None
    return kind


def _summed(parts: list[Feature], parameter: Parameter) -> Feature:
    """The sum over uses: outer products side by side, or columns added."""
    outers = [part for part in parts if isinstance(part, Outer)]
    if len(outers) < len(parts):
        return sum((_columns(part, parameter) for part in parts[1:]), start=_columns(parts[0], parameter))
    if len({part.left.ndim for part in outers}) > 1:
        outers = [part.dense(parameter.shape[0]) for part in outers]
    return outers[0] if len(outers) == 1 else Outer(torch.cat([part.left for part in outers], 1), torch.cat([part.right for part in outers], 1))


def _columns(part: Feature, parameter: Parameter) -> Columns:
    return part if isinstance(part, Tensor) else part.columns(parameter.shape)


def _looped(subject: Subject, names: tuple[str, ...], inputs: Tree, direction: Direction) -> list[Columns]:
    rows = []
    for i in range(len(direction)):
        here = {key: subject.state[key].detach().requires_grad_() for key in names}
        with torch.enable_grad():
            output = output_of(subject, here, tree_map(lambda leaf, i=i: leaf[i : i + 1], inputs))
        rows.append([g.reshape(-1) for g in gradients(output, here.values(), direction[i : i + 1])])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _vectorised(subject: Subject, names: tuple[str, ...], inputs: Tree, direction: Direction) -> list[Columns]:
    here = {key: subject.state[key] for key in names}

    def one(example: Tree, u: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda parameters: output_of(subject, parameters, tree_map(lambda leaf: leaf[None], example))[0], here)[1]
        return pull(u)[0]

    return [column.detach().flatten(1) for column in vmap(one)(inputs, direction).values()]


def _vmap_works(subject: Subject, names: tuple[str, ...], inputs: Tree, direction: Direction, truth: dict[str, Tensor], close: float, negligible: float) -> bool:
    try:
        columns = _vectorised(subject, names, inputs, direction)
    except Exception as error:
        logger.info("vmap does not go through %s (%s); a loop over examples is used", subject.name, str(error).partition("\n")[0])
        return False
    return all(float((column - truth[key]).norm()) <= max(close * float(truth[key].norm()), negligible) for key, column in zip(names, columns, strict=True))
