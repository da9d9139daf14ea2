"""Two-layer networks that learn from two-layer networks: on line, many students at once; and wide ones as particles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput


def orthogonal_teacher(units: int, inputs: int, *, rng: Generator) -> Float[Tensor, "m N"]:
    """Weights of norm 1, orthogonal to each other.  Raises: InvalidInput for more units than inputs."""
    if not 1 <= units <= inputs:
        raise InvalidInput(f"Of {inputs} inputs 1 to {inputs} directions can be orthogonal, not {units}.")
    return torch.linalg.qr(chance.normal(inputs, units, rng=rng))[0].T.contiguous()


def committee(weights: Float[Tensor, "*students k N"], inputs: Float[Tensor, "*students batch N"]) -> Float[Tensor, "*students batch"]:
    """sum_k erf(J_k . x / sqrt 2)."""
    return torch.erf(inputs @ weights.mT / math.sqrt(2)).sum(-1)


def learn_on_line(
    student: Float[Tensor, "students k N"], teacher: Float[Tensor, "m N"], *, lr: float, records: Sequence[int], rng: Generator
) -> Float[Tensor, "records students k N"]:
    """Students of a soft committee machine after these numbers of steps, each on one new normal example.

    J <- J + (lr / N) g'(J x) (sum_m g(B_m . x) - sum_k g(J_k . x)) x',   g(u) = erf(u / sqrt 2)

    Shapes: (students, k, N), (m, N) -> (records, students, k, N).   Cost: 3 students k N multiplications a step, and N normal numbers.
    Raises: InvalidInput for a step that is not positive, records that fall, and, with the step, where the weights overflow.
    """
    if lr <= 0 or not records or list(records) != sorted(records) or records[0] < 0:
        raise InvalidInput(f"Learning needs lr above 0 and records that do not fall, not {lr:g} and {list(records)}.")
    weights, inputs, kept, done = student.clone(), student.shape[-1], [], 0
    for record in records:
        for _ in range(done, record):
            x = chance.normal(len(weights), inputs, 1, rng=rng, like=weights)
            fields = torch.bmm(weights, x)[..., 0]
            delta = torch.erf((x[..., 0] @ teacher.T) / math.sqrt(2)).sum(1) - torch.erf(fields / math.sqrt(2)).sum(1)
            pulls = (-fields.square() / 2).exp() * delta[:, None] * (math.sqrt(2 / math.pi) * lr / inputs)
            weights.baddbmm_(pulls[..., None], x.mT)
        done = record
        if not bool(weights.isfinite().all()):
            raise InvalidInput(f"The students overflowed within {done} steps at lr = {lr:g}: take a smaller one.")
        kept.append(weights.clone())
    return torch.stack(kept)


def particle_outputs(
    inputs: Float[Tensor, "P d"], targets: Float[Tensor, "P"], *, width: int, networks: int, lr: float, steps: int, common: float = 0.0, rng: Generator
) -> Float[Tensor, "networks width P"]:
    """What each unit of trained networks f(x) = (1 / n) sum_i a_i erf(w_i . x / sqrt 2) adds: a_i erf(w_i . x / sqrt 2).

    a_i and w_i begin normal, `common` of their variance shared by all units of a network; gradient descent on |f - y|^2 / (2 P) with steps of lr n.
    Cost: about 6 networks x width x P x d multiplications a step.   Raises: InvalidInput for numbers that are not positive.
    """
    if min(width, networks, steps + 1, lr) <= 0:
        raise InvalidInput(f"width, networks and lr must be above 0 and steps not below, not {width}, {networks}, {lr:g} and {steps}.")
    a, w = _drawn(networks, width, inputs, common, rng)
    for _ in range(steps):
        a, w = _stepped(a, w, inputs, targets, lr)
    return a * torch.erf(w @ inputs.T / math.sqrt(2))


def particle_paths(
    inputs: Float[Tensor, "P d"], targets: Float[Tensor, "P"], at: Float[Tensor, "Q d"], *, width: int, networks: int, lr: float, records: Sequence[int], rng: Generator
) -> Float[Tensor, "records networks Q"]:
    """What networks as those of `particle_outputs` say at other points after these numbers of steps.   Raises: InvalidInput for records that fall."""
    if list(records) != sorted(records) or not records or records[0] < 0:
        raise InvalidInput(f"Records must be numbers of steps that do not fall, not {list(records)}.")
    a, w = _drawn(networks, width, inputs, 0.0, rng)
    kept, done = [], 0
    for record in records:
        for _ in range(done, record):
            a, w = _stepped(a, w, inputs, targets, lr)
        done = record
        kept.append((a * torch.erf(w @ at.T / math.sqrt(2))).mean(1))
    return torch.stack(kept)


def _drawn(networks: int, width: int, inputs: Tensor, common: float, rng: Generator) -> tuple[Tensor, Tensor]:
    drawn = chance.normal(networks, width, inputs.shape[1] + 1, rng=rng, like=inputs)
    if common:
        drawn = (1 - common) ** 0.5 * drawn + common**0.5 * chance.normal(networks, 1, drawn.shape[-1], rng=chance.child(rng, "common"), like=inputs)
    return drawn[..., :1], drawn[..., 1:]


def _stepped(a: Tensor, w: Tensor, inputs: Tensor, targets: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    fields = w @ inputs.T
    units = torch.erf(fields / math.sqrt(2))
    errors = (a * units).mean(1, keepdim=True) - targets
    slopes = (-fields.square() / 2).exp() * errors * math.sqrt(2 / math.pi)
    return a - lr / len(inputs) * (units * errors).sum(-1, keepdim=True), w - lr / len(inputs) * a * (slopes @ inputs)


def fluctuations(units: Float[Tensor, "networks width P"]) -> tuple[float, float]:
    """Over networks: the variance of f = (1 / n) sum_i u_i, and the size of the covariance of two different units, each averaged over the P inputs."""
    width = units.shape[1]
    whole, single = units.sum(1).var(0).mean(), units.var(0).mean(1).sum()
    return float(whole) / width**2, abs(float(whole - single)) / (width * (width - 1))
