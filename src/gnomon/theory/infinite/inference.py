"""What networks of infinite width predict: training dynamics under squared loss, Gaussian process posteriors, kernel ridge regression."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.task import Pool
from gnomon.theory.infinite.matrix import KernelFunction
from gnomon.theory.infinite.solve import check_finite, refusal, solve, too_large
from gnomon.theory.infinite.streamed import Streamed

FACTORED = 4
"""Matrices of float64 over the training examples that a Cholesky factorisation holds, with the kernel."""
SPECTRUM = 8
"""Matrices of float64 over the training examples that an eigendecomposition holds, with the kernels."""
BETWEEN = 5
"""Matrices of float64 between test and training examples, or between test examples, that are held."""


class Prediction(NamedTuple):
    """The mean of every output over networks and the covariance of one output between the examples, the same for each.  Shapes: (m, ...) as the targets, (m, m)."""

    mean: Float[Tensor, "m ..."]
    covariance: Float[Tensor, "m m"]


def gradient_flow(
    kernel: KernelFunction, x_train: Tensor, y_train: Tensor, x_test: Tensor | None = None, *, time: float, kind: str = "ntk", jitter: float = 0.0, memory: int = 2**32,
    folder: str | Path | None = None, pool: Pool | None = None,
) -> Prediction:  # fmt: skip
    """Outputs after training by gradient flow on half the sum of squares, over networks of infinite width.

    mean = T_* A y and covariance = K_** + T_* A K A T_*^T - T_* A K_*^T - K_* A T_*^T with A = T^{-1}(I - e^{-T time}), T the tangent kernel of the training data, K the NNGP kernel and * the
    test data.  `kind` "nngp" trains the last layer's weights alone, T = K.  `jitter` on T's diagonal is a ridge: training with the penalty jitter |w - w_0|^2 / 2.  An ensemble of M networks has the same
    mean and covariance / M.
    Where kernels and an eigendecomposition do not fit in `memory`, the kernels are kept in `folder` (see `on_disk`), A is applied by Lanczos (at infinite time by conjugate gradients), and test
    examples are taken some at a time.  What test and training examples make together is in `tests-<digest>` inside it: the next call with the same ones takes it up; it may be deleted.

    Shapes: y_train (n,) or (n, outputs); x_test None is x_train.
    Units: `time` in learning rate x steps for the loss sum |f - y|^2 / 2 (for a mean over n examples divide by n; for |f - y|^2 without the half multiply by 2).
    Error: rounding of an eigendecomposition, in float64; on disk a residual of 1e-8 of the right sides.   Assumes: small steps, and the parametrisation that `kernel` was made for.
    Cost: the kernels, and n^3, or readings of the kernels: a step for the mean, and two steps a block of test examples.
    Raises: NotPositiveDefinite, with the eigenvalue, where T has a negative one (or at infinite time one that is 0); `jitter` is then added to T's diagonal if, and only if, it is given.
    NotEnoughMemory where this does not fit and no folder is given.
    Source: Lee et al. 2019, section 2.
    """
    if not getattr(kernel, "lazy", True):
        raise OutOfScope("in this kernel's parametrisation features move at any width, so that no fixed kernel describes training; use 'standard' or 'ntk'")
    if isinstance(time, str) or not time >= 0:
        raise InvalidInput(f"time must be a number of at least 0 (math.inf for the end of training), not {time!r}.")
    if kind not in ("ntk", "nngp"):
        raise unknown("kind of training", str(kind), ("ntk", "nngp"))
    targets, n, m = targets_of(x_train, y_train), len(x_train), 0 if x_test is None else len(x_test)
    if _beyond(8 * SPECTRUM * n * n, n, m, memory, folder):
        flow, new = not (kind == "nngp" and math.isinf(time) and jitter == 0), x_train if x_test is None else x_test
        streamed = Streamed(kernel, x_train, Path(str(folder)), "nngp", kind, time, _checked(jitter), memory, pool)
        return _shaped(streamed.prediction(targets.cpu(), new, flow=flow), y_train)
    own = _pair(kernel, x_train, None)
    across, tests = (own, own) if x_test is None else (_pair(kernel, x_test, x_train), _pair(kernel, x_test, None))
    which = 0 if kind == "nngp" else 1
    values, vectors = _spectrum(own[which], jitter, strict=math.isinf(time))
    factor = 1 / values if math.isinf(time) else torch.where(values * time > 1e-12, -torch.expm1(-values * time) / values.clamp_min(1e-300), time)
    reach = (across[which] @ vectors) * factor @ vectors.T
    mixed = reach @ across[0].T
    covariance = tests[0] + reach @ own[0] @ reach.T - mixed - mixed.T
    return Prediction((reach @ targets).reshape(-1, *y_train.shape[1:]), covariance)


def posterior(
    kernel: KernelFunction, x_train: Tensor, y_train: Tensor, x_test: Tensor, *, noise: float = 0.0, kind: str = "nngp", jitter: float = 0.0, memory: int = 2**32,
    folder: str | Path | None = None, pool: Pool | None = None,
) -> Prediction:  # fmt: skip
    """The posterior of a Gaussian process with the network's kernel: for "nngp" that of a Bayesian network of infinite width.

    mean = K_* (K + s^2 I)^{-1} y,   covariance = K_** - K_* (K + s^2 I)^{-1} K_*^T, s^2 the variance of the `noise` on the targets.
    Where the kernels and a factor do not fit in `memory`, they are kept in `folder` (see `on_disk`), conjugate gradients take the place of Cholesky (see `solve`), and test examples are taken some
    at a time; what they make with the training ones is kept in `tests-<digest>` inside the folder, for the next call with the same ones, and may be deleted.

    Shapes: y_train (n,) or (n, outputs).   Units: `noise` that of the squared targets.   Error: rounding, in float64; 1e-8 of the targets for conjugate gradients.
    Assumes: Gaussian noise.   Cost: the kernels, and n^3 / 3, or a reading of the kernel a step.
    Raises: NotPositiveDefinite, with the eigenvalue; `jitter` is added to the diagonal if, and only if, it is given.  NotEnoughMemory where the kernel does not fit and no folder is given.
    Source: Lee et al. 2018, section 2.
    """
    if not noise >= 0:
        raise InvalidInput(f"noise is a variance and must be at least 0, not {noise}.")
    targets, n, shift = targets_of(x_train, y_train), len(x_train), noise + _checked(jitter)
    if _beyond(8 * FACTORED * n * n, n, len(x_test), memory, folder):
        streamed = Streamed(kernel, x_train, Path(str(folder)), kind, kind, math.inf, shift, memory, pool)
        return _shaped(streamed.prediction(targets.cpu(), x_test, flow=False), y_train)
    across = matrix_of(kernel, x_test, x_train, kind)
    found, outputs = solve(matrix_of(kernel, x_train, None, kind), torch.cat([targets, across.T], 1), ridge=shift, method="cholesky").x, targets.shape[1]
    return Prediction((across @ found[:, :outputs]).reshape(-1, *y_train.shape[1:]), matrix_of(kernel, x_test, None, kind) - across @ found[:, outputs:])


def ridge_regression(
    kernel: KernelFunction, x_train: Tensor, y_train: Tensor, x_test: Tensor, *, ridge: float = 0.0, kind: str = "ntk", memory: int = 2**32,
    folder: str | Path | None = None, pool: Pool | None = None,
) -> Float[Tensor, "m ..."]:  # fmt: skip
    """Kernel ridge regression: K_* (K + ridge I)^{-1} y; with "ntk" and ridge 0 the mean of fully trained networks.

    Shapes: y_train (n,) or (n, outputs) -> (m,) or (m, outputs).   Units: those of the targets.   Error, Cost: as `posterior`, `memory`, `folder` and `pool` too.   Assumes: squared loss.
    Raises: NotPositiveDefinite, with the eigenvalue.   Source: Jacot et al. 2018.
    """
    if not ridge >= 0:
        raise InvalidInput(f"ridge must be at least 0, not {ridge}.")
    targets, n = targets_of(x_train, y_train), len(x_train)
    if _beyond(8 * FACTORED * n * n, n, 0, memory, folder):
        streamed = Streamed(kernel, x_train, Path(str(folder)), kind, kind, math.inf, ridge, memory, pool)
        mean = streamed.mean(targets.cpu(), x_test).to(targets.device)
    else:
        mean = matrix_of(kernel, x_test, x_train, kind) @ solve(matrix_of(kernel, x_train, None, kind), targets, ridge=ridge, method="cholesky").x
    return mean.reshape(-1, *y_train.shape[1:])


def _beyond(own: int, n: int, m: int, memory: int, folder: str | Path | None) -> bool:
    """Whether the kernels must be on disk: what n training examples take and m test ones beside them is more than `memory`.  Raises: NotEnoughMemory where there is no folder."""
    needed = own + 8 * BETWEEN * m * (n + m)
    if needed > memory and folder is None:
        raise too_large(n, needed, memory)
    return needed > memory


def _shaped(found: tuple[Tensor, Tensor], y: Tensor) -> Prediction:
    return Prediction(found[0].reshape(-1, *y.shape[1:]).to(y.device), found[1].to(y.device))


def _checked(jitter: float) -> float:
    if not jitter >= 0:
        raise InvalidInput(f"jitter must be at least 0, not {jitter}.")
    return jitter


def targets_of(x: Tensor, y: Tensor) -> Float[Tensor, "n outputs"]:
    """The targets in float64, one row an example.

    Shapes: y (n,) or (n, outputs) -> (n, outputs).   Raises: InvalidInput for complex numbers, another number of rows than examples, or numbers that are not finite.
    """
    if not isinstance(y, Tensor) or y.is_complex():
        raise InvalidInput(f"y_train must be a tensor of real numbers, not {y.dtype if isinstance(y, Tensor) else type(y).__name__}; torch.as_tensor makes one.")
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise InvalidInput(f"y_train must have one row for each of the {len(x)} training examples, shape (n,) or (n, outputs); it has shape {tuple(y.shape)}.")
    targets = y.reshape(len(y), -1).double()
    if not bool(torch.isfinite(targets).all()):
        raise InvalidInput("y_train holds numbers that are not finite; leave their examples out.")
    return targets


def _pair(kernel: KernelFunction, a: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    _is_kernel(kernel)
    made = kernel(a, b, ("nngp", "ntk"))
    return _matrix(made[0]), _matrix(made[1])


def matrix_of(kernel: KernelFunction, a: Tensor, b: Tensor | None, kind: str) -> Tensor:
    """A kernel matrix in float64.  Shapes: a (n, ...), b (m, ...) -> (n, m).  Raises: InvalidInput where the output has positions, or for several kinds at once."""
    if not isinstance(kind, str):
        raise InvalidInput(f"kind is one kind of kernel here, 'nngp' or 'ntk', not {kind!r}.")
    _is_kernel(kernel)
    made = kernel(a, b, kind)
    assert isinstance(made, Tensor)
    return _matrix(made)


def _is_kernel(kernel: object) -> None:
    if isinstance(kernel, torch.nn.Module):
        raise InvalidInput(f"A kernel is wanted, and a network ({type(kernel).__name__}) was given: pass infinite_width(network).")


def _matrix(made: Tensor) -> Tensor:
    if made.ndim != 2:
        raise InvalidInput(
            f"The network's output has positions (its kernel has shape {tuple(made.shape)}); regression needs one output vector an example: pool or flatten at the end."
        )
    return made.double()


def _spectrum(matrix: Tensor, jitter: float, *, strict: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a kernel matrix with what was given on its diagonal, checked."""
    n = len(matrix)
    check_finite(matrix)
    shifted = matrix.clone()
    shifted.diagonal().add_(_checked(jitter))
    values, vectors = torch.linalg.eigh(shifted)
    least, rounding = float(values[0]), n * torch.finfo(matrix.dtype).eps * float(values[-1].abs())
    if least < -rounding or (strict and least <= rounding):
        raise refusal(n, least, float(values[-1]), "")
    return values.clamp_min(0), vectors
