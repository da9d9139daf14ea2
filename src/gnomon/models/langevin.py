"""Noisy descent on a potential for many chains at once: the Euler scheme of Langevin's equation, which SGLD is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array
from gnomon.models.factor_descent import check_state
from gnomon.numerics.potentials import Potential, traced_slope


class LangevinChains:
    """x <- x - lr (grad U + noise) + sqrt(2 lr T) xi for many chains; `noise` is normal with the standard deviation `gradient_noise` a coordinate.

    Shapes: start (chains, d); `points` (chains, d).   Units: lr in 1 / curvature, temperature in energy.
    `state()` goes through torch.save, and `resume` puts it back: runs after it are the same to the bit as without a break between runs.
    Assumes: a potential with a gradient, that makes no decision by the values of its points.   Cost: a gradient of all chains a step.   Raises: InvalidInput for impossible numbers.
    """

    def __init__(self, potential: Potential, start: Float[Tensor, "chains d"], *, lr: float, temperature: float, gradient_noise: float = 0.0, rng: Generator) -> None:
        if start.ndim != 2 or not (lr > 0 and temperature >= 0 and gradient_noise >= 0):
            raise InvalidInput(
                f"Chains take starts (chains, d), lr above 0, temperature and gradient_noise of at least 0; {tuple(start.shape)}, {lr}, {temperature}, {gradient_noise} came."
            )
        self.points, self.lr, self.rng = start.clone(), lr, rng
        self._slope = traced_slope(potential, self.points)
        self.spread = (2 * lr * temperature + (lr * gradient_noise) ** 2) ** 0.5

    def run(self, steps: int, each: Callable[[Float[Tensor, "chains d"]], None] | None = None) -> None:
        """Make so many steps; `each` sees the points after every one."""
        block = 64
        for done in range(0, steps, block):
            count = min(block, steps - done)
            for kick in chance.normal(count, *self.points.shape, rng=self.rng, like=self.points).mul_(self.spread):
                self.points.add_(self._slope(self.points), alpha=-self.lr).add_(kick)
                if each is not None:
                    each(self.points)

    def state(self) -> dict[str, Tensor]:
        """A copy of all that chains that were cut need to go on: the points and the state of chance."""
        return {"points": self.points.clone(), "rng": self.rng.get_state()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was taken.  Raises: InvalidInput where it is that of other chains."""
        check_state(state, self.state())
        self.points, self.rng = state["points"].to(self.points, copy=True), Generator()
        self.rng.set_state(state["rng"])

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


def occupation(
    potential: Potential, edges: Float64[Array, "k"], *, lr: float, temperature: float, time: float, chains: int, wells: tuple[float, ...], spread: float, rng: Generator
) -> Float64[Array, "cells"]:
    """The share of time that chains in one dimension spend in each cell between edges, of that spent in all; they begin about the wells in equal parts.

    The first half of the time is left out; the second is looked at ten times.
    Shapes: (cells + 1,) -> (cells,).   Units: none.   Cost: time / lr steps.
    """
    start = chance.normal(chains, 1, rng=rng) * spread + torch.tensor(wells, dtype=torch.float64)[torch.arange(chains) % len(wells)][:, None]
    made, looks, seen = LangevinChains(potential, start, lr=lr, temperature=temperature, rng=rng), 10, np.zeros(len(edges) - 1)
    made.run(round(time / 2 / lr))
    for _ in range(looks):
        made.run(round(time / 2 / lr / looks))
        seen += np.histogram(made.points[:, 0].numpy(), edges)[0]
    return np.asarray(seen / seen.sum())


def mean_square(potential: Potential, *, lr: float, temperature: float, gradient_noise: float, time: float, chains: int, spread: float, rng: Generator) -> float:
    """The mean of x^2 over chains in one dimension and over `time`, after half as long to settle from normal points of this spread.   Cost: 1.5 time / lr steps."""
    made = LangevinChains(potential, spread * chance.normal(chains, 1, rng=rng), lr=lr, temperature=temperature, gradient_noise=gradient_noise, rng=rng)
    made.run(round(time / 2 / lr))
    squares: list[float] = []
    made.run(round(time / lr), each=lambda points: squares.append(float(points.square().mean())))
    return float(np.mean(squares))
