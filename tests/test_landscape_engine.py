"""Curvature against dense linear algebra: operators, their algebra, diagonals, traces, spectra, inverse products and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import NETWORKS, cnn, mlp_regression, tied_frozen
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.affine import bent_by
from gnomon.core.errors import InvalidInput, NotEnoughMemory, OutOfScope
from gnomon.core.subject import Subject
from gnomon.instruments import landscape
from gnomon.numerics import dense
from gnomon.numerics.algebra import Identity
from gnomon.numerics.density import spectral_density
from gnomon.numerics.diagonal import diagonal, empirical_fisher_diagonal, estimated_diagonal, gauss_newton_diagonal, gauss_newton_traces
from gnomon.numerics.fisher import EmpiricalFisher, Fisher, GradientCovariance, MonteCarloFisher, TangentKernel, drawn, gradient_products
from gnomon.numerics.gram import gradient_covariance_eigenvalues, gradient_cross_gram, gradient_gram
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import GaussNewton, Hessian, ParameterJacobian, loss_gradient
from gnomon.numerics.per_example import plan_of
from gnomon.numerics.solve import conjugate_gradient
from gnomon.numerics.trace import deflated

networks = pytest.mark.parametrize("build", NETWORKS, ids=lambda b: b.__name__)


def close(a, b, tolerance=1e-11):
    assert a.shape == b.shape
    assert (a - b).norm() <= tolerance * b.norm(), float((a - b).norm() / b.norm())


def matrix(operator):
    return operator.block(torch.eye(operator.dimension, dtype=torch.float64))


def gradients(subject, split="train"):
    """N (w_i / W) grad loss_i, one example at a time."""
    data = subject.train if split == "train" else subject.test
    total, rows = subject.total_weight(split), []
    for i in range(len(data)):
        alone = dataclasses.replace(subject, train=data.select(torch.tensor([i])), _shared={})
        weight = subject.loss.count(alone.train.blocks[0].targets) / total if subject.loss.reduction == "mean" else 1.0
        rows.append(len(data) * weight * loss_gradient(alone)[1] if weight else torch.zeros(subject.dimension, dtype=subject.dtype))
    return torch.stack(rows)


def tanh_network(dtype=torch.float64, n=24, **settings):
    """1,210 parameters: 20-40-10 with tanh."""
    with chance.scoped(chance.generator(3, "tanh")):
        model = nn.Sequential(nn.Linear(19, 40), nn.Tanh(), nn.Linear(40, 10)).to(dtype)
    rng = chance.generator(4)
    return Subject.freeze(model, "cross_entropy", (chance.normal(n, 19, rng=rng).to(dtype), chance.integers(10, n, rng=rng)), **settings)


@networks
def test_second_moments_are_those_of_single_gradients(build):
    subject = build()
    g = gradients(subject)
    moment, mean = g.T @ g / len(g), g.mean(0)
    v = chance.normal(subject.dimension, 3, rng=chance.generator(0))
    for chunk in (5, len(g)):
        part = subject.with_chunk(chunk)
        close(EmpiricalFisher(part).block(v), moment @ v)
        close(GradientCovariance(part)(v[:, 0]), moment @ v[:, 0] - mean * (mean @ v[:, 0]), 1e-10)
        close(gradient_products(part, v[:, 0]), g @ v[:, 0])
        close(empirical_fisher_diagonal(part), moment.diagonal())
    close(gradient_cross_gram(subject, subject), g @ gradients(subject, "test").T)
    moved = subject.at({key: value + 0.1 if key in subject.trainable else value for key, value in subject.state.items()})
    close(gradient_cross_gram(subject, moved, other="train", memory=4000), g @ gradients(moved).T)


@networks
def test_gauss_newton_traces_and_diagonal_are_exact(build):
    subject = build()
    exact = dense.gauss_newton(subject).diagonal()
    for chunk in (1, 4, len(subject.train)):
        part = subject.with_chunk(chunk)
        close(gauss_newton_diagonal(part), exact, 1e-10)
        traces = gauss_newton_traces(part)
        sizes = [subject.state[key].numel() for key in subject.trainable]
        blocks = torch.stack([piece.sum() for piece in exact.split(sizes)])
        close(torch.stack([traces[key].mean() for key in subject.trainable]), blocks, 1e-10)


@networks
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_blocks_of_vectors_restrictions_and_sums(build, kind):
    subject = build()
    operator, v = kind(subject), chance.normal(subject.dimension, 3, rng=chance.generator(0))
    products = operator.block(v)
    close(products, torch.stack([operator(column) for column in v.T], 1), 1e-12)
    close(kind(subject.with_chunk(3), keep=0).block(v), products, 1e-12)
    both = 2.0 * operator + Identity(subject) * 0.5 - operator
    close(both @ v[:, 0], products[:, 0] + 0.5 * v[:, 0], 1e-11)
    names = subject.trainable[-2:]
    size = sum(subject.state[key].numel() for key in names)
    tail = torch.zeros(subject.dimension, dtype=torch.float64)
    tail[-size:] = v[-size:, 1]
    close(operator.restricted(names)(v[-size:, 1]), operator(tail)[-size:], 1e-11)
    close(both.restricted(names)(v[-size:, 1]), operator(tail)[-size:] + 0.5 * v[-size:, 1], 1e-11)


def test_fisher_is_the_gauss_newton_matrix_and_drawn_labels_estimate_it():
    for build in (cnn, mlp_regression):
        subject = build()
        v = chance.normal(subject.dimension, rng=chance.generator(1))
        close(Fisher(subject)(v), GaussNewton(subject)(v), 1e-12)
        sampled = MonteCarloFisher(subject, rng=chance.generator(2), draws=400)
        close(MonteCarloFisher(subject.with_chunk(3), rng=chance.generator(2), draws=400)(v), sampled(v))
        assert torch.equal(sampled(v), sampled(v))
        few = torch.tensor([float(v @ MonteCarloFisher(subject, rng=chance.generator(2, "draw", i))(v)) for i in range(100)], dtype=torch.float64)
        exact = float(v @ GaussNewton(subject)(v))
        assert abs(float(few.mean()) - exact) <= 4 * float(few.std()) / 10
        assert abs(float(v @ sampled(v)) - exact) <= 4 * float(few.std()) / 20


def test_drawn_labels_have_the_distribution_of_the_network():
    output = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64).expand(40_000, 3)
    labels, terms = drawn("categorical", output, torch.zeros(40_000, dtype=torch.int64), rng=chance.generator(0))
    share = torch.bincount(labels, minlength=3) / 40_000
    p = torch.softmax(output[0], 0)
    assert terms == 40_000
    assert ((share - p).abs() <= 4 * (p * (1 - p) / 40_000).sqrt()).all()
    gaussian, _ = drawn("gaussian", output, output, rng=chance.generator(1))
    noise = (gaussian - output).reshape(-1)
    assert abs(float(noise.var()) - 0.5) <= 4 * 0.5 * (2 / len(noise)) ** 0.5
    bits, _ = drawn("bernoulli", output, output, rng=chance.generator(2))
    q = torch.sigmoid(output[0])
    assert ((bits.mean(0) - q).abs() <= 4 * (q * (1 - q) / 40_000).sqrt()).all()


def test_fisher_is_refused_where_the_loss_is_no_likelihood():
    x, y = torch.randn(6, 3), torch.randint(2, (6,))
    weighted = Subject.freeze(nn.Linear(3, 2), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), (x, y))
    hinge = Subject.freeze(nn.Linear(3, 1), nn.SmoothL1Loss(), (x, y.float()[:, None]))
    for subject in (weighted, hinge):
        with pytest.raises(OutOfScope, match="Use GaussNewton"):
            Fisher(subject)
    with pytest.raises(InvalidInput, match="draws must be at least 1"):
        MonteCarloFisher(cnn(), rng=chance.generator(0), draws=0)


def test_the_tangent_kernel_is_the_jacobian_times_its_transpose():
    subject = cnn()
    block = next(subject.batches(chunk=100))
    kernel, jacobian = TangentKernel(subject, block.inputs), ParameterJacobian(subject, block.inputs)
    u = chance.normal(len(block), 4, rng=chance.generator(0))
    rows = torch.stack([jacobian.transpose(e.view(u.shape)) for e in torch.eye(u.numel(), dtype=torch.float64)])
    close(kernel(u).reshape(-1), rows @ rows.T @ u.reshape(-1))
    v = chance.normal(subject.dimension, 2, rng=chance.generator(1))
    close(jacobian.block(v).reshape(len(rows), 2), rows @ v)


def test_every_eigenvalue_of_a_tanh_network():
    subject = tanh_network()
    assert subject.dimension == 1210
    g = gradients(subject)
    mean = g.mean(0)
    exact = {
        Hessian: dense.hessian(subject),
        GaussNewton: dense.gauss_newton(subject),
        EmpiricalFisher: g.T @ g / len(g),
        GradientCovariance: g.T @ g / len(g) - torch.outer(mean, mean),
    }
    for kind, truth in exact.items():
        made = matrix(kind(subject))
        values, true = torch.linalg.eigvalsh((made + made.T) / 2), torch.linalg.eigvalsh(truth)
        assert (values - true).abs().max() <= 1e-6 * true.abs().max()
    values = gradient_covariance_eigenvalues(subject)[0]
    assert (values - torch.linalg.eigvalsh(exact[GradientCovariance]).flip(0)[: len(g)]).abs().max() <= 1e-6 * values[0]
    single, bound = gradient_covariance_eigenvalues(subject.to(torch.float32))
    assert (single - values).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_ten_are_those_of_the_dense_hessian(dtype):
    subject = tanh_network()
    exact = dense.eigenvalues(subject)[:10]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
    reading = landscape.hessian_eigenvalues(subject.to(dtype), rng=chance.generator(0), k=10, products=400)
    assert np.abs(reading.value - exact.numpy()).max() <= tolerance * float(exact[0])
    assert all(reading.details["converged"])
    assert (reading.interval[0] <= exact.numpy()).all()
    assert (exact.numpy() <= reading.interval[1]).all()
    smallest = landscape.hessian_eigenvalues(subject.to(dtype), rng=chance.generator(0), k=3, which="smallest", products=400)
    assert np.abs(smallest.value - dense.eigenvalues(subject).flip(0)[:3].numpy()).max() <= tolerance * float(exact[0])


@pytest.mark.parametrize("steps", [30, 60, 150, 300])
def test_no_ghosts_however_long_it_runs(steps):
    """One large eigenvalue converges at once; a basis that lost its orthogonality would find it again and again."""
    true = torch.cat([torch.tensor([1000.0, 500.0], dtype=torch.float64), torch.linspace(-1, 1, 598, dtype=torch.float64)])
    turn = torch.linalg.qr(chance.normal(600, 600, rng=chance.generator(7)))[0]
    a = ((turn * true) @ turn.T).float()
    eigen = lanczos_eigenvalues(lambda v: a @ v, 600, k=10, rng=chance.generator(0), like=a, max_products=steps, tolerance=0.0)
    exact = torch.linalg.eigvalsh(a.double())
    assert ((eigen.values > 2).sum()) == 2
    assert ((eigen.values[:, None] - exact).abs().min(1).values <= eigen.residuals).all()
    density = spectral_density(lambda v: a @ v, 600, rng=chance.generator(1), probes=1, steps=steps, like=a)
    assert (density.nodes[density.weights > 0] > 2).sum() == 2


def test_products_do_not_depend_on_the_split():
    subject = tanh_network(n=25)
    v = chance.normal(subject.dimension, rng=chance.generator(0))
    for kind in (Hessian, GaussNewton, EmpiricalFisher, GradientCovariance):
        whole = kind(subject)(v)
        for chunk in (1, 7, 24):
            assert (kind(subject.with_chunk(chunk))(v) - whole).abs().max() < 1e-12 * float(whole.abs().max())


def test_traces_by_every_method_agree_with_the_dense_one():
    with chance.scoped(chance.generator(0)):
        layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.LeakyReLU(), nn.Linear(6, 3)
        model = nn.Sequential(*layers).double().eval()
        data = torch.randn(20, 1, 6, 6, dtype=torch.float64), torch.randint(3, (20,))
    subject = Subject.freeze(model, "cross_entropy", data)
    exact = dense.hessian_trace(subject)
    assert bent_by(subject) == ""
    identity = landscape.hessian_trace(subject, rng=chance.generator(0), method="identity")
    assert float(identity) == pytest.approx(exact, rel=1e-10)
    assert float(landscape.ggn_trace(subject, rng=chance.generator(0))) == pytest.approx(exact, rel=1e-10)
    for method in ("hutchinson", "deflated", "hutch++"):
        inside = []
        for i in range(60):
            low, high = landscape.hessian_trace(subject, rng=chance.generator(0, method, i), probes=12, method=method).ends()
            inside.append(low <= exact <= high)
        assert np.mean(inside) >= 0.85
    plain, better = (landscape.hessian_trace(subject, rng=chance.generator(5), probes=64, method=method).error for method in ("hutchinson", "deflated"))
    assert better < plain
    with pytest.raises(InvalidInput, match="Did you mean 'deflated'"):
        landscape.hessian_trace(subject, rng=chance.generator(0), method="deflate")


@pytest.mark.parametrize("method", ["deflated", "hutch++"])
def test_a_trace_on_a_half_has_the_error_of_the_examples(method):
    """Where the exact part is the whole, no probe is left: the error is that of the examples alone, from the dense Hessians of its groups."""
    data = chance.normal(48, 2, rng=chance.generator(0)), chance.integers(3, 48, rng=chance.generator(1))
    with chance.scoped(chance.generator(0)):
        whole = Subject.freeze(nn.Linear(2, 3).double(), "cross_entropy", data)
    half = whole.sample(32, rng=chance.generator(2))
    found = landscape.hessian_trace(half, rng=chance.generator(3), probes=30, method=method)
    assert float(found) == pytest.approx(dense.hessian_trace(half), rel=1e-12)
    order = chance.permutation(32, rng=chance.generator(0, "groups"))
    groups = np.array([dense.hessian_trace(dataclasses.replace(half, train=half.train.select(order[g::16]), _shared={})) for g in range(16)])
    assert float(found.error) == pytest.approx((groups.var(ddof=1) / 16 * (1 - 32 / 48)) ** 0.5, rel=1e-10)
    assert found.n == 16
    mixed = landscape.hessian_trace(half, rng=chance.generator(3), probes=12, method="hutch++")
    assert float(mixed.error) > float(found.error)


def test_the_identity_names_what_bends():
    for build, culprit in ((cnn, "tanh"), (tied_frozen, "shared")):
        with pytest.raises(OutOfScope, match=culprit):
            landscape.hessian_trace(build(), rng=chance.generator(0), method="identity")


def test_deflation_is_exact_where_all_is_known():
    a = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    found = deflated(lambda v: a @ v, torch.eye(8, dtype=torch.float64), rng=chance.generator(0), probes=2, like=a)
    assert found.value == pytest.approx(36.0, rel=1e-12)


def test_the_estimated_diagonal_covers_the_truth():
    a = chance.normal(30, 30, rng=chance.generator(0))
    a = a + a.T
    mean, error = estimated_diagonal(lambda v: a @ v, 30, rng=chance.generator(1), probes=400, like=a)
    assert ((mean - a.diagonal()).abs() <= 4.5 * error).all()
    assert (error > 0).all()


@networks
def test_diagonals_say_how_they_were_found(build):
    subject = build()
    g = gradients(subject)
    exact = {EmpiricalFisher: (g**2).mean(0), GradientCovariance: (g**2).mean(0) - g.mean(0) ** 2, GaussNewton: dense.gauss_newton(subject).diagonal()}
    for kind, truth in exact.items():
        found = diagonal(kind(subject), rng=chance.generator(0))
        assert found.method.startswith("exact")
        close(found.values, truth, 1e-9)
    names = subject.trainable[-1:]
    both = (2.0 * Hessian(subject) + Identity(subject)).restricted(names)
    size = subject.state[names[0]].numel()
    close(diagonal(both, rng=chance.generator(0)).values, 2 * dense.hessian(subject).diagonal()[-size:] + 1, 1e-9)
    estimated = diagonal(Hessian(subject), rng=chance.generator(0), probes=50)
    assert estimated.method.startswith("estimated with 50 random signs: ")
    truth = dense.hessian(subject).diagonal()
    assert float(((estimated.values - truth).abs() <= 3 * estimated.error + 1e-12).double().mean()) >= 0.95


def test_the_hessian_of_a_piecewise_linear_network_has_an_exact_diagonal():
    with chance.scoped(chance.generator(0)):
        model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3)).double()
        subject = Subject.freeze(model, "cross_entropy", (torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))))
    found = diagonal(Hessian(subject), rng=chance.generator(0))
    assert found.method == "exact, from per-example quantities"
    close(found.values, dense.hessian(subject).diagonal(), 1e-10)


def test_inverse_products_and_influence():
    subject = cnn()
    hessian = dense.gauss_newton(subject) + 0.1 * torch.eye(subject.dimension, dtype=torch.float64)
    v = chance.normal(subject.dimension, rng=chance.generator(0))
    found = landscape.inverse_hessian_product(subject, v, damping=0.1, curvature="ggn", tolerance=1e-10)
    assert found.converged
    close(found.x, torch.linalg.solve(hessian, v), 1e-8)
    reading = landscape.influence(subject, rng=chance.generator(0), damping=0.1, tolerance=1e-6)
    target = loss_gradient(subject, "test")[1]
    exact = gradients(subject) @ torch.linalg.solve(hessian, target) / len(subject.train)
    assert (np.abs(reading.value - exact.numpy()) <= reading.error + 1e-14).all()
    short = landscape.inverse_hessian_product(subject, v, damping=1e-6, curvature="ggn", max_products=2)
    assert not short.converged
    assert short.residual > 1e-4
    with pytest.raises(InvalidInput, match="direction of curvature -1 .* damping above 1"):
        conjugate_gradient(lambda v: -v, v)


def test_log_density_integrates_to_the_share_of_positive_eigenvalues():
    true = torch.cat([torch.logspace(-3, 0, 60, dtype=torch.float64), torch.full((20,), -0.5, dtype=torch.float64)])
    a = torch.diag(true)
    density = spectral_density(lambda v: a @ v, 80, rng=chance.generator(0), probes=50, steps=40, like=a).logarithmic(points=400)
    share = torch.trapezoid(density.samples.mean(0), density.grid)
    assert float(share) == pytest.approx(0.75, abs=0.04)
    reading = landscape.spectral_density(tanh_network(), rng=chance.generator(0), probes=2, scale="log")
    assert reading.axes[0].scale == "log"
    assert (reading.value >= 0).all()


def test_layer_curvature_is_that_of_the_dense_blocks():
    subject = cnn()
    whole, start = dense.hessian(subject), 0
    reading = landscape.layer_curvature(subject, rng=chance.generator(0))
    traces = dense.gauss_newton(subject).diagonal()
    for i, name in enumerate(reading.axes[0].values):
        size = sum(subject.state[key].numel() for key in subject.trainable if key.rpartition(".")[0] == name)
        here = slice(start, start + size)
        assert abs(float(torch.linalg.eigvalsh(whole[here, here])[-1]) - reading.value[i]) <= reading.error[i]
        assert reading.details["ggn_trace"][i] == pytest.approx(float(traces[here].sum()), rel=1e-10)
        start += size
    assert start == subject.dimension


def test_bad_requests_say_what_to_do():
    subject = cnn()
    with pytest.raises(InvalidInput, match=r"Did you mean 'conv1'"):
        Hessian(subject).restricted("conv11")
    with pytest.raises(OutOfScope, match="is frozen"):
        Hessian(tied_frozen()).restricted("fixed")
    with pytest.raises(InvalidInput, match=r"A block of shape \(\d+, k\)"):
        Hessian(subject).block(torch.zeros(subject.dimension + 1, 2, dtype=torch.float64))
    with pytest.raises(InvalidInput, match="must act on the same parameters"):
        Hessian(subject) + GaussNewton(mlp_regression())
    with pytest.raises(InvalidInput, match="k must lie in 1"):
        landscape.hessian_eigenvalues(subject, rng=chance.generator(0), k=10**6)
    short = landscape.hessian_eigenvalues(subject, rng=chance.generator(0), k=10, products=11)
    assert not all(short.details["converged"])
    assert "had not converged" in " ".join(short.assumes)
    other = mlp_regression()
    with pytest.raises(InvalidInput, match="compared parameter by parameter"):
        gradient_cross_gram(subject, other, other="train")


def test_a_basis_that_does_not_fit_says_how_much_it_takes():
    with pytest.raises(NotEnoughMemory, match=r"takes .* GiB\. Ask for fewer"):
        lanczos_eigenvalues(lambda v: v, 2**50, rng=chance.generator(0), like=torch.zeros(1))


def test_an_interrupted_spectrum_resumes_to_the_same_bits(monkeypatch):
    whole = landscape.hessian_eigenvalues(tanh_network(), rng=chance.generator(0), products=200)
    subject, made, product = tanh_network(), [0], Hessian.__call__

    def impatient(self, v):
        made[0] += 1
        if made[0] in (40, 130):
            raise KeyboardInterrupt
        return product(self, v)

    monkeypatch.setattr(Hessian, "__call__", impatient)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            landscape.hessian_eigenvalues(subject, rng=chance.generator(0), products=200)
    again = landscape.hessian_eigenvalues(subject, rng=chance.generator(0), products=200)
    assert made[0] == whole.details["products"] + 2
    assert again.to_json() == whole.to_json()


def test_a_start_near_an_eigenvector_saves_products():
    subject = tanh_network()
    common = {"k": 1, "rng": chance.generator(0), "like": torch.zeros(1, dtype=torch.float64)}
    cold = lanczos_eigenvalues(Hessian(subject), subject.dimension, **common)
    near = subject.at({key: value * 1.001 for key, value in subject.state.items()})
    warm = lanczos_eigenvalues(Hessian(near), subject.dimension, start=cold.vectors[:, 0], **common)
    assert warm.converged.all()
    assert warm.products < cold.products
    assert abs(float(warm.values[0] - dense.eigenvalues(near)[0])) <= float(warm.bounds[0])


class Steep(nn.Module):
    """An output whose derivative overflows for one input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x).abs().sqrt()


def test_the_example_with_an_infinite_gradient_is_named():
    x = torch.ones(6, 2)
    model = Steep()
    with torch.no_grad():
        model.layer.weight.fill_(1.0)
        model.layer.bias.fill_(0.0)
    x[4] = 0.0
    subject = Subject.freeze(model, "mse", (x, torch.ones(6, 2)), chunk=2)
    for reading in (landscape.gradient_norms, landscape.gradient_covariance_eigenvalues, landscape.hessian_eigenvalues):
        with pytest.raises(InvalidInput, match="example 4 .* is not finite"):
            reading(subject, rng=chance.generator(0), **({"k": 2} if reading is landscape.hessian_eigenvalues else {}))


class Attending(nn.Module):
    """Self-attention, and cross-attention whose queries, keys and values differ in kind."""

    def __init__(self, batch_first, apart):
        super().__init__()
        sizes = {"kdim": 3, "vdim": 5} if apart else {}
        self.own, self.cross = nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.MultiheadAttention(4, 2, batch_first=batch_first, **sizes)
        self.head, self.batch_first, self.apart = nn.Linear(4, 2), batch_first, apart

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        h = self.own(x, x, x, need_weights=False)[0]
        key, value = (x[..., :3], torch.cat([x, x[..., :1]], -1)) if self.apart else (x.tanh(), x.tanh())
        h = h + self.cross(h, key, value, need_weights=False)[0]
        return self.head(h.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_takes_no_fallback(batch_first, apart):
    with chance.scoped(chance.generator(0)):
        model = Attending(batch_first, apart).double()
        subject = Subject.freeze(model, "cross_entropy", (torch.randn(7, 6, 4, dtype=torch.float64), torch.randint(2, (7,))), chunk=4)
    linear = nn.functional.linear
    assert plan_of(subject).slow == ()
    g = gradients(subject)
    close(gradient_gram(subject), g @ g.T)
    assert np.allclose(landscape.gradient_norms(subject).value, g.norm(dim=1).numpy(), rtol=1e-11)
    close(empirical_fisher_diagonal(subject), (g**2).mean(0))
    assert nn.functional.linear is linear


def test_parameters_without_a_known_layer_are_named():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x * self.scale)

    subject = Subject.freeze(Raw().double(), "mse", (torch.randn(5, 3).double(), torch.randn(5, 2).double()))
    reading = landscape.gradient_norms(subject)
    assert any(name.startswith("scale:") for name in reading.skipped)
    assert np.allclose(reading.value, gradients(subject).norm(dim=1).numpy())
