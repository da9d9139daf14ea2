"""Small classifiers, trained and frozen: one, and a zoo."""

from __future__ import annotations

import itertools

from jaxtyping import Float, Int64
from torch import Generator, Tensor

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.loss import cross_entropy
from gnomon.core.subject import Subject
from gnomon.models.descent import tanh_network
from gnomon.models.training import train


def tanh_classifier(
    images: Float[Tensor, "N ..."], labels: Int64[Tensor, "N"], *, hidden: int, epochs: int, rng: Generator,
    lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0, batch_size: int = 32, until: float = 0.0, test: tuple[Tensor, Tensor] | None = None,
) -> Subject:  # fmt: skip
    """A tanh network with one hidden layer on flattened images, trained on cross-entropy by SGD.

    Shapes: images (N, ...), labels (N,) from 0 to classes - 1; `test` a pair like them.   Cost: at most epochs * N gradients.   Raises: as `train`.
    """
    pair, classes = (images.flatten(1), labels), int(labels.max()) + 1
    data = dataset.read(pair, rng=rng)
    made = train(
        lambda: tanh_network(pair[0].shape[1], hidden, classes), cross_entropy, data, rng=rng,
        lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size, epochs=epochs, until=until,
    )  # fmt: skip
    other = None if test is None else (test[0].flatten(1), test[1])
    return Subject.freeze(
        made.module, "cross_entropy", data, other, initial=made.initial, optimizer="sgd", lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size
    )


def zoo(data: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, until: float, seeds: int, rng: Generator) -> list[Subject]:
    """24 classifiers a seed: learning rates 0.02, 0.05, 0.15, batches of 16 and 128, weight decay 0 and 0.002, 16 and 64 hidden units.

    Each is trained until an epoch's mean mini-batch loss is at most `until`, for 1,000 epochs at most.
    Shapes: pairs of images (N, ...) and labels (N,); 24 * seeds subjects, the seeds one after the other.   Cost: 24 * seeds trainings.   Raises: as `train`.
    """
    grid = list(itertools.product((0.02, 0.05, 0.15), (16, 128), (0.0, 2e-3), (16, 64))) * seeds
    return [
        tanh_classifier(*data, test=test, hidden=hidden, lr=lr, weight_decay=decay, batch_size=size, epochs=1_000, until=until, rng=chance.child(rng, "network", i))
        for i, (lr, size, decay, hidden) in enumerate(grid)
    ]
