"""A whole network that is one chain of layers through one activation: what the recursions are about, and the layer at which a network is none."""

from __future__ import annotations

import torch

from gnomon.core import architecture
from gnomon.core.architecture import Architecture, Layer
from gnomon.core.errors import OutOfScope
from gnomon.theory.activations import Function, compose
from gnomon.theory.effective import activation_after


def whole_chain(found: Architecture) -> tuple[list[Layer], Function]:
    """The weighted layers of a network, in order, and the activation between them.

    Shapes: at least one layer.   Cost: none.   Raises: OutOfScope that names the layer where the chain ends (normalisation, pooling, a sum of branches, attention ...), or before which the
    activation is another one.   Source: none; a reading of the graph.
    """
    layers = list(found.parametrised)
    if not layers:
        raise OutOfScope("there is no linear or convolution layer")
    reached = architecture.steps(found)
    other = next((x for x in found.layers if x.kind in ("recurrent", "attention", "norm") or (x.parameters and x.kind not in architecture.PARAMETRISED)), None)
    if other is not None:
        raise OutOfScope(
            f"`{other.name}` ({other.why or other.kind}): what is followed is a chain of linear or convolution layers through one activation; take the parts beside it one by one"
        )
    functions = []
    for place, layer in enumerate(layers):
        step = reached[layer.name]
        if layer.kind == "embedding":
            raise OutOfScope(f"`{layer.name}` is an embedding: what is followed are linear and convolution layers")
        if place and (step.source != layers[place - 1].name or step.branches):
            why = step.why or (f"`{step.source}` is read by several layers" if step.branches else f"it reads `{step.source}`")
            raise OutOfScope(f"`{layer.name}` does not follow `{layers[place - 1].name}` through activations alone: {why}. Take the parts before and after it one by one")
        if place:
            functions.append(activation_after(found, step))
    grid = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for layer, function in zip(layers[2:], functions[1:], strict=True):
        if not torch.equal(function(grid), functions[0](grid)):
            raise OutOfScope(
                f"the activation before `{layer.name}` is another than that before `{layers[1].name}`: each has a critical point of its own, and there is none for both"
            )
    return layers, functions[0] if functions else compose(())
