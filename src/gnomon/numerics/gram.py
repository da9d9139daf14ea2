"""Inner products of per-example gradients, without the N x P matrix of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from torch.nn.functional import pad

from gnomon.core.dataset import Block, Dataset
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject
from gnomon.numerics.layers import Outer
from gnomon.numerics.measuring import measuring
from gnomon.numerics.per_example import Feature, NotFinite, Parameter, Plan, features, plan_of

MEMORY = 1 << 30
"""Bytes that the compact gradients of the examples in work may take."""
ROUNDING = 8
"""Rounding of inner products of gradients, in units of eps |g_i| |g_j|."""
ROWS = 1 << 9
"""Rows of a Gram matrix made at a time."""
COLUMNS = 1 << 13
"""Columns multiplied at once: sums of more are carried in float64."""


def gradient_gram(subject: Subject, *, split: str = "train", memory: int = MEMORY) -> Float64[Tensor, "N N"]:
    """The Gram matrix of per-example gradients, G_ij = g_i . g_j.

    g_i = N (w_i / W) grad loss_i for a mean with weights w_i of sum W, g_i = N grad loss_i for a sum: the mean of the g_i is the gradient of the loss.
    A weight's gradient in one example is sum_t g_t x_t^T over positions t, from the layer's inputs x and the gradients g of its outputs; inner products
    come from those, or from the gradients of one layer at a time, whichever is less work.  Other parameters (LSTM, raw ones) are
    differentiated one example at a time.

    Shapes: (N, N), float64 on the CPU.   Units: loss^2 / parameter^2.   Error: rounding.
    Assumes: examples do not act on each other (eval mode).
    Cost: one gradient where all fits into `memory` bytes, else it is recomputed for pairs of blocks of examples; N^2 (parameters or layer widths).
    Raises: OutOfScope where there are no test data.
    Source: Goodfellow 2015 (norms from layer inputs and output gradients).
    """
    data, plan = subject.examples(split), plan_of(subject)
    total = _total(subject, split)
    as_columns = _choose(plan, len(data), memory // _bytes(subject))
    size = _size(plan, as_columns, subject) * _bytes(subject)
    rows = len(data) if len(data) * size <= memory else max(memory // (2 * size), 1)
    gram = torch.zeros(len(data), len(data), dtype=torch.float64)
    starts = range(0, len(data), rows)
    with measuring(subject):
        for a in starts:
            here = _gather(subject, plan, data, slice(a, a + rows), total, as_columns)
            gram[a : a + rows, a : a + rows] = _inner(here, here, symmetric=True)
            for b in starts[a // rows + 1 :]:
                there = _gather(subject, plan, data, slice(b, b + rows), total, as_columns)
                gram[a : a + rows, b : b + rows] = _inner(here, there)
                gram[b : b + rows, a : a + rows] = gram[a : a + rows, b : b + rows].T
                del there
    if not bool(torch.isfinite(gram.diagonal()).all()):
        raise _not_finite(int((~torch.isfinite(gram.diagonal())).nonzero()[0]))
    return gram


def gradient_cross_gram(left: Subject, right: Subject, *, split: str = "train", other: str = "test", memory: int = MEMORY) -> Float64[Tensor, "N M"]:
    """Inner products g_i . h_j between the per-example gradients of two sets of examples, or of one network in two states.

    g_i is the i-th gradient of `split` of `left`, h_j the j-th of `other` of `right`, both as in `gradient_gram`.  Give the same subject twice for its train and test data.

    Shapes: (N, M), float64 on the CPU.   Units: loss^2 / parameter^2.   Error: rounding.   Cost: as `gradient_gram`.
    Raises: InvalidInput where the two do not have the same trainable parameters; OutOfScope where there are no test data.
    """
    sizes = [{key: tuple(value.shape) for key, value in subject.parameters.items()} for subject in (left, right)]
    if sizes[0] != sizes[1]:
        differ = sorted(key for key in sizes[0].keys() | sizes[1].keys() if sizes[0].get(key) != sizes[1].get(key))
        raise InvalidInput(
            f"Gradients of two networks are compared parameter by parameter, but {differ[0]!r} has shape {sizes[0].get(differ[0])} in one and {sizes[1].get(differ[0])} in the other."
        )
    sides = [(left, left.examples(split), split, plan_of(left)), (right, right.examples(other), other, plan_of(right))]
    apart = {p.name for p in sides[0][3].direct if p.outer} & {p.name for p in sides[1][3].direct if p.outer}
    chosen = [_choose(plan, len(data), memory // (2 * _bytes(left))) for _, data, _, plan in sides]
    as_columns = frozenset(key for key in left.trainable if key not in apart or key in chosen[0] | chosen[1])
    size = max(_size(plan, as_columns, subject) for subject, _, _, plan in sides) * _bytes(left)
    rows = max(memory // (2 * size), 1)
    out = torch.zeros(len(sides[0][1]), len(sides[1][1]), dtype=torch.float64)
    with measuring(left):
        for a in range(0, out.shape[0], rows):
            here = _gather(left, sides[0][3], sides[0][1], slice(a, a + rows), _total(left, split), as_columns)
            for b in range(0, out.shape[1], rows):
                there = _gather(right, sides[1][3], sides[1][1], slice(b, b + rows), _total(right, other), as_columns)
                out[a : a + rows, b : b + rows] = _inner(here, there)
    return out


def gradient_covariance_eigenvalues(subject: Subject, *, split: str = "train") -> tuple[Float64[Tensor, "N"], float]:
    """All eigenvalues of the covariance of per-example gradients that can differ from 0, and a bound on their rounding.

    C = (1/N) sum_i (g_i - g) (g_i - g)^T has the non-zero eigenvalues of the centred Gram matrix (1/N) (1 - 11^T/N) G G^T (1 - 11^T/N).

    Shapes: (N,) descending, float64 on the CPU, and a number.   Units: loss^2 / parameter^2.
    Error: the inner products are rounded in the subject's dtype: |dK|_2 <= c eps tr K; the centring and the eigenvalues are taken in float64.
    Cost: that of `gradient_gram`, and N^3; 8 N^2 bytes twice.   Raises: OutOfScope where there are no test data.
    """
    gram = gradient_gram(subject, split=split)
    n = len(gram)
    trace = float(gram.diagonal().sum()) / n
    mean = gram.mean(1)
    gram -= mean
    gram -= (mean - mean.mean())[:, None]
    gram /= n
    values = torch.linalg.eigvalsh(gram).flip(0)
    return values, ROUNDING * torch.finfo(subject.dtype).eps * trace


def gradient_norms(subject: Subject, *, split: str = "train") -> Float64[Tensor, "N"]:
    """The norms |g_i| of the per-example gradients of `gradient_gram`.

    Shapes: (N,), float64 on the CPU.   Units: loss / parameter.   Cost: one gradient.   Raises: OutOfScope where there are no test data.
    Source: Goodfellow 2015.
    """
    data, plan = subject.examples(split), plan_of(subject)
    total, as_columns, squares = _total(subject, split), _choose(plan, 1, MEMORY), []
    with measuring(subject):
        for found in _chunks(subject, plan, data, total, as_columns):
            parts = [squares_of(feature) for feature in found.values()]
            squares.append(torch.stack(parts).sum(0))
    norms = torch.cat(squares).sqrt()
    if not bool(torch.isfinite(norms).all()):
        raise _not_finite(int((~torch.isfinite(norms)).nonzero()[0]))
    return norms


def _not_finite(example: int) -> InvalidInput:
    return InvalidInput(f"The gradient of the loss of example {example} (counted from 0) is not finite. Look at its inputs and target, or examine the network in float64.")


def squares_of(feature: Feature) -> Float64[Tensor, "n"]:
    """The squared norms of compact gradients.  Shapes: (n,) float64 on the CPU."""
    return feature.squares() if isinstance(feature, Outer) else torch.linalg.vector_norm(feature, dim=1).cpu().double().square()


def per_example_losses(subject: Subject, *, split: str = "train") -> Float64[Tensor, "N"]:
    """Each example's part of the loss, N (w_i / W) loss_i for a mean and N loss_i for a sum, so that their mean is the loss; 0 where all its targets are ignored.

    Where examples weigh the same in a mean, these are the examples' own losses.
    Shapes: (N,), float64 on the CPU.   Units: loss.   Cost: a third of a gradient.   Raises: OutOfScope where there are no test data.
    """
    data, losses = subject.examples(split), []
    total = _total(subject, split)
    with measuring(subject), torch.no_grad():
        for block in _blocks(subject, data):
            output = subject(subject.state, block.inputs)
            for i in range(len(block)):
                one = next(Dataset((block,), len(block)).select(torch.tensor([i])).chunks(1))
                scale = _scale(subject, one, total, len(data))
                losses.append(scale * float(subject.loss(output[i : i + 1], one.targets)) if scale else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


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
            raise _not_finite(offset + start + error.index) from None
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


def _inner(here: dict[str, Feature], there: dict[str, Feature], *, symmetric: bool = False) -> Float64[Tensor, "n m"]:
    """Inner products, some rows at a time; of a set with itself, those above the diagonal are copied below it."""
    n, m = (len(next(iter(side.values()))) for side in (here, there))
    total = torch.zeros(n, m, dtype=torch.float64)
    for i in range(0, n, ROWS):
        start, rows = (i if symmetric else 0), slice(i, i + ROWS)
        once: list[Tensor] = []  # what takes no sum over positions is added up as it is, then widened
        for key, feature in here.items():
            other = there[key]
            if isinstance(feature, Outer):
                assert isinstance(other, Outer)
                part, rest = Outer(feature.left[rows], feature.right[rows]), Outer(other.left[start:], other.right[start:])
                if part.right.shape[1] == rest.right.shape[1] == 1:
                    once.append(part.between(rest))
                else:
                    total[rows, start:] += part.inner(rest)
            else:
                assert isinstance(other, Tensor)
                pieces = range(0, feature.shape[1], COLUMNS)
                products = (feature[rows, at : at + COLUMNS] @ other[start:, at : at + COLUMNS].T for at in pieces)
                if len(pieces) == 1:
                    once.extend(products)
                else:
                    for product in products:
                        total[rows, start:] += product.cpu()
            if len(once) > 1:
                once = [once[0].add_(once[1])]
        if once:
            total[rows, start:] += once[0].cpu()
        if symmetric:
            # A block on the diagonal is symmetric up to rounding: its upper half is taken.
            total[rows, rows] = total[rows, rows].triu() + total[rows, rows].triu(1).T
            total[i + ROWS :, rows] = total[rows, i + ROWS :].T
    return total
