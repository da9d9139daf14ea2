"""Full-batch gradient descent on a fully connected tanh network, at little more than the cost of its matrix products, and the curvature along it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array
from gnomon.core.subject import Subject
from gnomon.numerics.lanczos import Product, lanczos_eigenvalues
from gnomon.numerics.operators import GaussNewton, Hessian, loss_value


def tanh_network(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them, in PyTorch's default initialisation.  Shapes: (N, sizes[0]) -> (N, sizes[-1])."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def half_squared_error(output: Float[Tensor, "N C"], targets: Float[Tensor, "N C"]) -> Float[Tensor, ""]:
    """|output - target|^2 / 2, averaged over examples and summed over components.  Shapes: (N, C), (N, C) -> ()."""
    return (output - targets).square().sum(-1).mean() / 2


class Descent:
    """Gradient descent on `half_squared_error` with every example at every step, with or without momentum.

    v <- b v + gradient,  theta <- theta - lr v

    Shapes: inputs (N, D), targets (N, C).   Units: none.
    Assumes: a chain of linear layers (with biases) and tanh, such as `tanh_network`; the network is not changed.
    Cost: a step is the matrix products of a gradient: all that is written lies in buffers that are made once.
    Raises: InvalidInput for another network or a learning rate that is not positive; from `run` where the parameters overflow.
    """

    def __init__(self, network: nn.Sequential, inputs: Float[Tensor, "N D"], targets: Float[Tensor, "N C"], *, lr: float, momentum: float = 0.0) -> None:
        layers = [layer for layer in network if isinstance(layer, nn.Linear) and layer.bias is not None]
        chain = [nn.Linear if place % 2 == 0 else nn.Tanh for place in range(len(network))]
        if [type(layer) for layer in network] != chain or len(layers) != len(network) // 2 + 1:
            raise InvalidInput(f"Descent takes linear layers with biases and tanh in turn, beginning and ending with a linear layer, not {network}. Use models.training.train.")
        if not (lr > 0 and 0 <= momentum < 1):
            raise InvalidInput(f"lr must be above 0 and momentum in [0, 1), not {lr} and {momentum}.")
        self.names = [name for name, _ in network.named_parameters()]
        self.lr, self.momentum, self.steps = lr, momentum, 0
        self.theta, self.parameters = _flat([parameter.detach() for layer in layers for parameter in (layer.weight, layer.bias)])
        self.gradient, self.gradients = _flat([torch.zeros_like(part) for part in self.parameters])
        self.velocity = torch.zeros_like(self.theta)
        self.targets, self.share = targets.to(self.theta), self.theta.new_full((len(inputs),), 1 / len(inputs))
        self.activations = [inputs.to(self.theta).contiguous(), *(inputs.new_empty(len(inputs), layer.out_features).to(self.theta) for layer in layers)]
        self.errors = [torch.empty_like(layer) for layer in self.activations]

    def run(self, steps: int) -> None:
        """Make so many steps.   Raises: InvalidInput where the parameters overflow."""
        for _ in range(steps):
            self._differentiate()
            if self.momentum:
                self.velocity.mul_(self.momentum).add_(self.gradient)
            self.theta.add_(self.velocity if self.momentum else self.gradient, alpha=-self.lr)
        self.steps += steps
        if not bool(torch.isfinite(self.theta).all()):
            raise InvalidInput(f"The parameters overflowed within {self.steps} steps at lr = {self.lr:g}: take a smaller learning rate.")

    def state(self) -> dict[str, Tensor]:
        """A copy of the parameters, by the network's names."""
        return {name: part.clone() for name, part in zip(self.names, self.parameters, strict=True)}

    def _differentiate(self) -> None:
        """The gradient of the loss, into `gradient`."""
        a, e, depth = self.activations, self.errors, len(self.activations) - 1
        for layer in range(depth):
            weight, bias = self.parameters[2 * layer : 2 * layer + 2]
            torch.addmm(bias, a[layer], weight.T, out=a[layer + 1])
            if layer < depth - 1:
                a[layer + 1].tanh_()
        torch.sub(a[depth], self.targets, out=e[depth])
        for layer in range(depth, 0, -1):
            torch.mm(e[layer].T, a[layer - 1], out=self.gradients[2 * layer - 2]).mul_(1 / len(self.share))
            torch.mv(e[layer].T, self.share, out=self.gradients[2 * layer - 1])
            if layer > 1:
                torch.mm(e[layer], self.parameters[2 * layer - 2], out=e[layer - 1])
                torch.ops.aten.tanh_backward.grad_input(e[layer - 1], a[layer - 1], grad_input=e[layer - 1])


def _flat(parts: Sequence[Tensor]) -> tuple[Float[Tensor, "P"], list[Tensor]]:
    """All numbers in one vector, and the parts as views of it."""
    whole = torch.cat([part.reshape(-1) for part in parts])
    return whole, [view.view(part.shape) for view, part in zip(whole.split([part.numel() for part in parts]), parts, strict=True)]


def gauss_newton_path(
    inputs: Float[Tensor, "N D"], targets: Float[Tensor, "N C"], *,
    hidden: Sequence[int], lr: float, momentum: float = 0.0, steps: Sequence[int], noise: float = 0.0, rng: Generator,
) -> tuple[Float64[Array, "steps"], Float64[Array, "steps"]]:  # fmt: skip
    """Train a `tanh_network`, and after these steps give the loss and |H - G| / |G|: how far the Hessian is from the Gauss-Newton matrix, in spectral norms.

    Shapes: (N, D), (N, C) -> (steps,), (steps,).   Units: loss; none.   Error: at most a thousandth of |H - G| and |G|, the residual at which Lanczos ends.
    `noise` is added to the targets of H and G, not to those of the training.   Cost: the steps, and about 60 products each time.   Raises: as `Descent`.
    """
    network = _drawn(inputs, hidden, targets, rng)
    noisy = targets + noise * chance.normal(*targets.shape, rng=chance.child(rng, "noise"), like=targets)
    subject, other = (Subject.freeze(network, half_squared_error, (inputs, aims)) for aims in (targets, noisy))
    descent, losses, differences = Descent(network, inputs, targets, lr=lr, momentum=momentum), [], []
    for step in steps:
        descent.run(step - descent.steps)
        there = other.at(descent.state())
        h, g = Hessian(there), GaussNewton(there)
        above, below, whole = (_largest(product, there, rng) for product in (lambda v: h(v) - g(v), lambda v: g(v) - h(v), g))  # noqa: B023
        losses.append(loss_value(subject.at(descent.state())))
        differences.append(max(above, below) / whole)
    return np.array(losses), np.array(differences)


def _drawn(inputs: Float[Tensor, "N D"], hidden: Sequence[int], targets: Float[Tensor, "N C"], rng: Generator) -> nn.Sequential:
    with chance.scoped(chance.child(rng, "network")):
        return tanh_network(inputs.shape[1], *hidden, targets.shape[1])


def _largest(product: Product, subject: Subject, rng: Generator) -> float:
    found = lanczos_eigenvalues(product, subject.dimension, rng=chance.child(rng, "lanczos"), like=subject.state[subject.trainable[0]], tolerance=1e-3)
    return float(found.values[0])


def sharpness_path(
    inputs: Float[Tensor, "N D"], targets: Float[Tensor, "N C"], *, hidden: Sequence[int], lr: float, momentum: float = 0.0, steps: int, times: int, rng: Generator
) -> Float64[Array, "{times}"]:
    """Train a `tanh_network` with these hidden layers, and take the largest eigenvalue of its training Hessian at `times` equal distances, the last at the end.

    Shapes: (N, D), (N, C) -> (times,).   Units: loss / parameter^2.   Error: at most a thousandth of the value, the residual at which Lanczos ends.
    Cost: `steps` steps, and about 15 Hessian products a time.   Raises: InvalidInput for more times than steps, and as `Descent`.
    """
    if not 1 <= times <= steps:
        raise InvalidInput(f"The sharpness can be taken at 1 to {steps} times in {steps} steps, not {times}.")
    network = _drawn(inputs, hidden, targets, rng)
    subject = Subject.freeze(network, half_squared_error, (inputs, targets))
    descent, values = Descent(network, inputs, targets, lr=lr, momentum=momentum), np.empty(times)
    for place in range(times):
        descent.run(steps * (place + 1) // times - steps * place // times)
        there = subject.at(descent.state())
        values[place] = _largest(Hessian(there), there, rng)
    return values
