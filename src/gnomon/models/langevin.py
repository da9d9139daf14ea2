"""Noisy descent on a potential for many chains at once: the Euler scheme of Langevin's equation, which SGLD is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.potentials import Potential, force


class LangevinChains:
    """x <- x - lr (grad U + noise) + sqrt(2 lr T) xi for many chains; `noise` is normal with the standard deviation `gradient_noise` a coordinate.

    Shapes: start (chains, d); `points` (chains, d).   Units: lr in 1 / curvature, temperature in energy.
    Assumes: a potential with a gradient.   Cost: a gradient of all chains a step.   Raises: InvalidInput for impossible numbers.
    """

    def __init__(self, potential: Potential, start: Float[Tensor, "chains d"], *, lr: float, temperature: float, gradient_noise: float = 0.0, rng: Generator) -> None:
        if start.ndim != 2 or not (lr > 0 and temperature >= 0 and gradient_noise >= 0):
            raise InvalidInput(
                f"Chains take starts (chains, d), lr above 0, temperature and gradient_noise of at least 0; {tuple(start.shape)}, {lr}, {temperature}, {gradient_noise} came."
            )
        self.potential, self.points, self.lr, self.rng = potential, start.clone(), lr, rng
        self.spread = (2 * lr * temperature + (lr * gradient_noise) ** 2) ** 0.5

    def run(self, steps: int, each: Callable[[Float[Tensor, "chains d"]], None] | None = None) -> None:
        """Make so many steps; `each` sees the points after every one."""
        block = 64
        for done in range(0, steps, block):
            count = min(block, steps - done)
            for kick in chance.normal(count, *self.points.shape, rng=self.rng, like=self.points).mul_(self.spread):
                self.points += force(self.potential, self.points).mul_(self.lr).add_(kick)
                if each is not None:
                    each(self.points)

    def arrivals(self, steps: int, *, home: Float[Tensor, "d"], arrived: Callable[[Float[Tensor, "chains d"]], Bool[Tensor, "chains"]]) -> int:
        """Make so many steps, put each chain back to `home` as it arrives, and count: arrivals / (chains x steps x lr) is one over the mean passage time."""
        count = 0

        def see(points: Float[Tensor, "chains d"]) -> None:
            nonlocal count
            there = arrived(points)
            found = int(there.sum())
            if found:
                count += found
                points[there] = home.to(points)

        self.run(steps, see)
        return count


def boltzmann_start(chains: int, dimension: int, *, at: float, spread: float, rng: Generator) -> Float[Tensor, "chains d"]:
    """Normal points about `at` in the first coordinate and 0 in the others.  Shapes: (chains, dimension) float64."""
    start = chance.normal(chains, dimension, rng=rng) * spread
    start[:, 0] += at
    return start


def histogram(points: Float[Tensor, "chains"], edges: Float[Tensor, "k"]) -> Float[Tensor, "cells"]:
    """The share of points in each cell between edges; those outside are in none.  Shapes: (chains,), (cells + 1,) -> (cells,)."""
    cell = torch.bucketize(points, edges)
    return torch.bincount(cell, minlength=len(edges) + 1)[1 : len(edges)].to(points) / len(points)
