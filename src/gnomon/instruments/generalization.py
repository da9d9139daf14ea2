"""Errors on new data: test error, gap to the training error, confidence and its scale, and the error of a network with noisy weights."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core import loss as losses
from gnomon.core import rng as chance
from gnomon.core.dataset import Dataset, leaves
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.outcomes import NOT_PROBABILITIES, UNITS, Kind, Outcomes, bounded_interval, kind_of, labelled, of_block, outcomes, variance
from gnomon.numerics.measuring import measuring
from gnomon.numerics.statistics import finite_population_factor, student_quantile

CLOPPER_1934 = Source("clopper1934")
NEWCOMBE_1998 = Source("newcombe1998")
LANGFORD_2005 = Source("langford2005")
GUO_2017 = Source("guo2017")
DZIUGAITE_2017 = Source("dziugaite2017")

FORWARD = 1 / 3
"""A forward pass, in gradients."""
CLIP = 4.0
"""A squared error counts up to this many times that of the mean target: two standard deviations."""
FIRST_PART = 4
"""One in so many test examples goes to the bound; the others measure."""
SCORES = 2**20
"""Numbers in the logits that the confidence's scale is fitted to."""
GROUPS = 16
"""Groups of examples that are left out one at a time."""
LARGEST_SCALE = 64.0
"""Scale of the logits beyond which nothing speaks against certainty."""
FIRST_NOISE = 16.0
"""Noise is tried at 16 x 2^(-j/2), a grid fixed before the data were seen."""
DIVERGENCE = 0.1
"""Noise is as small as keeps |theta - theta_0|^2 / (2 sigma^2) below about this much an example."""
BATCH = 8
"""Examples on which one draw of the weights is tried."""


def _test_pass(subject: Subject) -> float:
    """A forward pass over the test data, in gradients of the training data."""
    return FORWARD * (len(subject.test) if subject.test else 0) / len(subject.train)


def _mean_interval(found: Outcomes, factor: float = 1.0) -> tuple[float, float, float]:
    """Standard error and 95 % interval of a mean of outcomes, for the factor 1 - n/N."""
    error = math.sqrt(variance(found.sums, found.counts, factor=factor))
    if found.kind != "loss":
        return error, *bounded_interval(found.sums, found.counts, factor=factor)
    half = student_quantile(0.975, max(len(found.sums) - 1, 1)) * error
    return error, found.value - half, found.value + half


def _said(found: Outcomes) -> tuple[str, ...]:
    return (
        (f"{int(found.counts.sum()):,} targets in {len(found.sums):,} examples; those of one example are taken together",)
        if found.counts.max() > 1 and found.kind != "loss"
        else ()
    )


def exact_test_error(subject: Subject) -> float:
    """The mean over all test targets."""
    return outcomes(subject, "test").value


@instrument(topic="generalization", needs=("test",), truth=exact_test_error, cost=lambda subject: Cost(gradients=_test_pass(subject)))
def test_error(subject: Subject, *, rng: Generator) -> Reading:
    """Error rate on the test data: wrong classes over targets (tokens) that are not ignored; for regression the mean loss.

    Shapes: value ().   Units: none (error rate), or those of the loss.
    Error: over test examples: Clopper & Pearson's interval, for tokens with as many trials as have the variance between examples (Korn & Graubard); Student's for a loss.
    Assumes: test examples are drawn independently from where the network is to work.   Cost: a forward pass of the test data.
    Raises: OutOfScope without test data.
    Source: Clopper & Pearson 1934; Korn & Graubard 1998.
    """
    found = outcomes(subject, "test")
    error, low, high = _mean_interval(found)
    return Reading(
        "test_error", found.value, UNITS[found.kind], error=error or (high - low) / 4, error_kind="sample", n=len(found.sums), interval=(low, high), source=CLOPPER_1934, assumes=_said(found),
        details={"kind": found.kind, "examples": len(found.sums), "targets": float(found.counts.sum())},
    )  # fmt: skip


vars(test_error)["__test__"] = False  # not a test, whatever its name


def exact_gap(subject: Subject) -> float:
    """Mean over test targets less that over training targets."""
    return outcomes(subject, "test").value - outcomes(subject, "train").value


@instrument(topic="generalization", needs=("test",), truth=exact_gap, essential=True, shares="test_error", cost=lambda subject: Cost(gradients=FORWARD))
def generalization_gap(subject: Subject, *, rng: Generator) -> Reading:
    """Generalization gap: test error less training error, of classes or tokens; for regression the difference of the mean losses.

    Shapes: value ().   Units: none (error rate), or those of the loss.
    Error: over test examples, and over training examples where they are a sample of the training set (factor 1 - n/N).  For error rates the two intervals are
    put together as Newcombe does, low = d - sqrt((p - l)^2 + (U - q)^2), which stays right near 0; for losses by Welch's t.
    Assumes: as `test_error`; eval mode on both.   Cost: a forward pass of both.   Raises: OutOfScope without test data.
    Source: Newcombe 1998, method 10 (with the intervals of `test_error`).
    """
    new, seen = outcomes(subject, "test"), outcomes(subject, "train")
    left = finite_population_factor(len(subject.train), subject.train.population) ** 2
    value = new.value - seen.value
    a, b = variance(new.sums, new.counts), variance(seen.sums, seen.counts, factor=left)
    if new.kind == "loss":
        n, m = len(new.sums), len(seen.sums)
        freedom = (a + b) ** 2 / max(a**2 / max(n - 1, 1) + b**2 / max(m - 1, 1), 1e-300)
        half = student_quantile(0.975, max(freedom, 1.0)) * math.sqrt(a + b)
        low, high = value - half, value + half
    else:
        _, new_low, new_high = _mean_interval(new)
        _, seen_low, seen_high = _mean_interval(seen, left)
        low = value - math.hypot(new.value - new_low, seen_high - seen.value)
        high = value + math.hypot(new_high - new.value, seen.value - seen_low)
    return Reading(
        "generalization_gap", value, UNITS[new.kind], error=math.sqrt(a + b) or (high - low) / 4, error_kind="sample", n=len(new.sums), interval=(low, high), source=NEWCOMBE_1998.at("method 10"),
        assumes=_said(new), details={"kind": new.kind, "test": new.value, "train": seen.value, "test_examples": len(new.sums), "train_examples": len(seen.sums)},
    )  # fmt: skip


def _constant_loss(subject: Subject) -> float:
    """Mean squared error of predicting the mean training target."""
    targets = torch.cat([leaves(block.targets)[0].reshape(len(block), -1).double() for block in subject.train.blocks])
    return float(((targets - targets.mean(0)) ** 2).mean())


def _bounded(subject: Subject) -> tuple[Array, float]:
    """One number between 0 and 1 for each test example, and what it is to be multiplied by.  Raises: OutOfScope for a loss without a natural bound."""
    found = outcomes(subject, "test")
    if found.kind != "loss":
        return found.sums / found.counts, 1.0
    function = subject.loss.function
    if function not in (losses.mse, torch.nn.functional.mse_loss) and not isinstance(function, torch.nn.MSELoss):
        raise OutOfScope(f"a bound on new data needs an error between two limits; the loss {subject.loss.name!r} has none that is known")
    scale = CLIP * _constant_loss(subject)
    if scale == 0:
        raise OutOfScope("every training target is the same")
    per_example = found.sums / found.counts
    if subject.loss.reduction == "sum":
        per_example = per_example / max(sum(leaf[0].numel() for leaf in leaves(subject.train.blocks[0].targets)), 1)
    return np.minimum(per_example / scale, 1.0), scale


def exact_held_out(subject: Subject) -> float:
    """The mean bounded error over all test examples."""
    values, scale = _bounded(subject)
    return float(values.mean()) * scale


@instrument(topic="generalization", needs=("test",), truth=exact_held_out, shares="test_error", cost=lambda subject: Cost())
def held_out_error(subject: Subject, *, rng: Generator) -> Reading:
    """Error on a random three quarters of the test examples; the sum over the other quarter, which a bound may be made from, stands in `details`.

    The error of an example lies between two limits: wrong or right; the fraction of its tokens that are wrong; for regression the squared error, counted up to
    four times that of predicting the mean training target.

    Shapes: value ().   Units: none, or those of the loss.   Error: over test examples, as `test_error`.
    Assumes: as `test_error`.   Cost: shared with `test_error`.
    Raises: OutOfScope without test data, with fewer than 8 test examples, or for a loss without a natural bound.
    Source: Langford 2005, section 3.
    """
    values, scale = _bounded(subject)
    if len(values) < 8:
        raise OutOfScope(f"a bound and its test need at least 8 test examples; here are {len(values)}")
    order = chance.permutation(len(values), rng=rng).numpy()
    first, rest = values[order[: len(values) // FIRST_PART]], values[order[len(values) // FIRST_PART :]]
    ones = np.ones(len(rest))
    low, high = bounded_interval(rest, ones)
    error = math.sqrt(variance(rest, ones)) or (high - low) / 4
    kind = kind_of(subject)
    details = {
        "kind": kind, "first_sum": float(first.sum()), "first": len(first), "whole": bool(np.isin(values, (0.0, 1.0)).all()) and kind != "loss", "scale": scale,
        "constant": scale / CLIP if kind == "loss" else None,
    }  # fmt: skip
    return Reading(
        "held_out_error", scale * float(rest.mean()), UNITS[kind], error=scale * error, error_kind="sample", n=len(rest), interval=(scale * low, scale * high), source=LANGFORD_2005.at("section 3"),
        details=details,
    )  # fmt: skip


def _with_confidence(subject: Subject) -> Outcomes:
    found = outcomes(subject, "test")
    if found.kind == "loss" or isinstance(subject.loss.function, NOT_PROBABILITIES):
        raise OutOfScope("confidence is that of a classifier trained by cross-entropy; this network is " + ("none" if found.kind == "loss" else f"trained by {subject.loss.name}"))
    return found


def exact_confidence(subject: Subject) -> float:
    """Mean of the largest probability over all test targets."""
    found = _with_confidence(subject)
    return float(found.confidences.sum() / found.counts.sum())


@instrument(topic="generalization", needs=("test",), truth=exact_confidence, shares="test_error", cost=lambda subject: Cost())
def confidence(subject: Subject, *, rng: Generator) -> Reading:
    """Mean confidence on the test inputs: the largest probability of the softmax (of the sigmoid and its complement), over targets that are not ignored.

    Shapes: value ().   Units: none (probability).   Error: over test examples, as `test_error`; `details` hold the gap, errors less 1 - confidence, and its
    standard error on the same examples, at least that of a calibrated network.
    Assumes: the output holds logits, or log-probabilities.   Cost: shared with `test_error`.
    Raises: OutOfScope without test data, for regression and for losses that make no probabilities.
    Source: Guo et al. 2017, section 2.
    """
    found = _with_confidence(subject)
    low, high = bounded_interval(found.confidences, found.counts)
    error = math.sqrt(variance(found.confidences, found.counts)) or (high - low) / 4
    total = found.counts.sum()
    sure = np.clip(found.confidences / found.counts, 0.0, 1.0)
    # of errors few of which were seen the spread says little: it is at least what a calibrated network's would be
    least = float((found.counts * sure * (1 - sure)).sum()) / total**2
    gap_error = math.sqrt(max(variance(found.sums + found.confidences, found.counts), least))
    return Reading(
        "confidence", float(found.confidences.sum() / total), "", error=error, error_kind="sample", n=len(found.sums), interval=(low, high), source=GUO_2017.at("section 2"), assumes=_said(found),
        details={"gap": float((found.sums + found.confidences).sum() / total - 1), "gap_error": gap_error},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Logits of test targets, true class, and the number of the example that each belongs to.  Shapes: (m, classes), (m,), (m,)."""

    logits: Tensor
    labels: Tensor
    owner: Tensor

    def fit(self, weights: Tensor) -> float:
        """The scale b that minimises the mean of -log softmax(b z)_y, by Newton's method kept inside a bracket; weights (m,)."""
        low, high, b = -LARGEST_SCALE, LARGEST_SCALE, 1.0
        own = self.logits.gather(1, self.labels[:, None])[:, 0]
        for _ in range(100):
            p = torch.softmax(b * self.logits, 1)
            mean = (p * self.logits).sum(1)
            slope = float((weights * (mean - own)).sum())
            curvature = float((weights * ((p * self.logits**2).sum(1) - mean**2)).sum())
            low, high = (b, high) if slope < 0 else (low, b)
            step = b - slope / curvature if curvature > 0 else math.inf
            following = step if low < step < high else (low + high) / 2
            if abs(following - b) <= 1e-13 * max(abs(b), 1e-3) or high - low < 1e-12:
                return following
            b = following
        return b

    def gap(self, b: float, chosen: Tensor) -> float:
        """Mean confidence at scale b less the rate of right answers, over some targets."""
        logits = self.logits[chosen]
        right = (logits.argmax(1) == self.labels[chosen]).double().mean()
        return float(torch.softmax(b * logits, 1).amax(1).mean() - right)


def _scores(subject: Subject, most: int = SCORES) -> _Scores:
    kind = kind_of(subject)
    if kind == "loss" or isinstance(subject.loss.function, NOT_PROBABILITIES):
        _with_confidence(subject)
    logits, labels, owner, start, held = [], [], [], 0, 0
    with measuring(subject), torch.no_grad():
        for block in subject.batches("test"):
            output = subject(subject.state, block.inputs)
            if kind == "binary":
                flat = output.reshape(len(block), -1).double()
                z, y = torch.stack([torch.zeros_like(flat), flat], -1), leaves(block.targets)[0].reshape(len(block), -1).long()
                kept = torch.ones_like(y, dtype=torch.bool)
            else:
                z, y, kept = labelled(subject, block, output)
            rows = torch.arange(start, start + len(block), device=kept.device)[:, None].expand_as(kept)
            logits.append(z[kept].double().cpu())
            labels.append(y[kept].cpu())
            owner.append(rows[kept].cpu())
            start, held = start + len(block), held + logits[-1].numel()
            if held > most:
                break
    z = torch.cat(logits)
    return _Scores(z - z.amax(1, keepdim=True), torch.cat(labels), torch.cat(owner))


def exact_logit_scale(subject: Subject) -> float:
    """The scale that fits all test targets best, by golden-section search."""
    from scipy import optimize

    scores = _scores(subject, most=2**40)
    value = optimize.minimize_scalar(
        lambda b: float(torch.nn.functional.cross_entropy(b * scores.logits, scores.labels)), bounds=(-LARGEST_SCALE, LARGEST_SCALE), method="bounded", options={"xatol": 1e-10}
    )
    return float(value.x)


@instrument(topic="generalization", needs=("test", "labels"), truth=exact_logit_scale, cost=lambda subject: Cost(gradients=_test_pass(subject), bytes=SCORES * 32))
def logit_scale(subject: Subject, *, rng: Generator) -> Reading:
    """The factor on the logits that fits the test labels best: the inverse temperature b that minimises the mean of -log softmax(b z)_y.

    Above 1 the network is under-confident, below 1 over-confident, at 0 its logits say nothing of the labels.

    Shapes: value ().   Units: none.   Error: over test examples, by leaving out one of 16 groups at a time.
    Assumes: as `test_error`; a test set whose logits have more than a million numbers is read up to there.   Cost: a forward pass of the test data.
    Raises: OutOfScope for fewer than 16 test examples, regression, or where every target is right and no finite scale is best.
    Source: Guo et al. 2017, section 4.2 (temperature scaling, T = 1 / b).
    """
    scores = _scores(subject)
    names, place = scores.owner.unique(return_inverse=True)
    if len(names) < GROUPS:
        raise OutOfScope(f"the error of the confidence's scale needs at least {GROUPS} test examples with labels; here are {len(names)}")
    dealt = chance.permutation(len(names), rng=rng)[place] % GROUPS
    everyone = torch.ones(len(dealt), dtype=torch.float64)
    value = scores.fit(everyone / everyone.sum())
    without = np.array([scores.fit((dealt != g).double() / float((dealt != g).sum())) for g in range(GROUPS)])
    if max(abs(value), float(np.abs(without).max())) > 0.99 * LARGEST_SCALE:
        raise OutOfScope("the larger the logits' scale the better the fit: the test examples are all right, and no finite temperature is best")
    error = math.sqrt((GROUPS - 1) / GROUPS * float(((without - without.mean()) ** 2).sum()))
    halves = [(dealt % 2 == h) for h in (0, 1)]
    fits = [scores.fit(half.double() / float(half.sum())) for half in halves]
    after = [scores.gap(fits[h], halves[1 - h].nonzero()[:, 0]) for h in (0, 1)]
    whole = torch.arange(len(dealt))
    return Reading(
        "logit_scale", value, "", error=error or np.finfo(np.float64).eps, error_kind="sample", n=GROUPS, source=GUO_2017.at("section 4.2"),
        details={"gap_before": scores.gap(1.0, whole), "gap_after": float(np.mean(after)), "targets": len(dealt)},
    )  # fmt: skip


def _distance(subject: Subject) -> float:
    assert subject.initial is not None
    return math.sqrt(sum(float(((subject.state[key].double() - subject.initial[key].double()) ** 2).sum()) for key in subject.trainable))


def _noise(subject: Subject, distance: float) -> tuple[float, int]:
    """The smallest noise of the grid at which distance^2 / (2 sigma^2) stays below DIVERGENCE an example, and its number."""
    wanted = distance / math.sqrt(2 * DIVERGENCE * subject.train.population)
    index = max(math.floor(2 * math.log2(FIRST_NOISE / wanted)), 0)
    return FIRST_NOISE * 2 ** (-index / 2), index


def _noisy(subject: Subject, sigma: float, rng: Generator) -> dict[str, Tensor]:
    """One draw of the weights."""
    state = dict(subject.state)
    for key in subject.trainable:
        state[key] = state[key] + sigma * chance.normal(*state[key].shape, rng=rng, like=state[key])
    return state


def _errors(subject: Subject, data: Dataset, state: dict[str, Tensor], kind: Kind) -> Array:
    """Error of each example, the mean over its targets.  Shapes: (n,)."""
    means = []
    for block in dataclasses.replace(subject, train=data, _shared={}).batches():
        found = of_block(subject, block, subject(state, block.inputs), kind).kept()
        means.append(found.sums / found.counts)
    return np.concatenate(means)


def _between(examples: Array, errors: Array) -> float:
    """Variance between examples of their mean error over weights, by a one-way analysis of variance; all of the variance where too few were seen twice.

    Shapes: examples (n,) the example that each error (n,) belongs to.
    """
    _, which, seen = np.unique(examples, return_inverse=True, return_counts=True)
    total, groups = len(errors), len(seen)
    if groups < 2 or total - groups < 10:
        return float(errors.var(ddof=1))
    means = np.bincount(which, errors) / seen
    within = float(((errors - means[which]) ** 2).sum()) / (total - groups)
    among = float((seen * (means - errors.mean()) ** 2).sum()) / (groups - 1)
    return max(among - within, 0.0) * (groups - 1) / (total - float((seen**2).sum()) / total)


def _labelled_examples(subject: Subject, data: Dataset) -> Dataset:
    """Those that have a target which is not ignored."""
    if subject.classes is None:
        return data
    kept, ignored = [], int(getattr(subject.loss.function, "ignore_index", -100))
    for block in data.blocks:
        label = leaves(block.targets)[0].reshape(len(block), -1)
        kept.append(((label != ignored) & (label >= 0) & (label < subject.classes)).any(1))
    return data.select(torch.cat(kept).nonzero()[:, 0])


def exact_stochastic_error(subject: Subject, draws: int = 3000) -> float:
    """The mean over very many draws of the weights, on all test examples."""
    assert subject.test is not None
    data, (sigma, _), kind = _labelled_examples(subject, subject.test), _noise(subject, _distance(subject)), kind_of(subject)
    with measuring(subject), torch.no_grad():
        return float(np.mean([_errors(subject, data, _noisy(subject, sigma, chance.generator(17, "exact", i)), kind).mean() for i in range(draws)]))


@instrument(
    topic="generalization", needs=("test", "initial"), truth=exact_stochastic_error, knob="draws", smallest=32, largest=512,
    cost=lambda subject, draws: Cost(gradients=FORWARD * 4 * draws * BATCH / len(subject.train), bytes=8 * subject.dimension),
)  # fmt: skip
def stochastic_error(subject: Subject, *, rng: Generator, draws: int = 128) -> Reading:
    """Test error of the network with Gaussian noise of size sigma on every trainable parameter, fresh for every 8 examples.

    sigma is the smallest of a grid fixed beforehand, 16 x 2^(-j/2), at which |theta - theta_0|^2 / (2 sigma^2) stays below a tenth of the number of training
    examples: what a PAC-Bayes bound can pay for.  The same network's error on the training data stands in `details`.

    Shapes: value ().   Units: none (error rate).   Error: over draws of weights, and over test examples (analysis of variance).
    Assumes: eval mode.   Cost: forward passes of 16 examples a draw.
    Raises: OutOfScope for regression, where the network is still at its initialisation, or where buffers (running statistics) were fitted to the data: no prior
    covers them; InvalidInput for fewer than two draws.
    Source: Dziugaite & Roy 2017.
    """
    if draws < 2:
        raise InvalidInput(f"draws must be at least 2, not {draws}.")
    if kind_of(subject) == "loss":
        raise OutOfScope("a PAC-Bayes bound needs an error between 0 and 1; this is a regression")
    assert subject.initial is not None
    assert subject.test is not None
    moved = [key for key, value in subject.state.items() if key not in subject.trainable and not torch.equal(value, subject.initial[key])]
    if any(subject.state[key].is_floating_point() for key in moved):
        raise OutOfScope(f"{moved[0]!r} was fitted to the training data but is no trainable parameter (running statistics?): no prior covers it")
    distance = _distance(subject)
    if distance == 0:
        raise OutOfScope("the network is at its initialisation: it has learned nothing that could be bounded")
    sigma, index = _noise(subject, distance)
    errors: dict[str, list[Array]] = {"train": [], "test": []}
    picked: list[Array] = []
    kind, usable = kind_of(subject), {"train": _labelled_examples(subject, subject.train), "test": _labelled_examples(subject, subject.test)}
    if not all(len(data) for data in usable.values()):
        raise OutOfScope("every target is ignored: there is nothing to be right or wrong about")
    with measuring(subject), torch.no_grad():
        for draw in range(draws):
            child = chance.child(rng, "draw", draw)
            state = _noisy(subject, sigma, child)
            for what, data in usable.items():
                few = chance.integers(len(data), BATCH, rng=child).sort().values
                errors[what].append(_errors(subject, data.select(few), state, kind))
            picked.append(few.numpy())
    tests = np.stack(errors["test"]).mean(1)
    by_draw = float(tests.var(ddof=1)) / draws
    by_example = _between(np.concatenate(picked), np.concatenate(errors["test"])) / len(usable["test"])
    low, high = bounded_interval(tests, np.ones(draws), factor=1 + by_example / by_draw if by_draw else 1.0)
    spread = math.sqrt(by_draw + by_example)
    return Reading(
        "stochastic_error", float(tests.mean()), "", error=spread or (high - low) / 4, error_kind="sample", n=draws, interval=(low, high), source=DZIUGAITE_2017,
        details={"train_error": float(np.mean(np.stack(errors["train"]))), "draws": draws, "sigma": sigma, "index": index, "distance": distance, "examples": subject.train.population, "at_hand": len(subject.train)},
    )  # fmt: skip
