"""The one context for measuring: every derivative exists, nothing is rounded to fewer bits than the dtype has, all put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gnomon.core.subject import Subject

cudnn: Any = torch.backends.cudnn
mkldnn: Any = torch.backends.mkldnn


@contextlib.contextmanager
def measuring(subject: Subject) -> Iterator[None]:
    """Measure inside: attention by its plain formula, no fused path without derivatives, no TF32; every setting is put back on leaving.

    Flash and memory-efficient attention have neither forward mode nor a second derivative, nor have the fused encoder layer and the RNN kernels of
    mkldnn and cudnn.  The last two are switched off only where the network has an RNN: convolutions keep them.

    Assumes: the network is in eval mode, as `Subject` keeps it.   Cost: none to speak of; contexts may be nested.
    """
    recurrent = subject.once("numerics.recurrent", lambda: has_recurrence(subject.module))
    with differentiable(subject.device, recurrent=recurrent):
        yield


def has_recurrence(module: nn.Module) -> bool:
    """Whether a network has an RNN, whose fast kernels have first derivatives alone."""
    return any(isinstance(layer, nn.RNNBase) for layer in module.modules())


@contextlib.contextmanager
def differentiable(device: torch.device, *, recurrent: bool) -> Iterator[None]:
    """What `measuring` does, for a module that is no subject."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if device.type == "cuda":
            stack.enter_context(_full_precision())
        if recurrent:
            stack.enter_context(_kernels_off())
        yield


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


@contextlib.contextmanager
def _kernels_off() -> Iterator[None]:
    # `cudnn.flags` and `mkldnn.flags` would set every other flag too, TF32 among them.
    before = cudnn.enabled, mkldnn.enabled
    cudnn.enabled = mkldnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled, mkldnn.enabled = before
