"""Moments over ensembles of networks at initialisation, from their pre-activations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading

FEWEST = 30
"""Fewest networks of a block: the bias of a ratio of moments falls with their number squared, once it is corrected."""


def preactivation_variance(preactivations: Float[Tensor, "layers members width"]) -> Reading:
    """The mean of z^2 over the units of a layer and over networks.

    Shapes: (layers, members, width) -> value (layers,).   Units: none.   Error: exact for this ensemble; its own is that of replicates.   Cost: none.
    """
    return Reading("preactivation_variance", preactivations.double().square().mean((1, 2)), "")


def norm_fluctuation(preactivations: Float[Tensor, "layers members width"]) -> Reading:
    """The relative variance over networks of the squared norm of a layer's pre-activations.

    E |z|^4 / (E |z|^2)^2 - 1, by the jackknife over networks, whose bias is of second order in 1/members.

    Shapes: (layers, members, width) -> value (layers,).   Units: none.   Error: exact for this ensemble; its own is that of replicates.
    Cost: none.   Raises: InvalidInput for fewer than FEWEST networks.   Source: Quenouille 1956 (jackknife).
    """
    square = preactivations.double().square().mean(-1)
    return Reading("norm_fluctuation", _ratio(square.square(), square), "")


def four_point_vertex(preactivations: Float[Tensor, "layers members width"]) -> Reading:
    """The relative covariance over networks of the squares of two different pre-activations of a layer, V / (n K^2).

    E z_i^2 z_j^2 / (E z_i^2)^2 - 1 with i /= j, averaged over all pairs, by the jackknife over networks, whose bias is of second order in 1/members.

    Shapes: (layers, members, width) -> value (layers,).   Units: none.   Error: exact for this ensemble; its own is that of replicates.
    Assumes: the units of a layer are exchangeable.   Cost: none.   Raises: InvalidInput for fewer than FEWEST networks, or layers of one unit.
    Source: Quenouille 1956 (jackknife).
    """
    width = preactivations.shape[-1]
    if width < 2:
        raise InvalidInput("A pair of units is needed, and the layers have one.")
    square = preactivations.double().square()
    total = square.sum(-1)
    pairs = (total.square() - square.square().sum(-1)) / (width * (width - 1))
    return Reading("four_point_vertex", _ratio(pairs, total / width), "")


def _ratio(above: Float[Tensor, "layers members"], below: Float[Tensor, "layers members"]) -> Float[Tensor, "layers"]:
    """E above / (E below)^2 - 1 over members, by the jackknife.   Shapes: (layers, members) twice -> (layers,)."""
    members = above.shape[1]
    if members < FEWEST:
        raise InvalidInput(f"A ratio of moments needs a block of at least {FEWEST} networks, not {members}.")
    a, b = above.sum(1, keepdim=True), below.sum(1, keepdim=True)
    whole = members * a / b**2
    without = (members - 1) * (a - above) / (b - below) ** 2
    return torch.squeeze(members * whole - (members - 1) * without.mean(1, keepdim=True), 1) - 1
