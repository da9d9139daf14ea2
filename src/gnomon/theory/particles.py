"""Two-layer networks of infinitely many units: training as the motion of a density of units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.flow import moments_of
from gnomon.numerics.nodes import sobol
from gnomon.theory.activations import Function, derivative

MEI_2018 = Source("mei2018")
PRECISE = 1e-7
"""Relative tolerance of the integration in time."""
EVALUATIONS = 20_000
"""Evaluations of all velocities that an integration may take."""


def mean_field_path(
    inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], *, times: Sequence[float], at: Float[Tensor, "Q d"] | None = None, activation: Function = torch.erf,
    deviations: tuple[float, float] = (1.0, 1.0), particles: int = 4096, scrambles: int = 4, rng: Generator | None = None,
) -> Reading:  # fmt: skip
    """What f(x) = (1/n) sum_i a_i s(w_i . x) has learnt at each time, for n -> infinity, by gradient flow on the mean of (f - y)^2 / 2 over the examples, time counted in steps of n lr.

    With the density rho_t of the units theta = (a, w),  f_t(x) = int a s(w . x) d rho_t  and every unit moves in the field that all of them make,
    da/dt = -mean_mu e_mu s(w . x_mu),   dw/dt = -a mean_mu e_mu s'(w . x_mu) x_mu,   e_mu = f_t(x_mu) - y_mu;
    rho_0 is normal, a of deviation `deviations[0]` and each w_i of `deviations[1]`; it is carried by `particles` points of a scrambled Sobol sequence and integrated in time.

    Shapes: (N, d), (N,), times (T,), `at` (Q, d), the inputs if none -> value (T, Q); the loss at these times is the detail `loss`.   Units: those of the targets.
    Error: a standard error over the scrambles.  A network of n units is off by the order of 1 / sqrt n, its mean over initialisations by 1 / n, a step by lr.
    Assumes: units independent at the start, each rate n lr, full batches.   Cost: about 50 (particles x N x d) products a scramble and unit of time.
    Raises: InvalidInput for shapes, times that fall, fewer than 2 scrambles; OutOfScope where the path is too stiff to be followed, with the time that was reached.
    Source: Mei, Montanari & Nguyen 2018 (distributional dynamics).
    """
    x, y = (part.detach().cpu().double() for part in (inputs, targets))
    seen = x if at is None else at.detach().cpu().double()
    moments = moments_of(times)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x) or seen.ndim != 2 or seen.shape[1:] != x.shape[1:]:
        raise InvalidInput(f"Inputs have the shape (examples, d), targets (examples,) and `at` (points, d), not {tuple(x.shape)}, {tuple(y.shape)} and {tuple(seen.shape)}.")
    if not (x.isfinite().all() and y.isfinite().all() and seen.isfinite().all()):
        raise InvalidInput("Inputs and targets must be finite.")
    if scrambles < 2 or min(deviations) <= 0:
        raise InvalidInput(f"At least 2 scrambles and deviations above 0 are needed, not {scrambles} and {deviations}.")
    seeds = rng or chance.generator(0)
    paths = [_path(x, y, seen, moments, activation, deviations, particles, chance.child(seeds, "scramble", index)) for index in range(scrambles)]
    outputs, losses = (np.stack(part) for part in zip(*paths, strict=True))
    return Reading.predicted(
        "mean_field_outputs", outputs.mean(0), unit="", error=outputs.std(0, ddof=1) / math.sqrt(scrambles), error_kind="probe", n=scrambles, source=MEI_2018,
        axes=(Axis("time", tuple(moments.tolist())), Axis("input", tuple(range(len(seen))))), assumes=("independent units at the start", "steps of lr times the width, small", "full batches"),
        details={"loss": losses.mean(0).tolist()},
    )  # fmt: skip


def _path(x: Tensor, y: Tensor, seen: Tensor, times: Array, activation: Function, deviations: tuple[float, float], particles: int, rng: Generator) -> tuple[Array, Array]:
    """Outputs at `seen` and losses at `times`, by one scramble: every point comes with the one whose a has the other sign, so that f_0 = 0 as in the limit."""
    points = sobol(x.shape[1] + 1, particles, rng=rng)[: particles // 2]
    half = torch.from_numpy(points) * torch.tensor([deviations[0]] + [deviations[1]] * x.shape[1], dtype=torch.float64)
    start = torch.cat([half, half * torch.tensor([-1.0] + [1.0] * x.shape[1], dtype=torch.float64)])
    slope_of = derivative(activation)

    def outputs(units: Tensor, points: Tensor) -> Tensor:
        return units[:, 0] @ activation(units[:, 1:] @ points.T) / len(units)

    taken = 0

    def velocity(time: float, flat: Array) -> Array:
        nonlocal taken
        taken += 1
        if taken > EVALUATIONS:
            raise OutOfScope(f"The path to time {times[-1]:g} is stiff: {EVALUATIONS:,} evaluations got to {time:.3g}. Ask for earlier times, or for targets of order 1.")
        units = torch.from_numpy(flat).reshape(start.shape)
        fields = units[:, 1:] @ x.T
        values = activation(fields)
        errors = (units[:, 0] @ values / len(units) - y) / len(y)
        return torch.cat([-(values @ errors)[:, None], -units[:, :1] * ((slope_of(fields) * errors) @ x)], 1).reshape(-1).numpy()

    solved = integrate.solve_ivp(
        velocity, (0.0, max(float(times[-1]), 1e-12)), start.numpy().reshape(-1), method="DOP853", t_eval=times, rtol=PRECISE, atol=PRECISE * min(deviations)
    )
    if solved.status != 0:
        raise OutOfScope(f"The units' path could not be followed beyond time {solved.t[-1] if len(solved.t) else 0:.4g} ({solved.message}): ask for earlier times")
    states = [torch.from_numpy(np.ascontiguousarray(column)).reshape(start.shape) for column in solved.y.T]
    losses = [float((outputs(units, x) - y).square().mean()) / 2 for units in states]
    return np.stack([outputs(units, seen).numpy() for units in states]), np.array(losses)
