"""Spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import dataclasses

import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.lanczos import Krylov, Product

RELATIVE_WIDTH = 0.01
"""Standard deviation of the smoothing Gaussian, as a part of the range of Ritz values."""


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """Shapes: grid (points,); samples (probes, points), one smoothed density a probe; width the smoothing's standard deviation."""

    grid: Tensor
    samples: Tensor
    width: float


def quadrature(product: Product, dimension: int, *, rng: Generator, steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of the spectral measure of a random unit vector: nodes and weights, sum 1.

    Shapes: nodes (m,), weights (m,), m <= steps, float64.   Cost: m products, m vectors of memory.
    """
    size = min(steps, dimension)
    krylov = Krylov(product, dimension, size, rng=rng, like=like)
    filled = size
    for j in range(size):
        krylov.step(j)
        if krylov.beta == 0.0:
            filled = j + 1
            break
    nodes, vectors = torch.linalg.eigh(krylov.projected[:filled, :filled])
    return nodes, vectors[0] ** 2


def spectral_density(product: Product, dimension: int, *, rng: Generator, probes: int, steps: int, like: Tensor, points: int = 200) -> Density:
    """The density of eigenvalues, smoothed by a Gaussian, one estimate a probe.

    phi(t) = sum_m w_m N(t; theta_m, width^2), with the quadrature nodes and weights of a random Gaussian start.

    Shapes: as `Density`.   Units: 1 / eigenvalue.   Error: the spread of the samples; the quadrature itself is exact for polynomials of degree 2 steps - 1.
    Cost: probes x steps products, `steps` vectors of memory.   Raises: InvalidInput for no probe or no step.
    Source: Ghorbani et al. 2019, section 3.
    """
    if probes < 1 or steps < 1:
        raise InvalidInput(f"At least one probe and one step are needed, not {probes} and {steps}.")
    rules = [quadrature(product, dimension, rng=chance.child(rng, "probe", i), steps=steps, like=like) for i in range(probes)]
    low, high = min(float(nodes[0]) for nodes, _ in rules), max(float(nodes[-1]) for nodes, _ in rules)
    width = max(RELATIVE_WIDTH * (high - low), 1e-12 * max(abs(low), abs(high)), 1e-300)
    grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
    samples = [(weights * torch.exp(-((grid[:, None] - nodes) ** 2) / (2 * width**2))).sum(1) / (width * (2 * torch.pi) ** 0.5) for nodes, weights in rules]
    return Density(grid, torch.stack(samples), width)
