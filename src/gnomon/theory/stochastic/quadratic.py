"""A quadratic loss with its gradient noise, one step of SGD on it as a matrix, and the steps at which it becomes unstable."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source

Matrix = Float64[Array, "d d"]
MANDT_2017 = Source("mandt2017")
DIEULEVEUT_2020 = Source("dieuleveut2020")


class Quadratic:
    """L(theta) = (theta - m)' H (theta - m) / 2 with gradient noise that is the same everywhere: covariance S over examples.

    Shapes: hessian (d, d), noise (d, d), minimum (d,), 0 where it is not given.   Units: H in loss / parameter^2, S in its square times parameter^2.
    Raises: InvalidInput for matrices that are not symmetric, finite and positive semi-definite, or of different sizes.
    """

    examples: int | None = None

    def __init__(self, hessian: ArrayLike, noise: ArrayLike, minimum: ArrayLike | None = None) -> None:
        self.hessian, self.noise = _covariance("hessian", hessian), _covariance("noise", noise)
        if self.hessian.shape != self.noise.shape:
            raise InvalidInput(f"hessian and noise must be of one size; their shapes are {self.hessian.shape} and {self.noise.shape}.")
        self.minimum = np.zeros(len(self.hessian)) if minimum is None else np.asarray(minimum, dtype=np.float64)
        self.curvatures, self.directions = np.linalg.eigh(self.hessian)

    @property
    def sharpness(self) -> float:
        """The largest curvature."""
        return float(self.curvatures[-1])

    def fluctuation(self, mean: Float64[Array, "d"], second: Matrix) -> Matrix:
        """Covariance over examples of the gradient at theta = minimum + e, averaged over e of this mean and second moment.  Shapes: (d,), (d, d) -> (d, d)."""
        return self.noise

    def multiplicative(self, second: Matrix) -> Matrix:
        """The part of `fluctuation` that is linear in the second moment of e.  Shapes: (d, d) -> (d, d)."""
        return np.zeros_like(self.hessian)

    def settled(self, sgd: Sgd) -> Quadratic:
        """The same about (H + w)^-1 H m, where the steps settle under their weight decay, w being w (1 - b) for decoupled decay with momentum b."""
        return self if sgd.weight_decay == 0 else Quadratic(self.hessian, self.noise, self._settles(sgd))

    def _settles(self, sgd: Sgd) -> Float64[Array, "d"]:
        weight = sgd.weight_decay * (1 - sgd.momentum if sgd.decay == "decoupled" else 1.0)
        return np.asarray(np.linalg.solve(self.hessian + weight * np.eye(len(self.hessian)), self.hessian @ self.minimum))


class LeastSquares(Quadratic):
    """L = |X theta - y|^2 / (2 N): example i has the gradient x_i (x_i . theta - y_i), whose covariance depends on theta.

    Shapes: inputs (N, d), targets (N,).   Units: those of targets squared.   Raises: InvalidInput for other shapes or fewer than two examples.
    """

    def __init__(self, inputs: ArrayLike, targets: ArrayLike, *, about: Array | None = None) -> None:
        self.inputs, self.targets = np.asarray(inputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
        if self.inputs.ndim != 2 or self.targets.shape != self.inputs.shape[:1] or len(self.inputs) < 2:
            raise InvalidInput(f"Least squares takes inputs (N, d) and targets (N,) of at least two examples, not shapes {self.inputs.shape} and {self.targets.shape}.")
        x, self.examples = self.inputs, len(self.inputs)
        where = np.asarray(np.linalg.lstsq(x, self.targets, rcond=None)[0], dtype=np.float64) if about is None else about
        self.gradients = (x @ where - self.targets)[:, None] * x
        centred = self.gradients - self.gradients.mean(0)
        super().__init__(x.T @ x / self.examples, centred.T @ centred / self.examples, where)

    def multiplicative(self, second: Matrix) -> Matrix:
        """1/N sum_i x_i x_i' (x_i' M x_i) - H M H."""
        x = self.inputs
        along = np.einsum("ni,ij,nj->n", x, second, x, optimize=True)
        return (x * along[:, None]).T @ x / len(x) - self.hessian @ second @ self.hessian

    def fluctuation(self, mean: Float64[Array, "d"], second: Matrix) -> Matrix:
        """S + 1/N sum_i (h_i - H) m (g_i - g)' + its transpose + the part in the second moment, with h_i = x_i x_i'."""
        x = self.inputs
        moved = (x * (x @ mean)[:, None] - self.hessian @ mean).T @ (self.gradients - self.gradients.mean(0)) / len(x)
        return self.noise + moved + moved.T + self.multiplicative(second)

    def settled(self, sgd: Sgd) -> LeastSquares:
        """The same about the point where the steps settle: the gradients of examples, and so the noise, are others there."""
        return self if sgd.weight_decay == 0 else LeastSquares(self.inputs, self.targets, about=self._settles(sgd))


def transition(curvature: Float64[Array, "d"], sgd: Sgd) -> tuple[Float64[Array, "d k k"], Float64[Array, "k"]]:
    """One step along each eigenvector of the Hessian: the matrix A of (theta, v) -> A (theta, v) + b noise, k = 2, or of theta alone, k = 1, without momentum.

    v' = b v + h theta + noise (h + w where decay is coupled),   theta' = (1 - lr w if it is decoupled) theta - lr v'   (Nesterov: - lr (g + b v'))

    Shapes: curvature (d,) -> (d, k, k), (k,).   Units: none.   Error: exact.   Cost: none.
    """
    lr, b, one = sgd.step, sgd.momentum, np.ones_like(curvature)
    coupled = curvature + (sgd.weight_decay if sgd.decay == "coupled" else 0.0)
    kept = 1 - (lr * sgd.weight_decay if sgd.decay == "decoupled" else 0.0)
    if b == 0:
        return (kept - lr * coupled)[:, None, None], np.array([-lr])
    now, old = (1 + b, b * b) if sgd.nesterov else (1.0, b)
    rows = np.array([[kept * one - lr * now * coupled, -lr * old * one], [coupled, b * one]])
    return np.moveaxis(rows, -1, 0), np.array([-lr * now, 1.0])


def mean_limit(problem: Quadratic, sgd: Sgd) -> Reading:
    """The learning rate above which even the mean of the steps diverges on a quadratic loss.

    Where the spectral radius of `transition` reaches 1: 2 / lambda_max for plain SGD, (2 + 2b) / lambda_max with heavy-ball momentum b.

    Shapes: value ().   Units: 1 / curvature.   Error: bound, that of a bisection.   Assumes: a quadratic loss.   Cost: 60 eigenvalue problems of size d.
    Raises: OutOfScope for a loss without curvature.
    Source: Cohen et al. 2021, section 2 and appendix B; with decoupled decay derived here from the same matrix.
    """
    limit = _bisect(lambda lr: _radius(problem, sgd.replace(lr=lr)) < 1, start=1 / _curved(problem))
    return Reading.predicted(
        "lr_limit", limit, unit="1 / curvature", error=1e-12 * limit, error_kind="bound", source=Source("cohen2021", "section 2"), assumes=("a quadratic loss",)
    )


def mean_square_limit(problem: Quadratic, sgd: Sgd) -> Reading:
    """The learning rate above which the variance of the steps diverges, though their mean may still converge.

    Where the spectral radius of M -> A M A' + f b C(M_theta,theta) b' reaches 1, C being `multiplicative`: noise that grows with the distance feeds itself.
    Where the noise is the same everywhere this is `mean_limit`.

    Shapes: value ().   Units: 1 / curvature.   Error: bound, that of the bisection and of power iteration.
    Assumes: a quadratic loss, independent batches.   Cost: 40 power iterations.   Raises: OutOfScope for a loss without curvature.
    Source: Dieuleveut, Durmus & Bach 2020 (the operator for plain SGD); with momentum derived here.
    """
    highest = float(mean_limit(problem, sgd))
    limit = _bisect(lambda lr: lr < highest * (1 - 1e-9) and feedback(problem, sgd.replace(lr=lr)) < 1, start=highest / 4, rounds=40)
    limit = min(limit, highest)
    return Reading.predicted(
        "lr_limit_in_mean_square", limit, unit="1 / curvature", error=1e-6 * limit, error_kind="bound", source=DIEULEVEUT_2020, assumes=("a quadratic loss", "independent batches")
    )


def gains(problem: Quadratic, sgd: Sgd, *, continuous: bool) -> Matrix:
    """The stationary covariance of theta is, element by element in the Hessian's eigenbasis, this times the noise's covariance.

    The (theta, theta) part of S_ij = A_i S_ij A_j' + b b' (or 0 = (A_i - 1) S_ij + S_ij (A_j - 1)' + b b'): the Lyapunov equation decouples there.
    Shapes: (d, d).   Units: lr / curvature.   Error: exact.   Assumes: stable steps.   Cost: d^2 systems of at most 4 equations.
    """
    a, b = transition(problem.curvatures, sgd)
    d, k = len(a), len(b)
    eye = np.eye(k)
    if continuous:
        drift = a - eye
        left = np.einsum("iab,cd->iacbd", drift, eye).reshape(d, 1, k * k, k * k) + np.einsum("ab,jcd->jacbd", eye, drift).reshape(1, d, k * k, k * k)
        left = -left
    else:
        left = np.eye(k * k) - np.einsum("iab,jcd->ijacbd", a, a).reshape(d, d, k * k, k * k)
    right = np.broadcast_to(np.outer(b, b).reshape(k * k, 1), (d, d, k * k, 1))
    return np.asarray(np.linalg.solve(left, right)[..., 0, 0])


def epoch_gains(problem: Quadratic, sgd: Sgd) -> tuple[Matrix, Matrix]:
    """The same for shuffled epochs of K batches, whose noise has the covariance f S, and c S between two of one epoch: on average over an epoch's steps, and at its end.

    z_j = A^j z_0 + sum_(i<j) T_i noise_(j-1-i) with T_i = A^i b, so that  M_j = A^j M_0 A'^j + (f - c) sum_(i<j) T_i S T_i' + c (sum T_i) S (sum T_i)',  and M_K = M_0.

    Shapes: (d, d), (d, d).   Units: lr / curvature, times f.   Error: exact.   Assumes: stable steps.   Cost: 2 K d^2 products of at most 2 x 2 matrices.
    """
    a, b = transition(problem.curvatures, sgd)
    d, k = len(a), len(b)

    def through(start: Float64[Array, "d d k k"]) -> tuple[Float64[Array, "d d k k"], Matrix, Float64[Array, "d k k"]]:
        power, turn, total = np.broadcast_to(np.eye(k), a.shape), np.broadcast_to(b, (d, k)), np.zeros((d, k))
        alone, mean, here = np.zeros((d, d, k, k)), np.zeros((d, d)), start
        for _ in range(sgd.epoch):
            alone = alone + np.einsum("ia,jb->ijab", turn, turn)
            total = total + turn
            turn, power = np.einsum("iab,ib->ia", a, turn), a @ power
            moved = np.einsum("iab,ijbc,jdc->ijad", power, start, power, optimize=True)
            here = moved + (sgd.noise_factor - sgd.between) * alone + sgd.between * np.einsum("ia,jb->ijab", total, total)
            mean = mean + here[..., 0, 0] / sgd.epoch
        return here, mean, power

    made, _, power = through(np.zeros((d, d, k, k)))
    left = np.eye(k * k) - np.einsum("iab,jcd->ijacbd", power, power).reshape(d, d, k * k, k * k)
    end, mean, _ = through(np.linalg.solve(left, made.reshape(d, d, k * k, 1)).reshape(d, d, k, k))
    return mean, np.asarray(end[..., 0, 0])


def feedback(problem: Quadratic, sgd: Sgd, *, continuous: bool = False) -> float:
    """How much noise the covariance that noise leaves makes anew: the spectral radius of K(M) = f gains * C(M); the second moment is stable below 1.

    Units: none.   Error: 1e-9 where power iteration has settled.   Assumes: steps that are stable in the mean.   Cost: at most 500 applications.
    """
    sgd.independent("the stability of second moments")
    gain, turn, factor = gains(problem, sgd, continuous=continuous), problem.directions, sgd.noise_factor
    second, size = np.eye(len(turn)) / len(turn), 0.0
    for _ in range(500):
        made = turn @ (gain * (turn.T @ problem.multiplicative(second) @ turn)) @ turn.T * factor
        new = float(np.linalg.norm(made))
        if new < 1e-14 or abs(new - size) < 1e-10 * new:
            return new
        second, size = made / new, new
    return size


def check_stable(problem: Quadratic, sgd: Sgd) -> None:
    """Nothing where the steps are stable in the mean.

    Raises: OutOfScope above the limit, which it names, and where a direction has no curvature; InvalidInput where the data are not those that `sgd` speaks of.
    """
    if problem.examples not in (None, sgd.examples):
        raise InvalidInput(f"The steps are said to be on {sgd.examples} examples, the data hold {problem.examples}: give Sgd that number as `examples`.")
    if problem.curvatures[0] + sgd.weight_decay <= 1e-12 * _curved(problem):
        raise OutOfScope("a direction has no curvature: the steps wander there, and no covariance is stationary. Leave it out, or use weight decay.")
    if _radius(problem, sgd) >= 1:
        limit = float(mean_limit(problem, sgd))
        raise OutOfScope(f"lr = {sgd.lr:g} is above the limit of stability, {limit:.4g}: the steps diverge. Take a smaller learning rate.")


def _radius(problem: Quadratic, sgd: Sgd) -> float:
    return float(np.abs(np.linalg.eigvals(transition(problem.curvatures, sgd)[0])).max())


def _curved(problem: Quadratic) -> float:
    if problem.sharpness <= 0:
        raise OutOfScope("the loss has no curvature in any direction: no step has a limit of stability")
    return problem.sharpness


def _bisect(inside: object, *, start: float, rounds: int = 60) -> float:
    """The end of the interval from 0 on in which `inside` is true."""
    assert callable(inside)
    low, high = 0.0, start
    while inside(high) and high < 1e12 * start:
        low, high = high, 2 * high
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def _covariance(name: str, matrix: ArrayLike) -> Matrix:
    out = np.asarray(matrix, dtype=np.float64)
    if out.ndim != 2 or out.shape[0] != out.shape[1] or not np.isfinite(out).all():
        raise InvalidInput(f"{name} must be a square matrix of finite numbers, not of shape {out.shape}.")
    size = np.abs(out).max(initial=0.0)
    if np.abs(out - out.T).max(initial=0.0) > 1e-8 * size or np.linalg.eigvalsh(out)[0] < -1e-8 * size:
        raise InvalidInput(f"{name} must be symmetric and positive semi-definite: at a minimum the Hessian is, and a covariance always.")
    return np.asarray((out + out.T) / 2)
