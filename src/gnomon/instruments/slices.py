"""Pictures of the loss: one- and two-dimensional slices along directions that are scaled to the network, and the path of training in its own plane."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core import weights
from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.layers import is_hf_conv1d
from gnomon.core.reading import Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import State, Subject, match
from gnomon.numerics import derivatives
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import Hessian, loss_value
from gnomon.numerics.parameter_space import at_vector, parameters_of

LI_2018 = Source("li2018")
Normalisation = Literal["filter", "layer", "element", "none"]
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POINTS, ACROSS = 21, 11
"""Points of a slice, and along each side of a plane."""


def normalised(subject: Subject, direction: Float[Tensor, "P"], *, by: Normalisation = "filter") -> Float[Tensor, "P"]:
    """A direction scaled to the network's weights, so that a step of 1 is as long as they are.

    filter: d_ij <- d_ij |w_ij| / |d_ij|, for filter (or unit) j of layer i;   layer: d_i <- d_i |w_i| / |d_i|;   element: d <- |w| d, entry by entry.

    A ReLU network is the same function when what enters a unit is multiplied by a > 0 and what leaves it by 1/a.  Along `filter` and `layer` directions the
    loss does not move when a is one number a layer, along `element` directions for any a.  Biases and normalisation's weights have no filters: they stay
    in place with `filter` and `layer`.

    Shapes: (P,) -> (P,).   Cost: none.   Raises: InvalidInput for an unknown kind or another length.
    Source: Li et al. 2018, section 4 (filter); Kwon et al. 2021, section 3 (element).
    """
    if by not in get_args(Normalisation):
        raise unknown("normalisation", by, get_args(Normalisation))
    parts = derivatives.split(subject, direction)
    return derivatives.flatten(_scaled(part, subject.state[key], _filter_dimension(subject.module, key), by) for key, part in zip(subject.trainable, parts, strict=True))


def _scaled(direction: Tensor, weight: Tensor, dimension: int, by: Normalisation) -> Tensor:
    if by == "none":
        return direction
    if by == "element":
        return direction * weight.abs()
    if weight.ndim < 2:
        return torch.zeros_like(direction)
    over = tuple(d for d in range(weight.ndim) if by == "layer" or d != dimension)
    tiny = torch.finfo(direction.dtype).tiny
    return direction * (weight.square().sum(over, keepdim=True).sqrt() / direction.square().sum(over, keepdim=True).sqrt().clamp_min(tiny))


def _filter_dimension(module: nn.Module, key: str) -> int:
    """The dimension of a weight that runs over the units it feeds."""
    owner = module.get_submodule(key.rpartition(".")[0])
    return 1 if isinstance(owner, TRANSPOSED) or is_hf_conv1d(owner) else 0


def random_direction(subject: Subject, *, rng: Generator, normalise: Normalisation = "filter") -> Float[Tensor, "P"]:
    """A normal random direction, scaled to the network by `normalised`.  Shapes: (P,).   Raises: as `normalised`."""
    return normalised(subject, chance.normal(subject.dimension, rng=rng, like=subject.state[subject.trainable[0]]), by=normalise)


def direction_to(subject: Subject, other: Any) -> Float[Tensor, "P"]:
    """From the subject to another state of the network (a state dict or a module): a step of 1 arrives there.  Shapes: (P,).   Raises: InvalidInput where they do not match."""
    return parameters_of(subject.at(other)) - parameters_of(subject)


def curvature_directions(subject: Subject, *, k: int = 2, products: int = 128) -> Float[Tensor, "P k"]:
    """The k directions of largest curvature: unit eigenvectors of the training loss's Hessian.

    Shapes: (P, k).   Cost: at most `products` Hessian products.   Raises: InvalidInput for k outside 1 .. P.
    """
    like = subject.state[subject.trainable[0]]
    return lanczos_eigenvalues(Hessian(subject), subject.dimension, k=k, rng=chance.generator(0, "slices/curvature"), like=like, max_products=max(products, k + 2)).vectors


def _steps(span: tuple[float, float], points: int) -> list[float]:
    if points < 2:
        raise InvalidInput(f"A slice needs at least two points, not {points}.")
    if not (np.isfinite(span).all() and span[0] < span[1]):
        raise InvalidInput(f"span must be (low, high) with low < high, both finite, not {span}.")
    return [float(step) for step in np.linspace(*span, points)]


def _loss(subject: Subject, vector: Tensor, split: str, where: str) -> float:
    value = loss_value(at_vector(subject, vector), split)
    if not np.isfinite(value):
        raise InvalidInput(f"The loss is {value} at {where}: the network's outputs overflow there. Take a smaller span.")
    return value


@instrument(topic="landscape", cost=lambda subject: Cost(gradients=POINTS / 3))
def loss_slice(
    subject: Subject, *, rng: Generator, direction: Float[Tensor, "P"] | None = None, normalise: Normalisation = "filter", span: tuple[float, float] = (-1.0, 1.0),
    points: int = POINTS, split: str = "train",
) -> Reading:  # fmt: skip
    """The loss along one direction d, a random one scaled filter by filter where none is given: L(w + t d).

    Shapes: value (points,).   Units: loss.   Error: exact, for the direction drawn and the examples seen.   Assumes: eval mode.
    Cost: `points` forward passes.   Raises: InvalidInput for fewer than two points, a span that is none, or a loss that is not finite.
    Source: Li et al. 2018, section 4.
    """
    steps, start = _steps(span, points), parameters_of(subject)
    if direction is None:
        direction, along = random_direction(subject, rng=chance.child(rng, "direction"), normalise=normalise), f"a random direction, {_words(normalise)}"
    else:
        along = "the given direction"
    values = [_loss(subject, start + step * direction, split, f"step {step:.3g}") for step in steps]
    return Reading("loss_slice", values, "loss", axes=(Axis("step", tuple(steps)),), source=LI_2018.at("section 4"), assumes=(along, *_seen(subject)), details={"split": split})


@instrument(topic="landscape", cost=lambda subject: Cost(gradients=ACROSS**2 / 3))
def loss_plane(
    subject: Subject, *, rng: Generator, directions: Sequence[Float[Tensor, "P"]] | None = None, normalise: Normalisation = "filter",
    span: tuple[float, float] = (-1.0, 1.0), points: int = ACROSS, split: str = "train",
) -> Reading:  # fmt: skip
    """The loss over the plane of two directions, random ones scaled filter by filter where none are given: L(w + s d1 + t d2).

    Shapes: value (points, points), the first direction down, the second across.   Units: loss.   Error: exact, for the directions drawn and the examples seen.
    Assumes: eval mode.   Cost: points^2 forward passes.   Raises: InvalidInput for other than two directions, and as `loss_slice`.
    Source: Li et al. 2018, section 4.
    """
    steps, start = _steps(span, points), parameters_of(subject)
    along = "the given directions"
    if directions is None:
        directions = [random_direction(subject, rng=chance.child(rng, "direction", i), normalise=normalise) for i in range(2)]
        along = f"two random directions, {_words(normalise)}"
    if len(directions) != 2:
        raise InvalidInput(f"A plane is spanned by two directions, not {len(directions)}.")
    first, second = directions
    values = [[_loss(subject, start + s * first + t * second, split, f"step ({s:.3g}, {t:.3g})") for t in steps] for s in steps]
    axes = tuple(Axis(f"step along the {which}", tuple(steps)) for which in ("first", "second"))
    return Reading("loss_plane", values, "loss", axes=axes, source=LI_2018.at("section 4"), assumes=(along, *_seen(subject)), details={"split": split})


def _words(normalise: Normalisation) -> str:
    return {"filter": "scaled filter by filter", "layer": "scaled layer by layer", "element": "scaled entry by entry", "none": "not scaled to the weights"}[normalise]


def _seen(subject: Subject) -> tuple[str, ...]:
    n, population = len(subject.train), subject.train.population
    return (f"on {n:,} of {population:,} examples",) if n < population else ()


def trajectory(subject: Subject, states: Iterable[Any]) -> Reading:
    """The path of training in the plane of its two principal components: the second coordinate of each checkpoint over the first.

    With D the centred matrix of the checkpoints' parameters, D = U S V', the coordinates are U S, and component i explains S_i^2 / sum_j S_j^2 of the variance.

    Shapes: value (checkpoints,), its axis the first coordinate in the order of training; `details` has `coordinates` (checkpoints, 2) and `explained` (2,).
    Units: parameter.   Error: rounding.   Assumes: nothing; the name of the axis and `details` say how much of the path the plane shows.
    Cost: a singular value decomposition of the checkpoints, rows of P numbers.
    Raises: InvalidInput for fewer than three checkpoints, or ones that all agree.
    Source: Li et al. 2018, section 7.
    """
    rows = torch.stack([derivatives.flatten(_state(subject, given)[key] for key in subject.trainable).double() for given in states] or [torch.zeros(1)])
    if len(rows) < 3:
        raise InvalidInput(f"A trajectory needs at least three checkpoints, not {len(rows)}.")
    centred = rows - rows.mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    if float(sizes[0]) == 0:
        raise InvalidInput("All checkpoints are the same network: there is no path to draw.")
    # the sign of a component is free: training moves to the right and up
    sign = torch.where(left[-1, :2] < left[0, :2], -1.0, 1.0)
    coordinates, explained = (left[:, :2] * sizes[:2] * sign).cpu().numpy(), (sizes.square() / sizes.square().sum())[:2].tolist()
    return Reading(
        "trajectory", coordinates[:, 1], "parameter", source=LI_2018.at("section 7"), assumes=(f"component 2 explains {explained[1]:.1%} of the variance",),
        axes=(Axis(f"component 1, {explained[0]:.1%} of the variance", tuple(coordinates[:, 0].tolist())),), details={"coordinates": coordinates, "explained": explained},
    )  # fmt: skip


def _state(subject: Subject, given: Any) -> State:
    if isinstance(given, (str, Path)):
        given = weights.read(given)
    return match(weights.fit(given, subject.module) if isinstance(given, Mapping) else given, subject.state, what="checkpoint's")


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder (.pt, .pth, .ckpt, .bin, .safetensors), numbers in their names in order.  Raises: InvalidInput where there are none."""
    found = [path for path in Path(folder).glob("*") if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")]
    if not found:
        raise InvalidInput(f"There are no checkpoints in {folder}: give one with files that end in .pt, .pth, .ckpt, .bin or .safetensors.")
    return sorted(found, key=lambda path: [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)])
