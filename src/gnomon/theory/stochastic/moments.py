"""How the loss of SGD moves in time: the steps themselves, their stochastic differential equations of first and second order, and steps that shrink."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.linalg import solve_continuous_lyapunov

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.theory.stochastic.quadratic import DIEULEVEUT_2020, Quadratic, check_stable
from gnomon.theory.stochastic.stationary import UNIT

LI_2017, LI_2019 = Source("li2017"), Source("li2019")
POLYAK_1992 = Source("polyak1992")


def step_losses(problem: Quadratic, sgd: Sgd, *, start: ArrayLike, steps: Sequence[int]) -> Reading:
    """Expected excess loss after these numbers of steps of SGD from one start: m <- (1 - lr H) m,  M <- (1 - lr H) M (1 - lr H) + lr^2 f Sigma(m, M).

    m and M are mean and second moment of theta - minimum, Sigma the noise there, averaged: on least squares exact.

    Shapes: start (d,), value (steps,).   Units: loss.   Error: exact for a quadratic loss of each example.   Assumes: independent batches.
    Cost: a pass over the data a step.   Raises: OutOfScope with momentum or weight decay; InvalidInput for steps that do not grow.
    Source: Dieuleveut, Durmus & Bach 2020 (the recursion).
    """
    times, mean = _plain(problem, sgd, steps), np.asarray(start, dtype=np.float64) - problem.minimum
    second, losses, turn = np.outer(mean, mean), [], np.eye(len(mean)) - sgd.step * problem.hessian
    for step in range(max(times) + 1):
        if step in times:
            losses.append(float((problem.hessian * second).sum()) / 2)
        second = turn @ second @ turn + sgd.step**2 * sgd.noise_factor * problem.fluctuation(mean, second)
        mean = turn @ mean
    return _losses(losses, times, DIEULEVEUT_2020)


def sde_losses(problem: Quadratic, sgd: Sgd, *, order: Literal[1, 2], start: ArrayLike, steps: Sequence[int]) -> Reading:
    """Expected excess loss of the stochastic modified equation at the times of these steps, t = step x lr.

    Order 1: dX = -grad L dt + sqrt(lr f Sigma) dW.   Order 2: dX = -grad (L + lr/4 |grad L|^2) dt + sqrt(lr f Sigma) dW.

    Expectations of SGD at a fixed time differ from these by O(lr) and O(lr^2).  The noise enters at relative order lr in both, so that the stationary variance,
    itself of order lr, is no better in the second than in the first: what it mends is the path there.

    Shapes: start (d,), value (steps,).   Units: loss.   Error: bound, that of the integrator, 1e-9; to SGD as said.   Assumes: lr lambda_max << 1.
    Cost: some hundred passes over the data.   Raises: as `step_losses`; InvalidInput for another order.
    Source: Li, Tai & E 2017, theorem 1; Li, Tai & E 2019.
    """
    if order not in (1, 2):
        raise InvalidInput(f"The stochastic modified equations are those of order 1 and 2, not {order}.")
    times, lr, h = _plain(problem, sgd, steps), sgd.step, problem.hessian
    drift = h if order == 1 else h + lr / 2 * h @ h
    away, d = np.asarray(start, dtype=np.float64) - problem.minimum, len(h)

    def rate(_: float, flat: Array) -> Array:
        mean, second = flat[:d], flat[d:].reshape(d, d)
        pulled = drift @ second
        return np.concatenate([-drift @ mean, (lr * sgd.noise_factor * problem.fluctuation(mean, second) - pulled - pulled.T).ravel()])

    at = lr * np.array(times, dtype=np.float64)
    begun = np.concatenate([away, np.outer(away, away).ravel()])
    found = solve_ivp(rate, (0.0, max(at[-1], 1e-300)), begun, method="DOP853", t_eval=at, rtol=1e-10, atol=1e-13 * max(float(begun @ begun), 1e-300))
    losses = [float((h * column[d:].reshape(d, d)).sum()) / 2 for column in found.y.T]
    return _losses(losses, times, LI_2017.at("theorem 1") if order == 1 else LI_2019, error=1e-9)


def robbins_monro_covariance(problem: Quadratic, sgd: Sgd, *, constant: float) -> Reading:
    """What t times the covariance tends to where step t has the learning rate c / t:  (c H - 1/2) V + V (c H - 1/2) = c^2 f S.

    Only where c lambda_min > 1/2: below, the slowest direction forgets its start as t^(-2 c lambda_min), slower than 1/t.

    Shapes: value (d, d).   Units: parameter^2 x steps.   Error: exact as t grows.   Assumes: a quadratic loss near its minimum, independent batches.
    Cost: d^3.   Raises: OutOfScope where c lambda_min is at most 1/2; InvalidInput for a constant that is not positive.
    Source: Polyak & Juditsky 1992 (the setting); the equation is the limit of the recursion of second moments.
    """
    if constant <= 0:
        raise InvalidInput(f"The constant of lr = c / t must be above 0, not {constant:g}.")
    sgd.independent("the limit of falling steps")
    slowest = constant * float(problem.curvatures[0])
    if slowest <= 0.5:
        raise OutOfScope(
            f"c lambda_min = {slowest:.3g} is not above 1/2: the error falls as t^(-{2 * slowest:.3g}), not as 1/t. Take c above {constant / (2 * max(slowest, 1e-300)):.3g}."
        )
    pull = constant * problem.hessian - np.eye(len(problem.hessian)) / 2
    value = solve_continuous_lyapunov(pull, constant**2 * sgd.noise_factor * problem.noise)
    return Reading.predicted("scaled_covariance", value, unit=f"{UNIT} × steps", source=POLYAK_1992, assumes=("a quadratic loss near its minimum", "many steps"))


def averaged_covariance(problem: Quadratic, sgd: Sgd) -> Reading:
    """What t times the covariance of the average of t iterates tends to, whatever the (slowly falling) steps were: H^-1 f S H^-1, the least possible.

    Shapes: value (d, d).   Units: parameter^2 x steps.   Error: exact as t grows, for steps t^-a, 1/2 < a < 1.
    Assumes: a quadratic loss near its minimum, independent batches.   Cost: d^3.   Raises: OutOfScope for a direction without curvature.
    Source: Polyak & Juditsky 1992, theorem 1.
    """
    if problem.curvatures[0] <= 1e-12 * problem.sharpness:
        raise OutOfScope("a direction has no curvature: the average does not settle there")
    sgd.independent("the limit of averages")
    inverse = np.linalg.inv(problem.hessian)
    value = sgd.noise_factor * inverse @ problem.noise @ inverse
    return Reading.predicted("scaled_covariance", value, unit=f"{UNIT} × steps", source=POLYAK_1992.at("theorem 1"), assumes=("a quadratic loss near its minimum", "many steps"))


def _plain(problem: Quadratic, sgd: Sgd, steps: Sequence[int]) -> list[int]:
    if sgd.momentum or sgd.weight_decay:
        raise OutOfScope("the moments in time are those of plain SGD, without momentum and weight decay")
    sgd.independent("the path of second moments")
    check_stable(problem, sgd)
    times = [int(step) for step in steps]
    if not times or times[0] < 0 or any(b <= a for a, b in itertools.pairwise(times)):
        raise InvalidInput(f"steps must grow from 0 or more, not {list(steps)[:8]}.")
    return times


def _losses(losses: list[float], steps: list[int], source: Source, *, error: float = 0.0) -> Reading:
    bound = error * max(map(abs, losses))
    return Reading.predicted(
        "excess_loss", losses, unit="loss", error=bound, error_kind="bound" if bound else "exact", axes=(Axis("step", tuple(map(float, steps))),), source=source,
        assumes=("a quadratic loss", "independent batches"),
    )  # fmt: skip
