"""Per-example gradients of a layer's parameters from its input x and the gradient g of its output.

Of a weight that acts as a matrix they are sums of outer products, sum_t left_t right_t^T over positions t (sequence, pixels, calls): that form is kept
(`Outer`), so that inner products between examples need not form the gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor, nn

Columns = Float[Tensor, "n _"]
"""One flat gradient for each of n examples."""
Kind = Literal["linear", "transposed", "convolution", "embedding", "normalised", "channels"]
PRODUCTS = 1 << 24
"""Numbers in a block of inner products between positions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What one call of a layer left behind.  Shapes: `input` and `output` (examples or a multiple, ...), `statistics` a batch norm's mean and variance.

    `patches` keeps a convolution's input by positions, once it is laid out, for the other directions of the output.
    """

    input: Tensor
    output: Float[Tensor, "..."]
    statistics: tuple[Float[Tensor, "channels"], Float[Tensor, "channels"]] | None = None
    patches: list[Tensor] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Outer:
    """Gradients sum_t left_t right_t^T.  Shapes: left (n, T, l), or (n, T) integers that stand for unit vectors; right (n, T, r)."""

    left: Float[Tensor, "n T l"] | Int[Tensor, "n T"]
    right: Float[Tensor, "n T r"]

    def __len__(self) -> int:
        return len(self.left)

    def columns(self, shape: Sequence[int]) -> Columns:
        """The gradients themselves.  Shapes: (n, prod(shape))."""
        if self.left.ndim == 3:
            return torch.einsum("ntl,ntr->nlr", self.left, self.right).reshape(len(self.left), -1)
        out = self.right.new_zeros(len(self.left), shape[0], self.right.shape[-1])
        return out.scatter_add_(1, self.left[..., None].expand_as(self.right), self.right).reshape(len(self.left), -1)

    def dense(self, rows: int) -> Outer:
        """The same with unit vectors written out."""
        return self if self.left.ndim == 3 else Outer(F.one_hot(self.left, rows).to(self.right.dtype), self.right)

    def squares(self) -> Float64[Tensor, "n"]:
        """Squared norms.  Shapes: (n,) float64."""
        if self.right.shape[1] == 1:
            left = _row_squares(self.left) if self.left.ndim == 3 else 1.0
            return left * _row_squares(self.right)
        return _widen(self._positions(self.left, self.left) * (self.right @ self.right.mT)).sum((1, 2))

    @staticmethod
    def _positions(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.mT if a.is_floating_point() else a[..., :, None] == b[..., None, :]

    def between(self, other: Outer) -> Float[Tensor, "n m"]:
        """Inner products between examples of one position each.  Shapes: (n, m)."""
        a, b = self.left[:, 0], other.left[:, 0]
        same = a @ b.mT if a.is_floating_point() else a[:, None] == b[None, :]
        return (self.right[:, 0] @ other.right[:, 0].mT).mul_(same)

    def inner(self, other: Outer) -> Float64[Tensor, "n m"]:
        """Inner products between the examples of two blocks.  Shapes: (n, m) float64 on the CPU."""
        (n, t), (m, s) = self.left.shape[:2], other.left.shape[:2]
        step, width = max(PRODUCTS // max(t * m * s, 1), 1), max(PRODUCTS // (t * s), 1)
        rows = []
        for i in range(0, n, step):
            parts = []
            for j in range(0, m, width):
                left, right = (_flat(x[i : i + step]) for x in (self.left, self.right))
                other_left, other_right = (_flat(x[j : j + width]) for x in (other.left, other.right))
                both = self._positions(left, other_left) * (right @ other_right.mT)
                parts.append(_widen(both.reshape(len(left) // t, t, len(other_left) // s, s).sum((1, 3))))
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)


def _row_squares(x: Float[Tensor, "n T size"]) -> Float64[Tensor, "n"]:
    flat = x.flatten(1)
    return _widen(torch.linalg.vector_norm(flat, dim=1)).square()


def _flat(x: Shaped[Tensor, "n T *size"]) -> Shaped[Tensor, "n*T *size"]:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _widen(x: Tensor) -> Tensor:
    return x.cpu().double()


def kind_of(layer: nn.Module) -> Kind | None:
    """How a layer's parameters act, or None where its gradients are not known from input and output."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if type(layer).__name__ == "Conv1D":  # transformers': y = x weight + bias
        return "transposed"
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return "convolution"
    if isinstance(layer, nn.Embedding) and layer.max_norm is None and not layer.scale_grad_by_freq:
        return "embedding"
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return "normalised"
    if isinstance(layer, (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and getattr(layer, "running_mean", 0) is not None:
        return "channels"
    return None


def gradient_of(layer: nn.Module, kind: Kind, role: str, call: Call, g: Tensor, n: int) -> Outer | Float[Tensor, "{n} _"]:
    """The per-example gradient of a layer's weight or bias from one call.

    Shapes: call.input (n a, ...), g like call.output; the result an Outer, or columns (n, size).
    """
    x = call.input
    if kind in ("linear", "transposed"):
        g = g.reshape(n, -1, g.shape[-1])
        if role == "bias":
            return g[:, 0] if g.shape[1] == 1 else g.sum(1)
        x = x.reshape(n, -1, x.shape[-1])
        return Outer(g, x) if kind == "linear" else Outer(x, g)
    if kind == "embedding":
        assert isinstance(layer, nn.Embedding)
        if layer.padding_idx is not None:
            g = g * (x != layer.padding_idx)[..., None]
        return Outer(x.reshape(n, -1), g.reshape(n, -1, g.shape[-1]))
    if kind == "convolution":
        return _convolution(layer, role, call, g, n)
    if kind == "normalised":
        return _normalised(layer, role, x, g, n)
    if role == "weight":
        g = g * _standardised(layer, call)
    return g.reshape(n, -1, g.shape[1], math.prod(g.shape[2:])).sum((1, 3))


def _convolution(layer: nn.Module, role: str, call: Call, g: Tensor, n: int) -> Outer | Float[Tensor, "{n} _"]:
    if role == "bias":
        return g.reshape(n, -1, g.shape[1], math.prod(g.shape[2:])).sum((1, 3))
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if not call.patches:
        call.patches.append(_patches(layer, call.input, n))
    x, g = call.patches[0], g.flatten(2).mT
    if layer.groups == 1:
        return Outer(g.reshape(n, -1, layer.out_channels), x)
    x = x.reshape(n, x.shape[1], layer.groups, -1)
    g = g.reshape(n, -1, layer.groups, layer.out_channels // layer.groups)
    return torch.einsum("ntgo,ntgi->ngoi", g, x).reshape(n, -1)


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, n: int) -> Float[Tensor, "{n} T size"]:
    """What each position of a convolution's output reads.  Shapes: x (n a, C, ...) -> (n, a positions, C kernel)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    spatial = len(layer.kernel_size)
    for d in range(spatial):
        reach = (int(layer.kernel_size[d]) - 1) * int(layer.dilation[d]) + 1
        x = x.unfold(2 + d, reach, int(layer.stride[d]))[..., :: int(layer.dilation[d])]
    # Now (N, C, *positions, *kernel); the copy runs along positions, which lie side by side in memory.
    size, positions = layer.in_channels * math.prod(x.shape[2 + spatial :]), math.prod(x.shape[2 : 2 + spatial])
    x = x.permute(0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial)).reshape(len(x), size, positions).mT
    return x.reshape(n, len(x) // n * positions, size)


def _normalised(layer: nn.Module, role: str, x: Tensor, g: Tensor, n: int) -> Float[Tensor, "{n} _"]:
    assert isinstance(layer, (nn.LayerNorm, nn.RMSNorm))
    shape = list(layer.normalized_shape)
    if role == "weight":
        g = g * (F.layer_norm(x, shape, eps=layer.eps) if isinstance(layer, nn.LayerNorm) else F.rms_norm(x, shape, eps=layer.eps))
    return g.reshape(n, -1, math.prod(shape)).sum(1)


def _standardised(layer: nn.Module, call: Call) -> Tensor:
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(call.input, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    assert call.statistics is not None
    return F.batch_norm(call.input, *call.statistics, eps=layer.eps)
