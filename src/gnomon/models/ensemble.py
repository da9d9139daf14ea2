"""An ensemble of fully connected networks at initialisation, drawn layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, unknown

BATCH_NUMBERS = 2**22
"""Weights that are held at once; a constant, since what is drawn depends on it."""


def draw_preactivations(
    activation: Callable[[Tensor], Tensor], inputs: Tensor, *, depth: int, width: int, members: int, weight_variance: float, bias_variance: float = 0.0,
    law: Literal["normal", "orthogonal"] = "normal", rng: Generator,
) -> Tensor:  # fmt: skip
    """The pre-activations of every layer of `members` independent networks on the same inputs.

    z^(l+1) = W s(z^l) + b,  W_ij ~ N(0, C_W / fan_in),  b_i ~ N(0, C_b);  z^1 = W x + b.  `orthogonal` weights are sqrt(C_W) times a uniformly drawn
    orthogonal matrix.

    Shapes: inputs (examples, features) -> (depth, members, examples, width), float64.   `weight_variance` is C_W, `bias_variance` C_b.
    Cost: depth * members * width^2 normal numbers, at most BATCH_NUMBERS of them held at once.
    Raises: InvalidInput for an unknown law, sizes below 1, or orthogonal weights on inputs of another size than the width.
    """
    if law not in ("normal", "orthogonal"):
        raise unknown("law of weights", law, ("normal", "orthogonal"))
    if inputs.ndim != 2 or min(depth, width, members) < 1:
        raise InvalidInput(f"depth, width and members must be at least 1, and inputs of shape (examples, features), not {depth}, {width}, {members} and {tuple(inputs.shape)}.")
    features = inputs.shape[1]
    if law == "orthogonal" and features != width:
        raise InvalidInput(f"Orthogonal weights need as many features as units: {features} and {width} differ.")
    most = max(BATCH_NUMBERS // (width * max(width, features)), 1)
    made = torch.empty(depth, members, len(inputs), width, dtype=torch.float64)
    for layer in range(depth):
        stream, biases = chance.child(rng, "weights", layer), chance.child(rng, "biases", layer)
        for start in range(0, members, most):
            part = slice(start, min(start + most, members))
            count = part.stop - start
            read = inputs.to(torch.float64).expand(count, -1, -1) if layer == 0 else activation(made[layer - 1, part])
            weights = chance.normal(count, width, read.shape[-1], rng=stream)
            weights = _orthogonal(weights) * math.sqrt(weight_variance) if law == "orthogonal" else weights * math.sqrt(weight_variance / read.shape[-1])
            torch.bmm(read, weights.mT, out=made[layer, part])
            if bias_variance:
                made[layer, part] += chance.normal(count, 1, width, rng=biases) * math.sqrt(bias_variance)
    return made


def _orthogonal(gaussian: Tensor) -> Tensor:
    """Uniformly distributed orthogonal matrices from normal ones: Q of QR, its columns' signs those of R's diagonal (Mezzadri 2007)."""
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
