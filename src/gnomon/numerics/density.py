"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy import stats
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.checkpoint import Checkpoint, State
from gnomon.numerics.lanczos import Basis, Product


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """A smoothed spectral density; unpacks into (grid, samples).

    Shapes: `grid` (points,), `samples` (probes, points), the density of each probe, with integral 1, `nodes` and `weights` (probes, steps): the quadrature of each probe,
    padded with weight 0.  `width` is the standard deviation of the smoothing.
    """

    grid: Float64[Tensor, "points"]
    samples: Float64[Tensor, "probes points"]
    width: float
    nodes: Float64[Tensor, "probes steps"]
    weights: Float64[Tensor, "probes steps"]
    dimension: int

    def __iter__(self) -> Iterator[Tensor]:
        yield self.grid
        yield self.samples

    def moment(self, order: int) -> Float64[Tensor, "probes"]:
        """Each probe's unbiased estimate of tr(A^order) / P, for order < 2 steps.  Shapes: (probes,)."""
        return (self.weights * self.nodes**order).sum(1)

    @property
    def error(self) -> Float64[Tensor, "points"]:
        """The standard error of the mean density.

        For a uniform unit vector v in P dimensions Var(sum_i v_i^2 f_i) = 2 / (P + 2) (mean f^2 - (mean f)^2), and the same quadrature gives mean f^2:
        steadier than the spread of a few probes, which is that of a chi-square with one degree of freedom at an isolated eigenvalue.
        Shapes: (points,).
        """
        mean = self.samples.mean(0)
        square = (self._bumps() ** 2 * self.weights).sum((1, 2)) / len(self.weights)
        return (2 * (square - mean**2).clamp_min(0.0) / ((self.dimension + 2) * len(self.weights))).sqrt()

    def band(self, level: float = 0.95) -> tuple[Float64[Tensor, "points"], Float64[Tensor, "points"]]:
        """The interval of the mean density: it is near a chi-square with nu = 2 mean^2 / error^2 degrees of freedom.  Shapes: (points,), (points,)."""
        mean, error = self.samples.mean(0).numpy(), self.error.numpy()
        exact = error <= 1e-12 * mean
        degrees = np.maximum(2 * (mean / np.where(exact, mean + 1e-300, error)) ** 2, 1e-3)
        low, high = (np.where(exact, mean, degrees * mean / np.maximum(stats.chi2.ppf(q, degrees), 1e-300)) for q in (0.5 + level / 2, 0.5 - level / 2))
        return torch.from_numpy(low), torch.from_numpy(high)

    def logarithmic(self, points: int = 160, decades: float = 6.0) -> Density:
        """The density of ln(lambda) over the positive eigenvalues down to so many decades below the largest, from the same quadrature; its integral is their share.

        Shapes: grid (points,), the logarithms of the eigenvalues.   Raises: InvalidInput where no node is positive.
        """
        largest = float(self.nodes.max())
        if largest <= 0:
            raise InvalidInput("No eigenvalue seen is positive, so there is no logarithmic axis for them: take a linear one.")
        floor = math.log(largest) - decades * math.log(10)
        logs = self.nodes.clamp_min(1e-300).log().clamp_min(floor - 1)
        weights = torch.where((self.nodes > 0) & (logs > floor), self.weights, 0.0)
        width = decades * math.log(10) / self.nodes.shape[1]
        grid = torch.linspace(floor - 3 * width, math.log(largest) + 3 * width, points, dtype=torch.float64)
        samples = (bumps(grid, logs, width) * weights).sum(2).T.contiguous()
        return Density(grid, samples, width, logs, weights, self.dimension)

    def _bumps(self) -> Float64[Tensor, "points probes steps"]:
        return bumps(self.grid, self.nodes, self.width)


def bumps(grid: Float64[Tensor, "points"], nodes: Float64[Tensor, "*nodes"], width: float) -> Float64[Tensor, "points *nodes"]:
    """N(t; theta, width^2) for every point t and node theta.  Shapes: grid (points,), nodes (...) -> (points, ...)."""
    away = (grid.reshape(-1, *[1] * nodes.ndim) - nodes) / width
    return torch.exp(-(away**2) / 2) / (width * math.sqrt(2 * math.pi))


def spectral_density(
    product: Product, dimension: int, *, rng: Generator, probes: int, steps: int, like: Tensor, points: int = 200, width: float | None = None, checkpoint: Checkpoint | None = None,
) -> Density:  # fmt: skip
    """The density of the eigenvalues of a symmetric operator, smoothed by a Gaussian.

    phi(t) = (1/P) sum_i N(t; lambda_i, s^2), estimated for each random start v by sum_m w_m N(t; theta_m, s^2), with theta_m the eigenvalues and w_m the
    squared first entries of the eigenvectors of the tridiagonal matrix of `steps` Lanczos steps from v (fully reorthogonalised).

    Shapes: grid (points,), samples (probes, points); the grid covers every node and three widths beyond.   Units: 1 / those of the operator.
    Error: the spread over probes; besides, the quadrature with m steps is exact for polynomials of degree 2m - 1 alone, so that features of the bulk
    narrower than about range / m are not resolved: the default width is range / steps, at least 1 % of the range.
    `checkpoint` is a file in which the state is kept meanwhile, for another process to go on from, to the same bits; more probes go on from it too.

    Cost: probes x steps products; steps + 1 vectors of memory.
    Raises: InvalidInput for no probe or no step, or a checkpoint of something else; CannotWrite for a full disk.
    Source: Ghorbani, Krishnan & Xiao 2019; Ubaru, Chen & Saad 2017.
    """
    if probes < 1 or steps < 1:
        raise InvalidInput(f"A density takes at least one probe and one step, not {probes} and {steps}.")
    steps = min(steps, dimension)
    nodes, weights = torch.zeros(probes, steps, dtype=torch.float64), torch.zeros(probes, steps, dtype=torch.float64)
    saved = (checkpoint.load() if checkpoint else None) or {}
    done = len(saved.get("nodes", ()))
    if done:
        nodes[:done], weights[:done] = saved["nodes"][:probes], saved["weights"][:probes]
    for index in range(done, probes):
        child = chance.child(rng, "probe", index)

        def keep(basis: Basis | None, past: int = index) -> None:
            if checkpoint is not None:
                checkpoint.save(lambda: {"nodes": nodes[:past], "weights": weights[:past], **(basis.state() if basis else {})}, now=basis is None)

        theta, weight = quadrature(product, dimension, steps=steps, rng=child, like=like, keep=keep, state=saved if index == done and "matrix" in saved else None)
        nodes[index, : len(theta)], weights[index, : len(theta)] = theta, weight
        nodes[index, len(theta) :] = theta[0]
        keep(None, index + 1)
    low, high = float(nodes.min()), float(nodes.max())
    reach = high - low or max(abs(low), 1e-12)
    s = width or max(reach / steps, 0.01 * reach)
    grid = torch.linspace(low - 3 * s, high + 3 * s, points, dtype=torch.float64)
    samples = (bumps(grid, nodes, s) * weights).sum(2).T.contiguous()
    return Density(grid, samples, s, nodes, weights, dimension)


def quadrature(
    product: Product, dimension: int, *, steps: int, rng: Generator, like: Tensor, start: Float[Tensor, "P"] | None = None,
    keep: Callable[[Basis], None] | None = None, state: State | None = None,
) -> tuple[Float64[Tensor, "m"], Float64[Tensor, "m"]]:  # fmt: skip
    """Nodes and weights of the Gauss quadrature of v^T f(A) v for the unit vector v along `start`, or a random one, ascending; fewer where v spans an invariant subspace.

    `keep` is called with the basis before each product; `state` is one that was kept.

    Shapes: (m,), (m,), m <= steps; weights sum to 1.   Cost: m products.   Source: Golub & Welsch 1969.
    """
    basis = Basis(product, dimension, steps, like, rng)
    if state is None:
        basis.begin(chance.normal(dimension, rng=rng, like=like) if start is None else start)
    else:
        basis.restore(state)
    while basis.filled < steps and not (basis.filled and basis.beta == 0):
        if keep is not None and basis.filled:
            keep(basis)
        basis.step()
    nodes, rows = torch.linalg.eigh(basis.matrix[: basis.filled, : basis.filled])
    return nodes, rows[0] ** 2
