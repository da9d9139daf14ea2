"""The chapter `landscape`: is the training at the edge of stability, how many directions stand apart, how is the curvature spread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from gnomon.core.errors import OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Reading, format_number
from gnomon.examination.row import Row
from gnomon.theory import landscape as theory

ORDER = 10
TITLE = "Loss landscape"
THEORY = (
    "On a quadratic loss an optimizer is stable in a direction only while the curvature stays below a limit set by its step: $2/\\eta$ for gradient descent, "
    "$(2+2\\beta)/\\eta$ with heavy-ball momentum, $(2+2\\beta)/(\\eta(1+2\\beta))$ with Nesterov's, and $(2+2\\beta_1)/((1-\\beta_1)\\eta)$ for Adam once the curvature is "
    "preconditioned. Full-batch training raises the sharpness until it hovers there; small batches keep it below. A trained classifier's Hessian has a few large "
    "eigenvalues, one less than there are classes, above a bulk near zero: they come from the means of the classes' gradients."
)
ASSUMES = ("the curvature is that of the mean training loss in eval mode (batch norm uses its running statistics, dropout is off)",)
EDGE = 0.2
"""Half-width of the band, relative to the limit, in which full-batch sharpness is said to hover: our choice, not a figure of the paper."""


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    yield from _sharpness(facts, readings)
    yield from _outliers(facts, readings)
    eigenvalues, trace, density = (readings.get(name) for name in ("hessian_eigenvalues", "hessian_trace", "spectral_density"))
    if eigenvalues is not None:
        positive = int((eigenvalues.value > 0).sum())
        yield Row("largest Hessian eigenvalues", measured=eigenvalues, words=f"{positive} of the {eigenvalues.value.size} largest are positive")
    yield from _traces(facts, trace, readings.get("ggn_trace"), eigenvalues)
    if (adaptive := readings.get("adaptive_sharpness")) is not None:
        yield Row("adaptive sharpness", measured=adaptive, words="sharpness in units of the weights, which rescaling units does not move")
    if (along := readings.get("loss_slice")) is not None:
        middle = float(along.value[along.value.size // 2])
        yield Row(
            "loss along a random direction", measured=along,
            words=f"from {format_number(middle)} to {format_number(float(along.value[[0, -1]].mean()))} on average a step as long as the weights away",
        )  # fmt: skip
    if (plane := readings.get("loss_plane")) is not None:
        lowest = np.unravel_index(int(plane.value.argmin()), plane.value.shape)
        away = math.hypot(*(float(axis.values[k]) for axis, k in zip(plane.axes, lowest, strict=True)))
        words = "lowest where the network is" if away == 0 else f"lowest {format_number(away, 2)} steps away from the network"
        yield Row("loss over a random plane", measured=plane, words=f"{words}; a step is as long as the weights")
    if density is not None:
        yield Row("spectral density of the Hessian", measured=density, words="how the eigenvalues are spread, smoothed")


def _traces(facts: Facts, trace: Reading | None, gauss_newton: Reading | None, eigenvalues: Reading | None) -> Iterator[Row]:
    """The trace of the Hessian beside that of the Gauss-Newton matrix: equal by theory where the output is piecewise linear along every parameter."""
    share = "sum of all curvatures"
    if trace is not None and eigenvalues is not None and float(trace) > 0:
        share = f"the {eigenvalues.value.size} largest eigenvalues make {100 * eigenvalues.value.sum() / float(trace):.0f} % of it"
    if trace is not None and gauss_newton is not None and not facts.bent:
        because = "the identity is exact; a quarter of the trace is allowed for the probes, a choice"
        yield Row("Hessian trace", theory.hessian_trace(gauss_newton, facts.bent), trace, "equal", abs(float(gauss_newton)) / 4, because=because, words=share)
        return
    if trace is not None:
        yield Row("Hessian trace", measured=trace, words=share)
    if gauss_newton is not None:
        part = "" if trace is None else f"{format_number(100 * float(gauss_newton) / float(trace), 2)} % of the Hessian's; " if float(trace) > 0 else ""
        yield Row(
            "Gauss-Newton trace", measured=gauss_newton, words=part + (f"not equal: {facts.bent}" if facts.bent else "equal to the Hessian's: the network is piecewise linear")
        )


def _sharpness(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    adaptive = facts.training.optimizer in ("adam", "adamw")
    plain, measured = readings.get("sharpness"), readings.get("preconditioned_sharpness" if adaptive else "sharpness")
    try:
        limit = theory.stability_limit(facts.training)
    except OutOfScope as error:
        if plain is not None:
            yield Row("sharpness", measured=plain, words=f"no limit to compare with: {error}", headline=True)
        return
    if adaptive and facts.training.second_moment is None:
        why = "Adam's limit is one on the preconditioned sharpness, and its second moments are not known (--optimizer-state, or pass the torch optimizer itself)"
        yield Row("sharpness", limit, plain, out_of_scope=why, words="needs the optimizer's state", headline=True)
        return
    if measured is None:
        return
    if normalised := [layer.name for layer in facts.architecture.layers if layer.why.startswith("BatchNorm")]:
        why = (
            f"`{normalised[0]}` is batch norm: the sharpness here is that of eval mode, with running statistics, while the steps were taken on a loss that normalises by the batch"
        )
        yield Row("sharpness", limit, measured, out_of_scope=why, words="of eval mode; the limit holds for the loss that was trained", headline=True)
        return
    full_batch = facts.training.batch_size is not None and facts.training.batch_size >= facts.train_population
    ratio = float(measured) / float(limit)
    tolerance = EDGE * abs(float(limit)) if full_batch else 0.0
    because = (
        "full-batch sharpness hovers about the limit; 20 % is allowed for that, a choice and not the paper's figure"
        if full_batch
        else "small batches keep the sharpness below the limit"
    )

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "inconclusive":
            return "near the edge; the error does not tell on which side"
        if abs(ratio - 1) <= EDGE:
            return "at the edge of stability"
        return "beyond the limit: full-batch steps would diverge" if ratio > 1 else f"{format_number(100 * ratio, 2)} % of the limit: stable"

    def advice(verdict: Verdict) -> str | None:
        lr = facts.training.lr
        if verdict.outcome not in ("holds", "fails") or float(measured) <= 0 or lr is None:
            return None
        largest = theory.largest_stable_lr(facts.training, float(measured))
        about = f"the limit is {format_number(float(limit))}, the sharpness {format_number(float(measured))}"
        if verdict.outcome == "fails":
            return f"The step is too long for this curvature: {about}; full-batch steps are stable up to lr {format_number(largest)} (now {format_number(lr)})."
        room = "The learning rate may hardly grow" if ratio > 1 - EDGE else "The learning rate has room to grow"
        return f"{room}: {about}; stable up to lr {format_number(largest)} (now {format_number(lr)}) as long as the curvature does not rise."

    yield Row("sharpness", limit, measured, "at_most", tolerance, because=because, words=words, advice=advice, headline=True)
    if adaptive and plain is not None:
        yield Row("sharpness without preconditioning", measured=plain, words="the largest eigenvalue of the Hessian itself")


def _outliers(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    measured = readings.get("hessian_outliers")
    if measured is None or facts.classes is None:
        return
    predicted = theory.hessian_outliers(facts.classes)

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "inconclusive":
            return "no gap in the spectrum exceeds the residual bounds"
        count = int(np.rint(float(measured)))
        return f"{count} above the bulk: as many as theory says" if verdict.outcome == "holds" else f"{count} above the bulk, {int(float(predicted))} predicted"

    because = "a count is right or wrong: less than half an eigenvalue"
    yield Row("Hessian outliers", predicted, measured, "equal", 0.49, because=because, words=words, headline=True)
