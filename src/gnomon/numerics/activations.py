"""What flows through named layers: their outputs and their inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gnomon.core.dataset import Tree, leaves
from gnomon.core.errors import InvalidInput, suggest
from gnomon.core.subject import State, Subject
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


def _first(value: Any, key: str) -> Tensor:
    found = leaves(value)
    if not found:
        raise InvalidInput(f"Layer {key!r} takes or gives no tensor; leave it out.")
    return found[0]


@contextlib.contextmanager
def _hooked(subject: Subject, names: list[str], keep: Callable[[str, Any, Any, Any], None]) -> Iterator[None]:
    layers = dict(subject.module.named_modules())
    for name in names:
        if name not in layers:
            raise InvalidInput(f"{subject.name} has no layer {name!r}. {suggest(name, [key for key in layers if key])}")
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def called(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            counts[name] = counts.get(name, 0) + 1
            keep(name if counts[name] == 1 else f"{name}#{counts[name]}", args, kwargs, output)

        return called

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(layers[name].register_forward_hook(hook(name), with_kwargs=True).remove)
        yield


def _check_called(found: dict[str, Tensor], names: list[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidInput(f"Layer {missing[0]!r} is not called when the network runs (its parameters may be used without it); leave it out.")
