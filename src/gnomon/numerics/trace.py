"""The trace of a matrix that is known by its products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.lanczos import Product

Form = Callable[[Float[Tensor, "P"]], Float64[Tensor, "groups"]]
"""v -> w_g v^T A_g v for each group g of examples: what each of them adds to v^T A v = sum_g w_g v^T A_g v."""


class TraceEstimate(NamedTuple):
    """A trace, its standard error, and from how many independent probes that comes (Student's t has one degree of freedom less); rounding and no probe where all is exact.

    Shapes: `samples` (probes, groups): what each group adds to each probe's estimate of the trace, the exact part included; one group where no `form` was given.
    """

    value: float
    error: float
    probes: int
    samples: Float64[Tensor, "probes groups"]


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


def hutch_plus_plus(product: Product, dimension: int, *, rng: Generator, products: int, like: Tensor, form: Form | None = None) -> TraceEstimate:
    """The trace as that of a low-rank part, exactly, and of the rest by random signs.

    tr(Q^T A Q) + mean over g of g^T (1 - Q Q^T) A (1 - Q Q^T) g,  Q an orthonormal basis of A S with random signs S.

    `form` gives v^T A v by its parts, where each part's trace is wanted too.

    Shapes: samples (probes, groups).   Units: those of A.   Error: the standard error over the rest's probes: given Q they are independent and unbiased.
    Cost: `products` products and 2/3 as many vectors of memory.
    Raises: InvalidInput for fewer than six products: a standard error takes two probes.
    Source: Meyer, Musco, Musco & Woodruff 2021, algorithm 1.
    """
    if products < 6:
        raise InvalidInput(f"Hutch++ takes at least 6 products, not {products}.")
    rank = min(products // 3, dimension)
    sketch = torch.stack([product(chance.rademacher(dimension, rng=chance.child(rng, "sketch", i), like=like)) for i in range(rank)], 1)
    return _split(product, sketch, rng=chance.child(rng, "rest"), probes=products - 2 * rank, like=like, form=form)


def deflated(product: Product, known: Float[Tensor, "P k"], *, rng: Generator, probes: int, like: Tensor, form: Form | None = None) -> TraceEstimate:
    """The trace as that within a known subspace, exactly, and of the rest by random signs: with the leading eigenvectors known, their spread is gone.

    tr(Q^T A Q) + mean over g of g^T (1 - Q Q^T) A (1 - Q Q^T) g,  Q = `known` made orthonormal; unbiased for any subspace that does not depend on the probes.

    Shapes: samples (probes, groups), as in `hutch_plus_plus`.   Units: those of A.   Error: the standard error over probes.   Cost: k + `probes` products.
    Raises: InvalidInput for fewer than two probes.   Source: Meyer, Musco, Musco & Woodruff 2021 (the same split, with a sketch for Q).
    """
    if probes < 2:
        raise InvalidInput(f"A standard error needs at least two probes, not {probes}.")
    return _split(product, known, rng=rng, probes=probes, like=like, form=form)


def _split(product: Product, span: Float[Tensor, "P k"], *, rng: Generator, probes: int, like: Tensor, form: Form | None) -> TraceEstimate:
    """The trace within a span, and that of the rest by random signs."""
    basis = torch.linalg.qr(span.double() if like.device.type != "mps" else span)[0].to(like.dtype)
    of = form or (lambda v: torch.tensor([_dot(v, product(v))], dtype=torch.float64))
    inside = torch.stack([of(column) for column in basis.T.contiguous()]).sum(0) if basis.shape[1] else torch.zeros(1, dtype=torch.float64)
    if basis.shape[1] == len(span):
        value = float(inside.sum())
        return TraceEstimate(value, torch.finfo(like.dtype).eps * abs(value) * math.sqrt(len(span)), 0, inside[None])
    rest = []
    for index in range(probes):
        v = chance.rademacher(len(span), rng=chance.child(rng, "probe", index), like=like)
        rest.append(of(v - basis @ (basis.T @ v)))
    samples = inside + torch.stack(rest)
    rows = samples.sum(1)
    return TraceEstimate(float(rows.mean()), float(rows.std()) / math.sqrt(probes), probes, samples)


def _dot(left: Float[Tensor, "P"], right: Float[Tensor, "P"]) -> float:
    if left.device.type == "mps":
        return float(torch.dot(left, right))
    return float(torch.dot(left.double(), right.double()))
