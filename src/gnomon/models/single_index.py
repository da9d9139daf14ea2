"""A target that sees one direction of its inputs, and how many examples learners take for it: two-layer networks that see each example once, and kernel regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.statistics import crossing

FIRST = 16
"""Examples before an error is looked at."""


class Curve(NamedTuple):
    """The mean square error after so many examples, in units of the target's mean square, up to where it falls below the level that was asked for."""

    examples: Float[Tensor, "points"]
    errors: Float[Tensor, "points"]

    def needed(self, level: float) -> float:
        """The number of examples at which the error falls below a level, between points linearly in its logarithm; the last where it does not."""
        return math.exp(crossing(self.examples.log().numpy(), self.errors.numpy(), level))


def target(x: Float[Tensor, "*batch d"], square: float = 1.0) -> Float[Tensor, "*batch"]:
    """(h_1(z) + q h_2(z)) / sqrt(1 + q^2) of z = x_1, with the orthonormal Hermite polynomials h_1 = z and h_2 = (z^2 - 1) / sqrt 2; q is `square`.

    On the sphere |x|^2 = d the two are harmonics of degree 1 and 2.   Shapes: (..., d) -> (...).   Units: its mean square is 1 under normal x.
    """
    z = x[..., 0]
    return (z + square * (z * z - 1) / math.sqrt(2)) / math.sqrt(1 + square * square)


def on_line_curve(
    dimension: int, *, width: int, members: int, lr: float, scale: float = 1.0, square: float = 1.0, batch: int = 8, level: float, most: int, growth: float = 2**0.25, rng: Generator
) -> Curve:
    """How two-layer ReLU networks, trained on line, come to know `target` from normal inputs: the error on each example before it is learned from.

    f(x) = (s / m) sum_i a_i max(w_i . x + b_i, 0);  by example (w_i, b_i) += (lr / (d s)) e a_i [w_i . x + b_i > 0] (x, 1),  a_i += (lr / (d s)) e max(w_i . x + b_i, 0),  e = y - f(x)

    w_i . x and b_i begin with variance 1, a_i as +-1 on pairs of equal units, so that f begins at 0.  With the scale s = 1 this is the mean-field parametrisation, in which features move; as s grows,
    weights move by 1 / s and the network learns as its linearisation, by the same steps of its outputs.

    Shapes: errors averaged over the members and over bins of examples that grow by `growth`, up to `level` or `most` examples.   Cost: 6 width d multiplications an example and member.
    Raises: InvalidInput for an odd width, numbers that are not positive, or training that diverges.
    """
    if width % 2 or min(width, members, batch, dimension, most) < 1 or min(lr, scale) <= 0:
        raise InvalidInput(f"An even width and numbers above 0 are needed, not width={width}, members={members}, batch={batch}, dimension={dimension}, lr={lr:g}, scale={scale:g}.")
    single, step, draws = torch.zeros((), dtype=torch.float32), lr / (dimension * scale), chance.child(rng, "examples")
    w, b = (chance.normal(members, width // 2, n, rng=chance.child(rng, name), like=single).repeat(1, 2, 1) for name, n in (("weights", dimension), ("biases", 1)))
    w /= math.sqrt(dimension)
    a = torch.ones(members, width, 1)
    a[:, width // 2 :] = -1
    sizes, errors, total, since, n, begun = list[float](), list[float](), 0.0, 0, 0, 0
    while n < most and not (errors and errors[-1] < level):
        x = chance.normal(members, batch, dimension, rng=draws, like=single)
        fields = torch.baddbmm(b, w, x.mT)
        units = fields.relu()
        e = target(x, square)[:, None] - scale / width * (a * units).sum(1, keepdim=True)
        pulls = (a * e) * (fields > 0)
        a += step * (units * e).sum(2, keepdim=True)
        w.baddbmm_(pulls, x, alpha=step)
        b += step * pulls.sum(2, keepdim=True)
        n, since, total = n + batch, since + members * batch, total + float(e.square().sum())
        if n >= max(FIRST, growth * begun):
            sizes.append(math.sqrt(max(begun, 1) * n))
            errors.append(total / since)
            total, since, begun = 0.0, 0, n
            if not math.isfinite(errors[-1]):
                raise InvalidInput(f"The networks overflowed within {n} examples at lr = {lr:g}: take a smaller one.")
    return Curve(torch.tensor(sizes, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))


def regression_curve(
    kernel: Callable[[Tensor, Tensor], Tensor], dimension: int, *, square: float = 1.0, level: float, most: int, growth: float = 2**0.5, tests: int = 2000, rng: Generator
) -> Curve:
    """How kernel regression without a ridge comes to know `target` from inputs that are uniform on the sphere |x|^2 = d: the error on new inputs.

    f(x) = K(x, X) K(X, X)^-1 y

    Shapes: `kernel` takes (n, d) and (m, d) to (n, m).   Cost: n^3 / 3 multiplications at n examples, of which there are more by `growth` from point to point, up to `level` or `most`.
    Raises: InvalidInput for a kernel that is not positive definite over the examples.
    """
    draws, new = chance.child(rng, "examples"), _on_sphere(tests, dimension, chance.child(rng, "tests"))
    aims, x = target(new, square), new[:0]
    sizes, errors = list[float](), list[float]()
    while not errors or (errors[-1] >= level and sizes[-1] < most):
        n = min(most, round(FIRST * growth ** len(sizes)))
        x = torch.cat([x, _on_sphere(n - len(x), dimension, draws)])
        factor, info = torch.linalg.cholesky_ex(kernel(x, x))
        if int(info):
            raise InvalidInput(f"The kernel over {n} examples in dimension {dimension} is not positive definite: regression without a ridge needs one that is.")
        solved = torch.cholesky_solve(target(x, square)[:, None], factor)
        sizes.append(float(n))
        errors.append(float((kernel(new, x) @ solved - aims[:, None]).square().mean() / aims.square().mean()))
    return Curve(torch.tensor(sizes, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))


def _on_sphere(n: int, dimension: int, rng: Generator) -> Float[Tensor, "n d"]:
    x = chance.normal(n, dimension, rng=rng)
    return x * (math.sqrt(dimension) / x.norm(dim=1, keepdim=True))
