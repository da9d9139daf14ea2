"""Many short trainings of one network at once, by SGD with or without momentum, or by SVAG, which approaches SGD's stochastic differential equation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Generator, Tensor
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from gnomon.core import rng as chance
from gnomon.core.dataset import Block
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.sgd import Sgd, svag_weights
from gnomon.core.subject import Subject
from gnomon.numerics import derivatives
from gnomon.numerics.batches import BLOCK, drawn_batches
from gnomon.numerics.checkpoint import Checkpoint
from gnomon.numerics.measuring import measuring
from gnomon.numerics.operators import loss_gradient

MEMORY = 1 << 28
"""Bytes that the parameters of the runs that go at once may take, with their gradients."""
TRACED_AFTER = 32
"""Calls after which the operations of a step are called without the layers around them."""
Parts = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Ends:
    """What the runs came to.  Shapes: `losses` (runs,) at the end, infinite for one that diverged; `distances` (runs,) from the start; `angles` (runs,) the mean cosine between updates that follow each other; `diverged` (runs,) the step at which a run left the finite numbers, -1 for none."""

    losses: Float64[Tensor, "runs"]
    distances: Float64[Tensor, "runs"]
    angles: Float64[Tensor, "runs"]
    diverged: Int64[Tensor, "runs"]


class Kept:
    """What groups of runs have come to, and how far the group in work is, in a file: another process goes on from there, to the same bits."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises: InvalidInput for the state of something else."""
        self.checkpoint, self.state = checkpoint, checkpoint.load() or {}

    def ends(self, name: str) -> Ends | None:
        """What a group came to, or None where it is not done."""
        fields = [field.name for field in dataclasses.fields(Ends)]
        return Ends(*(self.state[f"{name}/{field}"] for field in fields)) if f"{name}/{fields[0]}" in self.state else None

    def finish(self, name: str, ends: Ends) -> None:
        """Keep what a group came to."""
        self.state = {key: value for key, value in self.state.items() if not key.startswith("now/")}
        self.state |= {f"{name}/{field.name}": getattr(ends, field.name) for field in dataclasses.fields(Ends)}
        self.checkpoint.save(lambda: self.state, now=True)

    def now(self, name: str) -> Parts:
        """The state of the group in work; nothing where it is another."""
        start = f"now/{name}/"
        return {key.removeprefix(start): value for key, value in self.state.items() if key.startswith(start)}

    def save(self, name: str, state: Callable[[], Parts]) -> None:
        """Keep the state of the group in work, where that is due."""
        done = {key: value for key, value in self.state.items() if not key.startswith("now/")}
        self.checkpoint.save(lambda: done | {f"now/{name}/{key}": value.contiguous() for key, value in state().items()})


def walks(
    subject: Subject, sgd: Sgd, *, steps: int, runs: int, level: int = 1, rng: Generator, evaluated: Subject | None = None, kept: Kept | None = None, name: str = "runs"
) -> Ends:
    """Run SGD (`level` 1) or SVAG of level l from the subject's parameters: l times as many steps of lr / l, noise made larger by sqrt(l).

    theta <- theta - (lr / l) ((1 + sqrt(2l - 1)) / 2 g_1 + (1 - sqrt(2l - 1)) / 2 g_2), with the gradients of two batches that are drawn independently.
    With momentum each run starts with v = G / (1 - b), as if it had gone on for long; b stays as it is at every level.

    Shapes: see `Ends`.   Units: loss; parameter.   Error: rounding; the runs are independent draws.
    Assumes: eval mode: dropout is off and batch norm uses its running statistics; data of one shape.   `evaluated` is the subject on whose data the loss at the
    end is taken (its own if not given).   `kept` is where the state is kept meanwhile, under `name`.
    Cost: runs * steps batches, 2 l times that for SVAG, and runs / 3 gradients of the evaluated data.
    Raises: InvalidInput for an impossible setting, a batch larger than the data; OutOfScope for data of several shapes, or a batch that is all of them.
    Source: Li, Malladi & Arora 2021 (SVAG).
    """
    _check(subject, sgd, steps, runs, level)
    at_once = max(MEMORY // (4 * subject.dimension * subject.state[subject.trainable[0]].element_size()), 1)
    start = loss_gradient(subject)[1] / (1 - sgd.momentum) if sgd.momentum else None
    found = []
    with measuring(subject):
        for number, first in enumerate(range(0, runs, at_once)):
            count = min(at_once, runs - first)
            own = f"{name}/{number}"
            ends = kept.ends(own) if kept else None
            if ends is None:
                ends = _Runs(subject, sgd, count, level, start).go(steps, chance.child(rng, "runs", number), evaluated or subject, kept, own)
                if kept is not None:
                    kept.finish(own, ends)
            found.append(ends)
    return Ends(*(torch.cat([getattr(part, field.name) for part in found]) for field in dataclasses.fields(Ends)))


def noise_free(subject: Subject, sgd: Sgd, *, steps: int, evaluated: Subject | None = None) -> float:
    """The loss after the same number of steps on all examples: the path without noise.   Cost: `steps` gradients."""
    theta = derivatives.flatten(subject.parameters.values()).double()
    velocity = torch.zeros_like(theta)
    here = subject
    for step in range(steps):
        g = loss_gradient(here)[1].double()
        if step == 0 and sgd.momentum:
            velocity = g / (1 - sgd.momentum)
        g = g + sgd.weight_decay * theta if sgd.decay == "coupled" else g
        velocity = sgd.momentum * velocity + g
        theta = theta * (1 - sgd.lr * sgd.weight_decay if sgd.decay == "decoupled" else 1.0)
        theta = theta - sgd.lr * (g + sgd.momentum * velocity if sgd.nesterov else velocity)
        parts = dict(zip(subject.trainable, derivatives.split(subject, theta.to(subject.dtype)), strict=True))
        here = dataclasses.replace(subject, state={**subject.state, **parts}, _shared={k: v for k, v in subject._shared.items() if k.startswith("numerics.total.")})
    where = evaluated or subject
    return float(_losses(where, {key: here.state[key][None] for key in subject.trainable})[0])


def _check(subject: Subject, sgd: Sgd, steps: int, runs: int, level: int) -> None:
    n = len(subject.train)
    for name, value in (("steps", steps), ("runs", runs), ("level", level)):
        if value < 1:
            raise InvalidInput(f"{name} must be at least 1, not {value}.")
    if sgd.examples != n or sgd.svag != 1:
        raise InvalidInput(f"The steps must be said to be on the {n:,} examples at hand, with svag = 1 (the level is given apart), not on {sgd.examples:,} with svag = {sgd.svag}.")
    if len(subject.train.blocks) != 1:
        raise OutOfScope(f"runs are made on data of one shape; these come in {len(subject.train.blocks)} shapes")
    if level > 1:
        sgd.independent("SVAG")
    if sgd.sampling != "with_replacement" and sgd.batch_size == n:
        raise OutOfScope(f"a batch holds all {n:,} examples: its steps have no noise")


class _Runs:
    """Runs that go in step."""

    def __init__(self, subject: Subject, sgd: Sgd, runs: int, level: int, velocity: Tensor | None) -> None:
        self.subject, self.sgd, self.runs, self.level = subject, sgd, runs, level
        self.theta = {key: value.expand(runs, *value.shape).clone() for key, value in subject.parameters.items()}
        parts = None if velocity is None else derivatives.split(subject, velocity)
        self.velocity = None if parts is None else {key: part.expand(runs, *part.shape).clone() for key, part in zip(self.theta, parts, strict=True)}
        self.gradient = _gradients(subject, runs, sgd.batch_size, level)

    def go(self, steps: int, rng: Generator, evaluated: Subject, kept: Kept | None, name: str) -> Ends:
        """Make the steps, from where they were left."""
        n, size = len(self.subject.train), self.sgd.batch_size
        streams = [drawn_batches(n, size, self.runs, sampling=self.sgd.sampling, rng=chance.child(rng, "batches", half)) for half in range(2 if self.level > 1 else 1)]
        diverged = torch.full((self.runs,), -1, dtype=torch.int64)
        before: Parts | None = None
        angles, counted, first = torch.zeros(self.runs, dtype=torch.float64), 0, 0
        if left := kept.now(name) if kept else {}:
            first, counted, angles, diverged = int(left["step"]), int(left["counted"]), left["angles"], left["diverged"]
            parts = {role: {key: left[f"{role}.{key}"].to(value) for key, value in self.theta.items() if f"{role}.{key}" in left} for role in ("theta", "velocity", "before")}
            self.theta, self.velocity, before = parts["theta"], parts["velocity"] or None, parts["before"] or None
            for _ in range(first):  # the batches that were used are drawn once more, which takes no time beside their gradients
                for stream in streams:
                    next(stream)
        for step in range(first, steps * self.level):
            update = self.update(self.gradient(self.theta, *self.at(torch.cat([next(stream) for stream in streams], 1))))
            if self.sgd.decay == "decoupled":
                for value in self.theta.values():
                    value.mul_(1 - self.sgd.lr / self.level * self.sgd.weight_decay)
            for key, value in update.items():
                self.theta[key].sub_(value, alpha=self.sgd.lr / self.level)
            if self.level == 1:
                if before is not None:
                    angles += _cosine(before, update)
                    counted += 1
                # in the order in memory that a file gives it back in: sums are then the same to the bit
                before = {key: value.clone(memory_format=torch.contiguous_format) if self.velocity is not None else value.contiguous() for key, value in update.items()}
            if step % BLOCK == BLOCK - 1 or step == steps * self.level - 1:
                fine = torch.stack([value.flatten(1).isfinite().all(1) for value in self.theta.values()]).all(0).cpu()
                diverged[~fine & (diverged < 0)] = step // self.level
            if kept is not None:
                parts = {"theta": self.theta, "velocity": self.velocity or {}, "before": before or {}}
                numbers = {"step": torch.tensor(step + 1), "counted": torch.tensor(counted), "angles": angles, "diverged": diverged}
                kept.save(name, lambda: numbers | {f"{role}.{key}": value for role, part in parts.items() for key, value in part.items()})  # noqa: B023
        start = self.subject.parameters
        square = torch.stack([(value - start[key]).flatten(1).double().square().sum(1) for key, value in self.theta.items()]).sum(0).cpu()
        losses = _losses(evaluated, self.theta)
        losses[~losses.isfinite()] = math.inf
        return Ends(losses, square.sqrt().nan_to_num(math.inf), (angles / max(counted, 1)).nan_to_num(0.0), diverged)

    def update(self, gradient: Parts) -> Parts:
        """What is subtracted, over the learning rate."""
        if self.sgd.decay == "coupled":
            gradient = {key: value + self.sgd.weight_decay * self.theta[key] for key, value in gradient.items()}
        if self.velocity is None:
            return gradient
        for key, value in self.velocity.items():
            value.mul_(self.sgd.momentum).add_(gradient[key])
        return {key: gradient[key] + self.sgd.momentum * value for key, value in self.velocity.items()} if self.sgd.nesterov else self.velocity

    def at(self, chosen: Int64[Tensor, "runs size"]) -> tuple[Any, Any]:
        block = self.subject.train.blocks[0]
        # `to_device` knows tensors, tuples and dicts of inputs, and casts what is floating
        return tuple(self.subject.to_device(tree_map(lambda leaf: leaf[chosen], part)) for part in (block.inputs, block.targets))


def _cosine(a: Parts, b: Parts) -> Float64[Tensor, "runs"]:
    inner, one, two = (torch.stack([(x[key] * y[key]).flatten(1).sum(1) for key in a]).sum(0).double().cpu() for x, y in ((a, b), (a, a), (b, b)))
    return (inner / (one * two).sqrt().clamp_min(1e-300)).nan_to_num(0.0)


def _batch_loss(subject: Subject, size: int, level: int) -> Callable[[Parts, Any, Any], Float[Tensor, ""]]:
    def loss(parameters: Parts, inputs: Any, targets: Any) -> Float[Tensor, ""]:
        output = derivatives.output_of(subject, parameters, inputs)
        if level == 1:
            return subject.loss(output, targets)
        (one, two), rest = svag_weights(level), tree_map(lambda leaf: leaf[size:], targets)
        return one * subject.loss(output[:size], tree_map(lambda leaf: leaf[:size], targets)) + two * subject.loss(output[size:], rest)

    return loss


Gradient = Callable[[Parts, Any, Any], Parts]


def _gradients(subject: Subject, runs: int, size: int, level: int) -> Gradient:
    """The gradient of every run's own batch: of all runs at once where the network allows it, checked against one run at a time, which it is otherwise."""
    return subject.once(f"walks.{runs}.{size}.{level}", lambda: _at_once(subject, runs, size, level) or _looped(subject, size, level))


def _looped(subject: Subject, size: int, level: int) -> Gradient:
    loss = _batch_loss(subject, size, level)

    def gradient(parameters: Parts, inputs: Any, targets: Any) -> Parts:
        rows = []
        for run in range(len(next(iter(parameters.values())))):
            leaves = {key: value[run].detach().requires_grad_() for key, value in parameters.items()}
            own = (tree_map(lambda leaf, run=run: leaf[run], part) for part in (inputs, targets))
            with torch.enable_grad():
                rows.append(derivatives.gradients(loss(leaves, *own), leaves.values()))
        return {key: torch.stack(parts) for key, parts in zip(parameters, zip(*rows, strict=True), strict=True)}

    return gradient


def _trace(function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """The operations of a function, to be called without the layers around them, and without those that change nothing."""
    with chance.preserved():
        traced = make_fx(function)(*example)
    for node in list(traced.graph.nodes):
        if node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


class _AtOnce:
    """A function of all runs at once; the first calls go through the layers, and then its operations alone are made, the same ones.  Cost of the change: some hundred calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == TRACED_AFTER:
            # what cannot be traced (a branch on a number) goes on as it is
            with contextlib.suppress(Exception):
                self.function = _trace(self.function, *args)
        with torch.no_grad():
            return self.function(*args)


def _at_once(subject: Subject, runs: int, size: int, level: int) -> Gradient | None:
    block = subject.train.blocks[0]
    both = size if level == 1 else 2 * size
    rng = chance.generator(0, "walks")
    chosen = torch.randint(len(subject.train), (runs, both), generator=rng)
    inputs, targets = (subject.to_device(tree_map(lambda leaf: leaf[chosen], part)) for part in (block.inputs, block.targets))
    theta = {key: value + 0.01 * value.abs().mean() * chance.normal(runs, *value.shape, rng=rng, like=value) for key, value in subject.parameters.items()}
    gradient = _AtOnce(vmap(grad(_batch_loss(subject, size, level))))
    try:
        with chance.preserved():
            found = gradient(theta, inputs, targets)
    except Exception:
        # what a network does that vmap cannot follow has no common class of errors; one run at a time always works
        return None
    few = {key: value[:2] for key, value in theta.items()}
    truth = _looped(subject, size, level)(few, *(tree_map(lambda leaf: leaf[:2], part) for part in (inputs, targets)))
    scale = max(float(value.abs().max()) for value in truth.values())
    close = 1e4 * torch.finfo(subject.dtype).eps * max(scale, 1e-30)
    return gradient if all(float((found[key][:2] - value).abs().max()) <= close for key, value in truth.items()) else None


def _losses(subject: Subject, parameters: Parts) -> Float64[Tensor, "runs"]:
    """The loss of every run on the training data of a subject.  Shapes: parameters (runs, ...) -> (runs,)."""
    runs = len(next(iter(parameters.values())))
    total = torch.zeros(runs, dtype=torch.float64)
    with measuring(subject), torch.no_grad():
        for block, share in derivatives.scaled_blocks(subject):
            of = subject.once(f"walks.losses.{runs}.{len(block)}", functools.partial(_losses_of, subject, parameters, block))
            total += share * of(parameters, block.inputs, block.targets).double().cpu()
    return total


Losses = Callable[[Parts, Any, Any], Float[Tensor, "runs"]]


def _losses_of(subject: Subject, parameters: Parts, block: Block) -> Losses:
    return _losses_at_once(subject, parameters, block) or _looped_losses(subject)


def _looped_losses(subject: Subject) -> Losses:
    def losses(parameters: Parts, inputs: Any, targets: Any) -> Float[Tensor, "runs"]:
        block = Block(inputs, targets)
        runs = len(next(iter(parameters.values())))
        return torch.stack([derivatives.loss_of(subject, {key: value[run] for key, value in parameters.items()}, block) for run in range(runs)])

    return losses


def _losses_at_once(subject: Subject, parameters: Parts, block: Block) -> Losses | None:
    def loss(own: Parts, inputs: Any, targets: Any) -> Float[Tensor, ""]:
        return subject.loss(derivatives.output_of(subject, own, inputs), targets)

    few = {key: value[:2] for key, value in parameters.items()}
    losses = _AtOnce(vmap(loss, in_dims=(0, None, None)))
    try:
        with chance.preserved():
            found = losses(parameters, block.inputs, block.targets)[:2]
    except Exception:
        # as for the gradients: one run at a time always works
        return None
    truth = _looped_losses(subject)(few, block.inputs, block.targets)
    return losses if bool(torch.isclose(found, truth, rtol=1e4 * torch.finfo(subject.dtype).eps, equal_nan=True).all()) else None
