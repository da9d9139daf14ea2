"""Kernels of normalisations over many channels, before and behind activations, and of sums of activations: closed forms, and ensembles of finite networks."""

import math

import mpmath as mp
import pytest
import torch
from test_infinite_modules import Written
from test_infinite_width import BOTH
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.theory.infinite import propagation
from gnomon.theory.kernels import infinite_width

WIDTH, MEMBERS, OUTPUTS = 96, 60, 24
W = WIDTH


def conv(channels):
    return nn.Conv2d(channels, W, 3, padding=1)


def pooled():
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(W, OUTPUTS)


def branches(function):
    return Written(function, a=nn.Linear(6, W), b=nn.Linear(W, W), c=nn.Linear(W, W), n=nn.LayerNorm(W), g=nn.GroupNorm(2, W), h=nn.Linear(W, OUTPUTS))


def post_activation(m, x):
    """Two blocks whose branches end in activations, and norms of sums of them."""
    x = torch.relu(m.a(x))
    x = m.n(x - 0.7 * nn.functional.softplus(m.b(x)))
    return m.h(x + m.g(torch.tanh(m.c(x))))


def summed(m, x):
    x = torch.relu(m.a(x))
    x = x + nn.functional.gelu(m.b(x))
    return m.h(torch.sigmoid(m.c(x)) + x * 0.5)


def pooled_sum(m, x):
    """A pooling of activations whose windows reach over the border, a sum behind it, and a norm behind the mean over positions."""
    x = nn.functional.avg_pool2d(torch.relu(m.a(x)), 3, 1, 1)
    return m.h(m.n((x + torch.relu(m.b(x))).mean((2, 3))))


FINITE = {
    "group norm before activations": (nn.Sequential(conv(2), nn.GroupNorm(2, W), nn.ReLU(), conv(W), nn.GroupNorm(1, W), nn.GELU(), *pooled()), (2, 3, 3)),
    "group norm behind activations": (nn.Sequential(conv(2), nn.ReLU(), nn.GroupNorm(2, W), conv(W), nn.Softplus(), nn.GroupNorm(1, W), *pooled()), (2, 3, 3)),
    "layer norm of channels and positions": (nn.Sequential(conv(2), nn.LayerNorm([W, 3, 3]), nn.ReLU(), conv(W), nn.Sigmoid(), nn.LayerNorm([W, 3, 3]), *pooled()), (2, 3, 3)),
    "layer norm behind an activation": (nn.Sequential(nn.Linear(6, W), nn.ELU(), nn.LayerNorm(W), nn.Linear(W, W), nn.ReLU(), nn.RMSNorm(W), nn.Linear(W, OUTPUTS)), (6,)),
    "sums of activations": (branches(summed), (6,)),
    "norms of sums": (branches(post_activation), (6,)),
    "pooled sums": (Written(pooled_sum, a=conv(2), b=conv(W), n=nn.LayerNorm(W), h=nn.Linear(W, OUTPUTS)), (2, 3, 3)),
}  # fmt: skip


def draw(network):
    """Gaussian weights and biases of the variances of torch's own initialisation."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for part in module.parameters():
                nn.init.normal_(part, std=1 / math.sqrt(3 * module.weight[0].numel()))


def measured(network, x):
    """The mean product of outputs and the tangent kernel's mean over two of them, of one network."""
    trained, out = [p for p in network.parameters() if p.requires_grad], network(x)
    total = 0.0
    for output in (0, 1):
        rows = [torch.autograd.grad(one, trained, retain_graph=True, materialize_grads=True) for one in out[:, output]]
        jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
        total = total + jacobian @ jacobian.T / 2
    return torch.stack([(out @ out.T / OUTPUTS).detach(), total])


@pytest.mark.parametrize("only_norms", [False, True])
@pytest.mark.parametrize("name", FINITE)
def test_kernels_are_the_means_over_finite_networks(name, only_norms):
    """Within four standard errors and twice the next order, 3 / width; with the norms alone trained, what gains and shifts have of the tangent kernel."""
    network, shape = FINITE[name]
    network = network.double().requires_grad_(not only_norms)
    for module in network.modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
            module.requires_grad_(True)
    if name == "sums of activations" and only_norms:
        network.h.requires_grad_(True)
    with chance.scoped(chance.generator(0, name)):
        x = torch.randn(3, *shape, dtype=torch.float64)
        x[2] = x[0] + 0.3 * x[2]
        made = []
        for _ in range(MEMBERS):
            draw(network)
            made.append(measured(network, x))
    made = torch.stack(made)
    mean, error = made.mean(0), made.std(0) / math.sqrt(MEMBERS)
    predicted = torch.stack(infinite_width(network)(x, kind=BOTH))
    size = predicted.diagonal(dim1=1, dim2=2).sqrt()
    assert ((mean - predicted).abs() <= 4 * error + 6 / WIDTH * size[:, :, None] * size[:, None, :]).all()


def closed(theta):
    """A linear layer of C_W = 2, ReLU, its mean taken away and its variance divided by, the same layer again and ReLU, and the readout: Cho & Saul 2009 with 40 digits."""

    def turned(cosine, sine):
        return mp.atan2(sine, cosine)

    def order_one(angle):
        return (mp.sin(angle) + (mp.pi - angle) * mp.cos(angle)) / mp.pi

    first = order_one(theta)
    rho = (first - 1 / mp.pi) / (1 - 1 / mp.pi)
    tangent = (1 - theta / mp.pi) * mp.cos(theta) / (1 - 1 / mp.pi)
    angle = turned(rho, mp.sqrt(1 - rho**2))
    second = order_one(angle)
    return float(2 * second), float(2 * second + (1 - angle / mp.pi) * 2 * (rho + tangent))


def centred(m, x):
    """The difference of two branches of the same kernel: means cancel, and the covariance is twice that of one less its mean."""
    return m.h(torch.relu(m.b((torch.relu(m.a(x)) - torch.relu(m.c(x))) * math.sqrt(0.5 / (1 - 1 / math.pi)))))


def test_means_behind_relu_are_taken_away_to_the_last_digits():
    """Also for nearly equal directions, whose angle behind the layer is told from n - k alone; a difference of two activations has the kernel of one that is normalised."""
    normal = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.ReLU(), nn.LayerNorm(8, eps=0.0, elementwise_affine=False), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False)
    )
    difference = Written(centred, a=nn.Linear(6, 8, bias=False), c=nn.Linear(6, 8, bias=False), b=nn.Linear(8, 8, bias=False), h=nn.Linear(8, 1, bias=False))
    with mp.workdps(40):
        for theta in (mp.mpf("1e-7"), mp.mpf("0.3"), mp.mpf(2), mp.mpf("3.1")):
            x = torch.zeros(2, 6, dtype=torch.float64)
            x[0, 0], x[1, 0], x[1, 1] = math.sqrt(6), math.sqrt(6) * float(mp.cos(theta)), math.sqrt(6) * float(mp.sin(theta))
            for network in (normal, difference):
                found = infinite_width(network, parametrization="ntk", weight_variance=2.0)(x, kind=BOTH)
                assert [float(part[0, 1]) for part in found] == pytest.approx(closed(theta), rel=1e-13)


def test_statistics_of_all_positions_are_one_number_an_example():
    """A factor of a whole example is divided out, one of a position is not; groups of any size have the kernel of one; gains of each position's own have less of the tangent kernel than the channels'."""
    x = torch.randn(2, 2, 4, 3, generator=chance.generator(0), dtype=torch.float64)

    def kernel(norm, x):
        network = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)])
        return infinite_width(network, parametrization="ntk")(x, kind=BOTH)

    nngp, ntk = kernel(nn.GroupNorm(2, 8, eps=0.0), x)
    scaled = kernel(nn.GroupNorm(1, 8, eps=0.0), torch.cat([7 * x[:1], x[1:]]))
    torch.testing.assert_close(scaled, (nngp, ntk), rtol=1e-12, atol=0)
    tilted = x.clone()
    tilted[0, :, :2] *= 2
    assert not torch.allclose(kernel(nn.GroupNorm(2, 8, eps=0.0), tilted)[0], nngp, rtol=1e-3)
    same, less = kernel(nn.LayerNorm([8, 2, 1], eps=0.0), x)
    torch.testing.assert_close(same, nngp, rtol=1e-12, atol=0)
    assert (less.diagonal() < ntk.diagonal()).all()


@pytest.mark.parametrize("name", ["group norm behind activations", "layer norm of channels and positions"])
def test_kernels_do_not_depend_on_how_positions_are_cut(name, monkeypatch):
    network, shape = FINITE[name]
    x = torch.randn(2, *shape, generator=chance.generator(0), dtype=torch.float64)
    whole = infinite_width(network, parametrization="ntk")(x, kind=BOTH)
    monkeypatch.setattr(propagation, "SLAB", 1)
    torch.testing.assert_close(infinite_width(network, parametrization="ntk")(x, kind=BOTH), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(conv(2), nn.InstanceNorm2d(W), nn.ReLU(), *pooled()), "'1': InstanceNorm2d: it takes the statistics of each channel alone.*GroupNorm"),
        (nn.Sequential(conv(2), nn.GroupNorm(W, W), nn.ReLU(), *pooled()), "'1': a GroupNorm of one channel a group"),
        (nn.Sequential(conv(2), nn.LayerNorm([3, 3]), nn.ReLU(), *pooled()), "'1': a normalisation over some dimensions of the positions"),
        (nn.Sequential(conv(2), nn.ReLU(), nn.Flatten(), nn.LayerNorm(9 * W), nn.Linear(9 * W, 1)), "'3': a LayerNorm of features whose mean.*is not known"),
        (nn.Sequential(conv(2), nn.ReLU(), nn.Flatten(2), nn.Tanh(), nn.Conv1d(W, 8, 3), nn.Flatten(), nn.Linear(56, 1)), "'3': an activation of features that are not.*reshape"),
        (branches(lambda m, x: (lambda z: m.h(torch.tanh(z + torch.relu(m.b(z)))))(torch.relu(m.a(x)))), "an activation of a sum in which an activation"),
    ],
)  # fmt: skip
def test_what_has_no_limit_is_refused_by_name(network, message):
    first = next(network.parameters())
    x = torch.randn(2, *((2, 3, 3) if first.ndim == 4 else (6,)), generator=chance.generator(0))
    with pytest.raises(OutOfScope, match=message):
        infinite_width(network)(x)
