"""What the layers read: effective rank, coding rate and rate reduction of their inputs, and how well a linear probe classifies from them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor, nn

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Dataset, leaves
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.outcomes import bounded_interval, labelled
from gnomon.numerics.measuring import measuring
from gnomon.numerics.statistics import effective_number

ROY_2007 = Source("roy2007")
YU_2020 = Source("yu2020")
ALAIN_2016 = Source("alain2016")

LAYERS = 16
"""Most layers that are read, spread over the depth; the last one always is."""
FEATURES = 512
"""Most features kept of what a layer reads: more are added up with random signs into so many."""
EXAMPLES, TESTS = 4096, 2048
"""Most training examples that are read, and most test examples that probes are tried on."""
GROUPS = 16
"""Groups of examples that are left out one at a time where the examples are a subsample."""
REFITS = 8
"""Groups that are left out in fitting probes anew."""
DISTORTION = 0.5
"""Squared distortion of the coding rate, that of the paper's experiments."""
FORWARD = 1 / 3
"""A forward pass, in gradients."""
ROUNDING = 256.0
"""Rounding of a layer's input, in units of the dtype's precision times its largest singular value."""
OUTPUT = "output"


@dataclasses.dataclass(frozen=True)
class Features:
    """What each layer reads, and the output.

    Shapes: `rows` by layer (n, features) float64, `output` among them; `labels` (n,), or None where there is not one label an example; `dimensions` the features
    before any were added up; `seen` how many examples were read.
    """

    rows: dict[str, Array]
    labels: Array | None
    dimensions: dict[str, int]
    skipped: tuple[str, ...]
    seen: int

    @property
    def added(self) -> tuple[str, ...]:
        """The layers whose features were added up."""
        return tuple(name for name, size in self.dimensions.items() if size > FEATURES)


def features(subject: Subject, split: str = "train") -> Features:
    """What the layers read on at most EXAMPLES training examples, or TESTS test examples, made once.   Cost: a forward pass."""

    def build() -> Features:
        data = subject.examples(split)
        return _read(subject, data.sample(EXAMPLES if split == "train" else TESTS, rng=chance.generator(0, f"representation/{split}")))

    return subject.once(f"representation/{split}", build)


def _chosen(subject: Subject) -> list[architecture.Layer]:
    known = [layer for layer in architecture.of(subject).parametrised if layer.kind != "embedding"]
    if len(known) <= LAYERS:
        return known
    return [known[int(k)] for k in np.linspace(0, len(known) - 1, LAYERS).round()]


def _read(subject: Subject, data: Dataset) -> Features:
    chosen = _chosen(subject)
    parts: dict[str, list[Array]] = {name: [] for name in (*(layer.name for layer in chosen), OUTPUT)}
    sizes, skipped, labels = dict[str, int](), dict[str, str](), list[Array]()
    seen: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(measuring(subject))
        stack.enter_context(torch.no_grad())
        for layer in chosen:
            handle = architecture.child_of(subject.module, layer).register_forward_pre_hook(_keeper(seen, layer.name), with_kwargs=True)
            stack.callback(handle.remove)
        for part in data.chunks(subject.chunk):
            seen.clear()
            block = Block(subject.to_device(part.inputs), subject.to_device(part.targets))
            output = subject(subject.state, block.inputs)
            seen[OUTPUT] = output
            for name in parts:
                given = seen.get(name)
                if given is None or given.ndim < 2 or len(given) != len(block) or sizes.setdefault(name, given[0].numel()) != given[0].numel():
                    skipped[name] = "its input does not have one row of equal length for each example"
                    continue
                parts[name].append(_kept(given.reshape(len(given), -1).double(), name).cpu().numpy())
            if subject.classes is not None:
                labels.append(_labels(subject, block, output))
    rows = {name: np.concatenate(column) for name, column in parts.items() if name not in skipped}
    one = len(labels) > 0 and all(part.ndim == 1 for part in labels)
    return Features(rows, np.concatenate(labels) if one else None, {name: sizes[name] for name in rows}, tuple(f"{name} ({why})" for name, why in skipped.items()), len(data))


def _keeper(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(child: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensor = next((part for part in (*given, *named.values()) if isinstance(part, Tensor)), None)
        if tensor is not None:
            seen.setdefault(name, tensor.detach().clone())

    return keep


def _kept(rows: Tensor, name: str) -> Tensor:
    """At most FEATURES features: a sum with random signs over random groups of them keeps squared lengths on average."""
    size = rows.shape[1]
    if size <= FEATURES:
        return rows
    rng = chance.generator(0, f"representation/{name}/{size}")
    group, sign = chance.integers(FEATURES, size, rng=rng).to(rows.device), chance.rademacher(size, rng=rng, like=rows)
    return torch.zeros(len(rows), FEATURES, dtype=rows.dtype, device=rows.device).index_add_(1, group, rows * sign)


def _labels(subject: Subject, block: Block, output: Tensor) -> Array:
    """One label an example, -1 where it is ignored; two dimensions where there are more."""
    if leaves(block.targets)[0].numel() != len(block):
        return np.zeros((len(block), 2))
    _, label, kept = labelled(subject, block, output)
    return np.asarray(torch.where(kept, label, -1)[:, 0].cpu().numpy())


def with_labels(found: Features) -> tuple[dict[str, Array], Array]:
    """The rows of the examples that have a label, and the labels.  Raises: OutOfScope where there is not one label an example, or one class only."""
    if found.labels is None:
        raise OutOfScope("there are several labels an example; classes of representations need one")
    here = found.labels >= 0
    if len(np.unique(found.labels[here])) < 2:
        raise OutOfScope("the examples are of one class only")
    return {name: rows[here] for name, rows in found.rows.items()}, found.labels[here].astype(int)


Numbers = np.ndarray[Any, np.dtype[np.int64]]
Statistic = Callable[[Numbers], Array]
"""Of the numbers of the examples: a value for each element."""


def measured(
    subject: Subject, name: str, statistic: Statistic, n: int, rounding: Array, *, axes: tuple[Axis, ...], source: Source, found: Features, details: dict[str, Any],
    unit: str = "", strata: Array | None = None, seen_alone: bool = False,
) -> Reading:  # fmt: skip
    """A reading of a statistic of all examples; on a subsample its bias and error by leaving out groups.

    With t_g the statistic without group g: bias (G - 1)(mean t_g - t), variance (G - 1)/G sum (t_g - mean)^2, each times 1 - n/N for n of N examples (a bias that falls as 1/n).
    Groups have alike numbers of each of the `strata`.  `seen_alone`: the reading is that of the examples seen, which other ones would change.

    Shapes: value that of the statistic.   Units: `unit`.   Error: `rounding`; on a subsample the standard error over groups.   Cost: a call of `statistic` a group.
    Source: `source`, which the reading carries.
    """
    numbers = np.arange(n, dtype=np.int64)
    value = statistic(numbers)
    added = tuple(f"`{layer}`: its {found.dimensions[layer]:,} features are added up with random signs in {FEATURES} random groups" for layer in found.added)
    rest = 1 - found.seen / subject.train.population
    seen = f"{n:,} examples" + (f" out of {subject.train.population:,}, of which alone this is" if seen_alone and rest > 0 else "")
    common: dict[str, Any] = {"axes": axes, "source": source, "skipped": found.skipped, "assumes": (seen, *added), "details": details}
    if rest <= 0 or seen_alone:
        return Reading(name, value, unit, error=rounding, error_kind="bound", **common)
    groups = min(GROUPS, n)
    order = chance.permutation(n, rng=chance.generator(0, "representation/groups")).numpy()
    order = order if strata is None else order[np.argsort(strata[order], kind="stable")]
    without = np.stack([statistic(np.delete(numbers, order[g::groups])) for g in range(groups)])
    bias = rest * (groups - 1) * (without.mean(0) - value)
    spread = np.sqrt(rest * (groups - 1) / groups * ((without - without.mean(0)) ** 2).sum(0)) + rounding
    # the bias falls as 1/n only where examples are many beside features, so as much as it is is not trusted
    error = np.hypot(spread, bias)
    half = stats.t.ppf(0.975, groups - 1) * error
    return Reading(name, value - bias, unit, error=error, error_kind="sample", n=groups, interval=(value - bias - half, value - bias + half), **common)


def _spectrum(rows: Array) -> Array:
    """Singular values, descending, by the smaller Gram matrix."""
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)))


def _resolved(values: Array) -> Array:
    """Singular values without those that the Gram matrix cannot tell from 0: it squares them."""
    return np.where(values > 1e-7 * values[:1].sum(), values, 0.0)


def precision(subject: Subject) -> float:
    """The part of a layer's input that may be rounding."""
    return ROUNDING * float(torch.finfo(subject.dtype).eps)


def _layer_axis(found: Features) -> tuple[Axis, ...]:
    return (Axis("what the layer reads", tuple(found.rows)),)


def _sizes(found: Features) -> dict[str, Any]:
    return {"dimensions": [min(size, FEATURES) for size in found.dimensions.values()], "examples": len(next(iter(found.rows.values())))}


def _erank_rounding(rows: Array, precision: float) -> float:
    """Each singular value may be off by `precision` of the largest: the entropy by r d ln(1/d), with d that part of their sum."""
    values = _spectrum(rows - rows.mean(0))
    part = (precision + 1e-7) * values[0] / max(values.sum(), 1e-300)
    return effective_number(_resolved(values)) * float(np.expm1(min(2 * len(values) * part * math.log(math.e + 1 / max(part, 1e-300)), 50.0)))


def exact_effective_rank(subject: Subject) -> Array:
    """By a singular value decomposition of each layer's input, for the contract tests."""
    out = []
    for rows in features(subject).rows.values():
        values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        share = values / values.sum()
        out.append(np.exp(-sum(p * math.log(p) for p in share if p > 0)))
    return np.array(out)


def _cost(subject: Subject) -> Cost:
    seen = min(len(subject.train), EXAMPLES)
    return Cost(gradients=FORWARD * seen / len(subject.train), bytes=16 * seen * FEATURES * (len(_chosen(subject)) + 1))


@instrument(topic="representation", at=("end", "initial"), truth=exact_effective_rank, essential=True, cost=_cost)
def effective_rank(subject: Subject, *, rng: Generator) -> Reading:
    """Effective rank of what each layer reads: over how many directions the examples are spread.

    exp(-sum_i p_i ln p_i), p_i = s_i / sum s, with the singular values s of the centred features (examples x features).

    Shapes: value (layers + 1,), the output last.  `details`: features of each layer (`dimensions`) and `examples`.   Units: directions.
    Error: rounding; on a subsample the jackknife over groups of examples, its bias taken off and added to the error.
    Assumes: positions are features; more than 512 features are added up with random signs.   Cost: a forward pass and a symmetric eigenvalue problem of at most 512 a layer.
    Source: Roy & Vetterli 2007.
    """
    found = features(subject)
    centred = list(found.rows.values())

    def statistic(chosen: Numbers) -> Array:
        return np.array([effective_number(_resolved(_spectrum(rows[chosen] - rows[chosen].mean(0)))) for rows in centred])

    rounding = np.array([_erank_rounding(rows, precision(subject)) for rows in centred])
    return measured(
        subject, "effective_rank", statistic, len(centred[0]), rounding, axes=_layer_axis(found), source=ROY_2007, found=found, details=_sizes(found), unit="directions"
    )


def _sphere(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def _rate(rows: Array, dimension: int) -> float:
    """1/2 ln det(1 + d / (n e^2) Z Z^T), in nats."""
    return 0.5 * float(np.log1p(dimension / (len(rows) * DISTORTION) * _spectrum(rows) ** 2).sum()) if len(rows) else 0.0


def _rate_rounding(rows: Array, precision: float) -> float:
    # d/ds of 1/2 ln(1 + a s^2) is at most sqrt(a) / 2
    values, a = _spectrum(rows), rows.shape[1] / (len(rows) * DISTORTION)
    return (precision + 1e-13) * len(values) * float(values[0]) * math.sqrt(a) / 2 + 1e-13


def exact_coding_rate(subject: Subject) -> Array:
    """By determinants, for the contract tests."""
    out = []
    for rows in features(subject).rows.values():
        z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        out.append(0.5 * np.linalg.slogdet(np.eye(z.shape[1]) + z.shape[1] / (len(z) * 0.5) * z.T @ z)[1])
    return np.array(out)


@instrument(topic="representation", truth=exact_coding_rate, shares="effective_rank", cost=lambda subject: Cost(gradients=0.05))
def coding_rate(subject: Subject, *, rng: Generator) -> Reading:
    """Coding rate of what each layer reads: nats that one example takes when features on the unit sphere are coded to a squared distortion of 1/2.

    R(Z) = 1/2 ln det(1 + d / (n e^2) Z^T Z), e^2 = 1/2, each example's features scaled to length 1.

    Shapes: value (layers + 1,), the output last; `details` as `effective_rank`.   Units: nats.   Error: as `effective_rank`.   Assumes: as there.
    Cost: shared with `effective_rank`.   Source: Yu et al. 2020, section 2.
    """
    found = features(subject)
    unit = [_sphere(rows) for rows in found.rows.values()]

    def statistic(chosen: Numbers) -> Array:
        return np.array([_rate(rows[chosen], rows.shape[1]) for rows in unit])

    rounding = np.array([_rate_rounding(rows, precision(subject)) for rows in unit])
    return measured(
        subject, "coding_rate", statistic, len(unit[0]), rounding, axes=_layer_axis(found), source=YU_2020.at("section 2"), found=found, details=_sizes(found), unit="nats"
    )


def exact_rate_reduction(subject: Subject) -> Array:
    """By determinants, for the contract tests."""
    all_rows, labels = with_labels(features(subject))
    out = []
    for rows in all_rows.values():
        z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        d, n = z.shape[1], len(z)
        total = 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * 0.5) * z.T @ z)[1]
        for label in set(labels.tolist()):
            part = z[labels == label]
            total -= len(part) / (2 * n) * np.linalg.slogdet(np.eye(d) + d / (len(part) * 0.5) * part.T @ part)[1]
        out.append(total)
    return np.array(out)


@instrument(topic="representation", needs=("labels",), truth=exact_rate_reduction, shares="effective_rank", cost=lambda subject: Cost(gradients=0.05))
def rate_reduction(subject: Subject, *, rng: Generator) -> Reading:
    """Coding rate reduction of what each layer reads: nats an example that knowing the class saves.

    Delta R = R(Z) - sum_c n_c / n R(Z_c), R as in `coding_rate`: large where classes lie in directions of their own.

    Shapes: value (layers + 1,), the output last; `details` as `effective_rank`.   Units: nats.   Error: rounding.
    Assumes: as `effective_rank`; on a subsample it is that of the examples seen: with fewer examples of a class than features it falls as they become more.
    Cost: shared with `effective_rank`.   Raises: OutOfScope for several labels an example.
    Source: Yu et al. 2020, section 2.
    """
    found = features(subject)
    all_rows, labels = with_labels(found)
    unit = [_sphere(rows) for rows in all_rows.values()]

    def statistic(chosen: Numbers) -> Array:
        groups = [chosen[labels[chosen] == label] for label in np.unique(labels[chosen])]
        return np.array([_rate(rows[chosen], rows.shape[1]) - sum(len(g) / len(chosen) * _rate(rows[g], rows.shape[1]) for g in groups) for rows in unit])

    known, part = np.unique(labels), precision(subject)
    rounding = np.array([_rate_rounding(rows, part) + sum((labels == c).mean() * _rate_rounding(rows[labels == c], part) for c in known) for rows in unit])
    return measured(
        subject, "rate_reduction", statistic, len(labels), rounding, axes=_layer_axis(found), source=YU_2020.at("section 2"), found=found, details=_sizes(found), unit="nats",
        seen_alone=True,
    )  # fmt: skip


def _right(subject: Subject) -> tuple[Array, Array, Features, Array]:
    """Whether a probe on each layer, and the network itself, is right on each test example; the layers; the error of a subsample.  Shapes: (tests, layers), (tests,), (layers,)."""
    seen, new = features(subject), features(subject, "test")
    rows, labels = with_labels(seen)
    test_rows, test_labels = with_labels(new)
    names = [name for name in rows if name in test_rows and name != OUTPUT]
    if not names:
        raise OutOfScope("no layer's input has one row for each example: there is nothing to probe")

    def fitted(chosen: Numbers) -> Array:
        """Whether probes fitted to some of the examples are right on each test example."""
        return np.stack([_probed(rows[name][chosen], labels[chosen], test_rows[name], test_labels) for name in names], 1)

    own = (test_rows[OUTPUT].argmax(1) == test_labels) if test_rows[OUTPUT].shape[1] == subject.classes else np.full(len(test_labels), np.nan)
    found = dataclasses.replace(seen, rows={name: rows[name] for name in names})
    everyone = np.arange(len(labels), dtype=np.int64)
    right = subject.once("representation/probes", lambda: fitted(everyone))
    return right, own.astype(np.float64), found, _refit_error(subject, fitted, right, len(labels), found.seen)


def _probed(rows: Array, labels: Array, test_rows: Array, test_labels: Array) -> Array:
    if len(np.unique(labels)) < 2:
        return np.asarray(test_labels == labels[0], dtype=np.float64)
    centre, scale = rows.mean(0), rows.std(0)
    scale = np.where(scale > 1e-12 * max(float(np.abs(rows).max()), 1e-300), scale, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=1.0, max_iter=200, tol=1e-5).fit((rows - centre) / scale, labels)
    return np.asarray(probe.predict((test_rows - centre) / scale) == test_labels, dtype=np.float64)


def _refit_error(subject: Subject, fitted: Callable[[Numbers], Array], right: Array, n: int, seen: int) -> Array:
    """How far a probe fitted to all N examples may be from one fitted to n of them: spread and bias by leaving out groups, times 1 - n/N.  Shapes: (layers,)."""
    rest = 1 - seen / subject.train.population
    if rest <= 0:
        return np.zeros(right.shape[1])
    order = chance.permutation(n, rng=chance.generator(0, "representation/probes")).numpy()
    groups = min(REFITS, len(order))
    without = np.stack([fitted(np.sort(np.delete(order, np.arange(g, len(order), groups)))).mean(0) for g in range(groups)])
    bias = rest * (groups - 1) * (without.mean(0) - right.mean(0))
    return np.asarray(np.hypot(np.sqrt(rest * (groups - 1) / groups * ((without - without.mean(0)) ** 2).sum(0)), bias))


def exact_probe(subject: Subject) -> Array:
    """The accuracy over all test examples, for the contract tests."""
    return np.asarray(_right(subject)[0].mean(0))


def _probe_cost(subject: Subject) -> Cost:
    # the fits are counted as two gradients of the examples read
    tests = min(len(subject.test) if subject.test else 0, TESTS)
    cost = _cost(subject)
    return Cost(gradients=7 * cost.gradients + FORWARD * tests / len(subject.train), bytes=2 * cost.bytes)


@instrument(topic="representation", needs=("labels", "test"), truth=exact_probe, essential=True, cost=_probe_cost)
def linear_probe(subject: Subject, *, rng: Generator) -> Reading:
    """Accuracy on test data of a linear classifier of what each layer reads: multinomial logistic regression on standardised features, fitted to the training examples.

    Shapes: value (layers,), samples (test examples, layers).  `details`: `own`, the network's own accuracy on the same examples, and `own_right`, for each of them.
    Units: none.   Error: over test examples, Clopper & Pearson's interval; on a subsample also that of fitting to other, and more, examples, by leaving out groups.
    Assumes: test examples are drawn independently from where the network is to work; the ridge penalty is 1/2 |w|^2 beside the summed loss.
    Cost: forward passes of both splits, and the fits.   Raises: OutOfScope for several labels an example or no test data.
    Source: Alain & Bengio 2016.
    """
    right, own, found, refit = _right(subject)
    ends = np.array([bounded_interval(column, np.ones(len(column))) for column in right.T])
    spread = right.std(0, ddof=1) / math.sqrt(len(right)) if len(right) > 1 else np.zeros(right.shape[1])
    known, value = not np.isnan(own).any(), right.mean(0)
    reach = stats.t.ppf(0.975, REFITS - 1) * refit
    low, high = value - np.hypot(value - ends[:, 0], reach), value + np.hypot(ends[:, 1] - value, reach)
    return Reading(
        "linear_probe", value, "", error=np.hypot(np.where(spread > 0, spread, (ends[:, 1] - ends[:, 0]) / 4), refit), error_kind="sample", samples=right,
        interval=(np.maximum(low, 0.0), np.minimum(high, 1.0)), axes=_layer_axis(found), source=ALAIN_2016, skipped=found.skipped,
        assumes=(f"fitted to {len(next(iter(found.rows.values()))):,} training examples, tried on {len(right):,} test examples",),
        details={"own": float(own.mean()), "own_right": own.astype(int).tolist()} if known else {},
    )  # fmt: skip
