"""What finite width does to a fully connected network at initialisation, over an ensemble of re-drawn ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.architecture import Layer
from gnomon.core.dataset import Tree
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import State, Subject
from gnomon.instruments.effective import _drawn, examples
from gnomon.numerics.activations import layer_activations
from gnomon.numerics.derivatives import gradients, output_of
from gnomon.numerics.measuring import measuring

PRINCIPLES = Source("roberts2022", "chapters 4, 8 and 11")
KERNEL, STEP = "tangent kernel", "first step"
PART = 0.1
"""The step's learning rate moves an output by this part of itself, so that the movement of the kernel is its first order."""
PILOT = 16
"""Networks, the same whatever the randomness, of which the learning rate of the step is taken."""
TRUTH_DRAWS = 20_000
FEWEST = 30
"""Fewest networks: the bias of a ratio of moments falls with their number squared, once it is corrected."""


def many_networks(subject: Subject) -> Array:
    """The values over TRUTH_DRAWS other networks, for the contract tests.   Shapes: those of the reading.   Cost: TRUTH_DRAWS networks."""
    return subject.once(f"{__name__}/truth", lambda: np.asarray(width_effects(subject, rng=chance.generator(0, f"{__name__}/truth"), draws=TRUTH_DRAWS).value))


def _cost(subject: Subject, draws: int) -> Cost:
    # drawing a network costs about as much as 16 examples do; two steps and three gradients of one example
    return Cost(gradients=draws * 20 / len(subject.train), bytes=8 * sum(value.numel() * value.element_size() for value in subject.state.values()))


@instrument(topic="effective", needs=("make",), truth=many_networks, knob="draws", smallest=64, largest=512, cost=_cost)
def width_effects(subject: Subject, *, rng: Generator, draws: int = 128) -> Reading:
    """What finite width does to one example over networks drawn by the factory: how the signal fluctuates, the tangent kernel, and its movement in a first step.

    E m^2 / (E m)^2 - 1 with m the mean square of what a layer reads, from the second layer on;   E H^2 / (E H)^2 - 1;   E (H' - H) / (lr (E H)^2),

    H the tangent kernel of the first output, every trainable parameter at one rate; H' that after one step of gradient descent on half the squared outputs, lr such that H lr = PART.

    Shapes: value (layers - 1 + 2,).   `details`: `square`, the mean square of what the first layer reads; `biases`, which layers have them; `lr`.
    Units: none.   Error: standard error over networks, by leaving out one at a time; intervals of variances by their logarithms.   Assumes: the factory draws independent networks; one example, the same for all.
    Cost: draws x (one drawing, two forward and three backward passes of one example).
    Raises: OutOfScope where there is no factory or it seeds itself, and, naming the layer, where the network is not fully connected as a whole; InvalidInput for fewer than FEWEST draws.
    Source: Roberts, Yaida & Hanin 2022, chapters 4, 8 and 11 (the moments); Quenouille 1956 (jackknife).
    """
    if draws < FEWEST:
        raise InvalidInput(f"draws must be at least {FEWEST}, not {draws}: a ratio of moments has no error bar below.")
    layers = _fully_connected(subject)
    inputs = _one_example(subject)
    lr = subject.once(f"{__name__}/lr", lambda: _learning_rate(subject, inputs))
    names = [layer.name for layer in layers[1:]]
    rows = []
    with measuring(subject), torch.enable_grad():
        for _, state in _drawn(subject, draws, rng):
            read = layer_activations(subject, state, inputs, names, what="inputs").values()
            rows.append([*(float(part.double().square().mean()) for part in read), *_kernels(subject, state, inputs, lr)])
    *signals, before, after = np.array(rows).T
    found = [jackknife(lambda p, q: p / q**2 - 1, each**2, each) for each in (*signals, before)]
    value, error = zip(*found, jackknife(lambda moved, h: moved / (lr * h**2), after - before, before), strict=True)
    first = layer_activations(subject, subject.state, inputs, [layers[0].name], what="inputs")[layers[0].name]
    details = {"square": float(first.double().square().mean()), "biases": [_has_bias(subject, layer) for layer in layers], "lr": lr}
    return Reading(
        "width_effects", value, "", error=error, error_kind="seed", n=draws, interval=intervals(np.array(value), np.array(error), draws), axes=(Axis("of", (*names, KERNEL, STEP)),), source=PRINCIPLES,
        assumes=("one training example, the same for every network", "all parameters learn at one rate"), details=details,
    )  # fmt: skip


def _fully_connected(subject: Subject) -> list[Layer]:
    """The network's layers, where they are one chain of linear layers without positions that are all trained."""
    known = architecture.of(subject)
    layers, reached = list(known.parametrised), architecture.steps(known)
    if len(layers) < 2:
        raise OutOfScope("the network has no hidden layer")
    for place, layer in enumerate(layers):
        if layer.kind != "linear" or len(layer.output_shape) != 1:
            raise OutOfScope(f"`{layer.name}` is {'a convolution' if layer.kind == 'conv' else 'no fully connected layer'}, and networks are covered that are fully connected")
        step = reached[layer.name]
        if place and (step.source != layers[place - 1].name or step.branches):
            raise OutOfScope(f"`{layer.name}` does not follow `{layers[place - 1].name}` through activations alone: {step.why or 'there are branches'}")
    covered = {f"{'' if layer.name == architecture.ROOT else layer.name + '.'}{key}" for layer in layers for key in ("weight", "bias")}
    parameters = {name for name, _ in subject.module.named_parameters()}
    odd = sorted((parameters - set(subject.trainable)) | (set(subject.trainable) - covered))
    if odd:
        raise OutOfScope(f"`{odd[0]}` is frozen, or belongs to a layer that is not fully connected: the tangent kernel is then another one")
    return layers


def _has_bias(subject: Subject, layer: Layer) -> bool:
    return getattr(architecture.child_of(subject.module, layer), "bias", None) is not None


def _one_example(subject: Subject) -> Tree:
    """The first of the examples that signals are measured on that is not 0."""
    inputs = examples(subject).inputs
    if not isinstance(inputs, Tensor):
        raise OutOfScope("the network reads more than one tensor")
    found = inputs[inputs.flatten(1).ne(0).any(1)][:1]
    if not len(found):
        raise OutOfScope("the examples are all 0")
    return found


def _learning_rate(subject: Subject, inputs: Tree) -> float:
    with measuring(subject), torch.enable_grad():
        sizes = [_kernels(subject, state, inputs, 0.0)[0] for _, state in _drawn(subject, PILOT, chance.generator(0, f"{__name__}/pilot"))]
    if not np.mean(sizes) > 0:
        raise OutOfScope("the output does not depend on the parameters")
    return float(PART / np.mean(sizes))


def _kernels(subject: Subject, state: State, inputs: Tree, lr: float) -> tuple[float, float]:
    """The tangent kernel of the first output before and after the step."""
    at = subject.at(state)
    leaf = {key: state[key].detach().requires_grad_() for key in subject.trainable}
    output = output_of(at, leaf, inputs).reshape(-1)
    before = _size(gradients(output[0], leaf.values(), keep=True))
    if not lr:
        return before, before
    slopes = gradients(output.square().sum() / 2, leaf.values())
    moved = {key: (value.detach() - lr * slope).requires_grad_() for (key, value), slope in zip(leaf.items(), slopes, strict=True)}
    return before, _size(gradients(output_of(at, moved, inputs).reshape(-1)[0], moved.values()))


def intervals(value: Array, error: Array, draws: int) -> tuple[Array, Array]:
    """The 95 % intervals of relative variances, by Student's t on their logarithms, for they are skewed, and of the last element on itself.   Shapes: (n,) twice -> (n,) twice."""
    t = stats.t.ppf(0.975, draws - 1)
    skewed = (value > 0) & (np.arange(len(value)) < len(value) - 1)
    factor = np.exp(t * error / np.where(skewed, value, 1.0))
    return np.where(skewed, value / factor, value - t * error), np.where(skewed, value * factor, value + t * error)


def _size(slopes: tuple[Tensor, ...]) -> float:
    return sum(float(slope.detach().double().square().sum()) for slope in slopes)


def jackknife(function: Callable[[Array, Array], Array], one: Array, two: Array) -> tuple[float, float]:
    """A function of two means over networks, its bias of first order taken off, and its standard error, by leaving out one at a time.   Shapes: (networks,) twice."""
    count = len(one)
    whole = float(function(one.mean(), two.mean()))
    left = function((count * one.mean() - one) / (count - 1), (count * two.mean() - two) / (count - 1))
    return count * whole - (count - 1) * float(left.mean()), float(np.sqrt((count - 1) / count * np.square(left - left.mean()).sum()))
