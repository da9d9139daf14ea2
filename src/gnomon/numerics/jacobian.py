"""Jacobians of all outputs in compact form, one entry a parameter, and what two of them multiply to, without the N C x P matrix.

A weight that acts as a matrix has the Jacobian sum_t own_t(c) shared_t^T: over positions t, with one side (the layer's input) the same for all outputs c.
Before a mean over positions own_t(c) = d_t u(c), element by element, and the sum over positions is the same for all outputs too: the Jacobian is diag(u(c)) sum_t d_t shared_t^T.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gnomon.core.subject import Subject
from gnomon.numerics.layers import Outer, kind_of
from gnomon.numerics.per_example import Feature, Parameter, Plan

Form = Literal["columns", "product", "sandwich", "channels"]
SMALL = 3.0
"""What a multiplication costs in products of a pair of examples' small matrices, in units of one in a product of large matrices."""
ROUNDING = 32.0
"""What a product of two factors may differ from the gradients that it stands for, in units of the dtype's epsilon and of the largest of them in the channel."""
NUMBERS = 1 << 22
"""Numbers of a block of small matrices' products."""
COLUMNS = 1 << 13
"""Columns multiplied at once: sums of more are carried in float64."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """How the Jacobian of a parameter is held: its form, its size, and where it is one of outer products, which side is shared and the sizes (T, shared, own)."""

    name: str
    form: Form
    size: int
    shared: Literal["left", "right"] | None = None
    sizes: tuple[int, int, int] = (1, 1, 1)

    def held(self, outputs: int) -> int:
        """Numbers kept for one example."""
        positions, shared, own = self.sizes
        if self.form == "channels":
            return own * (shared + outputs)
        return outputs * self.size if self.form == "columns" else positions * (shared + outputs * own)

    def work(self, outputs: int, *, trace: bool = False) -> float:
        """Multiplications for a pair of examples."""
        return _work(self.form, self.size, self.sizes, outputs, trace)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The Jacobian of one parameter on n examples.

    Shapes: columns: own (n, C, size); product: shared (n, s), own (n, C, o); sandwich: shared (n, T, s), own (n, T, o, C); channels: shared (n, o, s),
    own (n, C, o).  `shared` may be integers (n,) or (n, T), which stand for unit vectors.
    """

    form: Form
    own: Float[Tensor, "n ..."]
    shared: Float[Tensor, "n ..."] | Int[Tensor, "n T"] | None = None

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(self.form, self.own[rows], None if self.shared is None else self.shared[rows])

    def __len__(self) -> int:
        return len(self.own)

    def columns(self) -> Rows:
        """Channels written out."""
        if self.form != "channels":
            return self
        assert self.shared is not None
        return Rows("columns", (self.own[..., None] * self.shared[:, None]).flatten(2))


def entries_of(subject: Subject, plan: Plan, separable: frozenset[str], outputs: int, examples: int, *, trace: bool = False) -> tuple[Entry, ...]:
    """The form of every parameter's Jacobian that takes the least work for kernels on so many examples; `separable` ones may be held by channels."""
    modules = dict(subject.module.named_modules())
    found = []
    for parameter in plan.direct:
        side = _shared_side(parameter, modules)
        if parameter.outer is None or side is None:
            found.append(Entry(parameter.name, "columns", parameter.size))
            continue
        positions, left, right = parameter.outer
        sizes = (positions, left, right) if side == "left" else (positions, right, left)
        forms: tuple[Form, ...] = (
            ("columns", "product") if positions == 1 else ("columns", "sandwich", "channels") if parameter.name in separable and side == "right" else ("columns", "sandwich")
        )
        once = 2 * outputs * parameter.size * positions / examples  # columns are formed once, for all pairs

        def total(form: Form, sizes: tuple[int, int, int] = sizes, once: float = once, size: int = parameter.size) -> float:
            return _work(form, size, sizes, outputs, trace) + (once if form == "columns" else 0.0)

        found.append(Entry(parameter.name, min(forms, key=total), parameter.size, side, sizes))
    return (*found, *(Entry(key, "columns", subject.state[key].numel()) for key in plan.slow))


def _work(form: Form, size: int, sizes: tuple[int, int, int], outputs: int, trace: bool) -> float:
    positions, shared, own = sizes
    if form == "columns":
        return (1 if trace else outputs) * outputs * size
    if form == "channels":
        return shared * own + (outputs if trace else SMALL * outputs**2) * own
    if form == "product":
        return shared + (1 if trace else outputs) * outputs * own
    if trace:
        return SMALL * positions**2 * (shared + outputs * own)
    return positions**2 * shared + SMALL * positions * outputs * own * (positions + outputs)


def _shared_side(parameter: Parameter, modules: dict[str, torch.nn.Module]) -> Literal["left", "right"] | None:
    """Which side of the outer products is the layer's input: the right one of a matrix, the left one of a table; None where a parameter is used as both."""
    kinds = {"linear" if use.start is not None else kind_of(modules[use.layer]) for use in parameter.uses}
    if kinds <= {"linear", "convolution"}:
        return "right"
    return "left" if kinds in ({"embedding"}, {"transposed"}) else None


def columns_of(feature: Feature, shape: torch.Size | None) -> Float[Tensor, "n size"]:
    """The gradients of one output, written out.   Shapes: (n, size), size the numbers in a parameter of this shape."""
    return feature.columns(shape or ()) if isinstance(feature, Outer) else feature


def rows_of(entry: Entry, features: list[Feature], shape: torch.Size | None) -> Rows:
    """The rows of a parameter that are not held as columns, from its compact gradients, one an output.  Shapes: `features` C of n examples -> n."""
    outers = [feature for feature in features if isinstance(feature, Outer)]
    shared = outers[0].right if entry.shared == "right" else outers[0].left
    owns = [outer.left if entry.shared == "right" else outer.right for outer in outers]
    if entry.form == "product":
        return Rows("product", torch.stack([own[:, 0] for own in owns], 1), shared[:, 0])
    if entry.form == "sandwich":
        return Rows("sandwich", torch.stack(owns, -1), shared)
    apart = separate(torch.stack([own.mT for own in owns], 1))  # (n, C, o, T): a convolution's gradients lie like this already
    if apart is None:
        return Rows("columns", torch.stack([columns_of(feature, shape) for feature in features], 1))
    return Rows("channels", apart[1], torch.bmm(apart[0], shared))


def separate(own: Float[Tensor, "n C o T"]) -> tuple[Float[Tensor, "n o T"], Float[Tensor, "n C o"]] | None:
    """d and u with own = d u to within rounding, or None.   Shapes: (n, C, o, T) -> (n, o, T) and (n, C, o)."""
    place = own.abs().amax(1).argmax(-1)  # (n, o): where the gradients of a channel are largest
    u = own.gather(3, place[:, None, :, None].expand(-1, own.shape[1], -1, 1))[..., 0]
    output = u.abs().argmax(1, keepdim=True)
    most = u.gather(1, output)
    d = own.gather(1, output[..., None].expand(-1, 1, -1, own.shape[3]))[:, 0] / torch.where(most == 0, 1, most)[:, 0, :, None]
    gap = (own - d[:, None] * u[..., None]).abs_().amax((1, 3))
    return (d, u) if bool((gap <= ROUNDING * torch.finfo(own.dtype).eps * most[:, 0].abs()).all()) else None


def joined(parts: list[Rows]) -> Rows:
    """Rows one below the other; fewer positions are filled up with zeros."""
    if len(parts) == 1:
        return parts[0]
    if len({part.form for part in parts}) > 1:
        parts = [part.columns() for part in parts]
    form = parts[0].form
    if form != "sandwich":
        shared = [part.shared for part in parts if part.shared is not None]
        return Rows(form, torch.cat([part.own for part in parts]), torch.cat(shared) if shared else None)
    most = max(part.own.shape[1] for part in parts)
    return Rows(form, torch.cat([_filled(part.own, most) for part in parts]), torch.cat([_filled(part.shared, most) for part in parts if part.shared is not None]))


def _filled(x: Tensor, positions: int) -> Tensor:
    return x if x.shape[1] == positions else F.pad(x, (0, 0) * (x.ndim - 2) + (0, positions - x.shape[1]))


def add_kernel(total: Float[Tensor, "n C m C"], here: Rows, there: Rows) -> None:
    """Add J J'^T of one parameter.   Shapes: here n, there m examples, total (n, C, m, C)."""
    n, outputs, m = total.shape[:3]
    if here.form != there.form:
        here, there = here.columns(), there.columns()
    if here.form == "columns":
        _add_product(total.view(n * outputs, m * outputs), here.own.reshape(n * outputs, -1), there.own.reshape(m * outputs, -1))
        return
    assert here.shared is not None
    assert there.shared is not None
    if here.form == "product":
        own = here.own.reshape(n * outputs, -1) @ there.own.reshape(m * outputs, -1).T
        total.add_(own.view_as(total).mul_(_inner(here.shared, there.shared)[:, None, :, None]))
        return
    if here.form == "channels":
        between = torch.bmm(here.shared.movedim(1, 0), there.shared.permute(1, 2, 0))  # (o, n, m)
        between = between.permute(1, 2, 0).contiguous()
        for i in range(n):
            weighted = between[i][:, None] * here.own[i]  # (m, C, o)
            total[i] += torch.bmm(weighted, there.own.mT).movedim(1, 0)
        return
    positions, own_size = here.own.shape[1:3]
    step = max(NUMBERS // (positions * own_size * outputs), 1)
    for i in range(n):
        mine = here.own[i].reshape(positions * own_size, outputs).T
        for j in range(0, m, step):
            other = there[j : j + step]
            assert other.shared is not None
            meeting = _inner(here.shared[i], other.shared.flatten(0, 1)).view(positions, len(other), -1).movedim(1, 0)
            between = torch.bmm(meeting.to(mine.dtype), other.own.flatten(2))  # (m, T, o C)
            total[i, :, j : j + step] += torch.matmul(mine, between.view(len(other), -1, outputs)).movedim(1, 0)


def add_trace(total: Float[Tensor, "n m"], here: Rows, there: Rows) -> None:
    """Add the trace of J J'^T over outputs of one parameter.   Shapes: here n, there m examples, total (n, m)."""
    if here.form != there.form:
        here, there = here.columns(), there.columns()
    if here.form == "columns":
        _add_product(total, here.own.flatten(1), there.own.flatten(1))
        return
    assert here.shared is not None
    assert there.shared is not None
    if here.form == "product":
        total.add_((here.own.flatten(1) @ there.own.flatten(1).T).mul_(_inner(here.shared, there.shared)))
        return
    if here.form == "channels":
        own = torch.bmm(here.own.permute(2, 0, 1), there.own.permute(2, 1, 0))
        total.add_(own.mul_(torch.bmm(here.shared.movedim(1, 0), there.shared.permute(1, 2, 0))).sum(0))
        return
    n, positions = here.own.shape[:2]
    m, others = there.own.shape[:2]
    step = max(NUMBERS // (positions * others * m), 1)
    for i in range(0, n, step):
        part = here[i : i + step]
        assert part.shared is not None
        both = part.own.reshape(len(part) * positions, -1) @ there.own.reshape(m * others, -1).T
        both.mul_(_inner(part.shared.flatten(0, 1), there.shared.flatten(0, 1)))
        total[i : i + step] += both.view(len(part), positions, m, others).sum((1, 3))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows, or of the unit vectors that integers stand for."""
    return left @ right.T if left.is_floating_point() else left[:, None] == right[None, :]


def _add_product(total: Float[Tensor, "n m"], left: Float[Tensor, "n size"], right: Float[Tensor, "m size"]) -> None:
    for at in range(0, left.shape[1], COLUMNS):
        total += left[:, at : at + COLUMNS] @ right[:, at : at + COLUMNS].T


def flops(entries: tuple[Entry, ...], outputs: int, pairs: float, *, trace: bool = False) -> float:
    """Multiplications of kernels between so many pairs of examples."""
    return pairs * math.fsum(entry.work(outputs, trace=trace) for entry in entries)
