"""The same network with other parameters: flat vectors in and out, and batch normalisation's statistics made anew where the parameters have moved."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject
from gnomon.numerics import derivatives
from gnomon.numerics.measuring import measuring

EXAMPLES = 512
"""Examples that batch normalisation's statistics are taken over, at most."""


def parameters_of(subject: Subject) -> Float[Tensor, "P"]:
    """The trainable parameters as one vector.  Shapes: (P,)."""
    return derivatives.flatten(subject.parameters.values())


def at_vector(subject: Subject, parameters: Float[Tensor, "P"]) -> Subject:
    """The subject with these trainable parameters, buffers as they are.  Shapes: (P,).   Raises: InvalidInput for another length, NaN or infinite entries."""
    if not bool(torch.isfinite(parameters).all()):
        raise InvalidInput("The parameters to move to have NaN or infinite values. Take a smaller step, radius or span.")
    parts = derivatives.split(subject, parameters)
    # what is shared under these names depends on data and structure alone
    kept = {key: value for key, value in subject._shared.items() if key.startswith(("numerics.total.", "numerics.recurrent", "numerics.chain"))}
    return dataclasses.replace(subject, state={**subject.state, **dict(zip(subject.trainable, parts, strict=True))}, where="elsewhere", _shared=kept)


def batch_norms(subject: Subject) -> dict[str, nn.Module]:
    """Layers that keep running statistics of batches, by name."""
    return {name: layer for name, layer in subject.module.named_modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None}


@contextlib.contextmanager
def batch_statistics(subject: Subject) -> Iterator[None]:
    """Batch normalisation by the batch inside, its running statistics averaged over the calls; dropout stays off; modes are put back on leaving."""
    layers = list(batch_norms(subject).values())
    before = [(layer, layer.training, layer.momentum) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.momentum = True, None  # type: ignore[assignment]
        yield
    finally:
        for layer, training, momentum in before:
            layer.training, layer.momentum = training, momentum


def refreshed(subject: Subject, *, examples: int = EXAMPLES) -> Subject:
    """The subject with batch normalisation's running statistics those of one batch of its training examples, evenly spaced; itself where it has none.

    Between two networks, or once units are matched, the old statistics belong to other parameters.

    Cost: one forward pass of at most `examples` examples.   Raises: InvalidInput for fewer than two examples.
    Source: Izmailov et al. 2018, section 3.2; Ainsworth et al. 2022.
    """
    names = batch_norms(subject)
    if not names:
        return subject
    count = min(examples, len(subject.train))
    if count < 2:
        raise InvalidInput("Batch normalisation's statistics are those of at least two examples; there is one.")
    chosen = subject.train.select(torch.linspace(0, len(subject.train) - 1, count).round().long())
    state = dict(subject.state)
    owners = _owners(subject.module)
    for name in names:
        for buffer, start in (("running_mean", 0.0), ("running_var", 1.0), ("num_batches_tracked", 0)):
            key = owners[f"{name}.{buffer}" if name else buffer]
            state[key] = torch.full_like(state[key], start)
    with measuring(subject), torch.no_grad(), batch_statistics(subject):
        for block in chosen.blocks:
            subject(state, subject.to_device(block.inputs))
    return dataclasses.replace(subject, state=state, _shared={})


def _owners(module: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in module.named_buffers(remove_duplicate=False)}
