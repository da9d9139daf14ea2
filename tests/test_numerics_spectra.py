"""Eigenvalues, densities and traces of matrices whose spectrum is known."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.density import bumps, spectral_density
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import Hessian
from gnomon.numerics.trace import hutch_plus_plus, hutchinson

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def symmetric(eigenvalues, seed=0):
    q = torch.linalg.qr(chance.normal(len(eigenvalues), len(eigenvalues), rng=chance.generator(seed)))[0]
    return (q * eigenvalues) @ q.T


def spectrum(n=400):
    return torch.cat([torch.tensor([50.0, 20.0, 10.0, 9.9, 5.0], dtype=torch.float64), torch.linspace(-1, 1, n - 5, dtype=torch.float64)])


@dtypes
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("products", [30, 60, 150, 300])
def test_bounds_hold_and_no_value_is_found_twice(dtype, which, products):
    true = spectrum()
    a = symmetric(true).to(dtype)
    eigen = lanczos_eigenvalues(lambda v: a @ v, 400, k=5, which=which, rng=chance.generator(1), like=a, max_products=products)
    exact = torch.linalg.eigvalsh(a.double())
    nearest = (eigen.values[:, None] - exact).abs().min(1)
    assert (nearest.values <= eigen.residuals).all()
    assert (eigen.bounds > 0).all()
    assert eigen.products <= products
    residuals = (a.double() @ eigen.vectors.double() - eigen.vectors.double() * eigen.values).norm(dim=0)
    assert (residuals <= eigen.residuals * (1 + 1e-6)).all()
    assert torch.equal(eigen.values, eigen.values.sort(descending=which == "largest").values)
    gram = eigen.vectors.double().T @ eigen.vectors.double()
    assert (gram - torch.eye(5)).abs().max() < 100 * torch.finfo(dtype).eps
    settled = nearest.indices[eigen.converged]
    assert len(set(settled.tolist())) == len(settled)
    if which == "largest":
        assert eigen.converged.all()
        assert torch.allclose(eigen.values, true[:5], rtol=1e-6)


@dtypes
def test_repeated_eigenvalues_come_as_often_as_they_occur(dtype):
    true = torch.tensor([3.0] * 3 + [2.0] * 2 + [-1.0] * 95, dtype=torch.float64)
    a = symmetric(true).to(dtype)
    eigen = lanczos_eigenvalues(lambda v: a @ v, 100, k=6, rng=chance.generator(0), like=a)
    assert torch.allclose(eigen.values, true[:6], atol=1e-5)
    zero = lanczos_eigenvalues(torch.zeros_like, 50, k=3, rng=chance.generator(0), like=a)
    assert zero.values.tolist() == [0, 0, 0]
    assert (zero.bounds > 0).all()
    assert zero.products < 10


@dtypes
@pytest.mark.parametrize("dimension", [1, 2, 5, 20])
def test_small_operators_are_exact(dtype, dimension):
    a = symmetric(torch.linspace(-3, 1, dimension, dtype=torch.float64)).to(dtype)
    for k in (1, dimension):
        eigen = lanczos_eigenvalues(lambda v: a @ v, dimension, k=k, which="smallest", rng=chance.generator(0), like=a, tolerance=0)
        exact = torch.linalg.eigvalsh(a.double())[:k]
        assert ((eigen.values - exact).abs() <= eigen.bounds).all()
        assert (eigen.bounds < 3e4 * torch.finfo(dtype).eps).all()
        assert eigen.products == dimension


def test_bad_requests_say_what_to_do():
    common = {"rng": chance.generator(0), "like": torch.zeros(1)}
    with pytest.raises(InvalidInput, match=r"k must lie in 1 \.\. 3"):
        lanczos_eigenvalues(lambda v: v, 3, k=4, **common)
    with pytest.raises(InvalidInput, match="max_products is 2"):
        lanczos_eigenvalues(lambda v: v, 30, k=4, max_products=2, **common)
    with pytest.raises(InvalidInput, match="not finite"):
        lanczos_eigenvalues(lambda v: v * float("nan"), 30, **common)
    with pytest.raises(InvalidInput, match="Did you mean 'largest'"):
        lanczos_eigenvalues(lambda v: v, 3, which="large", **common)
    with pytest.raises(InvalidInput, match="at least 6 products"):
        hutch_plus_plus(lambda v: v, 3, products=5, **common)
    with pytest.raises(InvalidInput, match="at least one probe"):
        spectral_density(lambda v: v, 3, probes=0, steps=3, **common)


@pytest.mark.parametrize("build", NETWORKS, ids=lambda b: b.__name__)
def test_hessians_of_networks_in_float32_contain_the_float64_values(build):
    single = build(torch.float32, chunk=100)
    double = single.to(torch.float64)
    hessian = Hessian(double)
    dense = torch.stack([hessian(e) for e in torch.eye(double.dimension, dtype=torch.float64)])
    exact = torch.linalg.eigvalsh((dense + dense.T) / 2)
    for subject in (single, double):
        for which, order in (("largest", exact.flip(0)), ("smallest", exact)):
            eigen = lanczos_eigenvalues(Hessian(subject), subject.dimension, k=4, which=which, rng=chance.generator(0), like=subject.state[subject.trainable[0]], max_products=40)
            assert ((eigen.values[:, None] - exact).abs().min(1).values <= eigen.bounds).all()
            assert ((eigen.values[:1] - order[:1]).abs() <= eigen.bounds[:1]).all()


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("products", [20, 32])
def test_bounds_of_values_that_have_not_converged_reach_the_eigenvalue_of_that_rank(products, which):
    true = torch.cat([torch.tensor([3.0], dtype=torch.float64), torch.linspace(1, 0, 199, dtype=torch.float64) ** 3])
    sign = 1 if which == "largest" else -1
    a = sign * symmetric(true)
    for seed in range(50):
        eigen = lanczos_eigenvalues(lambda v: a @ v, 200, k=10, which=which, rng=chance.generator(seed), like=a, max_products=products)
        assert not eigen.converged.all()
        assert ((sign * eigen.values - true[:10]).abs() <= eigen.bounds).all()
        assert (eigen.residuals <= eigen.bounds).all()


def test_same_generator_same_bits():
    a = symmetric(spectrum(100))
    runs = [lanczos_eigenvalues(lambda v: a @ v, 100, k=3, rng=chance.generator(5), like=a) for _ in range(2)]
    assert torch.equal(runs[0].vectors, runs[1].vectors)


def test_density_covers_the_truth_and_keeps_moments():
    """Bands of 200 draws cover the smoothed density of a spread-out and of an outlying spectrum."""
    for true in (torch.linspace(-1, 1, 100, dtype=torch.float64), torch.cat([spectrum(100)[:5], torch.linspace(0, 2, 95, dtype=torch.float64) ** 3])):
        a, covered = symmetric(true), []
        for draw in range(200):
            density = spectral_density(lambda v, a=a: a @ v, 100, rng=chance.generator(draw), probes=2, steps=12, like=a, points=20)
            truth = bumps(density.grid, true, density.width).mean(1)
            low, high = density.band()
            covered.append((low <= truth) & (truth <= high))
        assert 0.9 <= torch.stack(covered).double().mean() <= 0.99
    many = spectral_density(lambda v: a @ v, 100, rng=chance.generator(0), probes=200, steps=12, like=a)
    grid, densities = many
    assert torch.allclose(torch.trapezoid(densities, grid), torch.ones(200, dtype=torch.float64), atol=0.01)
    for order in (0, 1, 2, 3):
        samples = many.moment(order)
        assert abs(samples.mean() - (true**order).mean()) <= 4 * samples.std() / 200**0.5 + 1e-12


def test_density_of_an_operator_with_few_values():
    density = spectral_density(lambda v: 2 * v, 50, rng=chance.generator(0), probes=3, steps=10, like=torch.zeros(1, dtype=torch.float64))
    assert density.moment(1).tolist() == pytest.approx([2, 2, 2])
    low, high = density.band()
    assert torch.isfinite(low).all()
    assert torch.isfinite(high).all()


def test_trace_estimates_are_unbiased_and_their_errors_honest():
    true = spectrum(100)
    a = symmetric(true)
    common = {"like": a}
    exact = float(true.sum())
    samples = hutchinson(lambda v: a @ v, 100, rng=chance.generator(0), probes=2000, **common)
    variance = 2 * float((a - a.diagonal().diag()).square().sum())
    assert abs(samples.mean() - exact) < 4 * (variance / 2000) ** 0.5
    assert float(samples.var()) == pytest.approx(variance, rel=0.15)
    runs = [hutch_plus_plus(lambda v: a @ v, 100, rng=chance.generator(i), products=30, **common) for i in range(200)]
    hits = sum(abs(run.value - exact) <= 2.262 * run.error for run in runs)
    assert all(run.probes == 10 for run in runs)
    assert 180 <= hits <= 198
    assert torch.tensor([run.value for run in runs]).std() < (variance / 30) ** 0.5 / 3
    whole = hutch_plus_plus(lambda v: a[:3, :3] @ v, 3, rng=chance.generator(0), products=9, **common)
    assert whole.value == pytest.approx(float(a[:3, :3].trace()), rel=1e-12)
