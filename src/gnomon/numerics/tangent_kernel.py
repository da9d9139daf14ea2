"""The neural tangent kernel of a finite network between all outputs of all examples, tile by tile, and its products with vectors."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Dataset, Tree, leaves, length
from gnomon.core.errors import InvalidInput, NotEnoughMemory, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.jacobian import Entry, Rows, add_kernel, add_trace, columns_of, entries_of, flops, joined, rows_of, separate
from gnomon.numerics.layers import Outer
from gnomon.numerics.measuring import measuring
from gnomon.numerics.memory import graph_bytes
from gnomon.numerics.operators import ParameterJacobian
from gnomon.numerics.per_example import Feature, Plan, plan_of, pulling

logger = logging.getLogger("gnomon.numerics")
MEMORY = 1 << 30
"""Bytes that a kernel may take while it is made, the result with it."""
TRIED = 3
"""Outputs on which it is tried whether a layer's gradients are the same at all positions but for factors."""
ROWS = 1 << 8
"""Rows of a tile that are made at a time: of a symmetric one the rest is copied."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a kernel takes: multiplications of its products, examples differentiated (each once for every output), bytes at the peak, bytes of the result, examples of a tile's side."""

    multiplications: float
    examples: int
    bytes: int
    result: int
    side: int


class TangentKernel:
    """Theta_{ia,jb} = d f_a(x_i) / d theta . d f_b(x_j) / d theta over the trainable parameters, for all outputs a, b of two sets of examples, or of one with itself.

    Layers give their part of the Jacobian from their inputs and the gradients of their outputs; parts meet as inner products of inputs and of gradients, or as one layer's gradients,
    whichever is less work.  Parameters of other layers are differentiated one example at a time; `fallback` names them.
    Tiles over pairs of blocks of examples keep within `memory` bytes; of a set with itself every pair of blocks is made once.

    Shapes: `inputs` N examples, `other` M, in the layout that the network takes; C numbers of output an example -> (N, M, C, C).   Units: output^2 / parameter^2.
    Error: rounding in the subject's dtype, sums of more than 8192 products carried in float64.   Assumes: eval mode; examples do not act on each other.
    Raises: InvalidInput for inputs that the network does not take; OutOfScope where examples differ in their number of outputs, or the forward mixes examples; NotEnoughMemory with what it would take.
    Source: Jacot et al. 2018; Novak et al. 2022 (the contractions).
    """

    def __init__(self, subject: Subject, inputs: Tree | Dataset, other: Tree | Dataset | None = None, *, memory: int = MEMORY) -> None:
        if memory < 1:
            raise InvalidInput(f"memory is a number of bytes and must be at least 1, not {memory}.")
        self.subject, self.memory = subject, int(memory)
        self.left = _dataset(inputs)
        self.right = None if other is None or other is inputs else _dataset(other)
        self.plan = plan_of(subject)
        shapes = {_output_shape(subject, block) for data in (self.left, self.right) if data is not None for block in data.blocks}
        if len(shapes) > 1:
            raise OutOfScope(f"a kernel between outputs compares the same ones of all examples; here their shapes are {' and '.join(map(str, sorted(shapes)))}")
        self.output_shape = shapes.pop()
        self.outputs = math.prod(self.output_shape)
        self.separable = _separable(subject, self.plan, self.left, self.outputs)
        if self.plan.slow:
            logger.info("the tangent kernel of %s takes these parameters one example at a time: %s", subject.name, ", ".join(self.plan.slow))

    @property
    def fallback(self) -> tuple[str, ...]:
        """The parameters whose derivatives are not read off a layer, but taken one example at a time."""
        return self.plan.slow

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, M, C, C)."""
        return len(self.left), len(self.right or self.left), self.outputs, self.outputs

    def work(self, *, trace: bool = False, whole: bool = True) -> Work:
        """What `full` (or `trace`) takes, before anything is computed; with `whole` False what `tiles` takes.  Raises: NotEnoughMemory where no block of examples fits."""
        n, m, _, _ = self.shape
        entries = self._entries(trace)
        result = n * m * (1 if trace else self.outputs**2) * self._itemsize if whole else 0
        side = self._side(entries, self.memory - result, trace, result)
        if self.right is None:
            pairs, examples = n * (n + min(self._step(trace), n)) / 2, sum(n - a for a in range(0, n, side))
        else:
            pairs, examples = float(n * m), n + m * math.ceil(n / side)
        return Work(flops(entries, self.outputs, pairs, trace=trace), examples, result + self._peak(entries, side, trace), result, side)

    def full(self) -> Float[Tensor, "N M C C"]:
        """The kernel.   Shapes: (N, M, C, C), in the subject's dtype and on its device.   Cost: `work()`; about C gradients, and N M C^2 P multiplications at most, half for one set.

        Raises: NotEnoughMemory, with the bytes it would take; `tiles` never holds it whole.
        """
        return self._assembled(trace=False)

    def trace(self) -> Float[Tensor, "N M"]:
        """The sum over outputs, sum_a Theta_{ia,ja}; divided by C it is what `infinite_width` predicts.   Shapes: (N, M).   Cost: about C gradients, and N M C P multiplications at most."""
        return self._assembled(trace=True)

    def tiles(self, *, trace: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
        """The kernel by tiles: rows, columns and entries (n, m, C, C), or (n, m) of the trace; of one set with itself those on and above the diagonal alone."""
        return self._tiles(self._entries(trace), self.work(trace=trace, whole=False).side, trace)

    def __call__(self, v: Float[Tensor, "M ..."]) -> Float[Tensor, "N ..."]:
        """The product J (J'^T v), at the cost of a gradient and of a Jacobian product, two to three gradients in all.   Shapes: v (M, *output) or (M, C) -> (N, *output) or (N, C)."""
        n, m, outputs, _ = self.shape
        if tuple(v.shape) not in {(m, outputs), (m, *self.output_shape)}:
            raise InvalidInput(f"A vector of shape ({m}, {outputs}) was expected, one number an output of an example, not {tuple(v.shape)}.")
        pulled = torch.zeros(self.subject.dimension, dtype=v.dtype, device=self.subject.device)
        start = 0
        for block in (self.right or self.left).blocks:
            part = v[start : start + len(block)].reshape(len(block), *self.output_shape)
            pulled += ParameterJacobian(self.subject, block.inputs).transpose(part)
            start += len(block)
        pushed = torch.cat([ParameterJacobian(self.subject, block.inputs)(pulled) for block in self.left.blocks])
        return pushed.to(v.dtype).reshape(n, *v.shape[1:])

    def _assembled(self, *, trace: bool) -> Tensor:
        n, m, _, _ = self.shape
        work = self.work(trace=trace)
        out = torch.empty((n, m) if trace else self.shape, dtype=self.subject.dtype, device=self.subject.device)
        for rows, columns, tile in self._tiles(self._entries(trace), work.side, trace):
            out[rows, columns] = tile
            if self.right is None and rows != columns:
                out[columns, rows] = tile.movedim(0, 1) if trace else tile.permute(1, 0, 3, 2)
        return out

    def _tiles(self, entries: tuple[Entry, ...], side: int, trace: bool) -> Iterator[tuple[slice, slice, Tensor]]:
        n, m, _, _ = self.shape
        with measuring(self.subject):
            for a in range(0, n, side):
                here, rows = self._rows(entries, self.left, a, side), slice(a, min(a + side, n))
                if self.right is None:
                    yield rows, rows, self._tile(here, here, trace, symmetric=True)
                for b in range(0 if self.right is not None else a + side, m, side):
                    there = self._rows(entries, self.right or self.left, b, side)
                    yield rows, slice(b, min(b + side, m)), self._tile(here, there, trace, symmetric=False)
                    del there

    def _rows(self, entries: tuple[Entry, ...], data: Dataset, start: int, side: int) -> dict[str, Rows]:
        """The compact Jacobians of some examples."""
        part, done = data.select(torch.arange(start, min(start + side, len(data)))), 0
        like = self.subject.state[self.subject.trainable[0]]
        space = {entry.name: like.new_empty(len(part), self.outputs, entry.size if entry.form == "columns" else 0) for entry in entries}
        found: dict[str, list[Rows]] = {entry.name: [] for entry in entries if entry.form != "columns"}
        for block in part.chunks(self._chunk(entries, side)):
            into = {key: whole[done : done + len(block)] for key, whole in space.items()}
            for key, rows in _differentiated(self.subject, self.plan, entries, self.subject.to_device(block.inputs), into).items():
                found[key].append(rows)
            done += len(block)
        return {key: joined(found.pop(key)) if key in found else Rows("columns", whole) for key, whole in space.items()}

    def _tile(self, here: dict[str, Rows], there: dict[str, Rows], trace: bool, *, symmetric: bool) -> Tensor:
        """Shapes: (n, m, C, C), or (n, m)."""
        n, m = (len(next(iter(side.values()))) for side in (here, there))
        outputs, step = self.outputs, self._step(trace)
        total = torch.zeros((n, m) if trace else (n, outputs, m, outputs), dtype=self._accumulator, device=self.subject.device)
        for i in range(0, n, step):
            start, rows = (i if symmetric else 0), slice(i, i + step)
            target = torch.zeros((len(total[rows]), m - start) if trace else (len(total[rows]), outputs, m - start, outputs), dtype=total.dtype, device=total.device)
            for key, mine in here.items():
                (add_trace if trace else add_kernel)(target, mine[rows], there[key][start:])
            if trace:
                total[rows, start:] = target
            else:
                total[rows, :, start:] = target
        flat = total.view(n * (1 if trace else outputs), -1)
        if symmetric:  # made above the diagonal; a block on it is symmetric up to rounding
            flat.copy_(flat.triu() + flat.triu(1).T)
        if not bool(torch.isfinite(flat.diagonal() if symmetric else flat).all()):
            raise InvalidInput("The tangent kernel is not finite: the derivative of an output overflows. Look at the scale of inputs and weights, or take float64.")
        return (total if trace else total.permute(0, 2, 1, 3)).to(self.subject.dtype)

    def _step(self, trace: bool) -> int:
        """Examples whose rows of a tile are made at a time."""
        return max(ROWS // (1 if trace else self.outputs), 1)

    @property
    def _itemsize(self) -> int:
        return torch.empty(0, dtype=self.subject.dtype).element_size()

    @property
    def _accumulator(self) -> torch.dtype:
        return torch.float64 if self.subject.device.type != "mps" else self.subject.dtype

    def _entries(self, trace: bool) -> tuple[Entry, ...]:
        return entries_of(self.subject, self.plan, self.separable, self.outputs, max(self.shape[:2]), trace=trace)

    def _of_one(self, entries: tuple[Entry, ...]) -> tuple[int, int]:
        """Bytes of an example's compact Jacobian, and of what is needed beside while it is made."""
        held = sum(entry.held(self.outputs) for entry in entries) * self._itemsize
        passing = sum(entry.sizes[0] * (entry.sizes[1] + 2 * self.outputs * entry.sizes[2]) for entry in entries if entry.shared) * self._itemsize
        return held, int(passing + graph_bytes(self.subject) * 2)

    def _chunk(self, entries: tuple[Entry, ...], side: int) -> int:
        """Examples differentiated at a time: as many as fit into an eighth of the memory."""
        held, passing = self._of_one(entries)
        return int(max(min(self.memory // (8 * (held + passing)), self.subject.chunk, side), 1))

    def _peak(self, entries: tuple[Entry, ...], side: int, trace: bool) -> int:
        """Bytes for tiles of so many examples a side."""
        held, passing = self._of_one(entries)
        n = max(self.shape[:2])
        blocks = 1 if side >= n and self.right is None else 2
        width = min(side, n) * (1 if trace else self.outputs)
        temporary = 3 * 8 * width**2 + 8 * ROWS * width
        largest = max(entry.held(self.outputs) for entry in entries) * self._itemsize
        return int(min(side, n) * (blocks * held + largest) + self._chunk(entries, side) * (held + passing) + temporary)

    def _side(self, entries: tuple[Entry, ...], memory: int, trace: bool, result: int) -> int:
        """The most examples a side that fit into what the result leaves of the memory."""
        most = side = max(self.shape[:2])
        while side > 1 and self._peak(entries, side, trace) > memory:
            side = math.ceil(side / 2) if side == most else side - max(side // 8, 1)
        if self._peak(entries, side, trace) > memory:
            need = result + self._peak(entries, 1, trace)
            raise NotEnoughMemory(
                f"The tangent kernel between {self.shape[0]:,} and {self.shape[1]:,} examples of {self.outputs:,} outputs takes at least {need:,} bytes, {result:,} of them for the result; "
                f"memory is {self.memory:,}. Give `memory` at least that, take `trace`, or take `tiles`, which never holds the whole."
            )
        return side


def _differentiated(subject: Subject, plan: Plan, entries: tuple[Entry, ...], inputs: Tree, into: dict[str, Tensor]) -> dict[str, Rows]:
    """The rows of all parameters on a chunk, one pull an output: columns are written into `into`, other forms returned."""
    output, pull = pulling(subject, plan, inputs)
    shapes = {parameter.name: parameter.shape for parameter in plan.direct}
    kept: dict[str, list[Feature]] = {entry.name: [] for entry in entries if entry.form != "columns"}
    outputs = output[0].numel()
    for c in range(outputs):
        direction = torch.zeros_like(output, memory_format=torch.contiguous_format)  # a new one each: the last layer's gradient is this very tensor
        direction.view(len(output), -1)[:, c] = 1
        for key, feature in pull(direction, c < outputs - 1).items():
            if key in kept:
                kept[key].append(feature)
            else:
                into[key][:, c] = columns_of(feature, shapes.get(key))
    return {entry.name: rows_of(entry, kept[entry.name], shapes[entry.name]) for entry in entries if entry.name in kept}


def _separable(subject: Subject, plan: Plan, data: Dataset, outputs: int) -> frozenset[str]:
    """The weights whose gradients at all positions are one vector an output, element by element times the same numbers: tried on a few outputs of two examples."""
    if outputs == 1 or not any(parameter.outer and parameter.outer[0] > 1 for parameter in plan.direct):
        return frozenset()
    with measuring(subject):
        output, pull = pulling(subject, dataclasses.replace(plan, slow=()), subject.to_device(next(data.chunks(2)).inputs))
        tried = [pull(chance.normal(*output.shape, rng=chance.generator(c, "separable"), like=output), c + 1 < TRIED) for c in range(TRIED)]
    found = set()
    for parameter in plan.direct:
        parts = [features[parameter.name] for features in tried]
        outers = [part for part in parts if isinstance(part, Outer) and part.left.is_floating_point()]
        if outers and parameter.outer and parameter.outer[0] > 1 and separate(torch.stack([outer.left.mT for outer in outers], 1)) is not None:
            found.add(parameter.name)
    return frozenset(found)


def _dataset(inputs: Tree | Dataset) -> Dataset:
    if isinstance(inputs, Dataset):
        return inputs
    if not leaves(inputs) or length(inputs) < 1:
        raise InvalidInput("A kernel is taken between at least one example and another; the inputs hold none.")
    n = length(inputs)
    for leaf in leaves(inputs):
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            bad = (~torch.isfinite(leaf)).flatten(1).any(1) if leaf.ndim > 1 else ~torch.isfinite(leaf)
            raise InvalidInput(f"The inputs hold numbers that are not finite, first in example {int(bad.nonzero()[0])} (counted from 0).")
    return Dataset((Block(inputs, torch.zeros(n)),), n)


def _output_shape(subject: Subject, block: Block) -> tuple[int, ...]:
    one = next(Dataset((block,), len(block)).chunks(1))
    with measuring(subject), torch.no_grad():
        try:
            output = subject(subject.state, subject.to_device(one.inputs))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            shapes = [tuple(leaf.shape) for leaf in leaves(block.inputs)]
            raise InvalidInput(f"The network does not take inputs of shape {shapes}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}") from error
    return tuple(output.shape[1:])
