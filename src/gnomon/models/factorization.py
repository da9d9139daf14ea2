"""A matrix as a product of factors: the loss over all their entries in one vector, and starts near every kind of critical point."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from gnomon.core import rng as chance

Target = Float[Tensor, "m n"]


def planted(rows: int, columns: int, *, rng: Generator) -> Target:
    """A matrix with random singular vectors and the singular values k, ..., 2, 1, k the smaller side, in units of k.  Shapes: (rows, columns) float64."""
    left, right = (torch.linalg.qr(chance.normal(size, size, rng=rng))[0] for size in (rows, columns))
    k = min(rows, columns)
    return left[:, :k] * torch.arange(k, 0, -1, dtype=torch.float64) / k @ right[:, :k].T


def of_rank(side: int, rank: int, *, rng: Generator) -> Target:
    """A square matrix with random singular vectors and the singular values 1, ..., 1 / rank, all others 0.  Shapes: (side, side) float64."""
    left, right = (torch.linalg.qr(chance.normal(side, side, rng=chance.child(rng, "side", k)))[0][:, :rank] for k in (0, 1))
    return left * torch.arange(rank, 0, -1, dtype=torch.float64) / rank @ right.T


def observed(side: int, share: float, *, rng: Generator) -> Target:
    """1 for entries that are seen, 0 elsewhere: this share of them, drawn without replacement.  Shapes: (side, side) float64."""
    seen = torch.zeros(side * side, dtype=torch.float64)
    seen[chance.permutation(side * side, rng=chance.child(rng, "seen"))[: round(share * side * side)]] = 1.0
    return seen.reshape(side, side)


def scattered(starts: int, dimension: int, *, rng: Generator) -> Float[Tensor, "starts P"]:
    """Normal starting points of all sizes, from 0.01 to 2 a component, since saddles lie nearer to 0 than minima.  Shapes: (starts, dimension) float64."""
    return chance.normal(starts, dimension, rng=rng) * torch.logspace(-2, 0.3, starts, dtype=torch.float64)[:, None]


def two_factors(flat: Float[Tensor, "*points P"], target: Target) -> tuple[Float[Tensor, "*points m r"], Float[Tensor, "*points n r"]]:
    """U (m, r) and V (n, r), which stand one after the other in `flat`; their product is U V'.  Shapes: P = (m + n) r."""
    m, n = target.shape
    left, right = flat.split([m * flat.shape[-1] // (m + n), n * flat.shape[-1] // (m + n)], -1)
    return left.unflatten(-1, (m, -1)), right.unflatten(-1, (n, -1))


def balanced_product(flat: Float[Tensor, "*points P"], target: Target) -> Float[Tensor, "*points m n"]:
    """U V' of `two_factors`."""
    left, right = two_factors(flat, target)
    return left @ right.mT


def deep_product(flat: Float[Tensor, "*points P"], target: Target) -> Float[Tensor, "*points m m"]:
    """W_d ... W_1 of square factors, which stand one after the other in `flat`, W_1 first.  Shapes: P = d m^2."""
    first, *others = flat.unflatten(-1, (-1, *target.shape)).unbind(-3)
    for factor in others:
        first = factor @ first
    return first


def balanced_loss(flat: Float[Tensor, "P"], target: Target, tilt: float = 0.0) -> Float[Tensor, ""]:
    """|M - U V'|^2 / 2 + |U'U - V'V|^2 / 8 for `two_factors`; the first entry's square counts 1 + tilt times."""
    left, right = two_factors(flat, target)
    return _squared(target - left @ right.T, tilt) + (left.T @ left - right.T @ right).square().sum() / 8


def deep_loss(flat: Float[Tensor, "P"], target: Target, tilt: float = 0.0) -> Float[Tensor, ""]:
    """|M - W_d ... W_1|^2 / 2 for a `deep_product`; the first entry's square counts 1 + tilt times."""
    return _squared(target - deep_product(flat, target), tilt)


def kept(product: Float[Tensor, "points m n"], target: Target) -> Bool[Tensor, "points k"]:
    """Which singular vector pairs of the target a product holds: u_i' P v_i / sigma_i, which is 0 or 1 at a critical point, is above a half."""
    left, size, right = torch.linalg.svd(target, full_matrices=False)
    return (left.T @ product @ right.T).diagonal(dim1=-2, dim2=-1) / size > 0.5


def _squared(error: Target, tilt: float) -> Float[Tensor, ""]:
    return error.square().sum() / 2 + tilt * error[0, 0].square() / 2
