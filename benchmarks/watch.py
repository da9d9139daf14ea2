"""What watching costs on the digits network: CPU seconds with and without `Watch(every=100)`, one thread, interleaved, medians of five.

Run alone: OMP_NUM_THREADS=1 python benchmarks/watch.py > benchmarks/watch.md
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gnomon.core import rng as chance
from gnomon.core.loss import cross_entropy
from gnomon.data.images import digits
from gnomon.hooks import Watch
from gnomon.models.digits import DigitsCNN
from gnomon.studies.default import BATCH_SIZE, LR

STEPS, EVERY, REPEATS = 40_001, 100, 5  # the sharpness is due at step 40,000


def training(out=None):
    """CPU seconds of STEPS steps of the default study's training, and the final weights; building the Watch counts too."""
    (x, y), test = digits()
    with chance.scoped(chance.generator(0, "benchmark")):
        model = DigitsCNN()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, foreach=False)
        start = time.process_time()
        watch = None if out is None else Watch(model, "cross_entropy", (x, y), test, every=EVERY, out=out, optimizer=optimizer, batch_size=BATCH_SIZE)
        for step in range(STEPS):
            if watch is not None:
                watch.step(step)
            chosen = torch.randint(len(x), (BATCH_SIZE,))
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
        return time.process_time() - start, [parameter.detach().clone() for parameter in model.parameters()], watch


def main():
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        training(Path(folder) / "warm.json")
        for repeat in range(REPEATS):
            plain, before, _ = training()
            watched, after, watch = training(Path(folder) / f"{repeat}.json")
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            rows.append((plain, watched))
    times = np.array(rows)
    plain, watched = np.median(times, axis=0)
    print("# What watching costs\n")
    print(f"The digits network, {STEPS:,} steps at batch size {BATCH_SIZE}, `Watch(every={EVERY})` with its usual readings; CPU seconds, one thread, interleaved, medians of")
    print(f"{REPEATS} (`benchmarks/watch.py`). The weights are equal bit for bit.\n")
    print("| without | with | ratio |\n|---|---|---|")
    print(f"| {plain:.1f} s | {watched:.1f} s | {np.median(times[:, 1] / times[:, 0]):.3f} |\n")
    print("Taken: " + ", ".join(f"{choice.instrument.replace('_', ' ')} every {choice.every:,} steps" for choice in watch.choices) + ".")


if __name__ == "__main__":
    main()
