"""How kernel regression with the network's own tangent kernel learns from few examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.kernels import _about, _kernel, _seen, _targets, dense_kernel, refuse_batch_norm
from gnomon.numerics.statistics import skewed_interval

BLOCKS = 8
"""Groups of examples that know nothing of each other, one replicate each."""
PARTS = (4, 2)
"""A replicate learns from one in so many of its group and is tested on the other half."""
RIDGE = 1e-2
"""Ridge, relative to the mean of the kernel's diagonal."""
FEWEST = 8 * BLOCKS
TRUTH = 40_000
PROBES = 16


def _sizes(n: int) -> list[int]:
    return [n // BLOCKS // part for part in PARTS]


def _errors(kernel: Array, targets: Array, groups: np.ndarray[Any, np.dtype[np.int64]], ridge: float) -> Array:
    """Held-out mean square errors of kernel ridge regression by group and number of examples.  Shapes: groups (count, block) -> (count, sizes)."""
    k, y, found, block = torch.from_numpy(kernel), torch.from_numpy(targets), [], groups.shape[1]
    rows = torch.from_numpy(groups)
    rest = rows[:, block // 2 :]
    for part in PARTS:
        at = rows[:, : block // part]
        inner = k[at[:, :, None], at[:, None, :]] + ridge * torch.eye(at.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(inner, y[at])
        found.append((k[rest[:, :, None], at[:, None, :]] @ weights - y[rest]).square().sum(-1).mean(-1))
    return np.asarray(torch.stack(found, 1).numpy())


def exact_curve(subject: Subject) -> Array:
    """The means over many random groups, with dense Jacobians."""
    n, kernel, targets = len(subject.train), dense_kernel(subject), _centred(_targets(subject))
    order = np.argsort(np.random.default_rng(0).random((TRUTH, n)), 1)[:, : n // BLOCKS]
    return np.asarray(_errors(kernel, targets, order, RIDGE * float(np.trace(kernel)) / n).mean(0))


def _centred(targets: Array) -> Array:
    return targets - 1 / targets.shape[1] if targets.shape[1] > 1 and ((targets >= 0) & (targets <= 1)).all() else targets


@instrument(topic="kernels", at=("initial",), truth=exact_curve, shares="ntk_spectrum", knob="probes", smallest=16, largest=64, cost=lambda subject, probes: Cost(gradients=0.1))
def kernel_regression_curve(subject: Subject, *, rng: Generator, probes: int = PROBES) -> Reading:
    """Mean square error of kernel ridge regression with the tangent kernel on examples that it has not seen, over the number that it learns from.

    |y - K_* (K + d)^{-1} y_n|^2 on held-out examples, summed over outputs, d = 0.01 of the kernel's mean diagonal, K the tangent kernel averaged over outputs; labels are one-hot less 1/C.
    The examples are shared out to 8 groups; each learns from a quarter and from a half of its own, and is tested on its other half.

    Shapes: value (2,), over the number of examples; `details`: `eigenvalues` of K/n and `power`, the square of the targets along each eigenvector, for theory; `ridge`.
    Units: targets squared.   Error: over groups, the wider of Student's t and of the same with the skewness taken into account.   Assumes: as `ntk_spectrum`.   Cost: shared with `ntk_spectrum`.
    Raises: OutOfScope as `ntk_spectrum`, for fewer than 64 examples, and where the kernel or all targets are 0.
    Source: Jacot et al. 2018 (kernel regression with the tangent kernel).
    """
    if subject.where == "initial":
        refuse_batch_norm(subject)
    seen = _seen(subject)
    n = len(seen.train)
    if n < FEWEST:
        raise OutOfScope(f"kernel regression is examined on at least {FEWEST} examples; here are {n}")
    kernel, targets = _kernel(seen, probes).whole, _centred(_targets(seen))
    ridge = RIDGE * float(np.trace(kernel)) / n
    if ridge == 0 or not targets.any():
        raise OutOfScope("the tangent kernel or all targets are 0: there is nothing to learn")
    block = n // BLOCKS
    groups = chance.permutation(n, rng=chance.child(rng, "groups"))[: BLOCKS * block].reshape(BLOCKS, block).numpy()
    samples, sizes = _errors(kernel, targets, groups, ridge), _sizes(n)
    reading = Reading.of_samples(
        "kernel_regression_curve", samples, unit="target²", error_kind="sample", axes=(Axis("examples", tuple(map(float, sizes)), scale="log"),), source=Source("jacot2018"),
        assumes=_about(seen, probes),
    )  # fmt: skip
    values, vectors = np.linalg.eigh(kernel / n)
    power = ((vectors.T @ targets) ** 2).sum(1) / n
    details = {"eigenvalues": np.maximum(values, 0.0)[::-1].tolist(), "power": power[::-1].tolist(), "ridge": ridge}
    assert reading.interval is not None
    low, high = np.array([skewed_interval(column) for column in samples.T]).T
    # of eight groups the skewness itself is hardly known: the wider of both intervals
    return reading.replace(details=details, interval=(np.minimum(low, reading.interval[0]), np.maximum(high, reading.interval[1])))
