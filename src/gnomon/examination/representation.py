"""The chapter `representation`: whether the last features have collapsed, how many directions the layers use, what a linear probe reads off them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gnomon.core.errors import OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Reading, format_number
from gnomon.examination.row import Row
from gnomon.theory import representation as theory

ORDER = 45
TITLE = "Representations"
THEORY = (
    "Trained on, past zero training error and on balanced classes, a classifier's last features collapse: those of a class become one point, the $C$ points the vertices of a "
    "regular simplex (cosines $-1/(C-1)$), the head their multiple, and its decision that for the nearest of them. The effective rank $\\exp(-\\sum p_i \\ln p_i)$, with $p_i$ the shares of the "
    "singular values, counts the directions that a layer's input uses, at most $\\min(n-1,d)$. The coding rate $\\frac12\\ln\\det(I+\\frac{d}{n\\epsilon^2}Z^TZ)$ says how many nats such an input takes, its "
    "reduction how many of them the class saves. The head is the linear classifier that training found; a probe fitted to what it reads should find no better one."
)
ASSUMES = ("positions of a feature map count as features", "what a layer reads is taken at its first call, in eval mode")
COLLAPSED = 0.1
"""How near to the limit a statistic of neural collapse must be: our choice, for the limit is reached only as training goes on for ever."""
BALANCE = 0.2
"""Classes whose numbers differ by at most 20 % are called balanced: our choice."""
LATE = 0.01
"""Training is called late at a loss of at most 1 % of that of guessing, ln C: our choice."""
PROBE = 0.05
"""How far the head may be from a probe on its own input: five points of accuracy, our choice."""


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    collapse, probe = readings.get("neural_collapse"), readings.get("linear_probe")
    if collapse is not None:
        yield _collapse(collapse)
    if probe is not None:
        yield from _probe(facts, probe)
    yield from _ranks(readings)
    yield from _rates(readings)


def _collapse(measured: Reading) -> Row:
    details = measured.details
    classes, error, loss = int(details["classes"]), float(details["error"]), float(details["loss"])
    title, within = "neural collapse", format_number(float(measured.value[0]), 2)
    try:
        predicted = theory.neural_collapse(classes, int(details["features"]))
    except OutOfScope as why:
        return Row(title, measured=measured, out_of_scope=str(why), words="collapse to a simplex is not possible here", headline=True)
    why_not = theory.uncollapsed(error=error, loss=loss, classes=classes, fewest=int(details["fewest"]), most=int(details["most"]), reduced=LATE, balance=BALANCE)
    if why_not is not None:
        said = f"{'not collapsed' if float(measured.value[0]) > COLLAPSED else 'collapsed within classes'}: {why_not}; variability within classes is {within}"
        return Row(title, predicted, measured, out_of_scope=f"neural collapse is a limit of late training: {why_not}", words=said, headline=True)

    def words(verdict: Verdict) -> str:
        names = np.asarray(measured.axes[0].values)
        off = [str(name) for name, outcome in zip(names, verdict.elements, strict=True) if outcome not in ("holds", "vacuous")]
        if verdict.outcome == "holds":
            return f"collapsed: variability within classes is {within}"
        return f"not collapsed, though the training error is 0: {', '.join(off)}"

    because = "0.1 is called collapsed, a choice: the limit is reached only as training goes on"
    return Row(title, predicted, measured, "equal", COLLAPSED, scale=1.0, because=because, words=words, headline=True)


def _probe(facts: Facts, probe: Reading) -> Iterator[Row]:
    names = [str(name) for name in probe.axes[0].values]
    best = int(np.argmax(probe.value))
    said = f"a linear classifier is right on {100 * float(probe.value[0]):.0f} % from what `{names[0]}` reads"
    if len(names) > 1:
        said += f", {100 * float(probe.value[-1]):.0f} % from what `{names[-1]}` reads"
    if best not in (0, len(names) - 1) and float(probe.value[best] - probe.value[-1]) > float(probe.error[-1]):
        said += f", most ({100 * float(probe.value[best]):.0f} %) from what `{names[best]}` reads"
    head = facts.architecture.parametrised[-1] if facts.architecture.parametrised else None
    own = probe.details.get("own_right")
    if own is not None and head is not None and head.name == names[-1] and head.kind == "linear":
        yield _head(probe, list(own), head.name)
    yield Row("linear probes by layer", measured=probe, words=said)


def _head(probe: Reading, own: list[float], name: str) -> Row:
    predicted = theory.probe_of_the_last_features(own)
    right = probe.samples[:, -1]
    measured = Reading.of_samples("linear_probe", right, unit="", error_kind="sample", source=probe.source, assumes=probe.assumes)
    gain = 100 * (float(measured) - float(predicted))

    def words(verdict: Verdict) -> str:
        if verdict.outcome == "holds":
            return f"the head `{name}` does as well as a linear classifier fitted to what it reads"
        if verdict.outcome == "fails":
            return f"a linear classifier fitted to what `{name}` reads is {'better' if gain > 0 else 'worse'} by {abs(gain):.0f} points"
        return "more test examples would tell the head from a probe"

    def advice(verdict: Verdict) -> str | None:
        if verdict.outcome != "fails" or gain <= 0:
            return None
        return f"The head is not at its best: fitted anew to the features as they are, `{name}` would be right on {100 * float(measured):.1f} % of the test data instead of {100 * float(predicted):.1f} %."

    because = "five points of accuracy are allowed, a choice"
    return Row("accuracy of a probe of the last features", predicted, measured, "equal", PROBE, because=because, words=words, advice=advice, headline=True)


def _ranks(readings: Mapping[str, Reading]) -> Iterator[Row]:
    end, initial = readings.get("effective_rank"), readings.get("effective_rank@initial")
    if end is not None:
        most = theory.largest_effective_rank(list(end.details["dimensions"]), int(end.details["examples"]))
        said = f"what the last layer reads spreads over {format_number(_last(end), 2)} of {format_number(_last(most), 2)} possible directions"
        if initial is not None:
            said += f" ({format_number(_last(initial), 2)} at initialisation)"
        yield Row("effective rank by layer", measured=end, words=said)
    if initial is not None:
        yield Row("effective rank by layer at initialisation", measured=initial, words="before training")


def _last(reading: Reading) -> float:
    """The value for what the last layer reads: the output stands after it."""
    return float(reading.value[-2 if reading.value.size > 1 else -1])


def _rates(readings: Mapping[str, Reading]) -> Iterator[Row]:
    rate, reduction = readings.get("coding_rate"), readings.get("rate_reduction")
    if rate is not None:
        most = theory.largest_coding_rate(list(rate.details["dimensions"]), int(rate.details["examples"]))
        said = f"what the last layer reads takes {100 * _last(rate) / _last(most):.0f} % of what features spread over all directions would"
        yield Row("coding rate by layer", measured=rate, words=said)
    if reduction is not None:
        names = [str(name) for name in reduction.axes[0].values]
        best = int(np.argmax(reduction.value))
        place = "the output" if names[best] == "output" else f"what `{names[best]}` reads"
        yield Row("rate reduction by layer", measured=reduction, words=f"the class saves most nats, {format_number(float(reduction.value[best]), 2)} an example, in {place}")
