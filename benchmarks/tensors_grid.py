"""A grid of 100 (activation, depth, width): all first-order tensors of ensembles of real networks on two inputs against the recursions, as a markdown page.

python benchmarks/tensors_grid.py POINTS.json > tensors_grid.md      each point is stored as it ends, and found again
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from gnomon.core import rng as chance
from gnomon.instruments import ensembles
from gnomon.models import perceptrons
from gnomon.models.differentials import Differentials, differentials
from gnomon.theory.effective import tensors

torch.set_num_threads(1)
ACTIVATIONS = {
    "tanh": (torch.tanh, 1.3, 0.1),
    "gelu": (F.gelu, 1.98305826, 0.17292239),
    "sin": (torch.sin, 1.2, 0.1),
    "swish": (F.silu, 1.98800468, 0.05551432),
    "relu": (torch.relu, 2.0, 0.0),
}
DEPTHS, FACTORS = (2, 3, 4, 5), (10, 14, 20, 28, 40)
RATES = {"weight_rates": 0.8, "bias_rates": 0.6}
X = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 1.1, 0.7]], dtype=torch.float64)
FIRST = ("G1", "H1", "V", "A", "B", "D", "F")
ALL = (*FIRST, "P", "Q", "R", "S", "T", "U")

WORDS = """Each tensor over all points; the intercepts of straight lines in 1/n through n and 2n that lie within two standard errors of the recursion; how far they lie from it in standard errors, one number a
line (the root of the mean square over lines of the mean over elements); and by what the gap falls from n to 2n where both are known to six standard errors (the middle, and how many of them by 1.5 to
2.8; a fall is then known to a quarter of itself, so that chance takes every sixth or so out; `halving.md` knows them better, of all tensors). The elements of a tensor move together, since the same
slopes carry them all: a share of 768 intercepts is one of 48 lines, and chance alone moves it by 0.03 about 0.954.
"""


def sizes(depth: int, width: int, milliseconds: float) -> tuple[int, int]:
    """Networks whose derivatives, and whose kernels of all pairs of units, are looked at in about so long each."""
    moved = milliseconds / ((depth - 1) * (7e-6 * width**2 + 1.5e-3 * width))
    hidden = milliseconds / ((depth - 1) * 4e-7 * width**3 + 2e-5 * width**2)
    return int(min(moved, 60_000)), int(min(hidden, 40_000, 5e7 / (3 * width**2)))


def measured(name: str, depth: int, width: int, milliseconds: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Value and standard error of each tensor, positions as in the recursions; of G1 and H1 n times the mean, from which n times the limit is still to be taken."""
    function, c_w, c_b = ACTIVATIONS[name]
    moved, hidden = sizes(depth, width, milliseconds)
    settings = {"features": 3, "depth": depth, "width": width, "weight_variance": c_w, "bias_variance": c_b, "dtype": torch.float32, **RATES}
    generator = chance.child(chance.generator(0), name, 1000 * depth + width)
    found = {}
    if name != "relu":
        drawn = perceptrons.draw(function, members=moved, rng=chance.child(generator, "moved"), **settings)
        found = ensembles.first_order_tensors(width=width, **vars(Differentials.stacked(differentials(networks, X) for networks in drawn)))
    drawn = perceptrons.draw(function, members=hidden, rng=chance.child(generator, "hidden"), **settings)
    z, theta = (torch.cat(part) for part in zip(*(networks.hidden_ntk(X) for networks in drawn), strict=True))
    found |= ensembles.ntk_covariances(z, theta)
    if name == "relu":
        z = z.double()
        squares = torch.einsum("mai,mbi->mabi", z, z)
        own = theta.double().diagonal(dim1=-2, dim2=-1).mean(-1)[:, [[0, 1], [1, 2]]]
        found |= {"kernel": ensembles.over_networks("kernel", squares.mean(-1)), "ntk": ensembles.over_networks("ntk", own)}
    made = {}
    for letter in found:
        value, error = np.asarray(found[letter].value), np.asarray(found[letter].error)
        if letter in "BF":
            value, error = value.transpose(0, 2, 1, 3), error.transpose(0, 2, 1, 3)
        scale = width if letter in ("kernel", "ntk") else 1
        made[{"kernel": "G1", "ntk": "H1"}.get(letter, letter)] = (scale * value, scale * error)
    return made


def predicted(name: str, depth: int):
    function, c_w, c_b = ACTIVATIONS[name]
    return tensors(function, inputs=X.numpy(), depth=depth, weight_variance=c_w, bias_variance=c_b, through="ntk" if name == "relu" else "ddntk", **RATES)


def compared(points, name, depth, width, found):
    """For each tensor: the gap, the standard error, the stated half-width, all relative to the largest element."""
    made = {}
    for letter, (value, error) in points[f"{name} {depth} {width}"].items():
        truth = found.value(letter)[-1]
        value = np.array(value) - (width * {"G1": found.kernel, "H1": found.ntk}[letter][-1] if letter in ("G1", "H1") else 0)
        stated = np.asarray(found.reading(letter, width=width).error)[-1] * width
        made[letter] = tuple(part / max(np.abs(truth).max(), 1e-12) for part in (value - truth, np.array(error), stated))
    return made


def page(points):
    inside = {}
    print("# Tensors of ensembles against the recursions\n")
    print(
        "`benchmarks/tensors_grid.py`: two inputs, float32, one thread; elements inside the stated 95 % interval (truncation and 1.96 standard errors), and inside 2.5 L/n of the largest element and two"
    )
    print(
        f"standard errors. A point agrees where 95 % of its elements are inside the stated interval. About two seconds of networks for each half of a point. torch {torch.__version__}.\n"
    )
    print("| activation | layers | units | L/n | stated | 2.5 L/n | farthest, of its 2.5 L/n and two standard errors | agrees |\n|---|---|---|---|---|---|---|---|")
    tally, agree, intercepts, falls, together = {}, 0, {}, {}, {}
    for name, depth in itertools.product(ACTIVATIONS, DEPTHS):
        found = predicted(name, depth)
        each = {factor * depth: compared(points, name, depth, factor * depth, found) for factor in FACTORS if f"{name} {depth} {factor * depth}" in points}
        for width, tensor in each.items():
            stated = {k: np.abs(gap) <= bound + 1.96 * error for k, (gap, error, bound) in tensor.items()}
            allowed = {k: np.abs(gap) <= 2.5 * depth / width + 2 * error for k, (gap, error, _) in tensor.items()}
            worst = max(tensor, key=lambda k: float((np.abs(tensor[k][0]) / (2.5 * depth / width + 2 * tensor[k][1])).max()))
            for k in tensor:
                row = tally.setdefault(k, np.zeros(4, dtype=int))
                row += [stated[k].sum(), allowed[k].sum(), stated[k].size, 0]
            counts = [sum(int(part.sum()) for part in kind.values()) for kind in (stated, allowed)]
            size = sum(part.size for part in stated.values())
            good = counts[0] >= 0.95 * size
            agree += good
            gap = float((np.abs(tensor[worst][0]) / (2.5 * depth / width + 2 * tensor[worst][1])).max())
            print(f"| {name} | {depth} | {width} | {depth / width:.3f} | {counts[0]}/{size} | {counts[1]}/{size} | {worst}: {gap:.2f} | {'yes' if good else 'no'} |")
            inside[name, depth, width] = good
        for width in each:
            if 2 * width in each:
                for k in each[width]:
                    (one, e1, _), (two, e2, _) = each[width][k], each[2 * width][k]
                    row = intercepts.setdefault(k, np.zeros(2, dtype=int))
                    known = e1 > 0
                    away = (2 * two - one)[known] / np.sqrt(4 * e2**2 + e1**2)[known]
                    row += [(np.abs(away) <= 2).sum(), away.size]
                    together.setdefault(k, []).append(away.mean())
                    clear = (np.abs(one) > 6 * e1) & (np.abs(two) > 6 * e2)
                    falls.setdefault(k, []).extend((one[clear] / two[clear]).tolist())
    print(f"\n{agree} of {len(inside)} points agree.\n")
    print(WORDS)
    print("| tensor | stated | 2.5 L/n | intercepts | of a line | falls by |\n|---|---|---|---|---|---|")
    for k in ALL:
        row, at, ratio = tally[k], intercepts[k], falls[k]
        fall = f"{np.median(ratio):.2f} ({sum(1.5 <= part <= 2.8 for part in ratio)}/{len(ratio)})" if ratio else "-"
        print(f"| {k} | {row[0] / row[2]:.3f} | {row[1] / row[2]:.3f} | {at[0] / at[1]:.3f} | {np.sqrt(np.mean(np.square(together[k]))):.2f} | {fall} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("points", type=Path)
    parser.add_argument("--milliseconds", type=float, default=2000, help="CPU time of each half of a point; more networks say more")
    said = parser.parse_args()
    path = said.points
    done = json.loads(path.read_text()) if path.exists() else {}
    for factor, depth, name in itertools.product(FACTORS, DEPTHS, ACTIVATIONS):
        key = f"{name} {depth} {factor * depth}"
        if key not in done:
            done[key] = {letter: [value.tolist(), error.tolist()] for letter, (value, error) in measured(name, depth, factor * depth, said.milliseconds).items()}
            path.write_text(json.dumps(done))
            print(key, file=sys.stderr, flush=True)
    page(done)
