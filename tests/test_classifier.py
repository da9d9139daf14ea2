"""Trained classifiers: the loss at which training stops, and what a zoo varies."""

import pytest
import torch
from torch import nn

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.loss import cross_entropy
from gnomon.data.load import first_classes
from gnomon.models.classifier import tanh_classifier, zoo
from gnomon.models.training import train
from gnomon.numerics.operators import loss_value


def test_training_ends_with_the_first_epoch_below_the_loss():
    x, y = first_classes("digits", 3, examples=90)
    data = dataset.read((x.flatten(1), y), rng=chance.generator(0))

    def run(until, epochs=40):
        return train(lambda: nn.Linear(64, 3), cross_entropy, data, rng=chance.generator(1), lr=0.05, batch_size=40, epochs=epochs, until=until).losses

    whole = torch.tensor(run(0.0), dtype=torch.float64)
    means = whole.view(40, 3).mean(1)
    short = run(0.1)
    end = int((means <= 0.1).int().argmax()) + 1
    assert 1 < end < 40
    assert short == tuple(whole[: 3 * end].tolist())


def test_a_classifier_knows_how_it_was_trained_and_the_zoo_varies_it():
    x, y = first_classes("digits", 4, examples=60)
    made = tanh_classifier(x, y, test=(x[:10], y[:10]), hidden=5, epochs=2, rng=chance.generator(0), lr=0.1, momentum=0.0, weight_decay=0.01, batch_size=20)
    training = made.training
    assert (training.lr, training.momentum, training.weight_decay, training.batch_size) == (0.1, 0.0, 0.01, 20)
    assert (made.classes, len(made.train), len(made.test)) == (4, 60, 10)
    networks = zoo((x, y), (x, y), until=0.5, seeds=1, rng=chance.generator(1))
    assert len({(n.training.lr, n.training.batch_size, n.training.weight_decay, n.dimension) for n in networks}) == 24
    assert max(loss_value(n) for n in networks) < 0.5, "an epoch's mean is above the loss at its end"


def test_the_first_classes_are_those_and_too_many_examples_are_refused():
    x, y = first_classes("digits", 3, examples=100)
    assert x.shape == (100, 1, 8, 8)
    assert set(y.tolist()) == {0, 1, 2}
    with pytest.raises(InvalidInput, match="examples of the first 3 classes, not 9,000"):
        first_classes("digits", 3, examples=9_000)
