"""The chapter `kernels`: did training move the neural tangent kernel, is the network its linearisation, does the kernel see the targets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gnomon.core.errors import OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Axis, Reading, format_number
from gnomon.examination.row import Row
from gnomon.theory import eigenlearning
from gnomon.theory import kernels as theory
from gnomon.theory.landscape import stability_limit

ORDER = 25
TITLE = "Neural tangent kernel"
THEORY = (
    "Trained by gradient steps a network's outputs move as those of kernel regression with its neural tangent kernel $\\Theta(x,x')=\\frac{1}{C}\\sum_c "
    "\\nabla f_c(x)\\cdot\\nabla f_c(x')$. In the lazy limit (large width, or a large output scale) the kernel stays as it was at initialisation, and the network is "
    "its linearisation $f(w_0)+J(w_0)(w-w_0)$. Where it moves, features are learned, as a rule so that the kernel aligns with the targets. A network is called lazy here "
    "if the kernel moves, and the linearisation errs, by less than 5 %."
)
ASSUMES = ("eval mode at both ends of training", "the kernel is averaged over outputs; an example's class scores are averaged over its positions where it has several")
LAZY = 0.05
"""Movement, and error of the linearised network, below which a network is called lazy: our choice, as theory gives the limit 0 alone."""
BECAUSE = "theory says 0 in the limit of infinite width; 5 % is allowed for finite networks, a choice and not a paper's figure"
FEATURES = 0.2
"""Movement that is spoken of where a lazy network is to learn features: the largest for which the first order still says something."""


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    movement, linearised = readings.get("ntk_movement"), readings.get("linearised_outputs")
    if movement is not None:
        yield _movement(movement, linearised)
    if linearised is not None:
        yield _linearised(linearised)
    yield from _steps(facts, readings)
    yield from _alignment(readings, movement)
    yield from _spectrum(readings)
    yield from _infinite(facts, readings)
    yield from _curve(readings)


def _percent(value: float) -> str:
    return f"{format_number(100 * value, 2)} %"


def _movement(movement: Reading, linearised: Reading | None) -> Row:
    growth, distance = movement.details["growth"], movement.details["distance"]

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "holds":
            return "lazy: the kernel is still that of initialisation"
        if verdict.outcome == "inconclusive":
            return "between lazy and rich, as far as the error tells"
        return f"rich: the kernel is {format_number(growth, 2)} times its initial size and turned away from it by {format_number(math.degrees(math.acos(1 - distance)), 2)}°"

    def advice(verdict: Verdict) -> str | None:
        if verdict.outcome == "holds" and float(movement) > 0:
            scale = theory.output_scale(float(movement), FEATURES)
            return (
                f"Your network hardly learns features (its NTK moved by {_percent(float(movement))}): kernel regression with the initial NTK gives about the same function. "
                f"If features are wanted, scale the output by about {format_number(scale, 1)}, which to first order moves the kernel by {_percent(FEATURES)}, or narrow the network."
            )
        if verdict.outcome == "fails" and linearised is not None and linearised.ends()[0] > LAZY:
            return (
                f"Features move: the NTK changed by {format_number(float(movement), 2)} times its initial size, and the linearisation at initialisation errs by "
                f"{_percent(float(linearised))} of what training did to the outputs: results for infinite width, and kernel regression with the initial NTK, do not describe this "
                "network."
            )
        return None

    predicted = theory.kernel_movement()
    return Row("movement of the NTK", predicted, movement, "equal", LAZY, scale=1.0, because=BECAUSE, words=words, advice=advice, headline=True)


def _linearised(linearised: Reading) -> Row:
    other = linearised.details.get("disagree")
    seen = f"; the two give different classes for {_percent(other)} of the targets" if other is not None else ""

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "holds":
            return f"your network is its linearisation{seen}"
        if verdict.outcome == "inconclusive":
            return f"nearly linear in its parameters, as far as the error tells{seen}"
        return f"the linearised model is not your model{seen}"

    predicted = theory.linearisation_error()
    return Row("error of the linearised network", predicted, linearised, "equal", LAZY, scale=1.0, because=BECAUSE, words=words, headline=True)


def _steps(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    title, measured = "curvature that the first steps see", readings.get("gauss_newton_sharpness@initial")
    if measured is None:
        return
    try:
        limit = stability_limit(facts.training)
    except OutOfScope as error:
        yield Row(title, measured=measured, words=f"no limit to compare with: {error}")
        return
    if facts.training.optimizer in ("adam", "adamw"):
        why = "Adam's limit is one on the preconditioned curvature, and its second moments at the first steps are not known"
        yield Row(title, measured=measured, out_of_scope=why, words="of plain gradient descent; Adam's limit is another")
        return
    share = float(measured) / float(limit)

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "holds":
            return f"{_percent(share)} of what the linearised network bears: the step size alone does not force the kernel to move"
        if verdict.outcome == "inconclusive":
            return "near what the linearised network bears"
        return f"{format_number(share, 2)} times what the linearised network bears: the step size alone drives training out of the lazy regime (catapult)"

    because = "the linearised network is a convex problem with this curvature at its start; beyond the limit its full-batch steps diverge"
    yield Row(title, limit, measured, "at_most", 0.0, because=because, words=words)


def _alignment(readings: Mapping[str, Reading], movement: Reading | None) -> Iterator[Row]:
    title = "alignment of the NTK with the targets"
    end, initial = readings.get("kernel_target_alignment"), readings.get("kernel_target_alignment@initial")
    if end is None:
        return
    if initial is None:
        yield Row(title, measured=end, words="1 would be a kernel that sees nothing but the targets; what it was at initialisation is not known")
        return
    predicted = theory.aligned_kernel(initial)
    if movement is not None and movement.ends()[1] < LAZY:
        why = f"the kernel moved by {_percent(float(movement))} only: the alignment is that of initialisation"
        yield Row(title, predicted, end, "at_least", out_of_scope=why, words="the kernel stood still")
        return

    def words(verdict: Verdict) -> str:
        change = f"{format_number(float(initial), 2)} at initialisation, {format_number(float(end), 2)} now"
        told = {"holds": "the kernel turned towards the targets", "fails": "the kernel turned away from the targets"}.get(verdict.outcome, "no clear turn")
        return f"{told}: {change}"

    yield Row(title, predicted, end, "at_least", 0.0, because="kernels that move align with the targets: not less than at initialisation", words=words)


def _spectrum(readings: Mapping[str, Reading]) -> Iterator[Row]:
    end, initial = readings.get("ntk_spectrum"), readings.get("ntk_spectrum@initial")
    if end is None:
        return
    trace = end.details["trace"]
    share = f"the {end.value.size} largest make {_percent(min(float(end.value.sum()) / trace, 1.0))} of the trace" if trace > 0 else "the kernel is 0"
    if initial is None or initial.value.shape != end.value.shape or float(initial.value.min()) <= 0:
        yield Row("eigenvalues of the NTK", measured=end, words=share)
        return

    def words(verdict: Verdict) -> str:
        ratio = float(end.value[0] / initial.value[0])
        return f"as at initialisation; {share}" if verdict.outcome == "holds" else f"the largest is {format_number(ratio, 2)} times that at initialisation; {share}"

    predicted, tolerance = theory.frozen_spectrum(initial), LAZY * initial.details["norm"]
    because = "by Weyl's inequality no eigenvalue moves by more than the kernel does, in a lazy network by less than 5 % of its norm (a choice, as above)"
    yield Row("eigenvalues of the NTK", predicted, end, "equal", tolerance, because=because, words=words)


def _infinite(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The measured kernel at initialisation beside that of the architecture at infinite width: entry by entry, and its eigenvalues."""
    title, measured = "NTK at initialisation and at infinite width", readings.get("ntk_spectrum@initial")
    if measured is None:
        return
    if (why := facts.uncovered.get("infinite_width_ntk")) is not None:
        yield Row(title, out_of_scope=why, words="not compared with infinite width, for the reason given")
        return
    predicted = facts.predictions.get("infinite_width_ntk")
    if predicted is None or predicted.value.shape != measured.value.shape:
        return
    relative, corners = predicted.details["fluctuation"], [np.asarray(reading.details["corner"]) for reading in (predicted, measured)]
    because = f"two standard deviations of one random network about the limit, a relative {format_number(2 * relative, 2)}: the square root of the sum of 5/width"
    sizes, names = np.sqrt(np.diag(corners[0])), tuple(float(i + 1) for i in range(len(corners[0])))
    fields: dict[str, Any] = {"name": "ntk", "axes": (Axis("example", names), Axis("with example", names)), "details": {}, "interval": None, "samples": None, "n": None}
    limit = predicted.replace(value=corners[0], error=2 * relative * np.outer(sizes, sizes), **fields)
    seen = measured.replace(value=corners[1], error=np.asarray(measured.details["corner_error"]), error_kind="bound", **fields)
    distance, ratio = (float(np.linalg.norm(part) / np.linalg.norm(corners[0])) for part in (corners[1] - corners[0], corners[1]))

    def words(verdict: Verdict) -> str:
        told = {"holds": "as near to the limit as its width allows", "vacuous": "the network is too narrow for the limit to say more than the order of magnitude"}
        return f"{told.get(verdict.outcome, 'not the kernel of the limit')}: at a distance of {_percent(distance)} of it"

    def advice(verdict: Verdict) -> str | None:
        if verdict.outcome != "fails":
            return None
        return f"Your network's NTK at initialisation is {format_number(ratio, 2)} times that of infinite width: look whether it is drawn as declared (--init says otherwise)."

    yield Row(title, limit, seen, "equal", because=because, words=words, advice=advice)
    yield Row("eigenvalues of the NTK at infinite width", predicted, measured, "equal", because=because, words=lambda verdict: _eigenvalues(verdict, measured, predicted))


def _eigenvalues(verdict: Verdict, measured: Reading, predicted: Reading) -> str:
    ratios = measured.value[predicted.value > 0] / predicted.value[predicted.value > 0]
    span = f"{format_number(float(ratios.min()), 2)} to {format_number(float(ratios.max()), 2)} times those of the limit"
    return (
        f"{'too narrow a network to tell' if verdict.outcome == 'vacuous' else 'the spectrum of the limit' if verdict.outcome == 'holds' else 'measured eigenvalues are'}: {span}"
    )


def _curve(readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The learning curve that the measured spectrum predicts, beside regressions with the measured kernel."""
    title, measured = "learning curve of kernel regression", readings.get("kernel_regression_curve@initial")
    if measured is None:
        return
    values, power = (np.asarray(measured.details[part]) for part in ("eigenvalues", "power"))
    sizes = np.array(measured.axes[0].values, dtype=np.float64).astype(int).tolist()
    predicted = eigenlearning.learning_curve(values, power, sizes, ridge=measured.details["ridge"])
    shown = ", ".join(f"{format_number(float(e), 2)} from {n}" for n, e in zip(sizes, measured.value, strict=True))

    def words(verdict: Verdict) -> str:
        told = {"holds": "as the kernel's spectrum predicts", "fails": "not what the kernel's spectrum predicts", "vacuous": "too few examples for the theory to say more"}
        return f"{told.get(verdict.outcome, 'about what the spectrum predicts, as far as the error tells')}: mean square error {shown} examples"

    because = "1/sqrt(n) of the error, what n examples leave of an average"
    yield Row(title, predicted, measured.replace(details={}, interval=measured.interval), "equal", because=because, words=words)
