"""Potentials of a few variables and their derivatives, by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Potential = Callable[[Float[Tensor, "*n d"]], Float[Tensor, "*n"]]
"""An energy of points, the last dimension holding their coordinates."""


def double_well(height: float = 1.0, tilt: float = 0.0) -> Potential:
    """U = height (x^2 - 1)^2 + tilt x in the first coordinate, and height y^2 in any other: wells near -1 and 1, a barrier of `height` near 0 (without tilt).

    Shapes: (*n, d) -> (*n,).   Units: those of height.
    """

    def potential(points: Tensor) -> Tensor:
        x, others = points[..., 0], points[..., 1:]
        energy = (x.square() - 1).square() * height
        if tilt:
            energy = energy + tilt * x
        return energy + height * others.square().sum(-1) if others.shape[-1] else energy

    return potential


def quartic(points: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """U = |x|^2 / 2 + sum x^4 / 4: a well that is steeper than a parabola.  Shapes: (*n, d) -> (*n,)."""
    return points.square().sum(-1) / 2 + points.pow(4).sum(-1) / 4


def force(potential: Potential, points: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Minus the gradient of the potential at each point.  Shapes: (*n, d) -> (*n, d).   Cost: one backward pass for all points."""
    at = points.detach().requires_grad_()
    with torch.enable_grad():
        return -torch.autograd.grad(potential(at).sum(), at)[0]


def traced_slope(potential: Potential, points: Float[Tensor, "n d"]) -> Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]]:
    """The gradient at points of this shape as the bare products and sums that it consists of, without the bookkeeping of autograd.

    Shapes: (n, d) -> (n, d).   Assumes: a potential that makes no decision by the values of its points.   Cost: less than half of `force`, for few points.
    """

    def whole(at: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        return potential(at).sum()

    graph = make_fx(torch.func.grad(whole))(points)

    def slope(at: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        with torch.no_grad():
            return graph(at)

    return slope


def curvature(potential: Potential, point: Float[Tensor, "d"]) -> Float[Tensor, "d d"]:
    """The Hessian of the potential at one point.  Shapes: (d,) -> (d, d)."""
    return torch.func.hessian(potential)(point.detach())
