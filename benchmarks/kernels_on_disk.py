"""The tangent kernel of 20,000 Fashion-MNIST images on disk: killed half-way and taken up again to the same bits, and regression on it that never loads it.

One thread, each part in a process of its own that the system holds to a cap on memory (RLIMIT_AS, so that an allocation beyond it fails); peaks are those of /proc (VmHWM).  Needs 3.3 GB of disk,
which it gives back.  Seconds are those of the CPU and of the clock.  Run alone: OMP_NUM_THREADS=1 python benchmarks/kernels_on_disk.py > benchmarks/kernels_on_disk.md
"""

from __future__ import annotations

import hashlib
import json
import logging
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

from gnomon.data import idx
from gnomon.run.pool import ProcessPool
from gnomon.theory import kernels

IMAGES, TESTS, CAP, RIDGE, TOLERANCE = int(os.environ.get("IMAGES", "20000")), 1000, 2 * 10**9, 1e-2, 1e-6


def data(split, count):
    """Standardised images and labels, without holding the whole data set as floats."""
    found = idx.arrays(idx.FASHION_MNIST)
    pixels, labels = found[f"{split}-images-idx3-ubyte"][:count].copy(), found[f"{split}-labels-idx1-ubyte"][:count]
    return (torch.from_numpy(pixels).float().flatten(1) / 255 - 0.2860) / 0.3530, torch.from_numpy(labels.astype("int64"))


def network():
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return kernels.infinite_width(model, parametrization="ntk", weight_variance=2.0, bias_variance=0.1)


def fill(folder, part=2.0, jobs=0):
    """Fill the kernel, or be killed once a part of it is done."""
    job = kernels.on_disk(network(), data("train", IMAGES)[0], folder=folder, memory=CAP, pool=ProcessPool(jobs) if jobs else None)
    cost = job.cost()
    spent, tick = time.process_time(), time.perf_counter()
    job.run(lambda done, text: os.kill(os.getpid(), signal.SIGKILL) if done > part else None)
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "said": str(cost),
        "clock": time.perf_counter() - tick,
        "seconds": time.process_time() - spent + workers.ru_utime + workers.ru_stime,
        "workers": workers.ru_maxrss * 1024,
    }


def regress(folder):
    """Kernel ridge regression by conjugate gradients over the file."""
    (x, y), (new, new_y) = data("train", IMAGES), data("t10k", TESTS)
    matrix = kernels.DiskMatrix(Path(folder) / "ntk.npy")
    ridge, said = RIDGE * float(matrix.diagonal().mean()), kernels.solve_cost(IMAGES, 10, memory=CAP // 2, method="conjugate gradients")
    spent, tick = time.process_time(), time.perf_counter()
    targets = nn.functional.one_hot(y, 10).double() - 0.1
    solved = kernels.solve(matrix, targets, ridge=ridge, method="conjugate gradients", tolerance=TOLERANCE, memory=CAP // 2)
    found = {"said": str(said), "clock": time.perf_counter() - tick, "seconds": time.process_time() - spent}
    mean = torch.cat([network()(part, x, "ntk").double() @ solved.x for part in new.split(100)])
    return found | {"products": solved.products, "residual": solved.residual, "right": float((mean.argmax(1) == new_y).double().mean())}


def main():
    """In a process of its own: one part, its result and its peak as JSON."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (CAP, CAP))
    logging.basicConfig(level=logging.WARNING)
    found = globals()[sys.argv[1]](**json.loads(sys.argv[2]))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peaks = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmHWM", "VmPeak"))}
    print(json.dumps(found | {"resident": peaks["VmHWM"], "address": peaks["VmPeak"]}))


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
    needed, folder = 2.05 * 4 * IMAGES**2, Path(tempfile.mkdtemp(dir=os.environ.get("KERNELS")))
    try:
        free = shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(f"two kernels take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free at {folder}; set KERNELS to another folder")
        whole = alone("fill", folder=str(folder / "whole"))
        assert alone("fill", folder=str(folder / "cut"), part=0.5) is None, "killed"
        done = len((folder / "cut" / "done.txt").read_text(encoding="ascii").splitlines())
        rest = alone("fill", folder=str(folder / "cut"))
        same = digest(folder / "whole" / "ntk.npy") == digest(folder / "cut" / "ntk.npy")
        shutil.rmtree(folder / "cut")
        pool = alone("fill", folder=str(folder / "cut"), jobs=2)
        also = digest(folder / "whole" / "ntk.npy") == digest(folder / "cut" / "ntk.npy")
        shutil.rmtree(folder / "cut")
        solved = alone("regress", folder=str(folder / "whole"))
    finally:
        shutil.rmtree(folder)
    print(f"# The tangent kernel of {IMAGES:,} Fashion-MNIST images on disk\n")
    print(
        f"A fully connected ReLU network of depth 3, float32, one thread a process, torch {torch.__version__}; made by `benchmarks/kernels_on_disk.py`. Each process had an address space of"
    )
    print(f"{CAP / 1e9:.0f} GB at most (RLIMIT_AS), of which torch itself takes 0.6 GB, and `memory` is {CAP / 1e9:.0f} GB too.\n")
    print("| what | CPU s | clock s | peak resident | peak address space | said beforehand | |\n|---|---|---|---|---|---|---|")
    for name, found, note in (
        ("fill", whole, ""), (f"the rest, after SIGKILL at {done} tiles", rest, f"the same bits: {'yes' if same else 'NO'}"),
        ("fill, two processes", pool, f"the same bits: {'yes' if also else 'NO'}; the largest worker's peak {pool['workers'] / 1e9:.2f} GB"),
        ("conjugate gradients, ten outputs", solved, f"{solved['products']} products to a residual of {solved['residual']:.0e}; {solved['right']:.3f} of {TESTS:,} test images right"),
    ):  # fmt: skip
        print(f"| {name} | {found['seconds']:.0f} | {found['clock']:.0f} | {found['resident'] / 1e9:.2f} GB | {found['address'] / 1e9:.2f} GB | {found['said']} | {note} |")


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else table()
