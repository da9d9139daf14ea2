"""Means of channels behind activations: what they are, and what taking them away, or adding two layers that have some, does to a pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.numerics.quadrature import gaussian_expectation
from gnomon.theory.infinite import pair as pairs
from gnomon.theory.infinite.duals import Arguments, Dual, PiecewiseLinear
from gnomon.theory.infinite.pair import Pair
from gnomon.theory.infinite.series import symmetry

NOTHING = 1e-15
"""The share of E s^2 below which the square of a mean is rounding."""

Sides = tuple[Float[Tensor, "n1 ..."], Float[Tensor, "n2 ..."]]
"""Numbers of each example and position, for the two sets of examples.  Shapes: (n1, *S), (n2, *S)."""


@dataclasses.dataclass(frozen=True)
class Mean:
    """`factor` times E s(z), z the Gaussian channels of the layer `base` and s the activation `function` with the dual `applied`; `moves` take it to other positions, (n, *S) each."""

    base: str
    applied: Dual
    function: Callable[[Any], Any]
    factor: float = 1.0
    moves: tuple[Callable[[Tensor], Tensor], ...] = ()

    def scaled(self, by: float) -> Mean:
        """The mean of the layer times a constant."""
        return dataclasses.replace(self, factor=by * self.factor)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Mean:
        """The mean at the positions that `move` makes of those so far."""
        return dataclasses.replace(self, moves=(*self.moves, move))

    def sides(self, x: Pair) -> Sides:
        """The means on both sides, x the pair of `base`: E s(z) E s(z') is the dual at k = 0, here with z' of the variance at which it is largest.

        Error: rounding, relative to the root of E s^2 and divided by what share of it the mean is.
        """
        first, second = x.first, x.second
        made = self._at(torch.cat([first.flatten(), second.flatten()])) * self.factor
        found = made[: first.numel()].reshape(first.shape), made[first.numel() :].reshape(second.shape)
        for move in self.moves:
            found = move(found[0]), move(found[1])
        return found

    def _at(self, q: Tensor) -> Tensor:
        """E s(z) for variances q.  Shapes: (n,)."""
        if isinstance(self.applied, PiecewiseLinear):
            return (self.applied.high - self.applied.low) / math.sqrt(2 * math.pi) * q.sqrt()
        squares = self._product(q, q)
        at = int(squares.argmax())
        if symmetry(self.function, False) == 1 or float(squares[at]) <= NOTHING * float(self.applied.variance(q[at : at + 1])):
            return torch.zeros_like(q)
        return self._product(q, q[at].expand_as(q)) / gaussian_expectation(self.function, float(q[at])).value

    def _product(self, one: Tensor, two: Tensor) -> Tensor:
        image = self.applied.image(Arguments(one, two, torch.zeros_like(one), None, None, None, wanted=False))
        assert image.cov is not None
        return image.factor * image.cov


def total(means: Sequence[Mean], bases: Sequence[Pair]) -> Sides:
    """The sum of some means, each with the pair of its base."""
    parts = [mean.sides(base) for mean, base in zip(means, bases, strict=True)]
    return sum((one for one, _ in parts[1:]), start=parts[0][0]), sum((two for _, two in parts[1:]), start=parts[0][1])


def moved(x: Pair, before: Sides | None, after: Sides | None) -> Pair:
    """The pair of the channels less their means `before`, plus the numbers `after`: k - m m' + a a' and q - m^2 + a^2; Theta stays.

    With standard deviations d = sqrt(q - m^2), n - k falls by what is missing from n to d d' + m m', and grows by what is missing from the new n to d d' + a a': 2 r r' sin^2 of half the difference of
    angles, r (cos, sin) = (d, m) and (d, a).  n + k likewise with m' and a' of the other sign.   Source: derived here.
    """
    variances, (first, second), cov = (x.first, x.second), (x.first, x.second), x.cov
    if before is not None:
        first, second = ((q - m.square()).clamp_min(0) for q, m in zip(variances, before, strict=True))
        cov = cov if cov is None else cov - torch.mul(*x.spread(*before))
    deviations = x.spread(first.sqrt(), second.sqrt())
    if after is not None:
        first, second = first + after[0].square(), second + after[1].square()
        cov = cov if cov is None else cov + torch.mul(*x.spread(*after))
    if x.gap is None:
        return dataclasses.replace(x, first=first, second=second, cov=cov, between=None)
    parts = []
    for part, sign in ((x.gap, 1.0), (x.total if x.total is not None else torch.addcmul(-x.gap, *x.deviations, value=2), -1.0)):
        for numbers, grows in ((before, -1.0), (after, 1.0)):
            if numbers is not None:
                one, two = x.spread(numbers[0], sign * numbers[1])
                part = torch.add(part, pairs.excess((deviations[0], one), (deviations[1], two)), alpha=grows)
        parts.append(part.clamp_min(0))
    return dataclasses.replace(x, first=first, second=second, cov=cov, gap=parts[0], total=parts[1], between=None)


def add(a: Pair, b: Pair, mean_a: Sides, mean_b: Sides) -> Pair:
    """The sum of two independent layers that both have means: k_a + k_b + m_a m_b' + m_b m_a'; Theta_a + Theta_b.

    The weights that both are made of act on a channel of one through many channels, with weights of mean 0 between, so that Theta has no part of both in the limit.   Source: derived here.
    """
    both = mean_a[0] + mean_b[0], mean_a[1] + mean_b[1]
    return moved(pairs.add(moved(a, mean_a, None), moved(b, mean_b, None)), None, both)
