"""Predictions from kernels on disk, some test examples at a time, so that what is held stays under a cap."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.errors import NotEnoughMemory
from gnomon.core.task import Pool
from gnomon.numerics.preconditioned import NegativeCurvature, Solutions
from gnomon.numerics.relaxation import relaxed
from gnomon.theory.infinite.disk import digest, on_disk, resident
from gnomon.theory.infinite.matrix import DiskMatrix, KernelFunction
from gnomon.theory.infinite.solve import NotPositiveDefinite, Solved, refusal, solve

SHARE = 4
"""A block of right sides takes at most one over this of the memory, and so does the result; half is the solver's."""
USELESS = 1e-3
"""Relative residuals above which what was found says nothing."""
ARRAYS = 4
"""Arrays of the size of a block of right sides, or of the result, that are held outside the solver."""


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Training on examples whose kernels are kept in `folder`; `prior` names the kernel of the outputs before training, `trained` the one that trains them, at `time` with `ridge` on its diagonal.

    A = (T + ridge)^{-1} (1 - e^{-(T + ridge) time}) is never made: conjugate gradients apply it where the time is infinite, Lanczos where it is not.
    All that is held, this process as it is included, stays below `memory`.
    """

    kernel: KernelFunction
    x: Tensor
    folder: Path
    prior: str
    trained: str
    time: float
    ridge: float
    memory: int
    pool: Pool | None

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return max(self.memory - resident(), 0)

    @property
    def columns(self) -> int:
        """Test examples at a time."""
        return max(1, self.room // (SHARE * ARRAYS * 8 * len(self.x)))

    def mean(self, targets: Float64[Tensor, "n outputs"], new: Tensor) -> Float64[Tensor, "m outputs"]:
        """The mean at new examples, whose kernel with the training ones is made some at a time and not kept."""
        own = self._kernels(self.x, None, self.folder)
        weights = self._applied(own[self.trained], targets)
        return torch.cat([self.kernel(part, self.x, self.trained).double().cpu() @ weights for part in new.split(self.columns)])

    def prediction(self, targets: Float64[Tensor, "n outputs"], new: Tensor, *, flow: bool) -> tuple[Float64[Tensor, "m outputs"], Float64[Tensor, "m m"]]:
        """The mean at new examples, whose kernels with the training ones are kept beside those, and the covariance: K_** - K_* A T_*^T, and for a `flow` + T_* A (K A T_*^T - K_*^T).

        Raises: NotEnoughMemory where the covariance takes more than a quarter of what is left; NotPositiveDefinite where the equations are not solved.
        """
        m, needed = len(new), SHARE * ARRAYS * 8 * len(new) ** 2
        if needed > self.room:
            raise NotEnoughMemory(
                f"The covariance of {m:,} test examples takes {8 * m * m / 1e9:.3g} GB, and with what it is made of more than a quarter of the {self.room / 1e9:.3g} GB that are left of `memory`. "
                "Give fewer test examples at a time, or more `memory`."
            )
        own, across = self._kernels(self.x, None, self.folder), self._kernels(new, self.x, self.folder / f"tests-{digest(new)[:12]}")
        trained, prior = across[self.trained], across[self.prior]
        mean = trained @ self._applied(own[self.trained], targets)
        covariance, step = self.kernel(new, None, self.prior).double().cpu(), self.columns
        for start in range(0, m, step):
            part = slice(start, min(start + step, m))
            reach = self._applied(own[self.trained], trained.block(part).double().T.contiguous())
            covariance[:, part] -= prior @ reach
            if flow:
                left = (own[self.prior] @ reach).sub_(prior.block(part).double().T)
                covariance[:, part] += trained @ self._applied(own[self.trained], left)
        return mean, covariance.add_(covariance.T.clone()).mul_(0.5)

    def _kernels(self, x1: Tensor, x2: Tensor | None, folder: Path) -> dict[str, DiskMatrix]:
        kinds = (self.prior,) if self.prior == self.trained else (self.prior, self.trained)
        made = cast(tuple[DiskMatrix, ...], on_disk(self.kernel, x1, x2, folder=folder, kind=kinds, memory=self.memory, pool=self.pool).run())
        return dict(zip(kinds, made, strict=True))

    def _applied(self, own: DiskMatrix, right: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """A times several columns.  Raises: NotPositiveDefinite."""
        try:
            if math.isinf(self.time):
                found: Solved | Solutions = solve(own, right, ridge=self.ridge, memory=self.room // 2, method="conjugate gradients")
            else:
                found = relaxed(own, right.cpu(), self.time, damping=self.ridge, memory=self.room // 2)
        except NegativeCurvature as error:
            raise refusal(len(own), error.curvature, float(own.diagonal().sum()), "at most ") from error
        if found.residual > USELESS:
            raise NotPositiveDefinite(
                f"after {found.products:,} products with the kernel of the {len(own):,} training examples the relative residual of a right side is {found.residual:.1g}: the kernel is nearly singular "
                "(equal examples, or float32 data?), or the time of training long; give jitter, noise or ridge, or a shorter time"
            )
        return found.x
