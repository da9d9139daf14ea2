"""The path of a training: how far it went, how it turned, whether it was thrown to flatter ground, and the rank of its weights along it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import State, Subject, match
from gnomon.numerics.statistics import effective_number

ROY_2007 = Source("roy2007")
LEWKOWYCZ_2020 = Source("lewkowycz2020")
FAZEL_2002 = Source("fazel2002")
ROUNDING = 16
"""Rounding of sums of singular values and of distances, in units of eps times the norms."""
MOST = 300


def _flat(subject: Subject, states: Sequence[State], least: int) -> list[Tensor]:
    if len(states) < least:
        raise InvalidInput(f"At least {least} states of the network are needed, in the order of training; {len(states)} came.")
    matched = [match(state, subject.state, what=f"state {number}") for number, state in enumerate(states)]
    return [torch.cat([state[key].reshape(-1) for key in subject.trainable]).double() for state in matched]


def _at(steps: Sequence[float] | None, count: int) -> tuple[float, ...]:
    at = tuple(float(step) for step in (range(count) if steps is None else steps))
    if len(at) != count or any(b <= a for a, b in itertools.pairwise(at)):
        raise InvalidInput(f"steps must rise, one for each of the {count} states; {len(at)} came.")
    return at


def distance_travelled(subject: Subject, states: Sequence[State], *, steps: Sequence[float] | None = None) -> Reading:
    """How far the network is from its first state at each later one; `details` has the length of the path through the states.

    |theta_k - theta_0|;   the path is sum_j |theta_j - theta_(j-1)|, a lower bound of the true one where states are far apart.

    Shapes: k + 1 states -> value (k,).   Units: parameter.   Error: bound, rounding.   Assumes: nothing.   Cost: none to speak of.
    Raises: InvalidInput for fewer than two states, states of another network, or steps that do not rise.   Source: Neyshabur et al. 2018 (distance from initialisation).
    """
    points, at = _flat(subject, states, 2), _at(steps, len(states))
    distances = np.array([float((point - points[0]).norm()) for point in points[1:]])
    pieces = np.array([float((b - a).norm()) for a, b in itertools.pairwise(points)])
    bound = ROUNDING * torch.finfo(subject.dtype).eps * np.array([float(points[0].norm() + point.norm()) for point in points[1:]])
    return Reading(
        "distance_travelled", distances, "parameter", error=np.maximum(bound, 1e-300), error_kind="bound", axes=(Axis("step", at[1:]),), source=Source("neyshabur2018"),
        details={"path": np.cumsum(pieces), "straightness": float(distances[-1] / pieces.sum()) if pieces.sum() > 0 else 1.0},
    )  # fmt: skip


def update_angles(subject: Subject, states: Sequence[State], *, steps: Sequence[float] | None = None) -> Reading:
    """Cosine of the angle between displacements that follow each other: near 1 on a straight path, below 0 where the training bounces.

    cos = d_k . d_(k+1) / |d_k| |d_(k+1)|,  d_k = theta_k - theta_(k-1); 0 where one of them is 0.

    Shapes: k + 2 states -> value (k,).   Units: none.   Error: bound, rounding.   Assumes: nothing.   Cost: none to speak of.   Raises: as `distance_travelled`, for fewer than three states.
    Source: Cohen et al. 2021 (oscillation along the sharpest direction at the edge of stability).
    """
    points, at = _flat(subject, states, 3), _at(steps, len(states))
    moves = [b - a for a, b in itertools.pairwise(points)]
    lengths = np.array([float(move.norm()) for move in moves])
    products = np.array([float(a @ b) for a, b in itertools.pairwise(moves)])
    sizes = lengths[:-1] * lengths[1:]
    rounded = torch.finfo(subject.dtype).eps * max(float(point.norm()) for point in points)
    bound = np.minimum(ROUNDING * rounded * (lengths[:-1] + lengths[1:]) / np.maximum(sizes, 1e-300), 2.0)
    cosines = np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)
    return Reading("update_angles", cosines, "", error=np.maximum(bound, 1e-300), error_kind="bound", axes=(Axis("step", at[1:-1]),), source=Source("cohen2021"))


def catapult(losses: Reading, sharpness: Reading, *, limit: float) -> Reading:
    """Was the training thrown to flatter ground?  From loss and sharpness over the steps of its beginning, as a history holds them, and the limit of stability 2 / lr.

    A catapult starts above the limit, its loss first grows, then falls below where it began, and its sharpness ends below the limit.

    Shapes: losses (a,) and sharpness (b,), each with an axis of steps -> value (3,): sharpness over the limit at the first step, the largest loss over the first, sharpness over
    the limit at the last step.   Units: none.   Error: bound, that of the readings.   `details` has the verdict `catapult`, the step of the largest `loss`, and `gaps`:
    intervals between records more than twice the usual one, in which a catapult may have passed unseen.
    Assumes: `limit` is that of the optimizer in use.   Cost: none.
    Raises: InvalidInput for readings without steps or a limit that is not positive; OutOfScope for fewer than three records of the loss.
    Source: Lewkowycz et al. 2020.
    """
    if not limit > 0:
        raise InvalidInput(f"The limit of stability must be above 0, not {limit:g}; for plain gradient descent it is 2 / lr.")
    for reading in (losses, sharpness):
        if reading.value.ndim != 1 or len(reading.axes) != 1:
            raise InvalidInput(f"{reading.name} must run over steps (watch['{reading.name}'] of a hooks.Watch does), not have shape {reading.value.shape}.")
    if len(losses.value) < 3 or len(sharpness.value) < 2:
        raise OutOfScope(
            f"a catapult shows in the first steps: {len(losses.value)} records of the loss and {len(sharpness.value)} of the sharpness are too few (Watch(every=1) at the start)"
        )
    first, last = float(sharpness.value[0]) / limit, float(sharpness.value[-1]) / limit
    peak = int(np.argmax(losses.value))
    grown = float(losses.value[peak] / losses.value[0])
    error = [float(sharpness.error[0]) / limit, float(losses.error[peak] + grown * losses.error[0]) / float(losses.value[0]), float(sharpness.error[-1]) / limit]
    thrown = first > 1 and grown > 1 and float(losses.value[-1]) < float(losses.value[0]) and last < 1
    steps = [float(step) for step in losses.axes[0].values]
    return Reading(
        "catapult", [first, grown, last], "", error=np.maximum(error, 1e-300), error_kind="bound", source=LEWKOWYCZ_2020,
        axes=(Axis("ratio", ("sharpness at the start / limit", "largest loss / first", "sharpness at the end / limit")),),
        details={"catapult": thrown, "step": steps[peak], "gaps": gaps(steps)},
    )  # fmt: skip


def gaps(steps: Sequence[float]) -> list[tuple[float, float]]:
    """Intervals between records that are more than twice the usual (median) one.   Units: steps.   Raises: nothing."""
    between = np.diff(np.asarray(steps, dtype=np.float64))
    if len(between) < 2:
        return []
    usual = float(np.median(between))
    return [(float(a), float(b)) for a, b in itertools.pairwise(steps) if b - a > 2 * usual]


def _singular_values(state: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Array]:
    matrices = {key: state[key].reshape(len(state[key]), -1) for key in keys if state[key].ndim >= 2}
    return {key: torch.linalg.svdvals(matrix.double()).cpu().numpy() for key, matrix in list(matrices.items())[:MOST]}


def _of(subject: Subject) -> dict[str, Array]:
    found = subject.once("path/singular values", lambda: _singular_values(subject.state, subject.trainable))
    if not found:
        raise OutOfScope("the network has no trainable matrix: there is no rank to speak of")
    return found


def _skipped(subject: Subject) -> tuple[str, ...]:
    matrices = [key for key in subject.trainable if subject.state[key].ndim >= 2]
    return tuple(f"{key}: beyond the first {MOST} matrices" for key in matrices[MOST:])


def _by_numpy(subject: Subject) -> list[Array]:
    return [
        np.linalg.svd(subject.state[key].cpu().double().numpy().reshape(len(subject.state[key]), -1), compute_uv=False) for key in subject.trainable if subject.state[key].ndim >= 2
    ]


def _svd_cost(subject: Subject) -> Cost:
    work = sum(subject.state[key].numel() * min(len(subject.state[key]), subject.state[key][0].numel()) for key in subject.trainable if subject.state[key].ndim >= 2)
    return Cost(gradients=4 * work / (subject.dimension * len(subject.train)), bytes=16 * max(value.numel() for value in subject.parameters.values()))


def exact_nuclear_norms(subject: Subject) -> Array:
    """By numpy."""
    return np.array([values.sum() for values in _by_numpy(subject)])


@instrument(topic="factorization", truth=exact_nuclear_norms, cost=_svd_cost)
def weight_nuclear_norms(subject: Subject, *, rng: Generator) -> Reading:
    """Nuclear norm of each weight matrix, the sum of its singular values: what small-rank factorisations keep small.

    Shapes: value (matrices,); a convolution counts as outputs x (inputs times kernel).   Units: parameter.   Error: bound, rounding of the parameters.
    Assumes: nothing.   Cost: one singular value decomposition a matrix.   Raises: OutOfScope for a network without matrices.
    Source: Fazel 2002 (the nuclear norm as the measure of rank).
    """
    found = _of(subject)
    values = np.array([s.sum() for s in found.values()])
    bound = ROUNDING * torch.finfo(subject.dtype).eps * np.array([math.sqrt(len(s)) * np.linalg.norm(s) for s in found.values()])
    return Reading(
        "weight_nuclear_norms", values, "parameter", error=np.maximum(bound, 1e-300), error_kind="bound", axes=(Axis("parameter", tuple(found)),), source=FAZEL_2002, skipped=_skipped(subject),
    )  # fmt: skip


def exact_effective_ranks(subject: Subject) -> Array:
    """By numpy."""
    return np.array([effective_number(s) for s in _by_numpy(subject)])


@instrument(topic="factorization", truth=exact_effective_ranks, shares="weight_nuclear_norms", cost=lambda subject: Cost())
def weight_effective_ranks(subject: Subject, *, rng: Generator) -> Reading:
    """Effective rank of each weight matrix: the exponential of the entropy of its singular values' shares.

    exp(-sum_i p_i ln p_i),  p_i = s_i / sum_j s_j

    Shapes: value (matrices,), as `weight_nuclear_norms`.   Units: directions.   Error: bound, rounding of the parameters.   Assumes: nothing.
    Cost: shared with `weight_nuclear_norms`.   Raises: OutOfScope for a network without matrices.   Source: Roy & Vetterli 2007.
    """
    found = _of(subject)
    values = np.array([effective_number(s) for s in found.values()])
    # d rank / rank = -sum_i dp_i ln p_i, with |dp_i| at most eps s_1 / sum s, and -ln p at most that of the smallest share which counts
    eps = ROUNDING * torch.finfo(subject.dtype).eps
    bound = [rank * eps * len(s) * (s[0] / s.sum() if s.sum() > 0 else 1.0) * -math.log(eps) for rank, s in zip(values, found.values(), strict=True)]
    return Reading(
        "weight_effective_ranks", values, "directions", error=np.maximum(bound, 1e-300), error_kind="bound", axes=(Axis("parameter", tuple(found)),), source=ROY_2007,
        skipped=_skipped(subject),
    )  # fmt: skip
