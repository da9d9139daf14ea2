"""The empirical neural tangent kernel: its spectrum, how far training moved it, its alignment with the targets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Dataset, leaves
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.loss import Loss
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.empirical import empirical_nngp as empirical_nngp
from gnomon.instruments.empirical import empirical_ntk as empirical_ntk
from gnomon.instruments.empirical import monte_carlo_kernel as monte_carlo_kernel
from gnomon.instruments.empirical import tangent_kernel as tangent_kernel
from gnomon.instruments.outcomes import labelled
from gnomon.numerics.derivatives import flatten
from gnomon.numerics.gram import gradient_gram
from gnomon.numerics.measuring import measuring
from gnomon.numerics.per_example import plan_of
from gnomon.numerics.statistics import student_quantile

JACOT_2018 = Source("jacot2018")
CORTES_2012 = Source("cortes2012")
FORT_2020 = Source("fort2020")

MOST = 512
"""Most examples that the kernel is formed on: it has their square many entries."""
FEWEST = 4
CORNER = 8
"""Examples whose kernel is given as it is."""
SHOWN = 10
"""Eigenvalues that are given."""
GROUPS = 16
"""Groups of examples, or of output directions, that are left out one at a time."""
PAIRS = 100.0
"""Examples whose inner products with one example's gradient take as long as that gradient."""
MEMORY = 2**28
"""Bytes that the compact gradients of the examples in work may take."""
ROUNDING = 256.0
"""Rounding of a kernel's entry, in units of the dtype's epsilon and of the kernel's size."""

Rows = np.ndarray[Any, np.dtype[np.int64]]
Statistic = Callable[[tuple[Array, ...], Rows], Array]
"""A function of kernels on some of the examples, and of which ones these are."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The NTK on n examples, as the mean of `parts`: one where it is exact, else one a group of random output directions.

    Shapes: parts (1 or GROUPS, n, n).   `outputs` numbers a network gives for an example.
    """

    parts: Array
    outputs: int

    @property
    def whole(self) -> Array:
        """The kernel itself.  Shapes: (n, n)."""
        return np.asarray(self.parts.mean(0))


def scores(subject: Subject, output: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """What the network says of each example, and what its positions count for: class scores where there are labels, else all numbers at one position.

    Shapes: (n, positions, outputs), (n, positions).
    """
    if subject.classes is None:
        return output.reshape(len(output), 1, -1), torch.ones(len(output), 1, dtype=output.dtype, device=output.device)
    logits, _, kept = labelled(subject, Block(output, targets), output)
    return logits, kept.to(output.dtype) / kept.sum(1, keepdim=True).clamp_min(1)


def _outputs(subject: Subject) -> int:
    """How many numbers the network gives for an example.  Raises: OutOfScope where the examples differ in it."""

    def build() -> int:
        found = set()
        with measuring(subject), torch.no_grad():
            for block in subject.train.blocks:
                one = next(Dataset((block,), len(block)).chunks(1))
                found.add(subject(subject.state, subject.to_device(one.inputs))[0].numel())
        if len(found) > 1:
            raise OutOfScope(f"the NTK compares the same outputs of all examples; here their number runs from {min(found)} to {max(found)}")
        return found.pop()

    return subject.classes if subject.classes is not None else subject.once("kernels/outputs", build)


def _seen(subject: Subject) -> Subject:
    """The subject on at most MOST of its examples, always the same ones."""
    if len(subject.train) < FEWEST:
        raise OutOfScope(f"the NTK is examined on at least {FEWEST} examples; here are {len(subject.train)}")
    return subject if len(subject.train) <= MOST else subject.once("kernels/seen", lambda: subject.sample(MOST, rng=chance.generator(0, "kernels/examples")))


def _kernel(subject: Subject, probes: int, seed: int = 0) -> Kernel:
    """The NTK of a subject on its training examples, made once.  Every output is a direction where there are no more than `probes`, else signs are drawn."""
    if probes < 1:
        raise InvalidInput(f"probes must be at least 1, not {probes}.")
    return subject.once(f"kernels/{probes}/{seed}", lambda: _make_kernel(subject, probes, seed))


def _make_kernel(subject: Subject, probes: int, seed: int) -> Kernel:
    outputs, n = _outputs(subject), len(subject.train)
    plan = plan_of(subject)

    def gram(direction: Tensor) -> Array:
        def projected(output: Tensor, targets: Any) -> Tensor:
            of_positions, weights = scores(subject, output, targets)
            return (of_positions @ direction.to(output) * weights).sum()

        along = dataclasses.replace(subject, loss=Loss(projected, "an output", "sum", lambda targets: 1.0), _shared={"numerics.per_example": plan})
        return np.asarray(gradient_gram(along, memory=MEMORY).numpy()) / n**2

    if outputs <= probes:
        total = np.zeros((1, n, n))
        for unit in torch.eye(outputs, dtype=torch.float64):
            total += gram(unit)
        return Kernel(total / outputs, outputs)
    count = min(GROUPS, probes)
    parts, sizes = np.zeros((count, n, n)), np.zeros(count)
    for index in range(probes // count * count):
        signs = chance.rademacher(outputs, rng=chance.generator(seed, "kernels/direction", index))
        parts[index % count] += gram(signs) / outputs
        sizes[index % count] += 1
    return Kernel(parts / sizes[:, None, None], outputs)


def at_initialisation(subject: Subject) -> Subject:
    """The subject at its initialisation.  Raises: OutOfScope where something but the trainable parameters changed in training."""
    if subject.initial is None:
        raise OutOfScope("the parameters at initialisation are not known; give `initial` to Subject.freeze")
    start = subject.at(subject.initial, "initial")
    refuse_batch_norm(start)
    for key, value in subject.state.items():
        if key not in subject.trainable and not torch.equal(value, start.state[key]):
            raise OutOfScope(f"`{key}` is not trained by gradients and yet differs from its initial value: the network at initialisation is another function")
    return start


def refuse_batch_norm(start: Subject) -> None:
    """Raises: OutOfScope for batch norm with running statistics, which at initialisation are not those of the data."""
    for name, layer in start.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            raise OutOfScope(f"`{name}` is batch norm, whose running statistics are not those of the data at initialisation: in eval mode the network there is another function")


def _about(subject: Subject, probes: int) -> tuple[str, ...]:
    outputs = _outputs(subject)
    said = [f"the NTK on {len(subject.train):,} of {subject.train.population:,} examples"] if subject.train.is_sample else []
    if outputs > probes:
        said.append(f"{probes} random directions stand for {outputs:,} outputs")
    if subject.classes is not None and any(leaves(block.targets)[0][0].numel() > 1 for block in subject.train.blocks):
        said.append("an example's class scores are averaged over its positions with a target")
    return tuple(said)


def _without_one(statistic: Statistic, kernels: tuple[Kernel, ...], groups: list[Rows] | None) -> Array:
    """The statistic with each group of examples left out, or each part of the kernels where there are no groups.  Shapes: (groups, *value)."""
    n = kernels[0].parts.shape[1]
    everyone = np.arange(n)
    if groups is None:
        count = len(kernels[0].parts)
        return np.stack([statistic(tuple((k.parts.sum(0) - k.parts[g]) / (count - 1) for k in kernels), everyone) for g in range(count)])
    rest = [np.setdiff1d(everyone, group) for group in groups]
    return np.stack([statistic(tuple(k.whole[np.ix_(rows, rows)] for k in kernels), rows) for rows in rest])


def _estimate(
    subject: Subject, statistic: Statistic, kernels: tuple[Kernel, ...], rounding: Any, *, least: float = -math.inf, most: float = math.inf, positive: bool = False
) -> dict[str, Any]:
    """The fields of a Reading: value, error and interval of a statistic of kernels, by the jackknife over groups of examples and of directions.

    bias = (G - 1) (mean_g T_g - T),   variance = (G - 1) / G sum_g (T_g - mean)^2,   both times 1 - n/N for examples.
    For `positive` ones (eigenvalues) T is the logarithm, and the bias's own square is added to the variance: eigenvalues repel, and the bias is all but the error.
    """

    def taken(matrices: tuple[Array, ...], rows: Rows) -> Array:
        found = statistic(matrices, rows)
        return np.log(np.maximum(found, rounding)) if positive else found

    n, population = len(subject.train), subject.train.population
    left_out: list[tuple[Array, float]] = []
    if subject.train.is_sample:
        order, count = chance.permutation(n, rng=chance.generator(0, "kernels/groups")).numpy(), min(GROUPS, n)
        left_out.append((_without_one(taken, kernels, [order[g::count] for g in range(count)]), 1 - n / population))
    if len(kernels[0].parts) > 1:
        left_out.append((_without_one(taken, kernels, None), 1.0))
    whole, everyone = tuple(kernel.whole for kernel in kernels), np.arange(n)
    if not left_out:
        return {"value": statistic(whole, everyone), "error": rounding, "error_kind": "bound"}
    plain = taken(whole, everyone)
    value, variance = plain, np.zeros_like(plain)
    for replicates, factor in left_out:
        count = len(replicates)
        bias = factor * (count - 1) * (replicates.mean(0) - plain)
        value = value - bias
        variance = variance + factor * (count - 1) / count * ((replicates - replicates.mean(0)) ** 2).sum(0) + positive * bias**2
    fewest = min(len(replicates) for replicates, _ in left_out)
    error = np.sqrt(variance)
    half = student_quantile(0.975, fewest - 1) * error
    low, high = value - half, value + half
    if positive:
        value, low, high = np.exp(value), np.exp(low), np.exp(high)
        error = value * error
    kind = "sample" if subject.train.is_sample else "probe"
    ends = np.maximum(low - rounding, least), np.minimum(high + rounding, most)
    return {"value": np.clip(value, least, most), "error": error, "error_kind": kind, "n": fewest, "interval": ends}


def _cost(subject: Subject, probes: int, kernels: float = 1.0) -> Cost:
    n = min(len(subject.train), MOST)
    guess = sum(leaf[0].numel() for leaf in leaves(subject.train.blocks[0].targets))
    directions = min(subject.classes if subject.classes is not None else guess, probes)
    held = n * subject.dimension * subject.state[subject.trainable[0]].element_size()
    return Cost(gradients=kernels * directions * (2 + n / PAIRS) * n / len(subject.train), bytes=min(2 * held, MEMORY) + 8 * (GROUPS + 6) * n * n)


def rounding_of(subject: Subject) -> float:
    """The relative rounding of a kernel's entry, or of an output."""
    return ROUNDING * torch.finfo(subject.dtype).eps


def dense_kernel(subject: Subject) -> Array:
    """The NTK by differentiating one output of one example at a time: the small exact answer for the contract tests.  Shapes: (n, n)."""
    rows = []
    with measuring(subject), torch.enable_grad():
        for block in subject.train.chunks(1):
            here = {key: value.detach().clone().requires_grad_() for key, value in subject.parameters.items()}
            output = subject({**subject.state, **here}, subject.to_device(block.inputs))
            targets = leaves(block.targets)[0]
            if subject.classes is not None and targets.numel() > 1:
                output = output[0][targets[0] >= 0].sum(0) / max(int((targets >= 0).sum()), 1)
            flat = output.reshape(-1)
            parts = [torch.autograd.grad(flat[c], list(here.values()), retain_graph=True, materialize_grads=True) for c in range(len(flat))]
            rows.append(torch.stack([flatten(part) for part in parts]))
    jacobian = torch.stack(rows).double()
    return np.asarray((torch.einsum("icp,jcp->ij", jacobian, jacobian) / jacobian.shape[1]).cpu().numpy())


def exact_spectrum(subject: Subject) -> Array:
    """The largest eigenvalues of the NTK, divided by the number of examples."""
    values = np.linalg.eigvalsh(dense_kernel(subject) / len(subject.train))[::-1]
    return np.asarray(values[: _shown(subject)])


def _shown(subject: Subject) -> int:
    return min(SHOWN, min(len(subject.train), MOST) - 2)


@instrument(topic="kernels", at=("end", "initial"), truth=exact_spectrum, knob="probes", smallest=16, largest=64, cost=_cost)
def ntk_spectrum(subject: Subject, *, rng: Generator, probes: int = 16) -> Reading:
    """Largest eigenvalues of the empirical neural tangent kernel, averaged over outputs and divided by the number of examples.

    Theta(x, x') = 1/C sum_c grad f_c(x) . grad f_c(x'),   eigenvalues of Theta / n, over all trainable parameters and the C outputs.

    C Gram matrices of per-example gradients, one an output; for more than `probes` outputs random signs u stand for them, E (grad u.f)(x) . (grad u.f)(x') = C Theta.
    Shapes: value (eigenvalues,), descending.   Units: output^2 / parameter^2.
    Error: bound (rounding); on a subsample the jackknife over groups of examples, for random directions that over groups of them, both in quadrature, the bias
    taken off.   Assumes: eval mode; an example's class scores are averaged over its positions with a target; at most 512 examples are seen.
    Cost: min(outputs, probes) gradients of the examples seen, and as many n x n Gram matrices.
    Raises: OutOfScope for fewer than 4 examples, outputs of unequal number, a kernel of 0, or batch norm at initialisation; InvalidInput for no probe.
    Source: Jacot et al. 2018; the sum over outputs is the trace of their matrix-valued kernel.
    """
    if subject.where == "initial":
        refuse_batch_norm(subject)
    seen = _seen(subject)
    kernel, k = _kernel(seen, probes), _shown(subject)

    def largest(kernels: tuple[Array, ...], rows: Rows) -> Array:
        return np.asarray(np.linalg.eigvalsh(kernels[0] / len(rows))[::-1][:k])

    whole = kernel.whole
    trace, n = float(np.trace(whole)), len(whole)
    if trace == 0:
        raise OutOfScope("the NTK is 0: no output depends on a trainable parameter")
    fields = _estimate(seen, largest, (kernel,), rounding_of(seen) * trace / n, least=0.0, positive=True)
    return Reading(
        "ntk_spectrum", unit="output² / parameter²", source=JACOT_2018, axes=(Axis("eigenvalue", tuple(float(i + 1) for i in range(k))),), assumes=_about(seen, probes),
        details={"examples": n, "outputs": kernel.outputs, "trace": trace / n, "norm": float(np.linalg.norm(whole)) / n, **_corner(seen, kernel)}, **fields,
    )  # fmt: skip


def _corner(subject: Subject, kernel: Kernel) -> dict[str, Any]:
    """The kernel of the first CORNER examples as it is, and a 95 % half-width for the random directions that stand for outputs, rounding included."""
    part = kernel.parts[:, :CORNER, :CORNER]
    chance_error = student_quantile(0.975, len(part) - 1) * part.std(0, ddof=1) / math.sqrt(len(part)) if len(part) > 1 else 0.0
    return {"corner": part.mean(0).tolist(), "corner_error": (chance_error + rounding_of(subject) * np.abs(part).mean(0).max() * np.ones_like(part[0])).tolist()}


def exact_movement(subject: Subject) -> float:
    """The relative change of the NTK by dense Jacobians."""
    before, after = dense_kernel(at_initialisation(subject)), dense_kernel(subject)
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


@instrument(
    topic="kernels", needs=("initial",), truth=exact_movement, knob="probes", smallest=16, largest=64, essential=True, cost=lambda subject, probes: _cost(subject, probes, 2.0)
)
def ntk_movement(subject: Subject, *, rng: Generator, probes: int = 16) -> Reading:
    """How far training moved the neural tangent kernel, relative to its size at initialisation.

    |Theta_T - Theta_0|_F / |Theta_0|_F;  `details`: `distance` 1 - <Theta_T, Theta_0> / (|Theta_T| |Theta_0|), which does not see a change of size, and
    `growth` |Theta_T| / |Theta_0|.

    Shapes: value ().   Units: none.   Error: as `ntk_spectrum`.   Assumes: as `ntk_spectrum`, the same examples and directions at both ends.
    Cost: twice `ntk_spectrum`'s.
    Raises: OutOfScope as `ntk_spectrum`, where other state than the trainable parameters changed, and where the initial kernel is 0.
    Source: Fort et al. 2020 (the distance); the relative change is defined here.
    """
    seen = _seen(subject)
    before, after = _kernel(at_initialisation(seen), probes), _kernel(seen, probes)
    size, grown = np.linalg.norm(before.whole), float(np.linalg.norm(after.whole))
    if size == 0:
        raise OutOfScope("the NTK at initialisation is 0: no output depends on a trainable parameter there")

    def moved(kernels: tuple[Array, ...], rows: Rows) -> Array:
        return np.asarray(np.linalg.norm(kernels[1] - kernels[0]) / max(float(np.linalg.norm(kernels[0])), 1e-300))

    fields = _estimate(seen, moved, (before, after), rounding_of(seen) * (1 + grown / float(size)) ** 2, least=0.0)
    cosine = float((after.whole * before.whole).sum()) / (grown * float(size)) if grown else 0.0
    details = {"examples": len(seen.train), "outputs": before.outputs, "distance": max(1 - cosine, 0.0), "growth": grown / float(size)}
    return Reading("ntk_movement", unit="", source=FORT_2020, assumes=_about(seen, probes), details=details, **fields)


def _targets(subject: Subject) -> Array:
    """What is to be learned of each example: the share of its targets in each class, or its target numbers.  Shapes: (n, outputs)."""
    rows = []
    for block in subject.train.blocks:
        tensors = leaves(block.targets)
        if subject.classes is not None:
            _, labels, kept = labelled(subject, block, torch.empty(1).expand(*tensors[0].shape, subject.classes))
            shares = kept.double() / kept.sum(1, keepdim=True).clamp_min(1)
            rows.append(torch.zeros(len(block), subject.classes, dtype=torch.float64).scatter_add_(1, labels.long(), shares))
        else:
            rows.append(torch.cat([tensor.reshape(len(tensor), -1).double() for tensor in tensors], 1))
    if len({row.shape[1] for row in rows}) > 1:
        raise OutOfScope("the examples have unequal numbers of targets: the kernel of the targets is not defined")
    return np.asarray(torch.cat(rows).numpy())


def _alignment(kernel: Array, targets: Array) -> float:
    """<HKH, YY'> / (|HKH| |HYY'H|), H taking off the mean; 0 where one of the two is 0."""
    centred = targets - targets.mean(0)
    inner = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    size = np.linalg.norm(inner) * np.linalg.norm(centred @ centred.T)
    return float(np.sum(centred * (inner @ centred)) / size) if size else 0.0


def exact_alignment(subject: Subject) -> float:
    """The alignment by dense Jacobians and the centring matrix."""
    n, targets = len(subject.train), _targets(subject)
    centring = np.eye(n) - 1 / n
    left, right = centring @ dense_kernel(subject) @ centring, centring @ targets @ targets.T @ centring
    return float((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()))


@instrument(
    topic="kernels", at=("end", "initial"), truth=exact_alignment, knob="probes", smallest=16, largest=64, shares="ntk_spectrum", cost=lambda subject, probes: Cost(gradients=0.1)
)
def kernel_target_alignment(subject: Subject, *, rng: Generator, probes: int = 16) -> Reading:
    """Centred alignment of the neural tangent kernel with the targets: 1 if the kernel sees nothing but them, 0 if it sees nothing of them.

    <Theta_c, Y Y'> / (|Theta_c| |Y_c Y_c'|),   Theta_c = H Theta H,  Y_c = H Y,  H = 1 - 11'/n,  Y one-hot labels (shares of them over positions) or target numbers.

    Shapes: value ().   Units: none.   Error: as `ntk_spectrum`.   Assumes: as `ntk_spectrum`.   Cost: shared with `ntk_spectrum`.
    Raises: OutOfScope as `ntk_spectrum`, and where all targets are equal or the centred kernel is 0.
    Source: Cortes et al. 2012, definition of centred alignment.
    """
    if subject.where == "initial":
        refuse_batch_norm(subject)
    seen = _seen(subject)
    kernel, targets = _kernel(seen, probes), _targets(seen)
    if np.ptp(targets, 0).max() == 0:
        raise OutOfScope("all targets are equal: there is nothing to align with")
    whole = kernel.whole
    centred = np.linalg.norm(whole - whole.mean(0) - whole.mean(1)[:, None] + whole.mean())
    if centred <= rounding_of(seen) * np.linalg.norm(whole):
        raise OutOfScope("the NTK is the same for all pairs of examples: it has nothing to align")

    def aligned(kernels: tuple[Array, ...], rows: Rows) -> Array:
        return np.asarray(_alignment(kernels[0], targets[rows]))

    fields = _estimate(seen, aligned, (kernel,), 2 * rounding_of(seen) * float(np.linalg.norm(whole) / centred), least=-1.0, most=1.0)
    return Reading("kernel_target_alignment", unit="", source=CORTES_2012, assumes=_about(seen, probes), details={"examples": len(whole), "outputs": kernel.outputs}, **fields)
