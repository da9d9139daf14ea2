"""Where a linear predictor goes when an exponential-type loss is minimised on separable data: the direction of largest margin, at the rate log t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import optimize
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source

SOUDRY_2018 = Source("soudry2018")
POGGIO_2020 = Source("poggio2020")
Indices = np.ndarray[Any, np.dtype[np.int64]]
LARGEST_PROGRAM = 2_000_000
"""Numbers in the data up to which the examples on the wrong side are found by a linear program."""


@dataclass(frozen=True)
class MaxMargin:
    """The solution of the hard-margin problem.

    `direction` (d,) of norm 1; `margin` gamma, the distance of the nearest example; `shares` (n,) how much each example's y x counts in direction / gamma,
    above 0 for the support vectors alone.  Of many classes (K, d), and (n, K) for each example against each class.
    """

    direction: Array
    margin: float
    shares: Array

    @property
    def support(self) -> Indices:
        """Indices of the support vectors.  Shapes: (s,)."""
        return np.asarray(np.flatnonzero((self.shares.reshape(len(self.shares), -1) > 0).any(1)), dtype=np.int64)


def max_margin(inputs: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> MaxMargin:
    """The direction with the largest margin on two classes, without a bias: a column of ones in the inputs gives one.

    min |w|^2 / 2  such that  y_i w . x_i >= 1;   direction w / |w|,   margin gamma = 1 / |w|,   w = sum_i a_i y_i x_i,  a >= 0,  sum_i a_i = 1 / gamma^2

    As a least-distance problem it is one of non-negative least squares, solved on a growing set of examples until none is violated.
    Shapes: (n, d), (n,).   Units: the margin's are those of the inputs.   Error: exact up to rounding: no example's margin is more than 1e-8 gamma below gamma.
    Assumes: nothing of the data.   Cost: about that of a least-squares problem on d times a few times the support vectors, a few times.
    Raises: OutOfScope for data that no direction separates, with the examples in the way; InvalidInput for shapes, numbers or labels that are no two classes.
    Source: Lawson & Hanson 1995, chapter 23 (least-distance programming); Soudry et al. 2018 (the problem).
    """
    z, scale = _signed(inputs, labels)
    found = _grown(lambda some: z[some], lambda w: z @ w, z.mean(0))
    if found.w is None:
        raise OutOfScope(_in_the_way(z, np.arange(len(z)), found.rows[found.shares > 0]))
    whole, norm = np.zeros(len(z)), float(np.linalg.norm(found.w))
    whole[found.rows] = found.shares / scale**2
    return MaxMargin(found.w / norm, scale / norm, whole)


def multiclass_max_margin(inputs: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> MaxMargin:
    """The direction of the K weight vectors with the largest margin between classes, which softmax cross-entropy takes on separable data; without biases.

    min sum_k |w_k|^2 / 2  such that  (w_(y_i) - w_k) . x_i >= 1 for all k but y_i;   gamma = 1 / |W|;   W(t) ~ log t W / |W| / gamma

    The two-class problem on the n (K - 1) examples x_i (e_(y_i) - e_k)' of d K inputs, of which only those that come to count are made.  The w_k add up to 0.
    Shapes: (n, d), (n,) -> direction (K, d), shares (n, K), classes in the order of their labels.   Units: the margin's are those of the inputs.
    Error: as `max_margin`.   Assumes: nothing of the data.   Cost: that of `max_margin` on d K inputs, and passes over the data.
    Raises: as `max_margin`; InvalidInput for labels of one class.
    Source: Soudry et al. 2018, section 4 (softmax cross-entropy goes to the K-class support vector machine).
    """
    x, y = _numbers(inputs, labels)
    classes, own = np.unique(y, return_inverse=True)
    (n, d), k = x.shape, len(classes)
    if k < 2:
        raise InvalidInput("A margin is one between classes; all labels are the same.")
    # a pair of example and class is a row of this length
    scale = float(np.sqrt(2) * np.linalg.norm(x, axis=1).max()) or 1.0
    x, pairs = x / scale, np.flatnonzero(own[:, None] != np.arange(k))
    of, other = pairs // k, pairs % k

    def rows(some: Indices) -> Float64[Array, "m dk"]:
        made, at = np.zeros((len(some), k, d)), np.arange(len(some))
        made[at, own[of[some]]] = x[of[some]]
        made[at, other[some]] -= x[of[some]]
        return made.reshape(len(some), -1)

    def margins(w: Float64[Array, "dk"]) -> Float64[Array, "pairs"]:
        outputs = x @ w.reshape(k, d).T
        return np.asarray((outputs[np.arange(n), own][:, None] - outputs)[of, other])

    start = np.stack([x[own == c].sum(0) for c in range(k)]) - x.sum(0) / k
    found = _grown(rows, margins, start.ravel())
    if found.w is None:
        few = len(pairs) * d * k <= LARGEST_PROGRAM
        raise OutOfScope(_in_the_way(rows(np.arange(len(pairs))) if few else None, of, found.rows[found.shares > 0]))
    whole, norm = np.zeros((n, k)), float(np.linalg.norm(found.w))
    whole[of[found.rows], other[found.rows]] = found.shares / scale**2
    return MaxMargin(found.w.reshape(k, d) / norm, scale / norm, whole)


@dataclass(frozen=True)
class _Found:
    """The w of least norm, None where there is none, and the shares of the `rows` that count."""

    w: Array | None
    rows: Indices
    shares: Array


def _grown(rows: Callable[[Indices], Array], margins: Callable[[Array], Array], start: Float64[Array, "d"]) -> _Found:
    """The w of least norm with all margins at least 1, on a set of rows that grows until none is violated."""
    more = max(2 * len(start), 50)
    chosen: Indices = np.argsort(margins(start))[:more]
    while True:
        shares, w = _least_distance(rows(chosen))
        if w is None:
            return _Found(None, chosen, shares)
        made = margins(w)
        violated: Indices = np.flatnonzero(made < 1 - 1e-9)
        violated = violated[~np.isin(violated, chosen)]
        if not len(violated):
            return _Found(w, chosen, shares)
        worst: Indices = violated[np.argsort(made[violated])[:more]]
        chosen = np.concatenate([chosen[(shares > 0) | (made[chosen] < 2)], worst])


def _numbers(inputs: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> tuple[Float64[Array, "n d"], Array]:
    """Both as arrays that fit each other."""
    x, y = (np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part, dtype=np.float64) for part in (inputs, labels))
    if x.ndim != 2 or y.shape != x.shape[:1] or not x.size:
        raise InvalidInput(f"A margin needs inputs of shape (n, d) and labels of shape (n,), not {x.shape} and {y.shape}; flatten images first.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InvalidInput("The inputs hold a number that is not finite: remove it first.")
    return x, y


def _signed(inputs: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> tuple[Float64[Array, "n d"], float]:
    """y x over the largest norm of an example, and that norm."""
    x, y = _numbers(inputs, labels)
    classes = np.unique(y)
    if len(classes) != 2:
        raise InvalidInput(f"A margin is one between two classes; the labels hold {len(classes)} values. Take `multiclass_max_margin`, choose two, or one against the rest.")
    scale = float(np.linalg.norm(x, axis=1).max())
    return np.where(y == classes[1], 1.0, -1.0)[:, None] * x / max(scale, 1e-300), scale


def _least_distance(z: Float64[Array, "n d"]) -> tuple[Float64[Array, "n"], Float64[Array, "d"] | None]:
    """The shares of w = sum shares z of least norm with z w >= 1, and w; None where there is none, the shares then being those of a combination that vanishes."""
    rows = np.vstack([z.T, np.ones(len(z))])
    goal = np.append(np.zeros(z.shape[1]), 1.0)
    shares, _ = optimize.nnls(rows, goal, maxiter=30 * len(z) + 100)
    # |residual|^2 is its own last part, gamma^2 / (1 + gamma^2) with the margin gamma
    left = 1 - float(shares.sum())
    if left < 1e-12:
        return shares, None
    shares = shares / left
    return shares, z.T @ shares


def _in_the_way(z: Float64[Array, "m d"] | None, of: Indices, together: Indices) -> str:
    """What is said of data that nothing separates; row j of z speaks of example of[j], and z is None where it is too large for a linear program."""
    said = f"No direction separates these {int(of.max()) + 1} examples, so that there is no margin: "
    if z is not None and z.size <= LARGEST_PROGRAM:
        m, d = z.shape
        solved = optimize.linprog(
            np.append(np.zeros(d), np.ones(m)), A_ub=-np.hstack([z, np.eye(m)]), b_ub=-np.ones(m), bounds=[(None, None)] * d + [(0, None)] * m, method="highs"
        )
        if solved.status == 0:
            wrong: Indices = np.unique(of[z @ solved.x[:d] <= 1e-9])
            if len(wrong):
                return said + f"at the least sum of violations {len(wrong)} lie on the wrong side: {_named(wrong)}. Correct or remove them, or add a column of ones for a bias."
    stuck = np.unique(of[together])
    return said + f"already these {len(stuck)} cannot all be on the right side: {_named(stuck)}. Correct or remove some, or add a column of ones for a bias."


def _named(indices: Indices) -> str:
    return ", ".join(str(int(index)) for index in indices[:10]) + (", …" if len(indices) > 10 else "")


def growth(found: MaxMargin, times: Sequence[float], *, rate: float = 1.0) -> Reading:
    """How the logarithm of an exponential loss and the norm of the weights go with the logarithm of time, late in training: the slopes -1 and 1 / gamma.

    L(t) -> 1 / (gamma^2 t),   |w(t)| ~ log t / gamma,   d log L / d log t -> -1,   d|w| / d log t -> 1 / (rate gamma)

    Shapes: value (times, 2), the slope of log L first.   Units: none; one over those of the inputs.
    Error: truncation, 1 / log t of the value: the direction is reached at that rate.
    Assumes: data that are separable; a loss sum exp(-rate y w . x), or one with that tail (logistic); gradient flow, or descent with a step that is stable, t being lr
    times the steps.   Cost: none.   Raises: InvalidInput for times not above e^2, where 1 / log t is half of the value.
    Source: Soudry et al. 2018, theorem 3 (w(t) = w log t + a bounded residual).
    """
    logs = np.log(np.asarray(times, dtype=np.float64))
    if not (logs > 2).all():
        raise InvalidInput(f"The growth is that at late times; the least of those given is {min(times):g}, and below e^2 nothing is said.")
    value = np.broadcast_to([-1.0, 1 / (rate * found.margin)], (len(logs), 2))
    axes = (Axis("time", tuple(float(t) for t in times), "", "log"), Axis("slope of", ("log L", "|w|")))
    return Reading.predicted(
        "growth", value, unit="", error=np.abs(value) / logs[:, None], error_kind="truncation", axes=axes, source=SOUDRY_2018.at("theorem 3"),
        assumes=("separable data", "an exponential tail of the loss", "a stable step"),
    )  # fmt: skip


def normalised_direction(inputs: Tensor | ArrayLike, labels: Tensor | ArrayLike, *, norm: float) -> Reading:
    """The direction in which an exponential loss is least among predictors of a given norm rho: the critical point of every flow of normalised weights.

    min sum_i exp(-rho y_i v . x_i)  such that  |v| = 1;   it nears the direction of `max_margin` as 1 / rho

    With a multiplier, with weight normalisation, or by plain descent at that norm, v moves along (1 - v v') grad L, which vanishes there.  The multiplier is found
    by Newton's method on log L + mu |w|^2 / 2, mu by bisection until |w| = rho.
    Shapes: (n, d), (n,) -> value (d,).   Units: none.   Error: a bound of 1e-9, the bisection's.
    Assumes: separable data, so that the least loss grows the norm; examples that span the inputs.   Cost: a few hundred solves of size d.
    Raises: InvalidInput for a norm that is not positive, and as `max_margin`; OutOfScope where the norm is too large for the search.
    Source: Poggio, Banburski & Liao 2020, section on the dynamics of normalised weights.
    """
    z, scale = _signed(inputs, labels)
    if norm <= 0:
        raise InvalidInput(f"A norm is above 0, not {norm:g}.")
    target, margin = norm * scale, max_margin(inputs, labels).margin / scale

    def solved(log_mu: float, w: Array) -> Array:
        mu = np.exp(log_mu)
        for _ in range(200):
            outputs = -z @ w
            shares = np.exp(outputs - outputs.max())
            shares /= shares.sum()
            mean = shares @ z
            slope = mu * w - mean
            step = np.linalg.solve(mu * np.eye(len(w)) + (z * shares[:, None]).T @ z - np.outer(mean, mean), slope)
            w = w - step / max(1.0, float(abs(z @ step).max()) / 2)
            if float(np.linalg.norm(step)) < 1e-12 * (1 + float(np.linalg.norm(w))):
                break
        return np.asarray(w)

    # mu rho = |mean| of weighted examples, which lies between gamma and the largest norm, here 1
    low, high, start = np.log(margin / target) - 1e-6, -np.log(target) + 1e-6, np.zeros(z.shape[1])
    w = start
    for _ in range(60):
        middle = (low + high) / 2
        w = solved(middle, start)
        if float(np.linalg.norm(w)) > target:
            low = middle
        else:
            high, start = middle, w
    if abs(float(np.linalg.norm(w)) / target - 1) > 1e-6:
        raise OutOfScope(f"The direction at the norm {norm:g} was not found to 1e-6: beside the margin the norm is so large that the loss is flat. Take `max_margin`.")
    value, assumes = w / np.linalg.norm(w), ("separable data", "a fixed norm, or one that grows slowly")
    return Reading.predicted("direction", value, unit="", error=1e-9, error_kind="bound", source=POGGIO_2020, assumes=assumes)
