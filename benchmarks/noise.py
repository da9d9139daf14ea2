"""What the noise scale costs in gradients, and the SVAG test on a network of 100,000 parameters.

Run alone: OMP_NUM_THREADS=1 python benchmarks/noise.py > benchmarks/noise.md
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.sgd import Sgd
from gnomon.core.subject import Subject
from gnomon.instruments.dynamics import gradient_noise_scale
from gnomon.numerics.operators import loss_gradient
from gnomon.numerics.walks import walks


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def subject_of(network: nn.Module, *shape: int, examples: int) -> Subject:
    """A classifier of random inputs."""
    rng = chance.generator(0, "benchmark")
    return Subject.freeze(network, "cross_entropy", (chance.normal(examples, *shape, rng=rng).float(), chance.integers(10, examples, rng=rng)))


def noise_scale(name: str, subject: Subject, rounds: int = 9) -> str:
    """Medians of interleaved calls, over that of a gradient: of all examples, and as a sample of ten times as many."""
    sample = dataclasses.replace(subject, train=dataclasses.replace(subject.train, population=10 * len(subject.train)), _shared={})
    works = [lambda: loss_gradient(subject), *(lambda s=s: gradient_noise_scale(s, rng=chance.generator(0)) for s in (subject, sample))]
    for work in works:
        work()
    rows = [[cpu(work) for work in works] for _ in range(rounds)]
    gradient, whole, part = (sorted(column)[rounds // 2] for column in zip(*rows, strict=True))
    return f"| {name}, {len(subject.train):,} examples | {1000 * gradient:.1f} ms | {whole / gradient:.2f} | {part / gradient:.2f} |"


def svag(steps: int, runs: int = 50) -> str:
    """Batch 32, SGD and SVAG of levels 4 and 16."""
    network = nn.Sequential(nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 64), nn.ReLU(), nn.Linear(64, 10))
    subject = subject_of(network, 784, examples=2048)
    sgd = Sgd(lr=0.01, batch_size=32, examples=2048, sampling="without_replacement")
    seconds = [cpu(lambda level=level: walks(subject, sgd, steps=steps, runs=runs, level=level, rng=chance.generator(0))) for level in (1, 4, 16)]
    return f"{subject.dimension:,} parameters, batch 32, {runs} runs of {steps} steps: {sum(seconds):.0f} CPU s (levels 1, 4, 16: {', '.join(f'{s:.0f}' for s in seconds)})"


def main() -> None:
    """Print both; the number of SVAG's steps may be given."""
    torch.set_num_threads(1)
    print("# What the noise scale costs\n")
    print("CPU seconds, one thread (`benchmarks/noise.py`). Columns 3 and 4 are in gradients of the same examples, medians of interleaved calls.\n")
    print("| network | gradient | noise scale, all examples | as a sample |\n|---|---|---|---|")
    dense = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    convolutional = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 10))
    for examples in (1024, 8192):
        print(noise_scale("784-128-64-10", subject_of(dense, 784, examples=examples)))
    print(noise_scale("two convolutions", subject_of(convolutional, 1, 28, 28, examples=1024)))
    print()
    print(svag(int(sys.argv[1]) if len(sys.argv) > 1 else 200))


if __name__ == "__main__":
    main()
