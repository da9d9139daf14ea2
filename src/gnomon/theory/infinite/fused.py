"""Layers with weights and the rectifiers that alone read them, as one step: on a CPU their covariances are gone through once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gnomon.theory.infinite.compiled import array, shared
from gnomon.theory.infinite.duals import PiecewiseLinear
from gnomon.theory.infinite.linear import Linear
from gnomon.theory.infinite.pair import Asked, Pair
from gnomon.theory.infinite.recipe import Plan, Step
from gnomon.theory.infinite.rules import Activation, apply
from gnomon.theory.infinite.table import itself, windowed


def joined(plan: Plan) -> Plan:
    """The plan with such steps as one."""
    steps: list[Step] = []
    for step in plan.steps:
        steps.append(step)
        while len(steps) > 1 and steps[-1].sources == (steps[-2].name,) and steps[-2].readers == 1 and steps[-2].name != plan.output:
            last, rule = steps[-2], _both(*steps[-2:])
            if rule is None:
                break
            steps[-2:] = [dataclasses.replace(steps[-1], sources=last.sources, rule=rule, reads=last.reads, folds=True, source_full=last.source_full, nonlinear=True, kinked=True)]
    return dataclasses.replace(plan, steps=steps)


def alone(plan: Plan) -> bool:
    """Whether the plan has no other activations."""
    return all(isinstance(step.rule, Rectified) for step in joined(plan).steps if step.nonlinear)


def _both(one: Step, two: Step) -> Rectified | None:
    """The rule of two steps, the second of which alone reads the first: a layer and its rectifier, two such pairs of layers without windows, or they and a layer that no activation reads."""
    first, second = one.rule, two.rule
    if isinstance(first, Linear) and isinstance(second, Activation) and second.gained is None and two.reads == "same":
        return Rectified(((first, second.dual),)) if isinstance(second.dual, PiecewiseLinear) and second.dual.kinked else None
    if not isinstance(first, Rectified) or first.readout is not None or one.full != two.source_full:
        return None
    if isinstance(second, Linear) and not second.windows and not two.gap and second.weight > 0:
        return dataclasses.replace(first, readout=second)
    return Rectified(first.layers + second.layers) if isinstance(second, Rectified) and not second.layers[0][0].windows else None


@dataclasses.dataclass(frozen=True)
class Rectified:
    """Layers and their activations, of which the first alone may have a window, and a layer behind them: `loops.rectified` where it applies, else one rule after the other.

    Error: rounding; what is missing in a window comes from the differences of directions, so that n - k keeps its digits where it is small.
    """

    layers: tuple[tuple[Linear, PiecewiseLinear], ...]
    readout: Linear | None = None

    def __call__(self, given: list[Pair], asked: Asked) -> Pair:
        """The pair behind the last."""
        x = given[0]
        if not self.covers(x):
            return self._in_turn(x, asked)
        sides = [self._sides(side, q, x, asked) for side, q in enumerate((x.first, x.second))]
        alive = all(float(asked.once(side, "least", lambda one=one: (one[:, :, 0].min(),), None)[0]) > 0 for side, one in enumerate(sides))
        if alive:
            return self._at_once(x, sides[0], sides[1], asked)
        if len(self.layers) > 1 or self.readout is not None or self.layers[0][1].at_zero != 0:
            return self._in_turn(x, asked)
        made = self._at_once(x, sides[0], sides[1], asked)
        if made.ntk is not None:
            one, two = x.spread(*((side[0, :, 0] > 0).to(made.ntk) for side in sides))
            made.ntk.mul_(one).mul_(two)
        return made

    def covers(self, x: Pair) -> bool:
        """Whether the loops are for such a pair."""
        return x.gap is not None and x.gap.device.type == "cpu" and all(linear.weight > 0 for linear, _ in self.layers)

    def _in_turn(self, x: Pair, asked: Asked) -> Pair:
        for depth, (linear, dual) in enumerate(self.layers):
            last = depth == len(self.layers) - 1
            into, rows = asked.into if last and self.readout is None else (None, None), None if depth else asked.rows
            own = asked._replace(gap=asked.gap or not last, into=into, rows=rows, once=_named(asked, f"of {depth}, "))
            single = Rectified(((linear, dual),))
            x = single([x], own) if len(self.layers) > 1 or self.readout is not None else apply(dual, linear([x], own._replace(gap=True, into=(None, None))), own)
        return x if self.readout is None else self.readout([x], asked._replace(rows=None, once=_named(asked, "of the readout, ")))

    def _at_once(self, x: Pair, one: Tensor, two: Tensor, asked: Asked) -> Pair:
        from gnomon.theory.infinite.loops import ANGLE, BEND, rectified  # numba takes a while to be imported

        assert x.gap is not None
        windows, positions, wanted = self.layers[0][0].windows, tuple(x.second.shape[1:]), asked.gap and self.readout is None
        one = one if asked.rows is None else one[:, :, :, asked.rows]
        shape = (len(x.first), len(x.second), *(x.first.shape[1:] if x.full else ()), *positions)
        if windows:
            places = windowed(windows, positions, x.full, x.gap.dtype)
        else:
            places = itself(math.prod(x.first.shape[1:]) if x.full else 1, math.prod(positions or shape[1:]), x.gap.dtype)
        rows = (shape[0] * shape[1], math.prod(one.shape[3:]) if x.full else 1, math.prod(two.shape[3:])) if positions else (shape[0], 1, shape[1])
        start = 0 if asked.rows is None else asked.rows.start * math.prod(two.shape[4:])
        sides = [array(side, (*side.shape[:3], -1)) for side in (one, two if positions else two.movedim(2, 1)[:, None])]
        numbers, flags, readout = self._numbers(x, wanted)
        found = [(x.gap, True, wanted), (x.total, flags[-1][1], False), (x.ntk if x.ntk is not None and x.ntk.ndim else None, flags[-1][3], True)]
        made_shape, intos = (*shape[:2], *one.shape[3:], *(two.shape[3:] if x.full else ())), (asked.into[0], None, asked.into[1])
        made = [_room(x.gap, made_shape, into if there else None) if asks else None for (_, asks, there), into in zip(found, intos, strict=True)]
        none, kind = sides[0][0, :0, :1], sides[0].dtype
        work = (
            tuple(none if part is None else array(part.expand(shape), (rows[0], -1, math.prod(positions or rows[2:]))) for part, _, _ in found),
            tuple(none if part is None else array(part, rows) for part in made),
            *sides,
            places,
            np.array(numbers, kind),
            np.array(flags),
            bool(positions) and not x.full,
            np.array(readout, kind),
            *(tuple(kind.type(number) for number in table[kind.type]) for table in (ANGLE, BEND)),
        )
        shared(lambda first, last: rectified((first, last, start), *work), rows[0] * rows[1], rows[2])
        first, second, factor = one[-1, :, 0], two[-1, :, 0], self.layers[-1][1].mean
        if self.readout is None:
            return Pair(first, second, None if wanted else made[0], made[0] if wanted else None, made[1], made[2], x.full, factor)
        first, second = (readout[0] * part + readout[1] for part in (first, second))
        return Pair(first, second, made[0], None, None, made[2], x.full)

    def _numbers(self, x: Pair, wanted: bool) -> tuple[list[tuple[float, ...]], list[tuple[bool, ...]], tuple[float, ...]]:
        """The numbers and flags of each layer, and the readout's numbers."""
        numbers, flags = list[tuple[float, ...]](), list[tuple[bool, ...]]()
        factor, far, start = x.factor, x.total is not None, 0.0 if x.ntk is None or x.ntk.ndim else float(x.ntk)
        for linear, dual in self.layers:
            each, rate, away = linear.weight * factor / linear.size, linear.ntk_weight / linear.weight, dual.low * dual.high / dual.mean
            rest, beyond = linear.ntk_bias - rate * linear.bias + linear.weight * factor * start, far and away > 0
            numbers.append((each, 2 * linear.bias, rate, rest, dual.bend / dual.mean, away, 0.0, 1.0, 2.0))
            flags.append((far, beyond, wanted or len(flags) + 1 < len(self.layers), x.ntk is not None))
            factor, far, start = dual.mean, beyond, 0.0
        if self.readout is None:
            return numbers, flags, ()
        rate = self.readout.ntk_weight / self.readout.weight
        return numbers, flags, (self.readout.weight * factor, self.readout.bias, rate, self.readout.ntk_bias - rate * self.readout.bias)

    def _sides(self, side: int, q: Tensor, x: Pair, asked: Asked) -> Tensor:
        """What one side alone gives for each layer, in the order of the loops.  Shapes: (n, *S) -> (layers, n, 3 + K, *S)."""
        dim = 1 if x.dimensions else 2  # what is contiguous for some examples
        (made,) = asked.once(side, "directions", lambda: (self._made(q, x.factor).movedim(1, dim).contiguous(),), dim)
        return made.movedim(dim, 1)

    def _made(self, q: Tensor, factor: float) -> Tensor:
        parts = []
        for linear, dual in self.layers:
            parts.append(_side(q, linear, linear.weight * factor / linear.size))
            q, factor = parts[-1][:, 0], dual.mean
        most = max(part.shape[1] for part in parts)
        return torch.stack([torch.cat([part, part.new_zeros(len(part), most - part.shape[1], *part.shape[2:])], 1) for part in parts])


def _side(q: Tensor, linear: Linear, each: float) -> Tensor:
    """Variances, standard deviations, their inverses and directions behind a layer.  Shapes: (n, *S) -> (n, 3 + K, *S)."""
    from gnomon.theory.infinite.loops import BLOCK, DIRECTIONS

    summed, views = q, [(each * q).sqrt_()]
    for axis, window in enumerate(linear.windows):
        summed = window.summed(summed, (1 + axis,))
        views = [part for view in views for part in window.views(view, 1 + axis)]
    variance = each * summed + linear.bias
    deviation = variance.sqrt()
    inverse = torch.where(deviation > 0, deviation.reciprocal(), 0)
    count = 0 if linear.size == 1 and not linear.bias else len(views) + bool(linear.bias)
    made = q.new_zeros(len(q), DIRECTIONS + count + -count % BLOCK, *variance.shape[1:])
    made[:, 0], made[:, 1], made[:, 2] = variance, deviation, inverse
    scale = math.sqrt(0.5) * inverse
    for at, view in enumerate(views[:count]):
        torch.mul(view, scale, out=made[:, DIRECTIONS + at])
    if linear.bias:
        torch.mul(scale, math.sqrt(linear.bias), out=made[:, DIRECTIONS + count - 1])
    return made


def _named(asked: Asked, name: str) -> Callable[..., tuple[Tensor, ...]]:
    """What keeps one layer's own apart from that of others."""
    return lambda side, what, make, dim=0: asked.once(side, name + what, make, dim)


def _room(like: Tensor, shape: tuple[int, ...], into: Tensor | None) -> Tensor:
    """Where a result is written."""
    return into if into is not None and into.is_contiguous() and into.shape == shape else like.new_empty(shape)
