"""What activations do to pairs of examples: alone, as gates, and behind a normalisation whose gain is trained; and which branches are made of the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnomon.theory.infinite import means
from gnomon.theory.infinite import pair as pairs
from gnomon.theory.infinite.duals import Arguments, Dual, PiecewiseLinear
from gnomon.theory.infinite.normalisation import equal_positions
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recipe import Known, Reads, Rule
from gnomon.theory.infinite.series import Series

PART = ", part "
SOFTMAX = (
    "attention other than linear, (Q K^T) V with queries, keys and values of layers with weights of their own: softmax and other functions of the scores have no kernel in closed form "
    "(Hron et al. 2020)"
)


def apply(applied: Dual, x: Pair, asked: Asked) -> Pair:
    """An activation: k -> E s(z) s(z'), Theta -> E s'(z) s'(z') Theta."""
    first, second = x.spread(x.first, x.second)
    image = applied.image(Arguments(first, second, x.cov, x.gap, x.total, x.ntk, asked.gap, asked.once, asked.into))
    first, second = x.first, x.second
    if image.factor == 1:
        (first,) = asked.once(0, "variance", lambda: (applied.variance(x.first),))
        (second,) = asked.once(1, "variance", lambda: (applied.variance(x.second),))
    return Pair(first, second, image.cov, image.gap, image.total, image.tangent, x.full, image.factor, None if first is not x.first else x.between)


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation behind one layer: `apply`, or what stands in its place behind a trained gain."""

    dual: Dual
    gained: Callable[[Pair, Asked], Pair] | None = None

    def __call__(self, given: list[Pair], asked: Asked) -> Pair:
        """The pair behind it."""
        return apply(self.dual, given[0], asked) if self.gained is None else self.gained(given[0], asked)


@dataclasses.dataclass(frozen=True)
class Slope:
    """z s'(z): what an output moves by with the logarithm of the gain before an activation s."""

    function: Callable[[Any], Any]

    def __call__(self, value: Tensor) -> Tensor:
        """Its value."""
        with torch.enable_grad():
            at = value.detach().requires_grad_()
            slope: Tensor = torch.autograd.grad(self.function(at).sum(), at)[0]
        return value.detach() * slope


def gained(applied: Dual, function: Callable[[Any], Any], tolerance: float, *, placed: bool = False) -> Callable[[Pair, Asked], Pair]:
    """An activation of u with a trained gain at 1 of its own on every u_i, whose part of Theta is k: Theta -> E s' s' (Theta - k) + E u s'(u) u' s'(u').

    The gain's part is no mean over channels: it is u_i u_i' of the very u_i that s' reads, so that it does not take s' s' as a factor; with a gain of each position's own (`placed`)
    it is there at equal positions alone.   Source: derived here.
    """
    slope = Series(Slope(function), "the slope of an activation behind a trained gain", tolerance)

    def rule(x: Pair, asked: Asked) -> Pair:
        if x.ntk is None:
            return apply(applied, x, asked)
        x = x.resolved()
        own, here = x.covariance, equal_positions(x) if placed and x.full else 1.0
        assert x.ntk is not None
        made = apply(applied, dataclasses.replace(x, ntk=x.ntk - own * here), asked._replace(into=(None, None))).resolved()
        if isinstance(applied, PiecewiseLinear):  # z s'(z) = s(z)
            more = made.covariance
        else:
            first, second = x.spread(x.first, x.second)
            kept = asked.once
            found = slope.image(Arguments(first, second, own, None, None, None, False, lambda side, what, make, dim=0: kept(side, f"gain's {what}", make, dim)))
            assert found.cov is not None
            more = found.cov
        assert made.ntk is not None
        return dataclasses.replace(made, ntk=made.ntk + more * here)

    return rule


def gate(applied: Activation) -> Callable[[list[Pair], Asked], Pair]:
    """a s(b), a and b independent and both of the given pair."""

    def rule(given: list[Pair], asked: Asked) -> Pair:
        return pairs.multiply(given[0], applied(given[:1], asked._replace(gap=given[0].gap is not None, into=(None, None))).resolved())

    return rule


def shared(knowns: list[Known]) -> set[str]:
    """What two branches both are made of: the same layer, the same part of it, or a part and the whole."""
    one, two = (known.roots for known in knowns)
    return {
        a
        for a in one
        for b in two
        if a == b or (a.partition(PART)[0] == b.partition(PART)[0] and (PART not in a or PART not in b or a.partition(" of ")[2] != b.partition(" of ")[2]))
    }


def summed(names: tuple[str, ...], knowns: list[Known], *, minus: bool) -> tuple[tuple[str, ...], Rule, Known, Reads] | str:
    """The layers that a sum of two independent branches reads, its rule, what is known of it and which positions it reads; or why it is not covered."""
    one, two = knowns
    parts = one.means, tuple(part.scaled(-1.0 if minus else 1.0) for part in two.means)
    unknown = [name for name, known in zip(names, knowns, strict=True) if not (known.centred or known.means)]
    known = Known(one.gaussian and two.gaussian, one.centred and two.centred, one.roots | two.roots, one.last, one.positions)
    known = dataclasses.replace(known, gain="mixed" if one.gain or two.gain else "", means=() if unknown else parts[0] + parts[1])
    if one.centred or two.centred:
        return names, lambda given, _: pairs.add(*given), known, "same"
    if unknown:
        return f"neither branch ends in a layer with weights, so that the product of their means enters, and that of {unknown[0]!r} is not known here"
    first = len(parts[0])

    def rule(given: list[Pair], _: Asked) -> Pair:
        a, b, *bases = given
        return means.add(a, b, means.total(parts[0], bases[:first]), means.total(parts[1], bases[first:]))

    return (*names, *(part.base for part in known.means)), rule, known, known.gathers


def selected(x: Pair, chosen: list[slice], gone: list[int]) -> Pair:
    """Some positions, without the dimensions that are `gone`, of which one is left."""
    x = x.resolved()
    index = (slice(None), slice(None), *chosen, *(chosen if x.full else ()))
    one, two = x.first[(slice(None), *chosen)], x.second[(slice(None), *chosen)]
    return pairs.squeezed(Pair(one, two, *x.each(lambda part: part[index]), x.full), gone)
