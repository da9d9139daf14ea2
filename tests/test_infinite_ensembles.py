"""The kernels of infinitely wide networks against ensembles of finite ones: products of branches, attention, groups, and the parametrisations."""

import math

import pytest
import torch
from test_infinite_width import BOTH, Do, empirical
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.theory.kernels import gradient_flow, infinite_width

WIDTH, MEMBERS = 96, 60


def swish(x):
    return x / (1 + torch.exp(-x))


def tokens(*layers):
    return nn.Sequential(*layers, Do(lambda x: x.mean(1)), nn.Linear(WIDTH, 1))


class Skip(nn.Module):
    """Data that go round two layers, and factors."""

    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6), nn.Linear(6, 1)

    def forward(self, x):
        return self.out(x + self.inner(torch.relu(self.enter(x)) * 0.5) / 2)


class Gated(nn.Module):
    """A product of two branches, with an activation behind a layer that reads it."""

    def __init__(self):
        super().__init__()
        self.gate, self.value, self.inner, self.out = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.out(torch.relu(self.inner(torch.sigmoid(self.gate(x)) * self.value(x))))


class LinearAttention(nn.Module):
    """(Q K^T) V / sqrt(channels), and the mean over positions; the covariance of one head's output is that of many heads'."""

    def __init__(self):
        super().__init__()
        self.enter, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        x = self.enter(x)
        scores = self.query(x) @ self.key(x).transpose(-2, -1) / math.sqrt(WIDTH)
        return self.out((scores @ self.value(x)).mean(1))


class AttentionBlock(nn.Module):
    """Pre-normalised attention and perceptron, each with a way round."""

    def __init__(self, softmax=False):
        super().__init__()
        self.enter, self.norm, self.attention_out, self.up, self.down, self.head = (
            nn.Linear(3, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 32),
            nn.Linear(32, 8),
            nn.Linear(8, 1),
        )
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.softmax = softmax

    def forward(self, x):
        x = self.enter(x)
        z = self.norm(x)
        scores = torch.matmul(self.query(z), self.key(z).transpose(1, 2)) * 8**-0.5
        scores = scores.softmax(-1) if self.softmax else scores
        x = x + self.attention_out(torch.matmul(scores, self.value(z)))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x.mean(dim=1))


W = WIDTH
FINITE = {
    "product": (Gated(), (6,), 3),
    "gated linear unit": (nn.Sequential(nn.Linear(6, 2 * WIDTH), nn.GLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)), (6,), 3),
    "halves, an expression": (nn.Sequential(nn.Linear(6, 2 * WIDTH), Do(lambda x: swish(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]), nn.Linear(WIDTH, WIDTH), Do(swish), nn.Linear(WIDTH, 1)), (6,), 3),
    "one by one with a stride": (nn.Sequential(nn.Conv2d(2, W, 3, padding=1), nn.ReLU(), nn.Conv2d(W, W, 1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(W, 1)), (2, 5, 4), 3),
    "linear attention": (LinearAttention(), (3, 3), 5),
    "groups": (nn.Sequential(nn.Conv1d(2, W, 3, padding=1), nn.ReLU(), nn.Conv1d(W, W, 3, padding=1, groups=2), nn.ReLU(), nn.Conv1d(W, W, 1, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * W, 1)), (2, 4), 4),
    "three dimensions": (nn.Sequential(nn.Conv3d(1, W, 2), nn.ReLU(), nn.Conv3d(W, W, (1, 2, 1)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(W, 1)), (1, 3, 3, 2), 3),
    "layer norm with gain": (nn.Sequential(nn.Linear(6, W), nn.LayerNorm(W), nn.ReLU(), nn.Linear(W, W), nn.LayerNorm(W), nn.Tanh(), nn.Linear(W, 1)), (6,), 3),
    "series": (nn.Sequential(nn.Linear(6, W), nn.SiLU(), nn.Linear(W, W), nn.Tanh(), nn.Linear(W, 1)), (6,), 3),
    "data round two layers": (Skip(), (6,), 3),
    "data first flattened": (nn.Sequential(nn.Flatten(), nn.Linear(6, W), nn.ReLU(), nn.Linear(W, 1)), (2, 3), 2),
    "dilation": (nn.Sequential(nn.Conv2d(2, W, 3, dilation=2, padding=2, padding_mode="replicate"), nn.ReLU(), nn.Flatten(), nn.Linear(25 * W, 1)), (2, 5, 5), 2),
    "reflected": (nn.Sequential(nn.Conv1d(2, W, 3, padding=2, padding_mode="reflect"), nn.ReLU(), nn.Conv1d(W, W, 3, stride=2), nn.LeakyReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(W, 1)), (2, 6), 3),
    "same, even kernel": (nn.Sequential(nn.Conv1d(2, W, 4, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(6 * W, 1)), (2, 6), 2),
    "embedding": (tokens(nn.Embedding(4, W), nn.Linear(W, W), nn.ReLU()), "tokens", 3),
    "linear over positions": (tokens(nn.Linear(3, W), nn.ReLU(), nn.Linear(W, W), nn.GELU()), (4, 3), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", FINITE)
def test_kernels_are_the_means_over_finite_networks_at_torch_s_initialisation(name):
    """Within four standard errors and twice the next order, depth / width."""
    network, shape, depth = FINITE[name]
    network = network.double()
    rng = chance.generator(0, name)
    with chance.scoped(rng):
        x = torch.randint(4, (3, 5)) if shape == "tokens" else torch.randn(3, *shape, dtype=torch.float64)
        made = []
        for _ in range(MEMBERS):
            for module in network.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            made.append(empirical(network, x))
    made = torch.stack(made)
    mean, error = made.mean(0), made.std(0) / math.sqrt(MEMBERS)
    predicted = torch.stack(infinite_width(network)(x, kind=BOTH)).double()
    size = predicted.diagonal(dim1=1, dim2=2).sqrt()
    assert ((mean - predicted).abs() <= 4 * error + 2 * depth / WIDTH * size[:, :, None] * size[:, None, :]).all()


def test_an_attention_block_is_read_and_softmax_is_refused_by_name():
    """The kernel of two sets is a part of that of both, and positive definite."""
    x = torch.randn(3, 4, 3, generator=chance.generator(0), dtype=torch.float64)
    kernel = infinite_width(AttentionBlock())
    whole = kernel(x, kind=BOTH)
    for made, full in zip(kernel(x[:2], x[2:], BOTH), whole, strict=True):
        torch.testing.assert_close(made, full[:2, 2:], rtol=1e-12, atol=0)
    assert all(bool((torch.linalg.eigvalsh(part) > 0).all()) for part in whole)
    with pytest.raises(OutOfScope, match="softmax and other functions of the scores"):
        infinite_width(AttentionBlock(softmax=True))(x)


def test_at_initialisation_mup_has_the_kernel_of_ntk():
    """The table of Yang & Hu 2021 (W1 = sqrt(n) w1, W2 = w2, W3 = w3 / sqrt(n), every w of variance 1/n): outputs vanish, tangents of the w add up to the kernel of "ntk"."""
    rng, n, members = chance.generator(0, "mup"), 256, 40
    x = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(4, n, bias=False), nn.ReLU(), nn.Linear(n, n, bias=False), nn.ReLU(), nn.Linear(n, 1, bias=False)).double()
    kernel = infinite_width(network, parametrization="mup", weight_variance=1.0)
    nngp, ntk = kernel(x, kind=BOTH)
    assert not nngp.any()
    assert not kernel.lazy
    assert torch.equal(ntk, infinite_width(network, parametrization="ntk", weight_variance=1.0)(x, kind="ntk"))
    made, outputs = [], []
    for _ in range(members):
        small = [torch.randn(p.shape, generator=rng, dtype=torch.float64) / math.sqrt(n) for p in network.parameters()]
        factors = (math.sqrt(n / 4), 1.0, 1 / math.sqrt(n))  # data have 4 entries: C_W / fan_in
        for p, w, factor in zip(network.parameters(), small, factors, strict=True):
            p.data = factor * w
        out = network(x)[:, 0]
        outputs.append(out.detach())
        rows = [torch.cat([f * g.reshape(-1) for f, g in zip(factors, torch.autograd.grad(o, list(network.parameters()), retain_graph=True), strict=True)]) for o in out]
        made.append(torch.stack(rows) @ torch.stack(rows).T)
    made = torch.stack(made)
    assert ((made.mean(0) - ntk).abs() <= 4 * made.std(0) / math.sqrt(members) + 6 / n * ntk.max()).all()
    assert torch.stack(outputs).square().mean() <= 4 / n * ntk.max()


def test_mean_field_is_mup_with_one_hidden_layer_and_is_refused_beyond():
    x = torch.randn(3, 4, generator=chance.generator(0), dtype=torch.float64)
    one = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    options = {"weight_variance": 1.5, "bias_variance": 0.3}
    nngp, ntk = infinite_width(one, parametrization="mean_field", **options)(x, kind=BOTH)
    assert torch.equal(ntk, infinite_width(one, parametrization="mup", **options)(x, kind="ntk"))
    assert (nngp == 0.3).all()
    two = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(OutOfScope, match="second hidden layer all pre-activations are 0.*'mup'"):
        infinite_width(two, parametrization="mean_field")(x)
    with pytest.raises(OutOfScope, match="features move at any width"):
        gradient_flow(infinite_width(one, parametrization="mup"), x, torch.ones(3), time=1.0)
    with pytest.raises(OutOfScope, match="one layer with weights, the readout"):
        infinite_width(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), parametrization="mup")(x)
