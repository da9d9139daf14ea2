"""Stochastic gradients: their noise scale, and what one step does to the loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.dataset import Dataset
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics import moments
from gnomon.numerics.derivatives import flatten
from gnomon.numerics.measuring import measuring
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.noise import NoiseRatio, Spread, noise_ratio, noise_ratio_of_examples
from gnomon.numerics.operators import PRODUCT, Hessian, loss_gradient, loss_value

MCCANDLISH_2018 = Source("mccandlish2018")

FEWEST_GROUPS = 4
"""Fewest groups whose spread says anything: leaving one out must leave a variance."""
HELD_BYTES = 2**30
"""The groups' gradients are held together up to this size; beyond it each is computed twice."""
LEFT_OUT = 128
"""Examples that are left out in turn for the error of a sample: these, or a sixteenth of them all where that is more."""
ROUNDING = 64
"""Rounding of an exact ratio of norms, in units of eps."""
FEWEST_DRAWS = 4
EVALUATED = 256
"""Examples on which the loss is compared before and after a step: both sides of the comparison use the same ones."""
COLUMNS = 2**18
"""Parameters at a time in products of the groups' gradients, in float64."""


def summed_gradient(subject: Subject, data: Dataset) -> Tensor:
    """sum_i w_i grad loss_i over some of the examples (for a sum: the gradient of their sum); 0 where every target is ignored.  Shapes: (P,)."""
    gradient, weight = _gradient_on(subject, data)
    return gradient * weight


def _gradient_on(subject: Subject, data: Dataset) -> tuple[Tensor, float]:
    """The gradient of the loss over some of the examples and what they count for (1 for a sum); zeros where every target is ignored."""
    part = dataclasses.replace(subject, train=data, _shared={})
    weight = sum(part.loss.count(block.targets) for block in part.batches()) if part.loss.reduction == "mean" else 1.0
    return loss_gradient(part)[1] if weight > 0 else torch.zeros(subject.dimension, dtype=subject.dtype, device=subject.device), weight


def _held(subject: Subject, count: int) -> int:
    return count * subject.dimension * subject.state[subject.trainable[0]].element_size()


def groups_of(subject: Subject, groups: int) -> int:
    """How many groups the training examples are dealt to.   Raises: InvalidInput for fewer than 4; OutOfScope for fewer than 8 examples."""
    if groups < FEWEST_GROUPS:
        raise InvalidInput(f"groups must be at least {FEWEST_GROUPS}, not {groups}.")
    n = len(subject.train)
    if n < 2 * FEWEST_GROUPS:
        raise OutOfScope(f"the noise scale needs at least {2 * FEWEST_GROUPS} examples; here are {n}")
    return min(groups, n // 2)


def _noise_cost(subject: Subject, groups: int) -> Cost:
    if moments.cheap(subject):
        return Cost(gradients=1.2 if len(subject.train) == subject.train.population else 1.5, bytes=16 * subject.dimension)
    held = _held(subject, groups)
    return Cost(gradients=1.0 if held <= HELD_BYTES else 2.0, bytes=min(held, HELD_BYTES) + 16 * subject.dimension)


def _by_examples(subject: Subject) -> NoiseRatio:
    """Every example a group of its own, by norms and inner products with the mean: nothing is left to how examples are dealt."""
    n, population = len(subject.train), subject.train.population
    some = 0 if n == population else min(n, max(LEFT_OUT, n // 16))
    # which examples are left out in turn is part of the estimate, not of chance: always the same ones
    rows = chance.permutation(n, rng=chance.generator(0, "left out"))[:some].sort().values
    found = moments.gradient_moments(subject, rows)
    return noise_ratio_of_examples(found.mean_square, found.squares.numpy(), rows.numpy(), found.along.numpy(), population)


def _spread(subject: Subject, groups: list[Dataset]) -> Spread:
    """One pass over the groups where their gradients fit into memory, else two."""
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    hold = _held(subject, len(groups)) <= HELD_BYTES
    held: list[Tensor] = []
    total = torch.zeros(subject.dimension, dtype=torch.float64 if subject.device.type != "mps" else torch.float32, device=subject.device)
    for group in groups:
        gradient = summed_gradient(subject, group)
        total += gradient
        if hold:
            held.append(gradient)
    mean = total / float(sizes.sum())
    count = len(groups)
    gram, along, squares = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    scale = torch.as_tensor(sizes, dtype=mean.dtype, device=mean.device)
    if hold:
        for start in range(0, subject.dimension, COLUMNS):
            piece = mean[start : start + COLUMNS]
            rest = torch.stack([g[start : start + COLUMNS].to(mean.dtype) for g in held]) - scale[:, None] * piece
            gram += (rest @ rest.T).double().cpu()
            along += (rest @ piece).double().cpu()
        squares = gram.diagonal()
    else:
        for k, group in enumerate(groups):
            rest = summed_gradient(subject, group).to(mean.dtype) - scale[k] * mean
            squares[k], along[k] = float(rest @ rest), float(rest @ mean)
    cross = None
    if hold:
        pairs = (gram.numpy() / np.sqrt(np.outer(sizes, sizes)))[~np.eye(count, dtype=bool)]
        cross = float(pairs.var())
    return Spread(sizes, squares.numpy().copy(), along.numpy().copy(), float(mean @ mean), cross)


def exact_noise_scale(subject: Subject) -> float:
    """tr Sigma / |G|^2 from every example's gradient, one at a time.   Cost: as many gradients of one example as there are examples."""
    rows = torch.stack([summed_gradient(subject, subject.train.select(torch.tensor([i]))).double().cpu() for i in range(len(subject.train))])
    mean = rows.mean(0)
    return float(((rows - mean) ** 2).sum() / (len(rows) - 1) / (mean @ mean))


@instrument(topic="dynamics", truth=exact_noise_scale, knob="groups", smallest=16, largest=128, essential=True, cost=_noise_cost)
def gradient_noise_scale(subject: Subject, *, rng: Generator, groups: int = 32) -> Reading:
    """Gradient noise scale: how many examples a batch needs until its gradient is more signal than noise.

    B_noise = tr Sigma / |G|^2, with G the gradient of the mean loss over all N training examples and Sigma the covariance (divisor N - 1) of the
    per-example gradients g_i = N (w_i / W) grad loss_i.  The n examples at hand are dealt to K groups at random:

    tr Sigma ~ S^2 = sum_k n_k |g_k - g|^2 / (K - 1),   |G|^2 ~ |g|^2 - (1 - n/N) S^2 / n,   the ratio of the two, never a mean of ratios.

    Where the layers' inputs and output gradients give the norms of per-example gradients cheaply (dense layers; not convolutions), every example is a group
    of its own: over all N examples the value is then exact, and `groups` says nothing.

    Shapes: value ().   Units: examples.
    Error: 95 % interval by leaving out one group at a time and Fieller's theorem, replacement-corrected; open above where |G|^2 is lost in noise, and
    the value is then its lower end where the estimate of |G|^2 is not positive; rounding alone where the value is exact.  Per-example gradients with very heavy
    tails are seen only if drawn.
    Assumes: the examples are a random sample of their population; eval mode.
    Cost: 1.2 gradients, 1.5 on a sample; by groups one, two where the groups' gradients do not fit into 1 GiB, and K^2 inner products.
    Raises: OutOfScope for fewer than 8 examples or where every gradient is the same; InvalidInput for fewer than 4 groups.
    Source: McCandlish et al. 2018, section 2.2 (their B_simple) and appendix A.1.
    """
    n, population, count = len(subject.train), subject.train.population, groups_of(subject, groups)
    if moments.cheap(subject):
        return noise_reading("gradient_noise_scale", subject, _by_examples(subject), exact=n == population)
    order = chance.permutation(n, rng=rng)
    spread = _spread(subject, [subject.train.select(order[k::count]) for k in range(count)])
    fewer = () if count == groups else (f"{count} groups instead of {groups}: there are only {n} examples",)
    return noise_reading("gradient_noise_scale", subject, noise_ratio(spread, population), assumes=fewer)


def noise_reading(name: str, subject: Subject, estimate: NoiseRatio, *, assumes: tuple[str, ...] = (), exact: bool = False) -> Reading:
    """A noise scale with its interval.

    Shapes: value ().   Units: examples.   Error, Assumes, Source: as `gradient_noise_scale`.   Cost: none.
    Raises: OutOfScope where there is no noise, nothing but noise, or a gradient that is not finite.
    """
    n, population = len(subject.train), subject.train.population
    if not (math.isfinite(estimate.trace) and math.isfinite(estimate.square)):
        raise OutOfScope("a gradient is not finite; look for an overflow in the loss")
    if estimate.trace <= ROUNDING * torch.finfo(subject.dtype).eps * estimate.square:
        raise OutOfScope("every example has the same gradient: there is no noise")
    if n == population and estimate.square <= 0:
        raise OutOfScope("the gradient of the training loss is exactly 0: every batch is noise")
    common: dict[str, Any] = {
        "source": MCCANDLISH_2018.at("section 2.2, appendix A.1"), "assumes": ("the loss is that of eval mode", *assumes),
        "details": {"trace": estimate.trace, "gradient_square": estimate.square, "groups": estimate.groups, "examples": n, "population": population},
    }  # fmt: skip
    if exact:
        value = estimate.trace / estimate.square
        # |G| is a sum of n vectors of size sqrt(tr Sigma), rounded
        bound = ROUNDING * torch.finfo(subject.dtype).eps * value * (1 + math.sqrt(value))
        return Reading(name, value, "examples", error=bound, error_kind="bound", **common)
    value, error, interval = estimate.told()
    return Reading(name, value, "examples", error=error, error_kind="sample" if n < population else "probe", n=estimate.groups, interval=interval, **common)


def evaluated(subject: Subject) -> Subject:
    """The examples on which the loss is compared: the same ones for both sides, whatever the rng."""
    return subject.once("sgd-step/evaluated", lambda: subject.sample(EVALUATED, rng=chance.generator(0, "sgd-step/evaluated")))


def _step_size(subject: Subject) -> float:
    if subject.training.lr is None:
        raise OutOfScope("the learning rate is not known (--lr)")
    return subject.training.lr


def _batches(subject: Subject, draws: int) -> tuple[list[Dataset], int]:
    """The batches that steps are taken on, keyed by their number alone so that both sides take the same; one, of all examples, where a batch holds them all."""
    if draws < 1:
        raise InvalidInput(f"draws must be at least 1, not {draws}.")
    n, size = len(subject.train), subject.training.batch_size
    if size is None or size >= n:
        return [subject.train], n
    return [subject.train.select(chance.permutation(n, rng=chance.generator(0, "sgd-step", i))[:size]) for i in range(draws)], size


def batch_gradient(subject: Subject, batch: Dataset) -> Tensor:
    """The gradient of the loss of one batch; 0 where every target in it is ignored.  Shapes: (P,)."""
    return _gradient_on(subject, batch)[0]


def _gradients(subject: Subject, draws: int) -> list[Tensor]:
    """One gradient a batch, shared by the two instruments where they fit into memory."""
    batches, _ = _batches(subject, draws)
    build = lambda: [batch_gradient(subject, batch) for batch in batches]  # noqa: E731
    return subject.once(f"sgd-step/{draws}", build) if _held(subject, len(batches)) <= HELD_BYTES // 4 else build()


def _seen(subject: Subject, size: int) -> tuple[str, ...]:
    said = [
        f"the loss is compared on {len(evaluated(subject).train):,} of {subject.train.population:,} examples, the same before and after",
        "one plain step of gradient descent, whatever the optimizer",
    ]
    wanted = subject.training.batch_size
    if wanted is None:
        said.append("the batch size is not known: a batch of all examples at hand")
    elif wanted > size:
        said.append(f"a batch of all {size:,} examples at hand instead of {wanted:,}")
    return tuple(said)


def _batch_share(subject: Subject) -> float:
    size = subject.training.batch_size
    return 1.0 if size is None else min(size / len(subject.train), 1.0)


def _draws_made(subject: Subject, draws: int) -> int:
    return draws if _batch_share(subject) < 1 else 1


def _change_cost(subject: Subject, draws: int) -> Cost:
    forward = min(EVALUATED / len(subject.train), 1.0) / 3
    return Cost(gradients=_draws_made(subject, draws) * (_batch_share(subject) + forward) + forward, bytes=min(_held(subject, draws), HELD_BYTES // 4) + 16 * subject.dimension)


def _terms_cost(subject: Subject, draws: int) -> Cost:
    part = min(EVALUATED / len(subject.train), 1.0)
    return Cost(
        gradients=(_draws_made(subject, draws) * PRODUCT + 1) * part,
        bytes=min(_held(subject, draws), HELD_BYTES // 4) + 40 * subject.dimension + int(part * operator_bytes(subject)),
    )


def exact_step_change(subject: Subject) -> float:
    """The change of the loss at the fewest draws, batch by batch."""
    changes = []
    where, lr = evaluated(subject), _step_size(subject)
    for batch in _batches(subject, FEWEST_DRAWS)[0]:
        moved = flatten(subject.parameters.values()) - lr * batch_gradient(subject, batch)
        changes.append(loss_value(_moved(where, moved)) - loss_value(where))
    return float(np.mean(changes))


def _moved(subject: Subject, flat: Tensor) -> Subject:
    state, start = dict(subject.state), 0
    for key, value in subject.parameters.items():
        state[key] = flat[start : start + value.numel()].reshape(value.shape)
        start += value.numel()
    return dataclasses.replace(subject, state=state, _shared={})


@instrument(topic="dynamics", needs=("optimizer",), truth=exact_step_change, knob="draws", smallest=FEWEST_DRAWS, largest=64, cost=_change_cost)
def sgd_step_change(subject: Subject, *, rng: Generator, draws: int = 16) -> Reading:
    """Measured change of the training loss after one plain gradient step of the stated learning rate on a batch of the stated size.

    mean over batches B of  L(theta - lr g_B) - L(theta),  L the loss on up to 256 of the examples.

    Shapes: value ().   Units: loss.
    Error: bound, rounding alone: the batches are keyed by their number, not by `rng`, so that `sgd_step_terms` speaks of the very same steps; the spread over
    batches stands in `details`.
    Assumes: eval mode.   Cost: per batch its gradient and a forward pass of the examples that the loss is compared on.
    Raises: OutOfScope without a learning rate, or where a step makes the loss infinite; InvalidInput for no batch.
    Source: McCandlish et al. 2018, section 2.2.
    """
    lr, where = _step_size(subject), evaluated(subject)
    start, before = flatten(subject.parameters.values()), loss_value(where)
    gradients = _gradients(subject, draws)
    changes = np.array([loss_value(_moved(where, start - lr * gradient)) for gradient in gradients]) - before
    if not np.isfinite(changes).all():
        raise OutOfScope(f"a step of lr {lr:g} makes the loss infinite; it is far beyond what is stable")
    size, largest = _batches(subject, draws)[1], max(float(gradient.double().norm()) for gradient in gradients)
    rounding = torch.finfo(subject.dtype).eps * (16 * (2 * abs(before) + float(np.abs(changes).max())) + largest * float(start.double().norm()))
    return Reading(
        "sgd_step_change", float(changes.mean()), "loss", error=max(rounding, 1e-300), error_kind="bound", source=MCCANDLISH_2018.at("section 2.2"), assumes=_seen(subject, size),
        details={"batches": len(changes), "batch": size, "lr": lr, "spread": float(changes.std()), "changes": changes.tolist(), "loss": before},
    )  # fmt: skip


def exact_step_terms(subject: Subject) -> Array:
    """G . g_B and g_B' H g_B at the fewest draws, by plain double backward over all examples at once."""
    where = evaluated(subject)
    start = flatten(subject.parameters.values()).double()

    def loss(flat: Tensor) -> Tensor:
        moved, total = _moved(where, flat), where.total_weight()
        parts = [
            moved.loss(moved(moved.state, block.inputs), block.targets) * (moved.loss.count(block.targets) if moved.loss.reduction == "mean" else 1.0)
            for block in moved.batches() if moved.loss.reduction == "sum" or moved.loss.count(block.targets)
        ]  # fmt: skip
        return torch.stack(parts).sum() / total

    leaf, rows = start.requires_grad_(), []
    with measuring(subject):
        (slope,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        for batch in _batches(subject, FEWEST_DRAWS)[0]:
            g = batch_gradient(subject, batch)
            (curved,) = torch.autograd.grad(slope @ g, leaf, retain_graph=True)
            rows.append([float(slope.detach() @ g), float(curved @ g)])
    return np.asarray(rows).mean(0)


@instrument(topic="dynamics", needs=("optimizer",), truth=exact_step_terms, knob="draws", smallest=FEWEST_DRAWS, largest=64, shares="sgd_step_change", cost=_terms_cost)
def sgd_step_terms(subject: Subject, *, rng: Generator, draws: int = 16) -> Reading:
    """Slope and curvature of the training loss along the steps that `sgd_step_change` takes: G . g_B and g_B' H g_B, averaged over batches.

    G and H are gradient and Hessian of the loss on the examples that the change is measured on.

    Shapes: value (2,); one number a batch in `details`.   Units: loss / lr and loss / lr^2.
    Error: bound, rounding alone: the batches are those of `sgd_step_change`.
    Assumes: eval mode.   Cost: a Hessian product of the compared examples per batch.
    Raises: OutOfScope without a learning rate, or where the network has no second derivative; InvalidInput for no batch.
    Source: McCandlish et al. 2018, section 2.2.
    """
    _step_size(subject)
    where = evaluated(subject)
    slope, hessian = loss_gradient(where)[1].double(), Hessian(where)
    rows, scales = [], []
    for gradient in _gradients(subject, draws):
        curved, g = hessian(gradient).double(), gradient.double()
        rows.append([float(slope @ g), float(curved @ g)])
        scales.append([float(slope.norm() * g.norm()), float(curved.norm() * g.norm())])
    table, size = np.asarray(rows), _batches(subject, draws)[1]
    rounding = 64 * torch.finfo(subject.dtype).eps * np.asarray(scales).max(0)
    return Reading(
        "sgd_step_terms", table.mean(0), "loss / lr, loss / lr²", error=np.maximum(rounding, 1e-300), error_kind="bound", axes=(Axis("term", ("G·g", "g'Hg")),),
        source=MCCANDLISH_2018.at("section 2.2"), assumes=_seen(subject, size),
        details={"batches": len(table), "batch": size, "first": table[:, 0].tolist(), "second": table[:, 1].tolist()},
    )  # fmt: skip
