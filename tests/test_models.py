import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.loss import cross_entropy, mse
from gnomon.core.subject import state_of
from gnomon.data.images import digits
from gnomon.models.digits import DigitsCNN
from gnomon.models.training import accuracy, train
from gnomon.studies.default import default_subject


def line(n=20):
    x = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    return dataset.read((x, 3 * x + 0.5), rng=chance.generator(0))


def test_full_batch_training_follows_the_closed_form():
    """On a quadratic, heavy ball with weight decay is a linear recursion: v <- m v + (A + w) theta - b, theta <- theta - lr v."""
    data, lr, momentum, decay = line(), 0.1, 0.5, 0.01
    trained = train(lambda: nn.Linear(1, 1).double(), mse, data, rng=chance.generator(1), lr=lr, momentum=momentum, weight_decay=decay, batch_size=20, epochs=30)
    x = torch.cat([data.blocks[0].inputs, torch.ones(20, 1, dtype=torch.float64)], 1)
    matrix, vector = 2 * x.T @ x / 20, 2 * x.T @ data.blocks[0].targets / 20
    theta = torch.cat([trained.initial["weight"].reshape(1, 1), trained.initial["bias"].reshape(1, 1)])
    speed, losses = torch.zeros_like(theta), []
    for _ in range(30):
        losses.append(float(((x @ theta - data.blocks[0].targets) ** 2).mean()))
        speed = momentum * speed + (matrix + decay * torch.eye(2, dtype=torch.float64)) @ theta - vector
        theta = theta - lr * speed
    assert torch.allclose(torch.cat([trained.module.weight, trained.module.bias[:, None]]), theta, rtol=1e-10, atol=1e-12)
    assert trained.losses == pytest.approx(losses, rel=1e-10)


def test_an_epoch_sees_every_example_once_in_a_new_order():
    seen = []

    def spy(output, targets):
        seen.append(targets[:, 0].tolist())
        return mse(output, targets)

    train(lambda: nn.Linear(1, 1).double(), spy, line(), rng=chance.generator(0), lr=0.01, batch_size=8, epochs=2)
    assert [len(batch) for batch in seen] == [8, 8, 4, 8, 8, 4]
    first, second = sum(seen[:3], []), sum(seen[3:], [])
    assert sorted(first) == sorted(second)
    assert first != second


def test_training_is_seeded_and_leaves_the_global_state():
    def make():
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()

    before = torch.random.get_rng_state()
    a, b = (train(make, mse, line(), rng=chance.generator(3), lr=0.05, batch_size=7, epochs=3) for _ in range(2))
    other = train(make, mse, line(), rng=chance.generator(4), lr=0.05, batch_size=7, epochs=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert a.losses == b.losses
    assert a.losses != other.losses
    assert not a.module.training
    assert all(torch.equal(value, state_of(b.module)[key]) for key, value in state_of(a.module).items())
    assert not torch.equal(a.initial["0.weight"], a.module[0].weight)


def test_divergence_is_named():
    with pytest.raises(InvalidInput, match="smaller learning rate"):
        train(lambda: nn.Linear(1, 1).double(), mse, line(), rng=chance.generator(0), lr=1e6, batch_size=20, epochs=100)


def test_the_digits_network_keeps_the_second_moment_recursion():
    """For ReLU, no padding and patches that do not overlap: E q' = (1/3) (E relu^2 = q/2) + variance of the bias 1/(3 fan_in), exactly in the mean."""
    x = digits()[0][0][:64].double()
    networks = 4000
    fan_in = (4, 64, 128, 64)
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(networks):
        weights = [
            (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) / math.sqrt(n)
            for shape, n in zip(((16, 1, 2, 2), (32, 16, 2, 2), (64, 128), (10, 64)), fan_in, strict=True)
        ]
        biases = [(torch.rand(len(w), generator=generator, dtype=torch.float64) * 2 - 1) / math.sqrt(n) for w, n in zip(weights, fan_in, strict=True)]
        h, row = x[:4], []
        for depth, (w, b) in enumerate(zip(weights, biases, strict=True)):
            h = F.relu(h) if depth else h
            h = F.conv2d(h, w, b, stride=2) if w.ndim == 4 else F.linear(h.flatten(1), w, b)
            row.append(float((h**2).mean()))
        squares.append(row)
    measured = torch.tensor(squares, dtype=torch.float64)
    total, q = [], float((x[:4] ** 2).mean())
    for depth, n in enumerate(fan_in):
        q = q / 3 / (2 if depth else 1) + 1 / (3 * n)
        total.append(q)
    error = measured.std(0) / math.sqrt(networks)
    assert ((measured.mean(0) - torch.tensor(total)).abs() < 4 * error).all()
    layer = DigitsCNN().layers[2]
    assert float(layer.weight.detach().var()) == pytest.approx(1 / (3 * 64), rel=0.1), "the module has PyTorch's default initialisation"


@pytest.fixture(scope="module")
def subject():
    return default_subject()


def test_the_default_subject_is_trained_and_says_how(subject):
    assert subject.dimension == 11_066
    assert (subject.training.optimizer, subject.training.lr, subject.training.batch_size) == ("sgd", 0.1, 64)
    assert subject.classes == 10
    assert len(subject.test) == 360
    assert accuracy(subject.module, subject.train) > 0.95
    assert accuracy(subject.module, subject.test) > 0.93
    block = subject.train.blocks[0]
    assert float(cross_entropy(subject(subject.initial, block.inputs), block.targets)) == pytest.approx(math.log(10), rel=0.1), "at initialisation it guesses"
    with chance.scoped(chance.generator(9)):
        drawn = state_of(subject.make())
    assert drawn.keys() == subject.state.keys()


def test_the_default_subject_has_the_same_bits_each_time(subject):
    assert default_subject().fingerprint() == subject.fingerprint()
