"""The tangent kernel of 20,000 Fashion-MNIST images on disk: seconds and peak memory, killed half-way and taken up again, and a regression on it that never loads it.

One thread, each part in a process of its own, so that its peak is its own.  Needs 3.2 GB of disk.  Run alone:
OMP_NUM_THREADS=1 python benchmarks/kernels_on_disk.py > benchmarks/kernels_on_disk.md
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from gnomon.core.task import Task
from gnomon.data import idx
from gnomon.run.budget import peak_bytes
from gnomon.run.pool import ProcessPool
from gnomon.theory import kernels

IMAGES, TESTS, CAP, RIDGE = int(os.environ.get("IMAGES", "20000")), 1000, 2 * 10**9, 1e-2


def data(split, count):
    """Standardised images and labels, without holding the whole data set as floats."""
    found = idx.arrays(idx.FASHION_MNIST)
    pixels, labels = found[f"{split}-images-idx3-ubyte"][:count], found[f"{split}-labels-idx1-ubyte"][:count]
    return (torch.from_numpy(pixels).float().flatten(1) / 255 - 0.2860) / 0.3530, torch.from_numpy(labels.astype("int64"))


def network():
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return kernels.infinite_width(model, parametrization="ntk", weight_variance=2.0, bias_variance=0.1)


def fill(folder, part=2.0, jobs=0):
    """Fill the kernel, or be killed once a part of it is done."""
    job = kernels.on_disk(network(), data("train", IMAGES)[0], folder=folder, memory=CAP, pool=ProcessPool(jobs) if jobs else None)
    cost, tick = job.cost(), time.perf_counter()
    job.run(lambda done, text: os.kill(os.getpid(), signal.SIGKILL) if done > part else None)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"said": str(cost), "seconds": time.perf_counter() - tick, "workers": workers}


def regress(folder):
    """Kernel ridge regression by conjugate gradients over the file."""
    (x, y), (new, new_y) = data("train", IMAGES), data("t10k", TESTS)
    matrix = kernels.DiskMatrix(Path(folder) / "ntk.npy")
    tick = time.perf_counter()
    ridge = RIDGE * float(matrix.diagonal().mean())
    solved = kernels.solve(matrix, nn.functional.one_hot(y, 10).double() - 0.1, ridge=ridge, method="conjugate gradients", tolerance=1e-6)
    spent = time.perf_counter() - tick
    mean = torch.cat([network()(part, x, "ntk").double() @ solved.x for part in new.split(100)])
    return {"seconds": spent, "products": solved.products, "residual": solved.residual, "right": float((mean.argmax(1) == new_y).double().mean())}


def main():
    """In a process of its own: one part, its result and its peak as JSON."""
    torch.set_num_threads(1)
    task = Task(sys.argv[1], json.loads(sys.argv[2]))
    found = globals()[task.call](**task.arguments)
    print(json.dumps(found | {"peak": peak_bytes()}))


def alone(call, **arguments):
    done = subprocess.run([sys.executable, __file__, call, json.dumps(arguments)], capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table():
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("KERNELS")))
    try:
        whole = alone("fill", folder=str(folder / "whole"))
        assert alone("fill", folder=str(folder / "cut"), part=0.5) is None
        rest = alone("fill", folder=str(folder / "cut"))
        same = digest(folder / "whole" / "ntk.npy") == digest(folder / "cut" / "ntk.npy")
        shutil.rmtree(folder / "cut")
        pool = alone("fill", folder=str(folder / "cut"), jobs=2)
        shutil.rmtree(folder / "cut")
        solved = alone("regress", folder=str(folder / "whole"))
    finally:
        shutil.rmtree(folder)
    print(f"# The tangent kernel of {IMAGES:,} Fashion-MNIST images on disk\n")
    print("A fully connected ReLU network of depth 3, float32, one thread, 2 GB allowed; made by `benchmarks/kernels_on_disk.py`.\n")
    print("| what | seconds | peak resident | |\n|---|---|---|---|")
    for name, found, note in (
        ("fill", whole, f"said beforehand: {whole['said']}"), ("the rest, after SIGKILL half-way", rest, f"said beforehand: {rest['said']}; the same bits: {'yes' if same else 'NO'}"),
        ("fill, two processes", pool, f"said beforehand: {pool['said']}; the largest worker's peak: {pool['workers'] / 1e9:.2f} GB"),
        ("conjugate gradients, ten outputs", solved, f"{solved['products']} products to a residual of {solved['residual']:.0e}; {solved['right']:.3f} of {TESTS:,} test images right"),
    ):  # fmt: skip
        print(f"| {name} | {found['seconds']:.1f} | {found['peak'] / 1e9:.2f} GB | {note} |")


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else table()
