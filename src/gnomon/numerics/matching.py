"""Two networks brought into one order of units: by their weights, or by what their units put out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.subject import State, Subject, state_of, unwrap
from gnomon.core.weights import strip_prefix
from gnomon.numerics.activations import layer_activations
from gnomon.numerics.symmetry import Place, Symmetry, permuted, read_symmetry, reordered

By = Literal["weights", "activations"]


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """A network in the order of another: its `state`, the permutations that were applied (one a group of `symmetry`), and how many sweeps they took.

    Shapes: `permutations` (size,) each: unit i of the new order was unit p[i].   `agreement`: <w_1, w_2> / (|w_1| |w_2|) over the permuted weights, after matching.
    """

    state: dict[str, Tensor]
    permutations: tuple[Tensor, ...]
    symmetry: Symmetry
    sweeps: int
    agreement: float


def match_units(subject: Subject, other: Any, *, rng: Generator, by: str = "weights", sweeps: int = 100, examples: int = 512) -> Matching:
    """Another network of the same architecture with its units in the order that fits the subject's best.

    weights: max over P of <w_1, P w_2>, by coordinate descent: one group of units at a time is a linear assignment problem, the others held.  The first sweep follows
    the data and counts only weights whose other side is in order already; later ones go in random order until nothing changes.
    activations: max over P of sum over examples and positions of <z_1, P z_2>, a linear assignment problem for each group by itself; units that no layer puts out (the inner
    layers of an LSTM) are then matched by their weights.

    `other` is a state dict, a module or a Subject.  The result is the same function as `other`; batch normalisation's statistics are permuted with their units.
    Error: exact up to rounding for each assignment; the descent ends in a local maximum.   Cost: sweeps x groups assignments of size^3; for activations, two forward passes of `examples`.
    Raises: InvalidInput for networks of different shapes (each difference named), OutOfScope as `read_symmetry`.
    Source: Ainsworth et al. 2022, section 3 and algorithm 1.
    """
    if by not in get_args(By):
        raise unknown("way of matching", by, get_args(By))
    if min(sweeps, examples) < 1:
        raise InvalidInput(f"sweeps and examples must be at least 1, not {sweeps} and {examples}.")
    given = other.state if isinstance(other, Subject) else state_of(unwrap(other)) if isinstance(other, nn.Module) else _named(subject, other)
    if differences := differing(subject.state, given):
        more = f"; and {len(differences) - 6} more" if len(differences) > 6 else ""
        raise InvalidInput(f"The two networks are not of one shape, so their units cannot be matched: {'; '.join(differences[:6])}{more}.")
    second, symmetry = subject.at(given).state, read_symmetry(subject)
    if by == "weights":
        orders, made = _by_weights(symmetry, subject.state, second, rng, sweeps)
    else:
        orders, made = _by_activations(symmetry, subject, second, examples), 1
    state = permuted(symmetry, second, orders)
    return Matching(state, tuple(orders), symmetry, made, _agreement(symmetry, subject.state, state))


def _named(subject: Subject, given: State) -> State:
    """A state dict by the subject's names: wrappers' prefixes dropped, tied parameters once."""
    module = subject.module
    tied = {*module.state_dict(), *(name for name, _ in module.named_parameters(remove_duplicate=False))} - subject.state.keys()
    return {key: value for name, value in given.items() if (key := strip_prefix(name)) not in tied}


def differing(first: State, second: State) -> list[str]:
    """Where two states differ in names or shapes, in words; buffers that count batches aside."""
    words = []
    for key, value in first.items():
        if key not in second:
            words.append(f"{key!r} is missing in the second")
        elif value.shape != second[key].shape:
            words.append(f"{key!r} is {tuple(value.shape)} in the first, {tuple(second[key].shape)} in the second")
    return words + [f"{key!r} is missing in the first" for key in second if key not in first]


def assign(similarity: Float[Tensor, "n n"], blocks: int = 1) -> Tensor:
    """The permutation p with the largest sum of similarity[i, p[i]], blocks of neighbours kept together.

    Within blocks: for every pair of blocks the best assignment of their units, then the best assignment of blocks by those values, which is the optimum.
    Shapes: (n, n) -> (n,).   Cost: n^3 / blocks operations beside those of the blocks.   Source: Kuhn 1955, through scipy.
    """
    scores = similarity.double().cpu().numpy()
    if blocks == 1:
        return torch.from_numpy(linear_sum_assignment(scores, maximize=True)[1]).long()
    each = len(scores) // blocks
    values, inner = np.empty((blocks, blocks)), np.empty((blocks, blocks, each), dtype=np.int64)
    for i in range(blocks):
        for j in range(blocks):
            part = scores[i * each : (i + 1) * each, j * each : (j + 1) * each]
            rows, columns = linear_sum_assignment(part, maximize=True)
            values[i, j], inner[i, j] = part[rows, columns].sum(), columns
    order = linear_sum_assignment(values, maximize=True)[1]
    return torch.from_numpy(np.concatenate([order[i] * each + inner[i, order[i]] for i in range(blocks)])).long()


def _rows(value: Tensor, place: Place, size: int) -> Tensor:
    """A tensor with the units along one place first, the rest flat.  Shapes: (size, rest)."""
    return value.unflatten(place.dimension, (place.outer, size, place.inner)).movedim(place.dimension + 1, 0).reshape(size, -1)


def _similarity(symmetry: Symmetry, index: int, first: State, second: State, orders: Sequence[Tensor], settled: set[int] | None) -> Tensor | None:
    """The inner products of units' weights with the other groups in their order; only places whose other sides are settled, where that is asked for."""
    group, total = symmetry.groups[index], None
    for place in group.places:
        if place.key in symmetry.buffers:
            continue
        value, usable = second[place.key], True
        for number, other in enumerate(symmetry.groups):
            for side in other.places:
                if side.key == place.key and side != place:
                    usable = usable and (settled is None or number in settled)
                    value = reordered(value, side, orders[number])
        if usable:
            part = _rows(first[place.key], place, group.size).double() @ _rows(value, place, group.size).double().T
            total = part if total is None else total + part
    return total


def _by_weights(symmetry: Symmetry, first: State, second: State, rng: Generator, sweeps: int) -> tuple[list[Tensor], int]:
    orders = [torch.arange(group.size) for group in symmetry.groups]
    settled: set[int] = set()
    for index, group in enumerate(symmetry.groups):
        similarity = _similarity(symmetry, index, first, second, orders, settled)
        if similarity is not None:
            orders[index] = assign(similarity, group.blocks)
        settled.add(index)
    for sweep in range(1, sweeps + 1):
        changed = False
        for index in chance.permutation(len(orders), rng=chance.child(rng, "sweep", sweep)).tolist():
            similarity = _similarity(symmetry, index, first, second, orders, None)
            assert similarity is not None
            order = assign(similarity, symmetry.groups[index].blocks)
            if not torch.equal(order, orders[index]) and _rises(symmetry, index, order, first, second, orders):
                orders[index], changed = order, True
        if not changed:
            return orders, sweep
    return orders, sweeps


def _rises(symmetry: Symmetry, index: int, order: Tensor, first: State, second: State, orders: Sequence[Tensor]) -> bool:
    """Whether the weights agree better with another order of one group; a weight that has the group on both sides (recurrence, residual sums) makes this no matter of course."""
    keys = {place.key for place in symmetry.groups[index].places} - symmetry.buffers
    tried = [order if i == index else other for i, other in enumerate(orders)]
    before, after = (
        sum(float((first[key].double() * state[key].double()).sum()) for key in keys) for state in (permuted(symmetry, second, orders), permuted(symmetry, second, tried))
    )
    return after > before + 1e-12 * abs(before)


def _by_activations(symmetry: Symmetry, subject: Subject, second: State, examples: int) -> list[Tensor]:
    names = sorted({name for group in symmetry.groups for name, _ in group.carriers})
    totals: list[Tensor | None] = [None] * len(symmetry.groups)
    chosen = subject.train.select(torch.linspace(0, len(subject.train) - 1, min(examples, len(subject.train))).round().long())
    for block in chosen.chunks(subject.chunk):
        seen = [layer_activations(subject, state, block.inputs, names) for state in (subject.state, second)]
        for index, group in enumerate(symmetry.groups):
            for name, dimension in group.carriers:
                one, two = (found[name].movedim(dimension, 0).reshape(group.size, -1).double() for found in seen)
                part = one @ two.T
                known = totals[index]
                totals[index] = part if known is None else known + part
    orders = [torch.arange(group.size) if total is None else assign(total, group.blocks) for group, total in zip(symmetry.groups, totals, strict=True)]
    for index, total in enumerate(totals):
        if total is None:
            similarity = _similarity(symmetry, index, subject.state, second, orders, set(range(len(orders))) - {index})
            orders[index] = orders[index] if similarity is None else assign(similarity, symmetry.groups[index].blocks)
    return orders


def _agreement(symmetry: Symmetry, first: State, second: State) -> float:
    keys = {place.key for group in symmetry.groups for place in group.places} - symmetry.buffers
    one, two = (torch.cat([state[key].double().reshape(-1) for key in sorted(keys)]) for state in (first, second))
    return float(one @ two / (one.norm() * two.norm()).clamp_min(1e-300))
