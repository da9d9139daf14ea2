"""The trace of a matrix that is known by its products."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.lanczos import Product


class TraceEstimate(NamedTuple):
    """A trace, its standard error, and from how many independent probes that comes (Student's t has one degree of freedom less)."""

    value: float
    error: float
    probes: int


def hutchinson(product: Product, dimension: int, *, rng: Generator, probes: int, like: Tensor) -> Float64[Tensor, "{probes}"]:
    """Independent unbiased estimates v^T A v of the trace, v with random signs.

    Var(v^T A v) = 2 sum_{i != j} A_ij^2 for a symmetric A.

    Shapes: (probes,), float64 on the CPU.   Units: those of A.   Error: the spread of the values.   Cost: one product a probe.
    Raises: InvalidInput for no probe.   Source: Hutchinson 1989.
    """
    if probes < 1:
        raise InvalidInput(f"probes must be at least 1, not {probes}.")
    values = []
    for index in range(probes):
        v = chance.rademacher(dimension, rng=chance.child(rng, "probe", index), like=like)
        values.append(_dot(v, product(v)))
    return torch.tensor(values, dtype=torch.float64)


def hutch_plus_plus(product: Product, dimension: int, *, rng: Generator, products: int, like: Tensor) -> TraceEstimate:
    """The trace as that of a low-rank part, exactly, and of the rest by random signs.

    tr(Q^T A Q) + mean over g of g^T (1 - Q Q^T) A (1 - Q Q^T) g,  Q an orthonormal basis of A S with random signs S.

    Shapes: numbers.   Units: those of A.   Error: the standard error over the rest's probes: given Q they are independent and unbiased.
    Cost: `products` products and 2/3 as many vectors of memory.
    Raises: InvalidInput for fewer than six products: a standard error takes two probes.
    Source: Meyer, Musco, Musco & Woodruff 2021, algorithm 1.
    """
    if products < 6:
        raise InvalidInput(f"Hutch++ takes at least 6 products, not {products}.")
    rank = min(products // 3, dimension)
    sketch = torch.stack([product(chance.rademacher(dimension, rng=chance.child(rng, "sketch", i), like=like)) for i in range(rank)], 1)
    basis = torch.linalg.qr(sketch.double() if like.device.type != "mps" else sketch)[0].to(like.dtype)
    known = sum(_dot(basis[:, i], product(basis[:, i])) for i in range(rank))
    rest = torch.tensor([], dtype=torch.float64)
    if rank < dimension:

        def outside(v: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
            return v - basis @ (basis.T @ v)

        rest = hutchinson(lambda v: outside(product(outside(v))), dimension, rng=chance.child(rng, "rest"), probes=products - 2 * rank, like=like)
    if not len(rest):
        return TraceEstimate(known, torch.finfo(like.dtype).eps * abs(known) * math.sqrt(dimension), dimension)
    return TraceEstimate(known + float(rest.mean()), float(rest.std()) / math.sqrt(len(rest)), len(rest))


def deflated(product: Product, known: Float[Tensor, "P k"], *, rng: Generator, probes: int, like: Tensor) -> TraceEstimate:
    """The trace as that within a known subspace, exactly, and of the rest by random signs: with the leading eigenvectors known, their spread is gone.

    tr(Q^T A Q) + mean over g of g^T (1 - Q Q^T) A (1 - Q Q^T) g,  Q = `known` made orthonormal; unbiased for any subspace that does not depend on the probes.

    Shapes: numbers.   Units: those of A.   Error: the standard error over probes.   Cost: k + `probes` products.
    Raises: InvalidInput for fewer than two probes.   Source: Meyer, Musco, Musco & Woodruff 2021 (the same split, with a sketch for Q).
    """
    if probes < 2:
        raise InvalidInput(f"A standard error needs at least two probes, not {probes}.")
    basis = torch.linalg.qr(known.double() if like.device.type != "mps" else known)[0].to(like.dtype)
    inside = sum(_dot(column, product(column)) for column in basis.T.contiguous())

    def outside(v: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        return v - basis @ (basis.T @ v)

    rest = hutchinson(lambda v: outside(product(outside(v))), len(known), rng=rng, probes=probes, like=like)
    return TraceEstimate(inside + float(rest.mean()), float(rest.std()) / math.sqrt(probes), probes)


def _dot(left: Float[Tensor, "P"], right: Float[Tensor, "P"]) -> float:
    if left.device.type == "mps":
        return float(torch.dot(left, right))
    return float(torch.dot(left.double(), right.double()))
