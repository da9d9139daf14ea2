"""A device that is not there: code that would mix devices is refused without a GPU.

All numbers stay on the CPU, so that kernels, derivatives and transforms of torch run as they are.  What lies "on the device" is written down by storage.
A function mode answers `x.device`, turns moves into copies and refuses what the CPU alone can do (numpy, draws of a CPU generator); a dispatch mode
sees every operation, below autograd and torch.func, and refuses arguments of both places where CUDA does.

Not seen: the gradient of a move (CUDA moves it back, here it stays where it was), kernels that CUDA does not have, what a recorded trace makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import _functorch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, CPU = torch.device("cuda", 0), torch.device("cpu")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
DEVICE_OF, IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__
BETWEEN = {"copy_", "_foreach_copy_", "set_"}  # operations between devices
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}  # what lies on the device may be indexed by tensors on the CPU
# where a CPU tensor without dimensions is refused too: these are not elementwise
STRICT = {"stack", "cat", "index_select", "gather", "scatter", "scatter_add", "index_add", "index_copy", "equal"}
PRODUCTS = {"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "convolution"}  # what CUDA does not do with integers
PLAIN = {"__get__", "__set__", "_parse_to", "size", "dim", "numel", "__len__", "is_floating_point"}  # asked often, and of no device
UNSEEN = {"__deepcopy__", "tensor", "as_tensor"}  # what makes tensors without an operation


@contextlib.contextmanager
def pretended() -> Iterator[Pretended]:
    """Inside, `torch.device("cuda")` exists."""
    mode, engine = Pretended(), torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        with mode:  # torch leaves the mode while it calls an operation; hooks and functions of ours run inside this one
            return engine(*args, **kwargs)

    with _Kernels(mode), mode, mock.patch.object(torch.autograd, "_engine_run_backward", backward):
        yield mode


class Pretended(TorchFunctionMode):
    """What torch's functions are called with, and what lies where."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, StorageWeakRef] = {}  # a weak reference keeps an address from being given out again
        self.place = CPU  # of what an operation makes out of nothing

    def has(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self.held

    def hold(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is not None and storage._cdata not in self.held:
            self.held[storage._cdata] = StorageWeakRef(storage)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func in (DEVICE_OF, IS_CUDA):
            return self.has(args[0]) if func == IS_CUDA else DEVICE if self.has(args[0]) else CPU
        if name in PLAIN:
            return func(*args, **kwargs)
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if name in ("numpy", "__array__") and own is not None and self.has(own) and not kwargs.get("force"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        args, place = self._asked(name, own, args, kwargs)
        if place == DEVICE and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if own is not None and name in ("to", "cpu", "cuda", "as_tensor") and place != (DEVICE if self.has(own) else CPU):
            kwargs["copy"], func = True, Tensor.to
            args = args if len(args) > 1 or "dtype" in kwargs else (own, own.dtype)
        before, self.place = self.place, place
        try:
            result = func(*args, **kwargs)
        finally:
            self.place = before
        if name in UNSEEN and place == DEVICE:
            self.hold(result)
        return result

    def _asked(self, name: str, own: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], torch.device]:
        """The arguments without the device that was asked for, and that device: that of the arguments where none was."""
        asked = kwargs.pop("device", None)
        if name in ("cpu", "cuda") and own is not None:
            return (own,), torch.device(name, 0) if name == "cuda" else CPU
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            asked, args = DEVICE if self.has(args[1]) else CPU, (own, args[1].dtype, *args[2:])
        elif name == "to" and len(args) > 1 and isinstance(args[1], (str, torch.device)):
            asked, args = args[1], (own, *(args[2:] if args[2:3] != (None,) else (own.dtype, *args[3:])))
        if asked is not None:
            return args, CPU if torch.device(asked).type == "cpu" else DEVICE
        here = (name != "tensor" or own is not None) and any(self.has(tensor) for tensor in _tensors((args, kwargs)))  # numbers read out of a list lie on the CPU
        return args, DEVICE if here else CPU


class _Kernels(TorchDispatchMode):
    """What each operation reads and makes."""

    def __init__(self, places: Pretended) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, schema = kwargs or {}, func.overloadpacket.__name__, func._schema.arguments
        tensors = list(_tensors((args, kwargs)))
        there = any(self.places.has(tensor) for tensor in tensors)
        if there and name not in BETWEEN:
            self._check(name, tensors, [given for given, argument in zip(args, schema, strict=False) if argument.is_write] + [kwargs.get("out")])
        if there and name in PRODUCTS and not tensors[0].is_floating_point() and not tensors[0].is_complex():
            raise RuntimeError(f"\"addmm_cuda\" not implemented for 'Long' (in {name})")
        result = func(*args, **kwargs)
        if name not in BETWEEN and (self.places.place == DEVICE if any(argument.name == "device" for argument in schema) else there):
            for tensor in _tensors(result):
                self.places.hold(tensor)
        return result

    def _check(self, name: str, tensors: list[Tensor], written: list[Any]) -> None:
        """Refuse an operation on tensors of both places, but for those that CUDA allows."""
        away = [tensor for tensor in tensors if not self.places.has(tensor)]
        if name in INDEXED:
            values = tensors[-1:] if "put" in name else []
            wrong = not self.places.has(tensors[0]) or any(value.ndim and not self.places.has(value) for value in values)
        else:
            wrong = any(tensor.ndim or any(tensor is one for one in written) or name.rstrip("_") in STRICT for tensor in away)
        if wrong:
            raise RuntimeError(f"{MIXED} (in {name}: {[(tuple(tensor.shape), 'cuda:0' if self.places.has(tensor) else 'cpu') for tensor in tensors]})")


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list, dict)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(part)


def _storage(tensor: Tensor) -> Any:
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.untyped_storage() if tensor.layout == torch.strided else None
