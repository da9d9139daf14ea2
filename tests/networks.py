"""Small subjects (at most 300 parameters) that every part is tested on; each function builds one in a given dtype."""

from __future__ import annotations

import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.studies.contract import moved, token_loss, token_weight


def normal(*shape, seed=0):
    """Normal numbers, always the same."""
    return chance.normal(*shape, rng=chance.generator(seed))


def take(function, subject, seed=0, **settings):
    """A reading of an instrument, always by the same draws."""
    return function(subject, rng=chance.generator(seed, function.__name__), **settings)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.head = nn.Linear(4 * 2 * 2, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.tanh(self.conv1(x)), 1)
        return self.head(nn.functional.softplus(self.conv2(x)).flatten(1))


class Norm(nn.Module):
    """Batch norm, layer norm and group norm, with a residual sum and activations in place."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.SiLU(inplace=True), nn.Linear(6, 6), nn.LayerNorm(6))
        self.group = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        h = self.body(x)
        return self.head(self.group(h) + h)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class TiedFrozen(nn.Module):
    """`second` shares its weight with `first`, `twice` is called twice, `fixed` is frozen."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Linear(4, 6)
        self.first, self.second, self.twice, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.fixed.requires_grad_(False)

    def forward(self, x):
        h = self.second(torch.tanh(self.first(torch.tanh(self.fixed(x)))))
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(h)))))


class Tokens(nn.Module):
    """A token model with tied embedding and head, positions by a table; takes a dict and returns one with `logits`."""

    def __init__(self, vocabulary=7, length=5, width=4):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids, mask):
        h = self.embedding(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        past = torch.cumsum(h * mask[..., None], 1) / torch.cumsum(mask, 1).clamp_min(1)[..., None]
        return {"logits": self.head(torch.tanh(self.mix(past)) + h)}


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, batch_first=True)
        self.cross = nn.MultiheadAttention(4, 1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x)
        return self.head(self.cross(h, h, h, need_weights=False)[0].mean(1))


def _data(shape, n, classes=None, outputs=None, seed=0, dtype=torch.float64):
    rng = chance.generator(seed, "data")
    x = chance.normal(n, *shape, rng=rng).to(dtype)
    if classes:
        return x, chance.integers(classes, n, rng=rng)
    return x, torch.sin(x.reshape(n, -1)[:, :outputs]) + 0.1 * chance.normal(n, outputs, rng=rng).to(dtype)


def cnn(dtype=torch.float64, n=12, **settings):
    """Convolutions, cross-entropy over four classes."""
    return moved(CNN, dtype, "cross_entropy", _data((1, 6, 6), n, 4), _data((1, 6, 6), 8, 4, seed=1), **settings)


def batchnorm(dtype=torch.float64, n=12, **settings):
    """Batch, layer and group norm; cross-entropy with class weights."""
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=dtype))
    return moved(Norm, dtype, loss, _data((5,), n, 3), _data((5,), 8, 3, seed=1), **settings)


def lstm(dtype=torch.float64, n=10, **settings):
    """An LSTM classifier."""
    return moved(Recurrent, dtype, "cross_entropy", _data((4, 3), n, 3), _data((4, 3), 6, 3, seed=1), **settings)


def tied_frozen(dtype=torch.float64, n=11, **settings):
    """Tied and frozen parameters and a layer called twice; cross-entropy that is summed."""
    return moved(TiedFrozen, dtype, nn.CrossEntropyLoss(reduction="sum"), _data((4,), n, 3), _data((4,), 6, 3, seed=1), **settings)


def tokens(dtype=torch.float64, n=10, **settings):
    """Dict inputs, integer tokens, targets with ignore_index (one example has none left)."""

    def data(n, seed):
        rng = chance.generator(seed, "tokens")
        ids, targets = chance.integers(7, n, 5, rng=rng), chance.integers(7, n, 5, rng=rng)
        targets[chance.uniform(n, 5, rng=rng) < 0.3] = -1
        targets[min(3, n - 1)] = -1
        return {"ids": ids, "mask": torch.ones(n, 5, dtype=dtype)}, targets

    return moved(Tokens, dtype, token_loss, data(n, 0), data(6, 1), **{"weight": token_weight, **settings})


def mlp_regression(dtype=torch.float64, n=12, **settings):
    """Mean squared error, two outputs."""

    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))

    return moved(build, dtype, "mse", _data((4,), n, outputs=2), _data((4,), 8, outputs=2, seed=1), **settings)


def transformer(dtype=torch.float64, n=7, **settings):
    """An encoder layer and cross attention."""
    return moved(Transformer, dtype, "cross_entropy", _data((3, 4), n, 3), _data((3, 4), 5, 3, seed=1), **settings)


NETWORKS = [cnn, batchnorm, lstm, tied_frozen, tokens, mlp_regression, transformer]
