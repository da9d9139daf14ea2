"""The chapter `generalization`: how well the network does on new data, how sure one can be of that, and whether its own confidence says so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Reading, format_number
from gnomon.examination.row import Row
from gnomon.theory import generalization as theory

ORDER = 30
TITLE = "Generalization"
THEORY = (
    "Errors on $m$ examples that training has not seen bound the error on all new ones: it is at most the largest $p$ for which so few errors still have probability "
    "$\\delta$. From training data alone a bound must pay for what was learned: with noise of size $\\sigma$ on the weights, "
    "$\\mathrm{kl}(\\hat e\\,\\|\\,e)\\le(|\\theta-\\theta_0|^2/2\\sigma^2+\\ln(2\\sqrt{n}/\\delta))/n$, which for networks is mostly vacuous. A calibrated network is wrong as often "
    "as it says: its error is $1-$ its mean confidence. Margins mean something only in units of the product of the layers' spectral norms."
)
ASSUMES = (
    "test examples are drawn independently from where the network is to work, and nothing was chosen by them",
    "the initialisation does not depend on the training data",
)


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    yield from _gap(readings)
    yield from _bound(readings)
    yield from _calibration(readings)
    yield from _pac_bayes(facts, readings)
    yield from _norms(readings)


def _percent(value: float) -> str:
    return f"{format_number(100 * value, 3)} %"


def _gap(readings: Mapping[str, Reading]) -> Iterator[Row]:
    gap, error = readings.get("generalization_gap"), readings.get("test_error")
    if gap is None:
        if error is not None:
            yield Row("error on test data", measured=error, words=_error_words(error))
        return
    low, high = gap.ends()
    rate, test, train = gap.details["kind"] != "loss", float(gap.details["test"]), float(gap.details["train"])
    if low <= 0 <= high:
        words = "no gap beyond the error: new examples go as well as training examples"
    elif low > 0:
        words = (
            f"new examples are wrong more often, by {format_number(100 * float(gap), 2)} points"
            if rate
            else f"the loss on new examples is higher by {format_number(float(gap), 2)}"
        )
    else:
        words = "new examples go better than training examples: are the test data easier?"
    yield Row("generalization gap", measured=gap, words=words, advice=_gap_advice(low, test, train, rate), headline=True)
    if error is not None:
        yield Row("error on test data", measured=error, words=_error_words(error))


def _error_words(error: Reading) -> str:
    what = f"{int(error.details['examples']):,} test examples"
    return f"{_percent(float(error))} of the targets in {what} are wrong" if error.details["kind"] != "loss" else f"mean loss of {what}"


def _gap_advice(low: float, test: float, train: float, rate: bool) -> str | None:
    if low <= 0 or test <= 0:
        return None
    share = min((test - train) / test, 1.0)
    show = _percent if rate else format_number
    if share >= 0.5:
        return f"Overfitting makes {100 * share:.0f} % of the test error ({show(train)} in training, {show(test)} on test data): more data, augmentation or weight decay act on it."
    return f"Only {100 * share:.0f} % of the test error ({show(test)}) is a gap to the training error ({show(train)}): fitting better, longer or with a larger network acts on the rest."


def _bound(readings: Mapping[str, Reading]) -> Iterator[Row]:
    measured = readings.get("held_out_error")
    if measured is None:
        return
    details = measured.details
    loss, scale, count = details["kind"] == "loss", float(details["scale"]), int(details["first"])
    predicted = theory.held_out_bound(float(details["first_sum"]), count, whole=bool(details["whole"]), scale=scale, unit=measured.unit)
    trivial = float(details["constant"]) if loss else 1.0
    name = "squared error on new data, clipped" if loss else "error on new data"

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "vacuous":
            return f"{count} held-out examples are too few: the bound says no more than " + ("predicting the mean target does" if loss else "that some answers may be wrong")
        if verdict.outcome == "holds":
            return f"the bound from {count:,} held-out examples is not vacuous, and the others keep it"
        return (
            "the other held-out examples do not keep the bound: are they alike?"
            if verdict.outcome == "fails"
            else "the other held-out examples do not tell whether the bound is kept"
        )

    def advice(verdict: Verdict) -> str | None:
        if verdict.outcome != "holds":
            return None
        total, error = count + int(measured.n or 0), float(details["first_sum"]) / count
        sharper = float(theory.held_out_bound(error * total, total, whole=bool(details["whole"]), scale=scale, unit=measured.unit))
        more = float(theory.held_out_bound(error * 4 * total, 4 * total, whole=bool(details["whole"]), scale=scale, unit=measured.unit))
        return f"You may promise at most {_show(float(predicted), loss)} at 99.9 %; all {total:,} test examples would make it about {_show(sharper, loss)}, four times as many {_show(more, loss)}."

    because = "a bound is kept or not"
    yield Row(name, predicted, measured, "at_most", 0.0, trivial=trivial, because=because, words=words, advice=advice, headline=True)


def _show(value: float, loss: bool) -> str:
    return format_number(value, 2) if loss else f"{format_number(100 * value, 2)} % errors"


def _calibration(readings: Mapping[str, Reading]) -> Iterator[Row]:
    confidence, error, scale = readings.get("confidence"), readings.get("test_error"), readings.get("logit_scale")
    if confidence is None or error is None:
        return
    predicted = theory.calibrated_error(confidence)
    tolerance = min(theory.CALIBRATION_TOLERANCE, float(predicted) / 4)
    gap = float(confidence.details["gap"])
    # both are means over the same examples: the error that counts is that of their difference
    said = ("the error bar is that of the difference between errors and confidence, on the same examples",)
    paired = error.replace(error=float(confidence.details["gap_error"]), error_kind="sample", n=confidence.n, assumes=said)

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "fails":
            return f"{'over' if gap > 0 else 'under'}-confident by {format_number(100 * abs(gap), 2)} points"
        return "calibrated on average" if verdict.outcome == "holds" else "too few test examples to tell whether its confidence can be trusted"

    def advice(verdict: Verdict) -> str | None:
        if verdict.outcome != "fails" or scale is None or float(scale) <= 0:
            return None
        after = abs(float(scale.details["gap_after"]))
        if after >= abs(gap):
            return None
        left = f"the confidence is then off by {format_number(100 * after, 2)} instead of {format_number(100 * abs(gap), 2)} points"
        return f"Divide the logits by {format_number(1 / float(scale), 3)} before the softmax (fitted on one half of the test data, checked on the other): {left}, and no answer changes."

    because = "temperature scaling leaves up to 2 points (Guo et al. 2017, table 1); a quarter of the error where that is less"
    yield Row("confidence against errors", predicted, paired, "equal", tolerance, because=because, words=words, advice=advice)
    if scale is not None:
        where = (
            "the logits are too large"
            if scale.ends()[1] < 1
            else "the logits are too small"
            if scale.ends()[0] > 1
            else "the logits have the right size, as far as the error tells"
        )
        yield Row("scale of the logits that fits best", measured=scale, words=where)


def _pac_bayes(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    measured = readings.get("stochastic_error")
    if measured is None:
        return
    details = measured.details
    predicted = theory.pac_bayes_bound(
        float(details["train_error"]), draws=int(details["draws"]), distance=float(details["distance"]), sigma=float(details["sigma"]), index=int(details["index"]),
        examples=int(details["examples"]), at_hand=int(details["at_hand"]),
    ) if int(details["examples"]) >= 8 else None  # fmt: skip
    guess = 1 - 1 / (facts.classes or 2)

    def words(verdict: Verdict) -> str:
        noise = f"noise of {format_number(float(details['sigma']), 2)} on every weight"
        if verdict.outcome == "vacuous":
            left = "what was learned is lost" if float(measured) > 0.8 * guess else "the network still works, but the bound says no more than a guess"
            return f"vacuous: a bound from the training data alone can pay for the weights only with {noise}; with it {left}"
        return f"not vacuous: with {noise} the network still learns, and the bound says so" if verdict.outcome == "holds" else f"with {noise} the test data do not keep the bound"

    yield Row("error with noisy weights (PAC-Bayes)", predicted, measured, "at_most", 0.0, trivial=guess, because="a bound is kept or not", words=words)


def _norms(readings: Mapping[str, Reading]) -> Iterator[Row]:
    norms, distance, margins = (readings.get(name) for name in ("spectral_norms", "distance_from_initialization", "margin_normalized"))
    if margins is not None:
        wrong = float(margins.details["negative"])
        product = format_number(float(margins.details["norm_product"]))
        yield Row(
            "training margins over spectral norms", measured=margins, words=f"{_percent(wrong)} of the training margins are negative; the layers' norms multiply to {product}"
        )
    if norms is not None:
        names, top = norms.axes[0].values, int(np.argmax(norms.value))
        mean = math.exp(float(np.log(np.maximum(norms.value, 1e-300)).mean()))
        yield Row("spectral norms", measured=norms, words=f"largest in {names[top]}: {format_number(float(norms.value[top]))}; geometric mean {format_number(mean)} a layer")
    if distance is not None:
        first = np.asarray(distance.details["initial_norm"])
        relative = distance.value / np.maximum(first, 1e-300)
        known = np.where(first > 0, relative, -1.0)
        top = int(np.argmax(known))
        whole = float(distance.details["total"]) / max(float(distance.details["total_initial"]), 1e-300)
        most = f"; most in {distance.axes[0].values[top]}, by {format_number(100 * float(known[top]), 2)} %" if known[top] >= 0 else ""
        yield Row("distance from initialisation", measured=distance, words=f"training moved the weights by {format_number(100 * whole, 2)} % of their first norm{most}")
