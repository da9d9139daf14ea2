"""The chapter `dynamics`: does noise limit the steps, how far would a larger batch help, what noise costs, does one step do what it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gnomon.core.facts import Facts
from gnomon.core.judge import Verdict
from gnomon.core.reading import Reading, format_number
from gnomon.examination import stochastic
from gnomon.examination.row import Row
from gnomon.theory import dynamics as theory

ORDER = 20
TITLE = "Training dynamics"
THEORY = (
    "A batch of $B$ examples gives the gradient $G$ with noise of size $\\mathrm{tr}\\,\\Sigma/B$. The best learning rate is $\\eta_{max}/(1+B_{noise}/B)$ with "
    "$B_{noise}=\\mathrm{tr}\\,\\Sigma/|G|^2$: while $B$ is far below $B_{noise}$, twice the batch may have twice the learning rate and needs half the steps (the "
    "linear-scaling rule); far above it a larger batch gains nothing. One step changes the loss by $-\\eta\\,G\\cdot g_B+\\frac{\\eta^2}{2}g_B^T H g_B$, as long as the "
    "next order is small. Where $\\eta$ times the curvature is small, SGD follows the stochastic differential equation "
    "$d\\theta=-G\\,dt+\\sqrt{\\eta\\Sigma/B}\\,dW$; SVAG, with $l$ times as many steps of $\\eta/l$ and noise made larger by $\\sqrt l$, tends to it. About a minimum the noise "
    "costs $\\frac12\\mathrm{tr}\\,HC$ in loss, near $\\eta\\,\\mathrm{tr}\\,\\Sigma/4B$ for short steps."
)
ASSUMES = (
    "the loss is quadratic along one step",
    "the Hessian weighs all directions alike, so that the noise scale needs no curvature",
    "the noise scale is that of the network as it stands: it grows as the loss falls",
)
FAR = 4.0
"""Factor between batch and noise scale beyond which one is said to be far from the other."""


def chapter(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    """The rows of this chapter."""
    noise = readings.get("gradient_noise_scale")
    if noise is not None:
        yield _noise(facts, noise)
        yield from _scaling(facts, noise)
    yield from stochastic.rows(facts, readings)
    yield from _step(facts, readings)


def _full_batch(facts: Facts) -> bool:
    return facts.training.batch_size is not None and facts.training.batch_size >= facts.train_population


def _noise(facts: Facts, noise: Reading) -> Row:
    batch = facts.training.batch_size
    low, high = noise.ends()
    if batch is None:
        words = "the batch size is not known"
        advice = (
            f"State the batch size (--batch-size) to compare: batches up to about {_round(max(float(noise), low))} examples save steps in proportion, larger ones less and less."
        )
        return Row("gradient noise scale", measured=noise, words=words, advice=advice, headline=True)
    predicted = theory.linear_scaling_limit(batch)
    if _full_batch(facts):
        why = f"the batch ({batch:,}) holds all {facts.train_population:,} examples: full-batch steps have no gradient noise"
        return Row("gradient noise scale", predicted, noise, "at_least", out_of_scope=why, words="full-batch steps have no noise", headline=True)
    because = "the linear-scaling rule holds while the batch is below the noise scale"
    words = f"your batch ({batch:,}) is {_place(batch, low, high, float(noise))}"
    return Row("gradient noise scale", predicted, noise, "at_least", 0.0, because=because, words=words, advice=_advice(facts, noise), headline=True)


def _place(batch: int, low: float, high: float, value: float) -> str:
    if batch * FAR <= low:
        return "far below"
    if batch < low:
        return "below"
    if batch >= FAR * high:
        return "far above"
    return "above" if batch > high else "near" if value / 2 <= batch <= 2 * value else "near, as far as the error tells"


def _round(value: float) -> str:
    return format_number(float(f"{value:.1e}"), 2)


def _advice(facts: Facts, noise: Reading) -> str:
    batch = facts.training.batch_size
    assert batch is not None
    low, high = noise.ends()
    value = max(float(noise), low)
    if batch < low:
        new = min(4 * batch, facts.train_population)
        ratio = theory.steps_ratio(value, batch, new)
        ends = f"above batch {_round(value)} the gain ends" if high < float("inf") else f"the gain ends somewhere above batch {_round(low)}"
        return f"Noise limits you: batch {new:,} needs about {format_number(ratio, 2)} times the steps if lr may grow with it ({format_number(1 / ratio, 2)} times); {ends}."
    if batch > high:
        new = max(batch // 2, 1)
        more = 100 * (theory.steps_ratio(value, batch, new) - 1)
        saved = 100 * (1 - theory.steps_ratio(value, batch, new) * new / batch)
        return (
            f"Your batch is larger than the noise asks for: batch {new:,} costs only {format_number(more, 2)} % more steps and saves {format_number(saved, 2)} % of the examples."
        )
    saved = 100 * (1 - theory.steps_ratio(value, batch, 2 * batch))
    return f"Your batch is about right: batch {2 * batch:,} would save {format_number(saved, 2)} % of the steps for twice the examples in each."


def _scaling(facts: Facts, noise: Reading) -> Iterator[Row]:
    batch = facts.training.batch_size
    if batch is None or _full_batch(facts):
        return
    value = max(float(noise), noise.ends()[0])
    ratio = theory.lr_ratio(value, batch, 2 * batch)
    lr = facts.training.lr
    adaptive = facts.training.optimizer in ("adam", "adamw")
    to = " (of plain gradient descent; Adam's grows more slowly)" if adaptive else "" if lr is None else f", from {format_number(lr)} to {format_number(lr * ratio)}"
    lost = "the linear-scaling rule still holds" if ratio > 1.8 else "the linear-scaling rule is breaking" if ratio > 1.2 else "the linear-scaling rule is broken"
    words = f"twice the batch may have {format_number(ratio)} times the learning rate{to}: {lost} (it breaks at batch {_round(value)})"
    yield Row("where linear scaling breaks", predicted=theory.learning_rate_curve(value, batch), words=words)


def _step(facts: Facts, readings: Mapping[str, Reading]) -> Iterator[Row]:
    change, terms = readings.get("sgd_step_change"), readings.get("sgd_step_terms")
    if change is None or terms is None or facts.training.lr is None:
        return
    if change.details["batches"] != terms.details["batches"] or change.details["batch"] != terms.details["batch"]:
        yield Row("one step's change of the loss", measured=change, words="slope and curvature were measured on other batches")
        return
    predicted = theory.sgd_step(terms.details["first"], terms.details["second"], facts.training.lr)
    first, second = predicted.details["first_order"], predicted.details["second_order"]
    share = abs(second / first) if first else float("inf")

    def words(verdict: Verdict) -> str:
        sense = "lowers" if float(change) < 0 else "raises"
        if verdict.outcome == "vacuous":
            return f"one step {sense} the loss; it is too long for slope and curvature to foretell it"
        cost = (
            f"curvature takes back {format_number(100 * share, 2)} % of what the slope gives"
            if second >= 0
            else f"curvature adds {format_number(100 * share, 2)} % to what the slope gives"
        )
        if verdict.outcome == "holds":
            return f"one step {sense} the loss as slope and curvature say: {cost}"
        return f"one step {sense} the loss, not as slope and curvature say: higher orders matter at this learning rate"

    def advice(verdict: Verdict) -> str | None:
        lr = facts.training.lr
        if lr is None or verdict.outcome != "holds" or first >= 0 or second <= 0 or facts.training.optimizer in ("adam", "adamw") or facts.training.momentum:
            return None
        best = theory.best_step(lr, first, second)
        if 0.5 < best / lr < 2:
            return None
        longer = "longer" if best > lr else "shorter"
        return (
            f"Single steps would lower the loss most at lr {format_number(best, 2)}, {longer} than yours ({format_number(lr)}); over many steps the stability limit counts as well."
        )

    because = "twice the next order, were the series geometric: 2 (second-order term)² / |first-order term|"
    yield Row("one step's change of the loss", predicted, change, "equal", because=because, words=words, advice=advice)
