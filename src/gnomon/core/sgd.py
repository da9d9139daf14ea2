"""How stochastic gradient steps are made: step, batch, sampling, momentum and weight decay, each named, none of them guessed."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from gnomon.core.errors import InvalidInput, OutOfScope, unknown

Sampling = Literal["with_replacement", "without_replacement", "epochs"]
Decay = Literal["coupled", "decoupled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd:
    """Steps v <- b v + g,  theta <- theta - lr v  (Nesterov: theta - lr (g + b v)) with g the mean gradient of a batch.

    `sampling` has no default, because the three differ: `with_replacement` draws each example of a batch from all of them, and the covariance of g is S/B;
    `without_replacement` draws B different ones, each batch anew, and it is S/B (N - B)/(N - 1), with S the covariance of the gradient over the N examples
    (divisor N); `epochs` shuffles all examples and deals them to N // B batches, as loaders do (what is left over is dropped): each batch has the same covariance,
    and two of one epoch have -S/(N - 1) between them.
    Weight decay w is `coupled` (g + w theta takes the place of g, as torch.optim.SGD does) or `decoupled` (theta is multiplied by 1 - lr w beside the step,
    as AdamW does); without momentum the two are one.
    `svag` = l makes l steps of lr / l in the place of one, whose noise has l times the covariance (`svag_weights`).

    Units: lr in 1 / curvature; weight_decay in curvature.
    Raises: InvalidInput for impossible numbers, a batch larger than the data, or a weight decay whose kind is not said; OutOfScope for SVAG with momentum.
    Source: Cochran 1977, theorem 2.2 (the finite-population factor, and the covariance between parts).
    """

    lr: float
    batch_size: int
    examples: int
    sampling: Sampling
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: Decay | None = None
    svag: int = 1

    def __post_init__(self) -> None:
        if self.sampling not in get_args(Sampling):
            raise unknown("sampling", str(self.sampling), get_args(Sampling))
        if not (0 < self.lr < float("inf") and 0 <= self.momentum < 1 and 0 <= self.weight_decay < float("inf")):
            raise InvalidInput(
                f"lr must be above 0, momentum in [0, 1) and weight_decay at least 0; lr={self.lr}, momentum={self.momentum}, weight_decay={self.weight_decay} came."
            )
        if self.batch_size < 1 or self.batch_size > self.examples:
            raise InvalidInput(f"A batch takes 1 to {self.examples} examples, as many as there are data, not batch_size={self.batch_size}. Take a smaller batch or more data.")
        if self.decay is not None and self.decay not in get_args(Decay):
            raise unknown("kind of weight decay", str(self.decay), get_args(Decay))
        if self.weight_decay > 0 and self.decay is None:
            raise InvalidInput("Say which weight decay it is: decay='coupled' (added to the gradient, torch.optim.SGD) or decay='decoupled' (beside the step, AdamW).")
        if self.nesterov and self.momentum == 0:
            raise InvalidInput("Nesterov's steps need a momentum above 0.")
        if self.svag < 1:
            raise InvalidInput(f"svag must be a whole number of at least 1, not {self.svag}.")
        if self.svag > 1 and (self.momentum > 0 or self.weight_decay > 0):
            raise OutOfScope("SVAG is defined here for plain SGD: its momentum and weight decay would have to be scaled with l too.")
        if self.svag > 1 and self.sampling == "epochs":
            raise OutOfScope("SVAG takes batches that are independent of each other, which those of a shuffled epoch are not: take without_replacement.")

    @property
    def step(self) -> float:
        """The length of one step: lr / l."""
        return self.lr / self.svag

    @property
    def noise_factor(self) -> float:
        """What the covariance of per-example gradients (divisor N) is multiplied by to give that of one step's gradient."""
        one = 1 / self.batch_size
        if self.sampling != "with_replacement":
            one *= (self.examples - self.batch_size) / max(self.examples - 1, 1)
        return self.svag * one

    @property
    def epoch(self) -> int:
        """The batches of a shuffled epoch: N // B."""
        return self.examples // self.batch_size

    @property
    def between(self) -> float:
        """The same for the covariance between the gradients of two batches of one epoch."""
        return -1 / max(self.examples - 1, 1) if self.sampling == "epochs" else 0.0

    def independent(self, what: str) -> None:
        """Nothing where each batch is drawn anew.  Raises: OutOfScope for shuffled epochs, whose batches are not independent of each other."""
        if self.sampling == "epochs":
            raise OutOfScope(
                f"{what} is that of batches drawn independently; those of a shuffled epoch make up for each other (`discrete_covariance` covers them where the noise is the same everywhere)"
            )

    def replace(self, **changes: object) -> Sgd:
        """The same with some numbers changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def svag_weights(l: int) -> tuple[float, float]:  # noqa: E741
    """The weights (1 +- sqrt(2 l - 1)) / 2 of the gradients of two independent batches whose sum has the mean of one and l times its covariance.

    Units: none.   Error: exact.   Cost: none.   Raises: InvalidInput for l below 1.   Source: Li, Malladi & Arora 2021, section 4 (SVAG).
    """
    if l < 1:
        raise InvalidInput(f"SVAG takes l of at least 1, not {l}.")
    root = (2 * l - 1) ** 0.5
    return (1 + root) / 2, (1 - root) / 2
