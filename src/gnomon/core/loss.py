"""The loss of a subject: a function of (output, targets) that is a weighted mean or a sum over examples, checked to be one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gnomon.core.dataset import Tree, leaves, length
from gnomon.core.errors import InvalidInput, unknown

LossFunction = Callable[[Tensor, Any], Tensor]
Weight = Callable[[Any], float | Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss over a data set: sum_b w_b loss_b / sum_b w_b for a `mean`, sum_b loss_b for a `sum`, over any split into batches b.

    `weight(targets)` is what a batch counts for in the mean: examples, tokens that are not ignored, or class weights.
    """

    function: LossFunction
    name: str
    reduction: Literal["mean", "sum"]
    weight: Weight

    def __call__(self, output: Tensor, targets: Any) -> Tensor:
        """The loss of a batch, one number."""
        return self.function(output, targets)

    def count(self, targets: Any) -> float:
        """What a batch counts for, as a number."""
        return float(self.weight(targets))


def class_last(output: Tensor, targets: Tensor) -> Tensor:
    """Logits with the classes in the last dimension: (N, T, C) as they are, (N, C, T) with C moved.  Shapes: targets (N, ...)."""
    if output.ndim > 2 and output.shape[:-1] != targets.shape and output.shape[:1] + output.shape[2:] == targets.shape:
        return output.movedim(1, -1)
    return output


def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy averaged over the targets that are not -100.  Shapes: output (N, C), (N, ..., C) or (N, C, ...); targets (N, ...)."""
    logits = class_last(output, targets)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long())


def mse(output: Tensor, targets: Tensor) -> Tensor:
    """Mean of (output - target)^2 over examples and components.  Shapes: output (N, ...), targets with as many numbers.  Raises: InvalidInput for more or fewer."""
    if output.numel() != targets.numel():
        raise InvalidInput(f"mse: outputs of shape {tuple(output.shape)} do not fit targets of shape {tuple(targets.shape)}; give as many targets as the outputs have numbers.")
    return F.mse_loss(output, targets.reshape(output.shape).to(output.dtype))


def bce_with_logits(output: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits, averaged over examples and components.  Shapes: output (N, ...), targets with as many numbers."""
    return F.binary_cross_entropy_with_logits(output, targets.reshape(output.shape).to(output.dtype))


LOSSES: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": mse, "bce_with_logits": bce_with_logits}


def named(loss: str | LossFunction) -> tuple[LossFunction, str]:
    """A loss function and its name, from a name or from the function (or loss module) itself.  Raises: InvalidInput for anything else."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        return LOSSES[loss], loss
    if not callable(loss):
        raise InvalidInput(f"A loss must be a name ({', '.join(LOSSES)}) or a function of (output, targets), not {type(loss).__name__}.")
    return loss, getattr(loss, "__name__", type(loss).__name__)


def is_classification(loss: Loss) -> bool:
    """Whether the loss compares logits with class numbers."""
    return loss.function in (cross_entropy, F.cross_entropy) or isinstance(loss.function, (nn.CrossEntropyLoss, nn.NLLLoss))


def _ignored(function: Any) -> int:
    return int(getattr(function, "ignore_index", -100))


def _examples(targets: Any) -> float:
    return float(length(targets))


def _elements(targets: Any) -> float:
    return float(sum(leaf.numel() for leaf in leaves(targets)))


def _counted(function: Any) -> Weight:
    """The number of targets that are not ignored, each with its class weight if the loss has such."""
    ignored, per_class = _ignored(function), getattr(function, "weight", None)

    def weight(targets: Any) -> float:
        flat = leaves(targets)[0].reshape(-1).long()
        kept = flat[flat != ignored]
        return float(kept.numel() if per_class is None else per_class.detach().cpu().double()[kept.cpu()].sum())

    return weight


def check(function: LossFunction, name: str, output: Tensor, targets: Tree, *, weight: Weight | None = None) -> Loss:
    """The Loss of a function, once it is seen that a batch's loss is the weighted mean, or the sum, of its parts' losses.

    Shapes: output (N, ...), targets with N examples.
    Raises: InvalidInput where the loss is not a scalar, or neither a weighted mean nor a sum over examples.
    """
    integral = all(not leaf.is_floating_point() for leaf in leaves(targets)) and bool(leaves(targets))
    whole = function(output, targets)
    if not isinstance(whole, Tensor) or whole.ndim:
        came = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
        raise InvalidInput(f"The loss {name!r} must return one number for a batch (reduction 'mean' or 'sum'), not {came}.")
    means: list[Weight] = [weight] if weight else [_examples, *([_counted(function)] if integral else []), _elements]
    if getattr(function, "reduction", None) == "sum":
        means = []
    elif not weight and is_classification(Loss(function, name, "mean", _examples)):
        means = [_counted(function)]
    parts = [p for p in _parts(output, targets) if len(p[0])]
    if len(parts) < 2:
        return Loss(function, name, "mean" if means else "sum", means[0] if means else _examples)
    losses = [float(function(o, t)) for o, t in parts]
    tolerance = 1e-9 if output.dtype == torch.float64 else 2e-4
    size = max(abs(float(whole)), *(abs(x) for x in losses if x == x), 1e-30)
    for candidate in means:
        counts = [float(candidate(t)) for _, t in parts]
        total = float(candidate(targets))
        mean = sum(c * x for c, x in zip(counts, losses, strict=True) if c) / total if total else float("nan")
        if abs(mean - float(whole)) <= tolerance * size:
            return Loss(function, name, "mean", candidate)
    if not weight and abs(sum(losses) - float(whole)) <= tolerance * max(size, abs(sum(losses))):
        return Loss(function, name, "sum", _examples)
    raise InvalidInput(
        f"The loss {name!r} is neither a weighted mean nor a sum over examples: a batch of {length(targets)} gives {float(whole):.6g}, its parts give "
        f"{', '.join(f'{x:.6g}' for x in losses)}. Give weight=, a function of the targets that says what a batch counts for; losses that compare the examples of a batch "
        "with each other are not covered."
    )


def _parts(output: Tensor, targets: Tree) -> list[tuple[Tensor, Tree]]:
    """Uneven parts of a batch: an even split would not tell a mean over tokens from one over examples."""
    n = len(output)
    cuts = sorted({0, max(n // 5, 1), n // 2, n}) if n > 1 else [0, n]
    return [(output[a:b], tree_map(lambda leaf, a=a, b=b: leaf[a:b], targets)) for a, b in itertools.pairwise(cuts) if b > a]
