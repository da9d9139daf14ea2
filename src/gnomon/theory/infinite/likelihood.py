"""How likely data are under the Gaussian process of a network of infinite width, and which way its variances should move."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.theory.infinite.inference import matrix_of, targets_of
from gnomon.theory.infinite.kernel import Kernel
from gnomon.theory.infinite.solve import check_finite, cholesky, too_large

STEP = 1e-3
"""Step of the differences, relative to a variance (absolute for a bias variance below 1e-3 of the weights')."""
HELD = 10
"""Matrices of float64 that are held at once."""


class Likelihood(NamedTuple):
    """The log of the marginal likelihood, and its derivatives by C_W and C_b (of all layers at once) and by the variance of the noise."""

    value: float
    weight_variance: float
    bias_variance: float
    noise: float


def log_marginal_likelihood(kernel: Kernel, x: Tensor, y: Tensor, *, noise: float, kind: str = "nngp", memory: int = 2**32) -> Likelihood:
    """The log of the probability density of the targets under the Gaussian process of a network, with its gradient by the variances of weights, biases and noise.

    log p(y) = -1/2 y^T A^{-1} y - 1/2 log |A| - n/2 log 2 pi,  A = K + s^2 I, summed over outputs;   d log p = 1/2 tr((a a^T - A^{-1}) dA),  a = A^{-1} y.
    Every layer's C_W moves by the same amount, and every bias's C_b: where all layers have the same, this is the derivative by it.

    Shapes: y (n,) or (n, outputs).   Units: nats.   Error: rounding; dK by differences of the fourth order, about 1e-9 of itself in float64 (give data in float64).
    Assumes: Gaussian noise, independent outputs.   Cost: nine kernels, and n^3.
    Raises: NotPositiveDefinite, with the eigenvalue; NotEnoughMemory where n examples are too many; InvalidInput for a negative noise.   Source: Rasmussen & Williams 2006, section 5.4.1.
    """
    if not (noise >= 0 and math.isfinite(noise)):
        raise InvalidInput(f"noise is a variance and must be finite and at least 0, not {noise}.")
    needed = 8 * HELD * len(x) ** 2
    if needed > memory:
        raise too_large(len(x), needed, memory, "fewer of them (the likelihood of some thousands settles the variances), or more `memory`: there is no way of doing this from disk")
    targets = targets_of(x, y)
    own = matrix_of(kernel, x, None, kind)
    check_finite(own)
    factor = cholesky(own.clone(), noise)
    inverse = torch.cholesky_inverse(factor)
    solved = inverse @ targets
    outputs = targets.shape[1]
    half_log = float(factor.diagonal().log().sum())
    value = -0.5 * float((targets * solved).sum()) - outputs * (half_log + len(x) / 2 * math.log(2 * math.pi))
    inner = (solved @ solved.T - outputs * inverse) / 2
    by = [float((inner * part).sum()) for part in _derivatives(kernel, x, kind)]
    return Likelihood(value, by[0], by[1], float(inner.diagonal().sum()))


def _derivatives(kernel: Kernel, x: Tensor, kind: str) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "n n"]]:
    """dK/dC_W and dK/dC_b, central differences of the fourth order; forward ones by C_b where a step back would make a variance negative."""
    found = kernel.variances(x)
    weights, biases = {name: c_w for name, (c_w, _, _) in found.items()}, {name: c_b for name, (_, c_b, _) in found.items()}
    has_bias = {name for name in biases if getattr(kernel.module.get_submodule(name), "bias", None) is not None}

    def at(weight: float, bias: float) -> Float[Tensor, "n n"]:
        moved = {name: value + weight for name, value in weights.items()}, {name: value + bias * (name in has_bias) for name, value in biases.items()}
        return matrix_of(Kernel(kernel.module, dataclasses.replace(kernel.options, weight_variance=moved[0], bias_variance=moved[1], scheme=None)), x, None, kind)

    h = STEP * min(weights.values())
    by_weight = (8 * (at(h, 0) - at(-h, 0)) - (at(2 * h, 0) - at(-2 * h, 0))) / (12 * h)
    if not has_bias:
        return by_weight, torch.zeros_like(by_weight)
    least = min(biases[name] for name in has_bias)
    if least > STEP * h:
        h = min(h, least / 3)
        return by_weight, (8 * (at(0, h) - at(0, -h)) - (at(0, 2 * h) - at(0, -2 * h))) / (12 * h)
    parts = zip((-25, 48, -36, 16, -3), range(5), strict=True)
    return by_weight, torch.stack([factor * at(0, k * h) for factor, k in parts]).sum(0) / (12 * h)
