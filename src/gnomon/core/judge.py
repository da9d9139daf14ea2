"""The judge: one pure function, the only place where verdicts are made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from scipy import stats

from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.reading import CHANCE, Array, Reading, format_number, jsonable

Relation = Literal["equal", "at_most", "at_least", "exponent", "order", "monotone"]
Outcome = Literal["holds", "fails", "inconclusive", "vacuous", "out_of_scope", "error"]

LEVEL = 0.90
"""Level of the two-sided interval of the gap: each side is tested at 5 %."""


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """What came of a comparison.

    Shapes: `gap` (measured - predicted) any; `interval` a pair shaped like `gap` (90 %); `tolerance` broadcast to `gap`;
    `elements` the outcome of each element of an array, flattened, or () for a single number.
    """

    outcome: Outcome
    why: str
    relation: Relation = "equal"
    gap: Any = None
    interval: tuple[Any, Any] | None = None
    tolerance: Any = None
    elements: tuple[Outcome, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return {
            "verdict": self.outcome, "why": self.why, "relation": self.relation, "gap": jsonable(self.gap),
            "interval": None if self.interval is None else [jsonable(end) for end in self.interval],
            "tolerance": jsonable(self.tolerance), "elements": list(self.elements),
        }  # fmt: skip


def judge(predicted: Reading, measured: Reading, *, relation: Relation = "equal", tolerance: Any = None, scale: float | None = None, trivial: float | None = None) -> Verdict:
    """Decide whether a measurement agrees with a prediction.

    With d = measured - predicted and its 90 % interval [l, u] (Student's t over replicates, `bound` errors added to either side):
    `equal` holds if -tol <= l and u <= tol (two one-sided tests, each at 5 %) and fails if u < -tol or l > tol; `at_most` holds if u <= tol and
    fails if l > tol; `at_least` is its mirror.  `exponent` is `equal` on the slope of log|measured| against the log of its only axis (or on a slope
    given as such); `order` is `at_least` 0 on paired differences of neighbours once the measured values are sorted by the predicted ones;
    `monotone` the same along the array, in the direction of the prediction's sign.  An array holds if every element holds and fails if one fails at a
    Bonferroni level.  Without `tolerance` the prediction's `truncation` is the tolerance.

    Shapes: measured.samples (n, *value), replicates first; predicted.value broadcasts to measured.value; `tolerance` broadcasts too.
    Units: those of the readings.   Error: the interval of the gap is the 90 % one.
    Assumes: replicates are independent; where predicted.samples are given too, with as many replicates, they are paired by replicate.
    Cost: none.
    Raises: InvalidInput where the tolerance or, for a prediction of 0, `scale` is missing, or shapes disagree.
    Source: Schuirmann 1987 (two one-sided tests).
    """
    if relation not in get_args(Relation):
        raise unknown("relation", relation, get_args(Relation))
    reduced = _reduce(predicted, measured, relation)
    side, predicted, measured = reduced
    bound_tolerance = _tolerance(predicted, tolerance, relation)
    gap = measured.value - predicted.value
    limit = np.broadcast_to(bound_tolerance, gap.shape)
    vacuous = _vacuous(predicted, limit, gap.shape, side, scale, trivial)
    if not np.isfinite(predicted.value).all():
        return Verdict("error", "the prediction is not finite", relation)

    interval_of = _gap_interval(predicted, measured)
    count = max(int(np.sum(~vacuous)), 1)
    low, high = interval_of(LEVEL)
    strict_low, strict_high = interval_of(1 - (1 - LEVEL) / count)
    holds = _inside(low, high, limit, side)
    fails = _outside(strict_low, strict_high, limit, side)
    outcomes: list[Outcome] = ["vacuous" if v else "holds" if h else "fails" if f else "inconclusive" for v, h, f in zip(vacuous.flat, holds.flat, fails.flat, strict=True)]
    outcome: Outcome = next(o for o in ("fails", "inconclusive", "holds", "vacuous") if o in outcomes)
    worst = outcomes.index(outcome)
    why = _why(outcome, worst, outcomes, gap, low, high, limit, side, measured, predicted, trivial)
    elements = tuple(outcomes) if gap.shape else ()
    return Verdict(outcome, why, relation, gap, (low, high), np.array(limit), elements)


def _reduce(predicted: Reading, measured: Reading, relation: Relation) -> tuple[Relation, Reading, Reading]:
    """Bring every relation to `equal`, `at_most` or `at_least` between two arrays of one shape."""
    if relation == "exponent":
        if measured.value.ndim == predicted.value.ndim:
            return "equal", predicted, measured
        if len(measured.axes) != 1 or measured.value.ndim != 1:
            raise InvalidInput(f"{measured.name}: an exponent needs one axis with its values, or the fitted slope itself.")
        return "equal", predicted, _transform(measured, _slope(np.asarray(measured.axes[0].values, dtype=np.float64)))
    if relation in ("order", "monotone"):
        if measured.value.ndim != 1 or measured.value.size < 2:
            raise InvalidInput(f"{measured.name}: `{relation}` needs a one-dimensional array of at least two values, not shape {measured.value.shape}.")
        if relation == "order":
            if predicted.value.shape != measured.value.shape:
                raise InvalidInput(f"`order` needs one predicted value for each measured one: shapes {predicted.value.shape} and {measured.value.shape}.")
            by = np.argsort(predicted.value, kind="stable")
            differences = _transform(measured, lambda x: np.diff(x[..., by], axis=-1))
        else:
            sign = 1.0 if float(np.sum(predicted.value)) >= 0 else -1.0
            differences = _transform(measured, lambda x: sign * np.diff(x, axis=-1))
        zero = Reading.predicted(predicted.name, np.zeros(differences.value.shape), unit=measured.unit)
        return "at_least", zero, differences
    try:
        shape = np.broadcast_shapes(predicted.value.shape, measured.value.shape)
    except ValueError:
        shape = None
    if shape != measured.value.shape:
        raise InvalidInput(
            f"A prediction of shape {predicted.value.shape} does not fit a measurement of shape {measured.value.shape}; give both the same shape, or a prediction that is one number."
        )
    return relation, predicted, measured


def _transform(reading: Reading, function: Callable[[Array], Array]) -> Reading:
    """Apply a function of the last dimension to the value and to each replicate; the error is that of the new replicates."""
    if reading.samples is not None and len(reading.samples) > 1:
        return Reading.of_samples(reading.name, function(reading.samples), unit=reading.unit, error_kind=reading.error_kind)
    if (reading.error > 0).any():
        raise InvalidInput(f"{reading.name}: slopes and differences of values with errors need replicates (`samples`), so that they can be paired.")
    return Reading(reading.name, function(reading.value), reading.unit)


def _slope(x: Array) -> Callable[[Array], Array]:
    if len(x) < 2 or (x <= 0).any():
        raise InvalidInput("An exponent needs at least two positive values on its axis.")
    centred = np.log(x) - np.log(x).mean()

    def slope(y: Array) -> Array:
        return np.asarray((np.log(np.abs(y)) * centred).sum(-1) / (centred**2).sum())

    return slope


def _tolerance(predicted: Reading, tolerance: Any, relation: Relation) -> Array:
    if tolerance is not None:
        limit = np.asarray(tolerance, dtype=np.float64)
        if not np.isfinite(limit).all() or (limit < 0).any():
            raise InvalidInput("A tolerance must be finite and not negative.")
        return limit
    if predicted.error_kind == "truncation":
        return predicted.error
    if relation in ("equal", "exponent"):
        raise InvalidInput(f"{predicted.name}: `{relation}` needs a tolerance, or a prediction with a `truncation` error.")
    return np.zeros(())


def _vacuous(predicted: Reading, limit: Array, shape: tuple[int, ...], side: Relation, scale: float | None, trivial: float | None) -> np.ndarray[Any, Any]:
    size = np.abs(np.broadcast_to(predicted.value, shape))
    if ((size == 0) & (limit > 0)).any() and scale is None:
        raise InvalidInput(f"{predicted.name}: the prediction is 0, so the tolerance has nothing to be compared with; state a `scale`.")
    reference = np.where(size == 0, abs(scale) if scale is not None else math.inf, size)
    vacuous = limit >= reference / 2
    if trivial is not None:
        value = np.broadcast_to(predicted.value, shape)
        vacuous = vacuous | (value >= trivial if side == "at_most" else value <= trivial if side == "at_least" else False)
    return np.asarray(vacuous)


def _gap_interval(predicted: Reading, measured: Reading) -> Callable[[float], tuple[Array, Array]]:
    """The interval of measured - predicted as a function of its level."""
    extra = predicted.error if predicted.error_kind == "bound" else np.zeros(())
    gap = measured.value - predicted.value
    p_chance = predicted.error_kind in CHANCE and (predicted.error > 0).any()
    paired = measured.samples is not None and predicted.samples is not None and len(measured.samples) == len(predicted.samples) > 1
    if measured.samples is not None and len(measured.samples) > 1 and measured.error_kind in CHANCE:
        samples = measured.samples - predicted.samples if paired else measured.samples
        n = len(samples)
        variance, freedom = samples.var(axis=0, ddof=1) / n, np.asarray(float(n - 1))
    elif measured.error_kind in CHANCE:
        if measured.n is not None and measured.n < 2:
            raise InvalidInput(f"{measured.name}: one replicate has no standard error; give at least two, or state a bound.")
        variance, freedom = measured.error**2, np.asarray(float(measured.n - 1) if measured.n else math.inf)
    else:
        variance, freedom, extra = np.zeros(()), np.asarray(math.inf), extra + measured.error
    if measured.error_kind in CHANCE and measured.details.get("bound") is not None:
        extra = extra + np.asarray(measured.details["bound"], dtype=np.float64)
    if p_chance and not paired:
        other = predicted.error**2
        p_freedom = float(predicted.n - 1) if predicted.n and predicted.n > 1 else math.inf
        total = variance + other
        with np.errstate(divide="ignore", invalid="ignore"):
            denominator = np.where(np.isinf(freedom), 0.0, variance**2 / freedom) + (0.0 if math.isinf(p_freedom) else other**2 / p_freedom)
            freedom = np.where(denominator > 0, total**2 / denominator, math.inf)
        variance = total
    assert measured.interval is not None
    below, above = measured.value - measured.interval[0], measured.interval[1] - measured.value
    stated = measured.samples is None and bool((np.abs(below - above) > 0.02 * (np.where(np.isfinite(below + above), np.abs(below + above), 1.0))).any())

    def interval(level: float) -> tuple[Array, Array]:
        quantile = np.where(np.isinf(freedom), stats.norm.ppf(0.5 + level / 2), stats.t.ppf(0.5 + level / 2, np.where(np.isinf(freedom), 1e9, freedom)))
        half = np.broadcast_to(quantile * np.sqrt(variance) + extra, gap.shape)
        if not stated:
            return gap - half, gap + half
        widen = max(quantile.max() / stats.norm.ppf(0.975), 1.0) if level > 0.95 else 1.0
        p_half = np.sqrt(predicted.error**2) * quantile if p_chance else extra
        return gap - below * widen - p_half, gap + above * widen + p_half

    return interval


def _inside(low: Array, high: Array, limit: Array, side: Relation) -> np.ndarray[Any, Any]:
    above, below = low >= -limit, high <= limit
    return np.asarray(below if side == "at_most" else above if side == "at_least" else above & below)


def _outside(low: Array, high: Array, limit: Array, side: Relation) -> np.ndarray[Any, Any]:
    over, under = low > limit, high < -limit
    return np.asarray(over if side == "at_most" else under if side == "at_least" else over | under)


def _why(
    outcome: Outcome,
    worst: int,
    outcomes: list[Outcome],
    gap: Array,
    low: Array,
    high: Array,
    limit: Array,
    side: Relation,
    measured: Reading,
    predicted: Reading,
    trivial: float | None,
) -> str:
    at = ""
    if gap.shape:
        names = measured.axes[0].values if len(measured.axes) == 1 and len(measured.axes[0].values) == gap.size else None
        place = f"element {worst}" if names is None else f"{measured.axes[0].name} {_name(names[worst])}"
        at = f"{outcomes.count(outcome)} of {gap.size} elements, first at {place}: "
    a, b, tol = low.flat[worst], high.flat[worst], limit.flat[worst]
    span = f"[{format_number(float(a))}, {format_number(float(b))}]"
    allowed = {"at_most": f"at most {format_number(float(tol))}", "at_least": f"at least {format_number(-float(tol))}"}.get(side, f"within ±{format_number(float(tol))}")
    if outcome == "vacuous":
        value = float(np.broadcast_to(predicted.value, gap.shape).flat[worst])
        if trivial is not None and (value >= trivial if side == "at_most" else value <= trivial):
            return f"{at}the bound, {format_number(value)}, says no more than its trivial value, {format_number(trivial)}"
        return f"{at}the tolerance, {format_number(float(tol))}, reaches half of what is predicted, {format_number(value)}"
    if outcome == "holds":
        inside = "the 90 % interval of the gap" if gap.size == 1 else "every 90 % interval of the gap"
        return f"{inside} lies inside the tolerance ({span}; allowed {allowed})" if gap.size == 1 else f"{inside} lies inside the tolerance"
    if outcome == "fails":
        return f"{at}the interval of the gap, {span}, lies outside the tolerance (allowed {allowed})"
    return f"{at}the 90 % interval of the gap, {span}, crosses the tolerance (allowed {allowed})" + _replicates_needed(
        float(gap.flat[worst]), float(a), float(b), float(tol), side, measured
    )


def _name(place: float | str) -> str:
    return place if isinstance(place, str) else f"{place:g}"


def _replicates_needed(gap: float, low: float, high: float, tolerance: float, side: Relation, measured: Reading) -> str:
    if measured.error_kind not in CHANCE or not measured.n or not math.isfinite(low + high):
        return ""
    edges = {"at_most": [tolerance], "at_least": [-tolerance]}.get(side, [tolerance, -tolerance])
    room = min(abs(gap - edge) for edge in edges)
    if room == 0:
        return "; no number of replicates decides a gap at the tolerance's edge"
    needed = math.ceil(measured.n * ((high - low) / 2 / room) ** 2 * 1.1) + 1
    return f"; about {format_number(max(needed, measured.n + 1), 2)} replicates would decide it, {measured.n} were made"
