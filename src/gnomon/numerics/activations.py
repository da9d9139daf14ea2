"""What flows through named layers: their outputs, their inputs, and the loss's gradient with respect to their outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gnomon.core.dataset import Block, Tree, leaves
from gnomon.core.errors import InvalidInput, suggest
from gnomon.core.subject import State, Subject
from gnomon.numerics.derivatives import gradients
from gnomon.numerics.measuring import measuring


def layer_activations(subject: Subject, state: State, inputs: Tree, names: Iterable[str], *, what: Literal["outputs", "inputs"] = "outputs") -> dict[str, Tensor]:
    """The outputs (or inputs) of named layers.

    A layer called several times gives `name` for its first call, then `name#2`, `name#3`, ...; of an output or input that is a tuple or dict, the first
    tensor is taken.  Later operations in place do not show.

    Shapes: as the network makes them, examples first where it does so.   Cost: one forward pass.
    Raises: InvalidInput for a name that is no layer, or a layer that is not called.
    """
    wanted, found = list(names), {}

    def keep(key: str, args: Any, kwargs: Any, output: Any) -> None:
        found[key] = _first(output if what == "outputs" else (args, kwargs), key).detach().clone()

    with measuring(subject), torch.no_grad(), _hooked(subject, wanted, keep):
        subject(state, subject.to_device(inputs))
    _check_called(found, wanted)
    return found


def layer_gradients(subject: Subject, state: State, block: Block, names: Iterable[str]) -> dict[str, Float[Tensor, "..."]]:
    """The gradient of a block's loss with respect to the outputs of named layers; several calls as in `layer_activations`.

    Shapes: those of the outputs.   Units: loss / activation; for a mean over N equal examples, a row is 1/N of that example's own gradient.
    Cost: one gradient.   Raises: InvalidInput for a name that is no layer, or a layer that is not called or has no floating-point output.
    """
    wanted: list[str] = list(names)
    held: dict[str, Tensor] = {}

    def keep(key: str, args: Any, kwargs: Any, output: Any) -> Any:
        value = _first(output, key)
        if not value.is_floating_point():
            raise InvalidInput(f"Layer {key!r} puts out integers, which have no gradient.")
        held[key] = value if value.requires_grad else value.detach().requires_grad_()
        # The copy goes on, so that operations in place leave what is held alone.
        return _replaced(output, value, held[key].clone())

    with measuring(subject), torch.enable_grad(), _hooked(subject, wanted, keep):
        output = subject(state, subject.to_device(block.inputs))
        loss = subject.loss(output, subject.to_device(block.targets))
        _check_called(held, wanted)
        return dict(zip(held, gradients(loss, held.values()), strict=True))


def _first(value: Any, key: str) -> Tensor:
    found = leaves(value)
    if not found:
        raise InvalidInput(f"Layer {key!r} takes or gives no tensor.")
    return found[0]


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    if output is old:
        return new
    if isinstance(output, (tuple, list)):
        parts = [_replaced(part, old, new) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, dict):
        return type(output)({key: _replaced(o, old, new) for key, o in output.items()})
    return output


@contextlib.contextmanager
def _hooked(subject: Subject, names: list[str], keep: Callable[[str, Any, Any, Any], Any]) -> Iterator[None]:
    layers = dict(subject.module.named_modules())
    for name in names:
        if name not in layers:
            raise InvalidInput(f"{subject.name} has no layer {name!r}. {suggest(name, [key for key in layers if key])}")
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any, Any], Any]:
        def called(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return keep(name if counts[name] == 1 else f"{name}#{counts[name]}", args, kwargs, output)

        return called

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(layers[name].register_forward_hook(hook(name), with_kwargs=True).remove)
        yield


def _check_called(found: dict[str, Tensor], names: list[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidInput(f"Layer {missing[0]!r} is not called when the network runs (its parameters may be used without it); leave it out.")
