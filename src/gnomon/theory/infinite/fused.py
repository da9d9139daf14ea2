"""A layer with weights and the rectifier that alone reads it, as one step: on a CPU their covariances are gone through once."""

from __future__ import annotations

import dataclasses
import math

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
    """The plan with every such pair of steps as one."""
    steps: list[Step] = []
    for step in plan.steps:
        last = steps[-1] if steps else None
        rule = _both(last, step) if last is not None and step.sources == (last.name,) and last.readers == 1 and last.name != plan.output else None
        if last is not None and rule is not None:
            steps[-1] = dataclasses.replace(step, sources=last.sources, rule=rule, reads=last.reads, folds=True, source_full=last.source_full)
        else:
            steps.append(step)
    return dataclasses.replace(plan, steps=steps)


def alone(plan: Plan) -> bool:
    """Whether the plan has no other activations."""
    return all(isinstance(step.rule, Rectified) for step in joined(plan).steps if step.nonlinear)


def _both(one: Step, two: Step) -> Rectified | None:
    """The rule of two steps, the second of which alone reads the first."""
    first, second = one.rule, two.rule
    if not isinstance(first, Linear) or not isinstance(second, Activation) or second.gained is not None or two.reads != "same":
        return None
    return Rectified(first, second.dual) if isinstance(second.dual, PiecewiseLinear) and second.dual.kinked else None


@dataclasses.dataclass(frozen=True)
class Rectified:
    """The two rules as one: `loops.rectified` where it applies, else one after the other.

    Error: rounding; what is missing in a window comes from the differences of directions, so that n - k keeps its digits where it is small.
    """

    linear: Linear
    dual: PiecewiseLinear

    def __call__(self, given: list[Pair], asked: Asked) -> Pair:
        """The pair behind the activation."""
        x = given[0]
        if not self.covers(x):
            return self._in_turn(x, asked)
        one, two = (self._side(side, q, x, asked) for side, q in enumerate((x.first, x.second)))
        alive = all(float(asked.once(side, "least", lambda q=q: (q.min(),), None)[0]) > 0 for side, q in enumerate((one[:, 0], two[:, 0])))
        if not alive and self.dual.at_zero != 0:
            return self._in_turn(x, asked)
        made = self._at_once(x, one, two, asked)
        if alive or made.ntk is None:
            return made
        dead = x.spread((one[:, 0] > 0).to(made.ntk), (two[:, 0] > 0).to(made.ntk))
        return dataclasses.replace(made, ntk=made.ntk.mul_(dead[0]).mul_(dead[1]))

    def covers(self, x: Pair) -> bool:
        """Whether the loops are for such a pair."""
        return x.gap is not None and x.gap.device.type == "cpu" and self.linear.weight > 0

    def _in_turn(self, x: Pair, asked: Asked) -> Pair:
        return apply(self.dual, self.linear([x], asked._replace(gap=True, into=(None, None))), asked)

    def _at_once(self, x: Pair, one: Tensor, two: Tensor, asked: Asked) -> Pair:
        from gnomon.theory.infinite.loops import ANGLE, BEND, rectified  # numba takes a while to be imported

        assert x.gap is not None
        linear, dual, positions = self.linear, self.dual, tuple(x.second.shape[1:])
        one = one if asked.rows is None else one[:, :, asked.rows]
        ntk = x.ntk if x.ntk is not None and x.ntk.ndim else None
        shape = (len(x.first), len(x.second), *(x.first.shape[1:] if x.full else ()), *positions)
        read = [None if part is None else part.expand(shape) for part in (x.gap, x.total, ntk)]
        if linear.windows:
            places = windowed(linear.windows, positions, x.full, x.gap.dtype)
        else:
            places = itself(math.prod(x.first.shape[1:]) if x.full else 1, math.prod(positions or shape[1:]), x.gap.dtype)
        start = 0 if asked.rows is None else asked.rows.start * math.prod(two.shape[3:])
        made_shape = (len(x.first), len(x.second), *one.shape[2:], *(two.shape[2:] if x.full else ()))
        rows = (shape[0], 1, shape[1]) if not positions else (shape[0] * shape[1], math.prod(one.shape[2:]) if x.full else 1, math.prod(two.shape[2:]))
        mean, bend = (dual.low**2 + dual.high**2) / 2, (dual.high - dual.low) ** 2 / (2 * math.pi)
        away, each, rate = dual.low * dual.high / mean, linear.weight * x.factor / linear.size, linear.ntk_weight / linear.weight
        rest = linear.ntk_bias - rate * linear.bias + (0.0 if x.ntk is None or ntk is not None else linear.weight * x.factor * float(x.ntk))
        flags = bool(positions) and not x.full, x.total is not None, x.total is not None and away > 0, x.ntk is not None, asked.gap
        made = [_room(x.gap, made_shape, into) if asks else None for asks, into in ((True, asked.into[0] if asked.gap else None), (flags[2], None), (flags[3], asked.into[1]))]
        sides = [array(side, (*side.shape[:2], -1)) for side in (one, two if positions else two.T[None])]
        kind = sides[0].dtype.type
        work = (
            tuple(array(part, (rows[0], -1, math.prod(positions or rows[2:]))) if part is not None else sides[0][:0] for part in read),
            tuple(array(part, rows) if part is not None else sides[0][:0] for part in made),
            *sides,
            places,
            tuple(kind(number) for number in (each, 2 * linear.bias, rate, rest, bend / mean, away, 0, 1, 2)),
            flags,
            *(tuple(kind(number) for number in numbers[kind]) for numbers in (ANGLE, BEND)),
        )
        shared(lambda low, high: rectified((low, high, start), *work), rows[0] * rows[1], rows[2])
        return Pair(one[:, 0], two[:, 0], None if asked.gap else made[0], made[0] if asked.gap else None, made[1], made[2], x.full, mean)

    def _side(self, side: int, q: Tensor, x: Pair, asked: Asked) -> Tensor:
        """What one side alone gives, in the order of the loops.  Shapes: (n, *S) -> (n, 3 + K, *S)."""
        dim = 0 if x.dimensions else 1  # what is contiguous for some examples
        (made,) = asked.once(side, "directions", lambda: (self._made(q, self.linear.weight * x.factor / self.linear.size).movedim(0, dim).contiguous(),), dim)
        return made.movedim(dim, 0)

    def _made(self, q: Tensor, each: float) -> Tensor:
        from gnomon.theory.infinite.loops import BLOCK, DIRECTIONS

        linear, summed, views = self.linear, q, [(each * q).sqrt_()]
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


def _room(like: Tensor, shape: tuple[int, ...], into: Tensor | None) -> Tensor:
    """Where a result is written."""
    return into if into is not None and into.is_contiguous() and into.shape == shape else like.new_empty(shape)
