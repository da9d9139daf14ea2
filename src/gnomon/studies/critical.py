"""Networks at criticality: a fully connected one made there, and the re-initialisation of a chain of layers that somebody has."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.dataset import Tree, leaves
from gnomon.core.errors import GnomonError, InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.studies.step_size import CURVATURE, largest_curvature, loss_of
from gnomon.theory.activations import Function, named
from gnomon.theory.chain import whole_chain
from gnomon.theory.criticality import CriticalPoint, critical_point
from gnomon.theory.finite_width import layer_by_layer
from gnomon.theory.tangent import equivalent_learning_rates, ntk_contributions

EXAMPLES = 64
"""Standard normal examples that stand for the data where none are given."""
MEASURED = 256
"""Examples on which the curvature is measured, at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tuned:
    """A network at criticality, and what it takes to train it so that every layer takes part alike.

    `layers` are the names of its weighted layers; `weight_rates` and `bias_rates` what the learning rate of each is multiplied with (1/fan_in included);
    `lr` is 1 over the largest curvature of the loss on the inputs in parameters that are so scaled, measured: half of where gradient descent becomes unstable at the start.
    `kernel_lr` is what the mean tangent kernel of wide networks says of it, for examples that are all alike and a network that knows nothing yet: h of `loss` times the kernel is 1.
    Where depth/width is not small most draws have a kernel far below its mean.   `predicted`, `before` and `after` are the mean square of each layer's output on the inputs;
    `vertex` is V/(n K^2) of the last of them, the relative variance from one draw to the next of what the outputs are made of.
    """

    model: nn.Module
    layers: tuple[str, ...]
    point: CriticalPoint
    weight_rates: tuple[float, ...]
    bias_rates: tuple[float, ...]
    loss: str
    lr: float
    kernel_lr: float
    predicted: Reading
    before: Reading
    after: Reading
    vertex: float

    def parameter_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """One group a parameter for an optimizer of torch: `torch.optim.SGD(tuned.parameter_groups())`; lr times a layer's rate, `self.lr` where none is given.

        Parameters of activations (PReLU) learn at lr / depth.

        For gradient descent; with momentum m give lr (1 - m), since its strides are 1/(1 - m) as long.  Adam divides by the size of the gradients, so that its steps do not see these factors:
        give it the parameters and a rate of its own.
        """
        groups: list[dict[str, Any]] = []
        for name, weight, bias in zip(self.layers, self.weight_rates, self.bias_rates, strict=True):
            child = self.model if name == architecture.ROOT else self.model.get_submodule(name)
            for key, rate in (("weight", weight), ("bias", bias)):
                if (parameter := getattr(child, key)) is not None:
                    groups.append({"params": [parameter], "lr": (self.lr if lr is None else lr) * rate, "name": f"{name}.{key}"})
        known = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [(name, parameter) for name, parameter in self.model.named_parameters() if id(parameter) not in known]
        return groups + [{"params": [parameter], "lr": (self.lr if lr is None else lr) / len(self.layers), "name": name} for name, parameter in rest]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "predicted", "before", "after")]
        rows += [(name, *(f"{float(v):.4g}" for v in each)) for name, *each in zip(self.layers, self.predicted.value, self.before.value, self.after.value, strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        head = f"{self.point.kind}: C_W {self.point.weight_variance:.6g}, C_b {self.point.bias_variance:.6g}; mean square of each layer's output"
        foot = f"lr {self.lr:.3g} for {self.loss}, by the curvature of this network ({self.kernel_lr:.3g} by the mean tangent kernel of wide ones)"
        spread = f"from one draw to the next the mean square of what the outputs are made of varies by {100 * self.vertex**0.5:.0f} %"
        return "\n".join([head, *("  ".join(cell.rjust(size) for cell, size in zip(row, widths, strict=True)) for row in rows), foot, spread])


class CriticalMLP(nn.Sequential):
    """x -> W_L s(... s(W_1 x + b_1) ...) + b_L at criticality.   Shapes: inputs (N, ...), flattened; outputs (N, outputs).   `tuned` holds its learning rates."""

    tuned: Tuned

    def parameter_groups(self, lr: float | None = None) -> list[dict[str, Any]]:
        """`Tuned.parameter_groups`."""
        return self.tuned.parameter_groups(lr)


class _Elementwise(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.function(z)
        return made


def critical_mlp(
    depth: int, width: int, activation: str | Function, *, inputs: int = 784, outputs: int = 10, square: float = 1.0, loss: str | None = None,
    dtype: torch.dtype = torch.float32, rng: Generator | None = None,
) -> CriticalMLP:  # fmt: skip
    """A fully connected network initialised at the critical point of its activation, with the learning rates that let every layer take part alike.

    W^(l) ~ N(0, C_W / fan_in), b^(l) ~ N(0, C_b) with C_W, C_b of `critical_point`; the first layer's weights are scaled so that its pre-activations have variance K*, or C_W where
    the class has none.  `model.parameter_groups(lr)` are for torch.optim.SGD: lr lambda_W / fan_in and lr lambda_b, by `equivalent_learning_rates`.  Where no lr is given it is that of
    `Tuned`, for data whose examples are alike (`gnomon.tune(model, inputs)` measures it on yours) and the `loss` (cross_entropy, mse or bce_with_logits).

    Shapes: `depth` weighted layers, the hidden ones of `width` units.   `square` is the mean square of the inputs' components (1 where data are standardised).   Cost: some 20 gradients of one example.
    Raises: InvalidInput for sizes below 1 or an unknown activation or loss; OutOfScope where the activation has no critical point, with the reason.
    Source: Roberts, Yaida & Hanin 2022, chapters 5 and 9.
    """
    if min(depth, width, inputs, outputs) < 1 or not square > 0:
        raise InvalidInput(f"Sizes must be at least 1 and the inputs' mean square above 0, not depth={depth}, width={width}, inputs={inputs}, outputs={outputs}, square={square}.")
    function = named(activation) if isinstance(activation, str) else activation
    sizes, modules = [inputs, *[width] * (depth - 1), outputs], list[nn.Module]([nn.Flatten()])
    for before, after in itertools.pairwise(sizes):
        modules += [nn.Linear(before, after, dtype=dtype), function if isinstance(function, nn.Module) else _Elementwise(function)]
    model = CriticalMLP(*modules[:-1])
    names = tuple(name for name, child in model.named_children() if isinstance(child, nn.Linear))
    rng = rng or chance.generator(0, "critical")
    drawn = chance.normal(EXAMPLES, inputs, rng=chance.child(rng, "inputs")).to(dtype) * math.sqrt(square)
    model.tuned = _tune(model, _Plan(names, tuple(sizes[:-1]), width, outputs, False, function, loss_of(loss, outputs)), drawn, drawn[:1], square, rng)
    return model


def tune(model: nn.Module, inputs: Tree | None = None, *, loss: str | None = None, rng: Generator | None = None) -> Tuned:
    """Initialise a chain-like network anew, in place, at the critical point of its activation, with learning rates by which every layer takes part alike.

    Every weight of a linear or convolution layer is drawn from N(0, C_W / fan_in), every bias from N(0, C_b); the first layer is scaled so that its outputs have variance K*,
    or, where the class has none, that which inputs of mean square 1 would give.   print(tuned) shows each layer's signal before and after beside the predicted one; `tuned.parameter_groups()` go into torch.optim.SGD, for the
    `loss` that is named: cross_entropy, mse or bce_with_logits (of none: cross_entropy, or mse for one output).

    Shapes: `inputs` some examples as the network takes them; where there are none and the first layer is linear, standard normal ones stand for standardised data, and the
    learning rate is for examples that are alike.
    Assumes: linear and convolution layers, one activation; zero padding, which dims the border, is not corrected for.   Cost: three forward passes of `inputs`, and some 20 gradients of
    MEASURED of them.
    Raises: OutOfScope that names the layer where the chain ends (normalisation, pooling, a sum of branches, attention ...), where activations differ, or where there is no
    critical point; InvalidInput where there are no inputs to be had, the network does not take them, they are zero, or the loss is another.
    Source: Roberts, Yaida & Hanin 2022, chapters 5 and 9.
    """
    rng = rng or chance.generator(0, "tune")
    given = inputs if inputs is not None else _stand_in(model, rng)
    _check_taken(model, given)
    found = architecture.read(model, given)
    layers, function = whole_chain(found)
    first = leaves(given)[0].double()
    square = float(first.square().mean()) if inputs is not None else 1.0
    if not (square > 0 and math.isfinite(square)):
        raise InvalidInput("The inputs are zero or not finite: the first layer cannot be scaled by them.")
    last = layers[-1]
    plan = _Plan(
        tuple(layer.name for layer in layers), tuple(layer.fan_in for layer in layers), min(layer.units for layer in layers[:-1] or layers), last.units, last.kind == "conv",
        function, loss_of(loss, last.units),
    )  # fmt: skip
    return _tune(model, plan, given, tree_map(lambda leaf: leaf[: MEASURED if inputs is not None else 1], given), square, rng)


def _applied(model: nn.Module, inputs: Tree) -> Any:
    with architecture.quiet(model), torch.no_grad(), chance.preserved():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _check_taken(model: nn.Module, inputs: Tree) -> None:
    said = ", ".join(f"{tuple(leaf.shape)} of {leaf.dtype}" for leaf in leaves(inputs)) or type(inputs).__name__
    try:
        _applied(model, inputs)
    except Exception as error:  # whatever the network's own code raises
        raise InvalidInput(
            f"The network does not take these inputs ({said}): {(str(error).strip().splitlines() or [type(error).__name__])[0]}. Give a tensor of examples, without their targets, as it takes them."
        ) from error


def _stand_in(model: nn.Module, rng: Generator) -> Tensor:
    first = next((child for child in model.modules() if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    if not isinstance(first, nn.Linear):
        raise InvalidInput("gnomon.tune(model, inputs) needs some examples as the network takes them, to know their size and shape.")
    return chance.normal(EXAMPLES, first.in_features, rng=chance.child(rng, "inputs"), like=first.weight.detach())


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What is made: the weighted layers with their fan-ins, the least width, the outputs (and whether positions follow them), the activation, the loss."""

    names: tuple[str, ...]
    fans: tuple[int, ...]
    width: int
    outputs: int
    class_first: bool
    function: Function
    loss: str


def _tune(model: nn.Module, plan: _Plan, inputs: Tree, examples: Tree, square: float, rng: Generator) -> Tuned:
    names, fans, function = plan.names, plan.fans, plan.function
    point, depth = critical_point(function), len(names)
    c_w, c_b = point.weight_variance, point.bias_variance
    read = (point.kernel - c_b) / c_w if point.kind == "half-stable" else 1.0  # pixels from 0 to 255 would saturate tanh, and the softmax after ReLU
    children: list[Any] = [model if name == architecture.ROOT else model.get_submodule(name) for name in names]
    bare = next((name for name, child in zip(names, children, strict=True) if child.bias is None), None)
    if c_b and bare is not None:
        raise OutOfScope(f"`{bare}` has no bias, and the critical point of this activation needs biases of variance {c_b:.4g}")
    weight_rates, bias_rates = equivalent_learning_rates(function, depth=depth).value
    settings: dict[str, Any] = {"depth": depth, "width": plan.width, "weight_variance": c_w, "bias_variance": c_b}
    parts = ntk_contributions(function, square=read, weight_rates=weight_rates, bias_rates=bias_rates, **settings)
    predicted, vertex = layer_by_layer(function, kernel=c_b + c_w * read, **settings)[:2]
    before, kept = _signals(model, children, names, inputs), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for place, (child, fan_in) in enumerate(zip(children, fans, strict=True)):
            scale = read / square if place == 0 else 1.0
            child.weight.copy_(math.sqrt(c_w * scale / fan_in) * chance.normal(*child.weight.shape, rng=chance.child(rng, "weight", place)))
            if child.bias is not None:
                child.bias.copy_(math.sqrt(c_b) * chance.normal(*child.bias.shape, rng=chance.child(rng, "bias", place)))
    scaled = [float(rate) / fan * (read / square if place == 0 else 1.0) for place, (rate, fan) in enumerate(zip(weight_rates, fans, strict=True))]
    keys = ["" if name == architecture.ROOT else f"{name}." for name in names]
    rates = dict.fromkeys(dict(model.named_parameters()), 1 / depth)
    rates |= {f"{key}{what}": rate for what, each in (("weight", scaled), ("bias", map(float, bias_rates))) for key, rate in zip(keys, each, strict=True)}
    try:
        curvature = largest_curvature(model, examples, plan.loss, rates, class_first=plan.class_first, rng=chance.child(rng, "curvature"))
    except GnomonError:
        model.load_state_dict(kept)
        raise
    return Tuned(
        model, names, point, tuple(scaled), tuple(map(float, bias_rates)), plan.loss, 1 / curvature, 1 / (CURVATURE[plan.loss](plan.outputs) * float(parts.value.sum())),
        predicted.replace(axes=(Axis("layer", names),)), before, _signals(model, children, names, inputs), float(vertex.value[-1]),
    )  # fmt: skip


def _signals(model: nn.Module, children: Sequence[nn.Module], names: tuple[str, ...], inputs: Tree) -> Reading:
    """The mean square of each layer's output on some examples; its error is their spread over examples."""
    seen: dict[int, Array] = {}

    def hook(place: int) -> Callable[..., None]:
        def keep(child: nn.Module, given: Any, output: Tensor) -> None:
            seen[place] = output.detach().double().square().flatten(1).mean(1).cpu().numpy()

        return keep

    handles = [child.register_forward_hook(hook(place)) for place, child in enumerate(children)]
    try:
        _applied(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    samples = np.stack([seen[place] for place in range(len(names))], 1)
    axes = (Axis("layer", names),)
    return (
        Reading.of_samples("preactivation_variance", samples, unit="", axes=axes).replace(samples=None)
        if len(samples) > 1
        else Reading("preactivation_variance", samples[0], "", axes=axes)
    )
