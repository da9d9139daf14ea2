"""The numbers of the examples in batches, as SGD draws them."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from gnomon.core.errors import InvalidInput
from gnomon.core.sgd import Sampling


def draw_batches(examples: int, batch: int, *shape: int, sampling: Sampling, rng: Generator) -> Int64[Tensor, "*shape B"]:
    """The indices of batches, each independent of the others.

    With replacement each index is drawn from all; without, those of a batch differ (Floyd's algorithm: the k-th is drawn from the first N - B + k, and is the
    last of these where it was drawn already: every subset is as likely).

    Shapes: (*shape, B).   Units: none.   Cost: B^2 / 2 comparisons a batch without replacement.   Raises: InvalidInput for a batch larger than the data.
    """
    if not 1 <= batch <= examples:
        raise InvalidInput(f"A batch takes 1 to {examples} examples, as many as there are data, not {batch}.")
    if sampling == "with_replacement":
        return torch.randint(0, examples, (*shape, batch), generator=rng)
    drawn = torch.empty(*shape, batch, dtype=torch.int64)
    for k in range(batch):
        last = examples - batch + k
        new = torch.randint(0, last + 1, shape, generator=rng)
        taken = (drawn[..., :k] == new[..., None]).any(-1)
        drawn[..., k] = torch.where(taken, last, new)
    return drawn
