"""What moves as a network learns, for many stacked networks at once: their outputs' derivatives along the gradients of their own outputs, up to the third.

A gradient is an outer product in each layer, so that every derivative along it is a few matrix products with the weights: nothing as large as the parameters is made, but they.
Notation as in `perceptrons`; delta_ia^(l) = dz_ia^(L) / dz_a^(l), u_jb = rate * dz_jb / dtheta, and k = (j, b) says along which u.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.perceptrons import Activation, Perceptrons, has_kinks


@dataclasses.dataclass(frozen=True)
class Differentials:
    """Outputs z, kernels, and derivatives along gradients of the outputs 0 and 1; `v` is the vector of all outputs but 0 of one input, given as `v[d]`.

    Shapes: `outputs` (members, a, units); `ntk` (members, i, j, a, b) of the outputs 0 and 1; `ntk_along` (members, d, a, b), H of 0 and v; `second_along` (members, a, b, c, d), d^2(v z)_a along
    u_0b and u_0c; `second_mixed`, d^2 z_0a along u_0b and the gradient of (v z)_c; `third`, d^3 z_0a along u_0b, u_1c, u_1d; `joined` (members, i, j, k, l, a, b, c, d), the second derivatives
    of z_ia along u_kc and of z_jb along u_ld, their free ends joined.
    """

    outputs: Tensor
    ntk: Tensor
    ntk_along: Tensor
    second_along: Tensor
    second_mixed: Tensor
    third: Tensor
    joined: Tensor

    @classmethod
    def stacked(cls, parts: Iterable[Differentials]) -> Differentials:
        """Those of more networks."""
        kept = list(parts)
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in kept]) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer's input s, its activation's derivatives (none for the last), what its parameters add for each pair of examples, and delta of each output vector and example."""

    weights: Tensor
    s: Tensor
    added: Tensor
    rate: float
    slopes: tuple[Tensor, ...]
    delta: Tensor


def differentials(networks: Perceptrons, x: Float[Tensor, "examples features"]) -> Differentials:
    """Derivatives of the outputs along the outputs' own gradients, of which the tangent kernel and its differentials are made.

    Shapes: (examples, features) -> `Differentials`.   Units: those of the outputs and the rates.   Error: rounding.   Cost: about four passes over the weights with 3 examples^3 columns.
    Raises: InvalidInput for networks of one output; OutOfScope for an activation whose slope or bend jumps, of which autograd leaves out what it adds.
    """
    if networks.weights[-1].shape[1] < 2:
        raise InvalidInput("Two different outputs are looked at, and the networks have one: draw them with outputs=2 or more.")
    if has_kinks(networks.activation) or has_kinks(networks.activation, 2):
        raise OutOfScope("the slope or the bend of the activation jumps, and autograd leaves out what that adds: compare `outputs_and_ntk` before and after a step (`stepped`)")
    layers, outputs, rest = _layers(networks, x)
    ntk = torch.stack([torch.einsum("mab,miau,mjbu->mijab", layer.added, layer.delta[:, :2], layer.delta) for layer in layers]).sum(0)
    second, third, moved = _along(layers)
    mixed, joined = _curved(layers, moved)
    return Differentials(outputs, ntk[:, :, :2], ntk[:, 0, 2:], torch.einsum("mabcu,mdu->mabcd", second, rest), mixed, third, joined)


def _layers(networks: Perceptrons, x: Tensor) -> tuple[list[_Layer], Tensor, Tensor]:
    """The layers, the outputs, and the outputs without the first of them, v."""
    made = networks.preactivations(x)
    outputs, members, count = made[-1], len(made[-1]), len(x)
    rest = outputs.clone()
    rest[..., 0] = 0
    vectors = torch.cat([torch.eye(2, outputs.shape[-1]).to(outputs).expand(members, -1, -1), rest], 1)
    delta, found = vectors[:, :, None].expand(-1, -1, count, -1), []
    for number in range(len(made) - 1, -1, -1):
        weights = networks.weights[number]
        slopes = _slopes(networks.activation, made[number]) if number < len(made) - 1 else ()
        if slopes:
            delta = _times(delta, networks.weights[number + 1]) * slopes[0][:, None]
        s = networks.activation(made[number - 1]) if number else x.to(outputs).expand(members, -1, -1)
        found.append(_Layer(weights, s, networks._added(x, made, number), networks.weight_rates[number] / weights.shape[-1], slopes, delta))
    return found[::-1], outputs, rest


def _slopes(activation: Activation, z: Tensor) -> tuple[Tensor, ...]:
    """The first three derivatives of an activation."""
    at = z.detach().requires_grad_()
    found, value = [], activation(at)
    for _ in range(3):
        value = torch.autograd.grad(value.sum(), at, create_graph=True, materialize_grads=True)[0] if value.requires_grad else torch.zeros_like(at)
        found.append(value.detach())
    return tuple(found)


def _times(rows: Float[Tensor, "members *rows n"], weights: Float[Tensor, "members n k"]) -> Float[Tensor, "members *rows k"]:
    return torch.bmm(rows.flatten(1, -2), weights).unflatten(1, rows.shape[1:-1])


def _along(layers: list[_Layer]) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """d^2 z_a along u_0b and u_0c, (members, a, b, c, units); d^3 z_0a along u_0b, u_1c, u_1d; and the derivatives of each layer's s and z along u_jb, (members, a, j, b, units)."""
    (members, count, features), kept = layers[0].s.shape, []
    one, two, three = (layers[0].s.new_zeros(members, count, *shape, features) for shape in ((2, count), (2, count, 2, count), (count,) * 3))
    for layer in layers:
        delta = layer.delta[:, :2]
        z_one = _times(one, layer.weights.mT) + torch.einsum("mab,mjbu->majbu", layer.added, delta)
        kept.append((one, z_one))
        crossed = torch.einsum("majbc,micu->majbicu", layer.rate * torch.einsum("majbu,mcu->majbc", one, layer.s), delta)
        z_two = _times(two, layer.weights.mT) + crossed + crossed.permute(0, 1, 4, 5, 2, 3, 6)
        bent = layer.rate * torch.einsum("majbicu,mdu->majbicd", two, layer.s)
        z_three = torch.einsum("mabcd,mdu->mabcdu", bent[:, :, 0, :, 1], delta[:, 1])
        z_three = z_three + z_three.transpose(3, 4) + torch.einsum("macdb,mbu->mabcdu", bent[:, :, 1, :, 1], delta[:, 0]) + _times(three, layer.weights.mT)
        if layer.slopes:
            one, two, three = _through(layer.slopes, z_one, z_two, z_three)
    return z_two[:, :, 0, :, 0], z_three[..., 0], kept


def _through(slopes: tuple[Tensor, ...], one: Tensor, two: Tensor, three: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of s from those of z: the chain rule of first, second and third order."""
    p, q, r = (slope[:, :, None, None] for slope in slopes)
    b, c = one[:, :, 0], one[:, :, 1]
    pairs = two[:, :, 0, :, 1][:, :, :, :, None] * c[:, :, None, None]
    pairs = pairs + pairs.transpose(3, 4) + two[:, :, 1, :, 1][:, :, None] * b[:, :, :, None, None]
    bent = q[:, :, :, :, None, None] * one[:, :, :, :, None, None] * one[:, :, None, None] + p[:, :, :, :, None, None] * two
    third = r[:, :, None] * b[:, :, :, None, None] * c[:, :, None, :, None] * c[:, :, None, None] + q[:, :, None] * pairs + p[:, :, None] * three
    return p * one, bent, third


def _curved(layers: list[_Layer], moved: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """d^2 z_0a along u_0b and the gradient of (v z)_c, (members, a, b, c, d), and the joined second derivatives."""
    bent = torch.zeros_like(moved[-1][1])[:, None].expand(-1, 2, *[-1] * 4)  # the derivative of delta_ia along u_jb: (members, i, a, j, b, units)
    mixed, joined = [], []
    for number in range(len(layers) - 1, -1, -1):
        layer, (one, _) = layers[number], moved[number]
        delta, rest, added = layer.delta[:, :2], layer.delta[:, 2:], layer.added
        flat = torch.einsum("miau,mlbu->mialb", delta, delta)
        inner = layer.rate * torch.einsum("makcu,mbu->makcb", one, layer.s)
        mixed.append(torch.einsum("mac,mabu,mdcu->mabcd", added, bent[:, 0, :, 0], rest) + torch.einsum("mabc,mau,mdcu->mabcd", inner[:, :, 0], delta[:, 0], rest))
        side = torch.einsum("mblda,miakcjb->mijklabcd", inner, torch.einsum("miakcu,mjbu->miakcjb", bent, delta))
        whole = torch.einsum("mab,miakcu,mjbldu->mijklabcd", added, bent, bent) + side + side.permute(0, 2, 1, 4, 3, 6, 5, 8, 7)
        joined.append(whole + torch.einsum("makcbld,miajb->mijklabcd", layer.rate * torch.einsum("makcu,mbldu->makcbld", one, one), flat))
        if number:
            p, q = layers[number - 1].slopes[:2]
            back = _times(delta, layer.weights)
            turned = layer.rate * torch.einsum("mjbia,mbu->miajbu", flat, layer.s)
            bent = q[:, None, :, None, None] * moved[number - 1][1][:, None] * back[:, :, :, None, None] + p[:, None, :, None, None] * (_times(bent, layer.weights) + turned)
    return torch.stack(mixed).sum(0), torch.stack(joined).sum(0)
