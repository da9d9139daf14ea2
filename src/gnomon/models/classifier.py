"""A small classifier, trained and frozen."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Generator, Tensor

from gnomon.core import dataset
from gnomon.core.loss import cross_entropy
from gnomon.core.subject import Subject
from gnomon.models.descent import tanh_network
from gnomon.models.training import train


def tanh_classifier(
    images: Float[Tensor, "N ..."], labels: Int64[Tensor, "N"], *, hidden: int, epochs: int, rng: Generator,
    lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0, batch_size: int = 32, test: tuple[Tensor, Tensor] | None = None,
) -> Subject:  # fmt: skip
    """A tanh network with one hidden layer on flattened images, trained on cross-entropy by SGD.

    Shapes: images (N, ...), labels (N,) from 0 to classes - 1; `test` a pair like them.   Cost: epochs * N gradients.   Raises: as `train`.
    """
    pair, classes = (images.flatten(1), labels), int(labels.max()) + 1
    data = dataset.read(pair, rng=rng)
    made = train(
        lambda: tanh_network(pair[0].shape[1], hidden, classes), cross_entropy, data, rng=rng,
        lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size, epochs=epochs,
    )  # fmt: skip
    other = None if test is None else (test[0].flatten(1), test[1])
    return Subject.freeze(
        made.module, "cross_entropy", data, other, initial=made.initial, optimizer="sgd", lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size
    )
