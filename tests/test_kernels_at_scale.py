"""Kernels on disk, systems with them, and the marginal likelihood: against the kernel in memory, dense linear algebra, scipy and finite differences."""

import functools
import json
import math
import resource
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import nn

from gnomon.core.errors import CannotWrite, InvalidInput, NotEnoughMemory
from gnomon.numerics.preconditioned import NegativeCurvature, Preconditioner, conjugate_gradients, pivoted_cholesky
from gnomon.numerics.relaxation import relaxed
from gnomon.run.pool import LocalPool, ProcessPool
from gnomon.theory.infinite import disk, inference, streamed
from gnomon.theory.kernels import DiskMatrix, NotPositiveDefinite, gradient_flow, infinite_width, log_marginal_likelihood, on_disk, posterior, ridge_regression, solve, solve_cost

BOTH = ("nngp", "ntk")
MEMORY = 2**34


def data(n=23, seed=0, dtype=torch.float64):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def kernel_of(c_w=1.5, c_b=0.1):
    return infinite_width(network(), parametrization="ntk", weight_variance=c_w, bias_variance=c_b)


def job(folder, x=None, x2=None, kernel=None, **options):
    return on_disk(kernel or kernel_of(), data() if x is None else x, x2, folder=folder, **({"memory": MEMORY, "tile": 5} | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("square", [True, False])
def test_what_is_on_disk_is_the_kernel(tmp_path, dtype, square):
    x, x2 = data(dtype=dtype), None if square else data(7, seed=1, dtype=dtype)
    todo = job(tmp_path / "k", x, x2, kind=BOTH)
    before = todo.cost()
    assert (before.tiles, before.left) == ((15, 15) if square else (10, 10))
    assert before.disk == 2 * 23 * (23 if square else 7) * x.element_size()
    assert "GB on disk" in str(before)
    parts = []
    made = todo.run(lambda part, text: parts.append(part))
    assert parts == [(i + 1) / before.tiles for i in range(before.tiles)]
    assert todo.cost().left == 0
    for kind, matrix in zip(BOTH, made, strict=True):
        whole = kernel_of()(x, x2, kind)
        torch.testing.assert_close(matrix.block(slice(None)), whole)
        assert np.array_equal(np.load(tmp_path / "k" / f"{kind}.npy", mmap_mode="r"), matrix.block(slice(None)).numpy())
        v = torch.randn(whole.shape[1], 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        torch.testing.assert_close(matrix @ v, matrix.dense() @ v)
        torch.testing.assert_close(matrix @ v[:, 0], matrix.dense() @ v[:, 0])
        torch.testing.assert_close(matrix.diagonal(), matrix.dense().diagonal())
        assert torch.equal(matrix[3], matrix.block(slice(3, 4))[0])
        assert torch.equal(matrix.block(slice(2, 9), slice(1, 4)), matrix.block(slice(None))[2:9, 1:4])


KILLED = """
import os, signal, sys, torch
sys.path[:0] = {path}
import test_kernels_at_scale as t
from gnomon.theory.infinite import disk, inference
put, calls = disk.put, []
def dying(file, part, row, column):
    calls.append(1)
    if len(calls) == 8:  # in the middle of a tile: half of it is written, and no line in the journal says so
        put(file, part[: len(part) // 2], row, column)
        os.kill(os.getpid(), signal.SIGKILL)
    put(file, part, row, column)
disk.put = dying
torch.set_num_threads(1)
t.job({folder!r}).run()
"""


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    torch.set_num_threads(1)
    job(tmp_path / "whole").run()
    code = KILLED.format(path=[entry for entry in sys.path if entry], folder=str(tmp_path / "cut"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    again = job(tmp_path / "cut")
    assert 0 < again.cost().left < again.cost().tiles
    made = []
    again.run(lambda part, text: made.append(text))
    assert len(made) < again.cost().tiles
    assert (tmp_path / "cut" / "ntk.npy").read_bytes() == (tmp_path / "whole" / "ntk.npy").read_bytes()


def test_broken_tiles_and_torn_lines_are_made_again(tmp_path):
    todo = job(tmp_path / "k")
    todo.run()
    good = (tmp_path / "k" / "ntk.npy").read_bytes()
    bad = bytearray(good)
    bad[-8] ^= 1
    (tmp_path / "k" / "ntk.npy").write_bytes(bad)
    journal = (tmp_path / "k" / "done.txt").read_bytes()
    (tmp_path / "k" / "done.txt").write_bytes(journal[: journal.index(b"\n") + 1] + journal[journal.index(b"\n") + 1 : -20])
    assert todo.cost().left == 1
    todo.run()
    assert (tmp_path / "k" / "ntk.npy").read_bytes() == good
    assert todo.cost().left == 0
    (tmp_path / "k" / "ntk.npy").write_bytes(good[:-100])
    assert todo.cost().left == todo.cost().tiles
    with pytest.raises(InvalidInput, match="fill it again"):
        DiskMatrix(tmp_path / "k" / "ntk.npy")
    (tmp_path / "k" / "ntk.npy").write_bytes(good[:50])
    (tmp_path / "k" / "done.txt").write_bytes(b"\xff 1 2\n" + journal)
    todo.run()
    assert (tmp_path / "k" / "ntk.npy").read_bytes() == good


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, monkeypatch):
    job(tmp_path / "whole").run()
    before, journal = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "k" / "done.txt"

    def full(part, text):
        if text.startswith("tile 3"):  # the system then refuses a file that is longer: the rows of the matrix that follow, and all but 10 bytes of a line of the journal
            resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size + 10, before[1]))

    try:
        with pytest.raises(CannotWrite, match=r"File too large.*tiles that are done stay there.*GB are to be written"):
            job(tmp_path / "k").run(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    rest = job(tmp_path / "k")
    assert rest.cost().left == rest.cost().tiles - 3
    rest.run()
    assert (tmp_path / "k" / "ntk.npy").read_bytes() == (tmp_path / "whole" / "ntk.npy").read_bytes()
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CannotWrite, match=r"takes .* GB on disk, and 1e-06 GB are free"):
        job(tmp_path / "small").run()
    assert not (tmp_path / "small").exists()


def test_a_pool_makes_the_same_bits(tmp_path):
    torch.set_num_threads(1)
    job(tmp_path / "here").run()
    job(tmp_path / "local", pool=LocalPool()).run()
    job(tmp_path / "pool", pool=ProcessPool(2), tile=12).run()
    job(tmp_path / "plain", tile=12).run()
    same = [(tmp_path / name / "ntk.npy").read_bytes() for name in ("here", "local", "pool", "plain")]
    assert same[0] == same[1]
    assert same[2] == same[3]
    assert not (tmp_path / "pool" / "x1.npy").exists()


def test_a_folder_holds_one_kernel_and_says_what_differs(tmp_path):
    job(tmp_path / "k").run()
    with pytest.raises(InvalidInput, match="the data x1 differ"):
        job(tmp_path / "k", data(23, seed=5))
    with pytest.raises(InvalidInput, match="the network, its variances"):
        job(tmp_path / "k", kernel=kernel_of(1.6))
    with pytest.raises(InvalidInput, match="kinds of kernel"):
        job(tmp_path / "k", kind=BOTH)
    with pytest.raises(InvalidInput, match="side of a tile"):
        job(tmp_path / "k", tile=4)
    assert job(tmp_path / "k", tile=None).tile == 5
    manifest = json.loads((tmp_path / "k" / "manifest.json").read_text())
    (tmp_path / "k" / "manifest.json").write_text(json.dumps(manifest | {"code": "other"}))
    with pytest.raises(InvalidInput, match="gnomon's own code"):
        job(tmp_path / "k")
    (tmp_path / "k" / "manifest.json").write_text("{")
    with pytest.raises(InvalidInput, match="not the manifest"):
        job(tmp_path / "k")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(CannotWrite, match="not an empty folder"):
        job(tmp_path / "other").run()
    assert (tmp_path / "other" / "mine.txt").read_text() == "keep"
    todo = job(tmp_path / "twice")
    todo._place()
    with disk._locked(tmp_path / "twice"), pytest.raises(CannotWrite, match="Another run"):
        todo.run()
    with pytest.raises(NotEnoughMemory, match="GB in all processes"):
        job(tmp_path / "memory", memory=10**6, tile=None)
    with pytest.raises(InvalidInput, match="has positions"):
        job(tmp_path / "positions", torch.ones(2, 1, 4, 4), kernel=infinite_width(nn.Conv2d(1, 2, 3)))
    with pytest.raises(InvalidInput, match="cannot be sent"):
        job(tmp_path / "local", kernel=lambda a, b=None, kind="ntk": kernel_of()(a, b, kind), pool=LocalPool()).run()


def positive(n=40, seed=0, smallest=1e-3):
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    return q @ torch.logspace(math.log10(smallest), 1, n, dtype=torch.float64).diag() @ q.T


def test_pivoted_cholesky_and_conjugate_gradients_are_dense_algebra():
    a, b = positive(), torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, left = pivoted_cholesky(a, 12)
    assert low.shape == (40, 12)
    assert left == pytest.approx(float((a - low @ low.T).trace()))
    assert float(torch.linalg.eigvalsh(a - low @ low.T)[0]) > -1e-12
    assert left < 0.2 * float(a.trace())
    full, none = pivoted_cholesky(a, 40)
    torch.testing.assert_close(full @ full.T, a)
    assert none < 1e-10
    shifted = low @ low.T + 0.3 * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(Preconditioner(low, 0.3)(b), torch.linalg.solve(shifted, b))
    plain = conjugate_gradients(a, b, damping=0.01, tolerance=1e-10)
    helped = conjugate_gradients(a, b, damping=0.01, tolerance=1e-10, preconditioner=Preconditioner(low, 0.01 + left / 40))
    operator = scipy.sparse.linalg.LinearOperator((40, 40), matvec=lambda v: a.numpy() @ v + 0.01 * v, dtype=np.float64)
    for found in (plain, helped):
        torch.testing.assert_close(found.x, torch.linalg.solve(a + 0.01 * torch.eye(40, dtype=torch.float64), b))
        assert found.converged
        for column in range(3):
            other, _ = scipy.sparse.linalg.cg(operator, b[:, column].numpy(), rtol=1e-12)
            np.testing.assert_allclose(found.x[:, column], other, rtol=1e-6, atol=1e-8)
    assert helped.products < plain.products
    assert not conjugate_gradients(a, b, max_products=2).converged
    assert torch.equal(conjugate_gradients(a, torch.zeros_like(b)).x, torch.zeros_like(b))
    with pytest.raises(NegativeCurvature, match="not positive definite"):
        conjugate_gradients(-a, b)
    with pytest.raises(InvalidInput, match="not finite"):
        conjugate_gradients(a * math.inf, b)
    with pytest.raises(InvalidInput, match="max_products"):
        conjugate_gradients(a, b, max_products=0)


def test_systems_are_solved_by_what_fits_and_say_so(tmp_path, caplog):
    x, y = data(), data(seed=3)[:, :2]
    matrix = job(tmp_path / "k", x).run()
    truth = torch.linalg.solve(matrix.dense() + 0.01 * torch.eye(23, dtype=torch.float64), y)
    with caplog.at_level("INFO", logger="gnomon.theory"):
        by_factor, by_steps = (solve(matrix, y, ridge=0.01, method=method) for method in (None, "conjugate gradients"))
    assert (by_factor.method, by_steps.method) == ("cholesky", "conjugate gradients")
    assert ["by cholesky" in caplog.text, "by conjugate gradients" in caplog.text] == [True, True]
    for found in (by_factor, by_steps, solve(matrix.dense(), y, ridge=0.01, method="conjugate gradients"), solve(matrix.dense().float(), y, ridge=0.01)):
        torch.testing.assert_close(found.x, truth, rtol=2e-4 if found is not by_factor else 1e-7, atol=1e-5)
        assert found.residual < 1e-7
    assert solve(matrix, y[:, 0], ridge=0.01).x.shape == (23,)
    singular = job(tmp_path / "same", torch.cat([x, x[:3]])).run()
    for method in ("cholesky", "conjugate gradients"):
        with pytest.raises(NotPositiveDefinite, match=r"smallest eigenvalue is .*give jitter"):
            solve(singular.dense() - 0.01 * torch.eye(26, dtype=torch.float64), torch.cat([y, y[:3]]), method=method)
    with pytest.raises(NotPositiveDefinite, match="smallest eigenvalue"):
        solve(singular, torch.cat([y, y[:3]]))
    broken = matrix.dense()
    broken[2, 3] = math.nan
    with pytest.raises(InvalidInput, match=r"not finite, the first of them at \(2, 3\)"):
        solve(broken, y)
    for arguments, message in (((matrix, y[:3]), "as many targets"), ((matrix, y * math.nan), "not finite")):
        with pytest.raises(InvalidInput, match=message):
            solve(*arguments)
    with pytest.raises(InvalidInput, match="Did you mean"):
        solve(matrix, y, method="choleski")
    with pytest.raises(InvalidInput, match="ridge must"):
        solve(matrix, y, ridge=-1.0)


def test_right_sides_are_taken_as_many_at_once_as_fit(tmp_path, monkeypatch):
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(300, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = job(tmp_path / "k", x, tile=100).run()
    widths, product = [], DiskMatrix.__matmul__
    monkeypatch.setattr(DiskMatrix, "__matmul__", lambda self, right: widths.append(right.shape[1]) or product(self, right))
    memory = solve_cost(300, 3, method="conjugate gradients", rank=20, itemsize=8).memory + 8 * 300 * (7 - 3)
    cost = solve_cost(300, 7, memory=memory, rank=20, itemsize=8)
    assert (cost.method, cost.columns, cost.rounds) == ("conjugate gradients", 3, 3)
    assert cost.memory <= memory < 2 * 8 * 300**2
    assert "3 right sides at once in 3 rounds" in str(cost)
    found = solve(matrix, y, ridge=0.1, memory=memory, rank=20)
    assert set(widths) == {3, 1}
    assert found.products == len(widths)
    assert found.residual < 1.1e-8
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix.dense() + 0.1 * torch.eye(300, dtype=torch.float64), y), rtol=1e-5, atol=1e-7)
    assert solve_cost(10**5, 10, memory=2**31).rank < 4 * math.isqrt(10**5)
    for memory, outputs in ((10**5, 1), (2**20, 10**4)):
        with pytest.raises(NotEnoughMemory, match=r"GB a right side, and .* GB are allowed. Give more `memory`, fewer right sides"):
            solve_cost(300, outputs, memory=memory, method="conjugate gradients")


def test_training_on_disk_is_the_exponential(caplog):
    a, b = positive(60), torch.randn(60, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for damping, time in ((0.0, 0.3), (0.2, 50.0)):
        shifted = a.numpy() + damping * np.eye(60)
        truth = np.linalg.solve(shifted, b.numpy() - scipy.linalg.expm(-time * shifted) @ b.numpy())
        found = relaxed(a, b, time, damping=damping)
        np.testing.assert_allclose(found.x, truth, rtol=1e-7, atol=1e-8)
        assert found.converged
        few = relaxed(a, b, time, damping=damping, memory=8 * 60 * 2 * (512 + 8))
        torch.testing.assert_close(few.x, found.x, rtol=1e-7, atol=1e-8)  # two columns at a time
        assert few.products > 2 * found.products
    end = relaxed(a, b, 1e9)
    torch.testing.assert_close(end.x, conjugate_gradients(a, b, tolerance=1e-12).x, rtol=1e-5, atol=1e-5)
    assert torch.equal(relaxed(a, torch.zeros_like(b), 1.0).x, torch.zeros_like(b))
    assert not relaxed(a, b, 50.0, max_products=20).converged
    assert "raise max_products or memory" in caplog.text
    with pytest.raises(NegativeCurvature, match="not positive definite"):
        relaxed(a - 0.5 * torch.eye(60, dtype=torch.float64), b, 1.0)
    with pytest.raises(NotEnoughMemory, match="A basis of 16"):
        relaxed(a, b, 1.0, memory=1000)
    for time, matrix in ((-1.0, a), (math.inf, a), (1.0, a * math.inf)):
        with pytest.raises(InvalidInput, match="time must be finite|not finite"):
            relaxed(matrix, b, time)


def test_regression_on_disk_is_regression_in_memory(tmp_path, monkeypatch):
    x, y, new, kernel = data(), data(seed=3)[:, :2], data(4, seed=4), kernel_of()
    for call in (ridge_regression, posterior, lambda *given, **more: gradient_flow(*given, time=1.0, **more)):
        with pytest.raises(NotEnoughMemory, match=r"kernels of 23 examples.*Give `folder`"):
            call(kernel, x, y, new, memory=1000)
    here, whole = ridge_regression(kernel, x, y, new, ridge=0.1), posterior(kernel, x, y, new, noise=0.1)
    asked = [{"time": time, "kind": kind, "jitter": jitter} for time, kind, jitter in ((0.5, "ntk", 0.0), (math.inf, "ntk", 0.1), (2.0, "nngp", 0.05), (math.inf, "nngp", 0.0))]
    flows = [gradient_flow(kernel, x, y, new, **options) for options in asked]
    with monkeypatch.context() as patch:
        patch.setattr(inference, "_beyond", lambda *sizes: True)
        patch.setattr(disk, "PARTS", 2)
        patch.setattr(streamed.Streamed, "columns", 3)
        torch.testing.assert_close(ridge_regression(kernel, x, y, new, ridge=0.1, folder=tmp_path / "ntk"), here)
        made = [posterior(kernel, x, y, new, noise=0.1, folder=tmp_path / "nngp")]
        made += [gradient_flow(kernel, x, y, new, **options, folder=tmp_path / ("both" if options["kind"] == "ntk" else "nngp")) for options in asked]
        for found, truth in zip(made, [whole, *flows], strict=True):
            torch.testing.assert_close(found.mean, truth.mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.covariance, truth.covariance, rtol=1e-5, atol=1e-6)
        assert DiskMatrix(tmp_path / "ntk" / "ntk.npy").shape == DiskMatrix(tmp_path / "nngp" / "nngp.npy").shape == (23, 23)
        patch.setattr(streamed, "solve", functools.partial(solve, max_products=2, rank=1))
        with pytest.raises(NotPositiveDefinite, match=r"after 3 products .* residual .* nearly singular.*give jitter"):
            ridge_regression(kernel, x, y, new, folder=tmp_path / "ntk")
        patch.setattr(streamed, "resident", lambda: MEMORY - 1000)
        with pytest.raises(NotEnoughMemory, match="covariance of 4 test examples"):
            posterior(kernel, x, y, new, noise=0.1, folder=tmp_path / "nngp", memory=MEMORY)
    whole = posterior(kernel, x, y, new, noise=0.1)
    dense = kernel(x) + 0.1 * torch.eye(23, dtype=torch.float64)
    torch.testing.assert_close(whole.mean, kernel(new, x) @ torch.linalg.solve(dense, y))
    torch.testing.assert_close(whole.covariance, kernel(new) - kernel(new, x) @ torch.linalg.solve(dense, kernel(x, new)))


def test_jitter_is_training_with_a_ridge():
    """Euler steps of the linear model that the kernel is: f' = -T (f - y) - jitter (f - f_0) over the weights, whose features are a square root of the kernel."""
    x, new, kernel = data(4), data(2, seed=4), kernel_of()
    y = data(4, seed=3)[:, :1]
    everyone = torch.cat([x, new])
    features = torch.linalg.cholesky(kernel(everyone, None, "ntk"))
    w, rate, ridge = torch.zeros(6, 1, dtype=torch.float64), 2e-4, 0.3
    for _ in range(10_000):
        w = w - rate * (features[:4].T @ (features[:4] @ w - y) + ridge * w)
    torch.testing.assert_close(gradient_flow(kernel, x, y, new, time=2.0, jitter=ridge).mean, features[4:] @ w, rtol=2e-3, atol=1e-4)
    end = gradient_flow(kernel, x, y, new, time=math.inf, jitter=ridge)
    torch.testing.assert_close(end.mean, ridge_regression(kernel, x, y, new, ridge=ridge))


@pytest.mark.parametrize("kind", BOTH)
def test_the_marginal_likelihood_is_that_of_the_normal_law_and_its_gradient_that_of_differences(kind):
    x, y, h = data(12), data(12, seed=3)[:, :2], 1e-4

    def at(c_w=1.5, c_b=0.1, noise=0.2):
        return log_marginal_likelihood(kernel_of(c_w, c_b), x, y, noise=noise, kind=kind)

    found = at()
    law = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=torch.float64), kernel_of()(x, kind=kind) + 0.2 * torch.eye(12, dtype=torch.float64))
    assert found.value == pytest.approx(float(law.log_prob(y.T).sum()), rel=1e-12)
    for name, key in (("weight_variance", "c_w"), ("bias_variance", "c_b"), ("noise", "noise")):
        centre = {"c_w": 1.5, "c_b": 0.1, "noise": 0.2}[key]
        slope = (at(**{key: centre + h}).value - at(**{key: centre - h}).value) / (2 * h)
        assert getattr(found, name) == pytest.approx(slope, rel=1e-5), name
    zero = at(c_b=0.0)
    ahead = (-3 * zero.value + 4 * at(c_b=h).value - at(c_b=2 * h).value) / (2 * h)
    assert zero.bias_variance == pytest.approx(ahead, rel=1e-4)
    bare = infinite_width(nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False)), parametrization="ntk", weight_variance=1.5)
    assert log_marginal_likelihood(bare, x, y, noise=0.2, kind=kind).bias_variance == 0
    with pytest.raises(NotPositiveDefinite, match="eigenvalue"):
        log_marginal_likelihood(kernel_of(), torch.cat([x, x]), torch.cat([y, y]), noise=0.0, kind=kind)
    with pytest.raises(NotEnoughMemory, match="GB are allowed"):
        log_marginal_likelihood(kernel_of(), x, y, noise=0.1, memory=100)
    with pytest.raises(InvalidInput, match="noise is a variance"):
        log_marginal_likelihood(kernel_of(), x, y, noise=-1.0)
