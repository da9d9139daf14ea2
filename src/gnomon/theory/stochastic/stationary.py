"""The covariance in which SGD settles about a minimum, three ways, and what it costs in loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov
from scipy.sparse.linalg import LinearOperator, gmres

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.sgd import Sgd
from gnomon.core.source import Source
from gnomon.theory.stochastic.quadratic import DIEULEVEUT_2020, MANDT_2017, Matrix, Quadratic, check_stable, epoch_gains, feedback, gains, mean_square_limit, transition

UNIT = "parameter²"
LIU_2021 = Source("liu2021")
LI_2021 = Source("li2021")
KUHN_2023 = Source("kuhn2023")


def ou_covariance(problem: Quadratic, sgd: Sgd) -> Reading:
    """Stationary covariance of the Ornstein-Uhlenbeck process dz = (A - 1) z dt + b dW that the steps z' = A z + b noise are the Euler scheme of.

    (A - 1) C + C (A - 1)' + f b S b' = 0;   without momentum H C + C H = lr f S, f = 1/B with replacement.

    Shapes: value (d, d).   Units: parameter^2.   Error: truncation, lr lambda_max / 2 of the value: the next order where the noise is the same everywhere.
    Assumes: lr lambda_max << 1; noise that does not depend on theta.   Cost: d^3.
    Raises: OutOfScope above the limit of stability or without curvature; InvalidInput where data and steps do not fit.
    Source: Mandt, Hoffman & Blei 2017, section 3 (without momentum); with momentum derived here from the same limit.
    """
    sgd.independent("an Ornstein-Uhlenbeck process")
    at, a, b = _matrices(problem, sgd)
    whole = solve_continuous_lyapunov(a - np.eye(len(a)), -sgd.noise_factor * b @ at.noise @ b.T)
    value = _theta(whole, at)
    return _reading(value, at, MANDT_2017.at("section 3"), error=np.abs(value) * sgd.step * at.sharpness / 2, assumes=("lr lambda_max << 1", "noise that does not depend on theta"))


def discrete_covariance(problem: Quadratic, sgd: Sgd) -> Reading:
    """Stationary covariance of the steps themselves where the noise is the same everywhere: C = A C A' + f b S b'.

    Without momentum and in one dimension C = lr f S / (h (2 - lr h)).  Batches of shuffled epochs make up for each other: directions that an epoch's steps do not
    forget (lr h N / B << 1) fluctuate less than with independent batches.  The value is then the mean over an epoch's steps; `details` has `epoch_end`, after its last.

    Shapes: value (d, d).   Units: parameter^2.   Error: exact for noise that does not depend on theta.   Assumes: such noise.   Cost: d^3; for epochs N / B d^2.
    Raises: as `ou_covariance`, but for shuffled epochs, which it covers.
    Source: Liu, Ziyin & Ueda 2021 (noise and fluctuation of finite-rate SGD); Kuhn & Rosenow 2023 (that epochs' noise is anti-correlated); the covariance of epochs is derived here.
    """
    if sgd.sampling == "epochs":
        check_stable(problem, sgd)
        at = problem.settled(sgd)
        turn, noise = at.directions, at.directions.T @ at.noise @ at.directions
        mean, end = (turn @ (gain * noise) @ turn.T for gain in epoch_gains(at, sgd))
        return _reading(mean, at, KUHN_2023, assumes=("noise that does not depend on theta", "shuffled epochs"), details={"epoch_end": end})
    at, a, b = _matrices(problem, sgd)
    whole = solve_discrete_lyapunov(a, sgd.noise_factor * b @ at.noise @ b.T)
    return _reading(_theta(whole, at), at, LIU_2021, assumes=("noise that does not depend on theta",))


def exact_covariance(problem: Quadratic, sgd: Sgd) -> Reading:
    """Stationary covariance of the steps with the noise as it is at each theta: the fixed point of the recursion of second moments.

    M = A M A' + f b (S + C(M_theta,theta)) b',   for least squares C(M) = 1/N sum_i x_i x_i' (x_i' M x_i) - H M H

    Shapes: value (d, d).   Units: parameter^2.   Error: exact for a quadratic loss of each example, to 1e-10 of an iterative solver.
    Assumes: independent batches.   Cost: some tens of passes over the data.
    Raises: OutOfScope above the limit at which the variance diverges, which it names, and as `ou_covariance`.
    Source: Dieuleveut, Durmus & Bach 2020 (the recursion for plain SGD); with momentum derived here.
    """
    value, at, fed = _with_multiplicative_noise(problem, sgd, continuous=False)
    return _reading(value, at, DIEULEVEUT_2020, assumes=("independent batches",), details={"feedback": fed})


def sde_covariance(problem: Quadratic, sgd: Sgd) -> Reading:
    """Stationary covariance of the Ito equation with the noise as it is at each theta: what SVAG tends to as l grows, and SGD as lr / B falls.

    H C + C H = lr f (S + C(C)) without momentum, with the C(M) of `exact_covariance`; for noise that is the same everywhere this is `ou_covariance`.

    Shapes: value (d, d).   Units: parameter^2.   Error: exact for a quadratic loss of each example, to 1e-10 of an iterative solver.
    Assumes: lr lambda_max << 1 where it is to describe steps.   Cost: some tens of passes over the data.   Raises: as `exact_covariance`.
    Source: Li, Malladi & Arora 2021 (the equation); its moments are derived here.
    """
    value, at, fed = _with_multiplicative_noise(problem, sgd, continuous=True)
    return _reading(value, at, LI_2021, assumes=("lr lambda_max << 1",), details={"feedback": fed})


def _with_multiplicative_noise(problem: Quadratic, sgd: Sgd, *, continuous: bool) -> tuple[Matrix, Quadratic, float]:
    """The fixed point, the problem that it is about, and the feedback of its noise."""
    sgd.independent("the equation of second moments with noise that depends on theta")
    at, _, _ = _matrices(problem, sgd)
    fed = feedback(at, sgd, continuous=continuous)
    if fed >= 1:
        limit = "" if continuous else f" {float(mean_square_limit(at, sgd)):.4g},"
        raise OutOfScope(f"lr = {sgd.lr:g} is above the limit{limit} from which on the variance diverges, though the mean converges. Take a smaller one.")
    gain, turn, d = gains(at, sgd, continuous=continuous), at.directions, len(at.hessian)

    def left(noise: Matrix) -> Matrix:
        return np.asarray(turn @ (gain * (turn.T @ noise @ turn)) @ turn.T * sgd.noise_factor)

    first = left(at.noise)
    operator = LinearOperator((d * d, d * d), matvec=lambda flat: flat - left(at.multiplicative(_even(flat, d))).ravel(), dtype=np.float64)
    found, stopped = gmres(operator, first.ravel(), rtol=1e-11, atol=0.0, restart=min(d * d, 200), maxiter=50)
    if stopped:
        raise OutOfScope(f"the second moments are so near to diverging (feedback {fed:.4f}) that their equation could not be solved; take a smaller learning rate")
    return _even(found, d), at, fed


def stationary_covariances(problem: Quadratic, sgd: Sgd) -> Reading:
    """The three side by side: the Ornstein-Uhlenbeck process, the discrete steps with the noise of the minimum, and those with the noise as it is.

    Shapes: value (3, d, d); `details` has trace, excess loss and the variance along the sharpest direction of each.   Units: parameter^2.
    Error: exact for the last on least squares; its distance from each is what the simpler ones leave out.   Assumes, Cost, Raises: those of the three.
    Source: Mandt, Hoffman & Blei 2017; Liu, Ziyin & Ueda 2021; Dieuleveut, Durmus & Bach 2020.
    """
    each = [made(problem, sgd).value for made in (ou_covariance, discrete_covariance, exact_covariance)]
    top = problem.directions[:, -1]
    details = {
        "trace": [float(np.trace(c)) for c in each], "excess_loss": [float(excess_loss(c, problem.hessian)) for c in each], "sharpest": [float(top @ c @ top) for c in each],
        "lr_lambda_max": sgd.step * problem.sharpness,
    }  # fmt: skip
    places = tuple(map(float, range(len(top))))
    axes = (Axis("equation", ("Ornstein-Uhlenbeck", "discrete", "exact")), Axis("parameter", places), Axis("parameter", places))
    return Reading.predicted("stationary_covariance", np.stack(each), unit=UNIT, axes=axes, source=MANDT_2017, details=details)


def variance_over_ou(problem: Quadratic, sgd: Sgd, lrs: Sequence[float], *, departure: float = 0.125) -> Reading:
    """Variance along the sharpest direction by the exact recursion, over that of the Ornstein-Uhlenbeck process, at each learning rate.

    1 / (1 - lr lambda_max / 2) and more: the process is what is left for lr lambda_max << 1.  `assumes` says from which lr lambda_max on it is off by `departure`,
    and where the variance diverges.

    Shapes: value (lrs,).   Units: none.   Error: exact on least squares.   Assumes: as `exact_covariance`.   Cost: that of it, a learning rate.
    Raises: as `exact_covariance`.   Source: Dieuleveut, Durmus & Bach 2020; Mandt, Hoffman & Blei 2017.
    """
    top, values = problem.directions[:, -1], []
    for lr in lrs:
        simple, exact = (made(problem, sgd.replace(lr=lr)).value for made in (ou_covariance, exact_covariance))
        values.append(float(top @ exact @ top) / float(top @ simple @ top))
    sharpness = tuple(float(lr) * problem.sharpness / sgd.svag for lr in lrs)
    beyond = [step for step, value in zip(sharpness, values, strict=True) if abs(value - 1) > departure]
    limit = float(mean_square_limit(problem, sgd)) * problem.sharpness / sgd.svag
    assumes: tuple[str, ...] = (f"lr × sharpness below {limit:.3f}, where the variance diverges",)
    if beyond:
        first = float(np.interp(1 + departure, values, sharpness)) if len(beyond) < len(values) else beyond[0]
        assumes += (f"an Ornstein-Uhlenbeck process is off by more than {departure:g} of itself above lr × sharpness = {first:.2f}",)
    return Reading.predicted("variance_over_ou", values, unit="", axes=(Axis("lr × sharpness", sharpness),), source=DIEULEVEUT_2020, assumes=assumes)


def excess_loss(covariance: Array | Reading, hessian: Array) -> Reading:
    """What fluctuations of this covariance cost in loss: tr(H C) / 2.

    Shapes: covariance (d, d), hessian (d, d) -> ().   Units: loss.   Error: exact.   Assumes: a quadratic loss.   Cost: d^2.   Raises: InvalidInput for other shapes.
    Source: Mandt, Hoffman & Blei 2017, section 3.
    """
    c, h = _pair(covariance, hessian)
    return Reading.predicted("excess_loss", float((c * h).sum()) / 2, unit="loss", source=MANDT_2017.at("section 3"), assumes=("a quadratic loss",))


def effective_temperature(covariance: Array | Reading, hessian: Array) -> Reading:
    """The temperature at which equipartition would give each direction the energy that it has on average: T = tr(H C) / d.

    The stationary density is exp(-L / T) only where C = T H^-1, that is (for small steps) where the noise is the same in all directions; `details` has h_i C_ii
    along each eigenvector of the Hessian, which are then equal.  Noise in proportion to curvature, as it is near a minimum that fits, gives C the same in all
    directions instead, and sharp ones are hotter.  For the Ornstein-Uhlenbeck process without momentum T = lr f tr S / (2 d).

    Shapes: (d, d), (d, d) -> ().   Units: loss.   Error: exact.   Assumes: a quadratic loss.   Cost: d^3.   Raises: InvalidInput for other shapes.
    Source: Mandt, Hoffman & Blei 2017, section 3.
    """
    c, h = _pair(covariance, hessian)
    curvatures, turn = np.linalg.eigh(h)
    along = curvatures * np.einsum("ai,ab,bi->i", turn, c, turn)
    return Reading.predicted("effective_temperature", float(along.mean()), unit="loss", source=MANDT_2017.at("section 3"), details={"directions": along, "curvatures": curvatures})


def _pair(covariance: Array | Reading, hessian: Array) -> tuple[Matrix, Matrix]:
    c = covariance.value if isinstance(covariance, Reading) else np.asarray(covariance, dtype=np.float64)
    h = np.asarray(hessian, dtype=np.float64)
    if c.ndim != 2 or c.shape != h.shape or c.shape[0] != c.shape[1]:
        raise InvalidInput(f"A covariance and a Hessian must be square and of one size; their shapes are {c.shape} and {h.shape}.")
    return c, h


def _matrices(problem: Quadratic, sgd: Sgd) -> tuple[Quadratic, Float64[Array, "kd kd"], Float64[Array, "kd d"]]:
    """The problem about the point where the steps settle, and one step of all directions at once, (theta, v) one after the other."""
    check_stable(problem, sgd)
    at = problem.settled(sgd)
    a, b = transition(at.curvatures, sgd)
    k, d, turn = len(b), len(a), at.directions
    whole = np.einsum("ai,ixy,bi->xayb", turn, a, turn).reshape(k * d, k * d)
    return at, whole, np.asarray(np.kron(b[:, None], np.eye(d)), dtype=np.float64)


def _theta(whole: Array, problem: Quadratic) -> Matrix:
    d = len(problem.hessian)
    return np.asarray((whole + whole.T)[:d, :d] / 2)


def _even(flat: Array, d: int) -> Matrix:
    square = flat.reshape(d, d)
    return np.asarray((square + square.T) / 2)


def _reading(
    value: Matrix, problem: Quadratic, source: Source, *, error: Array | float = 0.0, assumes: tuple[str, ...], details: dict[str, float | Array] | None = None
) -> Reading:
    kind = "truncation" if np.any(error) else "exact"
    return Reading.predicted(
        "stationary_covariance", value, unit=UNIT, error=error, error_kind=kind, source=source, assumes=("a quadratic loss", *assumes),
        details={"center": problem.minimum, **(details or {})},
    )  # fmt: skip
