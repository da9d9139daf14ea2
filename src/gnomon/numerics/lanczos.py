"""Eigenvalues at an end of the spectrum of a symmetric operator: thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import CannotWrite, InvalidInput, NotEnoughMemory, unknown
from gnomon.numerics.checkpoint import Checkpoint, State

Product = Callable[[Float[Tensor, "P"]], Float[Tensor, "P"]]
"""A symmetric matrix, by its product with a vector."""

EXTRA, MOST_EXTRA = 20, 70
"""Vectors that the basis holds beside the wanted ones: so many at least, and up to so many where they fit into BASIS bytes."""
BASIS = 2**28
"""Bytes of a basis that is not made smaller."""
CANCELLED = 0.1
"""What a pass against the whole basis may take away, relative to what is left, before it is done again."""
ROUNDING = 64
"""Rounding of a product and of the basis, in units of eps |A|."""


class NotFiniteProduct(InvalidInput):
    """A product with the operator has NaN or infinite entries."""


@dataclasses.dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs with bounds.

    Shapes: `values` (k,) float64, descending for the largest, ascending for the smallest; `vectors` (P, k) of unit length; `residuals` (k,): some
    eigenvalue lies within residuals[i] of values[i]; `bounds` (k,): the i-th eigenvalue does, if none was missed among those that have converged;
    `converged` (k,) bool.  `products` is how many were made.
    """

    values: Float64[Tensor, "k"]
    vectors: Float[Tensor, "P k"]
    bounds: Float64[Tensor, "k"]
    products: int
    converged: Bool[Tensor, "k"]
    residuals: Float64[Tensor, "k"]


def lanczos_eigenvalues(
    product: Product, dimension: int, *, k: int = 1, which: str = "largest", rng: Generator, like: Tensor,
    tolerance: float = 1e-4, max_products: int = 300, basis: int | None = None,
    start: Float[Tensor, "P"] | None = None, interrupted: dict[str, Any] | None = None, checkpoint: Checkpoint | None = None,
) -> Eigen:  # fmt: skip
    """The k largest (or smallest) eigenvalues of a symmetric matrix that is known by its products, with a bound on each.

    A V = V T + beta v e^T;  for a Ritz pair (theta, V s):  min_lambda |lambda - theta| <= |A V s - theta V s| = beta |s_last|.

    A product is made orthogonal to the vectors that the recurrence names, then to the whole basis, and once more where that took away much; so no eigenvalue is
    found more often than it occurs.  Where the basis spans an invariant
    subspace, a new random direction is taken up: multiple eigenvalues are then found as often as they occur.

    `start` is the first vector, such as an eigenvector of a matrix nearby; it is drawn where none is given.  `interrupted` is a dict in which the basis is left should the call
    be broken off (Ctrl-C, an error in a product); with the same dict another call goes on where that one was, to the same result.
    `checkpoint` is a file in which the state is kept meanwhile, for another process to go on from, to the same bits; it is taken away once all has converged, and where the
    products ran out, more of them go on from it.

    Shapes: product (P,) -> (P,), P = dimension; vectors have dtype and device of `like`.   Units: those of the operator.
    Error: the residual bound, to which rounding is added, as far as products and recurrence show it (never 0).  From the first value that has not
    converged on, eigenvalues may have been missed; bounds then reach to the last value that has (Ritz values lie below the eigenvalue of their rank).
    Assumes: the operator is symmetric.   A value is converged where its residual, rounding included as far as that leaves a quarter, is at most `tolerance` times
    the larger of |value| and a hundredth of the largest |eigenvalue| seen; those that are not are returned with the bounds they have.
    Cost: at most `max_products` products; `basis` + 1 vectors of memory (default k + 20, up to k + 70 where those fit into 256 MiB).
    Raises: InvalidInput for k outside 1 .. dimension, too few products, a product that is not finite, or a checkpoint of something else; CannotWrite for a full disk.
    Source: Wu & Simon 2000 (thick restart); Parlett 1980, section 4.5 (residual bounds).
    """
    if which not in ("largest", "smallest"):
        raise unknown("end of the spectrum", which, ("largest", "smallest"))
    if not 1 <= k <= dimension:
        raise InvalidInput(f"k must lie in 1 .. {dimension}, the dimension of the operator, not {k}.")
    if max_products < min(k + 1, dimension):
        raise InvalidInput(f"{k} eigenvalues of an operator of dimension {dimension} take at least {min(k + 1, dimension)} products; max_products is {max_products}.")
    if basis is not None and basis < k + 2:
        raise InvalidInput(f"The basis must hold at least k + 2 = {k + 2} vectors, not {basis}.")
    size = min(basis or basis_size(k, dimension, like.element_size()), dimension)
    run = (interrupted or {}).pop("run", None)
    if run is None:
        run = _Lanczos(product, dimension, size, like, rng, sign=1.0 if which == "largest" else -1.0)
        run.look = min(k + 1, dimension)
        if (saved := checkpoint.load() if checkpoint else None) is None:
            run.begin(start)
        else:
            run.restore(saved)
    try:
        run.grow(k, tolerance, max_products, checkpoint)
    except BaseException:
        if run.whole and interrupted is not None:
            interrupted["run"] = run
        if run.whole and checkpoint is not None:
            with contextlib.suppress(CannotWrite):
                checkpoint.save(run.state, now=True)
        raise
    values, rows, residuals = run.ritz()
    if run.filled < k:
        raise InvalidInput(f"{max_products} products did not give {k} eigenvalues; raise max_products.")
    vectors = rows[:, :k].T.to(run.vectors) @ run.vectors[: run.filled]
    vectors = (vectors / vectors.norm(dim=1, keepdim=True)).T
    converged = run.small(values[:k], residuals[:k], tolerance)
    residuals = residuals[:k] + run.rounding()
    if checkpoint is not None:
        checkpoint.clear() if bool(converged.all()) else checkpoint.save(run.state, now=True)
    return Eigen(run.sign * values[:k], vectors, _bounds(values[:k], residuals, converged), run.products, converged, residuals)


def basis_size(k: int, dimension: int, itemsize: int) -> int:
    """How many vectors the basis holds for k eigenvalues where it is not said."""
    fitting = BASIS // (dimension * itemsize)
    return min(max(k + EXTRA, min(k + MOST_EXTRA, fitting)), dimension)


def _bounds(values: Float64[Tensor, "k"], residuals: Float64[Tensor, "k"], converged: Bool[Tensor, "k"]) -> Float64[Tensor, "k"]:
    """Residuals; from the first value that has not converged on, eigenvalues may have been missed: the i-th one lies between its Ritz value and the last converged one."""
    settled = int((~converged).int().argmax()) if not bool(converged.all()) else len(converged)
    if not 0 < settled < len(values):
        return residuals
    reach = values[settled - 1] + residuals[settled - 1] - values
    return torch.where(torch.arange(len(values)) >= settled, torch.maximum(residuals, reach), residuals)


class Basis:
    """Orthonormal rows, and the projection of an operator on them, grown a vector at a time."""

    def __init__(self, product: Product, dimension: int, size: int, like: Tensor, rng: Generator, *, sign: float = 1.0) -> None:
        self.product, self.dimension, self.size, self.rng, self.sign = product, dimension, size, rng, sign
        try:
            self.vectors = torch.empty(size + 1, dimension, dtype=like.dtype, device=like.device)
        except RuntimeError as error:
            need = (size + 1) * dimension * like.element_size() / 2**30
            raise NotEnoughMemory(
                f"A Lanczos basis of {size + 1} vectors of {dimension:,} numbers takes {need:.1f} GiB. Ask for fewer eigenvalues or steps, or restrict the operator to some layers."
            ) from error
        self.matrix = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        self.filled = self.products = self.draws = self.block = self.previous = 0
        self.norm = self.noise = self.beta = 0.0

    def begin(self, start: Float[Tensor, "P"] | None = None) -> None:
        """Take the first vector, drawn at random where none is given.   Raises: InvalidInput for one that is 0, not finite or of another size."""
        if start is not None and (start.shape != (self.dimension,) or not 0 < float(start.norm()) < math.inf):
            raise InvalidInput(
                f"A start must be a finite vector of shape ({self.dimension},) that is not 0, not one of shape {tuple(start.shape)} and norm {float(start.norm()):g}."
            )
        self.vectors[0] = self._fresh(0) if start is None else start / start.norm()

    counts: tuple[str, ...] = ("filled", "products", "draws", "block", "previous")

    def state(self) -> State:
        """All that it takes to go on, as tensors; the rows are not copied."""
        numbers = torch.tensor([self.norm, self.noise, self.beta], dtype=torch.float64)
        counted = torch.tensor([getattr(self, name) for name in self.counts])
        return {"vectors": self.vectors[: self.filled + 1], "matrix": self.matrix, "numbers": numbers, "counts": counted}

    def restore(self, state: State) -> None:
        """Take up a state.  Raises: InvalidInput for one of another shape."""
        if state["matrix"].shape != self.matrix.shape or state["vectors"].shape[1:] != self.vectors.shape[1:] or state["vectors"].dtype != self.vectors.dtype:
            raise InvalidInput("The state that was kept is that of a basis of another size. Delete its file, or give another place.")
        self.matrix.copy_(state["matrix"])
        self.vectors[: len(state["vectors"])] = state["vectors"].to(self.vectors.device)
        self.norm, self.noise, self.beta = state["numbers"].tolist()
        for name, count in zip(self.counts, state["counts"].tolist(), strict=True):
            setattr(self, name, count)

    def step(self) -> None:
        """One product; the projection gets a row, the basis the next vector.   Raises: NotFiniteProduct."""
        j = self.filled
        w = self.product(self.vectors[j])
        if self.sign < 0:
            w = -w
        self.products += 1
        size = float(w.norm())
        if not math.isfinite(size) and not bool(torch.isfinite(w).all()):
            raise NotFiniteProduct("A product with the operator is not finite: the network's derivatives overflow. Examine it in float64, or look for infinite activations.")
        self.norm = max(self.norm, size)
        known = self.vectors[: j + 1]
        own = float(torch.dot(known[j], w))
        w = self._less_known(w, j, own)
        rest = known @ w
        w.addmv_(known.T, rest, alpha=-1.0)
        left = float(w.norm())
        seen = rest.double().cpu()
        # What an exact symmetric operator would make 0 once the recurrence is taken off shows how exact the products are.
        if j:
            self.noise = max(self.noise, float(seen[:j].abs().max()))
        own += float(seen[j])
        if float(seen.norm()) > CANCELLED * left:
            again = known @ w
            w.addmv_(known.T, again, alpha=-1.0)
            left, own = float(w.norm()), own + float(again[j])
        self.matrix[j, j] = own
        self.beta, self.filled = left, j + 1
        if self.filled == self.dimension:
            self.beta = 0.0
        elif self.beta <= self._negligible():
            self.beta, self.vectors[j + 1] = 0.0, self._fresh(j + 1)
            self.previous, self.block = self.block, j + 1
        else:
            torch.div(w, left, out=self.vectors[j + 1])
        self.matrix[j, j + 1] = self.matrix[j + 1, j] = self.beta

    def _less_known(self, w: Float[Tensor, "P"], j: int, own: float) -> Float[Tensor, "P"]:
        """A product less what the recurrence says of it: its own part, and those of the vectors that it is coupled to."""
        w = torch.sub(w, self.vectors[j], alpha=own)
        coupled = self.matrix[:j, j].nonzero().flatten().tolist()
        if len(coupled) == 1:
            return w.sub_(self.vectors[coupled[0]], alpha=float(self.matrix[coupled[0], j]))
        return w.addmv_(self.vectors[:j].T, self.matrix[:j, j].to(w), alpha=-1.0) if coupled else w

    def _negligible(self) -> float:
        return 10 * torch.finfo(self.vectors.dtype).eps * max(self.norm, torch.finfo(self.vectors.dtype).tiny) + 4 * self.noise

    def _fresh(self, count: int) -> Float[Tensor, "P"]:
        """A random unit vector orthogonal to the first `count`."""
        vector = chance.normal(self.dimension, rng=chance.child(self.rng, "start", self.draws), like=self.vectors)
        self.draws += 1
        known = self.vectors[:count]
        for _ in range(3):
            vector = vector / vector.norm()
            vector = vector - (known @ vector) @ known
        return vector / vector.norm()

    def rounding(self) -> float:
        """A bound on what rounding does to a Ritz value."""
        info = torch.finfo(self.vectors.dtype)
        return ROUNDING * info.eps * max(self.norm, info.tiny / info.eps) + 4 * self.noise


class _Lanczos(Basis):
    look = 1
    """How many products are made before the values are looked at again."""
    whole = True
    """False while the basis is turned in place."""

    counts = (*Basis.counts, "look")

    def grow(self, k: int, tolerance: float, max_products: int, checkpoint: Checkpoint | None = None) -> None:
        """Make products until the leading k have converged, or so many have been made; the state is kept in the checkpoint meanwhile."""
        while self.products < max_products and self.filled < self.dimension:
            if checkpoint is not None and self.products:
                checkpoint.save(self.state)
            if self.filled == self.size:
                self.restart(min(k + (self.size - k) // 2, self.size - 1))
            self.step()
            if self.products >= self.look and self.filled > k:
                away = self.away(k, tolerance)
                if away <= 1:
                    break
                # A residual falls by a factor of ten in about two steps; looking costs an eigenvalue problem of the basis's size.
                self.look = self.products + (1 if away < 10 or self.beta == 0 else 2 if away < 100 else 4)

    def ritz(self) -> tuple[Float64[Tensor, "m"], Float64[Tensor, "m m"], Float64[Tensor, "m"]]:
        """Ritz values, descending, their vectors in the basis (columns), and their residual norms."""
        return self._ritz(0)

    def _ritz(self, start: int) -> tuple[Float64[Tensor, "m"], Float64[Tensor, "m m"], Float64[Tensor, "m"]]:
        values, rows = torch.linalg.eigh(self.matrix[start : self.filled, start : self.filled])
        values, rows = values.flip(0), rows.flip(1)
        return values, rows, self.beta * rows[-1].abs()

    def small(self, values: Float64[Tensor, "k"], residuals: Float64[Tensor, "k"], tolerance: float) -> Bool[Tensor, "k"]:
        """Which residuals count as converged."""
        return residuals <= self._allowed(values, tolerance)

    def _allowed(self, values: Float64[Tensor, "k"], tolerance: float) -> Float64[Tensor, "k"]:
        """What a residual may be: with rounding it stays within the tolerance, as far as rounding leaves a quarter of that."""
        wanted = tolerance * torch.clamp_min(values.abs(), 0.01 * self.norm)
        return torch.maximum(wanted - self.rounding(), wanted / 4)

    def away(self, k: int, tolerance: float) -> float:
        """How far from done: the largest residual of the leading k over what it may be, at most 1 once no further copy of one is to come either.

        After a breakdown the basis falls into blocks that do not see each other, each with one copy of every eigenvalue that is left: the last block
        must have shown its own leading value, and at its end it must not have changed the wanted ones.
        """
        values, _, residuals = self.ritz()
        worst = self._excess(values[:k], residuals[:k], tolerance)
        if worst > 1 or (self.beta != 0 and self.block == 0):
            return worst
        if self.beta == 0:
            before = torch.linalg.eigvalsh(self.matrix[: self.previous, : self.previous]).flip(0)
            return 1.0 if len(before) >= k and bool(((before[:k] - values[:k]).abs() <= self.rounding()).all()) else math.inf
        inner, _, inner_residuals = self._ritz(self.block)
        return self._excess(inner[:1], inner_residuals[:1], tolerance)

    def _excess(self, values: Float64[Tensor, "k"], residuals: Float64[Tensor, "k"], tolerance: float) -> float:
        if bool(self.small(values, residuals, tolerance).all()):
            return 1.0
        allowed = self._allowed(values, tolerance)
        return max(float((residuals / allowed.clamp_min(1e-300)).max()), math.nextafter(1.0, 2.0))

    def restart(self, keep: int) -> None:
        """Keep the leading Ritz vectors and the last residual: A V_k = V_k diag(theta) + v (beta s_last)."""
        self.whole = False
        m = self.filled
        values, rows, _ = self.ritz()
        turn = rows[:, :keep].T.to(self.vectors)
        for start in range(0, self.dimension, 1 << 16):
            part = self.vectors[:m, start : start + (1 << 16)]
            part[:keep] = turn @ part
        self.vectors[keep] = self.vectors[m]
        self.matrix.zero_()
        self.matrix[range(keep), range(keep)] = values[:keep]
        self.matrix[keep, :keep] = self.matrix[:keep, keep] = self.beta * rows[m - 1, :keep]
        self.filled = keep
        self.previous, self.block = 0, keep if self.beta == 0 else 0
        # Rows rotated in place lose a few units in the last place of their orthogonality; the next vector is cleaned against them.
        last = self.vectors[keep]
        last -= (self.vectors[:keep] @ last) @ self.vectors[:keep]
        last /= last.norm()
        self.whole = True
