"""Many fully connected networks at once, their parameters stacked: outputs, tangent kernels, and what one step of gradient descent does to them.

Notation: z^(l) = W^(l) s(z^(l-1)) + b^(l) with s(z^(0)) = x, l = 1 .. L; layer l's biases learn at the rate lambda_b, its weights at lambda_W / fan_in.  Networks come first,
examples second, units last.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope

HELD_NUMBERS = 2**22
"""Weights that are held at once; a constant, since what is drawn depends on it."""
LEAST_NUMBERS = 2**18
"""Of one layer at least so many are held: matrix products over fewer members cost more a member, and the time would grow faster than the depth."""

Activation = Callable[[Tensor], Tensor]
Rates = float | Sequence[float]


@dataclasses.dataclass(frozen=True)
class Perceptrons:
    """Fully connected networks of one shape, with independent parameters.

    Shapes: `weights[l]` (members, units, fan_in), `biases[l]` (members, 1, units) or None; inputs x (examples, features).
    """

    activation: Activation
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    weight_rates: tuple[float, ...]
    bias_rates: tuple[float, ...]

    def preactivations(self, x: Float[Tensor, "examples features"]) -> list[Tensor]:
        """z of every layer.  Shapes: (examples, features) -> (members, examples, units) each.   Cost: one forward pass."""
        read, made = x.to(self.weights[0]).expand(len(self.weights[0]), -1, -1), []
        for weights, biases in zip(self.weights, self.biases, strict=True):
            z = torch.bmm(read, weights.mT)
            made.append(z if biases is None else z + biases)
            read = self.activation(made[-1])
        return made

    def outputs(self, x: Float[Tensor, "examples features"]) -> Tensor:
        """z of the last layer.  Shapes: (examples, features) -> (members, examples, units).   Cost: one forward pass."""
        return self.preactivations(x)[-1]

    def outputs_and_ntk(self, x: Float[Tensor, "examples features"]) -> tuple[Tensor, Tensor]:
        """The outputs, and the tangent kernel of the first of them: sum over parameters of rate * dz_a/dtheta dz_b/dtheta.

        sum_l (lambda_b + lambda_W s_a . s_b / fan_in) (delta_a . delta_b), delta^(l) = dz_1^(L) / dz^(l).

        Shapes: (examples, features) -> (members, examples, units), (members, examples, examples).   Cost: a forward and a backward pass an example.
        """
        made = self.preactivations(x)
        delta = torch.ones_like(made[-1][..., :1])
        kernel = self._added(x, made, len(made) - 1) * torch.bmm(delta, delta.mT)
        for layer in range(len(made) - 1, 0, -1):
            weights = self.weights[layer][:, :1] if layer == len(made) - 1 else self.weights[layer]
            delta = torch.bmm(delta, weights) * self._slope(made[layer - 1])
            kernel += self._added(x, made, layer - 1) * torch.bmm(delta, delta.mT)
        return made[-1], kernel

    def hidden_ntk(self, x: Float[Tensor, "examples features"]) -> tuple[Tensor, Tensor]:
        """The outputs, and the tangent kernel of all pairs of units of the last layer, for every pair of examples a <= b, in that order.

        Theta'_ab = (lambda_b + lambda_W s_a . s_b / fan_in) 1 + (W s'_a) Theta_ab (W s'_b)^T.

        Shapes: (examples, features) -> (members, examples, units), (members, pairs, units, units).   Cost: two matrix products a layer and pair.
        """
        made = self.preactivations(x)
        pairs = list(itertools.combinations_with_replacement(range(len(x)), 2))
        first = self._added(x, made, 0)
        kernels = [first[:, a, b, None, None] * torch.eye(self.weights[0].shape[1]).to(first) for a, b in pairs]
        for layer in range(1, len(made)):
            slope, added = self._slope(made[layer - 1]), self._added(x, made, layer)
            sides = [self.weights[layer] * slope[:, a, None] for a in range(len(x))]
            for place, (a, b) in enumerate(pairs):
                kernels[place] = torch.bmm(torch.bmm(sides[a], kernels[place]), sides[b].mT)
                kernels[place].diagonal(dim1=-2, dim2=-1).add_(added[:, a, b, None])
        kernel = torch.stack(kernels, 1)
        return made[-1], kernel

    def dntk(self, x: Float[Tensor, "examples features"]) -> Tensor:
        """The differential of the tangent kernel of the first output: u_b^T (d^2 z_a / dtheta^2) u_c with u = rate * dz/dtheta.

        Shapes: (examples, features) -> (members, a, b, c).   Cost: about three gradients for each a and b.
        Raises: OutOfScope for an activation with kinks, of which autograd leaves out what they add (see the change in one finite step instead).
        """
        if has_kinks(self.activation):
            raise OutOfScope("the activation has a kink, whose part of the second derivative autograd leaves out: compare `outputs_and_ntk` before and after a step (`stepped`)")
        count, leaves = len(x), self._leaves()
        moved = self._with(leaves)
        outputs = moved.outputs(x)[..., 0]
        slopes = [torch.autograd.grad(outputs[:, a].sum(), leaves, create_graph=True, materialize_grads=True) for a in range(count)]
        ups = [self._scaled([g.detach() for g in slope]) for slope in slopes]
        found = outputs.new_empty(len(outputs), count, count, count)
        for a, b in itertools.product(range(count), repeat=2):
            inner = torch.stack([(g * u).sum() for g, u in zip(slopes[a], ups[b], strict=True)]).sum()
            if not inner.requires_grad:  # one layer: linear in its parameters
                return found.zero_()
            curved = torch.autograd.grad(inner, leaves, retain_graph=True, materialize_grads=True)
            for c in range(count):
                found[:, a, b, c] = _dot(curved, ups[c])
        return found

    def stepped(self, x: Float[Tensor, "examples features"], targets: Float[Tensor, "examples units"], lr: float) -> Perceptrons:
        """The networks after one step of gradient descent on sum_a |z_a - y_a|^2 / 2, every layer at its rates times lr.

        Shapes: (examples, features), (examples, units).   Cost: one gradient.
        """
        leaves = self._leaves()
        outputs = self._with(leaves).outputs(x)
        slopes = self._scaled(torch.autograd.grad((outputs - targets.to(outputs)).square().sum() / 2, leaves))
        return self._with([leaf.detach() - lr * slope for leaf, slope in zip(leaves, slopes, strict=True)])

    def trained(self, x: Float[Tensor, "examples features"], targets: Float[Tensor, "examples units"], lr: float, steps: int) -> Perceptrons:
        """The networks after so many steps (`stepped`).   Cost: `steps` gradients."""
        networks = self
        for _ in range(steps):
            networks = networks.stepped(x, targets, lr)
        return networks

    def mirrored(self) -> Perceptrons:
        """The networks whose outputs are those of these with the other sign, as likely as themselves: means over both have no part that is odd in the last layer.   Cost: none."""
        weights, biases = (*self.weights[:-1], -self.weights[-1]), (*self.biases[:-1], None if self.biases[-1] is None else -self.biases[-1])
        return dataclasses.replace(self, weights=weights, biases=biases)

    def _added(self, x: Tensor, made: list[Tensor], layer: int) -> Tensor:
        """What a layer's own parameters add for each pair of examples, their unit's delta aside.  Shapes: -> (members or 1, examples, examples)."""
        read = x.to(made[0])[None] if layer == 0 else self.activation(made[layer - 1])
        rate = self.bias_rates[layer] if self.biases[layer] is not None else 0.0
        return torch.bmm(read, read.mT).mul_(self.weight_rates[layer] / read.shape[-1]).add_(rate).expand(len(made[0]), -1, -1)

    def _slope(self, z: Tensor) -> Tensor:
        at = z.detach().requires_grad_()
        return torch.autograd.grad(self.activation(at).sum(), at)[0]

    def _leaves(self) -> list[Tensor]:
        return [leaf.detach().requires_grad_() for leaf in (*self.weights, *(b for b in self.biases if b is not None))]

    def _with(self, leaves: Sequence[Tensor]) -> Perceptrons:
        count, biases = len(self.weights), iter(leaves[len(self.weights) :])
        return dataclasses.replace(self, weights=tuple(leaves[:count]), biases=tuple(None if b is None else next(biases) for b in self.biases))

    def _scaled(self, slopes: Sequence[Tensor]) -> list[Tensor]:
        """Gradients times their learning rates."""
        rates = [rate / w.shape[-1] for rate, w in zip(self.weight_rates, self.weights, strict=True)]
        rates += [rate for rate, b in zip(self.bias_rates, self.biases, strict=True) if b is not None]
        return [slope * rate for slope, rate in zip(slopes, rates, strict=True)]


def least_loss(networks: Perceptrons, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, lr: float, steps: int, every: int = 10) -> Float[Tensor, "members"]:
    """The least squared error on test data on the way of gradient descent (`Perceptrons.stepped`), looked at so often.

    Shapes: inputs (examples, features) and targets (examples, units), twice -> (members,).   Cost: `steps` gradients.
    """
    best = train[0].new_full((len(networks.weights[0]),), math.inf)
    for step in range(1, steps + 1):
        networks = networks.stepped(*train, lr)
        if step % every == 0:
            best = torch.minimum(best, (networks.outputs(test[0]) - test[1]).square().sum(-1).mean(1))
    return best


def classified(
    networks: Perceptrons, x: Float[Tensor, "examples features"], labels: Int64[Tensor, "examples"], *, lr: float, batch: int, steps: int, rng: Generator
) -> Float[Tensor, "members"]:  # fmt: skip
    """The share of the examples that each network has right after SGD on the cross-entropy, all on the same batches, every parameter at this learning rate.

    Shapes: (examples, features), (examples,) -> (members,).   Cost: `steps` gradients of a batch and one forward pass.
    """
    leaves = networks._leaves()
    moved, optimizer = networks._with(leaves), torch.optim.SGD(leaves, lr=lr)
    for step in range(steps):
        at = chance.permutation(len(x), rng=chance.child(rng, "batch", step))[:batch]
        optimizer.zero_grad()
        outputs = moved.outputs(x[at])
        (len(outputs) * torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels[at].repeat(len(outputs)))).backward()
        optimizer.step()
    with torch.no_grad():
        return (moved.outputs(x).argmax(2) == labels).double().mean(1)


def has_kinks(activation: Activation) -> bool:
    """Whether the slope of an activation jumps between -8 and 8: by more than its second derivative explains.   Cost: none to speak of."""
    z = torch.linspace(-8, 8, 16_001, dtype=torch.float64).requires_grad_()
    slope = torch.autograd.grad(activation(z).sum(), z, create_graph=True)[0]
    second = torch.autograd.grad(slope.sum(), z)[0] if slope.requires_grad else torch.zeros_like(z)
    jumps = slope.detach().diff() - (second[1:] + second[:-1]) / 2 * (z[1] - z[0]).detach()
    return bool((jumps.abs() > 0.01 * slope.detach().abs().max()).any())


def _dot(one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """The scalar product of two sets of stacked parameters, a member each.  Shapes: -> (members,)."""
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(one, two, strict=True)]).sum(0)


def draw(
    activation: Activation, *, features: int, depth: int, width: int, members: int, outputs: int | None = None, weight_variance: float, bias_variance: float = 0.0,
    weight_rates: Rates = 1.0, bias_rates: Rates = 1.0, dtype: torch.dtype = torch.float64, rng: Generator,
) -> Iterator[Perceptrons]:  # fmt: skip
    """Independent networks at initialisation, some at a time: W_ij ~ N(0, C_W / fan_in), b_i ~ N(0, C_b); no biases where C_b = 0 and their rate is 0.

    `depth` layers, all of `width` units but the last where `outputs` says otherwise.  `weight_variance` is C_W, `bias_variance` C_b; rates one number or one a layer.
    Numbers are drawn in `dtype` itself, for speed: float32 and float64 have the same law, not the same numbers.

    Cost: members * depth * width^2 normal numbers, HELD_NUMBERS of them held at once, or LEAST_NUMBERS of every layer.
    Raises: InvalidInput for sizes below 1, variances that are negative, rates that are as many as no layers.
    """
    sizes = [features, *[width] * (depth - 1), width if outputs is None else outputs]
    if min(depth, members, *sizes) < 1 or not (weight_variance >= 0 and bias_variance >= 0):
        raise InvalidInput(
            f"Sizes must be at least 1 and variances not negative, not depth={depth}, width={width}, features={features}, members={members}, C_W={weight_variance}, C_b={bias_variance}."
        )
    rates = [_each(rate, depth) for rate in (weight_rates, bias_rates)]
    streams = [(chance.child(rng, "weights", layer), chance.child(rng, "biases", layer)) for layer in range(depth)]
    numbers = [a * b for a, b in itertools.pairwise(sizes)]
    most = max(HELD_NUMBERS // sum(numbers), LEAST_NUMBERS // max(numbers), 1)
    for start in range(0, members, most):
        count = min(most, members - start)
        weights, biases = [], []
        for (stream, other), (before, after), rate in zip(streams, itertools.pairwise(sizes), rates[1], strict=True):
            weights.append(torch.empty(count, after, before, dtype=dtype).normal_(0, math.sqrt(weight_variance / before), generator=stream))
            drawn = torch.empty(count, 1, after, dtype=dtype).normal_(0, math.sqrt(bias_variance), generator=other) if bias_variance or rate else None
            biases.append(drawn)
        yield Perceptrons(activation, tuple(weights), tuple(biases), *rates)


def _each(rates: Rates, depth: int) -> tuple[float, ...]:
    found = (float(rates),) * depth if isinstance(rates, (int, float)) else tuple(map(float, rates))
    if len(found) != depth:
        raise InvalidInput(f"Learning rates are one number or one for each of {depth} layers, not {len(found)}.")
    return found
