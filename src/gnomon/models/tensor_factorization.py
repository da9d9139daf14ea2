"""Tensors as sums of rank-one components under gradient descent, for many starts at once; and predictors whose coefficients are such a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.models.factor_descent import FactorDescent, check_slope, fitted_exponent, moments, warn_above
from gnomon.models.factor_descent import squared_slope as squared_slope

Vectors = Sequence[Float[Tensor, "starts r _"]]
Dense = Float[Tensor, "starts *modes"]


def _letters(order: int) -> str:
    return "abcdefghijklmnop"[:order]


def dense(vectors: Vectors) -> Dense:
    """sum_r w_r^1 x ... x w_r^N.  Shapes: N tensors (starts, r, d_n) -> (starts, d_1, ..., d_N)."""
    letters = _letters(len(vectors))
    return torch.einsum(",".join(f"zr{letter}" for letter in letters) + "->z" + letters, *vectors)


def normal_components(modes: Sequence[int], *, components: int, size: float, starts: int, skew: float = 1.0, rng: Generator) -> list[Float[Tensor, "starts r _"]]:
    """Normal vectors, those of a component scaled to one norm, so that the components' norms are about `size`; then the first vector times `skew`, the last over it.

    Shapes: modes (d_1, ..., d_N) -> N tensors (starts, components, d_n), float64.
    Raises: InvalidInput for an order below 2 or above 16, and numbers that are not positive.
    """
    if not 2 <= len(modes) <= 16 or min(*modes, components, starts) < 1 or min(size, skew) <= 0:
        raise InvalidInput(f"A tensor factorisation takes 2 to 16 modes, and components, starts and a size above 0, not {tuple(modes)}, {components}, {starts} and {size:g}.")
    drawn = [chance.normal(starts, components, d, rng=chance.child(rng, "mode", n)) * (size ** (1 / len(modes)) / d**0.5) for n, d in enumerate(modes)]
    norms = torch.stack([part.norm(dim=-1, keepdim=True) for part in drawn])
    first, *middle, last = [part / norm * norms.log().mean(0).exp() for part, norm in zip(drawn, norms, strict=True)]
    return [first * skew, *middle, last / skew]


def component_norms(vectors: Vectors) -> Float[Tensor, "starts r"]:
    """|w_r^1| ... |w_r^N|, the norm of each component."""
    return torch.stack([part.norm(dim=-1) for part in vectors]).prod(0)


def component_pulls(vectors: Vectors, gradient: Dense) -> Float[Tensor, "starts r"]:
    """<-G, w_r / |w_r|>: how much each component's direction lowers the loss whose gradient in the tensor is G."""
    letters = _letters(len(vectors))
    directions = [part / part.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny) for part in vectors]
    return -torch.einsum("z" + letters + "," + ",".join(f"zr{letter}" for letter in letters) + "->zr", gradient, *directions)


def descent(vectors: Vectors, slope: Callable[[Dense], Dense], *, lr: float) -> FactorDescent:
    """Gradient descent on all vectors of a loss of their tensor, to be run.

    w_r^n <- w_r^n - lr <G, prod_{m != n} w_r^m>,   G = dL / d(tensor) = slope(tensor)

    For the squared distance from a tensor, a step at which no minimum can be stable is said before the run, with the limit.
    Cost: N + 1 contractions of the dense tensor with the components a step.
    Raises: InvalidInput as `FactorDescent`, and for vectors that do not fit or a slope of another shape.
    """
    if not 2 <= len(vectors) <= 16 or any(part.ndim != 3 or part.shape[:2] != vectors[0].shape[:2] for part in vectors):
        raise InvalidInput(f"Vectors are 2 to 16 tensors (starts, components, d_n), alike but for d_n; {[tuple(part.shape) for part in vectors]} came.")
    check_slope(slope, dense(vectors))
    made = FactorDescent(vectors, lambda parts: _gradients(parts, slope(dense(parts))), lr=lr)
    warn_above(slope, len(vectors), lr=lr, components=vectors[0].shape[1])
    return made


def descend(vectors: Vectors, slope: Callable[[Dense], Dense], *, lr: float, records: Sequence[int]) -> list[list[Float[Tensor, "starts r _"]]]:
    """The vectors after these numbers of steps of `descent`.  A start that diverges is kept as it was before the step that a warning names.

    Cost: as `descent`.   Raises: InvalidInput as `descent`, and for records that fall.
    """
    return [[part.clone() for part in factors] for factors in descent(vectors, slope, lr=lr).recorded(records)]


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


def completion(modes: Sequence[int], *, rank: int, share: float, rng: Generator) -> Callable[[Dense], Dense]:
    """The slope of the completion of a sum of `rank` normal components of norm 1, of whose entries this share is seen.  Raises: as `normal_components`."""
    parts = normal_components(modes, components=rank, size=1.0, starts=1, rng=chance.child(rng, "tensor"))
    target = dense([part / part.norm(dim=-1, keepdim=True) for part in parts])[0]
    seen = torch.zeros(target.numel(), dtype=torch.float64)
    seen[chance.permutation(target.numel(), rng=chance.child(rng, "seen"))[: round(share * target.numel())]] = 1.0
    return squared_slope(target, seen.reshape(target.shape))


def growth_exponent(start: Vectors, slope: Callable[[Dense], Dense], *, lr: float, steps: int, times: int = 20) -> float:
    """The slope of log(velocity / pull) of components against the log of their norms, over all of them at `times` moments of a descent.

    Velocities are central differences of the norms over two steps; components that are pulled less than a tenth of the most pulled are left out.
    Raises: as `descend`.
    """
    path = descend(start, slope, lr=lr, records=moments(steps, times))
    norms, pulls = [component_norms(vectors) for vectors in path], [component_pulls(vectors, slope(dense(vectors))) for vectors in path[1::3]]
    return fitted_exponent(norms, pulls, lr=lr)


def explained_by_rank(bits: Float[Tensor, "n modes"], targets: Float[Tensor, "n c"], *, rank: int, lr: float, steps: int, rng: Generator) -> float:
    """The share of the targets' variance that predictors of this tensor rank on binary inputs explain, one for each target, the mean over them.

    f(x) = sum_r prod_n (w_r^n[0] (1 - x_n) + w_r^n[1] x_n): the coefficients of f over all 2^modes inputs are a tensor of that rank.  Adam on the squared error.

    Shapes: (n, modes) of 0 and 1, (n, c).   Cost: about 4 c rank n modes multiplications a step.   Raises: InvalidInput for inputs that are not binary.
    """
    if not bool(((bits == 0) | (bits == 1)).all()) or min(rank, steps) < 1 or lr <= 0:
        raise InvalidInput(f"Predictors take inputs of 0 and 1, and rank, steps and lr above 0, not {rank}, {steps} and {lr:g}.")
    centred = (targets - targets.mean(0)).T
    vectors = 1 + 0.1 * chance.normal(2, len(centred), rank, 1, bits.shape[1], rng=rng, like=bits)
    vectors[..., 0] *= 0.1
    vectors.requires_grad_()
    adam = torch.optim.Adam([vectors], lr=lr)
    for _ in range(steps):
        made = (vectors[0] + bits * (vectors[1] - vectors[0])).prod(-1).sum(1)
        left = (centred - made).square().mean(1)
        adam.zero_grad()
        left.sum().backward()
        adam.step()
    return float(1 - (left / centred.square().mean(1)).mean().detach())
