"""Prints what the tensors of the effective theory cost and how exact they are, as a markdown table (CPU seconds of one thread).

python benchmarks/tensors.py      how they agree with ensembles: tensors_grid.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.nn import functional as F

from gnomon.theory.effective import tensors

GELU = {"weight_variance": 1.98305826, "bias_variance": 0.17292239}
REPEATS = 3


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


def points(kind):
    """Eight inputs of one kind."""
    random = np.random.default_rng(5)
    x = random.normal(size=(8, 10))
    x /= np.linalg.norm(x, axis=1)[:, None] / np.sqrt(10)
    return {
        "equal norms": x, "norms 0.6 to 1.6": x * np.linspace(0.6, 1.6, 8)[:, None], "correlated by 0.99": np.sqrt(0.99) * random.normal(size=200) + 0.1 * random.normal(size=(8, 200)),
        "orthogonal": 8 * np.eye(8, 64) + 0.05 * random.normal(size=(8, 64)),
    }[kind]  # fmt: skip


def intervals():
    """Eight inputs, a hundred layers: how large errors are beside those that are stated."""
    tanh, swish, mish = {"weight_variance": 1.0, "bias_variance": 0.0}, {"weight_variance": 1.98800468, "bias_variance": 0.55514317}, {"weight_variance": 1.9, "bias_variance": 0.1}
    relu = {"weight_variance": 2.0, "bias_variance": 0.0}
    print("\n| inputs | activation | up to | CPU s | stated error | distance from 1e-7 | elements inside, least of all tensors |\n|---|---|---|---|---|---|---|")
    for kind, name, function, settings, through in (
        ("equal norms", "gelu", F.gelu, GELU, "ddntk"), ("norms 0.6 to 1.6", "gelu", F.gelu, GELU, "ddntk"), ("correlated by 0.99", "gelu", F.gelu, GELU, "ddntk"),
        ("orthogonal", "gelu", F.gelu, GELU, "ddntk"), ("norms 0.6 to 1.6", "tanh", torch.tanh, tanh, "ddntk"), ("equal norms", "swish", F.silu, swish, "ddntk"),
        ("correlated by 0.99", "mish", F.mish, mish, "ddntk"), ("norms 0.6 to 1.6", "relu", torch.relu, relu, "dntk"),
    ):  # fmt: skip
        settings = {"inputs": points(kind), "depth": 100, "through": through, **settings}
        start = time.process_time()
        found = tensors(function, tolerance=1e-4, **settings)
        seconds = time.process_time() - start
        exact = tensors(function, tolerance=1e-7, **settings) if name != "relu" else None
        inside = [float((np.abs(found.value(part) - exact.value(part)) <= found.half_width(part) + exact.half_width(part)).mean()) for part in found.errors] if exact else []
        apart, held = (f"{distance(found, exact):.0e}", f"{100 * min(inside):.1f} %") if exact else ("-", "-")
        print(f"| {kind} | {name} | {through} | {seconds:.2f} | {max(found.relative_error(part) for part in found.errors):.0e} | {apart} | {held} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    table()
    intervals()
