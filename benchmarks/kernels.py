"""CPU seconds of analytic kernels: gnomon beside neural-tangents in a process of its own, interleaved, one thread each, medians of five; the first call, which compiles, apart.

Run alone, with the interpreter of the peer's environment (left out without it; see benchmarks/neural_tangents_peer.py):
OMP_NUM_THREADS=1 python benchmarks/kernels.py PEER_PYTHON > benchmarks/kernels.md
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gnomon.data.images import digits, mnist
from gnomon.theory.kernels import infinite_width

REPEATS, PATIENCE = 5, 200.0
C_W, C_B = 2.0, 0.01


def perceptron():
    return nn.Sequential(*[layer for width in (64, 512, 512) for layer in (nn.Linear(width, 512), nn.ReLU())], nn.Linear(512, 1))


def convolutional(*head):
    return nn.Sequential(*[layer for width in (1, 64, 64, 64, 64) for layer in (nn.Conv2d(width, 64, 3, padding=1), nn.ReLU())], *head)


class Peer:
    """The peer's process."""

    def __init__(self, python, folder):
        script = Path(__file__).with_name("neural_tangents_peer.py")
        self.folder, self.process = (
            Path(folder),
            subprocess.Popen([python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}),
        )
        self.versions = json.loads(self.process.stdout.readline())

    def __call__(self, case, x):
        """CPU seconds of one call, and the kernel."""
        images = x.ndim == 4
        np.save(self.folder / "x.npy", (x.movedim(1, -1) if images else x).numpy())
        print(json.dumps({"case": case, "data": str(self.folder / "x.npy"), "out": str(self.folder / "k.npy")}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], torch.from_numpy(np.load(self.folder / "k.npy"))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def timed(function):
    start = time.process_time()
    made = function()
    return time.process_time() - start, made


def row(what, case, network, x, peer, bar):
    """One line of the table: medians, their ratio and the largest relative difference."""
    kernel = infinite_width(network, parametrization="ntk", weight_variance=C_W, bias_variance=C_B)
    own, its = [timed(lambda: kernel(x, kind="ntk"))], [peer(case, x)] if peer else []
    first = own[0][0], its[0][0] if its else float("nan")
    if peer:
        difference = float(((own[0][1] - its[0][1]) / its[0][1]).abs().max())
    exact = kernel(x.double(), kind="ntk")
    rounding = float(((own[0][1].double() - exact) / exact).abs().max())
    own, its = [], []
    for _ in range(REPEATS):
        own.append(timed(lambda: kernel(x, kind="ntk"))[0])
        if peer:
            its.append(peer(case, x)[0])
    mine, other = float(np.median(own)), float(np.median(its)) if its else float("nan")
    name = str(x.dtype).partition(".")[2]
    said = f"{other:.3g} | {mine / other:.2f} | {bar} | {first[0]:.2g}, {first[1]:.2g} | {difference:.1e}" if peer else f"- | - | {bar} | {first[0]:.2g} | -"
    print(f"| {what} | {name} | {mine:.3g} | {said} | {rounding:.1e} |", flush=True)


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(sys.argv[1], folder) if len(sys.argv) > 1 else None
        vectors = torch.cat([images.flatten(1) for images, _ in digits()])
        (images, _), _ = mnist()
        print(peer.versions if peer else "", vectors.shape, images.shape, vectors.min())
        for dtype in (torch.float32, torch.float64):
            x, pictures = vectors.to(dtype), images[:100].to(dtype)
            row("perceptron", "perceptron", perceptron(), x, peer, 0.25)
            row("flat", "flatten", convolutional(nn.Flatten(), nn.Linear(64 * 784, 1)), pictures[:100], peer, 0.5)
        if peer:
            peer.close()


if __name__ == "__main__":
    main()
