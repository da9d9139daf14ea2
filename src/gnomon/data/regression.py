"""Synthetic least squares: normal inputs of unequal scales and targets with noise."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance


def regression(examples: int, dimension: int, condition: float, *, noise: float = 1.0, rng: Generator) -> tuple[Float64[Tensor, "N d"], Float64[Tensor, "N"]]:
    """Inputs whose second moment X'X / N has eigenvalues from 1 down to 1 / condition, equal ratios apart, in random directions, and y = x . w + noise.

    Shapes: (N, d), (N,).   Units: none; noise in those of y.   Error: the eigenvalues are exact: the inputs are whitened before they are stretched.
    """
    drawn = torch.linalg.qr(chance.normal(examples, dimension, rng=chance.child(rng, "inputs")))[0] * examples**0.5
    turn = torch.linalg.qr(chance.normal(dimension, dimension, rng=chance.child(rng, "directions")))[0]
    scales = torch.logspace(0, -0.5, dimension, base=condition, dtype=torch.float64)
    inputs = drawn * scales @ turn
    return inputs, inputs @ chance.normal(dimension, rng=chance.child(rng, "weights")) + noise * chance.normal(examples, rng=chance.child(rng, "noise"))
