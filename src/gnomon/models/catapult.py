"""The two-layer linear network of the catapult, trained above its limit of stability, for many networks at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput


def two_layer_curvatures(width: int, *, ratio: float, factor: float = 1.0, steps: int, networks: int, rng: Generator) -> Float[Tensor, "networks"]:
    """Train f = v . u / sqrt(n) on L = f^2 / 2 from normal weights with lr = factor x 2 ratio / lambda_0, and take lambda ratio / lambda_0 at the end.

    lambda = (|u|^2 + |v|^2) / n;   u <- u - lr f v / sqrt(n),   v <- v - lr f u / sqrt(n)

    What is returned is lambda in the unit of the limit 2 / lr of the learning rate without `factor`; infinite for a network that diverged.
    Shapes: (networks,).   Units: none.   Cost: 4 products of (networks, width) a step.   Raises: InvalidInput for numbers that are not positive.
    Source: Lewkowycz et al. 2020, section 2 (the model).
    """
    if min(width, ratio, factor, steps, networks) <= 0:
        raise InvalidInput(f"width, ratio, factor, steps and networks must be above 0, not {width}, {ratio}, {factor}, {steps} and {networks}.")
    u, v = chance.normal(2, networks, width, rng=rng)
    first = (u.square().sum(1) + v.square().sum(1)) / width
    lr = factor * 2 * ratio / first
    for _ in range(steps):
        pull = (lr * (u * v).sum(1) / width)[:, None]
        u, v = u - pull * v, v - pull * u
    ends = (u.square().sum(1) + v.square().sum(1)) / width / first * ratio
    return torch.where(ends.isfinite(), ends, torch.inf)
