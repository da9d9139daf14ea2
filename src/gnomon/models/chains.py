"""SGD on least squares for many chains at once: no loop over chains, indices drawn in blocks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Generator, Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array
from gnomon.core.sgd import Sgd, svag_weights
from gnomon.models.factor_descent import check_state
from gnomon.numerics.batches import draw_batches, epoch_batches

BLOCK = 64
"""Steps whose indices are drawn at a time; the state at the start of a block is kept, so that the step of a divergence can be found."""
LOST = 1e100
"""A chain with a larger parameter has diverged."""
logger = logging.getLogger(__name__)


class LeastSquaresChains:
    """theta <- theta - lr v,  v <- b v + 1/B sum_batch x_i (x_i . theta - y_i) for many chains, each with its own batches, as `Sgd` says.

    Shapes: inputs (N, d), targets (N,), start (d,) or (chains, d), 0 where it is not given; `theta` (chains, d).   Units: those of targets / inputs.
    A chain that diverges is kept: `diverged` holds the step at which a parameter of it first left the range of numbers (|theta| > 1e100), else 0; it stays there.
    `state()` goes through torch.save, and `resume` puts it back: runs after it are the same to the bit as without a break between runs.
    Cost: a step of 400 chains in 10 dimensions at batch 8 is 5 calls of torch, about 0.1 ms.
    Raises: InvalidInput where shapes do not fit, or `sgd` speaks of another number of examples.
    """

    def __init__(self, inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], sgd: Sgd, *, chains: int, rng: Generator, start: Tensor | None = None) -> None:
        if inputs.ndim != 2 or targets.shape != inputs.shape[:1] or len(inputs) != sgd.examples or chains < 1:
            raise InvalidInput(
                f"Chains take inputs (N, d) and targets (N,) with N = {sgd.examples}, the examples that sgd speaks of, and at least one chain;"
                f" inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)} and {chains} chains came."
            )
        self.sgd, self.rng, self.chains, self.steps = sgd, rng, chains, 0
        # the targets are one more input whose parameter is 1: a residual is then one product, and its gradient another
        self._rows = torch.cat([inputs, -targets[:, None]], 1).contiguous()
        self._state = self._rows.new_zeros(chains, 1, inputs.shape[1] + 1)
        if start is not None:
            self._state[:, 0, :-1] = start.to(self._rows)
        self._state[:, 0, -1] = 1
        self._velocity = torch.zeros_like(self._state)
        self._mean = torch.zeros_like(self._state)
        self._averaged = 0
        self.diverged = torch.zeros(chains, dtype=torch.int64, device=self._rows.device)
        weights = [weight / sgd.batch_size for weight in svag_weights(sgd.svag)[: 1 if sgd.svag == 1 else 2]]
        self._weights = torch.tensor(weights).to(self._rows).repeat_interleave(sgd.batch_size)[:, None] if sgd.svag > 1 else None
        self._drawn = len(weights) * sgd.batch_size
        self._epoch = torch.empty(0, chains, sgd.batch_size, dtype=torch.int64)
        self._gathered = self._rows.new_empty(chains * self._drawn, self._rows.shape[1])
        self._errors = self._rows.new_empty(chains, self._drawn, 1)
        sharpness = float(torch.linalg.matrix_norm(inputs, 2)) ** 2 / len(inputs)
        limit = (2 + 2 * sgd.momentum) / ((1 + 2 * sgd.momentum if sgd.nesterov else 1.0) * (sharpness + (sgd.weight_decay if sgd.decay == "coupled" else 0.0)))
        if sgd.step >= limit:
            logger.warning("lr = %g is above %.4g, the limit of stability on these data: the chains will diverge.", sgd.step, limit)

    @property
    def theta(self) -> Float[Tensor, "chains d"]:
        """The parameters of all chains."""
        return self._state[:, 0, :-1]

    @property
    def mean(self) -> Float[Tensor, "chains d"]:
        """The parameters averaged over all steps made with `averaged`."""
        return self._mean[:, 0, :-1] / max(self._averaged, 1)

    def run(self, steps: int, *, schedule: Callable[[int], float] | None = None, averaged: bool = False, each: Callable[[Float[Tensor, "chains d"]], None] | None = None) -> None:
        """Make so many steps; `schedule` gives the learning rate of step 1, 2, ...; `each` sees the parameters after every step."""
        done = 0
        while done < steps:
            count = min(BLOCK, steps - done)
            self._block(count, schedule, averaged, each)
            done += count

    def state(self) -> dict[str, Tensor]:
        """A copy of all that chains that were cut need to go on: parameters, velocities, averages, numbers of steps, the state of chance, what is left of an epoch."""
        parts = {"theta": self._state, "velocity": self._velocity, "mean": self._mean, "diverged": self.diverged, "counts": torch.tensor([self.steps, self._averaged])}
        return {**{key: part.clone() for key, part in parts.items()}, "rng": self.rng.get_state(), "epoch": self._epoch.clone()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was taken.  Raises: InvalidInput where it is that of other chains."""
        check_state({**state, "epoch": state.get("epoch", self._epoch)[:0]}, {**self.state(), "epoch": self._epoch[:0]})
        self._epoch = state["epoch"].clone()
        self._state, self._velocity, self._mean = (state[key].to(self._state, copy=True) for key in ("theta", "velocity", "mean"))
        self.diverged, (self.steps, self._averaged) = state["diverged"].to(self.diverged, copy=True), state["counts"].tolist()
        self.rng = Generator()
        self.rng.set_state(state["rng"])

    def second_moment(self, steps: int, *, about: Float[Tensor, "d"], every: int = 4) -> Float[Tensor, "d d"]:
        """Make so many steps, and average (theta - about)(theta - about)' over every `every`-th of them and over the chains.  Shapes: (d,) -> (d, d)."""
        total, seen, made = torch.zeros_like(torch.outer(about, about)).to(self._rows), 0, 0

        def see(theta: Float[Tensor, "chains d"]) -> None:
            nonlocal seen, made
            made += 1
            if made % every == 0:
                away = theta - about
                total.addmm_(away.T, away)
                seen += len(theta)

        self.run(steps, each=see)
        return total / seen

    def _block(self, count: int, schedule: Callable[[int], float] | None, averaged: bool, each: Callable[[Tensor], None] | None) -> None:
        batches = [self._batches(count) for _ in range(1 if self._weights is None else 2)]
        chosen = torch.cat(batches, -1).view(count, -1).to(self._rows.device)
        before = self._state.clone(), self._velocity.clone()
        rates = [self.sgd.step if schedule is None else schedule(self.steps + k + 1) for k in range(count)]
        for index, rate in zip(chosen.unbind(), rates, strict=True):
            self._step(index, rate)
            if averaged:
                self._mean += self._state
            if each is not None:
                each(self.theta)
        self._averaged += count if averaged else 0
        lost = ~(self._state.abs().amax((1, 2)) < LOST) & (self.diverged == 0)
        if bool(lost.any()):
            self._find(lost, before, chosen, rates)
        self.steps += count

    def _batches(self, count: int) -> Int64[Tensor, "count chains B"]:
        """The batches of so many steps; an epoch that is not used up goes on at the next call."""
        if self.sgd.sampling != "epochs":
            return draw_batches(self.sgd.examples, self.sgd.batch_size, count, self.chains, sampling=self.sgd.sampling, rng=self.rng)
        while len(self._epoch) < count:
            self._epoch = torch.cat([self._epoch, epoch_batches(self.sgd.examples, self.sgd.batch_size, self.chains, rng=self.rng)])
        here, self._epoch = self._epoch[:count], self._epoch[count:]
        return here

    def _step(self, index: Int64[Tensor, "drawn"], rate: float) -> None:
        state, sgd = self._state, self.sgd
        torch.index_select(self._rows, 0, index, out=self._gathered)
        rows = self._gathered.view(self.chains, self._drawn, -1)
        torch.bmm(rows, state.mT, out=self._errors)
        if self._weights is not None:
            self._errors.mul_(self._weights)
        scale = 1.0 if self._weights is not None else 1 / sgd.batch_size
        decay = sgd.weight_decay
        if sgd.momentum == 0:
            if decay:
                state.mul_(1 - rate * decay)
            state.baddbmm_(self._errors.mT, rows, alpha=-rate * scale)
        else:
            gradient = torch.bmm(self._errors.mT, rows).mul_(scale)
            if decay and sgd.decay == "coupled":
                gradient.add_(state, alpha=decay)
            if decay and sgd.decay == "decoupled":
                state.mul_(1 - rate * decay)
            self._velocity.mul_(sgd.momentum).add_(gradient)
            state.add_(gradient.add_(self._velocity, alpha=sgd.momentum) if sgd.nesterov else self._velocity, alpha=-rate)
        state[:, 0, -1] = 1

    def _find(self, lost: Tensor, before: tuple[Tensor, Tensor], chosen: Int64[Tensor, "steps drawn"], rates: list[float]) -> None:
        """Make the block once more, to name the step at which each lost chain was lost."""
        after = self._state, self._velocity
        self._state, self._velocity = before
        for k, (index, rate) in enumerate(zip(chosen.unbind(), rates, strict=True), 1):
            self._step(index, rate)
            gone = lost & (self.diverged == 0) & ~(self._state.abs().amax((1, 2)) < LOST)
            self.diverged[gone] = self.steps + k
        self._state, self._velocity = after


def stationary_moment(inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], sgd: Sgd, *, chains: int, relaxations: float, rng: Generator) -> Float[Tensor, "d d"]:
    """The mean of (theta - m)(theta - m)' about the minimum m over chains and steps, once they have settled.

    Chains begin at m and run for `relaxations` times 1 / (lr lambda_min) steps, in which the slowest direction forgets its start twice that many times over,
    and are then averaged over as many.

    Shapes: (N, d), (N,) -> (d, d).   Units: parameter^2.   Cost: 2 relaxations / (lr lambda_min) steps.   Raises: as `LeastSquaresChains`.
    """
    minimum = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]
    slowest = float(torch.linalg.eigvalsh(inputs.T @ inputs)[0]) / len(inputs)
    steps = math.ceil(relaxations / (sgd.step * slowest))
    made = LeastSquaresChains(inputs, targets, sgd, chains=chains, rng=rng, start=minimum)
    made.run(steps)
    # an epoch's steps differ: none is left out
    return made.second_moment(steps, about=minimum, every=1 if sgd.sampling == "epochs" else 2)


def sharpest_variances(
    inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], sgd: Sgd, lrs: Sequence[float], *, chains: int, relaxations: float, rng: Generator
) -> Float64[Array, "lrs"]:
    """The variance along the sharpest direction u where each learning rate settles, over lr / (2 B) u' S u / lambda_max, S the covariance of gradients at the minimum.

    Shapes: (N, d), (N,) -> (lrs,).   Units: none.   Cost, Raises: as `stationary_moment`, a learning rate.
    """
    curvatures, directions = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    top, residuals = directions[:, -1], inputs @ torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0] - targets
    unit = float((residuals * (inputs @ top)).square().mean() / curvatures[-1]) / (2 * sgd.batch_size)
    settled = [stationary_moment(inputs, targets, sgd.replace(lr=lr), chains=chains, relaxations=relaxations, rng=rng) for lr in lrs]
    return np.array([float(top @ c @ top) / (lr * unit) for c, lr in zip(settled, lrs, strict=True)])


def stationary_losses(
    inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], rules: Sequence[Sgd], *, chains: int, relaxations: float, rng: Generator
) -> Float64[Array, "rules"]:
    """The mean excess loss tr(H C) / 2 where each rule settles.   Shapes: (N, d), (N,) -> (rules,).   Units: loss.   Cost, Raises: as `stationary_moment`, a rule."""
    hessian = inputs.T @ inputs / len(inputs)
    settled = [stationary_moment(inputs, targets, rule, chains=chains, relaxations=relaxations, rng=rng) for rule in rules]
    return np.array([float((hessian * c).sum()) / 2 for c in settled])


def falling_steps(
    inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], sgd: Sgd, schedule: Callable[[int], float], *, steps: int, averaged: bool, chains: int, rng: Generator
) -> float:
    """Excess loss of the last iterate, or of the average of all, after so many steps whose learning rates fall, from the minimum on, averaged over chains.

    Shapes: (N, d), (N,) -> ().   Units: loss.   Cost: `steps` steps.   Raises: as `LeastSquaresChains`.
    """
    minimum = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]
    made = LeastSquaresChains(inputs, targets, sgd, chains=chains, rng=rng, start=minimum)
    made.run(steps, schedule=schedule, averaged=averaged)
    away = (made.mean if averaged else made.theta) - minimum
    return float((away @ inputs.T).square().sum(1).mean()) / len(inputs) / 2


def losses_on_the_way(
    inputs: Float[Tensor, "N d"], targets: Float[Tensor, "N"], sgd: Sgd, *, away: Tensor, steps: Sequence[int], chains: int, rng: Generator
) -> Float64[Array, "steps"]:
    """The mean excess loss over chains after each of these numbers of steps, from `away` beside the minimum.

    Shapes: (N, d), (N,), away () or (d,) -> (steps,).   Units: loss.   Cost: the last number of steps.   Raises: as `LeastSquaresChains`.
    """
    minimum = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]
    made, losses = LeastSquaresChains(inputs, targets, sgd, chains=chains, rng=rng, start=minimum + away), []
    for step in steps:
        made.run(step - made.steps)
        losses.append(float(((made.theta - minimum) @ inputs.T).square().sum(1).mean()) / len(inputs) / 2)
    return np.array(losses)
