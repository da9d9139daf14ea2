"""CPU seconds of curvature, as multiples of one full-batch gradient in the same process: gnomon beside hessian-eigenthings, curvlinops, PyHessian and Opacus.

One thread, peers interleaved, medians of five.  Run alone, where the peers are installed (those that are not are left out):
OMP_NUM_THREADS=1 python benchmarks/landscape.py > benchmarks/landscape.md
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.subject import Subject
from gnomon.data.images import fashion_mnist
from gnomon.instruments import landscape
from gnomon.numerics.density import spectral_density
from gnomon.numerics.gram import gradient_covariance_eigenvalues, gradient_norms
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import GaussNewton, Hessian

REPEATS, IMAGES, EPOCHS, LR, MOMENTUM = 5, 2000, 60, 0.1, 0.9
PEERS = {"hessian-eigenthings": "hessian_eigenthings", "curvlinops-for-pytorch": "curvlinops", "PyHessian": "pyhessian", "opacus": "opacus"}


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)
    )  # fmt: skip


def trained(build, x, y, epochs):
    with chance.scoped(chance.generator(0, "benchmark")):
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(100):
                optimizer.zero_grad()
                F.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
    return model


def seconds(function, least=0.05):
    """CPU seconds of one call, repeated until it takes a while."""
    start, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - start < least:
        function()
        calls += 1
    return (time.process_time() - start) / calls


def installed(module):
    return module in [PEERS[name] for name in versions()]


def versions():
    found = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class Table:
    """Rows of (what, who): the median of the ratios to the gradient measured beside each."""

    def __init__(self, model, x, y):
        parameters = list(model.parameters())
        self.gradient = lambda: torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        self.gradient()

    def row(self, what: str, bar: str, **who: Callable[[], object] | None):
        ready = {name.replace("_", "-"): function for name, function in who.items() if function is not None}
        for function in ready.values():
            function()
        ratios = {name: [] for name in ready}
        for _ in range(REPEATS):
            for name, function in ready.items():
                one = seconds(self.gradient)
                ratios[name].append(seconds(function) / one)
        each = ", ".join(f"{name} {np.median(values):.2f}" for name, values in ratios.items() if name != "gnomon")
        print(f"| {what} | {np.median(ratios['gnomon']):.2f} | {bar} | {each or '-'} |", flush=True)


class Operators:
    """The peers' operators on the same data, in the same chunks."""

    def __init__(self, model, x, y, chunk):
        self.data = list(zip(x.split(chunk), y.split(chunk), strict=True))
        self.parameters = list(model.parameters())
        self.size = sum(p.numel() for p in self.parameters)
        self.hessian, self.ggn = {}, {}
        if installed("hessian_eigenthings"):
            import hessian_eigenthings as he

            loss = he.supervised_loss(F.cross_entropy)
            self.hessian["hessian_eigenthings"] = he.HessianOperator(model, self.data, loss)
            self.ggn["hessian_eigenthings"] = he.GGNOperator(model, self.data, he.supervised_forward, he.supervised_loss_of_output(F.cross_entropy))
        if installed("curvlinops"):
            import curvlinops

            common = (model, nn.CrossEntropyLoss(), self.parameters, self.data)
            self.hessian["curvlinops"] = curvlinops.HessianLinearOperator(*common, check_deterministic=False)
            self.ggn["curvlinops"] = curvlinops.GGNLinearOperator(*common, check_deterministic=False)

    def products(self, which, v):
        made = {}
        for name, operator in getattr(self, which).items():
            made[name] = (lambda operator=operator: operator.matvec(v)) if name == "hessian_eigenthings" else (lambda operator=operator: operator @ v)
        return made

    def ten(self, peer):
        """The ten largest eigenvalues to a relative residual of 1e-4."""
        if peer == "hessian_eigenthings" and peer in self.hessian:
            import hessian_eigenthings as he

            def grow():
                for steps in (60, 80, 100, 120, 160):
                    found = he.lanczos(self.hessian[peer], k=10, max_iter=steps, which="LA", tol=1e-4, reorthogonalize=True, seed=0)
                    if bool(found.converged.all()):
                        return found
                return found

            return grow
        if peer == "curvlinops" and peer in self.hessian:
            from scipy.sparse.linalg import eigsh

            return lambda: eigsh(self.hessian[peer].to_scipy(), k=10, which="LA", tol=1e-4)
        return None

    def density(self):
        if "hessian_eigenthings" not in self.hessian:
            return None
        import hessian_eigenthings as he

        return lambda: he.spectral_density(self.hessian["hessian_eigenthings"], num_runs=1, lanczos_steps=30, num_grid_points=160, seed=0)


def ghost_norms(build, model, x, y):
    if not installed("opacus"):
        return None
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    copy = build()
    copy.load_state_dict(model.state_dict())
    wrapped = GradSampleModuleFastGradientClipping(copy, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean")

    def norms():
        wrapped.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        return wrapped.get_norm_sample()

    return norms


def top_ten(subject):
    """The ten largest eigenvalues with their set-up, from a fresh subject."""
    fresh = subject.with_chunk(subject.chunk)
    return lanczos_eigenvalues(Hessian(fresh), fresh.dimension, k=10, rng=chance.generator(0), like=fresh.state[fresh.trainable[0]])


def first_product(subject, v):
    fresh = subject.with_chunk(subject.chunk)
    return Hessian(fresh)(v)


class Watched:
    """The most resident memory during a block, beyond that at its beginning, in MiB."""

    def __enter__(self):
        self.start, self.most, self.done = self._resident(), 0.0, False
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.done:
            self.most = max(self.most, self._resident() - self.start)
            time.sleep(0.002)

    def __exit__(self, *_):
        self.done = True
        self.thread.join()

    @staticmethod
    def _resident():
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def perceptron_rows(x, y):
    model = trained(perceptron, x, y, EPOCHS)
    subject = Subject.freeze(model, "cross_entropy", (x, y))
    table, peers, v = Table(model, x, y), Operators(model, x, y, len(x)), chance.normal(subject.dimension, rng=chance.generator(1)).float()
    hessian, block = Hessian(subject), chance.normal(subject.dimension, 8, rng=chance.generator(2)).float()
    print(f"\n## 784-128-64-10 tanh MLP, {subject.dimension:,} parameters, {len(x):,} Fashion-MNIST images, {EPOCHS} epochs of SGD\n")
    print("| what | gnomon | at most | peers |\n|---|---|---|---|")
    table.row("set-up and first Hessian product", "4.15", gnomon=lambda: first_product(subject, v))
    table.row("one Hessian product", "1.15", gnomon=lambda: hessian(v), **peers.products("hessian", v))
    table.row("eight Hessian products as a block, for all", "8.8", gnomon=lambda: hessian.block(block))
    table.row("ten largest eigenvalues, residuals 1e-4, with set-up", "65", gnomon=lambda: top_ten(subject), **{name: peers.ten(name) for name in peers.hessian})
    table.row(
        "30-step quadrature, one probe, with set-up", "40",
        gnomon=lambda: spectral_density(Hessian(subject.with_chunk(subject.chunk)), subject.dimension, rng=chance.generator(0), probes=1, steps=30, like=v),
        hessian_eigenthings=peers.density(),
    )  # fmt: skip
    table.row("norms of per-example gradients", "1.0", gnomon=lambda: gradient_norms(subject), opacus_ghost=ghost_norms(perceptron, model, x, y))
    table.row("all eigenvalues of the gradients' covariance", "60", gnomon=lambda: gradient_covariance_eigenvalues(subject))
    with Watched() as watched:
        gradient_covariance_eigenvalues(subject)
    found = top_ten(subject)
    with chance.scoped(chance.generator(0, "benchmark")):
        start = Subject.freeze(perceptron(), "cross_entropy", (x, y))
    table.row("ten largest eigenvalues at initialisation, with set-up", "-", gnomon=lambda: top_ten(start))
    print(f"\nThe covariance took {watched.most:.0f} MiB beside (at most 150); the ten eigenvalues took {found.products} products, {top_ten(start).products} at initialisation.")


def convolutional_rows(x, y):
    model = trained(convolutional, x, y, 2)
    subject = Subject.freeze(model, "cross_entropy", (x, y))
    table, peers, v = Table(model, x, y), Operators(model, x, y, subject.chunk), chance.normal(subject.dimension, rng=chance.generator(1)).float()
    hessian, gauss_newton = Hessian(subject), GaussNewton(subject)
    print(f"\n## ReLU CNN, {subject.dimension:,} parameters, {len(x):,} images, chunks of {subject.chunk}\n")
    print("| what | gnomon | at most | peers |\n|---|---|---|---|")
    table.row("one Hessian product", "1.9 and 0.8 hessian-eigenthings", gnomon=lambda: hessian(v), **peers.products("hessian", v))
    table.row("one Gauss-Newton product", "0.8 of the better peer", gnomon=lambda: gauss_newton(v), **peers.products("ggn", v))
    table.row("norms of per-example gradients", "1.4", gnomon=lambda: gradient_norms(subject), opacus_ghost=ghost_norms(convolutional, model, x, y))


def large():
    """The largest eigenvalue and the trace of a network of ten million parameters; prints them and the peak of resident memory."""
    with chance.scoped(chance.generator(0)):
        model = nn.Sequential(nn.Linear(1024, 3000), nn.ReLU(), nn.Linear(3000, 2400), nn.ReLU(), nn.Linear(2400, 10))
    rng = chance.generator(1)
    subject = Subject.freeze(model, "cross_entropy", (chance.normal(256, 1024, rng=rng).float(), chance.integers(10, 256, rng=rng)))
    value = landscape.sharpness(subject, rng=chance.generator(2), products=64)
    trace = landscape.hessian_trace(subject, rng=chance.generator(3), probes=8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{subject.dimension:,} parameters: sharpness {value}, trace {trace}; {peak:.2f} GiB at the peak (at most 4), {time.process_time():.0f} CPU s.")


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if sys.argv[1:] == ["large"]:
        large()
        return
    print("# The loss landscape's engine\n\nCPU time as multiples of one full-batch gradient (plain autograd, whole batch) measured beside each call, one thread, medians of five")
    print(f"(`benchmarks/landscape.py`). torch {torch.__version__}; " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".")
    (x, y), _ = fashion_mnist()
    x, y = x[:IMAGES].clone(), y[:IMAGES].clone()
    perceptron_rows(x, y)
    convolutional_rows(x[: IMAGES // 4], y[: IMAGES // 4])
    print("\n## Ten million parameters\n")
    print(subprocess.run([sys.executable, __file__, "large"], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
