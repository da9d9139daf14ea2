"""The recipe for a network's kernels: what is known of each layer, and the steps that lead from data to the output's pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx

from gnomon.core.layers import Layer, Scheme
from gnomon.theory.infinite.means import Mean
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recognise import factor

Parametrization = Literal["standard", "ntk", "mup", "mean_field"]
Variance = float | Mapping[str, float] | None
Reads = Literal["same", "near", "all"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How variances and the parametrisation are chosen; see `infinite_width`."""

    parametrization: Parametrization
    weight_variance: Variance
    bias_variance: Variance
    scheme: Scheme | None
    tolerance: float
    memory: int


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a layer whose channels are random.

    `gaussian`: its channels are identically distributed Gaussians; `centred`: their means are 0; `roots`: the layers with fresh weights that it is made of;
    `chain`: the activations applied to the Gaussian layer `base`; `last`: channels are the last dimension; `positions`: the shape of what is not channels; `alike`: its channels
    are identically distributed; `scores`: what attention's scores are made of: the layers of queries and keys, and the square of their factor times how many channels they have;
    `gain`: whether each channel is times a trained gain of its own, each channel at each position (`placed`), or a sum with such; `means`: where the means are not 0, what they are the sum of (none: not known).
    """

    gaussian: bool
    centred: bool
    roots: frozenset[str]
    last: bool
    positions: tuple[int, ...]
    base: str = ""
    chain: tuple[Layer, ...] = ()
    alike: bool = True
    scores: tuple[str, str, float] | None = None
    gain: Literal["", "own", "placed", "mixed"] = ""
    means: tuple[Mean, ...] = ()

    @property
    def reach(self) -> Reads:
        """What an activation of it reads: the same position, but for a gain of each position's own, which has to know which one it is."""
        return "all" if self.gain == "placed" else "same"

    @property
    def gathers(self) -> Reads:
        """What is read of the layers that tell its mean: the same position, but where positions were moved since."""
        return "all" if any(mean.moves for mean in self.means) else "same"

    def at(self, positions: tuple[int, ...], move: Callable[[Tensor], Tensor], *, joins: bool = False) -> Known:
        """The same channels at other positions: `move` makes numbers of these, (n, *S), of those of all; `joins`: several positions meet in one, or one becomes several."""
        gain = "mixed" if joins and self.gain == "placed" else self.gain
        return dataclasses.replace(self, positions=positions, chain=(), base="", means=tuple(mean.moved(move) for mean in self.means), gain=gain)


Rule = Callable[[list[Pair], Asked], Pair]


@dataclasses.dataclass
class Step:
    """One layer: the layers that it reads, what it makes of their pairs, whether it needs or gives covariances between all positions, and n - k.

    `reads`: the same position, those near it, or all; `folds`: its rule takes a pair's factor into account; `positions`: the shape of its own; `readers`: how many steps read it.
    """

    name: str
    sources: tuple[str, ...]
    rule: Rule | None = None
    reads: Reads = "same"
    positions: tuple[int, ...] = ()
    pools: bool = False
    keeps: bool = True
    folds: bool = False
    nonlinear: bool = False
    full: bool = False
    source_full: bool = False
    kinked: bool = False
    gap: bool = False
    readers: int = 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A layer that reads data: the fx node of the data, and how its channels and positions stand."""

    node: fx.Node
    kind: str
    last: bool


@dataclasses.dataclass
class Plan:
    """The recipe: `entries` turn data into pairs, `steps` follow in order, `output` is the last one's name; `variances` are (C_W, C_b, how) by layer; `readout` the output's covariance where it is a constant."""

    entries: dict[str, Entry]
    steps: list[Step]
    output: str
    variances: dict[str, tuple[float, float, str]]
    own: bool
    positions: int
    readout: float | None
    graph_module: fx.GraphModule
    data: dict[fx.Node, Layer | None]

    def groups(self) -> list[list[Step]]:
        """The steps, those together that each read the same positions of the one before alone."""
        found: list[list[Step]] = []
        for step in self.steps:
            last = found[-1][-1] if found else None
            joins = last is not None and last.rule is not None and step.sources == (last.name,) and last.readers == 1 and step.reads == "same"
            if joins and last is not None and last.reads != "all" and step.full and last.full and last.name != self.output:
                found[-1].append(step)
            else:
                found.append([step])
        return found

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        """What each entry reads, from the data.  Cost: what the network does to the data before its first weights."""
        interpreter = fx.Interpreter(self.graph_module)
        env: dict[fx.Node, Any] = interpreter.env
        with torch.no_grad():
            for node, layer in self.data.items():
                if node.op == "placeholder":
                    env[node] = x if layer is not None else None
                elif layer is not None and layer.kind == "identity":
                    env[node] = env[node.all_input_nodes[0]]
                elif layer is not None and layer.kind == "activation" and layer.function is not None:
                    env[node] = layer.function(env[node.all_input_nodes[0]])
                else:
                    env[node] = interpreter.run_node(node)
        found = {name: env[entry.node] for name, entry in self.entries.items()}  # what depends on no example is there once
        return {name: part if len(part) == len(x) else part.expand(len(x), *part.shape[1:]) for name, part in found.items()}


def layouts(steps: list[Step], layers: Mapping[str, Layer]) -> bool:
    """Mark where covariances between all positions are needed (before poolings only), and n - k (before kinks).  Whether poolings' own variances are needed downstream."""
    by_name = {step.name: step for step in steps}
    for step in reversed(steps):
        step.source_full = step.pools or (step.full and step.keeps)
        for name in step.sources:
            by_name[name].full = by_name[name].full or step.source_full
            by_name[name].gap = by_name[name].gap or ((step.gap or step.kinked) and not step.pools)
            by_name[name].readers += 1
    after = {step.name for step in steps if step.pools}
    nonlinear = False
    for step in steps:
        if any(name in after for name in step.sources):
            after.add(step.name)
            layer = layers.get(step.name)
            nonlinear = nonlinear or (layer is not None and layer.kind in ("activation", "norm") and factor(layer) is None)
    return nonlinear
