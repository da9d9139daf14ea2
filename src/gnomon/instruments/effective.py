"""Signals at initialisation: variances of weights, pre-activations and gradients over an ensemble of re-drawn networks."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.architecture import Architecture, Layer
from gnomon.core.dataset import Block
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import State, Subject
from gnomon.numerics.measuring import measuring

HE_2015 = Source("he2015", "section 2.2")
POOLE_2016 = Source("poole2016", "section 2")

EXAMPLES = 16
"""How many training examples signals are measured on, at most: more networks say more than more examples."""

MAP_NUMBERS = 4096
"""The numbers that the second moments of inputs may take in a reading: fewer examples are used where positions are many, two at least."""


def examples(subject: Subject) -> Block:
    """The training examples that signals are measured on: the same ones whatever the randomness, so that a prediction for them can be made.

    Shapes: at most EXAMPLES, fewer where their positions are more than MAP_NUMBERS, all of one shape.   Cost: none.
    """
    positions = sum(math.prod(_positions(layer)) for layer in _mapped(architecture.of(subject)))
    count = min(EXAMPLES, max(MAP_NUMBERS // max(positions, 1), 2))
    chosen = subject.train.sample(count, rng=chance.generator(0, "effective/examples"))
    block = max(chosen.blocks, key=len)
    return Block(subject.to_device(block.inputs), subject.to_device(block.targets))


def _positions(layer: Layer) -> tuple[int, ...]:
    return layer.input_shape if layer.kind == "embedding" else layer.input_shape[1:] if layer.kind == "conv" else layer.input_shape[:-1]


def _starts(known: Architecture) -> list[Layer]:
    """The layers at which a chain starts: what they read is part of the reading."""
    return [known[name] for name, step in architecture.steps(known).items() if step.source is None]


def _mapped(known: Architecture) -> list[Layer]:
    """Those among them that another layer follows: what they read is kept by position."""
    followed = {step.source for step in architecture.steps(known).values()}
    return [layer for layer in _starts(known) if layer.name in followed]


def _cost(subject: Subject, draws: int, passes: float) -> Cost:
    # Drawing a network costs about as much as 16 examples do: every weight is drawn, checked and copied.
    parameters = sum(value.numel() * value.element_size() for value in subject.state.values())
    return Cost(gradients=draws * (EXAMPLES + passes * min(EXAMPLES, len(subject.train))) / len(subject.train), bytes=4 * parameters)


def _drawn(subject: Subject, draws: int, rng: Generator) -> Iterator[tuple[int, State]]:
    """Freshly drawn states, one at a time.  Raises: OutOfScope where the factory draws the same network twice."""
    if draws < 2:
        raise InvalidInput(f"draws must be at least 2, not {draws}: one network has no error bar.")
    before: State | None = None
    for draw in range(draws):
        state = subject.redraw(rng=chance.child(rng, "network", draw))
        if before is not None and all(torch.equal(before[key], state[key]) for key in subject.trainable):
            name = getattr(subject.make, "__qualname__", type(subject.make).__name__)
            raise OutOfScope(
                f"The factory {name} draws the same network every time: it seeds its own randomness, or loads weights. Take that out, so that each call draws a fresh network."
            )
        before = state if draw == 0 else None
        yield draw, state


def _module_for(subject: Subject) -> nn.Module:
    """A copy in which batch normalisation uses the batch's statistics: with running ones a network at initialisation is another function."""
    module = copy.deepcopy(subject.module)
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.train()
    return module


@dataclasses.dataclass
class _Tap:
    """Catches what the parametrised layers read and make, at the first call of each."""

    known: Architecture
    made: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    moment: dict[str, float] = dataclasses.field(default_factory=dict)
    squares: dict[str, float] = dataclasses.field(default_factory=dict)
    maps: dict[str, Array] = dataclasses.field(default_factory=dict)
    gradients: bool = False

    def attach(self, module: nn.Module) -> None:
        """Register on a module of its own, which goes when the measurement ends."""
        starts, mapped = {layer.name for layer in _starts(self.known)}, {layer.name for layer in _mapped(self.known)}
        for layer in self.known.parametrised:
            architecture.child_of(module, layer).register_forward_hook(self._hook(layer, layer.name in starts, layer.name in mapped), with_kwargs=True)

    def _hook(self, layer: Layer, starts: bool, mapped: bool) -> Callable[..., Tensor | None]:
        def hook(child: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> Tensor | None:
            if layer.name in self.moment:
                return None
            seen = next(part for part in (*given, *named.values()) if isinstance(part, Tensor)).detach()
            self.moment[layer.name] = float(output.detach().to(torch.float64).square().mean())
            if starts:
                self.squares[layer.name] = _sum_of_squares(child, seen)
            if mapped:
                self.maps[layer.name] = _map_of_squares(layer, child, seen)
            if not self.gradients:
                return None
            if not output.requires_grad:
                output.requires_grad_()
            self.made[layer.name] = output
            return output.clone()  # an activation in place would otherwise change what the gradient is taken of

        return hook

    def clear(self) -> None:
        """Forget a network."""
        for kept in (self.made, self.moment, self.squares, self.maps):
            kept.clear()


def _sum_of_squares(child: nn.Module, seen: Tensor) -> float:
    """The mean over examples and output positions of the sum of squares that one unit reads: the layer itself, with weights 1, on squares."""
    if isinstance(child, nn.Embedding):
        return float(_tokens(child, seen).mean())
    square = seen.to(torch.float64).square()
    if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        ones = torch.ones(child.groups, child.in_channels // child.groups, *child.kernel_size, dtype=square.dtype, device=square.device)
        return float(child._conv_forward(square, ones, None).mean())
    return float(square.sum(-1).mean())


def _map_of_squares(layer: Layer, child: nn.Module, seen: Tensor) -> Array:
    square = _tokens(child, seen) if isinstance(child, nn.Embedding) else seen.to(torch.float64).square().mean(1 if layer.kind == "conv" else -1)
    return square.cpu().numpy()


def _tokens(child: nn.Embedding, tokens: Tensor) -> Tensor:
    """1 where a token is read, 0 where it is padding."""
    return torch.ones(tokens.shape, dtype=torch.float64, device=tokens.device) if child.padding_idx is None else (tokens != child.padding_idx).to(torch.float64)


def _prepared(subject: Subject, what: str) -> tuple[Architecture, Subject, _Tap, Block]:
    known = architecture.of(subject)
    if not known.parametrised:
        raise OutOfScope(f"{what}: the network has no linear, convolution or embedding layer")
    block = examples(subject)
    module = _module_for(subject)
    if len(block) < 2 and any(child.training for child in module.modules()):
        raise OutOfScope(f"{what}: batch normalisation at initialisation needs the statistics of at least two examples; there is one")
    tap = _Tap(known)
    tap.attach(module)
    return known, dataclasses.replace(subject, module=module, _shared={}), tap, block


def _skipped(known: Architecture) -> tuple[str, ...]:
    """Layers with weights whose pre-activations are not measured, by name and reason."""
    shared = ("called again", "weights are those of")
    return tuple(f"{layer.name} ({layer.why})" for layer in known.layers if layer.kind in ("recurrent", "attention") or any(text in layer.why for text in shared))


def _assumes(module: nn.Module, count: int) -> tuple[str, ...]:
    told = [f"{count} training examples, the same for every network", "a layer that is called several times is read at its first call"]
    norms = [name for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if norms:
        shown = ", ".join(f"`{name}`" for name in norms[:4]) + (f" and {len(norms) - 4} more" if len(norms) > 4 else "")
        told.append(f"batch normalisation ({shown}) uses the statistics of these examples")
    return tuple(told)


TRUTH_DRAWS = 1024


def many_networks(subject: Subject, reading: Reading) -> Array:
    """The value of a reading of this topic over TRUTH_DRAWS other networks, for the contract tests: as good as exact beside an ensemble of a few.

    Shapes: that of the reading.   Error: 1/sqrt(TRUTH_DRAWS) of one network's spread.   Cost: TRUTH_DRAWS networks.
    """
    function = preactivation_variance if reading.name == "preactivation_variance" else gradient_variance

    def build() -> Array:
        found = function(subject, rng=chance.generator(0, f"effective/truth/{reading.name}"), draws=TRUTH_DRAWS).value
        return np.asarray(found)

    return subject.once(f"effective/truth/{reading.name}", build)


@instrument(topic="effective", needs=("make",), truth=many_networks, knob="draws", smallest=16, largest=256, essential=True, cost=lambda subject, draws: _cost(subject, draws, 0.4))
def preactivation_variance(subject: Subject, *, rng: Generator, draws: int = 64) -> Reading:
    """Mean square of the pre-activations of each linear, convolution and embedding layer, over networks drawn by the factory.

    mean over examples, positions and units of z^2

    Shapes: value (layers,), samples (draws, layers).  `details`: `squares` by layer (draws,), where a chain of covered layers starts the mean over examples and
    output positions of the sum of squares that one unit reads; `maps` by layer (examples, *positions), where another layer follows, the mean over
    features and draws of the square of what is read, to six digits; `examples`, how many.
    Units: none.   Error: standard error over draws; the examples are fixed.
    Assumes: the factory draws independent networks; batch normalisation with the statistics of the examples.   Cost: draws x (one forward pass of the examples + one drawing).
    Raises: OutOfScope where there is no factory, where it seeds itself, or where no layer is linear, a convolution or an embedding.
    Source: defined here; Poole et al. 2016, section 2.
    """
    known, probe, tap, block = _prepared(subject, "preactivation_variance")
    values: list[list[float]] = []
    squares: dict[str, list[float]] = {}
    maps: dict[str, Array] = {}
    with measuring(subject), chance.scoped(chance.child(rng, "forward")), torch.no_grad():
        for _, state in _drawn(subject, draws, rng):
            tap.clear()
            probe(state, block.inputs)
            values.append([tap.moment[layer.name] for layer in known.parametrised])
            for name, square in tap.squares.items():
                squares.setdefault(name, []).append(square)
            for name, found in tap.maps.items():
                maps[name] = maps.get(name, np.zeros(())) + found / draws
    return Reading.of_samples(
        "preactivation_variance", values, unit="", error_kind="seed", source=POOLE_2016, axes=(Axis("layer", tuple(layer.name for layer in known.parametrised)),),
        assumes=_assumes(probe.module, len(block)), skipped=_skipped(known),
        details={"examples": len(block), "squares": {name: np.array(entry) for name, entry in squares.items()}, "maps": {name: _six_digits(entry) for name, entry in maps.items()}},
    )  # fmt: skip


def _six_digits(values: Array) -> Array:
    return np.array([float(f"{x:.5e}") for x in values.reshape(-1)]).reshape(values.shape)


@instrument(topic="effective", needs=("make",), truth=many_networks, knob="draws", smallest=16, largest=256, cost=lambda subject, draws: _cost(subject, draws, 1.2))
def gradient_variance(subject: Subject, *, rng: Generator, draws: int = 64) -> Reading:
    """Mean square of the gradient with respect to each layer's pre-activations, relative to that at the last layer of its chain, over networks drawn by the factory.

    mean (dR/dz^l)^2 / mean (dR/dz^L)^2,  R = sum of u * output, u normal: no loss, so that the gradient that comes in does not depend on the weights.

    Shapes: value (layers,), samples (draws, layers), for the layers that another of their chain follows.  `details`: `last` by layer, the chain's last one;
    `elements` by layer, how many pre-activations it has for one example.
    Units: none.   Error: standard error over draws; the examples are fixed.
    Assumes: as `preactivation_variance`.   Cost: draws x (one forward and backward pass of the examples + one drawing).
    Raises: OutOfScope as `preactivation_variance`, and where no two layers follow each other, or every gradient is lost.
    Source: defined here; He et al. 2015, section 2.2.
    """
    known, probe, tap, block = _prepared(subject, "gradient_variance")
    last = {name: chain[-1] for chain in architecture.chains(known) for name in chain[:-1]}
    if not last:
        raise OutOfScope("no two layers follow each other through activations and reshapes alone")
    tap.gradients = True
    wanted = tuple(dict.fromkeys([*last, *last.values()]))
    values = []
    with measuring(subject), chance.scoped(chance.child(rng, "forward")), torch.enable_grad():
        for draw, state in _drawn(subject, draws, rng):
            tap.clear()
            output = probe(state, block.inputs)
            projection = chance.normal(*output.shape, rng=chance.child(rng, "projection", draw), like=output)
            found = torch.autograd.grad((output * projection).sum(), [tap.made[name] for name in wanted], allow_unused=True)
            size = {name: 0.0 if g is None else float(g.to(torch.float64).square().mean()) for name, g in zip(wanted, found, strict=True)}
            if all(size[end] > 0 for end in last.values()):
                values.append([size[name] / size[end] for name, end in last.items()])
    if len(values) < 2:
        raise OutOfScope("gradient_variance: no gradient reaches the layers (every unit is dead, or the output does not depend on them)")
    elements = {name: math.prod(known[name].output_shape) for name in wanted}
    skipped = (f"{draws - len(values)} of {draws} networks, in which no gradient reaches a layer",) if len(values) < draws else ()
    return Reading.of_samples(
        "gradient_variance", values, unit="", error_kind="seed", source=HE_2015, axes=(Axis("layer", tuple(last)),), assumes=_assumes(probe.module, len(block)),
        skipped=skipped + _skipped(known), details={"last": last, "elements": elements},
    )  # fmt: skip


def declared_weight_variance(subject: Subject) -> Array:
    """The exact mean of `weight_variance` for a network with the default initialisation of its classes, for the contract tests.  Shapes: (layers,)."""
    return np.array([layer.weight_variance for layer in _weighted(architecture.of(subject))], dtype=np.float64)


def _weighted(known: Architecture) -> list[Layer]:
    return [layer for layer in known.layers if layer.parameters and layer.weight_variance is not None]


@instrument(
    topic="effective",
    needs=("make",),
    truth=declared_weight_variance,
    knob="draws",
    smallest=8,
    largest=256,
    essential=True,
    cost=lambda subject, draws: _cost(subject, draws, 0.0),
)
def weight_variance(subject: Subject, *, rng: Generator, draws: int = 64) -> Reading:
    """Mean square of each layer's weights over networks drawn by the factory: linear, convolution, embedding, recurrent and attention layers.

    mean over the entries of w^2

    Shapes: value (layers,), samples (draws, layers).   Units: none.   Error: standard error over draws.
    Assumes: the factory draws independent networks; an embedding's padding row is left out.   Cost: draws x one drawing.
    Raises: OutOfScope where there is no factory, where it seeds itself, or where no layer has weights of its own.   Source: defined here.
    """
    known = architecture.of(subject)
    layers = _weighted(known)
    if not layers:
        raise OutOfScope("weight_variance: the network has no layer whose initialisation is declared")
    padding = {layer.name: child.padding_idx for layer in layers if isinstance(child := architecture.child_of(subject.module, layer), nn.Embedding)}
    values = [[_mean_square(state, layer, padding.get(layer.name)) for layer in layers] for _, state in _drawn(subject, draws, rng)]
    skipped = tuple(f"{layer.name} ({layer.why})" for layer in known.parametrised if not layer.parameters)
    return Reading.of_samples("weight_variance", values, unit="", error_kind="seed", source=HE_2015, axes=(Axis("layer", tuple(layer.name for layer in layers)),), skipped=skipped)


def _mean_square(state: Mapping[str, Tensor], layer: Layer, padding: int | None) -> float:
    total, count = 0.0, 0
    for key in layer.parameters:
        square = state[key].to(torch.float64).square()
        total += float(square.sum() - (0 if padding is None else square[padding].sum()))
        count += square.numel() - (0 if padding is None else square.shape[1])
    return total / max(count, 1)
