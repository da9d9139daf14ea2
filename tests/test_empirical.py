import copy
import functools
import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, cnn, lstm, mlp_regression, tokens
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, NotEnoughMemory, OutOfScope
from gnomon.core.subject import Subject
from gnomon.instruments import kernels
from gnomon.numerics.gram import gradient_gram
from gnomon.numerics.jacobian import separate
from gnomon.numerics.tangent_kernel import TangentKernel
from gnomon.theory.kernels import infinite_width


def dense(subject, data=None):
    """All outputs' gradients, one at a time.  Shapes: (N, C, P)."""
    rows = []
    for block in (data or subject.train).chunks(1):
        here = {key: value.detach().clone().requires_grad_() for key, value in subject.parameters.items()}
        flat = subject({**subject.state, **here}, subject.to_device(block.inputs)).reshape(-1)
        parts = [torch.autograd.grad(value, list(here.values()), retain_graph=True, materialize_grads=True) for value in flat]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in part]) for part in parts]))
    return torch.stack(rows)


def close(found, expected, relative=1e-12):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= relative * float(expected.abs().max())


class Pooled(nn.Sequential):
    """Convolutions, batch norm and global pooling: before the pooling the gradients of all positions differ by factors alone."""

    def __init__(self, groups=1):
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.GELU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, stride=2, groups=groups), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip


def images(n, size=10, dtype=torch.float64):
    return chance.normal(n, 1, size, size, rng=chance.generator(3, "images")).to(dtype)


def bare(model, x, dtype=torch.float64):
    return Subject.freeze(model.to(dtype), lambda output, targets: output.sum(), (x, torch.zeros(len(x))))


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_the_kernel_is_that_of_dense_jacobians(build):
    subject = build()
    jacobian = dense(subject)
    whole = torch.einsum("iap,jbp->ijab", jacobian, jacobian)
    needed = TangentKernel(subject, subject.train).work()
    for memory in (1 << 30, needed.result + (needed.bytes - needed.result) // 2):
        kernel = kernels.tangent_kernel(subject, memory=memory)
        assert kernel.shape == tuple(whole.shape)
        close(kernel.full(), whole)
        close(kernel.trace(), whole.diagonal(dim1=2, dim2=3).sum(-1))
    few = subject.train.select(torch.arange(3))
    close(TangentKernel(subject, few, subject.train).full(), whole[:3])
    close(TangentKernel(subject, subject.train, few).trace(), whole[:, :3].diagonal(dim1=2, dim2=3).sum(-1))
    v = chance.normal(len(jacobian), jacobian.shape[1], rng=chance.generator(1))
    close(kernel(v), torch.einsum("ijab,jb->ia", whole, v), 1e-10)
    assert ("lstm.weight_hh_l0" in kernel.fallback) == (build is lstm)


@pytest.mark.parametrize("form", ["sandwich", "channels", "product", "columns"])
def test_every_form_of_a_layer_gives_the_same(form):
    models = {
        "sandwich": (nn.Sequential(nn.Conv1d(10, 30, 3), nn.Tanh(), nn.Flatten(), nn.Linear(60, 10)), chance.normal(5, 10, 4, rng=chance.generator(4))),
        "channels": (Pooled(), images(6)),
        "product": (nn.Sequential(nn.Flatten(), nn.Linear(100, 7), nn.Tanh(), nn.Linear(7, 2)), images(6)),
        "columns": (Pooled(groups=2), images(6)),
    }
    model, x = models[form]
    check_form(form, model, x)
    if form == "sandwich":
        check_form(form, nn.Sequential(nn.Embedding(50, 8), nn.Tanh(), nn.Flatten(), nn.Linear(24, 4)), chance.integers(5, 6, 3, rng=chance.generator(5)))


def check_form(form, model, x):
    subject = bare(model.eval(), x)
    jacobian = dense(subject)
    kernel = TangentKernel(subject, x)
    assert form in {entry.form for entry in kernel._entries(False)}
    close(kernel.full(), torch.einsum("iap,jbp->ijab", jacobian, jacobian))
    close(kernel.trace(), torch.einsum("iap,jap->ij", jacobian, jacobian))


def test_gradients_that_are_no_product_are_found_out_and_written_out():
    d, u = chance.normal(2, 3, 5, rng=chance.generator(5)), chance.normal(2, 4, 3, rng=chance.generator(6))
    own = d[:, None] * u[..., None]
    apart = separate(own)
    assert apart is not None
    close(apart[0][:, None] * apart[1][..., None], own)
    assert separate(own + 1e-9 * chance.normal(2, 4, 3, 5, rng=chance.generator(7))) is None
    zero = separate(torch.zeros(2, 4, 3, 5))
    assert zero is not None
    assert not zero[0].any()
    # a network whose gate opens for one example alone: on the others, as on the two tried, there is global pooling and nothing else
    x = images(6)
    x[:, 0, 0, 0], x[4, 0, 0, 0] = -10, 10

    class Gate(Pooled):
        def forward(self, x):
            h = x
            for layer in list(self)[:6]:
                h = layer(h)
            return super().forward(x) + (x[:, 0, 0, :1] > 0) * h.flatten(1)[:, :3]

    subject = bare(Gate().eval(), x)
    kernel, jacobian = TangentKernel(subject, x), dense(subject)
    assert "3.weight" in kernel.separable
    close(kernel.full(), torch.einsum("iap,jbp->ijab", jacobian, jacobian))
    close(kernel.trace(), torch.einsum("iap,jap->ij", jacobian, jacobian))


def test_a_linear_network_in_closed_form():
    """Theta_{ia,jb} = (x_i . x_j + 1) delta_ab."""
    x = chance.normal(6, 5, rng=chance.generator(0))
    reading = kernels.empirical_ntk(nn.Linear(5, 3).double(), x)
    close(torch.from_numpy(reading.value), torch.einsum("ij,ab->ijab", x @ x.T + 1, torch.eye(3, dtype=torch.float64)))
    assert [axis.name for axis in reading.axes] == ["example", "other example", "output", "other output"]
    close(torch.from_numpy(kernels.empirical_ntk(nn.Linear(5, 3).double(), x, x[:2], outputs="mean").value), (x @ x[:2].T + 1))
    close(torch.from_numpy(kernels.empirical_ntk(nn.Linear(5, 3).double(), x, outputs="sum").value), 3 * (x @ x.T + 1))


def test_float32_is_as_near_to_float64_as_it_says():
    with chance.scoped(chance.generator(8)):
        model = Pooled().eval()
    x = images(6, dtype=torch.float32)
    single = kernels.empirical_ntk(model, x)
    double = kernels.empirical_ntk(model.double(), x.double())
    assert 0 < float(single.error.max()) < 1e-4 * np.abs(double.value).max()
    assert np.abs(single.value - double.value).max() <= float(single.error.max())


def test_tiles_make_up_the_kernel_and_stay_in_the_memory_that_is_said():
    subject = bare(Pooled().eval(), images(9))
    most = TangentKernel(subject, images(9)).work(whole=False)
    kernel = TangentKernel(subject, images(9), memory=most.bytes // 4)
    work, whole = kernel.work(whole=False), TangentKernel(subject, images(9)).full()
    assert work.side < 9
    assert work.bytes <= most.bytes // 4
    assert work.examples > most.examples == 9
    seen = torch.zeros(9, 9)
    for rows, columns, tile in kernel.tiles():
        close(tile, whole[rows, columns])
        seen[rows, columns] += 1
    assert torch.equal(seen.triu(), torch.ones(9, 9).triu())
    assert float(seen.max()) == 1


def test_the_kernel_of_a_wide_network_is_near_the_infinite_one():
    """Averaged over ten draws the mean over outputs, and the kernel of the last hidden layer, are the theory's up to 1 / width."""
    x = chance.normal(4, 6, rng=chance.generator(2))
    sums = {"ntk": torch.zeros(4, 4), "nngp": torch.zeros(4, 4)}
    for draw in range(10):
        with chance.scoped(chance.generator(9, "wide", draw)):
            model = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)).double()
        sums["ntk"] += torch.from_numpy(kernels.empirical_ntk(model, x, outputs="mean").value) / 10
        sums["nngp"] += torch.from_numpy(kernels.empirical_nngp(model, x, weight_variance=1 / 3, bias_variance=1 / (3 * 128)).value) / 10
    made = infinite_width(model)(x, kind=("nngp", "ntk"))
    for kind, expected in zip(("nngp", "ntk"), made, strict=True):
        assert float((sums[kind] - expected).abs().max()) < 0.1 * float(expected.max()), kind


def test_the_kernel_of_the_last_hidden_layer():
    subject = mlp_regression()
    (block,) = subject.train.blocks
    layers = list(subject.module.children())
    hidden = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        h = torch.func.functional_call(hidden, {key: value for key, value in subject.state.items() if not key.startswith("4.")}, (block.inputs,))
    reading = kernels.empirical_nngp(subject, weight_variance=2.0, bias_variance=0.5)
    close(torch.from_numpy(reading.value), 2 * h @ h.T / h.shape[1] + 0.5)
    close(torch.from_numpy(kernels.empirical_nngp(subject, block.inputs[:3], block.inputs).value), h[:3] @ h.T / h.shape[1])
    with pytest.raises(OutOfScope, match="linear layer"):
        kernels.empirical_nngp(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3, generator=chance.generator(0)))
    with pytest.raises(OutOfScope, match="linear layer"):
        kernels.empirical_nngp(nn.PReLU(), torch.randn(2, 3, generator=chance.generator(0)))


def test_a_token_network_from_dicts():
    subject = tokens(n=4)
    (block,) = subject.train.blocks
    jacobian = dense(subject)
    kernel = kernels.tangent_kernel(subject, block.inputs)
    assert kernel.outputs == 35
    close(kernel.trace(), torch.einsum("iap,jap->ij", jacobian, jacobian))
    v = chance.normal(4, 5, 7, rng=chance.generator(1))
    close(kernel(v).reshape(4, 35), torch.einsum("iap,jbp,jb->ia", jacobian, jacobian, v.reshape(4, 35)), 1e-10)


def test_what_cannot_be_done_is_said():
    x = images(4)
    with pytest.raises(NotEnoughMemory, match="Give `memory` at least"):
        kernels.empirical_ntk(Pooled().double(), x, memory=1000)
    with pytest.raises(InvalidInput, match="give x1"):
        kernels.tangent_kernel(Pooled())
    with pytest.raises(InvalidInput, match="outputs"):
        kernels.empirical_ntk(Pooled().double(), x, outputs="every")
    with pytest.raises(InvalidInput, match="example 2"):
        kernels.empirical_ntk(cnn(), torch.full((4, 1, 6, 6), math.nan).index_fill(0, torch.tensor([0, 1]), 0.0))
    with pytest.raises(InvalidInput, match="does not take"):
        kernels.tangent_kernel(cnn(), torch.zeros(2, 3, 6, 6))
    with pytest.raises(InvalidInput, match="at least one"):
        kernels.tangent_kernel(cnn(), torch.zeros(0, 1, 6, 6))
    with pytest.raises(InvalidInput, match="memory"):
        kernels.tangent_kernel(cnn(), memory=0)
    with pytest.raises(InvalidInput, match=r"shape \(12, 4\)"):
        kernels.tangent_kernel(cnn())(torch.zeros(3, 4))
    lengths = [(torch.randn(5, length, generator=chance.generator(0)), torch.zeros(5, length)) for length in (3, 4)]
    with pytest.raises(OutOfScope, match="compares the same"):
        kernels.tangent_kernel(Subject.freeze(nn.PReLU(), "mse", lengths))
    huge = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    nn.init.constant_(huge[1].weight, 1e30)
    with pytest.raises(InvalidInput, match="not finite"):
        kernels.empirical_ntk(huge, torch.ones(3, 2))


class PostActivation(nn.Module):
    """A block whose sum is followed by an activation, which has no kernel in closed form."""

    def __init__(self, width=64, last=True):
        super().__init__()
        self.enter, self.inner, self.out, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 4), last

    def forward(self, x):
        x = torch.relu(self.enter(x))
        x = x + self.inner(x)
        return self.out(torch.relu(x) if self.last else x)


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_the_mean_over_networks_stands_in_for_a_kernel_in_closed_form(kind):
    x = torch.randn(4, 6, generator=chance.generator(1))
    found = kernels.monte_carlo_kernel(lambda: PostActivation(last=False), x, x[:3], kind=kind, networks=60, rng=chance.generator(0))
    predicted = infinite_width(PostActivation(last=False))(x, x[:3], kind=kind).numpy()
    size = float(np.abs(predicted).max())
    assert (np.abs(found.value - predicted) <= 4 * found.error + 2 * 3 / 64 * size).all()  # and twice the next order, depth / width
    assert kernels.monte_carlo_kernel(PostActivation, x, kind=kind, networks=2, rng=chance.generator(0)).value.shape == (4, 4)
    with pytest.raises(OutOfScope, match="kernels.monte_carlo_kernel"):
        infinite_width(PostActivation())(x)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (lambda: PostActivation, {"kind": "ntkk"}, "kind of kernel"),
        (PostActivation, {}, "a network was given"),
        (lambda: lambda: 3, {}, "gave int"),
        (lambda: functools.partial(copy.copy, PostActivation()), {}, "the same network each time"),
        (lambda: PostActivation, {"networks": 1}, "at least 2"),
    ],
)
def test_what_no_mean_can_be_taken_of_is_said(make, fields, message):
    with pytest.raises(InvalidInput, match=message):
        kernels.monte_carlo_kernel(make(), torch.ones(2, 6), rng=chance.generator(0), **{"networks": 2, **fields})


class Together(nn.Module):
    """Two layers and what a function makes of the hidden layer of a whole batch."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.out, self.function = nn.Linear(6, 16), nn.Linear(16, 2), function

    def forward(self, x):
        return self.out(self.function(x, torch.tanh(self.inner(x))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, z: z if x.mean() > 0 else -z,
        lambda x, z: z - z.mean(0),
        lambda x, z: torch.softmax(z @ z.T, -1) @ z,
        lambda x, z: z / z.norm(),
    ],
    ids=["branch", "statistics", "attention", "size"],
)
def test_a_forward_that_mixes_examples_has_no_kernel_of_two(function, dtype):
    x = chance.normal(12, 6, rng=chance.generator(0)).to(dtype)
    network = Together(function).to(dtype)
    for kernel in (kernels.empirical_ntk, kernels.empirical_nngp):
        with pytest.raises(OutOfScope, match="another output alone than in a batch.*mixes examples"):
            kernel(network, x)
    with pytest.raises(OutOfScope, match="mixes examples"):
        gradient_gram(bare(network, x, dtype))
