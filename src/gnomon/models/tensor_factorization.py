"""Tensors as sums of rank-one components under gradient descent, for many starts at once; and predictors whose coefficients are such a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput

Vectors = Sequence[Float[Tensor, "starts r _"]]
Dense = Float[Tensor, "starts *modes"]


def _letters(order: int) -> str:
    return "abcdefghijklmnop"[:order]


def dense(vectors: Vectors) -> Dense:
    """sum_r w_r^1 x ... x w_r^N.  Shapes: N tensors (starts, r, d_n) -> (starts, d_1, ..., d_N)."""
    letters = _letters(len(vectors))
    return torch.einsum(",".join(f"zr{letter}" for letter in letters) + "->z" + letters, *vectors)


def normal_components(modes: Sequence[int], *, components: int, size: float, starts: int, balanced: bool = True, rng: Generator) -> list[Float[Tensor, "starts r _"]]:
    """Normal vectors whose components have the norm `size` on average; with `balanced` all vectors of a component have one norm.

    Shapes: modes (d_1, ..., d_N) -> N tensors (starts, components, d_n), float64.
    Raises: InvalidInput for an order below 2 or above 16, and numbers that are not positive.
    """
    if not 2 <= len(modes) <= 16 or min(*modes, components, starts) < 1 or size <= 0:
        raise InvalidInput(f"A tensor factorisation takes 2 to 16 modes, and components, starts and a size above 0, not {tuple(modes)}, {components}, {starts} and {size:g}.")
    drawn = [chance.normal(starts, components, d, rng=chance.child(rng, "mode", n)) * (size ** (1 / len(modes)) / d**0.5) for n, d in enumerate(modes)]
    if not balanced:
        return drawn
    norms = torch.stack([part.norm(dim=-1, keepdim=True) for part in drawn])
    return [part / norm * norms.log().mean(0).exp() for part, norm in zip(drawn, norms, strict=True)]


def component_norms(vectors: Vectors) -> Float[Tensor, "starts r"]:
    """|w_r^1| ... |w_r^N|, the norm of each component."""
    return torch.stack([part.norm(dim=-1) for part in vectors]).prod(0)


def component_pulls(vectors: Vectors, gradient: Dense) -> Float[Tensor, "starts r"]:
    """<-G, w_r / |w_r|>: how much each component's direction lowers the loss whose gradient in the tensor is G."""
    letters = _letters(len(vectors))
    directions = [part / part.norm(dim=-1, keepdim=True).clamp_min(1e-300) for part in vectors]
    return -torch.einsum("z" + letters + "," + ",".join(f"zr{letter}" for letter in letters) + "->zr", gradient, *directions)


def descend(vectors: Vectors, slope: Callable[[Dense], Dense], *, lr: float, records: Sequence[int]) -> list[list[Float[Tensor, "starts r _"]]]:
    """Gradient descent on all vectors of a loss of their tensor; the vectors after these numbers of steps.

    w_r^n <- w_r^n - lr <G, prod_{m != n} w_r^m>,   G = dL / d(tensor) = slope(tensor)

    Cost: N + 1 contractions of the dense tensor with the components a step.
    Raises: InvalidInput for a step that is not positive or records that fall, and, with the step, where the tensor overflows.
    """
    if lr <= 0 or not records or records[0] < 0 or any(b < a for a, b in zip(records[:-1], records[1:], strict=True)):
        raise InvalidInput(f"A descent needs lr above 0 and records that do not fall, not {lr:g} and {list(records)}.")
    parts, kept, done = [part.clone() for part in vectors], [], 0
    for record in records:
        for step in range(done, record):
            moves = _gradients(parts, slope(dense(parts)))
            for part, move in zip(parts, moves, strict=True):
                part.sub_(move, alpha=lr)
            if step % 100 == 99 and not bool(torch.isfinite(parts[0]).all()):
                raise InvalidInput(f"The tensor overflowed within {step + 1} steps at lr = {lr:g}: take a smaller one.")
        done = record
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise InvalidInput(f"The tensor overflowed within {done} steps at lr = {lr:g}: take a smaller one.")
        kept.append([part.clone() for part in parts])
    return kept


def _gradients(parts: Vectors, gradient: Dense) -> list[Tensor]:
    """<G, all vectors but the n-th>, for each n: G is contracted from the last mode down, and each remainder with the modes before it."""
    moves: list[Tensor] = []
    left = gradient[:, None]  # (starts, r or 1, d_1, ..., d_n)
    for n in range(len(parts) - 1, -1, -1):
        here = left
        for part in parts[:n]:
            flat = here.flatten(3) if here.ndim > 3 else here
            here = torch.einsum("zrd...,zrd->zr...", flat.expand(-1, part.shape[1], *flat.shape[2:]), part).reshape(here.shape[0], part.shape[1], *here.shape[3:])
        moves.append(here.expand(-1, parts[n].shape[1], -1))
        left = torch.einsum("zr...d,zrd->zr...", left.expand(-1, parts[n].shape[1], *left.shape[2:]), parts[n])
    return moves[::-1]


def squared_slope(target: Float[Tensor, "*modes"], observed: Tensor | float = 1.0) -> Callable[[Dense], Dense]:
    """The gradient of |observed * (W - T)|^2 / 2: observed * (W - T)."""
    return lambda made: observed * (made - target)


def effective_components(norms: Float[Tensor, "*starts r"]) -> Float[Tensor, "*starts"]:
    """exp of the entropy of the norms' shares: between 1 and the number of components."""
    return torch.special.entr(norms / norms.sum(-1, keepdim=True).clamp_min(1e-300)).sum(-1).exp()
