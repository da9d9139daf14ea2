"""The decision boundary of a classifier around its inputs: margins and their slopes, and the smallest perturbation that changes the class.

Inputs are flat, one row an example; a class changes where the largest other logit exceeds that of the label, strictly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gnomon.core.dataset import Tree
from gnomon.core.errors import OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.derivatives import accumulator

Points = Float[Tensor, "n D"]
Logits = Callable[[Tensor], Tensor]
"""(m n, D) -> (m n, classes), each row by itself, for the n examples repeated m times."""

STEPS = 12
"""Steps of one descent: each multiplies what is left of the way to a smooth boundary by OVERSHOOT."""
OVERSHOOT = 0.1
"""A step stops this part of the way before the linearised boundary, on its far side."""
TURN = 0.7
"""Length of the noise that turns the best direction for another start."""
FARTHER, WIDENINGS = 1.3, 40
"""A direction is followed to 1.3^40, 36,000 times, the distance at which the boundary is first looked for."""
BISECTIONS = 24
"""Halvings of the last bracket, which is a fiftieth of the distance where the boundary is crossed once."""


def floating(inputs: Tree) -> list[Tensor]:
    """The floating-point tensors among the inputs, in order."""
    return [leaf for leaf in tree_flatten(inputs)[0] if leaf.is_floating_point()]


def repeated(leaf: Tensor, rows: int) -> Tensor:
    """A tensor repeated along its examples until it has so many rows."""
    return leaf if len(leaf) == rows else leaf.repeat(rows // len(leaf), *(1,) * (leaf.ndim - 1))


def flat_inputs(subject: Subject, inputs: Tree) -> tuple[Points, Callable[[Tensor], Tree]]:
    """The floating-point inputs as one row an example, and the way back to what the network takes; integers stay as they are.

    Shapes: (n, D); the way back takes (m n, D) for any m, the examples repeated m times.   Raises: OutOfScope where every input is an integer.
    """
    flat, spec = tree_flatten(subject.to_device(inputs))
    places = [i for i, leaf in enumerate(flat) if leaf.is_floating_point()]
    if not places:
        raise OutOfScope(f"{subject.name} takes integers only: no small perturbation of them is defined. Examine it with respect to its embeddings instead.")
    sizes = [flat[i][0].numel() for i in places]

    def back(points: Tensor) -> Any:
        filled = [repeated(leaf, len(points)) for leaf in flat]
        for i, part in zip(places, points.split(sizes, 1), strict=True):
            filled[i] = part.reshape(-1, *flat[i].shape[1:])
        return tree_unflatten(filled, spec)

    return torch.cat([flat[i].reshape(len(flat[i]), -1) for i in places], 1), back


def _norm(points: Points) -> Float[Tensor, "n"]:
    return torch.linalg.vector_norm(points, dim=1)


def _unit(points: Points) -> Points:
    return points / _norm(points).clamp_min(torch.finfo(points.dtype).tiny)[:, None]


def _others(values: Float[Tensor, "n C"], label: Int[Tensor, "n"]) -> Float[Tensor, "n C"]:
    return values.scatter(1, label[:, None], -torch.inf)


def _gradient(logits: Logits, points: Points, label: Int[Tensor, "n"], other: Int[Tensor, "n"] | None = None) -> tuple[Float[Tensor, "n"], Points]:
    """Label's logit less that of `other` (the largest other one where None) and its gradient."""
    at = points.detach().requires_grad_()
    with torch.enable_grad():
        values = logits(at)
        other = _others(values.detach(), label).argmax(1) if other is None else other
        margin = values.gather(1, label[:, None])[:, 0] - values.gather(1, other[:, None])[:, 0]
        slope = torch.autograd.grad(margin.sum(), at, materialize_grads=True, allow_unused=True)[0] if margin.requires_grad else torch.zeros_like(at)
    return margin.detach(), slope.detach()


def changed(logits: Logits, points: Points, label: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Whether another logit exceeds that of the label.   Shapes: points of n examples -> (n,).   Cost: one forward pass."""
    with torch.no_grad():
        values = logits(points)
        return _others(values, label).amax(1) > values.gather(1, label[:, None])[:, 0]


def margins(logits: Logits, points: Points, label: Int[Tensor, "n"], most: int) -> tuple[Float[Tensor, "n K"], Float[Tensor, "n K"], Int[Tensor, "n K"]]:
    """Margins f_y - f_j to the `most` other classes of the largest logits, the norms of their gradients by the input, and the classes.

    Shapes: (n, K) each, K = min(most, C - 1), the runner-up first.   Cost: one forward and K backward passes.
    """
    at = points.detach().requires_grad_()
    with torch.enable_grad():
        values = logits(at)
        others = _others(values.detach(), label).topk(min(most, values.shape[1] - 1), 1).indices
        differences = values.gather(1, label[:, None]) - values.gather(1, others)
        slopes = []
        for k in range(others.shape[1]):
            given = torch.autograd.grad(differences[:, k].sum(), at, retain_graph=True, allow_unused=True, materialize_grads=True)[0] if differences.requires_grad else 0 * at
            slopes.append(_norm(given.detach()))
    return differences.detach(), torch.stack(slopes, 1), others


def nearest_boundary(
    logits: Logits, exact: Logits, points: Points, label: Int[Tensor, "n"], *, noise: Float[Tensor, "restarts n D"], starts: int, most: int
) -> Float[Tensor, "n"]:  # fmt: skip
    """The smallest L2 perturbation found that changes the class, infinite where none was found.

    Starts: against the gradient of the margin to each of the `starts` classes that are nearest to first order, then from the best one turned by noise.  From each the boundary is
    sought along the ray; then both direction and length descend: the linearisation at a point x_0 + R u beyond the boundary, margin g and gradient w, has its nearest point
    in the direction -w / |w|; u is turned towards it by a step that is doubled when the class still changes at the shorter length that the linearisation gives, and halved
    when not.  The length is bisected last, on `exact`, the network in float64.  Exact for linear networks; in general an upper bound of the distance.

    Shapes: points (n, D), label (n,) -> (n,) float64.   Error: an upper bound, to 1e-7 of itself a point at which the class is another one.
    Assumes: rows do not influence each other.   Cost: (starts + restarts) (STEPS + 2) + K + 12 gradients, K other classes.
    Source: the linearised step as Moosavi-Dezfooli et al. 2016; the projection towards the original point as Croce & Hein 2020.
    """
    found, slopes, others = margins(logits, points, label, most)
    tiny, n = torch.finfo(points.dtype).tiny, len(points)
    first = found / slopes.clamp_min(tiny)
    lengths, columns = (part[:, :starts].T for part in first.sort(1))
    toward = others.gather(1, columns.T).T
    against = torch.stack([-_gradient(logits, points, label, other)[1] for other in toward])
    best, ray = _sought(logits, points, label, against, lengths)
    if len(noise):
        turned = ray + TURN * torch.stack([_unit(part) for part in noise])
        again, other_ray = _sought(logits, points, label, turned, torch.where(best.isfinite(), best, first.amin(1)).expand(len(noise), n))
        best, ray = torch.where(again < best, again, best), torch.where((again < best)[:, None], other_ray, ray)
    wide = accumulator(points.dtype, points.device)
    return _crossing(exact, points.to(wide), label, _unit(ray.to(wide)), best.to(wide))


def _sought(logits: Logits, points: Points, label: Tensor, directions: Float[Tensor, "m n D"], lengths: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "n"], Points]:
    """The shortest of the descents from m directions, and its direction."""
    m, n = lengths.shape
    base, labels, rays, length = points.repeat(m, 1), label.repeat(m), _unit(directions.reshape(m * n, -1)), 1.02 * lengths.reshape(-1)
    usable = (_norm(rays) > 0) & (length < 1e-3 * torch.finfo(points.dtype).max)
    length = _along(logits, base, labels, rays, torch.where(usable, length, 1.0), usable)
    rays, length = _descend(logits, base, labels, rays, length)
    best, which = length.reshape(m, n).min(0)
    return best, rays.reshape(m, n, -1)[which, torch.arange(n, device=points.device)]


def _along(logits: Logits, points: Points, label: Tensor, direction: Points, length: Tensor, usable: Tensor) -> Float[Tensor, "n"]:
    """A length at which the class has changed along a direction, infinite where there is none up to 1.3^40 of the given one."""
    beyond = torch.zeros_like(usable)
    for _ in range(WIDENINGS):
        beyond = changed(logits, points + length[:, None] * direction, label)
        if bool((beyond | ~usable).all()):
            break
        length = torch.where(beyond, length, FARTHER * length)
    return torch.where(beyond & usable, length, torch.inf)


def _descend(logits: Logits, points: Points, label: Tensor, direction: Points, length: Tensor) -> tuple[Points, Float[Tensor, "n"]]:
    live = length.isfinite()
    radius, turn = torch.where(live, length, 1.0), torch.ones_like(length)
    margin, slope = _gradient(logits, points + radius[:, None] * direction, label)
    for _ in range(STEPS):
        aim = _unit((1 - turn)[:, None] * direction - turn[:, None] * _unit(slope))
        away, steepness = margin - radius * (slope * direction).sum(1), -(slope * aim).sum(1)
        crossing = away / steepness
        inside = (steepness > 0) & (crossing > 0) & (crossing < radius)
        trial = torch.where(inside, crossing + OVERSHOOT * (radius - crossing), 0.99 * radius)
        new_margin, new_slope = _gradient(logits, points + trial[:, None] * aim, label)
        taken = (new_margin < 0) & live & (trial < radius)
        direction, slope = torch.where(taken[:, None], aim, direction), torch.where(taken[:, None], new_slope, slope)
        radius, margin = torch.where(taken, trial, radius), torch.where(taken, new_margin, margin)
        turn = torch.where(taken, (2 * turn).clamp_max(1.0), turn / 2)
    return direction, torch.where(live, radius, torch.inf)


def _crossing(logits: Logits, points: Points, label: Tensor, direction: Points, length: Tensor) -> Float[Tensor, "n"]:
    """The length of a ray at which the class changes, from the far side."""
    live = length.isfinite()
    high = torch.where(live, length, 1.0)
    for k in range(24):  # what float32 called another class may not be one in float64
        beyond = changed(logits, points + high[:, None] * direction, label)
        if bool((beyond | ~live).all()):
            break
        high = torch.where(beyond, high, high * (1 + 1e-7 * 4**k))
    live = live & beyond
    low = 0.98 * high
    low = torch.where(changed(logits, points + low[:, None] * direction, label), 0.0, low)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        beyond = changed(logits, points + middle[:, None] * direction, label)
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(live, high, torch.inf)
