"""SGD and SVAG on any network for many seeds at once: the parameters of all chains stand in one tensor each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vmap

from gnomon.core.errors import InvalidInput
from gnomon.core.sgd import Sgd, svag_weights
from gnomon.models.chains import draw_batches


class NetworkChains:
    """Chains of SGD from one state of a network, each with its own batches, as `Sgd` says; with svag = l, l steps in the place of one.

    The gradient of a step is that of w_1 loss(batch 1) + w_2 loss(batch 2) with `svag_weights`, or of one batch for l = 1.

    Shapes: inputs (N, ...), targets (N, ...); `parameters` (chains, *shape) each.   Units: none.
    `diverged` (chains,) holds the step after which a parameter was first not finite, else 0; the others go on.
    Assumes: a module that torch.func.vmap takes, without batch statistics; `loss(output, targets)` is a batch's mean.   The module is not changed.
    Cost: a step is a gradient of every chain, as one batched product a layer.
    Raises: InvalidInput where data and `sgd` do not fit.
    """

    def __init__(self, module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor, sgd: Sgd, *, chains: int, rng: Generator) -> None:
        if len(inputs) != sgd.examples or len(targets) != sgd.examples or chains < 1:
            raise InvalidInput(f"sgd speaks of {sgd.examples} examples; {len(inputs)} inputs and {len(targets)} targets came for {chains} chains.")
        self.module, self.loss, self.inputs, self.targets, self.sgd, self.chains, self.rng, self.steps = module, loss, inputs, targets, sgd, chains, rng, 0
        self.buffers = {name: value.detach() for name, value in module.named_buffers()}
        self.parameters = {name: value.detach().expand(chains, *value.shape).clone() for name, value in module.named_parameters()}
        self.velocity = {name: torch.zeros_like(value) for name, value in self.parameters.items()} if sgd.momentum else {}
        self.diverged = torch.zeros(chains, dtype=torch.int64)
        self._gradient = vmap(grad(self._objective), randomness="different")

    def run(self, steps: int) -> None:
        """Make so many steps."""
        for _ in range(steps):
            self._step()
            self.steps += 1
            first = next(iter(self.parameters.values()))
            # one layer that is not finite makes all of them so a step later
            lost = ~torch.isfinite(first.flatten(1).sum(1)).cpu() & (self.diverged == 0)
            if bool(lost.any()):
                self.diverged[lost] = self.steps

    def losses(self, inputs: Tensor, targets: Tensor) -> Float[Tensor, "chains"]:
        """The loss of every chain on these examples."""
        with torch.no_grad():
            return vmap(lambda parameters: self.loss(functional_call(self.module, (parameters, self.buffers), (inputs,)), targets))(self.parameters)

    def _objective(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        size = self.sgd.batch_size
        output = functional_call(self.module, (parameters, self.buffers), (inputs,))
        if self.sgd.svag == 1:
            return self.loss(output, targets)
        one, other = svag_weights(self.sgd.svag)
        return one * self.loss(output[:size], targets[:size]) + other * self.loss(output[size:], targets[size:])

    def _step(self) -> None:
        sgd = self.sgd
        drawn = [draw_batches(sgd.examples, sgd.batch_size, self.chains, sampling=sgd.sampling, rng=self.rng) for _ in range(1 if sgd.svag == 1 else 2)]
        index = torch.cat(drawn, -1).to(self.inputs.device)
        gradients = self._gradient(self.parameters, self.inputs[index], self.targets[index])
        for name, gradient in gradients.items():
            theta = self.parameters[name]
            if sgd.decay == "coupled":
                gradient = gradient + sgd.weight_decay * theta
            if sgd.decay == "decoupled":
                theta.mul_(1 - sgd.step * sgd.weight_decay)
            if sgd.momentum:
                velocity = self.velocity[name].mul_(sgd.momentum).add_(gradient)
                gradient = gradient + sgd.momentum * velocity if sgd.nesterov else velocity
            theta.add_(gradient, alpha=-sgd.step)
