"""Where noisy descent settles: Gibbs' density, and what a finite step makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.potentials import Potential

WELLING_2011 = Source("welling2011")
ZYGALAKIS_2011 = Source("zygalakis2011")
Edges = Sequence[float] | Array
"""Where the cells of a grid end, along one dimension."""


def gibbs_density(potential: Potential, *edges: Edges, temperature: float) -> Reading:
    """The stationary density exp(-U / T) / Z of dX = -grad U dt + sqrt(2 T) dW, as the share of each cell of a grid in one or two dimensions.

    Shapes: `edges` (cells + 1,) a dimension; value (cells,) or (cells, cells), which add up to 1.   Units: none.
    Error: bound, that of 4-point Gauss quadrature in a cell against 3-point; the share outside the grid is left out, and is to be negligible.
    Assumes: U grows fast enough that exp(-U / T) can be normalised.   Cost: 25 evaluations of U a cell and dimension.
    Raises: InvalidInput for edges that do not grow, more than two dimensions or a temperature that is not positive.
    Source: Welling & Teh 2011 (SGLD samples it as the step goes to 0).
    """
    if temperature <= 0:
        raise InvalidInput(f"The temperature must be above 0, not {temperature:g}.")
    grid = grid_of(edges)
    volume = np.diff(grid[0]) if len(grid) == 1 else np.outer(np.diff(grid[0]), np.diff(grid[1]))
    found = []
    for order in (3, 4):
        points, weights = cell_points(grid, order)
        energies = potential(torch.from_numpy(points)).detach().numpy() / temperature
        share = (np.exp(energies.min() - energies) @ weights) * volume
        found.append(share / share.sum())
    return Reading.predicted("gibbs_density", found[1], unit="", error=np.abs(found[1] - found[0]), error_kind="bound", axes=axes_of(grid), source=WELLING_2011)


def sgld_density(potential: Potential, edges: Edges, *, temperature: float, lr: float, gradient_noise: float = 0.0) -> Reading:
    """The stationary density of x <- x - lr U' + sqrt(2 lr T) xi in one dimension to first order in lr, that of U - lr U'^2 / 4 + lr T U'' / 2.

    p = exp(-U / T) / Z (1 + lr (d - <d>)),   d = U'^2 / (4 T) - U'' / 2

    From the modified equation of the Euler scheme, drift -U' - lr U' U'' / 2 + lr T U''' / 2 and noise sqrt(2 T)(1 + lr U'' / 2).  Noise of the gradient of
    standard deviation s raises T by lr s^2 / 2.  Averages are off Gibbs' in proportion to lr: half the step, half the bias.

    Shapes: edges (cells + 1,), value (cells,), which add up to 1.   Units: none.
    Error: truncation, the square of the first-order change, the next order.   Assumes: lr U'' << 1 wherever there is mass.   Cost: as `gibbs_density`, with two derivatives.
    Raises: OutOfScope where the change is as large as the density; as `gibbs_density`.
    Source: Zygalakis 2011 (modified equations of the Euler scheme); the density is derived here.
    """
    if lr <= 0 or gradient_noise < 0:
        raise InvalidInput(f"lr must be above 0 and gradient_noise at least 0, not {lr:g} and {gradient_noise:g}.")
    raised, grid = temperature + lr * gradient_noise**2 / 2, grid_of((edges,))
    gibbs = gibbs_density(potential, edges, temperature=temperature)
    points, weights = cell_points(grid, 4)
    at = torch.from_numpy(points).requires_grad_()
    energies = potential(at)
    (first,) = torch.autograd.grad(energies.sum(), at, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), at, allow_unused=True, materialize_grads=True)
    energy, slope, bend = (part.detach().numpy() for part in (energies, first[..., 0], second[..., 0]))
    density = np.exp((energy.min() - energy) / raised) * weights * np.diff(grid[0])[:, None]
    change = lr * (slope**2 / (4 * raised) - bend / 2)
    density /= density.sum()
    change -= float((density * change).sum())
    size = float((density * np.abs(change)).sum())
    if size > 0.5:
        raise OutOfScope(f"lr = {lr:g} changes the density by {size:.2g} of itself: an expansion in lr says nothing. Take a smaller step.")
    return Reading.predicted(
        "sgld_density", (density * (1 + change)).sum(1), unit="", error=(density * change**2).sum(1) + gibbs.error, error_kind="truncation", axes=axes_of(grid),
        source=ZYGALAKIS_2011, assumes=(f"lr U'' << 1 (lr = {lr:g})",), details={"gibbs": gibbs.value},
    )  # fmt: skip


def sgld_variance(curvature: float, *, temperature: float, lr: float, gradient_noise: float = 0.0) -> Reading:
    """The stationary variance of SGLD in a parabola of curvature h: (2 T + lr s^2) / (h (2 - lr h)), which is T / h (1 + lr h / 2 + lr s^2 / (2 T) + ...).

    Shapes: value ().   Units: parameter^2.   Error: exact.   Assumes: a quadratic potential.   Cost: none.
    Raises: OutOfScope for lr h of 2 and more, where the steps diverge; InvalidInput for numbers that are not positive.
    Source: Welling & Teh 2011 (the steps); the variance is that of the recursion.
    """
    if not (curvature > 0 and temperature >= 0 and lr > 0):
        raise InvalidInput(f"curvature and lr must be above 0, temperature at least 0, not {curvature:g}, {lr:g} and {temperature:g}.")
    if lr * curvature >= 2:
        raise OutOfScope(f"lr = {lr:g} is above the limit of stability, 2 / curvature = {2 / curvature:.4g}: the steps diverge.")
    value = (2 * temperature + lr * gradient_noise**2) / (curvature * (2 - lr * curvature))
    return Reading.predicted("stationary_variance", value, unit="parameter²", source=WELLING_2011, assumes=("a quadratic potential",))


def cell_points(edges: Sequence[Array], order: int) -> tuple[Float64[Array, "*cells points d"], Float64[Array, "points"]]:
    """Gauss points in every cell of a grid and their weights, which add up to the volume of a cell (of the unit square).  Shapes: as returned."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    sides = [(e[:-1, None] + e[1:, None]) / 2 + np.diff(e)[:, None] / 2 * nodes for e in edges]
    if len(sides) == 1:
        return sides[0][..., None], weights / 2
    x, y = sides
    grid = np.stack(np.broadcast_arrays(x[:, None, :, None], y[None, :, None, :]), -1)
    return grid.reshape(len(x), len(y), order * order, 2), np.outer(weights, weights).ravel() / 4


def grid_of(edges: Sequence[Edges]) -> list[Float64[Array, "k"]]:
    """Edges as arrays.   Shapes: (k,) for each of one or two dimensions.   Raises: InvalidInput for edges that do not grow, and for no or more than two dimensions."""
    arrays = [np.asarray(e, dtype=np.float64) for e in edges]
    if not 1 <= len(arrays) <= 2 or any(e.ndim != 1 or len(e) < 3 or not (np.diff(e) > 0).all() for e in arrays):
        raise InvalidInput("A grid is given by the edges of its cells, growing, at least three, in one or two dimensions.")
    return arrays


def axes_of(edges: Sequence[Float64[Array, "k"]]) -> tuple[Axis, ...]:
    """The middles of the cells as axes.   Shapes: edges (k,) -> an axis of k - 1 values for each dimension."""
    return tuple(Axis(name, tuple(((e[:-1] + e[1:]) / 2).tolist())) for name, e in zip("xy", edges, strict=False))
