"""CPU seconds of many networks at once: outputs and tangent kernels beside drawing the weights, beside a loop over modules, and against members and depth.

One thread, medians of five, interleaved.  Run alone: OMP_NUM_THREADS=1 python benchmarks/ensembles.py > benchmarks/ensembles.md
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.models.perceptrons import draw

REPEATS, MEMBERS, DEPTH, WIDTH, LOOPED = 5, 10_000, 10, 64, 100
INPUTS = chance.normal(2, WIDTH, rng=chance.generator(0))


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def run(what, members=MEMBERS, depth=DEPTH, dtype=torch.float32):
    settings = {"features": WIDTH, "depth": depth, "width": WIDTH, "weight_variance": 1.0, "bias_rates": 0.0}
    for networks in draw(torch.tanh, members=members, dtype=dtype, rng=chance.generator(1), **settings):
        if what != "draw":
            getattr(networks, what)(INPUTS)


def module():
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def looped(anew):
    """Outputs of both inputs and the kernel of the first one, network by network: a backward pass an input."""
    network = module()
    for _ in range(LOOPED):
        if anew:
            network = module()
        else:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.normal_(0, WIDTH**-0.5)
        parameters = list(network.parameters())
        outputs = network(INPUTS.float())[:, 0]
        slopes = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(outputs[a], parameters, retain_graph=a == 0)]) for a in range(2)]
        torch.stack(slopes) @ torch.stack(slopes).T


def slope(sizes, timed):
    return np.polyfit(np.log(sizes), np.log([np.median([seconds(lambda size=size: timed(size)) for _ in range(REPEATS)]) for size in sizes]), 1)[0]


def main():
    torch.set_num_threads(1)
    run("outputs_and_ntk", 300)
    kinds = {
        "weights alone, float32": lambda: run("draw"), "outputs and tangent kernel, float32": lambda: run("outputs_and_ntk"),
        f"a loop over modules built anew, float32, {LOOPED} of them": lambda: looped(True), f"a loop over one module re-used, float32, {LOOPED} of them": lambda: looped(False),
        "weights alone, float64": lambda: run("draw", dtype=torch.float64), "tangent kernel of all pairs of units, float64": lambda: run("hidden_ntk", dtype=torch.float64),
    }  # fmt: skip
    taken = {name: [] for name in kinds}
    for _ in range(REPEATS):
        for name, function in kinds.items():
            taken[name].append(seconds(function) * (MEMBERS / LOOPED if "loop" in name else 1))
    median = {name: float(np.median(values)) for name, values in taken.items()}
    names = list(kinds)
    ratio = np.median(np.array(taken[names[1]]) / np.array(taken[names[0]]))
    print("# Ensembles of networks\n")
    print(
        f"CPU seconds for {MEMBERS:,} networks of {DEPTH} layers of {WIDTH} units on two inputs, one thread, medians of {REPEATS} (`benchmarks/ensembles.py`). torch {torch.__version__}.\n"
    )
    print("| what | CPU seconds | at most |\n|---|---|---|")
    bars = {names[1]: "6", names[5]: "20"}
    for name in names:
        print(f"| {name} | {median[name]:.2f} | {bars.get(name, '-')} |")
    print(
        f"\nOutputs and kernel cost {ratio:.2f} of drawing the weights (at most 1.6); loops over modules take {median[names[2]] / median[names[1]]:.0f} times as long built anew,"
    )
    print(f"{median[names[3]] / median[names[1]]:.0f} times with one module re-used.")
    members = slope([2_500, 5_000, 10_000, 20_000], lambda count: run("outputs_and_ntk", count))
    depths = slope([10, 20, 40, 80], lambda depth: run("outputs_and_ntk", 2_500, depth))
    print(f"\nThe time grows as members^{members:.2f} and depth^{depths:.2f} (1 within 0.1).")


if __name__ == "__main__":
    main()
