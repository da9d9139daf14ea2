"""Prints what the tensors of the effective theory cost and how exact they are, as a markdown table (CPU seconds of one thread).

python benchmarks/tensors.py      how they agree with ensembles: tensors_grid.py
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.nn import functional as F

from gnomon.theory.effective import tensors

torch.set_num_threads(1)
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


if __name__ == "__main__":
    table()
