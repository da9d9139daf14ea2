"""Is SGD at this learning rate and batch size like its stochastic differential equation?  The SVAG test on a network, and what noise costs in loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.sgd import Sampling, Sgd
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics.checkpoint import Checkpoint
from gnomon.numerics.statistics import student_quantile
from gnomon.numerics.walks import MEMORY, Ends, Kept, noise_free, walks

LI_2021 = Source("li2021")
FEWEST_RUNS = 4
LEVELS = (2, 4)
"""Levels of SVAG beside SGD, which is level 1."""
GAP_LEVELS = (4,)
"""The same where `examine` asks: the farthest level alone gives the smallest error for the work."""
RUNS, SHORTEST = 32, 1
"""Runs at each level, and their fewest steps, where `examine` asks."""
EVALUATED = 1024
"""Examples on which the loss is compared at the end of a run, at most."""


def steps_of(subject: Subject, sampling: Sampling) -> Sgd:
    """The steps that the subject was trained with.  Raises: OutOfScope for an optimizer without a known equation, and where lr or batch size are not known."""
    training = subject.training
    if training.optimizer not in ("sgd", "nesterov"):
        raise OutOfScope(f"SGD has a stochastic differential equation, with momentum too; {training.optimizer or 'an unknown optimizer'} has none here (--optimizer sgd|nesterov)")
    if training.lr is None or training.batch_size is None:
        raise OutOfScope(f"the {'learning rate' if training.lr is None else 'batch size'} is not known (--{'lr' if training.lr is None else 'batch-size'})")
    n = len(subject.train)
    if training.batch_size >= n:
        raise OutOfScope(f"a batch of {training.batch_size:,} holds all {n:,} examples at hand: its steps have no noise")
    return Sgd(
        lr=training.lr, batch_size=training.batch_size, examples=n, sampling=sampling, momentum=training.momentum, nesterov=training.optimizer == "nesterov",
        weight_decay=training.weight_decay, decay="coupled" if training.weight_decay else None,
    )  # fmt: skip


def expected_gap(subject: Subject) -> float:
    """The same at the fewest steps, from 2,048 runs."""
    return float(svag(subject, rng=chance.generator(0, "truth"), runs=2048, steps=SHORTEST, levels=GAP_LEVELS, sampling="without_replacement"))


def _cost(subject: Subject, steps: int) -> Cost:
    n, batch = len(subject.train), min(subject.training.batch_size or 1, len(subject.train))
    batches = RUNS * steps * (1 + 2 * sum(GAP_LEVELS))
    return Cost(gradients=steps + batches * batch / n + RUNS * (1 + len(GAP_LEVELS)) * min(EVALUATED / n, 1) / 3, bytes=MEMORY)


@instrument(topic="dynamics", needs=("optimizer",), truth=expected_gap, knob="steps", smallest=SHORTEST, largest=64, cost=_cost)
def svag_gap(subject: Subject, *, rng: Generator, steps: int = 16, checkpoint: str | Path | None = None) -> Reading:
    """How far the loss of SGD is from that of its stochastic differential equation after some more steps, as a share of SGD's: `svag` with batches drawn anew at every step.

    Shapes: value ().   Units: none.   Error: as `svag`.   Assumes: as `svag`; batches are drawn without replacement, each step anew.   Cost: as `svag`.
    Raises: as `svag`.   Source: Li, Malladi & Arora 2021.
    """
    found = svag(subject, rng=rng, runs=RUNS, steps=steps, levels=GAP_LEVELS, sampling="without_replacement", checkpoint=checkpoint)
    return dataclasses.replace(found, name="svag_gap")


def svag(subject: Subject, *, rng: Generator, runs: int = 32, steps: int = 64, levels: Sequence[int] = LEVELS, sampling: Sampling, checkpoint: str | Path | None = None) -> Reading:
    """The SVAG test: runs of SGD from the network as it stands, beside runs of SVAG of rising level l, whose law tends to that of the stochastic differential equation.

    m_l = mean over runs of the loss after `steps` steps; m_l = a + b / l by weighted least squares, so that a is the equation's and the value b / (a + b) is the
    share of SGD's loss (l = 1) that its equation does not have; 0 where the equation describes SGD.

    Shapes: value ().   Units: none.
    Error: standard error over runs and Student's t; that of the line, which ends at 1 / l = 0, is of order 1 / l^2 of the largest level.  `details` has the
    means at every level, the mean loss at the start and without noise, the mean cosine of updates that follow each other, and the steps at which runs diverged.
    Where SGD diverges the value is 1: its equation says nothing of that.
    Assumes: the loss of eval mode, on the examples at hand; momentum as it is: the equation is then that of lr / (1 - b).  `sampling` has no default:
    "with_replacement" or "without_replacement", each batch anew, or "epochs", as loaders shuffle.  The equation is that of independent batches (of those without replacement
    for epochs): with epochs the line goes through SGD on those, and the value is 1 - a / m with m the mean loss of SGD on epochs, at any learning rate.
    `checkpoint` is a file in which the state is kept meanwhile: a process that was killed is followed by one that goes on from it, to the same bits.
    Cost: runs * steps * (1 + 2 sum(levels)) batches, `steps` gradients, and a third of a gradient a run and level.
    Raises: OutOfScope for optimizers without such an equation, an unknown learning rate or batch size, a batch of all examples, or where runs of SVAG diverge;
    InvalidInput for fewer than 4 runs, levels that do not rise from above 1, or a checkpoint of something else; CannotWrite for a full disk.
    Source: Li, Malladi & Arora 2021 (SVAG, and its limit).
    """
    if runs < FEWEST_RUNS:
        raise InvalidInput(f"runs must be at least {FEWEST_RUNS}, not {runs}: their spread is the error.")
    if not levels or any(b <= a for a, b in zip((1, *levels), levels, strict=False)):
        raise InvalidInput(f"levels must rise from above 1, as 2, 4, 8; {tuple(levels)} came.")
    sgd = steps_of(subject, sampling)
    where = subject.once(f"svag/evaluated/{EVALUATED}", lambda: subject.sample(EVALUATED, rng=chance.generator(0, "svag/evaluated")))
    kept = None if checkpoint is None else Kept(Checkpoint(checkpoint, f"{subject.fingerprint()}/{subject.chunk}/svag/{sgd}/{steps}/{runs}/{(1, *levels)}/{rng.initial_seed()}"))
    anew = sgd.replace(sampling="without_replacement") if sampling == "epochs" else sgd
    ends = [
        walks(subject, anew, steps=steps, runs=runs, level=level, rng=chance.child(rng, f"level {level}"), evaluated=where, kept=kept, name=f"level {level}") for level in (1, *levels)
    ]  # fmt: skip
    own = walks(subject, sgd, steps=steps, runs=runs, rng=chance.child(rng, "epochs"), evaluated=where, kept=kept, name="epochs") if sampling == "epochs" else ends[0]
    calm = subject.once(f"svag/noise free/{steps}", lambda: noise_free(subject, sgd, steps=steps, evaluated=where))
    if kept is not None:
        kept.checkpoint.clear()
    lost = [int((end.diverged >= 0).sum()) + int((~end.losses.isfinite() & (end.diverged < 0)).sum()) for end in (own, *ends)]
    details = _details(sgd, steps, (1, *levels), own, ends, calm) | {"diverged": lost if sampling == "epochs" else lost[1:]}
    common: dict[str, Any] = {"source": LI_2021, "assumes": _assumes(subject, sgd, len(where.train)), "details": details}
    if lost[0]:
        return Reading("svag", 1.0, "", error=1e-12, error_kind="seed", n=runs, **common)
    if any(lost[1:]):
        worst = next(level for level, count in zip((1, *levels), lost[1:], strict=True) if count)
        raise OutOfScope(f"runs of SVAG diverge at level {worst}, though SGD's do not: its larger noise leaves the neighbourhood; a smaller lr or a larger batch is needed")
    value, error = _extrapolated(np.array([1.0, *levels]), [end.losses.numpy() for end in ends], own.losses.numpy() if sampling == "epochs" else None)
    half = student_quantile(0.975, runs - 1) * error
    return Reading("svag", value, "", error=max(error, 1e-15), error_kind="seed", n=runs, interval=(value - half, value + half), **common)


def _extrapolated(levels: Array, losses: Sequence[Array], apart: Array | None = None) -> tuple[float, float]:
    """b / (a + b) of the weighted line m = a + b / l, or 1 - a / m with the mean of runs `apart`, and its error by the delta method."""
    means = np.array([row.mean() for row in losses])
    variances = np.array([row.var(ddof=1) / len(row) for row in losses])
    # equal weights where nothing varies; else the exact means would take all the weight
    weights = 1 / np.maximum(variances, 1e-6 * variances.max()) if variances.max() > 0 else np.ones(len(means))
    design = np.stack([np.ones(len(levels)), 1 / levels], 1)
    solve = np.linalg.solve(design.T @ (weights[:, None] * design), design.T * weights)
    a, b = solve @ means
    covariance = (solve * variances) @ solve.T
    if apart is not None:
        m = float(apart.mean())
        return 1 - float(a) / m, math.hypot(math.sqrt(covariance[0, 0]), float(a) / m * apart.std(ddof=1) / math.sqrt(len(apart))) / abs(m)
    slope = np.array([-b, a]) / (a + b) ** 2
    return float(b / (a + b)), math.sqrt(max(float(slope @ covariance @ slope), 0.0))


def _details(sgd: Sgd, steps: int, levels: tuple[int, ...], own: Ends, ends: Sequence[Ends], calm: float) -> dict[str, Any]:
    finite = [end.losses[end.losses.isfinite()] for end in ends]
    at = [int(end.diverged[end.diverged >= 0].min()) if bool((end.diverged >= 0).any()) else None for end in (ends if own is ends[0] else (own, *ends))]
    return {
        "levels": list(levels), "means": [float(part.mean()) if len(part) else math.inf for part in finite],
        "errors": [float(part.std() / math.sqrt(len(part))) if len(part) > 1 else math.inf for part in finite],
        "losses": own.losses.tolist(), "noise_free": calm, "steps": steps, "lr": sgd.lr, "batch": sgd.batch_size, "examples": sgd.examples, "momentum": sgd.momentum,
        "nesterov": sgd.nesterov, "weight_decay": sgd.weight_decay, "sampling": sgd.sampling, "diverged_at_step": at,
        "update_cosine": float(own.angles.mean()), "distance": float(own.distances.mean()),
    }  # fmt: skip


def _assumes(subject: Subject, sgd: Sgd, evaluated: int) -> tuple[str, ...]:
    said = [
        f"runs go on from the network as it stands, in eval mode, on {len(subject.train):,} of {subject.train.population:,} examples; batches are "
        + ("those of shuffled epochs" if sgd.sampling == "epochs" else f"drawn {sgd.sampling.replace('_', ' ')}, each anew")
    ]
    if evaluated < len(subject.train):
        said.append(f"the loss at the end is that of {evaluated:,} examples")
    if sgd.momentum:
        said.append("with momentum b the equation is that of learning rate lr / (1 - b)")
    if sgd.weight_decay:
        said.append("weight decay is coupled: it is added to the gradient")
    return tuple(said)


def noise_excess_loss(svag_reading: Reading) -> Reading:
    """What noise adds to the loss: the mean over SGD's runs of an SVAG test, less the loss of the same number of full-batch steps.

    Shapes: value ().   Units: loss.   Error: standard error over runs.   Assumes: as `svag`.   Cost: none: it is read off the test's details.
    Raises: OutOfScope where runs diverged.   Source: Li, Malladi & Arora 2021.
    """
    details = svag_reading.details
    losses = np.asarray(details["losses"], dtype=object)
    if details["diverged"][0]:
        raise OutOfScope(f"{details['diverged'][0]} of {len(losses)} runs diverged, the first at step {details['diverged_at_step'][0]}: there is no loss to compare")
    return Reading.of_samples(
        "noise_excess_loss", losses.astype(np.float64) - details["noise_free"], unit="loss", error_kind="seed", source=LI_2021, assumes=svag_reading.assumes,
        details={key: details[key] for key in ("steps", "lr", "batch", "examples", "momentum", "nesterov", "weight_decay", "sampling")},
    )  # fmt: skip
