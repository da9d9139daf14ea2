"""Gradient descent on the factors of matrices and tensors for many starts at once; a start that diverges is kept, with its step, and a run that was cut goes on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from gnomon.core.errors import InvalidInput

Factors = Sequence[Tensor]
BLOCK = 64
"""Steps after which starts are asked whether they diverged; the factors at the start of a block are kept, so that the step can be found."""
logger = logging.getLogger(__name__)


class FactorDescent:
    """w <- w - lr dL/dw on all factors of a matrix or tensor, for many starts at once.

    Shapes: factors (starts, ...), the first dimension that of the starts; `gradients` maps the factors to the loss's gradients in them, one start apart from the other.
    A start that diverges is kept: `diverged` holds the step at which its factors or their gradient first left the range of numbers, else 0; its factors stay what
    they were before that step.
    `state()` goes through torch.save, and `resume` puts it back: the steps after it are the same to the bit as without a break.
    Cost: `gradients` once a step, and once every 64.
    Raises: InvalidInput for a step size that is not positive, factors of unequal numbers of starts, and such that are not finite or have a gradient that is not.
    """

    def __init__(self, factors: Factors, gradients: Callable[[Factors], Sequence[Tensor]], *, lr: float) -> None:
        if not lr > 0:
            raise InvalidInput(f"A descent needs lr above 0, not {lr:g}.")
        starts = {factor.shape[:1] for factor in factors}
        if len(starts) != 1 or () in starts or not all(bool(torch.isfinite(factor).all()) for factor in factors):
            raise InvalidInput(f"A descent takes finite factors whose first dimension runs over the starts; shapes {[tuple(factor.shape) for factor in factors]} came.")
        self.factors = [factor.detach().clone() for factor in factors]
        self.gradients, self.lr, self.steps = gradients, lr, 0
        self.diverged = torch.zeros(len(factors[0]), dtype=torch.int64, device=factors[0].device)
        if bool(self._lost().any()):
            raise InvalidInput(f"The gradient at the start is not finite for start {int(self._lost().nonzero()[0])}: begin with smaller factors.")

    def run(self, steps: int) -> None:
        """Make so many steps.  Raises: InvalidInput for fewer than none."""
        if steps < 0:
            raise InvalidInput(f"A descent cannot make {steps} steps: it goes on, from step {self.steps}.")
        for first in range(0, steps, BLOCK):
            count, before = min(BLOCK, steps - first), [factor.clone() for factor in self.factors]
            kept = self.diverged == 0
            for _ in range(count):
                self._step(kept)
            if bool((self._lost() & kept).any()):
                self.factors = before
                self._find(count)
            self.steps += count

    def state(self) -> dict[str, Tensor]:
        """A copy of all that a run that was cut needs to go on: the factors, the number of steps, and the steps of those that diverged."""
        named = {f"factor.{place}": factor.clone() for place, factor in enumerate(self.factors)}
        return {**named, "steps": torch.tensor(self.steps), "diverged": self.diverged.clone()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was taken.  Raises: InvalidInput where it is that of other factors."""
        check_state(state, self.state())
        self.factors = [state[f"factor.{place}"].to(factor, copy=True) for place, factor in enumerate(self.factors)]
        self.steps, self.diverged = int(state["steps"]), state["diverged"].to(self.diverged, copy=True)

    def _step(self, kept: Bool[Tensor, "starts"]) -> None:
        moves, some = self.gradients(self.factors), not bool(kept.all())
        for factor, move in zip(self.factors, moves, strict=True):
            factor.sub_(torch.where(kept.reshape(-1, *[1] * (factor.ndim - 1)), move, 0.0) if some else move, alpha=self.lr)

    def _lost(self) -> Bool[Tensor, "starts"]:
        seen = [*self.factors, *self.gradients(self.factors)]
        return ~torch.stack([torch.isfinite(part).flatten(1).all(1) for part in seen]).all(0)

    def _find(self, count: int) -> None:
        """Make the block once more, and stop each start before the step at which it is lost."""
        found = torch.zeros_like(self.diverged)
        for step in range(self.steps + 1, self.steps + count + 1):
            before = [factor.clone() for factor in self.factors]
            self._step(self.diverged == 0)
            lost = self._lost() & (self.diverged == 0)
            if bool(lost.any()):
                for factor, old in zip(self.factors, before, strict=True):
                    factor[lost] = old[lost]
                found[lost] = self.diverged[lost] = step
        first = int(found[found > 0].min())
        logger.warning(
            "%d of %d starts diverged, the first at step %d: they stay where they were before it. lr = %g is above what is stable there.",
            int((found > 0).sum()),
            len(found),
            first,
            self.lr,
        )

    def recorded(self, records: Sequence[int]) -> Iterator[Sequence[Tensor]]:
        """The factors, as they stand, after each of these numbers of steps.   Raises: InvalidInput for no records, or such that fall or are negative."""
        check_records(records)
        for record in records:
            self.run(record - self.steps)
            yield self.factors


def check_state(state: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
    """Raises: InvalidInput where a state that was kept is not of the shapes of one's own."""
    theirs, own = ({key: tuple(part.shape) for key, part in each.items()} for each in (state, mine))
    if theirs != own:
        raise InvalidInput(f"The state is that of another simulation: its shapes are {theirs}, not {own}.")


@dataclass(frozen=True, eq=False)
class SquaredSlope:
    """The gradient of |observed * (W - M)|^2 / 2 in W: observed * (W - M).   Shapes: those of the target, or (starts, those) to itself."""

    target: Tensor
    observed: Tensor | float = 1.0

    def __call__(self, made: Tensor) -> Tensor:
        """observed * (W - M)."""
        return self.observed * (made - self.target)


def squared_slope(target: Tensor, observed: Tensor | float = 1.0) -> SquaredSlope:
    """The gradient of |observed * (W - M)|^2 / 2, `observed` being 1 where an entry counts and 0 elsewhere (c where it was seen c times): observed * (W - M).

    Raises: InvalidInput for entries that are not finite, or where the two shapes differ.
    """
    seen = torch.as_tensor(observed)
    if not bool(torch.isfinite(target).all() and torch.isfinite(seen).all()) or seen.ndim > target.ndim or target.shape[target.ndim - seen.ndim :] != seen.shape:
        raise InvalidInput(
            f"What is completed is finite (unseen entries too: write 0 there) and has the shape of what is seen; shapes {tuple(target.shape)} and {tuple(seen.shape)} came,"
            f" with {int((~torch.isfinite(target)).sum())} and {int((~torch.isfinite(seen)).sum())} entries that are not finite."
        )
    return SquaredSlope(target if target.is_floating_point() else target.double(), observed)


def check_slope(slope: Callable[[Tensor], Tensor], made: Tensor) -> None:
    """Raises: InvalidInput where the slope of a matrix or tensor has not its shape."""
    try:
        found = tuple(slope(made).shape)
    except RuntimeError as error:
        raise InvalidInput(f"The slope cannot be taken of what the factors make, {tuple(made.shape)} (starts first): {error}") from error
    if found != made.shape:
        raise InvalidInput(f"The slope of what the factors make, {tuple(made.shape)} (starts first), has its shape, not {found}: is the target of that shape?")


def warn_above(slope: Callable[[Tensor], Tensor], factors: int, *, lr: float, components: int = 1) -> None:
    """Say a step above 2 / (N R^(2/N - 1) |m|^(2 - 2/N)), at which no minimum of loss 0 is stable, m being the largest entry seen, R the number of components.

    The sharpness is at least the squared gradient of one entry.  Let it be the sum over R of products p_r of N numbers; its squared gradient is at least
    sum_r N |p_r|^(2 - 2/N) by the means' inequality, and least where the p_r are equal.  A matrix that is seen whole has its largest singular value for m.
    """
    if not isinstance(slope, SquaredSlope):
        return
    power, seen = 2 - 2 / factors, torch.as_tensor(slope.observed)
    size = float((seen * slope.target.abs() ** power).max())
    if components == 1 and slope.target.ndim == 2 and bool((seen == 1).all()):
        size = float(torch.linalg.matrix_norm(slope.target, 2)) ** power
    limit = 2 / max(factors * components ** (1 - power) * size, 1e-300)
    if lr > limit:
        logger.warning("lr = %g is above %.4g, beyond which no minimum of this loss is stable: the descent will not settle.", lr, limit)


def check_records(records: Sequence[int]) -> None:
    """Raises: InvalidInput for no records, or such that fall or are negative."""
    if not records or records[0] < 0 or any(int(record) != record for record in records) or any(b < a for a, b in itertools.pairwise(records)):
        raise InvalidInput(f"A descent needs records, whole numbers of steps that do not fall, not {list(records)}.")


def moments(steps: int, times: int) -> list[int]:
    """The numbers of steps one before, at and one after `times` moments evenly over `steps`: records from which velocities are taken.

    Raises: InvalidInput for fewer than three steps a moment.
    """
    if times < 1 or steps < 3 * times:
        raise InvalidInput(f"Velocities at {times} moments take at least {3 * times} steps, not {steps}.")
    return [steps * (k + 1) // times + shift for k in range(times) for shift in (-1, 0, 1)]


def fitted_exponent(norms: Sequence[Tensor], pulls: Sequence[Tensor], *, lr: float) -> float:
    """The slope of log(velocity / pull) against log norm, over all components at all moments; those that are pulled less than a tenth of the most pulled are left out.

    Velocities are central differences of the norms over two steps.   Shapes: norms at the records of `moments`, pulls at the middle ones, each (starts, components).
    """
    logs = []
    for before, here, after, pull in zip(norms[::3], norms[1::3], norms[2::3], pulls, strict=True):
        velocity = (after - before) / (2 * lr)
        kept = (pull.abs() > 0.1 * pull.abs().max()) & (velocity * pull > 0)
        logs.append(torch.stack([here[kept], (velocity / pull)[kept]]).log())
    x, y = torch.cat(logs, 1)
    return float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())
