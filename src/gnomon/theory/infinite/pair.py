"""The covariance of two sets of examples inside an infinitely wide network, and what linear maps make of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from gnomon.core.errors import OutOfScope


@dataclasses.dataclass(frozen=True)
class Pair:
    """Covariances of one layer's channels between two sets of examples, at equal positions or (`full`) between all positions.

    `first` and `second` are the variances, `cov` the covariance k, `ntk` the tangent kernel.  `gap` and `total` are n - k and n + k with n the product of the two
    standard deviations: carried by themselves because they vanish at correlations of 1 and -1, where k cannot tell them from 0.  `gap` is None where nothing
    downstream needs it; `total` where a sum gives it.

    Shapes: first (n1, *S), second (n2, *S); the others (n1, n2, *S), or (n1, n2, *S, *S) where `full`.   Units: those of the squared activations.
    """

    first: Float[Tensor, "n1 ..."]
    second: Float[Tensor, "n2 ..."]
    cov: Float[Tensor, "n1 n2 ..."]
    gap: Float[Tensor, "n1 n2 ..."] | None
    total: Float[Tensor, "n1 n2 ..."] | None
    ntk: Float[Tensor, "n1 n2 ..."] | None
    full: bool

    @property
    def dimensions(self) -> int:
        """How many dimensions of positions there are."""
        return self.first.ndim - 1

    def spread(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of each example and position, shaped to meet `cov`.  Shapes: those of the fields."""
        return spread(first, second, full=self.full)

    def each(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """A linear function of cov, gap, total and ntk."""
        gap, total, ntk = (None if part is None else function(part) for part in (self.gap, self.total, self.ntk))
        return function(self.cov), gap, total, ntk

    def scaled(self, by: float) -> Pair:
        """What it is after a multiplication of the layer by a constant whose square is `by`."""
        return self if by == 1 else Pair(by * self.first, by * self.second, *self.each(lambda x: by * x), self.full)

    def diagonal(self) -> Pair:
        """Only equal positions."""
        if not self.full:
            return self
        shape, count = self.first.shape[1:], math.prod(self.first.shape[1:])
        return Pair(self.first, self.second, *self.each(lambda x: x.reshape(*x.shape[:2], count, count).diagonal(dim1=2, dim2=3).reshape(*x.shape[:2], *shape)), full=False)


def spread(first: Tensor, second: Tensor, *, full: bool) -> tuple[Tensor, Tensor]:
    """Numbers of each example and position, shaped to meet those of pairs.  Shapes: (n1, *S), (n2, *S) -> (n1, 1, *S), (1, n2, *S), with dimensions of 1 between where `full`."""
    one, two = first.unsqueeze(1), second.unsqueeze(0)
    if full:
        ones = (1,) * (first.ndim - 1)
        one, two = one.reshape(*one.shape, *ones), two.reshape(*two.shape[:2], *ones, *two.shape[2:])
    return one, two


def add(a: Pair, b: Pair) -> Pair:
    """The sum of two independent layers.

    k, n - k and n + k add up, but for the difference of the new n and the old ones, which has no cancellation in the form
    sqrt((a1 + b1)(a2 + b2)) - sqrt(a1 a2) - sqrt(b1 b2) = (sqrt(a1 b2) - sqrt(a2 b1))^2 / (sqrt((a1 + b1)(a2 + b2)) + sqrt(a1 a2) + sqrt(b1 b2)).

    Source: Lagrange's identity.
    """
    first, second = a.first + b.first, a.second + b.second
    ntk = a.ntk + b.ntk if a.ntk is not None and b.ntk is not None else a.ntk if b.ntk is None else b.ntk
    if a.gap is None or b.gap is None:
        return Pair(first, second, a.cov + b.cov, None, None, ntk, a.full)
    (a1, a2), (b1, b2) = (x.spread(x.first.sqrt(), x.second.sqrt()) for x in (a, b))
    n1, n2 = a.spread(first.sqrt(), second.sqrt())
    more = _excess(a1 * b2 - a2 * b1, n1 * n2 + a1 * a2 + b1 * b2)
    total = None
    if a.total is not None or b.total is not None:
        total = (a1 * a2 + a.cov if a.total is None else a.total) + (b1 * b2 + b.cov if b.total is None else b.total) + more
    return Pair(first, second, a.cov + b.cov, a.gap + b.gap + more, total, ntk, a.full)


def _excess(difference: Tensor, below: Tensor) -> Tensor:
    return difference.square_().div_(below.clamp_min_(torch.finfo(below.dtype).tiny))


def affine(x: Pair, *, weight: float, bias: float, ntk_weight: float, ntk_bias: float) -> Pair:
    """A linear layer of weight variance C_W / fan_in and bias variance C_b: k -> C_W k + C_b, Theta -> C_W Theta + w k + b, with w and b those of the parametrisation.

    Source: Lee et al. 2018, section 2 for k; Jacot et al. 2018, theorem 1 for Theta.
    """
    shift, ntk = x.cov.new_tensor(bias), None  # numbers as tensors, so that a factor and a sum are one pass
    if x.ntk is not None:
        ntk = torch.add(x.cov.new_tensor(ntk_bias), x.ntk, alpha=weight).add_(x.cov, alpha=ntk_weight)
    first, second = weight * x.first, weight * x.second
    if bias == 0 or x.gap is None:
        _, gap, total, _ = (None, None, None, None) if x.gap is None else x.each(lambda part: weight * part)
        return Pair(first + bias, second + bias, torch.add(shift, x.cov, alpha=weight), gap, total, ntk, x.full)
    a1, a2 = x.spread(first.sqrt(), second.sqrt())
    n1, n2 = x.spread((first + bias).sqrt(), (second + bias).sqrt())
    below = torch.addcmul(torch.addcmul(shift, n1, n2), a1, a2)
    more = torch.sub(math.sqrt(bias) * a1, math.sqrt(bias) * a2).square_().div_(below)
    total = None if x.total is None else torch.add(more, x.total, alpha=weight).add_(2 * bias)
    return Pair(first + bias, second + bias, torch.add(shift, x.cov, alpha=weight), more.add_(x.gap, alpha=weight), total, ntk, x.full)


@dataclasses.dataclass(frozen=True)
class Window:
    """Positions along one dimension that a convolution or a pooling reads: size, stride, padding before and after, dilation, and how it pads."""

    size: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    mode: str = "zeros"

    def views(self, x: Tensor, dims: Sequence[int]) -> list[Tensor]:
        """The shifted views of a tensor, one for each place in the window, along every one of `dims` together.  Shapes: x any."""
        length = x.shape[dims[0]]
        for dim in dims:
            x = self._padded(x, dim)
        out = (length + self.before + self.after - self.dilation * (self.size - 1) - 1) // self.stride + 1
        found = []
        for place in range(self.size):
            view = x
            for dim in dims:
                view = view.narrow(dim, place * self.dilation, (out - 1) * self.stride + 1)
                view = view if self.stride == 1 else view[(slice(None),) * dim + (slice(None, None, self.stride),)]
            found.append(view)
        return found

    def _padded(self, x: Tensor, dim: int) -> Tensor:
        if not self.before and not self.after:
            return x
        if self.mode == "zeros":
            return pad(x, (0, 0) * (x.ndim - 1 - dim) + (self.before, self.after))
        length = x.shape[dim]
        at = torch.arange(-self.before, length + self.after, device=x.device)
        if self.mode == "circular":
            at = at % length
        elif self.mode == "replicate":
            at = at.clamp(0, length - 1)
        else:
            at = (length - 1 - (at.abs() - (length - 1)).abs()).abs() if length > 1 else at * 0
        return x.index_select(dim, at)


def patches(x: Pair, windows: Sequence[Window]) -> Pair:
    """The mean over the places of a convolution's window, which both positions read at the same place.

    Source: Novak et al. 2019 (convolutional kernels); Arora et al. 2019 (their tangent kernels).
    """
    d = x.dimensions
    for axis, window in enumerate(windows):
        own, both = (1 + axis,), (2 + axis, 2 + d + axis) if x.full else (2 + axis,)
        firsts, seconds = window.views(x.first, own), window.views(x.second, own)
        parts = [window.views(part, both) if part is not None else [None] * window.size for part in (x.cov, x.gap, x.total, x.ntk)]
        terms = [Pair(a, b, cov, gap, total, ntk, x.full) for a, b, cov, gap, total, ntk in zip(firsts, seconds, *parts, strict=True)]
        x = terms[0]
        for term in terms[1:]:
            x = add(x, term)
    return x.scaled(1 / math.prod(window.size for window in windows))


def pooled(x: Pair, windows: Sequence[Window | None], variances: tuple[Tensor, Tensor] | None) -> Pair:
    """The mean over the windows of an average pooling, which the two positions read each at its own place; None leaves a dimension.

    `variances` are those of the result for the two sets of examples, needed where something downstream asks for them; NaN stand where they are not known.
    """
    d = x.dimensions

    def mean(part: Tensor) -> Tensor:
        for axis, window in enumerate(windows):
            for dim in (2 + axis, 2 + d + axis) if window is not None else ():
                assert window is not None
                if window.size == part.shape[dim]:
                    part = part.mean(dim, keepdim=True)
                else:
                    part = torch.stack(window.views(part, (dim,))).mean(0)
        return part

    cov, ntk = mean(x.cov), None if x.ntk is None else mean(x.ntk)
    shape = cov.shape[2 : 2 + d]
    if variances is None:
        first, second = (cov.new_full((n, *shape), math.nan) for n in cov.shape[:2])
        return Pair(first, second, cov, None, None, ntk, full=True)
    first, second = (v.reshape(-1, *shape) for v in variances)
    return with_gap(Pair(first, second, cov, None, None, ntk, full=True))


def with_gap(x: Pair, same: Tensor | None = None) -> Pair:
    """A pair with n - k and n + k from subtraction, 0 where `same` says that it is."""
    n1, n2 = x.spread(x.first.sqrt(), x.second.sqrt())
    n = n1 * n2
    gap = (n - x.cov).clamp_min_(0)
    if same is not None:
        gap = gap.masked_fill(same, 0)
    return dataclasses.replace(x, gap=gap, total=(n + x.cov).clamp_min_(0))


def normalised(x: Pair, eps: float, *, scale: bool, shift: bool) -> Pair:
    """Layer normalisation of Gaussian pre-activations, whose mean over many features is 0: k / sqrt((q1 + eps)(q2 + eps)), Theta likewise.

    A trained gain (at 1) adds k to Theta, a trained shift (at 0) adds 1; both are of the order of the biases.   Source: derived here.
    """
    r1, r2 = x.spread((x.first + eps).rsqrt(), (x.second + eps).rsqrt())
    cov, gap, total, ntk = x.each(lambda part: part * r1 * r2)
    if ntk is not None:
        ntk = ntk + (cov if scale else 0) + (1 if shift else 0)
    return Pair(x.first / (x.first + eps), x.second / (x.second + eps), cov, gap, total, ntk, x.full)


def concatenated(parts: Sequence[tuple[Pair, int]]) -> Pair:
    """Branches side by side, with so many channels each: the mean over channels.  Shapes: equal positions."""
    total = sum(count for _, count in parts)
    out = parts[0][0].scaled(parts[0][1] / total)
    for part, count in parts[1:]:
        out = add(out, part.scaled(count / total))
    return out


def flattened(x: Pair) -> Pair:
    """All positions become features: the mean over equal positions."""
    x = x.diagonal()
    shape = x.first.shape[1:]
    if not shape:
        return x
    window = [Window(size) for size in shape]
    if x.gap is None:
        first, second = x.first.flatten(1).mean(1), x.second.flatten(1).mean(1)
        return Pair(first, second, x.cov.flatten(2).mean(2), None, None, None if x.ntk is None else x.ntk.flatten(2).mean(2), full=False)
    out = patches(x, window)
    drop = len(shape)
    return Pair(out.first.flatten(0), out.second.flatten(0), *out.each(lambda part: part.reshape(part.shape[: part.ndim - drop])), full=False)


def finite(x: Pair, name: str) -> None:
    """Check the variances, which bound the covariances.  Raises: OutOfScope where the numbers of this dtype do not hold them."""
    if not math.isfinite(float(x.first.sum() + x.second.sum())):
        raise OutOfScope(
            f"the kernel is no longer finite at layer {name!r}: its variance grows beyond the numbers of {x.cov.dtype}; use float64, or a weight variance nearer to criticality"
        )
