"""What lies between two networks: the segment, curves fitted to low loss, and the barriers on them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.outcomes import UNITS, kind_of, of_block
from gnomon.numerics import derivatives
from gnomon.numerics.derivatives import scaled_blocks
from gnomon.numerics.measuring import measuring
from gnomon.numerics.parameter_space import at_vector, batch_norms, batch_statistics, parameters_of, refreshed

GARIPOV_2018 = Source("garipov2018")
FRANKLE_2020 = Source("frankle2020")
Kind = Literal["chain", "bezier"]


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A curve phi(t) = sum_i c_i(t) p_i through parameter space, t from 0 to 1, fixed at its ends.

    chain: straight pieces from p_i to p_{i+1}, equal lengths of t each;   bezier: c_i(t) = binomial(k-1, i) t^i (1-t)^(k-1-i).
    Shapes: `points` (k, P), k at least 2.   Source: Garipov et al. 2018, section 3.
    """

    points: Float[Tensor, "k P"]
    kind: Kind = "chain"

    def coefficients(self, t: float) -> Float[Tensor, "k"]:
        """c(t), which add up to 1.  Raises: InvalidInput for t outside 0 .. 1."""
        if not 0 <= t <= 1:
            raise InvalidInput(f"A curve runs from t = 0 to t = 1; t = {t} lies outside.")
        last = len(self.points) - 1
        if self.kind == "chain":
            weights = [max(0.0, 1 - abs(t * last - i)) for i in range(last + 1)]
        else:
            weights = [math.comb(last, i) * t**i * (1 - t) ** (last - i) for i in range(last + 1)]
        return torch.tensor(weights, dtype=self.points.dtype, device=self.points.device)

    def at(self, t: float) -> Float[Tensor, "P"]:
        """The parameters at t.  Shapes: (P,)."""
        return self.coefficients(t) @ self.points


def segment(subject: Subject, other: Any) -> Curve:
    """The straight line from the subject to another state of the same network: a state dict, a module, or a Subject.

    Raises: InvalidInput where the two do not match, or are one network.
    """
    ends = parameters_of(subject), parameters_of(subject.at(other.state if isinstance(other, Subject) else other))
    if torch.equal(*ends):
        raise InvalidInput("Both ends of the curve are the same network; give another one, for example trained from another seed.")
    return Curve(torch.stack(ends))


def fit_curve(
    subject: Subject, other: Any, *, rng: Generator, kind: Kind = "bezier", bends: int = 1, steps: int = 1000, batch_size: int = 128, lr: float = 0.05, momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Curve:  # fmt: skip
    """A curve of low loss between two networks: the inner points move by SGD on the loss at a uniformly random t, one t a mini-batch.

    min over p_1 .. p_bends of E_t L(phi(t)),   grad_{p_i} = c_i(t) grad L(phi(t))

    The inner points start on the segment.  Batch normalisation uses each batch's statistics while the curve is fitted.

    Shapes: points (bends + 2, P).   Assumes: dropout is off.   Cost: `steps` gradients of `batch_size` examples.
    Raises: InvalidInput for the same network at both ends, an unknown kind, no bend, or a fit that diverges.
    Source: Garipov et al. 2018, section 3.
    """
    if kind not in get_args(Kind):
        raise unknown("kind of curve", kind, get_args(Kind))
    if min(bends, batch_size) < 1 or steps < 0:
        raise InvalidInput(f"bends and batch_size must be at least 1 and steps at least 0, not {bends}, {batch_size} and {steps}.")
    line, count = segment(subject, other), bends + 2
    curve = Curve(torch.stack([line.at(i / (count - 1)) for i in range(count)]), kind)
    velocity = torch.zeros_like(curve.points[1:-1])
    buffers = {key: value.clone() for key, value in subject.state.items() if key not in subject.trainable}
    n = len(subject.train)
    with measuring(subject), batch_statistics(subject):
        for step in range(steps):
            t = float(chance.uniform(1, rng=chance.child(rng, "t", step)))
            chosen = chance.permutation(n, rng=chance.child(rng, "batch", step))[:batch_size] if batch_size < n else torch.arange(n)
            place = dataclasses.replace(at_vector(subject, curve.at(t)), train=subject.train.select(chosen), _shared={})
            gradient = _gradient(place, buffers) / (len(chosen) if subject.loss.reduction == "sum" else 1)
            inner = curve.points[1:-1]
            velocity = momentum * velocity + curve.coefficients(t)[1:-1, None] * gradient + weight_decay * inner
            moved = inner - lr * velocity
            if not bool(torch.isfinite(moved).all()):
                raise InvalidInput(f"The fit of the curve diverged after {step + 1} steps at lr = {lr:g}; take a smaller learning rate.")
            curve = Curve(torch.cat([curve.points[:1], moved, curve.points[-1:]]), kind)
    return curve


def _gradient(subject: Subject, buffers: dict[str, Tensor]) -> Tensor:
    """The gradient on the subject's examples, without changing modes; buffers are written to by batch normalisation."""
    total = torch.zeros(subject.dimension, dtype=subject.dtype, device=subject.device)
    for block, share in scaled_blocks(subject):
        leaves = derivatives.leaf_parameters(subject)
        loss = subject.loss(subject({**subject.state, **buffers, **leaves}, block.inputs), block.targets)
        total += share * derivatives.flatten(derivatives.gradients(loss, leaves.values()))
    return total


def along(subject: Subject, curve: Curve, *, points: int = 21) -> dict[str, Reading]:
    """Loss and error along a curve, on the training data and, where there are any, on the test data: `train_loss`, `train_error`, `test_loss`, `test_error`.

    Batch normalisation's statistics are made anew at every point, the ends included.  The error is the part of wrong classes (or signs); it is left out where the
    network is judged by its loss alone.

    Shapes: values (points,), axis t from 0 to 1.   Units: loss; none.   Error: exact, on the examples seen.   Assumes: eval mode.
    Cost: `points` forward passes of each split.
    Raises: InvalidInput for fewer than three points, or a loss that is not finite on the way.
    Source: Garipov et al. 2018, section 3; Izmailov et al. 2018, section 3.2 (the statistics).
    """
    if points < 3:
        raise InvalidInput(f"A curve has two ends and something between them: at least three points, not {points}.")
    places = np.linspace(0, 1, points)
    splits = ["train"] + (["test"] if subject.test is not None else [])
    rows: dict[str, list[float]] = {}
    for t in places:
        here = refreshed(at_vector(subject, curve.at(float(t))))
        for split in splits:
            for what, value in _judged(here, split).items():
                rows.setdefault(f"{split}_{what}", []).append(value)
    assumes = (f"batch normalisation's statistics are made anew at every point ({', '.join(batch_norms(subject))})",) if batch_norms(subject) else ()
    axis, unit = Axis("t", tuple(places.tolist())), UNITS[kind_of(subject)]
    for name, values in rows.items():
        if not np.isfinite(values).all():
            raise InvalidInput(
                f"{name} is not finite at t = {places[int(np.argmax(~np.isfinite(values)))]:.3g} of the curve: fit it again with a smaller learning rate, or evaluate another stretch."
            )
    return {
        name: Reading(name, values, "loss" if name.endswith("loss") else unit, axes=(axis,), assumes=assumes, source=GARIPOV_2018.at("section 3")) for name, values in rows.items()
    }


def _judged(subject: Subject, split: str) -> dict[str, float]:
    kind, loss, sums, counts = kind_of(subject), 0.0, 0.0, 0.0
    with measuring(subject), torch.no_grad():
        for block, share in scaled_blocks(subject, split):
            output = subject(subject.state, block.inputs)
            loss += share * float(subject.loss(output, block.targets))
            if kind != "loss":
                seen = of_block(subject, block, output, kind)
                sums, counts = sums + float(seen.sums.sum()), counts + float(seen.counts.sum())
    return {"loss": loss} if kind == "loss" else {"loss": loss, "error": sums / counts}


def barrier(profile: Reading) -> Reading:
    """The height of a curve above the straight line between its ends: max over t of L(t) - ((1 - t) L(0) + t L(1)), at least 0.

    Shapes: value ().   Units: those of the profile.   Error: exact on the points of the profile; between them it may be higher.   Assumes: as the profile.
    Cost: none.   Raises: InvalidInput where the reading has no axis from 0 to 1.
    Source: Frankle et al. 2020, section 2, with the line between the ends in place of their mean.
    """
    if profile.value.ndim != 1 or not profile.axes or (profile.axes[0].values[0], profile.axes[0].values[-1]) != (0.0, 1.0):
        raise InvalidInput(f"A barrier is that of a profile along t from 0 to 1, as `along` gives it, not of {profile.name}.")
    t = np.asarray(profile.axes[0].values, dtype=np.float64)
    height = profile.value - ((1 - t) * profile.value[0] + t * profile.value[-1])
    at = int(height.argmax())
    points = f"on {len(t)} points of the curve; between them it may be higher"
    return Reading(
        f"{profile.name}_barrier", max(float(height[at]), 0.0), profile.unit, source=FRANKLE_2020.at("section 2"), assumes=(*profile.assumes, points), details={"t": t[at]}
    )
