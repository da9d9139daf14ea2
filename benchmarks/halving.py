"""By what the gap between the tensors of ensembles and the recursions falls at each doubling of the width, all thirteen tensors, as a markdown page.

python benchmarks/halving.py POINTS.json > halving.md      each point is stored as it ends, and found again
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tensors_grid import ACTIVATIONS, ALL, RATES, X
from tensors_grid import predicted as recursions

from gnomon.core import rng as chance
from gnomon.models import perceptrons
from gnomon.models.differentials import Differentials, differentials

torch.set_num_threads(1)
NAMES = ("tanh", "gelu", "sin", "swish")
MEMBERS = {
    3: {8: (600_000, 200_000), 16: (600_000, 200_000), 32: (200_000, 60_000), 64: (200_000, 40_000)},
    4: {10: (600_000, 200_000), 20: (600_000, 200_000), 40: (80_000, 60_000)},
}
"""Networks for each depth and width: of hidden layers alone, and with their differentials."""
PAIRS = ((0, 0), (0, 1), (1, 1))
WHICH = torch.tensor([[0, 1], [1, 2]])
BLOCKS, LEAST, PILOT = 40, 20_000, {"hidden": 8_000, "moved": 100}
"""Blocks of networks whose scatter is the error; networks of their own: at the least width they say directions, at all of them what goes with the controls."""
EXTRAPOLATIONS = np.array([[0, 0, -1, 2], [0, 1 / 3, -2, 8 / 3]])
"""From widths n/4, n/2, n, 2n to 1/n = 0: a line through the last two, a parabola through the last three."""
predicted = functools.cache(recursions)


def slopes(function, z):
    """s and s'."""
    at = z.detach().requires_grad_()
    value = function(at)
    return value.detach(), torch.autograd.grad(value.sum(), at)[0]


def pairs(values):
    """Products for the inputs a <= b.   Shapes: (members, inputs, units) -> (members, 3, units)."""
    return torch.stack([values[:, a] * values[:, b] for a, b in PAIRS], 1)


def controls(name, made, found):
    """Numbers of each network whose mean is zero: of each hidden layer, and products of two.   Shapes: pre-activations of the hidden layers -> (members, controls)."""
    function, c_w, c_b = ACTIVATIONS[name]
    kernel, ntk = torch.as_tensor(found.kernel), torch.as_tensor(found.ntk)
    own, each = kernel[0].expand(len(made[0]), -1, -1), []
    for layer, z in enumerate(z.double() for z in made):
        s, p = slopes(function, torch.linalg.cholesky(kernel[layer]) @ torch.linalg.solve_triangular(torch.linalg.cholesky(own), z, upper=False))
        ss = (kernel[layer + 1] - c_b) / c_w
        pp = (ntk[layer + 1] - RATES["bias_rates"] - RATES["weight_rates"] * ss) / (c_w * ntk[layer])
        each.append(torch.cat([pairs(s), pairs(p)], 1) - torch.stack([part[a, b] for part in (ss, pp) for a, b in PAIRS])[:, None])
        s = function(z)
        own = c_b + c_w * torch.bmm(s, s.mT) / z.shape[-1]
    linear = torch.stack([part.mean(-1) for part in each], 1)
    square = torch.einsum("mlx,mky->mlxky", linear, linear)
    for layer, part in enumerate(each):
        square[:, layer, :, layer] -= torch.bmm(part, part.mT) / part.shape[-1] ** 2
    size = linear[0].numel()
    one, two = torch.triu_indices(size, size)
    return torch.cat([linear.flatten(1), square.reshape(-1, size, size)[:, one, two]], 1)


def hidden(name, depth, width, members, rng):
    """Given all layers but the last, n times its kernel and tangent kernel less their limits, and the moments; and the controls.   Shapes: -> dict of (members, ...), (members, controls)."""
    function, c_w, c_b = ACTIVATIONS[name]
    found, parts, zero = predicted(name, depth), [], []
    settings = {"features": 3, "depth": depth - 1, "width": width, "weight_variance": c_w, "bias_variance": c_b, "dtype": torch.float32, **RATES}
    for networks in perceptrons.draw(function, members=members, rng=rng, **settings):
        z, theta = networks.hidden_ntk(X)
        s, p = slopes(function, z)
        read = pairs(s.double()).mean(-1)
        kernel = c_b + c_w * read
        ntk = RATES["bias_rates"] + RATES["weight_rates"] * read + c_w * (pairs(p.double()) * theta.diagonal(dim1=-2, dim2=-1)).mean(-1)
        sides = torch.stack([theta[:, 0], theta[:, 1], theta[:, 1].mT, theta[:, 2]], 1)
        sides = (sides.unflatten(1, (2, 2)) * p[:, :, None, :, None] * p[:, None, :, None, :]).flatten(1, 2)
        b = torch.bmm(sides.flatten(2), sides.flatten(2).mT).unflatten(1, (2, 2)).unflatten(3, (2, 2))
        f = (s[:, None] @ sides @ s[:, None].mT).unflatten(1, (2, 2))
        made = {"G1": kernel[:, WHICH] - torch.as_tensor(found.kernel[-1]), "H1": ntk[:, WHICH] - torch.as_tensor(found.ntk[-1])}
        made = {key: width * value for key, value in made.items()}
        scale = c_w**2 / width
        parts.append(made | {"B": scale * torch.einsum("macbd->mabcd", b).double(), "F": scale * torch.einsum("mcdab->macbd", f).double()})
        zero.append(controls(name, networks.preactivations(X), found))
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}, torch.cat(zero)


def with_squares(values, width):
    """And what V, A and D are the means of, but for products of means."""
    one, two = values["G1"], values["H1"]
    return values | {key: torch.einsum("mab,mcd->mabcd", *both) / width for key, both in (("V", (one, one)), ("A", (two, two)), ("D", (one, two)))}


def moved(name, depth, width, members, rng):
    """n times the moments of differentials.   Shapes: -> dict of (members, 2, 2, 2, 2), no controls."""
    function, c_w, c_b = ACTIVATIONS[name]
    settings = {"features": 3, "depth": depth, "width": width, "weight_variance": c_w, "bias_variance": c_b, "dtype": torch.float32, **RATES}
    each = Differentials.stacked(differentials(networks, X) for networks in perceptrons.draw(function, members=members, rng=rng, **settings))
    joined, rest = width * each.joined.double(), width / (width - 1)
    made = {
        "P": rest * each.second_along,
        "Q": rest * each.second_mixed,
        "R": width * each.third,
        "S": (joined[:, 0, 0, 1, 1] + joined[:, 1, 1, 0, 0]) / 2,
        "T": torch.einsum("mabcd->macdb", joined[:, 0, 1, 0, 1] + joined[:, 1, 0, 1, 0]) / 2,
        "U": torch.einsum("mabcd->madbc", joined[:, 0, 1, 1, 0] + joined[:, 1, 0, 0, 1]) / 2,
    }
    return {key: value.double() for key, value in made.items()}, torch.zeros(members, 0, dtype=torch.float64)


def blocks(part, name, depth, width, members):
    """The means of a pilot, and of each block of networks, less what goes with the controls; from V, A and D the products of means are taken.   Shapes: -> dict of (blocks + 1, ...)."""
    generator = chance.child(chance.generator(0), f"halving {part} {name}", 1000 * depth + width)
    slope, rows = {}, {}
    pilot = LEAST if width == min(MEMBERS[depth]) else PILOT[part.__name__]
    for index, count in enumerate([pilot, *[members // BLOCKS] * BLOCKS]):
        values, zero = part(name, depth, width, count, chance.child(generator, "block", index))
        every = with_squares(values, width) if "G1" in values else values
        if not index:
            slope = {key: torch.linalg.lstsq(zero, value.flatten(1) - value.flatten(1).mean(0)).solution for key, value in every.items()} if zero.numel() else {}
        for key, value in every.items():
            found = value.mean(0)
            if key in "VAD":
                one, two = (values[letter].mean(0) for letter in {"V": ("G1", "G1"), "A": ("H1", "H1"), "D": ("G1", "H1")}[key])
                found = (found - torch.einsum("ab,cd->abcd", one, two) / width) * (count / (count - 1))
            taken = (zero.mean(0) @ slope[key]).view(found.shape) if slope else 0
            rows.setdefault(key, []).append((found - taken).tolist())
    return rows


def gaps(done, name, depth):
    """For each tensor its gap in each block at each width, relative to the largest element, and the direction that the pilot of the least width says.   Shapes: (widths, blocks, elements), (elements,)."""
    found, made = predicted(name, depth), {}
    for letter in ALL:
        part = "moved" if letter in "PQRSTU" else "hidden"
        truth = found.value(letter)[-1]
        each = [np.array(done[f"{part} {name} {depth} {width}"][letter]) - truth for width in MEMBERS[depth] if f"{part} {name} {depth} {width}" in done]
        if each:
            each = [gap.reshape(len(gap), -1) / np.abs(truth).max() for gap in each]
            made[letter] = np.stack([gap[1:] for gap in each]), each[0][0] / np.linalg.norm(each[0][0])
    return made


def of_mean(each):
    """Mean and standard error over blocks, the second axis."""
    return each.mean(1), each.std(1, ddof=1) / np.sqrt(each.shape[1])


HEAD = """# How the gap to the recursions falls with the width

`benchmarks/halving.py`: two inputs, float32 networks, one thread, the settings of `tensors_grid.py`; VERSIONS. The gap between n times a moment of an ensemble (of G1 and H1, n times the mean less
its limit) and the recursion is of order 1/n and halves at each doubling of the width. One number stands for a tensor: the gap along the direction that a separate pilot ensemble of the least width says,
relative to the tensor's largest element. Errors are standard errors over 40 blocks, of 600,000 networks at the least widths to 80,000 or more at the largest for G1 to F, 200,000 to 40,000 for P to U; a fall
stands where both gaps are known to six of them.

For G1, H1, V, A, B, D and F the last layer's weights are averaged over exactly: what is sampled is the mean given the layers before. Controls take noise off: a layer's units, made white by the kernel
that they have given the layer before, are independent Gaussians; put through the limit's kernel, their means of s s and s' s' are off the limit's by nothing on average, and so are products of what two
units or layers are off. What goes with them was fitted on the pilot.

With two layers there is no gap at any width: averaged over the last layer, each moment is a sum over the units of the first, which are independent. G1 and H1 of tanh and sin, next to nothing beside
the kernels themselves, have gaps too small to be known.
"""
TAIL = """
Each tensor over all settings: falls that are known, and how many of them by 1.5 to 2.8, all of them and those from widths n >= 10 L; single elements of the tensor whose gaps are both known to six
standard errors, by what they fall (the middle), and how many of them by 1.5 to 2.8; and the share of elements for which the recursion is within two standard errors of what a straight line in 1/n
through 32 and 64 units, or a parabola through 16, 32 and 64, says at 1/n = 0 (three layers).
"""


def page(done):
    print(HEAD.replace("VERSIONS", f"torch {torch.__version__}, numpy {np.__version__}"))
    print("| tensor | activation | layers | gap at 8 or 10 | 16 or 20 | 32 or 40 | 64 | falls by, at each doubling |\n|---|---|---|---|---|---|---|---|")
    tally, elements, lines = {}, {}, {}
    every = {(name, depth): gaps(done, name, depth) for name, depth in itertools.product(NAMES, MEMBERS)}
    for letter, (name, depth) in itertools.product(ALL, every):
        if letter not in every[name, depth]:
            continue
        each, direction = every[name, depth][letter]
        value, error = of_mean(each @ direction)
        falls, row = [], tally.setdefault(letter, np.zeros(4, dtype=int))
        for index in range(len(value) - 1):
            clear = (np.abs(value) > 6 * error)[index : index + 2].all()
            fall = value[index] / value[index + 1]
            falls.append(f"{fall:.2f} ± {abs(fall) * np.hypot(*(error / value)[index : index + 2]):.2f}" if clear else "-")
            close = depth <= 0.1 * list(MEMBERS[depth])[index]
            row += np.array([clear, clear and 1.5 <= fall <= 2.8, clear and close, clear and close and 1.5 <= fall <= 2.8])
        said = [f"{v:.4f} ± {e:.4f}" for v, e in zip(value, error, strict=True)] + [""] * (4 - len(value))
        print(f"| {letter} | {name} | {depth} | {' | '.join(said)} | {', '.join(falls)} |")
        value, error = of_mean(each)
        clear = np.abs(value) > 6 * error
        ratio = (value[:-1] / value[1:])[clear[:-1] & clear[1:]]
        elements.setdefault(letter, []).extend(ratio.tolist())
        if len(each) == 4:
            lines.setdefault(letter, []).append([(np.abs(weights @ value) <= 2 * np.sqrt(np.square(weights) @ error**2)).mean() for weights in EXTRAPOLATIONS])
    summary(tally, elements, lines)


def summary(tally, elements, lines):
    print(TAIL)
    print(
        "| tensor | falls known | by 1.5 to 2.8 | of these L/n <= 0.1 | by 1.5 to 2.8 | elements fall by | by 1.5 to 2.8 | line | parabola |\n|---|---|---|---|---|---|---|---|---|"
    )
    for letter, row in tally.items():
        ratio, part = np.array(elements[letter]), np.mean(lines.get(letter, [[np.nan, np.nan]]), axis=0)
        said = f"{np.median(ratio):.2f} | {((ratio >= 1.5) & (ratio <= 2.8)).sum()}/{len(ratio)}" if len(ratio) else "- | -"
        print(f"| {letter} | {row[0]} | {row[1]} | {row[2]} | {row[3]} | {said} | {part[0]:.2f} | {part[1]:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("points", type=Path)
    path = parser.parse_args().points
    done = json.loads(path.read_text()) if path.exists() else {}
    points = [(depth, width, *half) for depth, each in MEMBERS.items() for width, both in each.items() for half in zip((hidden, moved), both, strict=True)]
    for (depth, width, part, members), name in itertools.product(points, NAMES):
        key = f"{part.__name__} {name} {depth} {width}"
        if key not in done:
            start = time.process_time()
            done[key] = blocks(part, name, depth, width, members)
            path.write_text(json.dumps(done))
            print(f"{key}: {time.process_time() - start:.0f} CPU s", file=sys.stderr, flush=True)
    page(done)
