"""Which places of its input each place of a layer's output reads: the windows of poolings and what slices take."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gnomon.core.layers import Layer
from gnomon.theory.infinite.recipe import Known
from gnomon.theory.infinite.window import Window

Taken = tuple[tuple[int, int] | None, list[slice], list[int]]


def pooling(node: fx.Node, layer: Layer, before: Known, module: nn.Module | None, called: str) -> list[Window | None] | str:
    """The windows of an average pooling, None for a dimension of positions that it leaves, or why it is not covered."""
    d, positions = len(before.positions), before.positions
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)) and not before.last:
        said: dict[str, Any] = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")}
        return _average({**said, "divisor_override": getattr(module, "divisor_override", None)}, positions)
    if module is None and called in ("avg_pool1d", "avg_pool2d", "avg_pool3d") and not before.last:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        return _average(dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs), positions)
    if (isinstance(module, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)) or "adaptive_avg_pool" in called) and not before.last:
        out = layer.output_shape[1:]
        if all(n % m == 0 for n, m in zip(positions, out, strict=True)):
            return [Window(n // m, n // m) for n, m in zip(positions, out, strict=True)]
    if called in ("mean", "sum"):
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        axes = {dim % (d + 2) - (1 if before.last else 2) for dim in dims}
        if axes and axes <= set(range(d)):
            return [Window(n) if axis in axes else None for axis, n in enumerate(positions)]
    return f"{layer.why}; covered are average pooling, adaptive average pooling to a divisor of the size, and .mean and .sum over positions"


def _average(said: dict[str, Any], positions: tuple[int, ...]) -> list[Window | None] | str:
    d = len(positions)
    numbers = (said["kernel_size"], said.get("stride") or said["kernel_size"], said.get("padding", 0))
    size, stride, padding = ((v,) * d if isinstance(v, int) else tuple(v) * (d // len(v)) for v in numbers)
    uneven = any((n + 2 * p - k) % s for n, k, s, p in zip(positions, size, stride, padding, strict=True))
    if (said.get("ceil_mode") and uneven) or (not said.get("count_include_pad", True) and any(padding)) or said.get("divisor_override"):
        return "an average pooling whose windows at the border count fewer places (ceil_mode, count_include_pad=False) or with divisor_override"
    return [Window(k, s, p, p) for k, s, p in zip(size, stride, padding, strict=True)]


def taken(index: Any, shape: tuple[int, ...], *, last: bool) -> Taken | str:
    """What an index takes: the channels from and to (None for all of them), a slice for each dimension of positions, and which of these go; or why it is not covered.

    Shapes: `shape` that of an example; its channels are the last dimension or the first.
    """
    whole = slice(None)
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [whole] * (len(shape) + 2 - len(parts))
    parts += [whole] * (len(shape) + 1 - len(parts))
    plain = [isinstance(part, int) or (isinstance(part, slice) and all(isinstance(end, (int, type(None))) for end in (part.start, part.stop, part.step))) for part in parts]
    if len(parts) != len(shape) + 1 or not all(plain):
        return "an index other than slices and numbers"
    if parts[0] != whole:
        return "it takes some of the examples"
    rest: list[Any] = parts[1:]
    channel = len(rest) - 1 if last else 0
    own = rest.pop(channel)
    positions = [size for axis, size in enumerate(shape) if axis != channel]
    if not isinstance(own, slice) or own.step not in (None, 1):
        return "it takes single channels; slices of many of them are covered"
    gone = [axis for axis, part in enumerate(rest) if isinstance(part, int)]
    chosen = [slice(part % size, part % size + 1) if isinstance(part, int) else part for part, size in zip(rest, positions, strict=True)]
    start, stop, _ = own.indices(shape[channel])
    everywhere = all(part == whole for part in chosen)
    if (start, stop) == (0, shape[channel]):
        return None, chosen, gone
    return ((start, stop), chosen, gone) if everywhere else "it takes some of the channels and some of the positions at once; take one after the other"


def permutation(node: fx.Node, called: str, rank: int) -> list[int] | None:
    """The order of dimensions that a transposition or a permutation makes, or None where it is not known."""
    order = list(range(rank))
    dims: list[Any] = [dim for arg in (*node.args[1:], *node.kwargs.values()) for dim in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    if called == "permute":
        return [dim % rank for dim in dims]
    if called == "mT" or len(dims) == 2:
        a, b = (-2, -1) if called == "mT" else dims
        order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
    return order
