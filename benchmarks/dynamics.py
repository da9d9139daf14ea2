"""What simulations of SGD cost: CPU seconds on one thread, all chains in tensors.

Run alone: OMP_NUM_THREADS=1 python benchmarks/dynamics.py > benchmarks/dynamics.md
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.sgd import Sgd
from gnomon.core.subject import Subject
from gnomon.models.chains import LeastSquaresChains
from gnomon.numerics.walks import walks

CHAINS, STEPS, DIMENSION, BATCH, REPEATS = 400, 20_000, 10, 8, 5
SEEDS, NETWORK_BATCH, NETWORK_STEPS, AMPLIFIED = 50, 32, 200, (1, 4, 16)


def least_squares(sampling):
    """CPU seconds of 400 chains of 20,000 steps."""
    rng = chance.generator(0, "benchmark")
    inputs, targets = chance.normal(200, DIMENSION, rng=rng), chance.normal(200, rng=rng)
    start = time.process_time()
    chains = LeastSquaresChains(inputs, targets, Sgd(lr=0.05, batch_size=BATCH, examples=200, sampling=sampling), chains=CHAINS, rng=rng)
    chains.run(STEPS)
    assert chains.steps == STEPS
    assert bool(torch.isfinite(chains.theta).all())
    return time.process_time() - start


def network(l):  # noqa: E741
    """CPU seconds of SVAG(l) on a network of 101,770 parameters, 50 seeds, over the time of 200 steps of SGD."""
    rng = chance.generator(0, "benchmark")
    inputs, labels = chance.normal(2_000, 784, rng=rng).float(), chance.integers(10, 2_000, rng=rng)
    with chance.scoped(rng):
        module = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    subject = Subject.freeze(module, "cross_entropy", (inputs, labels))
    sgd = Sgd(lr=0.05, batch_size=NETWORK_BATCH, examples=2_000, sampling="without_replacement")
    start = time.process_time()
    ends = walks(subject, sgd, steps=NETWORK_STEPS, runs=SEEDS, level=l, rng=rng)
    assert bool(torch.isfinite(ends.losses).all())
    return time.process_time() - start


def main():
    torch.set_num_threads(1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS
    print("# What simulations of SGD cost\n")
    print("CPU seconds, one thread (`benchmarks/dynamics.py`).\n")
    print("| simulation | CPU s |\n|---|---|")
    for sampling in ("with_replacement", "without_replacement"):
        spent = [least_squares(sampling) for _ in range(repeats)]
        words = sampling.replace("_", " ")
        print(f"| {CHAINS} chains × {STEPS:,} steps of SGD in {DIMENSION} dimensions, batch {BATCH} {words}, median of {repeats} | {np.median(spent):.2f} |")
    times = {l: network(l) for l in AMPLIFIED}  # noqa: E741
    for l, seconds in times.items():  # noqa: E741
        print(f"| SVAG({l}), 101,770 parameters, {SEEDS} seeds, batch {NETWORK_BATCH}, {NETWORK_STEPS * l:,} steps | {seconds:.1f} |")
    print(f"| all of SVAG | {sum(times.values()):.0f} |")


if __name__ == "__main__":
    main()
