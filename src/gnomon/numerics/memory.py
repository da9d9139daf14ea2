"""How much memory the graph of a gradient, or a chain, takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gnomon.core.dataset import leaves
from gnomon.core.subject import Subject
from gnomon.numerics import chain, derivatives
from gnomon.numerics.measuring import measuring

KEEP = 2**30
"""Bytes of graphs that an operator keeps: a constant, so that what is kept, and with it the last bits of a result, does not depend on the machine."""
SEVERAL = 2
"""Examples on which a graph is measured."""

_MEASURED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], float]] = weakref.WeakKeyDictionary()


class _Held:
    """A tensor that a graph saved while it was measured."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor


def graph_bytes(subject: Subject) -> float:
    """Bytes that the graph of the gradient of one example takes.   Units: bytes.   Cost: a gradient of two examples, once a network."""
    return _measured(subject, "graph", _graph)


def kept_bytes(subject: Subject, split: str = "train") -> float:
    """Bytes that the graphs of the gradients of all chunks of a split take, or the chains.   Units: bytes.   Cost: a gradient of two examples, once a network."""
    data = subject.train if split == "train" else subject.test
    return _measured(subject, "kept", _chain_or_graph) * (len(data) if data is not None else 0)


def _measured(subject: Subject, what: str, measure: Callable[[Subject], float]) -> float:
    known = _MEASURED.setdefault(subject.module, {})
    key = (what, str(subject.dtype), str(subject.device), *subject.trainable)
    if key not in known:
        with measuring(subject):
            known[key] = measure(subject)
    return known[key]


def operator_bytes(subject: Subject) -> int:
    """Bytes that a curvature operator holds: its kept graphs, or those of one chunk where they are too many.   Units: bytes."""
    whole = kept_bytes(subject)
    return int(whole if whole <= KEEP else whole * min(subject.chunk / len(subject.train), 1.0))


def _chain_or_graph(subject: Subject) -> float:
    block = derivatives.first_block(subject, SEVERAL)
    found = chain.read(subject, block) if chain.is_chain(subject) else None
    if found is None:
        return graph_bytes(subject)
    found[0].follow(found[0].rows.new_ones(found[0].units, len(found[0].rows)))
    return found[0].nbytes / len(block)


def _graph(subject: Subject) -> float:
    held: list[_Held] = []

    def pack(tensor: Tensor) -> _Held:
        held.append(_Held(tensor))
        return held[-1]

    def unpack(entry: _Held) -> Tensor:
        assert entry.tensor is not None
        return entry.tensor

    block = derivatives.first_block(subject, SEVERAL)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*subject.state.values(), *leaves(block.inputs), *leaves(block.targets))}
    parameters = derivatives.leaf_parameters(subject)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        derivatives.gradients(derivatives.loss_of(subject, parameters, block), parameters.values(), keep=True)
    sizes = {entry.tensor.untyped_storage().data_ptr(): entry.tensor.untyped_storage().nbytes() for entry in held if entry.tensor is not None}
    for entry in held:  # an output that its own node saved would keep itself alive through the holder
        entry.tensor = None
    return sum(size for pointer, size in sizes.items() if pointer not in own) / len(block)
