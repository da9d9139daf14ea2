"""Analytic kernels of gnomon beside neural-tangents in a process of its own, interleaved, one thread each, medians of five; the first call, which compiles, apart.

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

REPEATS = 5
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


CHAIN, WINDOW, DIRECTIONS = 36, 18, {"perceptron": 4, "flatten": 20, "pooling": 20}
"""Multiply-adds, comparisons and the like of a covariance and layer, each counted as one: of the rectifier and the linear map without its polynomials, of the two sums over nine places, and of
the squared distance of directions of 2 or 10 components."""
TERMS = {torch.float32: 16, torch.float64: 36}
"""Terms of the two polynomials."""


def floor(case, dtype, pairs, positions, layers):
    """CPU seconds of that many multiply-adds at the rate of a large product of matrices, and of a square root in the caches."""
    a, b = torch.rand(1000, 1000, dtype=dtype), torch.rand(1000, 1000, dtype=dtype)
    one = min(timed(lambda: torch.mm(a, b))[0] for _ in range(7)) / 1e9
    n, few = 1 << 14, torch.rand(1 << 14, dtype=dtype)
    root = min(timed(lambda: [few.sqrt_() for _ in range(50)])[0] for _ in range(5)) / 50 / n
    return pairs * positions * layers * ((CHAIN + TERMS[dtype] + DIRECTIONS[case] + (WINDOW if case != "perceptron" else 0)) * one + root)


def row(what, case, network, x, peer, bar, *, repeats=REPEATS):
    """One line of the table: medians, their ratio and the largest relative differences between different examples (of one with itself the peer loses half the digits)."""
    kernel = infinite_width(network, parametrization="ntk", weight_variance=C_W, bias_variance=C_B)
    own, its = [timed(lambda: kernel(x, kind="ntk"))], [peer(case, x)] if peer else []
    first, made = (own[0][0], its[0][0] if its else float("nan")), own[0][1]
    others = ~torch.eye(len(x), dtype=torch.bool)
    difference = float(((made - its[0][1]) / its[0][1])[others].abs().max()) if its else float("nan")
    dense, apart = torch.randn(x[:12].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.dtype), float("nan")
    if peer:
        there = peer(case, dense)[1]
        apart = float(((kernel(dense, kind="ntk") - there) / there)[others[:12, :12]].abs().max())
    few = x[:20] if x.ndim == 2 or case == "flatten" else x[:2]
    rounding = float((kernel(few.float(), kind="ntk") / kernel(few.double(), kind="ntk") - 1).abs().max())
    own, its = [], []
    for _ in range(repeats):
        own.append(timed(lambda: kernel(x, kind="ntk"))[0])
        if peer:
            its.append(peer(case, x)[0])
    mine, other, n = float(np.median(own)), float(np.median(its)) if its else float("nan"), len(x)
    positions = 1 if x.ndim == 2 else x[0, 0].numel() ** (2 if case == "pooling" else 1)
    least = floor(case, x.dtype, n * (n + 1) // 2, positions, 3 if case == "perceptron" else 5)
    said = f"{other:.3g} | {mine / other:.2f} | {bar} | {first[0]:.2g}, {first[1]:.2g} | {difference:.0e}, {apart:.0e}" if peer else f"- | - | {bar} | {first[0]:.2g} | -"
    print(f"| {what} | {str(x.dtype).partition('.')[2]} | {mine:.3g} | {least:.2g} | {said} | {rounding:.0e} |", flush=True)


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(sys.argv[1], folder) if len(sys.argv) > 1 else None
        vectors, images = torch.cat([x.flatten(1) for x, _ in digits()]), mnist()[0][0]
        flat, pool = convolutional(nn.Flatten(), nn.Linear(64 * 784, 1)), convolutional(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
        names = ", ".join(f"{name} {version}" for name, version in peer.versions.items()) if peer else "no peer"
        print(f"# Analytic kernels: CPU seconds of one call\n\n{__doc__.partition('.')[0]}. torch {torch.__version__}, {names}.\n")
        print(
            "Tangent kernels of a data set with itself, ReLU, C_W = 2, C_b = 0.01; every pair of examples once. *Floor*: covariances times the multiply-adds of a layer (56 to 110, those of two polynomials\n"
            "in place of an arc cosine among them) at the rate of a large product of matrices, and a square root. What is above it is memory: a layer reads and writes two numbers a covariance, and only\n"
            "a row of them stays in the first cache. *Difference*: to the peer, the largest relative one between two examples, of these data and of Gaussian noise. *float32*: its largest relative error.\n"
            "First call: gnomon's loops are compiled once on a machine (3 s, a dtype), and read from disk after.\n\n"
            "Where the difference of noise is small and that of images is not, it is the peer's: pixels of flat background have a correlation of exactly 1 in both images, at which its\n"
            "arc cosine keeps half the digits. Against 50 digits, pixel by pixel, images of digits are right to 1e-13 here (tests/test_infinite_digits.py); of three pairs of MNIST images\n"
            "behind five convolutions this kernel is off by 4e-16 and the peer's by 1e-10 to 3e-10.\n"
        )
        print("| what | dtype | gnomon, s | floor, s | peer, s | ratio | bar | first call, s | difference | float32 |\n|---|---|---|---|---|---|---|---|---|---|")
        for dtype in (torch.float32, torch.float64):
            single = dtype == torch.float32
            x, pictures, small = vectors.to(dtype), images[:100].to(dtype), images[:6, :, 8:20, 8:20].to(dtype)
            row("3 hidden layers, 1,797 digits", "perceptron", perceptron(), x, peer, "<= 0.25" if single else "<= 0.4")
            row("5 convolutions 3x3, flatten, 100 MNIST images", "flatten", flat, pictures, peer, "<= 0.5")
            row("5 convolutions 3x3, global average pooling, 6 pieces of 12 x 12", "pooling", pool, small, peer, "-")
            row("the same, 20 MNIST images (the peer did not finish in 200 s)", "pooling", pool, pictures[:20], None, "< 10 s" if single else "< 20 s", repeats=3)
        if peer:
            peer.close()


if __name__ == "__main__":
    main()
