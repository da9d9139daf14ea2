"""Inner products of per-example gradients, without the N x P matrix of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from gnomon.core.dataset import Block, Dataset
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.layers import Outer
from gnomon.numerics.measuring import measuring
from gnomon.numerics.per_example import Feature, NotFinite, Parameter, Plan, features, plan_of

MEMORY = 1 << 30
"""Bytes that the compact gradients of the examples in work may take."""
COLUMNS = 1 << 13
"""Columns multiplied at once: sums of more are carried in float64."""


def gradient_gram(subject: Subject, *, split: str = "train", memory: int = MEMORY) -> Float64[Tensor, "N N"]:
    """The Gram matrix of per-example gradients, G_ij = g_i . g_j.

    g_i = N (w_i / W) grad loss_i for a mean with weights w_i of sum W, g_i = N grad loss_i for a sum: the mean of the g_i is the gradient of the loss.
    A weight's gradient in one example is sum_t g_t x_t^T over positions t, from the layer's inputs x and the gradients g of its outputs; inner products
    come from those, or from the gradients of one layer at a time, whichever is less work.  Other parameters (LSTM, attention, raw ones) are
    differentiated one example at a time.

    Shapes: (N, N), float64 on the CPU.   Units: loss^2 / parameter^2.   Error: rounding.
    Assumes: examples do not act on each other (eval mode).
    Cost: one gradient where all fits into `memory` bytes, else it is recomputed for pairs of blocks of examples; N^2 (parameters or layer widths).
    Raises: OutOfScope where there are no test data.
    Source: Goodfellow 2015 (norms from layer inputs and output gradients).
    """
    data, plan = _data(subject, split), plan_of(subject)
    total = _total(subject, split)
    as_columns = _choose(plan, len(data), memory // _bytes(subject))
    size = _size(plan, as_columns, subject) * _bytes(subject)
    rows = len(data) if len(data) * size <= memory else max(memory // (2 * size), 1)
    gram = torch.zeros(len(data), len(data), dtype=torch.float64)
    starts = range(0, len(data), rows)
    with measuring(subject):
        for a in starts:
            here = _gather(subject, plan, data, slice(a, a + rows), total, as_columns)
            gram[a : a + rows, a : a + rows] = _inner(here, here)
            for b in starts[a // rows + 1 :]:
                there = _gather(subject, plan, data, slice(b, b + rows), total, as_columns)
                gram[a : a + rows, b : b + rows] = _inner(here, there)
                gram[b : b + rows, a : a + rows] = gram[a : a + rows, b : b + rows].T
                del there
    return (gram + gram.T) / 2


def gradient_norms(subject: Subject, *, split: str = "train") -> Float64[Tensor, "N"]:
    """The norms |g_i| of the per-example gradients of `gradient_gram`.

    Shapes: (N,), float64 on the CPU.   Units: loss / parameter.   Cost: one gradient.   Raises: OutOfScope where there are no test data.
    Source: Goodfellow 2015.
    """
    data, plan = _data(subject, split), plan_of(subject)
    total, as_columns, squares = _total(subject, split), _choose(plan, 1, MEMORY), []
    with measuring(subject):
        for found in _chunks(subject, plan, data, total, as_columns):
            parts = [squares_of(feature) for feature in found.values()]
            squares.append(torch.stack(parts).sum(0))
    return torch.cat(squares).sqrt()


def squares_of(feature: Feature) -> Float64[Tensor, "n"]:
    """The squared norms of compact gradients.  Shapes: (n,) float64 on the CPU."""
    return feature.squares() if isinstance(feature, Outer) else torch.linalg.vector_norm(feature, dim=1).cpu().double().square()


def per_example_losses(subject: Subject, *, split: str = "train") -> Float64[Tensor, "N"]:
    """Each example's part of the loss, N (w_i / W) loss_i for a mean and N loss_i for a sum, so that their mean is the loss; 0 where all its targets are ignored.

    Where examples weigh the same in a mean, these are the examples' own losses.
    Shapes: (N,), float64 on the CPU.   Units: loss.   Cost: a third of a gradient.   Raises: OutOfScope where there are no test data.
    """
    data, losses = _data(subject, split), []
    total = _total(subject, split)
    with measuring(subject), torch.no_grad():
        for block in _blocks(subject, data):
            output = subject(subject.state, block.inputs)
            for i in range(len(block)):
                one = next(Dataset((block,), len(block)).select(torch.tensor([i])).chunks(1))
                scale = _scale(subject, one, total, len(data))
                losses.append(scale * float(subject.loss(output[i : i + 1], one.targets)) if scale else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


def _data(subject: Subject, split: str) -> Dataset:
    data = subject.train if split == "train" else subject.test
    if data is None:
        raise OutOfScope("There are no test data; give `test` to Subject.freeze.")
    return data


def _total(subject: Subject, split: str) -> float:
    return subject.once(f"numerics.total.{split}", lambda: subject.total_weight(split))


def _bytes(subject: Subject) -> int:
    return torch.empty(0, dtype=subject.dtype).element_size()


def _scale(subject: Subject, block: Block, total: float, n: int) -> float:
    """What a chunk's loss is multiplied by: N times its share of the whole."""
    return n * (subject.loss.count(block.targets) / total if subject.loss.reduction == "mean" else 1.0)


def _blocks(subject: Subject, data: Dataset) -> Iterator[Block]:
    for block in data.chunks(subject.chunk):
        yield Block(subject.to_device(block.inputs), subject.to_device(block.targets))


def _choose(plan: Plan, n: int, numbers: int) -> frozenset[str]:
    """The parameters whose gradients are formed, a layer at a time, for n examples: where that takes less work than inner products over positions.

    Work for each pair of examples: P, or T^2 (l + r) multiplications; for each example T P to form them.  A number stored costs too: what does not fit is
    computed again for each pair of blocks.
    """
    work = sum(p.size * (p.outer[0] if p.outer else 1) for p in plan.direct)
    again = 12 * work / max(numbers, 1)
    formed = set()
    for p in plan.direct:
        if p.outer is None or p.size * (1 + p.outer[0] / n + again) <= _outer_work(p, again):
            formed.add(p.name)
    return frozenset(formed)


def _outer_work(parameter: Parameter, again: float) -> float:
    assert parameter.outer is not None
    positions, left, right = parameter.outer
    return (left + right + 1) * positions * (positions + again)


def _size(plan: Plan, as_columns: frozenset[str], subject: Subject) -> int:
    """Numbers kept for one example."""
    direct = sum(p.size if p.name in as_columns or p.outer is None else p.outer[0] * (p.outer[1] + p.outer[2]) for p in plan.direct)
    return direct + sum(subject.state[key].numel() for key in plan.slow)


def _chunks(subject: Subject, plan: Plan, data: Dataset, total: float, as_columns: frozenset[str], n: int | None = None, offset: int = 0) -> Iterator[dict[str, Feature]]:
    shapes = {p.name: p.shape for p in plan.direct}
    start = 0
    for block in _blocks(subject, data):
        try:
            found = features(subject, plan, block, _scale(subject, block, total, n or len(data)))
        except NotFinite as error:
            raise InvalidInput(
                f"The gradient of the loss of example {offset + start + error.index} (counted from 0) is not finite. Look at its inputs and target, or examine the network in float64."
            ) from None
        start += len(block)
        yield {key: feature.columns(shapes[key]) if isinstance(feature, Outer) and key in as_columns else feature for key, feature in found.items()}


def _gather(subject: Subject, plan: Plan, data: Dataset, rows: slice, total: float, as_columns: frozenset[str]) -> dict[str, Feature]:
    """The compact gradients of some of the examples."""
    part = data.select(torch.arange(len(data))[rows])
    chunks = list(_chunks(subject, plan, part, total, as_columns, len(data), rows.start))
    return {key: _joined([found.pop(key) for found in chunks]) for key in list(chunks[0])}


def _joined(parts: list[Feature]) -> Feature:
    """Chunks one below the other; fewer positions are filled up with zeros."""
    columns = [part for part in parts if isinstance(part, Tensor)]
    if columns:
        return torch.cat(columns)
    outers = [part for part in parts if isinstance(part, Outer)]
    most = max(part.right.shape[1] for part in outers)
    return Outer(torch.cat([_filled(part.left, most) for part in outers]), torch.cat([_filled(part.right, most) for part in outers]))


def _filled(x: Shaped[Tensor, "n T *size"], positions: int) -> Shaped[Tensor, "n {positions} *size"]:
    missing = positions - x.shape[1]
    return x if not missing else pad(x, (0, missing) if x.ndim == 2 else (0, 0, 0, missing))


def _inner(here: dict[str, Feature], there: dict[str, Feature]) -> Float64[Tensor, "n m"]:
    n, m = (len(next(iter(side.values()))) for side in (here, there))
    total = torch.zeros(n, m, dtype=torch.float64)
    for key, feature in here.items():
        other = there[key]
        if isinstance(feature, Outer):
            assert isinstance(other, Outer)
            total += feature.inner(other)
        else:
            assert isinstance(other, Tensor)
            for at in range(0, feature.shape[1], COLUMNS):
                total += (feature[:, at : at + COLUMNS] @ other[:, at : at + COLUMNS].T).cpu()
    return total
