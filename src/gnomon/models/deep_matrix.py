"""Products of matrices under gradient descent, for many starts at once: deep linear networks, matrix factorisation and completion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models.factor_descent import FactorDescent, check_slope, warn_above
from gnomon.models.factor_descent import squared_slope as squared_slope

Factors = Sequence[Float[Tensor, "starts _ _"]]
Product = Float[Tensor, "starts m n"]


def product(factors: Factors) -> Product:
    """W_N ... W_1, W_1 first in the list.  Shapes: (starts, d_1, d_0), ..., (starts, d_N, d_N-1) -> (starts, d_N, d_0)."""
    made, *others = factors
    for factor in others:
        made = factor @ made
    return made


def normal_factors(shape: tuple[int, int], *, depth: int, size: float, starts: int, rng: Generator) -> list[Float[Tensor, "starts _ _"]]:
    """Independent normal factors, min(m, n) wide, whose product has about the Frobenius norm `size`.

    Entries of W_j have the variance (size^2 / (m n))^(1 / depth) / width^(1 - 1 / depth), so that an entry of the product has size^2 / (m n).
    Shapes: (m, n) -> (starts, width, n), ..., (starts, m, width), float64.   Raises: InvalidInput for a depth, size or number of starts that is not positive.
    """
    rows, columns = shape
    if min(rows, columns, depth, starts) < 1 or size <= 0:
        raise InvalidInput(f"A product needs a shape, a depth, and starts of at least 1 and a positive size, not {shape}, {depth}, {starts} and {size:g}.")
    width = min(rows, columns)
    deviation = (size / (rows * columns) ** 0.5) ** (1 / depth) * width ** ((1 / depth - 1) / 2)
    sides = [columns, *[width] * (depth - 1), rows]
    return [deviation * chance.normal(starts, sides[j + 1], sides[j], rng=chance.child(rng, "factor", j)) for j in range(depth)]


def balanced_factors(start: Product, depth: int) -> list[Float[Tensor, "starts _ _"]]:
    """Factors of a given product that are balanced: W_{j+1}' W_{j+1} = W_j W_j' for all j.

    From the singular value decomposition U S V':  W_1 = S^(1/N) V',  W_j = S^(1/N),  W_N = U S^(1/N).
    Shapes: (starts, m, n) -> (starts, k, n), (starts, k, k), ..., (starts, m, k), k = min(m, n).   Raises: InvalidInput for a depth below 1.
    """
    if depth < 1:
        raise InvalidInput(f"A product has a depth of 1 factor or more, not {depth}.")
    if depth == 1:
        return [start.clone()]
    left, singular, right = torch.linalg.svd(start, full_matrices=False)
    roots = torch.diag_embed(singular ** (1 / depth))
    return [roots @ right, *[roots.clone() for _ in range(depth - 2)], left @ roots]


def skewed(factors: Factors, by: float) -> list[Float[Tensor, "starts _ _"]]:
    """The first factor times `by`, the last over it: the same product, no longer balanced."""
    first, *middle, last = factors
    return [first * by, *middle, last / by]


def gradients(factors: Factors, slope: Callable[[Product], Product]) -> list[Float[Tensor, "starts _ _"]]:
    """(W_N ... W_{j+1})' G (W_{j-1} ... W_1)' for each j,  G = dL / d(product) = slope(product): the gradient of a loss of the product in each factor.

    Shapes: those of the factors.   Cost: 3 depth products of matrices.
    """
    below: list[Tensor | None] = [None]
    for factor in factors:
        below.append(factor if below[-1] is None else factor @ below[-1])
    pull = slope(below[-1])  # type: ignore[arg-type]
    moves = []
    for factor, under in zip(reversed(factors), reversed(below[:-1]), strict=True):
        moves.append(pull if under is None else pull @ under.mT)
        pull = factor.mT @ pull
    return moves[::-1]


def descent(factors: Factors, slope: Callable[[Product], Product], *, lr: float) -> FactorDescent:
    """Gradient descent on all factors of a loss of their product, to be run: W_j <- W_j - lr dL / dW_j, by `gradients`.

    For the squared distance from a matrix, a step at which no minimum can be stable is said before the run, with the limit.
    Shapes: factors as in `product`; slope maps (starts, m, n) to itself.   Raises: InvalidInput as `FactorDescent`, and for factors that do not chain or a slope of another shape.
    """
    if not factors or any(factor.ndim != 3 for factor in factors) or any(after.shape[2] != before.shape[1] for before, after in itertools.pairwise(factors)):
        raise InvalidInput(f"Factors are (starts, d_1, d_0), (starts, d_2, d_1), ..., the first to act first; {[tuple(factor.shape) for factor in factors]} came.")
    check_slope(slope, product(factors))
    made = FactorDescent(factors, lambda parts: gradients(parts, slope), lr=lr)
    warn_above(slope, len(factors), lr=lr)
    return made


def descend(factors: Factors, slope: Callable[[Product], Product], *, lr: float, records: Sequence[int]) -> Float[Tensor, "records starts m n"]:
    """The product after these numbers of steps of `descent`.  A start that diverges is kept as it was before the step that a warning names.

    Shapes: factors as in `product` -> (records, starts, m, n).   Cost: 3 depth products of matrices a step.
    Raises: InvalidInput as `descent`, and for records that fall.
    """
    return torch.stack([product(part).clone() for part in descent(factors, slope, lr=lr).recorded(records)])


def completion_path(
    target: Float[Tensor, "m n"], seen: Float[Tensor, "m n"], start: Float[Tensor, "1 m n"], *, depth: int, skew: float, lr: float, steps: int, every: int
) -> Float[Tensor, "records m n"]:
    """The product, at the start and after each `every` steps, as it completes a matrix from balanced factors, made unbalanced by `skew`.  Raises: as `descend`."""
    return descend(skewed(balanced_factors(start, depth), skew), squared_slope(target, seen), lr=lr, records=range(0, steps + 1, every))[:, 0]


def whitened(inputs: Float[Tensor, "n d"], *, kept: float = 0.0) -> Float[Tensor, "n d"]:
    """X C^((kept - 1) / 2) with the second moments C = X' X / n: inputs whose own second moments are C^kept, 1 for kept = 0; directions without variance become 0.

    Shapes: (n, d) -> (n, d).   Cost: an eigendecomposition of d.
    """
    values, vectors = torch.linalg.eigh(correlation(inputs, inputs))
    seen = values > 1e-10 * values[-1]
    powers = torch.where(seen, torch.where(seen, values, 1.0) ** ((kept - 1) / 2), 0.0)
    return inputs @ (vectors * powers @ vectors.T)


def correlation(inputs: Float[Tensor, "n d"], targets: Float[Tensor, "n c"]) -> Float[Tensor, "c d"]:
    """Y' X / n."""
    return targets.T @ inputs / len(inputs)


def modes(inputs: Float[Tensor, "n d"], targets: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "c k"], Float[Tensor, "k"], Float[Tensor, "k d"]]:
    """The singular value decomposition of the correlation of the whitened inputs with the targets."""
    left, singular, right = torch.linalg.svd(correlation(whitened(inputs), targets), full_matrices=False)
    return left, singular, right


def mode_path(
    inputs: Float[Tensor, "n d"], targets: Float[Tensor, "n c"], *, depth: int, start: float, lr: float, records: Sequence[int], kept: float = 0.0
) -> Float[Tensor, "records k"]:
    """Train a deep linear network on inputs whitened but for `kept`, and give the strength of each of the `modes` over its singular value.

    Weights begin balanced and aligned, with strengths of `start`; lr is in units of one over the strongest mode.   Raises: as `descend`.
    """
    left, singular, right = modes(inputs, targets)
    seen = whitened(inputs, kept=kept)
    moment, aim = correlation(seen, seen), correlation(seen, targets)
    factors = balanced_factors((left * singular * start @ right)[None], depth)
    path = descend(factors, lambda made: made @ moment - aim, lr=lr / float(singular[0]), records=records)[:, 0]
    return (left.T @ path @ right.T).diagonal(dim1=-2, dim2=-1) / singular


def effective_rank(made: Float[Tensor, "*starts m n"]) -> Float[Tensor, "*starts"]:
    """exp of the entropy of the singular values' shares: between 1 and the rank; 1 where all are 0.  Shapes: (..., m, n) -> (...)."""
    values = torch.linalg.svdvals(made)
    shares = values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp()
