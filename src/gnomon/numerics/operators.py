"""Linear maps of a subject that are applied and never formed: gradient, Hessian, Gauss-Newton, parameter and input Jacobian.

Vectors are flat, of length `subject.dimension`, in the order of `subject.trainable`.  Sums over chunks are kept in float64, so that no result
depends on how the data are split beyond the rounding of one chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Tree, length
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics import chain, derivatives
from gnomon.numerics.algebra import Columns, Operator, check_block, restrict
from gnomon.numerics.derivatives import LinearMap, Route, Tensors, accumulator, flatten, gradients, output_of, route_of, scaled_blocks
from gnomon.numerics.measuring import measuring
from gnomon.numerics.memory import KEEP, kept_bytes

PRODUCT = 2.4
"""What a product with the Hessian or the Gauss-Newton matrix costs, in gradients: 1.2 where the first layer is the largest, 2.4 for an LSTM or a transformer."""

Batch = Float[Tensor, "N ..."]
"""Floating-point numbers of some shape for each example."""


def loss_value(subject: Subject, split: str = "train") -> float:
    """The loss over a split: sum_b w_b loss_b / sum_b w_b, or sum_b loss_b.

    Cost: a third of a gradient.   Raises: OutOfScope where there are no test data.
    """
    total = 0.0
    with measuring(subject), torch.no_grad():
        for block, share in scaled_blocks(subject, split):
            total += share * float(subject.loss(subject(subject.state, block.inputs), block.targets))
    return total


def loss_gradient(subject: Subject, split: str = "train") -> tuple[float, Float[Tensor, "P"]]:
    """The loss over a split and its gradient, summed in float64.

    Shapes: (), (P,).   Units: loss.   Cost: one gradient.   Raises: OutOfScope where there are no test data.
    """
    total, sums = 0.0, _Sums(subject)
    with measuring(subject):
        for block, share in scaled_blocks(subject, split):
            leaves = derivatives.leaf_parameters(subject)
            loss = derivatives.loss_of(subject, leaves, block)
            sums.add(gradients(loss, leaves.values()), share)
            total += share * float(loss.detach())
    return total, sums.flat(subject.dtype)


class _Sums:
    """The sum over chunks of one tensor a parameter: a single chunk is taken as it is, several are added in float64."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.only: tuple[Tensors, float] | None = None
        self.total: Float[Tensor, "P"] | None = None

    def add(self, parts: Tensors, scale: float) -> None:
        if self.only is None and self.total is None:
            self.only = parts, scale
            return
        if self.total is None:
            assert self.only is not None
            self.total = torch.zeros(self.subject.dimension, dtype=accumulator(self.subject.dtype, self.subject.device), device=self.subject.device)
            self._into(*self.only)
            self.only = None
        self._into(parts, scale)

    def _into(self, parts: Tensors, scale: float) -> None:
        assert self.total is not None
        for total, part in zip(self.total.split([part.numel() for part in parts]), parts, strict=True):
            total.add_(part.reshape(-1), alpha=scale)

    def flat(self, dtype: torch.dtype) -> Float[Tensor, "P"]:
        if self.total is not None:
            return self.total.to(dtype)
        if self.only is None:
            return torch.zeros(self.subject.dimension, dtype=dtype, device=self.subject.device)
        parts, scale = self.only
        flat = flatten(parts).to(dtype)
        return flat if scale == 1.0 else flat.mul_(scale)


class _Curvature(Operator):
    """A symmetric matrix that is a weighted mean (or sum) over chunks.

    Products with one vector or with the columns of a matrix, restrictions, sums and multiples: see `Operator`.
    The chunks' graphs, or chains (`numerics.chain`), are kept from the first product on where they fit in `keep` bytes; else they are made anew for every product.
    """

    of_chunk: Callable[[Subject, Block, Route], LinearMap]

    def __init__(self, subject: Subject, split: str = "train", *, keep: int = KEEP) -> None:
        self.subject, self.split, self.keep = subject, split, keep
        self._kept: list[tuple[LinearMap, float]] | None = None

    @property
    def dimension(self) -> int:
        """The number of trainable parameters."""
        return self.subject.dimension

    def __call__(self, v: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """The product with a vector.  Shapes: v (P,) -> (P,), in the dtype of v.  Cost: one to two gradients, and up to two more for the first."""
        return self._products([v])[0]

    def block(self, vectors: Columns) -> Columns:
        """The products with the columns of a matrix; each chunk's graph is made once for all of them.  Shapes: (P, k) -> (P, k).   Cost: k products."""
        check_block(vectors, self.dimension)
        return torch.stack(self._products(list(vectors.T.contiguous()))).T

    def _products(self, vectors: list[Float[Tensor, "P"]]) -> list[Float[Tensor, "P"]]:
        sums = [_Sums(self.subject) for _ in vectors]
        with measuring(self.subject):
            tangents = [derivatives.split(self.subject, v) for v in vectors]
            for product, share in self._chunks():
                for total, tangent in zip(sums, tangents, strict=True):
                    total.add(product(tangent), share)
        return [total.flat(v.dtype) for total, v in zip(sums, vectors, strict=True)]

    def restricted(self, names: str | Iterable[str]) -> _Curvature:
        """The diagonal block of some parameters: a layer's name stands for all of its parameters.

        Cost: products of the block alone, cheaper than the whole.   Raises: InvalidInput for an unknown name, with the nearest one.
        """
        return self._of(restrict(self.subject, names), self.split)

    def _of(self, subject: Subject, split: str) -> _Curvature:
        """The same kind of operator of another subject."""
        return type(self)(subject, split, keep=self.keep)

    def _chunks(self) -> Iterable[tuple[LinearMap, float]]:
        """Every chunk's map, and what it counts for."""
        if self._kept is not None:
            return self._kept
        route = chain.route_of(self.subject)
        made = ((self._map(block, share, route), share) for block, share in scaled_blocks(self.subject, self.split))
        if route == "double" and kept_bytes(self.subject, self.split) <= self.keep:
            self._kept = list(made)
            return self._kept
        return made

    def _map(self, block: Block, share: float, route: Route) -> LinearMap:
        """One chunk's map; `share` is what it counts for."""
        return type(self).of_chunk(self.subject, block, route)

    def grouped(self, v: Float[Tensor, "P"], groups: int = 16) -> Iterator[tuple[float, Float[Tensor, "P"]]]:
        """H_g v over groups of examples, with the share w_g of each: sum_g w_g H_g v = H v.

        Where the examples are a sample, the spread of the groups is the sampling error; for a loss that is a sum, products are scaled to the whole sum.
        Examples are dealt to the groups at random, always in the same way.  A group whose targets are all ignored has product and share 0.

        Shapes: v (P,) -> pairs of a number and (P,), as many as groups, fewer where there are fewer examples.
        Cost: one product.   Raises: InvalidInput for less than one group.
        """
        if groups < 1:
            raise InvalidInput(f"groups must be at least 1, not {groups}.")
        data = self.subject.examples(self.split)
        count = min(groups, len(data))
        order = chance.permutation(len(data), rng=chance.generator(0, "groups"))
        route = chain.route_of(self.subject)
        total = self.subject.total_weight(self.split)
        for g in range(count):
            members = order[g::count]
            part = dataclasses.replace(self.subject, train=data.select(members), _shared={"numerics.route.double": route})
            if self.subject.loss.reduction == "sum":
                share, scale = len(members) / len(data), len(data) / len(members)
            else:
                share, scale = sum(part.loss.count(block.targets) for block in part.batches()) / total, 1.0
            yield share, scale * self._of(part, "train")(v) if share > 0 else torch.zeros_like(v)

    def quadratic(self, v: Float[Tensor, "P"], groups: int = 16) -> tuple[Float64[Tensor, "groups"], Float64[Tensor, "groups"]]:
        """v^T H_g v over groups of examples, with the share of each, as in `grouped`: sum_g w_g v^T H_g v = v^T H v.

        Shapes: v (P,) -> values (groups,), shares (groups,), float64.   Cost: one product.   Raises: InvalidInput for less than one group.
        """
        parts = [(share, float(torch.dot(v.double().cpu(), product.double().cpu()))) for share, product in self.grouped(v, groups)]
        shares, values = (torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True))
        return values, shares


class Hessian(_Curvature):
    """The Hessian of the loss over a split: v -> H v.

    H = sum_b (w_b / W) d^2 loss_b / d theta^2 (without w_b / W for a sum), by double backward or forward over reverse mode; never by differences.
    Raises: OutOfScope that names the operation where the network has no second derivative.
    Source: Pearlmutter 1994.
    """

    of_chunk = staticmethod(chain.hessian_map)


class GaussNewton(_Curvature):
    """The generalised Gauss-Newton matrix of the loss over a split: v -> J^T (d^2 loss / d output^2) J v.

    For cross-entropy it is the Fisher information of the labels that the network would draw.
    Raises: OutOfScope that names the operation where the network has no second derivative.
    Source: Schraudolph 2002.
    """

    of_chunk = staticmethod(chain.gauss_newton_map)


class ParameterJacobian:
    """The derivative J of the network's output with respect to its trainable parameters, on a block of inputs.

    Shapes: J v: (P,) -> (N, ...), the output's shape; J^T u: (N, ...) -> (P,).   Cost: J v one forward pass in forward mode, J^T u one gradient.
    """

    def __init__(self, subject: Subject, inputs: Tree) -> None:
        self.subject, self.inputs = subject, subject.to_device(inputs)

    @property
    def dimension(self) -> int:
        """The number of trainable parameters."""
        return self.subject.dimension

    def _function(self, inputs: Tree) -> Callable[[Tensors], Tensor]:
        return lambda tensors: output_of(self.subject, dict(zip(self.subject.trainable, tensors, strict=True)), inputs)

    def __call__(self, v: Float[Tensor, "P"]) -> Batch:
        """J v.  Shapes: v (P,) -> (N, ...)."""
        at = tuple(self.subject.parameters.values())
        with measuring(self.subject):
            tangents, route = derivatives.split(self.subject, v), route_of(self.subject)
            return torch.cat([derivatives.pushforward(self._function(chunk), at, tangents, route) for chunk, _ in _chunks(self.inputs, self.subject.chunk)])

    def block(self, vectors: Columns) -> Float[Tensor, "N ..."]:
        """J applied to the columns of a matrix.  Shapes: (P, k) -> (N, ..., k).   Cost: k products.   Raises: InvalidInput for another shape."""
        check_block(vectors, self.dimension)
        return torch.stack([self(column) for column in vectors.T.contiguous()], -1)

    def transpose(self, u: Batch) -> Float[Tensor, "P"]:
        """J^T u.  Shapes: u (N, ...) -> (P,), in the dtype of u."""
        at, sums = tuple(self.subject.parameters.values()), _Sums(self.subject)
        with measuring(self.subject):
            for chunk, where in _chunks(self.inputs, self.subject.chunk):
                sums.add(derivatives.pullback(self._function(chunk), at, u[where].to(self.subject.device, self.subject.dtype)), 1.0)
        return sums.flat(u.dtype)


class InputJacobian:
    """The derivative J_x of each example's output with respect to its own floating-point inputs, on a block of inputs.

    Shapes: J_x v: v like the inputs -> (N, ...), the output's shape; J_x^T u: (N, ...) -> like the inputs.  "Like the inputs" is a tensor where the
    inputs are one, else a tuple of their floating-point tensors, in order.
    Raises: OutOfScope where every input is an integer: there is nothing to differentiate.
    """

    def __init__(self, subject: Subject, inputs: Tree) -> None:
        self.subject, self.inputs = subject, subject.to_device(inputs)
        self.floating = [i for i, leaf in enumerate(tree_flatten(self.inputs)[0]) if leaf.is_floating_point()]
        if not self.floating:
            raise OutOfScope(f"{subject.name} takes integers only: its output has no derivative with respect to them. Examine it with respect to its embeddings instead.")

    def _function(self, inputs: Tree) -> tuple[Callable[[Tensors], Tensor], Tensors]:
        flat, spec = tree_flatten(inputs)

        def function(tensors: Tensors) -> Tensor:
            filled = list(flat)
            for i, tensor in zip(self.floating, tensors, strict=True):
                filled[i] = tensor
            return self.subject(self.subject.state, tree_unflatten(filled, spec))

        return function, tuple(flat[i] for i in self.floating)

    def __call__(self, v: Batch | tuple[Batch, ...]) -> Batch:
        """J_x v.  Shapes: v like the inputs -> (N, ...)."""
        whole = (v,) if isinstance(v, Tensor) else v
        with measuring(self.subject):
            route, out = route_of(self.subject), []
            for chunk, where in _chunks(self.inputs, self.subject.chunk):
                function, at = self._function(chunk)
                out.append(derivatives.pushforward(function, at, tuple(part[where].to(a) for part, a in zip(whole, at, strict=True)), route))
        return torch.cat(out)

    def transpose(self, u: Batch) -> Batch | tuple[Batch, ...]:
        """J_x^T u.  Shapes: u (N, ...) -> like the inputs."""
        parts = []
        with measuring(self.subject):
            for chunk, where in _chunks(self.inputs, self.subject.chunk):
                function, at = self._function(chunk)
                parts.append(derivatives.pullback(function, at, u[where].to(self.subject.device, self.subject.dtype)))
        joined = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return joined[0] if isinstance(self.inputs, Tensor) else joined


def _chunks(inputs: Tree, size: int) -> Iterator[tuple[Tree, slice]]:
    for start in range(0, length(inputs), size):
        where = slice(start, start + size)
        yield tree_map(lambda leaf, where=where: leaf[where], inputs), where
