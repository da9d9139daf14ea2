"""The Fokker-Planck equation in one and two dimensions, by finite volumes that keep Gibbs' density exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from scipy.integrate import solve_ivp
from scipy.sparse.linalg import eigsh

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.potentials import Potential
from gnomon.theory.stochastic.langevin import Edges, axes_of, grid_of

RISKEN_1989 = Source("risken1989")


def fokker_planck_generator(potential: Potential, *edges: Edges, temperature: float) -> tuple[sparse.csc_matrix, Array]:
    """The matrix Q of dp/dt = Q p for the shares p of the cells of a grid, and the energies of the cells' middles; no flux leaves the grid.

    d p / dt = div (p grad U + T grad p).   From cell i to its neighbour j at the distance D the rate is T / D^2 B((U_j - U_i) / T), B(x) = x / (e^x - 1):
    the flux of a constant force between the two, exactly; rates there and back are as Gibbs' weights, so that exp(-U / T) is stationary without error.

    Shapes: `edges` (cells + 1,) a dimension, equally spaced; Q (cells, cells), row major in two dimensions; energies (cells,).   Units: 1 / time.
    Error: of second order in the spacing.   Assumes: one temperature in all directions.   Cost: memory of 5 numbers a cell.
    Raises: InvalidInput for edges that are not equally spaced, or a temperature that is not positive.
    Source: Scharfetter & Gummel 1969 (the flux); Risken 1989, chapter 4 (the equation).
    """
    if temperature <= 0:
        raise InvalidInput(f"The temperature must be above 0, not {temperature:g}.")
    grid = grid_of(edges)
    if any(np.abs(np.diff(e, 2)).max(initial=0.0) > 1e-8 * (e[-1] - e[0]) for e in grid):
        raise InvalidInput("The finite volumes take equally spaced edges.")
    middles = np.meshgrid(*((e[:-1] + e[1:]) / 2 for e in grid), indexing="ij")
    energies = potential(torch.from_numpy(np.stack(middles, -1))).detach().numpy()
    numbers = np.arange(energies.size).reshape(energies.shape)
    rows, columns, rates = [], [], []
    for dimension, e in enumerate(grid):
        here, there = numbers.swapaxes(0, dimension)[:-1].ravel(), numbers.swapaxes(0, dimension)[1:].ravel()
        rise = (energies.ravel()[there] - energies.ravel()[here]) / temperature
        for source, target, x in ((here, there, rise), (there, here, -rise)):
            rate = temperature / (e[1] - e[0]) ** 2 * _bernoulli(x)
            rows += [target, source]
            columns += [source, source]
            rates += [rate, -rate]
    shape = (energies.size, energies.size)
    return sparse.csc_matrix((np.concatenate(rates), (np.concatenate(rows), np.concatenate(columns))), shape=shape), energies.ravel()


def fokker_planck(potential: Potential, *edges: Edges, temperature: float, start: Array, times: Sequence[float]) -> Reading:
    """The shares of the cells of a grid at these times, from `start`.

    Shapes: start (cells,) or (cells, cells), value (times, *cells).   Units: none.   Error: of second order in the spacing; of the integrator 1e-8.
    Assumes: as `fokker_planck_generator`.   Cost: some hundred sparse factorisations.   Raises: as it; InvalidInput for a start of another shape or times that do not grow.
    Source: Risken 1989, chapter 4.
    """
    matrix, _ = fokker_planck_generator(potential, *edges, temperature=temperature)
    grid, at = grid_of(edges), np.asarray(times, dtype=np.float64)
    cells = tuple(len(e) - 1 for e in grid)
    begun = np.asarray(start, dtype=np.float64)
    if begun.shape != cells or (begun < 0).any() or at.ndim != 1 or not len(at) or at[0] < 0 or (np.diff(at) <= 0).any():
        raise InvalidInput(
            f"A start holds a share of at least 0 for each of the {cells} cells, and times grow from 0 or more; shape {begun.shape} and times {list(times)[:6]} came."
        )
    found = solve_ivp(lambda _, p: matrix @ p, (0.0, max(float(at[-1]), 1e-300)), begun.ravel() / begun.sum(), method="BDF", jac=matrix, t_eval=at, rtol=1e-8, atol=1e-11)
    axes = (Axis("time", tuple(at.tolist())), *axes_of(grid))
    return Reading.predicted("density", found.y.T.reshape(-1, *cells), unit="", axes=axes, source=RISKEN_1989.at("chapter 4"), assumes=("no flux leaves the grid",))


def relaxation_rate(potential: Potential, *edges: Edges, temperature: float) -> Reading:
    """The slowest rate at which a density forgets where it began: the least eigenvalue but 0 of -Q.  For two wells it is the sum of both rates of escape.

    Shapes: value ().   Units: 1 / time.   Error: of second order in the spacing.   Assumes: as `fokker_planck_generator`.   Cost: one sparse factorisation.
    Raises: as it.   Source: Risken 1989, chapter 5.
    """
    matrix, energies = fokker_planck_generator(potential, *edges, temperature=temperature)
    weight = np.exp((energies.min() - energies) / (2 * temperature))
    if weight.min() < 1e-150:
        raise InvalidInput("The grid reaches where the density is below 1e-300 of its largest: take a smaller grid or a higher temperature.")
    even = sparse.diags_array(1 / weight) @ matrix @ sparse.diags_array(weight)
    size = float(np.abs(matrix.diagonal()).max())
    found = eigsh(sparse.csc_matrix((even + even.T) / 2), k=2, sigma=1e-13 * size, which="LM", return_eigenvectors=False)
    return Reading.predicted("relaxation_rate", float(-np.sort(found)[0]), unit="1 / time", source=RISKEN_1989.at("chapter 5"))


def _bernoulli(x: Array) -> Array:
    small = np.abs(x) < 1e-5
    safe = np.where(small, 1.0, np.clip(x, -700, 700))
    return np.asarray(np.where(small, 1 - x / 2 + x * x / 12, safe / np.expm1(safe)))
