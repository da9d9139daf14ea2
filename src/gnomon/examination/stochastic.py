"""Rows of the chapter `dynamics` about SGD as a stochastic process: a larger batch, what noise costs in loss, does its differential equation describe this run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gnomon.core.errors import OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Reading, format_number
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.examination.row import Row
from gnomon.instruments.sde import noise_excess_loss
from gnomon.theory import dynamics as theory
from gnomon.theory import landscape
from gnomon.theory import noise as predictions

DESCRIBED = 0.1
"""The part of the loss within which SGD and its equation are said to agree: our choice; the equation's own error is of order lr times the curvature."""
DRIFT = 0.25
"""The part of a prediction that Hessian and noise, taken at the start, may lose over the run: our choice."""
HEAVIER = 0.25
"""How far below its control a tail index must lie: our choice."""
FACTOR = 4
"""How much larger a batch is that advice is given for."""
TITLE_SDE = "SGD beside its stochastic differential equation"
TITLE_COST = "loss that gradient noise costs"


def rows(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """What the readings and the training's settings say of SGD as a process."""
    yield from _larger_batch(facts, readings)
    yield from _tails(readings)
    if (why := _unknown(facts)) is not None:
        yield Row(TITLE_SDE, out_of_scope=why, words="no equation to compare with")
        return
    gap = readings.get("svag_gap")
    if gap is None:
        return
    try:
        yield from _cost(readings, gap)
    except OutOfScope as error:
        yield Row(TITLE_COST, out_of_scope=str(error), words="nothing to compare")
    yield _equation(gap)


def _unknown(facts: Facts) -> str | None:
    """Why there is no equation to compare with, or None."""
    training = facts.training
    if training.optimizer is None or training.lr is None or training.batch_size is None:
        missing = [name for name, value in (("--optimizer", training.optimizer), ("--lr", training.lr), ("--batch-size", training.batch_size)) if value is None]
        return f"how the network was trained is not known ({', '.join(missing)})"
    if training.optimizer not in ("sgd", "nesterov"):
        return f"SGD with or without momentum has a stochastic differential equation; for {training.optimizer} none is known here"
    if training.batch_size >= facts.train_population:
        return f"the batch ({training.batch_size:,}) holds all {facts.train_population:,} examples: full-batch steps have no gradient noise"
    if normalised := [layer.name for layer in facts.architecture.layers if layer.why.startswith("BatchNorm")]:
        return f"`{normalised[0]}` is batch norm: runs here are on the loss of eval mode, while yours were on one that normalises by the batch"
    return None


def _larger_batch(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The learning rate that a larger batch may have, by the noise scale that the curvature weighs."""
    noise, training = readings.get("hessian_noise_scale"), facts.training
    if noise is None:
        return
    title, batch = "noise scale weighed by the curvature", training.batch_size
    if batch is None or batch >= facts.train_population or training.lr is None or training.optimizer not in ("sgd", "nesterov"):
        yield Row(title, measured=noise, words="the batch at which noise takes as much from a step as the gradient's own curvature does")
        return
    new = min(FACTOR * batch, facts.train_population)
    low, high = noise.ends()
    ratio = theory.lr_ratio(max(float(noise), low), batch, new)
    least, most = (theory.lr_ratio(end, batch, new) if np.isfinite(end) else new / batch for end in (low, high))
    raised = f"{format_number(ratio, 2)} times [{format_number(least, 2)}, {format_number(most, 2)}]"
    lr = training.lr
    limit = ""
    if (sharpness := readings.get("sharpness")) is not None and float(sharpness) > 0:
        largest = landscape.largest_stable_lr(training, float(sharpness))
        limit = (
            f"; the sharpness allows at most {format_number(largest, 2)}, so no more than that"
            if largest < lr * ratio
            else f" (the sharpness allows up to {format_number(largest, 2)})"
        )
    advice = f"Weighed by the curvature, your learning rate can be raised by {raised}, to about {format_number(lr * ratio, 2)}, with batch {new:,}, {format_number(new / batch, 2)} times as large{limit}."
    yield Row(title, measured=noise, words=f"batch {new:,} may have {raised} the learning rate; {format_number(new / batch, 2)} times under linear scaling", advice=advice)


def _tails(readings: Mapping[str, Reading]) -> Iterator[Row]:
    """Whether noise has heavier tails than Gaussian noise of the same scale in each coordinate, which is the only comparison that says anything."""
    found = readings.get("noise_tails")
    if found is None:
        return
    errors, n = np.broadcast_to(found.error, (4,)), found.n
    for place, said in ((0, "all coordinates pooled"), (2, "in each coordinate")):
        alpha, control = float(found.value[place]), float(found.value[place + 1])
        predicted = Reading.predicted("tail_index", control, unit="", source=found.source, assumes=("Gaussian noise, of the noise's own scale in each coordinate",))
        measured = Reading(
            "tail_index", alpha, "", error=float(np.hypot(errors[place], errors[place + 1])), error_kind="probe", n=n, source=found.source,
            assumes=(*found.assumes, "the error is that of the difference from the control"),
        )  # fmt: skip

        def words(verdict: Verdict, alpha: float = alpha, control: float = control) -> str:
            both = f"{format_number(alpha)} beside {format_number(control)} of Gaussian noise with the same scales"
            if verdict.outcome == "holds":
                return f"no heavier than Gaussian: {both}"
            return f"heavier than Gaussian: {both}" if verdict.outcome == "fails" else f"{both}: the error does not tell them apart"

        because = f"{HEAVIER:g} in alpha is what we call heavier; alpha below 2 says nothing by itself, for noise of unequal scales gives it too"
        yield Row(f"tail index of gradient noise, {said}", predicted, measured, "at_least", HEAVIER, because=because, words=words)


def _sgd(gap: Reading) -> Sgd:
    """The steps that the test's runs were made of."""
    made = gap.details
    return Sgd(
        lr=made["lr"], batch_size=made["batch"], examples=made["examples"], sampling=made["sampling"], momentum=made["momentum"], nesterov=made["nesterov"],
        weight_decay=made["weight_decay"], decay="coupled" if made["weight_decay"] else None,
    )  # fmt: skip


def _cost(readings: Mapping[str, Reading], gap: Reading) -> Iterator[Row]:
    """Predicted and measured: what noise adds to the loss in the test's steps, and where that settles."""
    measured, noise = noise_excess_loss(gap), readings.get("noise_curvature")
    steps, calm = int(gap.details["steps"]), float(gap.details["noise_free"])
    part = float(measured) / (calm + float(measured))
    share = f"noise makes {format_number(100 * part, 2)} % of the loss after {steps} steps"
    if noise is None:
        yield Row(TITLE_COST, measured=measured, words=share)
        return
    sgd, nodes, weights = _sgd(gap), np.asarray(noise.details["nodes"]), np.asarray(noise.details["weights"])
    known = readings.get("gradient_noise_scale")
    trace = None if known is None else float(known.details["trace"])
    predicted = predictions.noise_excess_loss(nodes, weights, sgd, steps=steps, trace=trace)
    try:
        settled = predictions.stationary_excess_loss(nodes, weights, sgd, trace=trace)
        when = settled.details["relaxation"]
        after = f"in some {format_number(when, 2)} steps" if np.isfinite(when) else "slowly"
        end = f"; it settles at {format_number(float(settled), 2)} {after}"
    except OutOfScope as error:
        end = f"; it does not settle: {error}"

    def words(verdict: Verdict) -> str:
        more = "more than predicted: it grows away from the minimum" if float(measured) > float(predicted) else "less than predicted"
        said = {"holds": "as predicted", "fails": more, "inconclusive": "as predicted, as far as the errors tell"}.get(verdict.outcome, "")
        return f"{share}, {said}{end}" if said else f"{share}{end}"

    def advice(verdict: Verdict) -> str | None:
        if part < 0.1 or measured.ends()[0] <= 0:
            return None
        return f"Noise makes {format_number(100 * part, 2)} % of your training loss; a smaller learning rate at the end of training takes it away in proportion (half the rate, about half of it)."

    if (downhill := predicted.details["downhill"]) > DRIFT:
        why = f"noise grows along directions that curve downwards, where the quadratic loss has no bottom: in {steps} steps they would take off {format_number(downhill, 2)} times what the others add"
        yield Row(TITLE_COST, measured=measured, out_of_scope=why, words=f"{share}{end}", advice=advice)
        return
    because = "Hessian and noise are taken at the start of the run: a quarter is allowed for their drift, our choice, and the error of their probes"
    yield Row(TITLE_COST, predicted, measured, "equal", DRIFT * abs(float(predicted)), because=because, words=words, advice=advice, headline=True)


def _equation(gap: Reading) -> Row:
    """Whether SGD's differential equation describes the run."""
    details = gap.details
    steps, lr = int(details["steps"]), float(details["lr"])
    if lost := int(details["diverged"][0]):
        why = f"{lost} of {len(details['losses'])} runs diverge at lr {format_number(lr)}, the first by step {details['diverged_at_step'][0]}: the equation says nothing of that"
        return Row(TITLE_SDE, measured=gap, out_of_scope=why, words="runs diverge at this learning rate", headline=True)
    predicted = Reading.predicted(
        "svag_gap", 0.0, unit="", source=Source("li2021"), assumes=("lr times the curvature is small", "noise enters as its covariance alone"),
    )  # fmt: skip
    percent = format_number(100 * abs(float(gap)), 2)
    side = "above" if float(gap) > 0 else "below"

    def words(verdict: Verdict) -> str:
        there = f"after {steps} steps the loss is {percent} % {side} its equation's"
        if verdict.outcome == "holds":
            return f"its equation describes this run: {there}"
        if verdict.outcome == "fails":
            return f"its equation does not describe this run: {there}"
        return f"{there}; the error does not tell whether it is more than a tenth"

    because = f"{100 * DESCRIBED:.0f} % of the loss is what we call described; the equation's own error is of order lr times the curvature"
    return Row(TITLE_SDE, predicted, gap, "equal", DESCRIBED, 1.0, because=because, words=words, headline=True)
