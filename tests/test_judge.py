"""The judge, proved by simulation and on cases whose verdict is known."""

import numpy as np
import pytest
from scipy import stats

from gnomon.core.errors import InvalidInput
from gnomon.core.judge import judge
from gnomon.core.reading import Axis, Reading

TRIALS = 20_000
NOISES = {
    "gaussian": (lambda rng, size: rng.standard_normal(size), 1.0),
    "t3": (lambda rng, size: rng.standard_t(3, size), 3**0.5),
    "chi2_30": (lambda rng, size: rng.chisquare(30, size) - 30, 60**0.5),
}


def outcomes(kind, replicates, *, gap, tolerance, sign=1.0):
    """One outcome a trial; trials are the elements of an array, so each is tested at its own 90 % interval."""
    draw, _ = NOISES[kind]
    samples = 1000.0 + sign * gap + draw(np.random.default_rng(2024), (replicates, TRIALS))
    measured = Reading.of_samples("m", samples, unit="", error_kind="seed")
    return np.asarray(judge(Reading.predicted("p", np.full(TRIALS, 1000.0), unit=""), measured, tolerance=tolerance).elements)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("replicates", [3, 5, 10])
@pytest.mark.parametrize(("kind", "most"), [("gaussian", 0.06), ("t3", 0.06), ("chi2_30", 0.08)])
def test_a_gap_at_the_tolerance_seldom_holds(kind, most, replicates, sign):
    scale = NOISES[kind][1]
    for tolerance in (scale, 3 * scale, 20 * scale):
        assert np.mean(outcomes(kind, replicates, gap=tolerance, tolerance=tolerance, sign=sign) == "holds") <= most


def test_no_gap_and_room_of_five_standard_errors_holds():
    assert np.mean(outcomes("gaussian", 10, gap=0.0, tolerance=5 / 10**0.5) == "holds") >= 0.99


def test_a_gap_well_outside_fails_and_one_inside_never_does():
    wide = outcomes("gaussian", 10, gap=60.0, tolerance=3.0)
    assert np.mean(wide == "fails") == 1.0
    assert not np.any(outcomes("gaussian", 10, gap=1.0, tolerance=3.0) == "fails")


def test_false_failures_over_an_array_are_rare_at_the_bonferroni_level():
    rng = np.random.default_rng(7)
    predicted = Reading.predicted("p", np.full(20, 100.0), unit="")
    fails = 0
    for _ in range(2000):
        measured = Reading.of_samples("m", 101.0 + rng.standard_normal((5, 20)), unit="", error_kind="seed")
        fails += judge(predicted, measured, tolerance=1.0).outcome == "fails"
    assert fails / 2000 <= 0.07


def scalar(value, error=0.1, n=None, kind="seed", **more):
    return Reading("m", value, "", error=error, error_kind=kind, n=n, **more)


def predicted(value, **more):
    return Reading.predicted("p", value, unit="", **more)


def test_interval_is_students_t():
    verdict = judge(predicted(10.0), Reading.of_samples("m", np.array([9.0, 10.0, 12.0]), unit="", error_kind="seed"), tolerance=2.0)
    samples = np.array([9.0, 10.0, 12.0])
    half = stats.t.ppf(0.95, 2) * samples.std(ddof=1) / 3**0.5
    assert np.allclose(verdict.interval, (samples.mean() - 10 - half, samples.mean() - 10 + half))


@pytest.mark.parametrize(("predicted_value", "tolerance", "trivial", "relation", "expected"), [
    (1.0, 0.5, None, "equal", "vacuous"), (1.0, 0.49, None, "equal", "holds"), (-1.0, 0.5, None, "equal", "vacuous"),
    (1.2, 0.0, 1.0, "at_most", "vacuous"), (1.5, 0.0, 2.0, "at_most", "holds"), (0.5, 0.0, 0.6, "at_least", "vacuous"),
])  # fmt: skip
def test_vacuous(predicted_value, tolerance, trivial, relation, expected):
    measured = scalar(predicted_value, error=0.01)
    if relation == "at_most":
        measured = scalar(predicted_value - 0.2, error=0.01)
    assert judge(predicted(predicted_value), measured, relation=relation, tolerance=tolerance, trivial=trivial).outcome == expected


def test_a_prediction_of_zero_needs_a_scale():
    with pytest.raises(InvalidInput, match="scale"):
        judge(predicted(0.0), scalar(0.0), tolerance=0.1)
    assert judge(predicted(0.0), scalar(0.0, error=0.01), tolerance=0.1, scale=1.0).outcome == "holds"
    assert judge(predicted(0.0), scalar(0.0, error=0.01), tolerance=0.5, scale=1.0).outcome == "vacuous"
    assert judge(predicted(0.0), scalar(1e-15, kind="bound", error=1e-15), tolerance=1e-14, scale=1.0).outcome == "holds"


def test_bounds_widen_and_truncation_is_the_tolerance():
    measured = scalar(10.0, error=0.5, kind="bound")
    assert judge(predicted(10.0), measured, tolerance=0.6).outcome == "holds"
    assert judge(predicted(10.0, error=0.2, error_kind="bound"), measured, tolerance=0.6).outcome == "inconclusive"
    assert judge(predicted(10.0, error=0.6, error_kind="truncation"), measured).outcome == "holds"
    assert judge(predicted(10.0, error=0.6, error_kind="truncation"), measured, tolerance=0.4).outcome == "inconclusive"
    with_bound = scalar(10.0, error=0.01, kind="sample", n=16, details={"bound": 0.7})
    assert judge(predicted(10.0), with_bound, tolerance=0.6).outcome == "inconclusive"


def test_at_most_and_at_least_with_open_intervals():
    open_above = Reading("B", 900.0, "", error=np.inf, error_kind="sample", n=16, interval=(300.0, np.inf))
    assert judge(predicted(128.0), open_above, relation="at_least").outcome == "holds"
    assert judge(predicted(512.0), open_above, relation="at_least").outcome == "inconclusive"
    assert judge(predicted(128.0), open_above, relation="at_most").outcome == "fails"


def test_lopsided_interval_is_used():
    lopsided = Reading("B", 1900.0, "", error=150.0, error_kind="sample", n=16, interval=(1850.0, 3500.0))
    assert judge(predicted(1840.0), lopsided, relation="at_least").outcome == "holds"
    assert judge(predicted(3400.0), lopsided, relation="at_most").outcome == "inconclusive"


def test_exponent_is_the_slope_over_its_axis():
    x = np.array([16.0, 32.0, 64.0, 128.0])
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal((8, 4))
    measured = Reading.of_samples("m", 3 * x**-0.5 * noise, unit="", error_kind="seed", axes=(Axis("width", tuple(x)),))
    assert judge(predicted(-0.5), measured, relation="exponent", tolerance=0.05).outcome == "holds"
    assert judge(predicted(-1.0), measured, relation="exponent", tolerance=0.05).outcome == "fails"
    assert np.isclose(judge(predicted(-0.5), measured, relation="exponent", tolerance=0.05).gap, np.polyfit(np.log(x), np.log(measured.samples).mean(0), 1)[0] + 0.5)


def test_order_and_monotone():
    rng = np.random.default_rng(0)
    rising = Reading.of_samples("m", np.array([1.0, 2.0, 3.0]) + 0.1 * rng.standard_normal((6, 3)), unit="", error_kind="seed")
    assert judge(predicted(1.0), rising, relation="monotone").outcome == "holds"
    assert judge(predicted(-1.0), rising, relation="monotone").outcome == "fails"
    assert judge(predicted(np.array([5.0, 6.0, 9.0])), rising, relation="order").outcome == "holds"
    assert judge(predicted(np.array([9.0, 6.0, 5.0])), rising, relation="order").outcome == "fails"
    common = rng.standard_normal((6, 1))
    paired = Reading.of_samples("m", np.array([1.0, 1.3]) + 5 * common + 0.01 * rng.standard_normal((6, 2)), unit="", error_kind="seed")
    assert judge(predicted(1.0), paired, relation="monotone").outcome == "holds", "differences are paired by replicate"


def test_replicates_are_paired_with_a_predictions():
    shared = np.random.default_rng(1).standard_normal(20)
    p = Reading.of_samples("p", 10 + 5 * shared, unit="", error_kind="seed", role="predicted")
    m = Reading.of_samples("m", 10.01 + 5 * shared, unit="", error_kind="seed")
    assert judge(p, m, tolerance=0.1).outcome == "holds"


def test_inconclusive_says_how_many_replicates():
    measured = Reading.of_samples("m", np.array([9.0, 10.0, 11.0, 10.5, 9.2]), unit="", error_kind="seed")
    verdict = judge(predicted(10.0), measured, tolerance=0.5)
    assert verdict.outcome == "inconclusive"
    assert "replicates would decide" in verdict.why


@pytest.mark.parametrize("bad", [
    lambda: judge(predicted(1.0), scalar(1.0), relation="equals", tolerance=0.1),
    lambda: judge(predicted(1.0), scalar(1.0)),
    lambda: judge(predicted(1.0), scalar(1.0), tolerance=-1.0),
    lambda: judge(predicted(1.0), scalar(1.0, n=1), tolerance=0.1),
    lambda: judge(predicted(np.ones(3)), scalar(np.ones(4)), tolerance=0.1),
    lambda: Reading("m", float("nan"), ""),
])  # fmt: skip
def test_bad_input_is_refused(bad):
    with pytest.raises(InvalidInput):
        bad()
