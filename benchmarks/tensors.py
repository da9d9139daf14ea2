"""Prints what the tensors of the effective theory cost and how exact they are, as a markdown table (CPU seconds of one thread), and how they agree with ensembles over a grid.

python benchmarks/tensors.py          the table
python benchmarks/tensors.py --grid   100 (activation, depth, width): A, B, D, F of networks against the first order
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.instruments import ensembles
from gnomon.models import perceptrons
from gnomon.theory.effective import tensors

torch.set_num_threads(1)
GELU = {"weight_variance": 1.98305826, "bias_variance": 0.17292239}
REPEATS = 3
ACTIVATIONS = {"tanh": (torch.tanh, 1.3, 0.1), "gelu": (F.gelu, 1.98305826, 0.17292239), "sin": (torch.sin, 1.2, 0.1), "relu": (torch.relu, 2.0, 0.0)}


def timed(function, **settings):
    """The result, and the least CPU seconds of a few runs."""
    seconds, found = [], None
    for _ in range(REPEATS):
        start = time.process_time()
        found = tensors(function, **settings)
        seconds.append(time.process_time() - start)
    return found, min(seconds)


def distance(one, two):
    """The largest difference of any tensor in any layer from the third on, relative to its largest element there."""
    worst = 0.0
    for name in one.errors:
        for a, b in zip(one.value(name)[2:], two.value(name)[2:], strict=True):
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)))
    return worst


def table():
    """Inputs, depth, stage, tolerance: CPU seconds, stated error, distance from the finest."""
    four, eight = np.random.default_rng(0).normal(size=(4, 6)), np.random.default_rng(1).normal(size=(8, 10))
    print("| inputs | layers | activation | up to | asked | CPU s | stated error | distance from 1e-11 |\n|---|---|---|---|---|---|---|---|")
    for inputs, depth, through, tolerances in ((four, 10, "ddntk", (1e-6, 1e-8)), (eight, 100, "dntk", (1e-4,)), (eight, 100, "ddntk", (1e-4,))):
        settings = {"inputs": inputs, "depth": depth, "through": through, **GELU}
        finest = tensors(F.gelu, tolerance=1e-11, **settings) if len(inputs) == 4 else None
        for tolerance in tolerances:
            found, seconds = timed(F.gelu, tolerance=tolerance, **settings)
            stated = max(found.relative_error(name) for name in found.errors)
            apart = f"{distance(found, finest):.0e}" if finest is not None else "-"
            print(f"| {len(inputs)} | {depth} | gelu | {through} | {tolerance:.0e} | {seconds:.2f} | {stated:.0e} | {apart} |", flush=True)


def grid(members=600, blocks=1):
    """Of all elements of A, B, D and F, how many lie within 2.5 L/n of the largest and two standard errors."""
    print("| activation | layers | units | L/n | elements inside | worst gap over its allowance |\n|---|---|---|---|---|---|")
    inside = total = 0
    x = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7]], dtype=torch.float64)
    for name, (function, c_w, c_b) in ACTIVATIONS.items():
        for depth in (2, 3, 4, 5, 6):
            found = tensors(function, inputs=x.numpy(), depth=depth, weight_variance=c_w, bias_variance=c_b, through="ntk")
            for width in (10 * depth, 12 * depth, 15 * depth, 20 * depth, 25 * depth):
                drawn = perceptrons.draw(
                    function,
                    features=3,
                    depth=depth,
                    width=width,
                    members=members,
                    weight_variance=c_w,
                    bias_variance=c_b,
                    rng=chance.child(chance.generator(0), name, 1000 * depth + width),
                )
                z, theta = (torch.cat(part) for part in zip(*(networks.hidden_ntk(x) for networks in drawn), strict=True))
                good, gaps = [], []
                for letter, measured in ensembles.ntk_covariances(z, theta).items():
                    value = found.value(letter)[-1]
                    value = value.transpose(0, 2, 1, 3) if letter in "BF" else value
                    allowed = 2.5 * depth / width * np.abs(value).max() + 2 * np.asarray(measured.error)
                    gaps.append(np.abs(np.asarray(measured.value) - value) / allowed)
                    good.append(gaps[-1] <= 1)
                count = sum(int(part.sum()) for part in good)
                size = sum(part.size for part in good)
                inside, total = inside + count, total + size
                print(f"| {name} | {depth} | {width} | {depth / width:.3f} | {count}/{size} | {max(float(part.max()) for part in gaps):.2f} |", flush=True)
    print(f"\n{inside} of {total} elements inside")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--grid", action="store_true")
    grid() if parser.parse_args().grid else table()
