"""CPU seconds of the full empirical tangent kernel (N, N, C, C) of a CNN: gnomon beside torch.func's Jacobian contraction and neural-tangents'.

One thread, in turns, medians of five, first calls apart.  Run alone, in an environment that can import gnomon; neural-tangents runs in its own, whose python is named:
OMP_NUM_THREADS=1 python benchmarks/empirical_kernels.py [path/to/python/with/neural-tangents] > benchmarks/empirical_kernels.md
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time

REPEATS, IMAGES, SIZE, CLASSES = 5, 128, 28, 10

PEER = r"""
import json, sys, time
import jax, jax.numpy as jnp, neural_tangents as nt
from neural_tangents import stax
conv = lambda width: stax.Conv(width, (3, 3), padding="SAME")
init, apply, _ = stax.serial(conv(32), stax.Relu(), stax.AvgPool((2, 2), (2, 2)), conv(64), stax.Relu(), stax.AvgPool((2, 2), (2, 2)), conv(64), stax.Relu(), stax.GlobalAvgPool(),
                             stax.Dense(64), stax.Relu(), stax.Dense(10))
x = jax.random.normal(jax.random.PRNGKey(1), (128, 28, 28, 1))
parameters = init(jax.random.PRNGKey(0), x.shape)[1]
made = {name: jax.jit(nt.empirical_ntk_fn(apply, trace_axes=axes, vmap_axes=0, implementation=nt.NtkImplementation.JACOBIAN_CONTRACTION)) for name, axes in (("full", ()), ("trace", (-1,)))}
print(json.dumps({"versions": {"neural-tangents": nt.__version__, "jax": jax.__version__}}), flush=True)
for line in sys.stdin:
    start = time.process_time()
    made[line.strip()](x, None, parameters).block_until_ready()
    print(json.dumps({"seconds": time.process_time() - start}), flush=True)
"""


class Peer:
    """neural-tangents in a process of its own, that waits for its turns."""

    def __init__(self, python: str) -> None:
        environment = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        self.versions = self._read()["versions"]

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                "The python that was given cannot run neural-tangents. Install it there with: pip install 'jax==0.4.30' 'jaxlib==0.4.30' 'neural-tangents==0.6.5' 'numpy<2.1' 'scipy<1.14'"
            )
        return json.loads(line)

    def seconds(self, what: str) -> float:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def network():
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def contraction(model, x):
    """torch.func's Jacobian contraction, each Jacobian made once."""
    import torch
    from torch.func import functional_call, jacrev, vmap

    parameters = {key: value.detach() for key, value in model.named_parameters()}
    jacobian = vmap(jacrev(lambda p, one: functional_call(model, p, (one[None],))[0]), (None, 0))(parameters, x)
    return sum(torch.einsum("Naf,Mbf->NMab", part.flatten(2), part.flatten(2)) for part in jacobian.values())


def seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def peak(function) -> float:
    """The most resident memory during a call, beyond that at its beginning, in MiB."""

    def resident() -> float:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    start, most, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    function()
    done.set()
    thread.join()
    return most[0]


def rounds(contestants: dict) -> tuple[dict, dict]:
    """First calls, and medians of turns."""
    first = {name: run() for name, run in contestants.items()}
    turns = [{name: run() for name, run in contestants.items()} for _ in range(REPEATS)]
    return first, {name: statistics.median(turn[name] for turn in turns) for name in contestants}


def memory(given: int) -> None:
    """One row: the kernel within so many MiB, in a fresh process that has made a small one before."""
    import torch

    from gnomon.core import rng as chance
    from gnomon.instruments.kernels import tangent_kernel

    torch.set_num_threads(1)
    model, x, spent = network(), chance.normal(IMAGES, 1, SIZE, SIZE, rng=chance.generator(1)).float(), []
    tangent_kernel(model, x[:2]).full()
    kernel = tangent_kernel(model, x, memory=given << 20)
    work = kernel.work()
    most = peak(lambda: spent.append(seconds(kernel.full)))
    print(f"| {given} | {work.bytes / 2**20:.0f} | {most:.0f} | {work.side} | {spent[0]:.2f} |")


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        memory(int(sys.argv[2]))
        return
    import torch

    from gnomon.core import rng as chance
    from gnomon.instruments.kernels import tangent_kernel

    torch.set_num_threads(1)
    with chance.scoped(chance.generator(0)):
        model = network()
    x = chance.normal(IMAGES, 1, SIZE, SIZE, rng=chance.generator(1)).float()
    peer = Peer(sys.argv[1]) if len(sys.argv) > 1 else None
    kernel, parameters = tangent_kernel(model, x), list(model.parameters())
    gap = float((kernel.full() - contraction(model, x)).abs().max() / kernel.full().abs().max())
    named = f"; {', '.join(f'{name} {version}' for name, version in peer.versions.items())} in its own environment, compiled" if peer else ""
    print("# Empirical kernels\n\nCPU seconds, one thread, in turns, medians of five, first calls in brackets (`benchmarks/empirical_kernels.py`).")
    print(f"torch {torch.__version__}{named}.")
    print(f"\n## CNN of {sum(p.numel() for p in parameters):,} parameters, {IMAGES} images {SIZE}x{SIZE}, {CLASSES} outputs, float32\n")
    print("| what | gnomon | torch.func | neural-tangents | of torch.func | of neural-tangents | at most |\n|---|---|---|---|---|---|---|")
    for what, bar in (("full", "0.5 and 0.7"), ("trace", "-")):
        contestants = {"gnomon": lambda what=what: seconds(lambda: getattr(tangent_kernel(model, x), what)())}
        if what == "full":
            contestants["torch.func"] = lambda: seconds(lambda: contraction(model, x))
        if peer:
            contestants["neural-tangents"] = lambda what=what: peer.seconds(what)
        first, found = rounds(contestants)
        cells = [f"{found[name]:.2f} ({first[name]:.2f})" if name in found else "-" for name in ("gnomon", "torch.func", "neural-tangents")]
        ratios = [f"{found['gnomon'] / found[name]:.2f}" if name in found else "-" for name in ("torch.func", "neural-tangents")]
        print(f"| {'all outputs' if what == 'full' else 'sum over outputs'} | {' | '.join(cells + ratios)} | {bar} |", flush=True)
    v = chance.normal(IMAGES, CLASSES, rng=chance.generator(2)).float()
    gradient = {"gradient": lambda: seconds(lambda: torch.autograd.grad(model(x).square().mean(), parameters)), "product": lambda: seconds(lambda: kernel(v))}
    _, found = rounds(gradient)
    print(f"\nA product with a vector takes {found['product'] / found['gradient']:.1f} gradients; entries differ from torch.func's by {gap:.0e} of the largest.")
    print("\n## Memory\n\n| memory given, MiB | said beforehand | seen | examples of a tile's side | CPU seconds |\n|---|---|---|---|---|")
    for given in (1024, 256, 128, 64):
        print(subprocess.run([sys.executable, __file__, "memory", str(given)], check=True, capture_output=True, text=True).stdout, end="", flush=True)
    if peer:
        peer.close()


if __name__ == "__main__":
    main()
