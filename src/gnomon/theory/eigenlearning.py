"""How many examples kernel (ridge) regression needs: learning curves from the kernel's eigenvalues and what of the target lies along its eigenfunctions.

Notation: K(x, x') = sum_i lambda_i f_i(x) f_i(x') over the distribution of x, target sum_i v_i f_i, n examples, ridge d, noise of variance s^2 on the targets.

    n = sum_i lambda_i / (lambda_i + k) + d / k  defines k;   L_i = lambda_i / (lambda_i + k) is the part of mode i that is learned, sum_i L_i <= n;
    E_test = n / (n - sum_i L_i^2) (sum_i (1 - L_i)^2 v_i^2 + s^2),   E_train = (d / (n k))^2 E_test = (1 - sum_i L_i / n)^2 E_test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source

SIMON_2023 = Source("simon2023")
ASSUMES = (
    "the eigenfunctions at random examples behave as independent Gaussian numbers (universality)",
    "examples are drawn independently from the distribution whose eigenvalues are given",
)


def modes(matrix: ArrayLike, targets: ArrayLike) -> tuple[Float64[Array, "N"], Float64[Array, "N"]]:
    """Eigenvalues of a kernel over N examples that stand for the whole distribution, descending, and the target's square along each eigenfunction, summed over outputs.

    K / N = sum_i lambda_i u_i u_i^T,   v_i^2 = |u_i . y|^2 / N.   Eigenvalues below rounding are 0.

    Shapes: (N, N) and (N,) or (N, outputs) -> (N,), (N,); the squares add up to the mean square of the targets.   Cost: N^3.
    Raises: InvalidInput where shapes differ or numbers are not finite.
    """
    k, y = np.asarray(matrix, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    n = len(k)
    if k.shape != (n, n) or len(y) != n or not (np.isfinite(k).all() and np.isfinite(y).all()):
        raise InvalidInput(f"A square kernel matrix and as many targets are needed, all finite, not shapes {k.shape} and {y.shape}.")
    values, vectors = np.linalg.eigh(k / n)
    power = ((vectors.T @ y.reshape(n, -1)) ** 2).sum(1) / n
    values[np.abs(values) <= n * np.finfo(np.float64).eps * values[-1]] = 0.0
    return values[::-1].copy(), power[::-1].copy()


def implicit_ridge(eigenvalues: ArrayLike, n: float, *, ridge: float = 0.0, counts: ArrayLike | None = None) -> float:
    """The constant k against which eigenvalues compete for n examples: modes with lambda_i above it are learned.

    `counts` says how many modes have each eigenvalue, one where it is not given.
    Shapes: eigenvalues, counts (m,).   Units: those of the kernel.   Error: rounding.   Cost: some tens of sums.   Raises: InvalidInput for negative eigenvalues, counts or ridge, or no example.
    Source: Simon et al. 2023 (the self-consistent equation above); Bordelon et al. 2020.
    """
    values = _eigenvalues(eigenvalues)
    many = _counts(counts, values)
    if not (n > 0 and math.isfinite(n) and ridge >= 0 and math.isfinite(ridge)):
        raise InvalidInput(f"The number of examples must be above 0 and the ridge at least 0, not {n} and {ridge}.")
    values, many = values[values > 0], many[values > 0]
    if ridge == 0 and n >= many.sum():
        return 0.0
    high = (float(many @ values) + ridge) / n

    def left(log: float) -> float:
        k = math.exp(log)
        return float(many @ (values / (values + k))) + ridge / k - n

    low = high
    while left(math.log(low)) <= 0:
        low /= 16
    return math.exp(brentq(left, math.log(low), math.log(high) + 1e-12, xtol=1e-14, rtol=1e-14)) if low < high else high


def learning_curve(
    eigenvalues: ArrayLike, power: ArrayLike, sizes: Sequence[float], *, ridge: float = 0.0, noise: float = 0.0, population: int | None = None, counts: ArrayLike | None = None
) -> Reading:
    """The mean square test error of kernel ridge regression over the number of examples that it learns from.

    E_test above, the noise on the test targets included; with `population` N, of which the n examples are drawn without replacement, the error on those left: (N E_test - n E_train) / (N - n).

    Shapes: power (modes,), the square of the target along each eigenfunction (`modes` gives both), modes of eigenvalue 0 included; value (sizes,); `details`: `train`, `implicit_ridge`.
    With `counts`, that of all the modes of an eigenvalue together.
    Units: those of the squared targets.
    Error: truncation: value / sqrt(n), the size of what n examples leave of an average; the corrections to the mean over training sets are smaller as a rule.
    Assumes: universality of the eigenfunctions.   Cost: some tens of sums a size.   Raises: InvalidInput as `implicit_ridge`, for negative power or noise, and sizes not below the population;
    OutOfScope for as many examples as modes without a ridge.
    Source: Simon et al. 2023 (the eigenlearning equations); Bordelon et al. 2020; Canatar et al. 2021.
    """
    values, square = _eigenvalues(eigenvalues), np.asarray(power, dtype=np.float64)
    if square.shape != values.shape or not ((square >= 0).all() and np.isfinite(square).all() and noise >= 0):
        raise InvalidInput(f"As many squares as eigenvalues are needed, all at least 0, and a noise of at least 0; got shapes {values.shape}, {square.shape} and {noise}.")
    if not sizes or (population is not None and max(sizes) >= population):
        raise InvalidInput(f"Sizes must be given, below the population of {population}: {list(sizes)}.")
    many = _counts(counts, values)
    test, train, ridges = [], [], []
    for n in sizes:
        k = implicit_ridge(values, n, ridge=ridge, counts=many)
        learned = np.where(values > 0, values / np.where(values > 0, values + k, 1.0), 0.0)
        rest = float(((1 - learned) ** 2 * square).sum()) + noise
        room = n - float(many @ learned**2)
        if room <= 0 and rest > 0:
            raise OutOfScope(f"{n} examples are as many as there are modes: without a ridge the mean of the error is infinite there; give a ridge, or other sizes")
        error = n / room * rest if room > 0 else 0.0
        left = max(1 - float(many @ learned) / n, 0.0) if ridge > 0 or k == 0 else 0.0
        train.append(left**2 * error)
        test.append(error if population is None else (population * error - n * train[-1]) / (population - n))
        ridges.append(k)
    value = np.array(test)
    axes = (Axis("examples", tuple(map(float, sizes)), scale="log"),)
    return Reading.predicted(
        "kernel_regression_error", value, unit="target²", error=value / np.sqrt(np.array(sizes, dtype=np.float64)), error_kind="truncation", axes=axes, source=SIMON_2023, assumes=ASSUMES,
        details={"train": train, "implicit_ridge": ridges},
    )  # fmt: skip


def _eigenvalues(eigenvalues: ArrayLike) -> Array:
    values = np.asarray(eigenvalues, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or (values < 0).any() or not (values > 0).any():
        raise InvalidInput("Eigenvalues must be finite and at least 0, one of them above; clip those below rounding, as `modes` does.")
    return values


def _counts(counts: ArrayLike | None, values: Array) -> Array:
    many = np.ones_like(values) if counts is None else np.asarray(counts, dtype=np.float64)
    if many.shape != values.shape or not ((many >= 0).all() and np.isfinite(many).all()):
        raise InvalidInput(f"As many counts as eigenvalues are needed, all at least 0; got shapes {many.shape} and {values.shape}.")
    return many
