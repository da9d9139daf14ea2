"""The numbers of the examples in batches, as SGD draws them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.sgd import Sampling

BLOCK = 16
"""Steps whose batches are drawn at once."""


def draw_batches(examples: int, batch: int, *shape: int, sampling: Sampling, rng: Generator) -> Int64[Tensor, "*shape B"]:
    """The indices of batches, each independent of the others.

    With replacement each index is drawn from all; without, those of a batch differ (Floyd's algorithm: the k-th is drawn from the first N - B + k, and is the
    last of these where it was drawn already: every subset is as likely).

    Shapes: (*shape, B).   Units: none.   Cost: B^2 / 2 comparisons a batch without replacement.   Raises: InvalidInput for a batch larger than the data, or shuffled epochs.
    """
    if not 1 <= batch <= examples:
        raise InvalidInput(f"A batch takes 1 to {examples} examples, as many as there are data, not {batch}.")
    if sampling == "epochs":
        raise InvalidInput("The batches of a shuffled epoch are not independent of each other: `epoch_batches` deals them.")
    if sampling == "with_replacement":
        return torch.randint(0, examples, (*shape, batch), generator=rng)
    drawn = torch.empty(*shape, batch, dtype=torch.int64)
    for k in range(batch):
        last = examples - batch + k
        new = torch.randint(0, last + 1, shape, generator=rng)
        taken = (drawn[..., :k] == new[..., None]).any(-1)
        drawn[..., k] = torch.where(taken, last, new)
    return drawn


def epoch_batches(examples: int, batch: int, runs: int, *, rng: Generator) -> Int64[Tensor, "batches runs B"]:
    """All examples in an order of their own for each run, dealt to batches; what fills no batch is left out.   Shapes: (examples // B, runs, B)."""
    batches = examples // batch
    return torch.rand(runs, examples, generator=rng, dtype=torch.float64).argsort(1)[:, : batches * batch].view(runs, batches, batch).transpose(0, 1)


def drawn_batches(examples: int, batch: int, runs: int, *, sampling: Sampling, rng: Generator) -> Iterator[Int64[Tensor, "runs B"]]:
    """Batches without end, one a run: independent ones BLOCK steps at a time, or those of one shuffled epoch after the other.   Shapes: (runs, B)."""
    while True:
        yield from epoch_batches(examples, batch, runs, rng=rng) if sampling == "epochs" else draw_batches(examples, batch, BLOCK, runs, sampling=sampling, rng=rng)
