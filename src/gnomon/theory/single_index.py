"""How many examples it takes to learn a function of one direction of d inputs: a kernel, and a network that finds the direction.

Notation: y = g(u . x), |u| = 1, inputs normal or uniform on the sphere |x|^2 = d;  g = sum_k c_k h_k in the Hermite polynomials that are orthonormal under N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import brentq
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.chaos import coefficients, line
from gnomon.theory.eigenlearning import SIMON_2023, learning_curve

GHORBANI_2021 = Source("ghorbani2021")
BENAROUS_2021 = Source("benarous2021")
HIGHEST = 12
"""The highest degree that is looked at by itself."""
NODES = 200
Kernel = Callable[[Tensor, Tensor], Tensor]


def harmonics(dimension: int, degree: int) -> int:
    """How many independent polynomials of a degree there are on the sphere of R^d, orthogonal to those of lower degree.

    C(d + k - 1, k) - C(d + k - 3, k - 2) = d^k / k! (1 + O(1/d))

    Units: none.   Error: none.   Cost: none.   Raises: InvalidInput for a dimension below 2 or a degree below 0.
    """
    if dimension < 2 or degree < 0:
        raise InvalidInput(f"Harmonics take a dimension of at least 2 and a degree of at least 0, not {dimension} and {degree}.")
    return math.comb(dimension + degree - 1, degree) - (math.comb(dimension + degree - 3, degree - 2) if degree > 1 else 0)


def information_exponent(function: Callable[[Tensor], Tensor], *, breaks: tuple[float, ...] = (0.0,), tolerance: float = 1e-8) -> int:
    """The lowest degree, above 0, that a function of a normal number has: the least s with E g(z) h_s(z) not 0.

    Shapes: `function` maps a float64 tensor to one of equal shape, element by element; `breaks`: where it has kinks or jumps.   Units: none.
    Error: a coefficient counts as 0 below `tolerance` of the root of E g^2.   Assumes: |g| grows slower than exp(z^2 / 4).   Cost: some hundreds of evaluations.
    Raises: InvalidInput where values are not finite; OutOfScope where the coefficients 1 to 12 are all 0.
    Source: Ben Arous et al. 2021, section 1 (of a population loss; for the squared loss of a target of one direction it is this).
    """
    nodes, weights = line(breaks)
    values = function(torch.from_numpy(nodes)).double().numpy()
    if values.shape != nodes.shape or not np.isfinite(values).all():
        raise InvalidInput(f"The function must turn {nodes.shape} normal numbers into as many finite ones; within {abs(nodes).max():.0f} standard deviations it does not.")
    found = np.abs(coefficients(values, breaks, HIGHEST + 1)[1:]) > tolerance * math.sqrt(float(values**2 @ weights))
    if not found.any():
        raise OutOfScope(f"the Hermite coefficients 1 to {HIGHEST} of the function are 0: it is constant, or its information exponent lies above")
    return int(np.argmax(found)) + 1


def sphere_spectrum(kernel: Kernel, dimension: int) -> tuple[Float64[Array, "degrees"], Float64[Array, "degrees"], float]:
    """The eigenvalues of a kernel of x . x' over the sphere |x|^2 = d, one a degree, how many harmonics have each, and what the higher degrees add to K(x, x).

    lambda_k = E K(x, x') P_k(x . x' / d), with the Gegenbauer polynomial P_k, P_k(1) = 1;   K(x, x) = sum_k N(d, k) lambda_k

    Shapes: `kernel` takes float64 (n, d) and (m, d) to (n, m) -> (13,), (13,), ().   Units: those of the kernel.
    Error: that of Gauss quadrature with 200 nodes; eigenvalues below rounding are 0 and their degrees among the higher ones.   Assumes: K depends on x . x' alone there.   Cost: 200 values of the kernel.
    Raises: InvalidInput for a dimension below 3, and for a kernel that is not finite or not positive.
    """
    if dimension < 3:
        raise InvalidInput(f"The sphere of a dimension of at least 3 is meant, not {dimension}.")
    k = np.arange(1, NODES, dtype=np.float64)
    beside = np.sqrt(k * (k + dimension - 3) / ((2 * k + dimension - 2) * (2 * k + dimension - 4)))
    cosines, vectors = eigh_tridiagonal(np.zeros(NODES), beside)
    points = torch.zeros(NODES + 1, dimension, dtype=torch.float64)
    points[:, 0] = torch.from_numpy(np.append(cosines, 1.0))
    points[:, 1] = (1 - points[:, 0] ** 2).clamp(min=0).sqrt()
    *values, top = kernel(points[-1:] * math.sqrt(dimension), points * math.sqrt(dimension))[0].tolist()
    weighted, polynomials = vectors[0] ** 2 * np.array(values), [np.ones(NODES), cosines]
    for j in range(1, HIGHEST):
        polynomials.append(((2 * j + dimension - 2) * cosines * polynomials[-1] - j * polynomials[-2]) / (j + dimension - 2))
    found, counts = np.array(polynomials) @ weighted, np.array([harmonics(dimension, j) for j in range(HIGHEST + 1)], dtype=np.float64)
    if not np.isfinite(found).all() or (found < -1e-12 * top).any():
        raise InvalidInput(f"The kernel is no positive function of x . x' on the sphere in dimension {dimension}: its eigenvalues by degree are {found.tolist()}.")
    found[found < 1e-15 * top] = 0.0
    return found, counts, max(top - float(found @ counts), 0.0)


def kernel_samples(kernels: Sequence[Kernel], dimensions: Sequence[int], parts: ArrayLike, *, level: float) -> Reading:
    """The number of examples after which kernel regression without a ridge leaves a part `level` of a target unlearned, in each dimension, from the kernel's eigenvalues on the sphere.

    E_n / sum_k v_k^2 = level, with E_n of `eigenlearning.learning_curve` and v_k^2 the mean square of the target's part of degree k (`parts`, from degree 0); degrees above 12 act as a ridge; 1 where a single example is enough.

    Shapes: a kernel a dimension, as `sphere_spectrum` takes; parts (degrees,) or (dimensions, degrees), 13 degrees at most; value (dimensions,).   Units: examples.
    Error: truncation: value / sqrt(value), the size of what n examples leave of an average.   Assumes: universality of the harmonics.   Cost: some thousands of sums a dimension.
    Raises: InvalidInput for a level outside (0, 1), and for parts that are too many or no squares; OutOfScope where the kernel never learns so much.   Source: Simon et al. 2023; Bordelon et al. 2020.
    """
    given = np.atleast_1d(np.asarray(parts, dtype=np.float64))
    if not 0 < level < 1 or len(kernels) != len(dimensions) or given.shape[-1] > HIGHEST + 1 or given.shape[:-1] not in ((), (len(dimensions),)):
        raise InvalidInput(
            f"A level between 0 and 1, a kernel a dimension and at most {HIGHEST + 1} parts are needed, not {level}, {len(kernels)} and parts of shape {given.shape} for {len(dimensions)}."
        )
    if not (np.isfinite(given).all() and (given >= 0).all() and (given.sum(-1) > 0).all()):
        raise InvalidInput(f"The parts of a target are squares, one of them above 0, not {given.tolist()}.")
    table, value = np.broadcast_to(given, (len(dimensions), given.shape[-1])), list[float]()
    for kernel, d, squares in zip(kernels, dimensions, table, strict=True):
        eigenvalues, counts, rest = sphere_spectrum(kernel, d)
        power = np.pad(squares / squares.sum(), (0, HIGHEST + 1 - len(squares)))

        def above(log: float, values: Array = eigenvalues, many: Array = counts, power: Array = power, ridge: float = rest) -> float:
            return float(learning_curve(values, power, [math.exp(log)], ridge=ridge, counts=many)) - level

        last = math.log(1e4 * float(counts[power > 0].max()))
        if above(last) > 0:
            raise OutOfScope(f"in dimension {d} the kernel leaves more than {level} of the target after {math.exp(last):.2g} examples: some of its degrees it does not see")
        value.append(math.exp(brentq(above, 0.0, last)) if above(0.0) > 0 else 1.0)
    axes = (Axis("dimension", tuple(map(float, dimensions)), scale="log"),)
    return Reading.predicted("kernel_samples", np.array(value), unit="examples", error=np.sqrt(value), error_kind="truncation", axes=axes, source=SIMON_2023)


def kernel_sample_exponent(degree: int, samples: Reading) -> Reading:
    """The power of d with which the examples grow that kernel regression takes for a polynomial of degree k: k.

    n ~ d^k: with d^(k - 1 + e) <= n <= d^(k - e) examples a kernel of x . x', as those of fully connected layers are, learns the parts of degree below k alone.

    Shapes: `samples` of `kernel_samples` at the dimensions in question; value ().   Units: none.
    Error: truncation: twice what is left of the next orders in 1 / d there, the distance of the slope of `samples` from k.   Assumes: inputs uniform on the sphere; a kernel that sees degree k.
    Cost: none.   Raises: InvalidInput for a degree below 1, or fewer than two dimensions.   Source: Ghorbani et al. 2021.
    """
    if degree < 1:
        raise InvalidInput(f"A polynomial of a degree of at least 1 is meant, not {degree}.")
    slope = _slope(samples.axes[0].values, samples.value)
    assumes = ("inputs uniform on the sphere", "a kernel that sees this degree", "the leading order in 1 / d")
    return Reading.predicted(
        "kernel_sample_exponent", float(degree), unit="", error=2 * abs(slope - degree), error_kind="truncation", source=GHORBANI_2021, assumes=assumes, details={"slope": slope}
    )


def network_sample_exponent(exponent: int, dimensions: Sequence[int]) -> Reading:
    """The power of d with which the examples grow that on-line SGD takes to find the direction of a target of information exponent s: max(1, s - 1).

    n ~ d (s = 1), d log d (s = 2), d^(s - 1) (s >= 3), at learning rates of order 1 / d at most.

    Shapes: value ().   Units: none.
    Error: truncation: d^(-1/2) at the smallest dimension, the size of what the limit of many inputs leaves out of the order parameters (Goldt et al.); for s = 2 what the logarithm adds to a slope too.
    Assumes: normal inputs, each example seen once; a network whose units see all degrees that the target has.   Cost: none.
    Raises: InvalidInput for an information exponent below 1, or fewer than two dimensions.   Source: Ben Arous et al. 2021, section 1; Goldt et al. 2019, section 2.
    """
    if exponent < 1:
        raise InvalidInput(f"An information exponent is at least 1, not {exponent}.")
    error = _slope(dimensions, np.log(np.asarray(dimensions))) * (exponent == 2) + min(dimensions) ** -0.5
    assumes = ("normal inputs, each example seen once", "a learning rate of order 1 / d", "the leading order in d")
    return Reading.predicted("network_sample_exponent", float(max(1, exponent - 1)), unit="", error=error, error_kind="truncation", source=BENAROUS_2021, assumes=assumes)


def _slope(dimensions: Sequence[float | str], counts: ArrayLike) -> float:
    """Of log counts by log dimensions."""
    d = np.array([float(one) for one in dimensions])
    if len(set(d)) < 2 or min(d) < 2:
        raise InvalidInput(f"A slope takes two dimensions or more, each of at least 2, not {list(dimensions)}.")
    return float(np.polyfit(np.log(d), np.log(np.asarray(counts, dtype=np.float64)), 1)[0])
