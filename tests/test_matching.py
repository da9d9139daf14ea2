"""Matching of units: planted permutations come back exactly, the function stays, and what is not covered is named."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.loss import cross_entropy
from gnomon.core.subject import Subject
from gnomon.instruments.connectivity import along, barrier, segment
from gnomon.models.training import train
from gnomon.numerics.matching import assign, match_units
from gnomon.numerics.symmetry import permuted, random_permutations, read_symmetry


class Block(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = norm(channels), norm(channels)

    def forward(self, x):
        return F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))


class ResNet(nn.Module):
    """Residual blocks, a strided shortcut, global pooling."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.norm, self.one = nn.Conv2d(1, 8, 3, padding=1), norm(8), Block(8, norm)
        self.down, self.two, self.head = nn.Conv2d(8, 12, 1, stride=2), Block(12, norm), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.two(self.down(self.one(F.relu(self.norm(self.stem(x)))))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.lstm, self.head = nn.Embedding(11, 6), nn.LSTM(6, 7, 2, batch_first=True), nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.lstm(self.table(x))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(self.table(x) + self.places).mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.MaxPool2d(2), nn.Conv2d(6, 12, 1, groups=6), nn.Conv2d(12, 5, 1), nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)
    )  # fmt: skip


NETWORKS = {
    "mlp": mlp, "cnn": cnn, "resnet, batch norm": lambda: ResNet(nn.BatchNorm2d), "resnet, group norm": lambda: ResNet(lambda c: nn.GroupNorm(4, c)), "lstm": Recurrent,
    "transformer": Transformer,
}  # fmt: skip


def subject_of(make, seed=0):
    """A network whose normalisation has drawn weights and statistics, so that a place left out shows."""
    with chance.scoped(chance.generator(seed, "net")):
        model = make().double()
        for layer in model.modules():
            if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                nn.init.normal_(layer.weight, 1.0, 0.3)
                nn.init.normal_(layer.bias)
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2.0)
            if isinstance(layer, nn.PReLU):
                layer.weight.data.uniform_(0.1, 0.9)
    tokens = isinstance(model, (Recurrent, Transformer))
    inputs = chance.integers(11, 30, 5, rng=chance.generator(1)) if tokens else chance.normal(30, 1, 6, 6, rng=chance.generator(1))
    return Subject.freeze(model, "cross_entropy", (inputs, chance.integers(3, 30, rng=chance.generator(2))))


def output(subject, state=None):
    with torch.no_grad():
        return subject(state or subject.state, subject.train.blocks[0].inputs)


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_planted_permutation_is_recovered(name, by):
    subject = subject_of(NETWORKS[name])
    symmetry = read_symmetry(subject)
    planted = random_permutations(symmetry, rng=chance.generator(7))
    other = permuted(symmetry, subject.state, planted)
    assert not any(torch.equal(order, torch.arange(len(order))) for order in planted)
    assert torch.allclose(output(subject, other), output(subject), atol=1e-12)
    found = match_units(subject, other, rng=chance.generator(8), by=by)
    for order, back in zip(planted, found.permutations, strict=True):
        assert torch.equal(order[back], torch.arange(len(order)))
    assert all(torch.equal(found.state[key], subject.state[key]) for key in subject.state)
    assert found.agreement == pytest.approx(1.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_matching_another_network_leaves_its_function_and_raises_the_agreement(name):
    subject, other = subject_of(NETWORKS[name]), subject_of(NETWORKS[name], seed=1)
    found = match_units(subject, other, rng=chance.generator(0))
    assert torch.allclose(output(other, found.state), output(other), atol=1e-10)
    again = match_units(subject, found.state, rng=chance.generator(3))
    assert again.agreement >= found.agreement - 1e-12
    keys = [place.key for group in found.symmetry.groups for place in group.places if place.key in subject.trainable]
    before, after = (sum(float((subject.state[key] * state[key]).sum()) for key in set(keys)) for state in (other.state, found.state))
    assert after > before


def test_the_groups_of_a_residual_network():
    """The stem binds the first stage, the shortcut the second; each block's inner layer is free."""
    groups = {group.name: (group.size, group.blocks) for group in read_symmetry(subject_of(NETWORKS["resnet, group norm"])).groups}
    assert groups == {"stem": (8, 4), "one.first": (8, 4), "down": (12, 4), "two.first": (12, 4)}


def test_attention_says_what_stays():
    symmetry = read_symmetry(subject_of(Transformer))
    assert [group.size for group in symmetry.groups] == [8, 12]
    assert "`layer.self_attn` (the features inside its heads" in symmetry.fixed[0]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_assignment_is_the_best_of_all(blocks):
    similarity = chance.normal(6, 6, rng=chance.generator(blocks))
    each = 6 // blocks

    def allowed(order):
        return all(len({order[block * each + i] // each for i in range(each)}) == 1 for block in range(blocks))

    best = max((order for order in itertools.permutations(range(6)) if allowed(order)), key=lambda order: sum(float(similarity[i, j]) for i, j in enumerate(order)))
    assert assign(similarity, blocks).tolist() == list(best)


def test_a_barrier_of_a_planted_permutation_is_gone():
    data = subject_of(mlp).train
    made = train(lambda: mlp().double(), cross_entropy, data, rng=chance.generator(0), lr=0.1, momentum=0.9, batch_size=30, epochs=200)
    subject = Subject.freeze(made.module, "cross_entropy", data)
    symmetry = read_symmetry(subject)
    other = permuted(symmetry, subject.state, random_permutations(symmetry, rng=chance.generator(7)))
    noisy = {key: value + 1e-3 * chance.normal(*value.shape, rng=chance.generator(9, key)) for key, value in other.items()}
    found = match_units(subject, noisy, rng=chance.generator(0))
    heights = [float(barrier(along(subject, segment(subject, state), points=5)["train_loss"])) for state in (noisy, found.state)]
    assert heights[1] < 1e-3 < 0.1 < heights[0]


class Odd(nn.Module):
    """After the hidden layer comes something that depends on the order of units."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(36, 8), nn.Linear(8, 3), how

    def forward(self, x):
        return self.second(self.how(self.first(x.flatten(1))))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(36, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.last(torch.tanh(self.hidden(torch.cumsum(h, 1))))


class Branching(Odd):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


REFUSED = [
    (lambda: Odd(lambda h: torch.cumsum(h, 1)), "`cumsum`"),
    (lambda: Odd(lambda h: F.local_response_norm(h[:, :, None], 3)[:, :, 0]), "first|getitem|norm"),
    (lambda: Branching(torch.tanh), "could not be traced"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), "no hidden layer"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_not_covered_is_refused_by_name(make, message):
    with pytest.raises(OutOfScope, match=message):
        match_units(subject_of(make), subject_of(make, seed=1), rng=chance.generator(0))


def test_an_uncovered_layer_fixes_its_neighbours_alone():
    symmetry = read_symmetry(subject_of(Scaled))
    assert [group.name for group in symmetry.groups] == ["hidden"]
    assert symmetry.fixed[0].startswith("`cumsum`")


def test_shared_weights_are_not_permuted_through():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.twice, self.wide, self.last = nn.Linear(36, 6), nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = self.twice(torch.tanh(self.twice(torch.tanh(self.first(x.flatten(1))))))
            return self.last(torch.tanh(self.wide(torch.tanh(h))))

    symmetry = read_symmetry(subject_of(Twice))
    assert [group.name for group in symmetry.groups] == ["wide"]
    assert "again with the same weights" in symmetry.fixed[0]


def test_networks_of_different_shapes_are_told_apart():
    subject = subject_of(mlp)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3), nn.Linear(3, 3)).double()
    with pytest.raises(InvalidInput, match=r"'3.weight' is \(7, 9\) in the first, \(8, 9\) in the second.*'6.weight' is missing in the first"):
        match_units(subject, other, rng=chance.generator(0))
    with pytest.raises(InvalidInput, match="Did you mean 'weights'"):
        match_units(subject, subject.state, rng=chance.generator(0), by="weight")


def test_a_state_dict_may_be_wrapped_and_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(36, 5), nn.Linear(5, 4), nn.Linear(4, 3)
            self.again = self.second

        def forward(self, x):
            return self.last(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))

    subject, other = subject_of(Tied), subject_of(Tied, seed=1)
    wrapped = {f"module.{key}": value for key, value in other.module.state_dict().items()}
    assert "module.again.weight" in wrapped
    one, two = (match_units(subject, given, rng=chance.generator(0)) for given in (wrapped, other))
    assert all(torch.equal(value, two.state[key]) for key, value in one.state.items())
