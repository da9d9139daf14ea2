"""Taylor expansions of a network in its parameters, as networks of their own that any optimizer trains."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import first_tensor, unwrap
from gnomon.numerics.by_parts import by_parts
from gnomon.numerics.derivatives import FAILURES
from gnomon.numerics.measuring import differentiable, has_recurrence

State = dict[str, Tensor]


class Taylorised(nn.Module):
    """f(w_0) + J(w_0) d, and + d^T H(w_0) d / 2 for order 2: the Taylor expansion of a network in its trainable parameters, whose own parameters are the displacement d.

    It takes what the network takes and returns its output tensor.  The parameters start at 0; a learning rate and weight decay act on d as on w - w_0.  `bend` multiplies the second
    order: 1, unless it is set otherwise for a control.

    Shapes: those of the network.   Error: rounding: derivatives are taken in forward mode, never by differences.
    Assumes: the network in eval mode (dropout off, batch normalisation by its running statistics), frozen parameters and buffers as they are; tied parameters move together.
    Cost: order 1 two to three times a forward pass of the network, order 2 five times.
    Raises: InvalidInput where no parameter is trainable; OutOfScope where an operation has no derivative in forward mode.
    Source: Lee et al. 2019 (order 1); Bai et al. 2020 (Taylorised training).
    """

    def __init__(self, model: nn.Module, order: int) -> None:
        super().__init__()
        if order not in (1, 2):
            raise InvalidInput(f"A Taylor expansion of order 1 or 2 can be trained, not of order {order}.")
        module = copy.deepcopy(unwrap(model)).eval()
        self.order, self.bend = order, 1.0
        self._moved = tuple(key for key, value in module.named_parameters() if value.requires_grad)
        if not self._moved:
            raise InvalidInput("The network has no parameter with requires_grad=True: there is nothing to expand in.")
        self._kept = tuple(key for key, _ in [*module.named_parameters(), *module.named_buffers()])
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            self.register_buffer(_inside(key), value.detach().clone())
        self.displacement = nn.ParameterDict({_inside(key): nn.Parameter(torch.zeros_like(module.get_parameter(key))) for key in self._moved})
        self._network = (module.requires_grad_(False),)  # in a tuple: its own parameters are replaced at every call, and are none of this module's
        self._recurrent = has_recurrence(module)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The expansion at the displacement.   Raises: OutOfScope for an operation without a derivative in forward mode."""
        state = {key: self.get_buffer(_inside(key)) for key in self._kept}
        start = {key: state[key] for key in self._moved}
        step = {key: self.displacement[_inside(key)] for key in self._moved}

        def network(parameters: State) -> Tensor:
            return first_tensor(functional_call(self._network[0], {**state, **parameters}, args, kwargs, tie_weights=True))

        def slope(parameters: State) -> tuple[Tensor, Tensor]:
            return cast(tuple[Tensor, Tensor], jvp(network, (parameters,), (step,)))

        try:
            with differentiable(next(iter(state.values())).device, recurrent=self._recurrent), by_parts():
                if self.order == 1:
                    value, first = slope(start)
                    return value + first
                (value, first), (_, second) = cast(tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]], jvp(slope, (start,), (step,)))
                return value + first + self.bend / 2 * second
        except FAILURES as error:
            if "forward AD" not in str(error) and "forward-mode" not in str(error) and "jvp" not in str(error):
                raise
            raise OutOfScope(
                f"an operation of the network has no derivative in forward mode ({str(error).strip().splitlines()[0]}): replace it by one that has, to expand it"
            ) from error

    def reached(self) -> State:
        """The network's parameters and buffers at w_0 + d, for `load_state_dict(strict=False)`, and for `Subject.at`."""
        state = {key: self.get_buffer(_inside(key)).clone() for key in self._kept}
        return {**state, **{key: state[key] + self.displacement[_inside(key)].detach() for key in self._moved}}


def _inside(key: str) -> str:
    """A parameter's name as one that a module may hold."""
    return key.replace(".", "/")


def linearize(model: nn.Module) -> Taylorised:
    """The network's linearisation at its present parameters, f(w_0) + J(w_0) d, with d to be trained; see `Taylorised`."""
    return Taylorised(model, 1)


def quadratic(model: nn.Module) -> Taylorised:
    """The network's expansion to second order at its present parameters, f(w_0) + J(w_0) d + d^T H(w_0) d / 2, with d to be trained; see `Taylorised`."""
    return Taylorised(model, 2)
