"""Larger batches: what the linear and the square-root rule keep, where they break, and what a target costs in steps and in examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.reading import Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.theory.stochastic.quadratic import DIEULEVEUT_2020, Quadratic
from gnomon.theory.stochastic.stationary import exact_covariance, excess_loss

Rule = Literal["linear", "square_root"]
GOYAL_2017 = Source("goyal2017")
MCCANDLISH_2018 = Source("mccandlish2018")


def scaled(sgd: Sgd, factor: float, rule: Rule) -> Sgd:
    """k times the batch, with k times the learning rate (`linear`, keeps lr / B and so the stochastic differential equation) or sqrt(k) times (`square_root`, keeps
    lr^2 / B, the covariance of one step).

    Raises: InvalidInput for another rule, a batch that is not whole, or one larger than the data.   Source: Goyal et al. 2017, section 2.1 (linear).
    """
    if rule not in get_args(Rule):
        raise unknown("scaling rule", str(rule), get_args(Rule))
    batch = sgd.batch_size * factor
    if factor <= 0 or abs(batch - round(batch)) > 1e-9 * batch:
        raise InvalidInput(f"{factor:g} times a batch of {sgd.batch_size} is not a whole number of examples; take another factor.")
    return sgd.replace(batch_size=round(batch), lr=sgd.lr * (factor if rule == "linear" else math.sqrt(factor)))


def scaling_departure(problem: Quadratic, sgd: Sgd, factors: Sequence[float], *, rule: Rule) -> Reading:
    """How far the stationary excess loss is from that of the batch in use, relative to it, at k times the batch under a rule: loss(k) / loss(1) - 1.

    The stochastic differential equation says 0 for `linear`, whatever k; the steps themselves depart as lr lambda_max grows.

    Shapes: value (factors,).   Units: none.   Error: exact on least squares.   Assumes: as `exact_covariance`.   Cost: that of it, a factor.
    Raises: as `scaled` and `exact_covariance`: a factor at which the steps diverge is out of scope.
    Source: Goyal et al. 2017, section 2.1 (the rule); Dieuleveut, Durmus & Bach 2020 (the moments).
    """
    base = _loss(problem, sgd)
    values = [_loss(problem, scaled(sgd, factor, rule)) / base - 1 for factor in factors]
    axis = Axis("batch, times that in use", tuple(map(float, factors)), scale="log")
    return Reading.predicted("scaling_departure", values, unit="", axes=(axis,), source=DIEULEVEUT_2020, assumes=("a quadratic loss", "a stationary state"))


def scaling_break(problem: Quadratic, sgd: Sgd, *, rule: Rule, departure: float = 0.1) -> Reading:
    """The factor from which on a scaling rule changes the stationary excess loss by more than `departure`, relative, or makes the steps diverge.

    Shapes: value (); `details` says which of the two.   Units: none.   Error: bound, one example of the batch.   Assumes: as `exact_covariance`; a departure that grows.
    Cost: that of `exact_covariance`, some ten times.
    Raises: OutOfScope where the rule holds up to a batch of all the data, or the steps in use diverge; InvalidInput for a departure that is not positive.
    Source: Goyal et al. 2017, section 2.1 (the rule); Dieuleveut, Durmus & Bach 2020 (the moments).
    """
    if departure <= 0:
        raise InvalidInput(f"A departure must be above 0, not {departure:g}.")
    base = _loss(problem, sgd)

    def why(batch: int) -> str:
        try:
            loss = _loss(problem, scaled(sgd, batch / sgd.batch_size, rule))
        except OutOfScope:
            return "diverges"
        return "departs" if abs(loss / base - 1) > departure else ""

    low, high = sgd.batch_size, 2 * sgd.batch_size
    while high < sgd.examples and not why(high):
        low, high = high, 2 * high
    high = min(high, sgd.examples)
    if not why(high):
        raise OutOfScope(f"the {rule.replace('_', ' ')} rule keeps the loss within {departure:g} up to a batch of all {sgd.examples} examples")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if why(middle) else (middle, high)
    return Reading.predicted(
        "scaling_break", high / sgd.batch_size, unit="", error=1 / sgd.batch_size, error_kind="bound", source=GOYAL_2017.at("section 2.1"),
        assumes=("a quadratic loss", "a stationary state"), details={"because": why(high), "batch_size": high, "lr": scaled(sgd, high / sgd.batch_size, rule).lr},
    )  # fmt: skip


def critical_batch_size(fewest_steps: float, fewest_examples: float) -> Reading:
    """The batch size at which a target takes twice the fewest steps and twice the fewest examples: B_crit = E_min / S_min.

    Shapes: value ().   Units: examples.   Error: exact within its assumptions.   Assumes: each batch size at its best learning rate, one noise scale all along.   Cost: none.
    Raises: InvalidInput for numbers that are not positive.   Source: McCandlish et al. 2018, section 2.3.
    """
    if not (fewest_steps > 0 and fewest_examples > 0):
        raise InvalidInput(f"The fewest steps and examples must be above 0, not {fewest_steps:g} and {fewest_examples:g}.")
    return Reading.predicted(
        "critical_batch_size", fewest_examples / fewest_steps, unit="examples", source=MCCANDLISH_2018.at("section 2.3"), assumes=("one noise scale all along",)
    )


def steps_and_examples(fewest_steps: float, fewest_examples: float, batches: Sequence[float]) -> Reading:
    """What a target costs at each batch size: (S / S_min - 1)(E / E_min - 1) = 1, that is S = S_min (1 + B_crit / B) and E = E_min (1 + B / B_crit).

    Shapes: value (2, batches): steps, examples.   Units: steps; examples.   Error: exact within its assumptions.   Assumes: as `critical_batch_size`.   Cost: none.
    Raises: InvalidInput for numbers that are not positive.   Source: McCandlish et al. 2018, section 2.3.
    """
    critical, sizes = float(critical_batch_size(fewest_steps, fewest_examples)), np.asarray(batches, dtype=np.float64)
    if sizes.ndim != 1 or not (sizes > 0).all():
        raise InvalidInput("Batch sizes must be a list of numbers above 0: leave out those that are not.")
    value = np.stack([fewest_steps * (1 + critical / sizes), fewest_examples * (1 + sizes / critical)])
    axes = (Axis("cost", ("steps", "examples")), Axis("batch size", tuple(sizes.tolist()), "examples", "log"))
    return Reading.predicted("steps_and_examples", value, unit="steps, examples", axes=axes, source=MCCANDLISH_2018.at("section 2.3"), assumes=("one noise scale all along",))


def _loss(problem: Quadratic, sgd: Sgd) -> float:
    return float(excess_loss(exact_covariance(problem, sgd), problem.hessian))
