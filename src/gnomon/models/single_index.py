"""A target that sees one direction of its inputs, and how many examples learners take for it: two-layer networks that see each example once, and kernel regression."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import special, stats
from torch import Generator, Tensor
from torch.nn.functional import normalize

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.numerics.statistics import crossing

Array = NDArray[np.float64]
Kernel = Callable[[Tensor, Tensor], Tensor]
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


@dataclasses.dataclass(frozen=True)
class Networks:
    """Two-layer ReLU networks f(x) = (s / m) sum_i a_i max(w_i . x + b_i, 0), stacked; with the scale s = 1 in the mean-field parametrisation.

    Shapes: weights (members, m, d), biases and outer (members, m, 1).
    """

    weights: Float[Tensor, "members m d"]
    biases: Float[Tensor, "members m 1"]
    outer: Float[Tensor, "members m 1"]
    scale: float

    @staticmethod
    def draw(dimension: int, width: int, members: int, *, scale: float = 1.0, like: Tensor | None = None, rng: Generator) -> Networks:
        """w_i . x and b_i of variance 1 for |x|^2 = d, a_i = 1 and -1 on pairs of equal units, so that f begins at 0; float32 without `like`.   Raises: InvalidInput for an odd width or numbers below 1."""
        if width % 2 or min(width, members, dimension) < 1 or scale <= 0:
            raise InvalidInput(f"An even width, members, a dimension and a scale above 0 are needed, not width={width}, members={members}, dimension={dimension}, scale={scale:g}.")
        of = torch.zeros((), dtype=torch.float32) if like is None else like
        w, b = (chance.normal(members, width // 2, n, rng=chance.child(rng, name), like=of).repeat(1, 2, 1) for name, n in (("weights", dimension), ("biases", 1)))
        outer = torch.ones_like(b)
        outer[:, width // 2 :] = -1
        return Networks(w / math.sqrt(dimension), b, outer, scale)

    def outputs(self, x: Float[Tensor, "members batch d"]) -> Float[Tensor, "members batch"]:
        """f(x).   Cost: one forward pass."""
        return self._outputs(torch.baddbmm(self.biases, self.weights, x.mT).relu())[:, 0]

    def learn(self, x: Float[Tensor, "members batch d"], y: Float[Tensor, "members batch"], lr: float) -> None:
        """One step of lr m / s^2 down the gradient of sum |f - y|^2 / 2, in place: f moves by as much at every width and scale, at a large scale s by weights that move by 1 / s.   Cost: one gradient."""
        fields, step = torch.baddbmm(self.biases, self.weights, x.mT), lr / self.scale
        units = fields.relu()
        missing = y[:, None] - self._outputs(units)
        pulls = self.outer * missing * (fields > 0)
        self.outer.baddbmm_(units, missing.mT, alpha=step)
        self.weights.baddbmm_(pulls, x, alpha=step)
        self.biases.add_(pulls.sum(2, keepdim=True), alpha=step)

    def _outputs(self, units: Tensor) -> Float[Tensor, "members 1 batch"]:
        return torch.bmm(self.outer.mT, units) * (self.scale / units.shape[1])


def on_line_curve(
    networks: Networks, *, lr: float, square: float = 1.0, batch: int = 8, level: float, most: int, growth: float = 2**0.25, tests: int = 500, rng: Generator
) -> Curve:
    """How networks, trained on line with steps of lr / d (`Networks.learn`), come to know `target` from normal inputs: the error on new inputs, one from each of as many equal parts of x_1.

    Shapes: errors averaged over the networks, after numbers of examples that grow by `growth`, up to `level` or `most`.   Cost: 6 m d multiplications an example and network.
    Raises: InvalidInput for steps or a batch that are not positive, or training that diverges.
    """
    (members, _, dimension), draws = networks.weights.shape, chance.child(rng, "examples")
    if lr <= 0 or min(batch, most, tests) < 1:
        raise InvalidInput(f"A learning rate above 0, and a batch, examples and tests of at least 1 are needed, not lr={lr:g}, batch={batch}, most={most}, tests={tests}.")
    new = _along(chance.normal(tests, dimension - 1, rng=chance.child(rng, "tests")), special.ndtri(_strata(tests, rng))).to(networks.weights)
    aims, sizes, errors, n = target(new, square), list[float](), list[float](), 0
    while not errors or (errors[-1] >= level and n < most):
        until = min(most, max(n + 1, FIRST * growth ** len(sizes)))
        while n < until:
            x = chance.normal(members, batch, dimension, rng=draws, like=networks.weights)
            networks.learn(x, target(x, square), lr / dimension)
            n += batch
        sizes.append(float(n))
        errors.append(float((networks.outputs(new.expand(members, -1, -1)) - aims).square().mean() / aims.square().mean()))
        if not math.isfinite(errors[-1]):
            raise InvalidInput(f"The networks overflowed within {n} examples at lr = {lr:g}: take a smaller one, or a smaller batch.")
    return Curve(torch.tensor(sizes, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))


def regression_curve(kernel: Kernel, dimension: int, *, square: float = 1.0, level: float, most: int, growth: float = 2**0.5, tests: int = 500, rng: Generator) -> Curve:
    """How kernel regression without a ridge comes to know `target` from inputs that are uniform on the sphere |x|^2 = d: the error on new inputs, one from each of as many equal parts of x_1.

    f(x) = K(x, X) K(X, X)^-1 y

    Shapes: `kernel` takes (n, d) and (m, d) to (n, m).   Cost: n^3 / 3 multiplications at n examples, of which there are more by `growth` from point to point, up to `level` or `most`.
    Raises: InvalidInput for a kernel that is not positive definite over the examples.
    """
    draws, half = chance.child(rng, "examples"), (dimension - 1) / 2
    cosines = 2 * stats.beta.ppf(_strata(tests, rng), half, half) - 1
    new = math.sqrt(dimension) * _along(normalize(chance.normal(tests, dimension - 1, rng=chance.child(rng, "tests"))) * torch.from_numpy(1 - cosines**2).sqrt()[:, None], cosines)
    aims, x, gram, beside = target(new, square), new[:0], new[:0, :0], new[:, :0]
    sizes, errors = list[float](), list[float]()
    while not errors or (errors[-1] >= level and sizes[-1] < most):
        n = min(most, round(FIRST * growth ** len(sizes)))
        added = math.sqrt(dimension) * normalize(chance.normal(n - len(x), dimension, rng=draws))
        x, beside = torch.cat([x, added]), torch.cat([beside, kernel(new, added)], 1)
        rows = kernel(added, x)
        gram = torch.cat([torch.cat([gram, rows[:, : len(gram)].T], 1), rows])
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info):
            raise InvalidInput(f"The kernel over {n} examples in dimension {dimension} is not positive definite: regression without a ridge needs one that is.")
        solved = torch.cholesky_solve(target(x, square)[:, None], factor)
        sizes.append(float(n))
        errors.append(float((beside @ solved - aims[:, None]).square().mean() / aims.square().mean()))
    return Curve(torch.tensor(sizes, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))


def _strata(n: int, rng: Generator) -> Array:
    """Probabilities, one in each of n equal parts of (0, 1)."""
    return ((torch.arange(n) + chance.uniform(n, rng=chance.child(rng, "strata"))) / n).numpy()


def _along(rest: Float[Tensor, "n rest"], first: Array) -> Float[Tensor, "n d"]:
    """With these first coordinates before the others."""
    return torch.cat([torch.from_numpy(first)[:, None], rest], 1)
