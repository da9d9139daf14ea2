"""The noise scale weighed by the curvature, and from the norms of gradients of two batch sizes, also while a network trains."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.subject import Subject
from gnomon.instruments.dynamics import MCCANDLISH_2018, groups_of, noise_reading, summed_gradient
from gnomon.numerics import dense
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.noise import NoiseRatio, Spread, noise_ratio
from gnomon.numerics.operators import PRODUCT, Hessian

FEWEST_DRAWS = 8
"""Fewest pairs of batches whose spread says anything about a ratio."""


def exact_hessian_noise_scale(subject: Subject) -> float:
    """tr(H Sigma) / G' H G from every example's gradient and the Hessian as a matrix.   Cost: as many gradients as examples, P Hessian products."""
    rows = torch.stack([summed_gradient(subject, subject.train.select(torch.tensor([i]))).double().cpu() for i in range(len(subject.train))])
    hessian, mean = dense.hessian(subject).double().cpu(), rows.mean(0)
    rest = rows - mean
    return float(torch.einsum("ip,pq,iq->", rest, hessian, rest) / (len(rows) - 1) / (mean @ hessian @ mean))


def _hessian_cost(subject: Subject, groups: int) -> Cost:
    held = 2 * (groups + 1) * subject.dimension * torch.empty(0, dtype=subject.dtype).element_size()
    return Cost(gradients=1 + (groups + 1) * PRODUCT, bytes=held + operator_bytes(subject))


@instrument(topic="dynamics", truth=exact_hessian_noise_scale, knob="groups", smallest=8, largest=32, cost=_hessian_cost)
def hessian_noise_scale(subject: Subject, *, rng: Generator, groups: int = 16) -> Reading:
    """Noise scale weighed by the curvature: the batch size at which noise takes as much from a step's gain as the gradient's own curvature.

    B_noise = tr(H Sigma) / (G^T H G), with G and H gradient and Hessian of the mean loss and Sigma the covariance (divisor N - 1) of per-example gradients: the
    best learning rate at batch size B is lr_max / (1 + B_noise / B).  As `gradient_noise_scale` by groups, with r^T H s in place of r . s.

    Shapes: value ().   Units: examples.
    Error: 95 % interval by leaving out one group at a time, from gradient, noise and Hessian alike, and Fieller's theorem; over all examples that of dealing
    them to groups.  Open above where G^T H G is lost in noise.   `details` has tr(H Sigma) and G^T H G.
    Assumes: the examples are a random sample of their population; eval mode.   Cost: a Hessian product a group, and a gradient.
    Raises: OutOfScope where the loss does not curve upwards along its noise or its gradient: no step length is then the best; for fewer than 8 examples;
    InvalidInput for fewer than 4 groups.
    Source: McCandlish et al. 2018, section 2.2 (their B_noise) and appendix A.1.
    """
    n, population, count = len(subject.train), subject.train.population, groups_of(subject, groups)
    order = chance.permutation(n, rng=rng)
    parts = [subject.train.select(order[k::count]) for k in range(count)]
    sums = torch.stack([summed_gradient(subject, part) for part in parts])
    sizes = np.array([len(part) for part in parts], dtype=np.float64)
    mean = sums.double().sum(0) / n
    vectors = torch.cat([sums.double() - torch.as_tensor(sizes, device=sums.device)[:, None] * mean, mean[None]]).to(sums.dtype)
    if n == population:
        spread, without = _weighed(sizes, _table(subject, vectors)), []
    else:
        tables = [(len(part) / n, _table(dataclasses.replace(subject, train=part, _shared={}), vectors)) for part in parts]
        whole = np.sum([share * table for share, table in tables], axis=0)
        spread = _weighed(sizes, whole)
        without = [_weighed(sizes, (whole - share * table) / (1 - share)) for share, table in tables]
    estimate = noise_ratio(spread, population, without=without)
    if not estimate.trace > 0:
        raise OutOfScope(f"the loss does not curve upwards along its noise: tr(H Sigma) is {estimate.trace:.3g}, so no batch size balances the two")
    if n == population and not estimate.square > 0:
        raise OutOfScope(f"the loss does not curve upwards along its gradient: G'HG is {estimate.square:.3g}, so that no step length is the best")
    reading = noise_reading("hessian_noise_scale", subject, estimate)
    return dataclasses.replace(
        reading, details={"noise_curvature": estimate.trace, "gradient_curvature": estimate.square, "groups": count, "examples": n, "population": population}
    )


def _table(subject: Subject, vectors: Tensor) -> Array:
    """r^T H s for all pairs of vectors.   Cost: as many products."""
    products = Hessian(subject).block(vectors.T)
    return (vectors.double() @ products.double()).cpu().numpy()


def _weighed(sizes: Array, table: Array) -> Spread:
    """The sums in the inner product of the table; its last row is the mean's."""
    inner = table[:-1, :-1]
    pairs = (inner / np.sqrt(np.outer(sizes, sizes)))[~np.eye(len(sizes), dtype=bool)]
    return Spread(sizes, np.diagonal(inner).copy(), table[:-1, -1].copy(), float(table[-1, -1]), float(pairs.var()))


def noise_scale_of_norms(small_squares: ArrayLike, big_squares: ArrayLike, *, small: int, big: int, population: int | None, replacement: bool) -> Reading:
    """Noise scale from the squared norms of gradients of two batch sizes, one pair a draw: the ratio of two means, never the mean of ratios.

    E |g_B|^2 = |G|^2 + f(B) tr Sigma,  f(B) = 1/B - 1/N without replacement, (1 - 1/N) / B with;  tr Sigma = (small - big) / (f(b) - f(B)),
    |G|^2 = (f(b) big - f(B) small) / (f(b) - f(B)), with Sigma's divisor N - 1; N is infinite for `population=None`.

    Shapes: both (draws,) -> value ().   Units: examples.
    Error: 95 % interval by Fieller's theorem over draws, open above where |G|^2 is lost in noise.
    Assumes: draws are independent of each other; those of one pair need not be.  A batch of a shuffled epoch is one without replacement.   Cost: none.
    Raises: InvalidInput for batches of equal size or larger than the data, for fewer than 8 pairs, or norms that are not finite; OutOfScope where nothing but
    rounding is left of the noise.
    Source: McCandlish et al. 2018, appendix A.1; the factor of sampling without replacement: Cochran 1977, theorem 2.2.
    """
    one, two = np.asarray(small_squares, dtype=np.float64), np.asarray(big_squares, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 1 or len(one) < FEWEST_DRAWS:
        raise InvalidInput(f"Two batch sizes need paired norms, at least {FEWEST_DRAWS} of each; shapes {one.shape} and {two.shape} came.")
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise InvalidInput("A squared norm is not finite; look for an overflow in the loss.")
    if not 1 <= small < big:
        raise InvalidInput(f"The two batch sizes must differ, the small one first: 1 <= small < big, not {small} and {big}.")
    f, g = (_noise_share(size, population, replacement) for size in (small, big))
    traces, norms = (one - two) / (f - g), (f * two - g * one) / (f - g)
    n = len(one)
    (v_tt, v_ts), (_, v_ss) = (np.cov(traces, norms) / n).tolist()
    estimate = NoiseRatio(float(traces.mean()), float(norms.mean()), v_tt, v_ss, v_ts, n)
    details = {"trace": estimate.trace, "gradient_square": estimate.square, "small": small, "big": big, "draws": n, "replacement": replacement}
    if estimate.trace <= 0:
        raise OutOfScope(f"the small batches' gradients are no larger than the big ones' (tr Sigma is estimated as {estimate.trace:.3g}): more pairs are needed")
    value, error, interval = estimate.told()
    return Reading(
        "noise_scale_of_norms", value, "examples", error=error, error_kind="sample", n=n, interval=interval, source=MCCANDLISH_2018.at("appendix A.1"),
        assumes=("batches are drawn " + ("with" if replacement else "without") + " replacement",), details=details,
    )  # fmt: skip


def _noise_share(size: int, population: int | None, replacement: bool) -> float:
    """Var(g_B) / tr Sigma.  Raises: InvalidInput for a batch larger than the data."""
    if population is None:
        return 1 / size
    if replacement:
        return (1 - 1 / population) / size
    if size > population:
        raise InvalidInput(
            f"A batch of {size:,} cannot be drawn without replacement from {population:,} examples: take a smaller batch, or replacement=True if that is how it was drawn."
        )
    return 1 / size - 1 / population


def noise_scale_two_batches(subject: Subject, *, rng: Generator, small: int, big: int, replacement: bool, draws: int = 64) -> Reading:
    """Noise scale of a network from batches of two sizes, drawn from the examples at hand with or without replacement (there is no default).

    Shapes: value ().   Units: examples.   Error: as `noise_scale_of_norms`: of the batches drawn.   Assumes: the examples at hand are the data; eval mode.
    Cost: `draws` gradients of either size.   Raises: as `noise_scale_of_norms`.   Source: McCandlish et al. 2018, appendix A.1.
    """
    n = len(subject.train)
    for size in (small, big):
        _noise_share(size, n, replacement)
    scale = n / subject.total_weight() if subject.loss.reduction == "mean" else float(n)
    squares: dict[int, list[float]] = {small: [], big: []}
    for size, found in squares.items():
        for draw in range(max(draws, FEWEST_DRAWS)):
            stream = chance.child(rng, f"batch of {size}", draw)
            chosen = chance.integers(n, size, rng=stream) if replacement else chance.permutation(n, rng=stream)[:size]
            gradient = summed_gradient(subject, subject.train.select(chosen)).double() * (scale / size)
            found.append(float(gradient @ gradient))
    reading = noise_scale_of_norms(squares[small], squares[big], small=small, big=big, population=n, replacement=replacement)
    return dataclasses.replace(reading, name="noise_scale_two_batches", error_kind="probe")


class OnlineNoiseScale:
    """The noise scale while a network trains, from what each step has anyway: the gradients of its micro-batches (accumulation, data parallel).

    Call `add` once a step with the micro-batches' gradients, or `add_squares` with their norms; `reading()` speaks of the last `window` steps.
    """

    def __init__(self, *, small: int, big: int, population: int | None, replacement: bool, window: int = 256) -> None:
        """`small` examples a micro-batch, `big` a step; `population` is N, None for data without end.  Raises: InvalidInput as `noise_scale_of_norms`."""
        if window < FEWEST_DRAWS:
            raise InvalidInput(f"window must be at least {FEWEST_DRAWS} steps, not {window}.")
        if not 1 <= small < big:
            raise InvalidInput(f"The two batch sizes must differ, the small one first: 1 <= small < big, not {small} and {big}.")
        for size in (small, big):
            _noise_share(size, population, replacement)
        self.small, self.big, self.population, self.replacement = small, big, population, replacement
        self._pairs: collections.deque[tuple[float, float]] = collections.deque(maxlen=window)

    def add(self, gradients: Sequence[Float64[Tensor, "..."]] | Sequence[Sequence[Tensor]]) -> None:
        """The gradients of one step's micro-batches, each a tensor or the list of the parameters' gradients.  Raises: InvalidInput where they are not big / small many."""
        if len(gradients) * self.small != self.big:
            raise InvalidInput(f"A step of {self.big} examples has {self.big / self.small:g} micro-batches of {self.small}; {len(gradients)} gradients came.")
        flat = [torch.cat([part.reshape(-1) for part in ([one] if isinstance(one, Tensor) else one)]).double() for one in gradients]
        mean = torch.stack(flat).mean(0)
        self.add_squares(sum(float(one @ one) for one in flat) / len(flat), float(mean @ mean))

    def add_squares(self, small: float, big: float) -> None:
        """The mean squared norm of the micro-batches' gradients and that of the step's; a step whose norms are not finite is left out."""
        if math.isfinite(small) and math.isfinite(big):
            self._pairs.append((small, big))

    def reading(self) -> Reading:
        """The noise scale over the steps kept.  Raises: InvalidInput before 8 steps; else as `noise_scale_of_norms`."""
        small, big = np.array(self._pairs).reshape(-1, 2).T
        return noise_scale_of_norms(small, big, small=self.small, big=self.big, population=self.population, replacement=self.replacement)
