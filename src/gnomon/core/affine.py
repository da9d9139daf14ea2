"""Where every parameter enters through one affine layer and what follows is piecewise linear: there tr H = tr GGN."""

from __future__ import annotations

from torch import nn

from gnomon.core import architecture
from gnomon.core.layers import Layer
from gnomon.core.subject import Subject

PIECEWISE = frozenset(("relu", "relu6", "leaky_relu", "rrelu", "hardtanh", "threshold", "abs", "hardshrink", "softshrink"))
"""Activations that are piecewise linear."""
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def bent_by(subject: Subject) -> str:
    """Why the output is not piecewise linear along every single parameter, or the empty string where it is.

    It is where each trainable parameter is the weight or bias of one layer that is called once and affine in it (batch norm in eval mode too), and every operation from the
    first such layer on is piecewise linear: then every second derivative along one parameter is 0 (almost everywhere), and H and the Gauss-Newton matrix have one diagonal.

    Assumes: eval mode.   Cost: that of reading the architecture, once.
    """
    return subject.once("core.affine", lambda: _bent_by(subject))


def _bent_by(subject: Subject) -> str:
    read = architecture.of(subject)
    if not read.traced:
        return f"the network's graph could not be read ({read.reason})"
    owners: dict[int, list[str]] = {}
    for name, layer in subject.module.named_modules():
        for key, value in layer._parameters.items():
            if value is not None:
                owners.setdefault(id(value), []).append(name)
                if not isinstance(layer, AFFINE) and f"{name}.{key}".lstrip(".") in subject.trainable:
                    return f"`{name or type(layer).__name__}` ({type(layer).__name__}) is not affine in its parameters, or not known to be"
    shared = [names for names in owners.values() if len(names) > 1]
    if shared:
        return f"a parameter is shared by `{shared[0][0]}` and `{shared[0][1]}`"
    begun = False
    for layer in read.layers:
        begun = begun or bool(layer.parameters) or layer.kind == "norm"
        if begun and not _piecewise(subject, layer):
            return f"`{layer.name}` ({layer.activation or layer.kind}) is not piecewise linear" + (f": {layer.why}" if layer.why else "")
    return ""


def _piecewise(subject: Subject, layer: Layer) -> bool:
    module = dict(subject.module.named_modules()).get(layer.name, subject.module if layer.name == architecture.ROOT else None)
    if layer.kind in ("linear", "conv", "embedding"):
        return isinstance(module, AFFINE)
    if layer.kind == "activation":
        return layer.activation in PIECEWISE or layer.activation.startswith(("mul ", "div ", "neg", "truediv "))
    if layer.kind == "norm":
        return isinstance(module, AFFINE) and getattr(module, "running_mean", None) is not None
    if layer.kind == "pool":
        return "lp" not in layer.name.lower() and "Lp" not in type(module).__name__
    return layer.kind in ("input", "identity", "flatten", "add")
