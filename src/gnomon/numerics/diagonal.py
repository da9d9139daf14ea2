"""Traces and diagonals of curvature: exactly from per-example quantities, or by random probes where that takes too much."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.affine import bent_by
from gnomon.core.dataset import Block
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics import per_example
from gnomon.numerics.algebra import Identity, Operator, Scaled, Sum
from gnomon.numerics.derivatives import accumulator, gradients, scaled_blocks
from gnomon.numerics.fisher import EmpiricalFisher, GradientCovariance
from gnomon.numerics.gram import squares_of
from gnomon.numerics.lanczos import Product
from gnomon.numerics.layers import Outer
from gnomon.numerics.measuring import measuring
from gnomon.numerics.operators import GaussNewton, Hessian, loss_gradient
from gnomon.numerics.per_example import Feature, Pull, plan_of

logger = logging.getLogger("gnomon.numerics")

MOST_OUTPUTS = 128
"""Most outputs an example for which every direction in them is taken back."""

FORMED = 1 << 24
"""Numbers in the gradients that are formed at a time."""


def outputs_of(subject: Subject) -> int:
    """How many numbers the network's output is for one example."""

    def build() -> int:
        block = next(subject.batches(chunk=1))
        with measuring(subject), torch.no_grad():
            return subject(subject.state, block.inputs).numel()

    return subject.once("numerics.outputs", build)


def gauss_newton_traces(subject: Subject, split: str = "train") -> dict[str, Float64[Tensor, "N"]]:
    """Each example's part of the trace of each parameter's block of the Gauss-Newton matrix; the mean over examples is the trace.

    tr(J^T H_out J) = sum_i sum_k lambda_ik |J_i^T u_ik|^2 with eigenpairs (lambda_ik, u_ik) of the Hessian of the loss with respect to example i's output: squared norms of
    per-example gradients in as many directions as the output has numbers, with no gradient formed.

    Shapes: (N,) float64 for each trainable parameter.   Units: loss / parameter^2.   Error: rounding.
    Assumes: examples do not act on each other (eval mode), and the loss of a batch is a weighted mean or sum over examples.
    Cost: about a third of a gradient for each output.   Raises: OutOfScope for more than 128 outputs an example.
    """
    parts: dict[str, list[Tensor]] = {key: [] for key in subject.trainable}
    plan = plan_of(subject)
    with measuring(subject):
        for sizes, pull, directions in _curved(subject, split):
            totals = {key: torch.zeros(sizes, dtype=torch.float64) for key in subject.trainable}
            for sign, direction in directions:
                for key, feature in pull(direction, True).items():
                    totals[key] += sign.double().cpu() * squares_of(feature)
            for key, total in totals.items():
                parts[key].append(total)
    assert set(parts) == {*(p.name for p in plan.direct), *plan.slow}
    return {key: torch.cat(found) for key, found in parts.items()}


def gauss_newton_diagonal(subject: Subject, split: str = "train") -> Float[Tensor, "P"]:
    """The diagonal of the Gauss-Newton matrix, exactly: sum_ik lambda_ik (J_i^T u_ik)^2, entry by entry, as in `gauss_newton_traces`.

    Shapes: (P,).   Error: rounding.   Cost: about a gradient for each output.   Raises: OutOfScope for more than 128 outputs an example.
    """
    sums = _zeros(subject)
    count = 0
    with measuring(subject):
        for sizes, pull, directions in _curved(subject, split):
            count += sizes
            for sign, direction in directions:
                for key, feature in pull(direction, True).items():
                    sums[key] += _squares_summed(feature, sign, subject.state[key].shape)
    return torch.cat([sums[key] / count for key in subject.trainable]).to(subject.dtype)


def empirical_fisher_diagonal(subject: Subject, split: str = "train") -> Float[Tensor, "P"]:
    """The diagonal of the second moment of per-example gradients, (1/N) sum_i g_i^2, exactly; g_i as in `EmpiricalFisher`.

    Shapes: (P,).   Error: rounding.   Cost: about a gradient.   (That of `GradientCovariance` is this less the squared gradient of the loss.)
    """
    plan, sums, count = plan_of(subject), _zeros(subject), len(subject.examples(split))
    with measuring(subject):
        for block, share in scaled_blocks(subject, split):
            found = per_example.features(subject, plan, block, count * share)
            for key, feature in found.items():
                sums[key] += _squares_summed(feature, torch.ones(len(block), dtype=subject.dtype, device=subject.device), subject.state[key].shape)
    return torch.cat([sums[key] / count for key in subject.trainable]).to(subject.dtype)


def estimated_diagonal(product: Product, dimension: int, *, rng: Generator, probes: int, like: Tensor) -> tuple[Float64[Tensor, "P"], Float64[Tensor, "P"]]:
    """The diagonal of a symmetric matrix known by its products, as the mean of v * (A v) over random signs v, and its standard error.

    Shapes: (P,), (P,).   Error: the spread over probes; Var = sum_(j != i) A_ij^2.   Cost: one product a probe.
    Raises: InvalidInput for fewer than two probes.   Source: Bekas, Kokiopoulou & Saad 2007.
    """
    if probes < 2:
        raise InvalidInput(f"A standard error needs at least two probes, not {probes}.")
    mean = torch.zeros(dimension, dtype=accumulator(like.dtype, like.device), device=like.device)
    spread = torch.zeros_like(mean)
    for index in range(probes):
        v = chance.rademacher(dimension, rng=chance.child(rng, "probe", index), like=like)
        away = v * product(v) - mean
        mean += away / (index + 1)
        spread += away**2 * (index / (index + 1))
    return mean, (spread / (probes * (probes - 1))).sqrt()


class Diagonal(NamedTuple):
    """A diagonal, its standard error (0 where it is exact), and how it was found.  Shapes: (P,), (P,)."""

    values: Float[Tensor, "P"]
    error: Float[Tensor, "P"]
    method: str


def diagonal(operator: Operator, *, rng: Generator, probes: int = 64) -> Diagonal:
    """The diagonal of a curvature: exactly where per-example quantities give it, else by random signs; `method` says which, and a fallback is logged too.

    Exact: the Gauss-Newton matrix and the Fisher information up to 128 outputs an example; the empirical Fisher and the gradients' covariance; the Hessian where the output is
    piecewise linear along every parameter (it then has the Gauss-Newton matrix's diagonal); any operator of at most `probes` parameters, by its products with the basis vectors.

    Shapes: (P,).   Error: rounding, or the standard error over probes.   Cost: a gradient for each output, or `probes` products.   Raises: InvalidInput for fewer than two probes.
    """
    if isinstance(operator, Scaled):
        found = diagonal(operator.of, rng=rng, probes=probes)
        return Diagonal(operator.factor * found.values, abs(operator.factor) * found.error, found.method)
    if isinstance(operator, Sum):
        parts = [diagonal(term, rng=chance.child(rng, "term", i), probes=probes) for i, term in enumerate(operator.terms)]
        error = torch.stack([part.error for part in parts]).square().sum(0).sqrt()
        return Diagonal(torch.stack([part.values for part in parts]).sum(0), error, " + ".join(part.method for part in parts))
    like = getattr(operator, "subject").state[getattr(operator, "subject").trainable[0]]  # noqa: B009
    exact, why = _exactly(operator)
    if exact is not None:
        return Diagonal(exact, torch.zeros_like(exact), why)
    if operator.dimension <= probes:
        basis = torch.eye(operator.dimension, dtype=like.dtype, device=like.device)
        exact = torch.stack([operator(unit) @ unit for unit in basis])
        return Diagonal(exact, torch.zeros_like(exact), "exact, by products with the basis vectors")
    logger.info("the diagonal of %s is estimated with %d random signs: %s", type(operator).__name__, probes, why)
    values, error = estimated_diagonal(operator, operator.dimension, rng=rng, probes=probes, like=like)
    return Diagonal(values.to(like.dtype), error.to(like.dtype), f"estimated with {probes} random signs: {why}")


def _exactly(operator: Operator) -> tuple[Tensor | None, str]:
    """The diagonal where it is known exactly and how, or None and why not."""
    if isinstance(operator, Identity):
        return torch.ones(operator.dimension, dtype=operator.subject.dtype, device=operator.subject.device), "exact"
    if isinstance(operator, EmpiricalFisher):
        moment = empirical_fisher_diagonal(operator.subject, operator.split)
        return (moment - loss_gradient(operator.subject, operator.split)[1] ** 2 if isinstance(operator, GradientCovariance) else moment), "exact, from per-example gradients"
    if not isinstance(operator, (GaussNewton, Hessian)):
        return None, "no exact form is known"
    if isinstance(operator, Hessian) and (why := bent_by(operator.subject)):
        return None, why
    if (outputs := outputs_of(operator.subject)) > MOST_OUTPUTS:
        return None, f"{outputs:,} outputs an example are more than {MOST_OUTPUTS}"
    return gauss_newton_diagonal(operator.subject, operator.split), "exact, from per-example quantities"


def _curved(subject: Subject, split: str) -> Iterator[tuple[int, Pull, Iterator[tuple[Tensor, Tensor]]]]:
    """For each chunk its size, its pullback, and pairs (signs (n,), directions (n, ...)) whose squares sum to N times what the chunk adds to the curvature of the output."""
    data = subject.examples(split)
    outputs, plan = outputs_of(subject), plan_of(subject)
    if outputs > MOST_OUTPUTS:
        raise OutOfScope(f"{subject.name} has {outputs:,} outputs an example; the Gauss-Newton matrix is taken apart exactly up to {MOST_OUTPUTS}. Estimate it by probes instead.")
    shares = subject.loss.reduction == "mean"
    total = subject.total_weight(split)
    for block in subject.batches(split):
        output, pull = per_example.pulling(subject, plan, block.inputs)
        scale = len(data) * (subject.loss.count(block.targets) / total if shares else 1.0)
        yield len(block), pull, _directions(subject, block, output, scale)


def _directions(subject: Subject, block: Block, output: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    if scale == 0:
        return
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = gradients(scale * subject.loss(leaf, block.targets), [leaf], keep=True)
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    rows = []
    for k in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, k] = 1
        rows.append(gradients(slope, [leaf], unit.view(output.shape), again=True)[0].reshape(flat.shape))
    matrix = torch.stack(rows, 2)
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    size = float(values.abs().max())
    for k in range(flat.shape[1]):
        weight = values[:, k]
        if float(weight.abs().max()) > torch.finfo(values.dtype).eps * size:
            yield weight.sign(), (weight.abs().sqrt()[:, None] * vectors[:, :, k]).view(output.shape)


def _zeros(subject: Subject) -> dict[str, Tensor]:
    dtype = accumulator(subject.dtype, subject.device)
    return {key: torch.zeros(subject.state[key].numel(), dtype=dtype, device=subject.device) for key in subject.trainable}


def _squares_summed(feature: Feature, sign: Float[Tensor, "n"], shape: torch.Size) -> Float[Tensor, "size"]:
    """sum_i sign_i g_i^2, entry by entry, some examples' gradients formed at a time."""
    if not isinstance(feature, Outer):
        return sign @ feature.square()
    if feature.left.ndim == 3 and feature.left.shape[1] == 1:
        return ((sign[:, None] * feature.left[:, 0].square()).T @ feature.right[:, 0].square()).reshape(-1)
    total = feature.right.new_zeros(shape.numel())
    step = max(FORMED // max(shape.numel(), 1), 1)
    for at in range(0, len(feature), step):
        total += sign[at : at + step] @ Outer(feature.left[at : at + step], feature.right[at : at + step]).columns(shape).square()
    return total
