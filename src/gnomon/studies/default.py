"""The network that `gnomon examine` examines when none is given."""

from __future__ import annotations

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.environment import fixed_threads
from gnomon.core.loss import cross_entropy
from gnomon.core.subject import Subject
from gnomon.data.images import digits
from gnomon.models.digits import DigitsCNN
from gnomon.models.training import train

LR = 0.1
MOMENTUM = 0.0
BATCH_SIZE = 64
EPOCHS = 20


def default_subject(seed: int = 0) -> Subject:
    """A small convolutional network trained on scikit-learn's digits, with its parameters at initialisation and its training settings.

    Cost: 20 epochs of 1,437 images, a few seconds.
    """
    train_pair, test_pair = digits()
    rng = chance.generator(seed, "default subject")
    data = dataset.read(train_pair, rng=rng)
    # one thread: the network is too small for two, and its weights are then the same at any number of threads
    with fixed_threads(1):
        trained = train(DigitsCNN, cross_entropy, data, rng=rng, lr=LR, momentum=MOMENTUM, batch_size=BATCH_SIZE, epochs=EPOCHS)
    return Subject.freeze(
        trained.module, "cross_entropy", data, test_pair, initial=trained.initial, make=DigitsCNN, optimizer="sgd", lr=LR, momentum=MOMENTUM, batch_size=BATCH_SIZE,
        seed=seed,
    )  # fmt: skip
