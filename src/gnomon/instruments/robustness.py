"""Sensitivity to the input: the input Jacobian, margins and their slopes, and the smallest perturbation that a real attack finds, on test examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Dataset, leaves
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.outcomes import bounded_interval, kind_of, labelled
from gnomon.numerics import boundary
from gnomon.numerics.derivatives import accumulator
from gnomon.numerics.measuring import measuring
from gnomon.numerics.operators import InputJacobian
from gnomon.numerics.statistics import skewed_interval, student_interval

MOOSAVI_2016 = Source("moosavi2016")
CROCE_2020 = Source("croce2020")
HOFFMAN_2019 = Source("hoffman2019")

CLASSES = 10
"""Most other classes that a margin is taken to, those of the largest logits."""
STARTS, RESTARTS = 3, 2
"""Classes that an attack starts towards, and starts at random after that."""
OUTPUTS, PROBES = 32, 16
"""Outputs up to which the input Jacobian is taken row by row; probes for an example with more."""
POINTS = 8
"""Perturbation sizes at which the accuracy is shown."""


@dataclasses.dataclass(frozen=True)
class _Cases:
    """The examples looked at and, of them, those that are classified correctly, with their numbers among the former."""

    looked: int
    right: Dataset
    kind: str


def _cases(subject: Subject, examples: int) -> _Cases:
    """Test examples, always the same ones for the same data, so that readings can be paired.  Raises: OutOfScope where no decision boundary is defined."""

    def build() -> _Cases:
        kind = kind_of(subject)
        if kind == "loss":
            raise OutOfScope("a regression has no decision boundary; the norm of its input Jacobian says how sensitive it is")
        chosen, right, start = _chosen(subject, examples), [], 0
        with measuring(subject), torch.no_grad():
            for block in chosen.chunks(subject.chunk):
                values, label, kept = _logits(subject, _moved(subject, block), kind)
                right.append(start + torch.nonzero((values.argmax(1) == label) & kept)[:, 0].cpu())
                start += len(block)
        found = torch.cat(right)
        if len(found) < 2:
            raise OutOfScope(f"{len(found)} of {len(chosen)} test examples are classified correctly; the distance to the boundary is taken from such examples")
        return _Cases(len(chosen), chosen.select(found), kind)

    return subject.once(f"robustness/cases/{examples}", build)


def _chosen(subject: Subject, examples: int) -> Dataset:
    if examples < 2:
        raise InvalidInput(f"examples must be at least 2, not {examples}.")
    return subject.examples("test").sample(examples, rng=chance.generator(0, "robustness/examples"))


def _moved(subject: Subject, block: Block) -> Block:
    return Block(subject.to_device(block.inputs), subject.to_device(block.targets))


def _logits(subject: Subject, block: Block, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, classes), labels and which of them count; one logit for two classes is put beside a 0."""
    output = subject(subject.state, block.inputs)
    if kind == "binary":
        flat = output.reshape(len(block), -1, 1)
        values, label = torch.cat([torch.zeros_like(flat), flat], 2), leaves(block.targets)[0].reshape(len(block), -1).long()
        kept = torch.ones_like(label, dtype=torch.bool)
    else:
        values, label, kept = labelled(subject, block, output)
    if label.shape[1] != 1:
        raise OutOfScope(f"there are {label.shape[1]} labels an example; the distance to the decision boundary is that of a network with one")
    return values[:, 0], label[:, 0], kept[:, 0]


def _function(subject: Subject, block: Block, kind: str, back: Callable[[Tensor], Any]) -> boundary.Logits:
    def logits(points: Tensor) -> Tensor:
        targets = tree_map(lambda leaf: boundary.repeated(leaf, len(points)), block.targets)
        return _logits(subject, Block(back(points), targets), kind)[0]

    return logits


def _margins(subject: Subject, examples: int) -> tuple[Array, Array]:
    """Margins to the other classes and the norms of their gradients, runner-up first.  Shapes: (right examples, classes) both."""
    cases = _cases(subject, examples)

    def build() -> tuple[Array, Array]:
        parts = []
        with measuring(subject):
            for block in (_moved(subject, block) for block in cases.right.chunks(subject.chunk)):
                points, back = boundary.flat_inputs(subject, block.inputs)
                with torch.no_grad():
                    label = _logits(subject, block, cases.kind)[1]
                parts.append(boundary.margins(_function(subject, block, cases.kind, back), points, label, CLASSES)[:2])
        return tuple(torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True))  # type: ignore[return-value]

    return subject.once(f"robustness/margins/{examples}", build)


def _distances(subject: Subject, examples: int, rng: Generator) -> Array:
    """The smallest perturbation found for each example that is classified correctly, infinite where none was."""
    cases = _cases(subject, examples)

    def build() -> Array:
        parts, wide = [], accumulator(subject.dtype, subject.device)
        exact = subject if subject.dtype == wide else subject.to(wide)
        position = 0
        with measuring(subject):
            for block in (_moved(subject, block) for block in cases.right.chunks(subject.chunk)):
                points, back = boundary.flat_inputs(subject, block.inputs)
                _, exact_back = boundary.flat_inputs(exact, block.inputs)
                with torch.no_grad():
                    label = _logits(subject, block, cases.kind)[1]
                noise = torch.stack([chance.normal(RESTARTS, points.shape[1], rng=chance.child(rng, "restart", position + i), like=points) for i in range(len(points))], 1)
                position += len(points)
                parts.append(boundary.nearest_boundary(
                    _function(subject, block, cases.kind, back), _function(exact, block, cases.kind, exact_back), points, label, noise=noise, starts=STARTS, most=CLASSES,
                ))  # fmt: skip
        return np.asarray(torch.cat(parts).double().cpu().numpy())

    return subject.once(f"robustness/distances/{examples}/{rng.initial_seed()}", build)


def _passes(subject: Subject, examples: int, passes: float) -> Cost:
    seen = min(examples, len(subject.test) if subject.test else 0)
    size = subject.state[subject.trainable[0]].element_size()
    numbers = 0 if subject.test is None else sum(leaf.numel() for leaf in boundary.floating(subject.test.blocks[0].inputs)) / len(subject.test.blocks[0])
    return Cost(gradients=passes * seen / len(subject.train), bytes=int(40 * numbers * size * min(seen, subject.chunk)))


def _classes(subject: Subject) -> int:
    return min(CLASSES, (subject.classes or 2) - 1)


def _axis(count: int) -> tuple[Axis, ...]:
    return (Axis("other class, by its logit", tuple(float(k + 1) for k in range(count))),)


def _assumes(subject: Subject, examples: int, count: int) -> tuple[str, ...]:
    others = (subject.classes or 2) - 1
    few = (f"the {CLASSES} other classes of the largest logits, of {others}",) if others > CLASSES else ()
    return (f"the {count} of {_cases(subject, examples).looked} test examples that are classified correctly", *few)


def _over_examples(name: str, samples: Array, **fields: Any) -> Reading:
    """The mean over examples; distances and slopes are skewed, and the interval allows for it."""
    ends = [skewed_interval(column) for column in samples.reshape(len(samples), -1).T]
    low, high = (np.array([end[k] for end in ends]).reshape(samples.shape[1:]) for k in (0, 1))
    return Reading.of_samples(name, samples, interval=(low, high), **fields)


def exact_margins(subject: Subject) -> Array:
    """The mean margins over all test examples, for the contract tests."""
    return np.asarray(_margins(subject, len(subject.test) if subject.test else 0)[0].mean(0))


@instrument(
    topic="robustness", needs=("test",), truth=exact_margins, knob="examples", smallest=64, largest=512, essential=True,
    cost=lambda subject, examples: _passes(subject, examples, 1 / 3),
)  # fmt: skip
def logit_margins(subject: Subject, *, rng: Generator, examples: int = 256) -> Reading:
    """Margins of the label's logit over the other classes, the runner-up first: f_y - f_j.

    Shapes: value (classes - 1,), at most 10; samples (examples, classes - 1).   Units: logit.
    Error: standard error over test examples that are classified correctly.   Assumes: test examples are drawn independently from where the network is to work.
    Cost: one forward pass of the test examples; the gradients are those of `margin_slopes`.
    Raises: OutOfScope without test data, for a regression, for several labels an example or inputs that are integers; InvalidInput for fewer than two examples.
    Source: Moosavi-Dezfooli et al. 2016, section 3 (multiclass classifiers).
    """
    found = _margins(subject, examples)[0]
    return _over_examples("logit_margins", found, unit="logit", source=MOOSAVI_2016.at("section 3"), axes=_axis(found.shape[1]), assumes=_assumes(subject, examples, len(found)))


def exact_slopes(subject: Subject) -> Array:
    """The mean slopes over all test examples, for the contract tests."""
    return np.asarray(_margins(subject, len(subject.test) if subject.test else 0)[1].mean(0))


@instrument(
    topic="robustness", needs=("test",), truth=exact_slopes, knob="examples", smallest=64, largest=512, shares="logit_margins", essential=True,
    cost=lambda subject, examples: _passes(subject, examples, 2 / 3 * _classes(subject)),
)  # fmt: skip
def margin_slopes(subject: Subject, *, rng: Generator, examples: int = 256) -> Reading:
    """How steep the margins are in the input, the runner-up first: |grad_x (f_y - f_j)|.

    Shapes: value (classes - 1,), at most 10; samples (examples, classes - 1), paired with those of `logit_margins`.   Units: logit / input.
    Error: standard error over test examples that are classified correctly.   Assumes: as `logit_margins`.
    Cost: one backward pass of the test examples for each class.   Raises: as `logit_margins`.
    Source: Moosavi-Dezfooli et al. 2016, section 3 (multiclass classifiers).
    """
    found = _margins(subject, examples)[1]
    return _over_examples(
        "margin_slopes", found, unit="logit / input", source=MOOSAVI_2016.at("section 3"), axes=_axis(found.shape[1]), assumes=_assumes(subject, examples, len(found))
    )


def _attack_cost(subject: Subject, examples: int) -> Cost:
    return _passes(subject, examples, (STARTS + RESTARTS) * (boundary.STEPS + 2) + 12)


def exact_distance(subject: Subject) -> float:
    """The mean distance that the attack finds over all test examples, for the contract tests."""
    found = _distances(subject, len(subject.test) if subject.test else 0, chance.generator(0, "truth"))
    return float(found[np.isfinite(found)].mean())


@instrument(
    topic="robustness", needs=("test",), truth=exact_distance, knob="examples", smallest=64, largest=512, shares="logit_margins", essential=True, cost=_attack_cost,
)  # fmt: skip
def adversarial_distance(subject: Subject, *, rng: Generator, examples: int = 256) -> Reading:
    """Distance to the decision boundary: the mean L2 norm of the smallest perturbation found that changes the class, over examples that are classified correctly.

    min |d| such that argmax f(x + d) != y, by descents of direction and length from several starts (`numerics.boundary.nearest_boundary`).

    Shapes: value (); samples (examples,), paired with those of `logit_margins`.  `details`: `quantiles` of the distance at 10, 50 and 90 %; how many test
    examples were `looked` at and are `right`; `found`, the numbers of those for which a perturbation was found, where that is not all.
    Units: input.   Error: standard error over test examples; each distance is an upper bound of the true one, exact where the boundary is flat.
    Assumes: every perturbation is allowed (pixels may leave their range); integer inputs stay as they are.
    Cost: about 100 gradients of the test examples.   Raises: as `logit_margins`, and OutOfScope where nothing changes the class of two examples.
    Source: Croce & Hein 2020 (minimally distorted adversarial examples).
    """
    found = _distances(subject, examples, rng)
    here = np.isfinite(found)
    if here.sum() < 2:
        raise OutOfScope("no perturbation, however large, was found that changes the class of two examples: there may be no boundary around them")
    skipped = () if here.all() else (f"{(~here).sum()} examples for which no perturbation was found",)
    details: dict[str, Any] = {"quantiles": np.quantile(found[here], [0.1, 0.5, 0.9]), "right": len(found), "looked": _cases(subject, examples).looked} | (
        {} if here.all() else {"found": np.flatnonzero(here)}
    )
    assumes = (
        *_assumes(subject, examples, len(found)),
        "every perturbation is allowed: inputs may leave the range of the data",
        "upper bounds: an attack may miss the nearest point",
    )
    return _over_examples("adversarial_distance", found[here], unit="input", source=CROCE_2020, assumes=assumes, skipped=skipped, details=details)


def robust_accuracy(distance: Reading) -> Reading:
    """Accuracy under attack, from a reading of `adversarial_distance`: the part of the test examples that are right and stay so within an L2 ball, by its radius.

    Shapes: value (8,), samples (examples, 8), those that are classified correctly first, in the order of `logit_margins`.   Units: none.
    Error: over test examples, Clopper & Pearson's interval; an upper bound of the true accuracy, as the distances are of the true ones.   Assumes: as `adversarial_distance`.   Cost: none.
    Source: Croce & Hein 2020.
    """
    right, looked = int(distance.details["right"]), int(distance.details["looked"])
    lengths = np.full(right, math.inf)
    lengths[np.asarray(distance.details.get("found", np.arange(right))).astype(int)] = distance.samples
    sizes = np.linspace(0, float(f"{np.quantile(distance.samples, 0.9):.1e}"), POINTS)
    samples = np.concatenate([lengths[:, None] > sizes, np.zeros((looked - right, POINTS), dtype=bool)]).astype(np.float64)
    ends = np.array([bounded_interval(column, np.ones(looked)) for column in samples.T])
    spread = samples.std(0, ddof=1) / math.sqrt(looked)
    return Reading(
        "robust_accuracy", samples.mean(0), "", error=np.where(spread > 0, spread, (ends[:, 1] - ends[:, 0]) / 4), error_kind="sample", samples=samples,
        interval=(ends[:, 0], ends[:, 1]), source=CROCE_2020, axes=(Axis("perturbation", tuple(sizes.tolist()), "input"),), assumes=distance.assumes,
    )  # fmt: skip


def _parts(data: Dataset, size: int) -> Iterator[tuple[int, slice, Block]]:
    """Chunks of blocks: the block's number and the place in it."""
    for number, block in enumerate(data.blocks):
        start = 0
        for part in Dataset((block,), len(block)).chunks(size):
            yield number, slice(start, start + len(part)), part
            start += len(part)


def _squares(subject: Subject, data: Dataset, rng: Generator) -> tuple[Array, bool]:
    """Squared Frobenius norms of the input Jacobian, one an example, and whether they are exact."""
    squares, exact, probes = [], True, dict[tuple[int, int], Tensor]()
    for number, place, part in _parts(data, subject.chunk):
        block = _moved(subject, part)
        with measuring(subject), torch.no_grad():
            like = subject(subject.state, block.inputs)
        jacobian, outputs = InputJacobian(subject, block.inputs), like[0].numel()
        exact = exact and outputs <= OUTPUTS
        total = torch.zeros(len(block), dtype=accumulator(like.dtype, like.device), device=like.device)
        for k in range(outputs if outputs <= OUTPUTS else PROBES):
            if outputs <= OUTPUTS:
                direction = torch.zeros_like(like).reshape(len(block), -1)
                direction[:, k] = 1.0
            else:
                if (number, k) not in probes:
                    probes[number, k] = chance.rademacher(len(data.blocks[number]), outputs, rng=chance.child(rng, f"probe/{number}", k), like=like.cpu())
                direction = probes[number, k][place].to(like)
            back = jacobian.transpose(direction.reshape(like.shape))
            for leaf in (back,) if isinstance(back, Tensor) else back:
                total += leaf.reshape(len(block), -1).to(total.dtype).square().sum(1) / (1 if outputs <= OUTPUTS else PROBES)
        squares.append(total.double().cpu())
    return torch.cat(squares).numpy(), exact


def exact_jacobian_norm(subject: Subject) -> float:
    """The root mean square over all test examples, by whole Jacobians, for the contract tests."""
    assert subject.test is not None
    total = 0.0
    with measuring(subject):
        for block in (_moved(subject, block) for block in subject.test.chunks(1)):
            points, back = boundary.flat_inputs(subject, block.inputs)
            total += float(torch.autograd.functional.jacobian(lambda x, back=back: subject(subject.state, back(x)), points).double().square().sum())
    return math.sqrt(total / len(subject.test))


@instrument(
    topic="robustness", needs=("test",), at=("end", "initial"), truth=exact_jacobian_norm, knob="examples", smallest=64, largest=512,
    cost=lambda subject, examples: _passes(subject, examples, float(min(subject.classes or OUTPUTS, OUTPUTS))),
)  # fmt: skip
def input_jacobian_norm(subject: Subject, *, rng: Generator, examples: int = 256) -> Reading:
    """Norm of the input Jacobian: how much the output moves for a small move of the input, root mean square over test examples.

    sqrt(mean |d f / d x|_F^2), by one reverse pass for each output, or for more than 32 outputs by Hutchinson's |J|_F^2 = E |J^T u|^2 over random signs u.

    Shapes: value ().   Units: output / input.   Error: standard error over test examples, which the probes' spread is part of; the interval is that of the mean square.
    Assumes: integer inputs stay as they are.   Cost: a gradient of the test examples for each output, at most 32.
    Raises: OutOfScope without test data or where all inputs are integers; InvalidInput for fewer than two examples.
    Source: Hoffman et al. 2019, section 2 (the norm and its estimate by random projections).
    """
    squares, exact = _squares(subject, _chosen(subject, examples), rng)
    mean, error, (low, high) = student_interval(squares)
    value = math.sqrt(max(mean, 0.0))
    assumes = (f"{len(squares)} test examples",) + (() if exact else (f"{PROBES} random projections of the output an example",))
    return Reading(
        "input_jacobian_norm", value, "output / input", error=error / (2 * value) if value else 0.0, error_kind="sample", n=len(squares),
        interval=(math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))), source=HOFFMAN_2019.at("section 2"), assumes=assumes,
        details={"median": math.sqrt(float(np.median(squares)))},
    )  # fmt: skip
