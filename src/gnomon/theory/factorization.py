"""Matrix and tensor factorisations: critical points in closed form, and the flows that make descent prefer a low rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import integrate
from torch import Tensor

from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.numerics.flow import moments_of

ARORA_2019 = Source("arora2019")
RAZIN_2020 = Source("razin2020")
RAZIN_2021 = Source("razin2021")
RAZIN_2022 = Source("razin2022")
BALANCED_FLOW = ("balanced factors: W_{j+1}' W_{j+1} = W_j W_j'", "gradient flow: lr × sharpness << 1")


def critical_losses(singular: Float[Tensor, "k"], kept: Bool[Tensor, "points k"]) -> Reading:
    """The loss |M - P|^2 / 2 at a critical point of a factorisation P = W_d ... W_1, which keeps some of the singular values of M: half the squares of the others.

    Shapes: (k,), (points, k) -> (points,).   Units: those of M squared.   Error: exact.
    Assumes: distinct singular values.   Cost: none.   Raises: InvalidInput for values that are not distinct.
    Source: Baldi & Hornik 1989 (two layers); Kawaguchi 2016 (any depth).
    """
    _check_distinct(singular)
    return Reading.predicted("critical_loss", (~kept).to(singular) @ singular.square() / 2, unit="", source=Source("baldi1989"), assumes=("distinct singular values",))


def least_curvatures(singular: Float[Tensor, "k"], kept: Bool[Tensor, "points k"], *, rank: int) -> Reading:
    """The least eigenvalue of the Hessian of |M - U V'|^2 / 2 + |U'U - V'V|^2 / 8 at its critical points.

    min(0, s_kept - s_left):  s_kept the least singular value that is kept, 0 where fewer than `rank` are, s_left the largest that is not.

    At a critical point U'U = V'V =: D (the gradients' equations give (U'U - V'V)^3 = 0), so U = U_S sqrt(D), V = V_S sqrt(D) up to one rotation.  Along
    dU = a u_l e_k', dV = b v_l e_k', l not kept, the second derivative is (a^2 + b^2) s_k - 2 a b s_l, and s_k - s_l is the lesser eigenvalue.  All other
    directions do not curve down, and a rotation of both factors is flat.  Negative but for the global minimum: every saddle is strict.
    Shapes: (k,), (points, k) -> (points,).   Units: those of M.   Error: exact.
    Assumes: distinct singular values; rank at least 2, so that there is a rotation, or a point that is no global minimum.   Cost: none.
    Raises: InvalidInput for values that are not distinct.
    Source: Zhu et al. 2018 (the theorem); the eigenvalue is derived here.
    """
    _check_distinct(singular)
    left = torch.where(kept, 0.0, singular).amax(1)
    least = torch.where(kept, singular, torch.inf).amin(1)
    value = torch.where(kept.sum(1) < rank, 0.0, least) - left
    return Reading.predicted("least_curvature", value.clamp_max(0.0), unit="", source=Source("zhu2018"), assumes=("distinct singular values",))


def _check_distinct(singular: Float[Tensor, "k"]) -> None:
    if bool((singular.sort().values.diff() <= 1e-6 * singular.max()).any()):
        raise InvalidInput(f"The singular values must be distinct, not {singular.tolist()}: for equal ones the critical points are not isolated subsets.")


def singular_value_velocities(product: Float[Tensor, "*starts m n"], gradient: Float[Tensor, "*same p q"], depth: int) -> Reading:
    """How fast gradient flow on N balanced factors moves the singular values of their product W, G being the gradient of the loss in W.

    d sigma_r / dt = -N sigma_r^(2 - 2/N) <G, u_r v_r'>

    The larger grow faster, the more so the deeper: for N = 1 all alike, for large N in proportion to sigma^2.
    Shapes: (..., m, n) twice -> (..., k), k = min(m, n), in falling order of sigma.   Units: those of W over time.   Error: exact.
    Assumes: balanced factors, as small random ones nearly are; distinct singular values.   Cost: a singular value decomposition.
    Raises: InvalidInput for a depth below 1 or shapes that differ.
    Source: Arora, Cohen, Hu & Luo 2019, theorem 3.
    """
    _check_depth(depth)
    if product.shape != gradient.shape or product.ndim < 2:
        raise InvalidInput(f"The product and the loss's gradient in it have one shape (..., m, n), not {tuple(product.shape)} and {tuple(gradient.shape)}.")
    left, singular, right = torch.linalg.svd(product, full_matrices=False)
    along = (left.mT @ gradient @ right.mT).diagonal(dim1=-2, dim2=-1)
    return Reading.predicted("singular_value_velocity", -depth * singular ** (2 - 2 / depth) * along, unit="", source=ARORA_2019.at("theorem 3"), assumes=BALANCED_FLOW)


def singular_values_along(path: Float[Tensor, "times m n"], gradients: Float[Tensor, "times m n"], depth: int, *, spacing: float) -> Reading:
    """The singular values at each moment of a path, from those at its start and `singular_value_velocities`, integrated.

    Shapes: (T, m, n) twice -> (T, k).   Units: those of W.   Error: that of the trapezoidal rule at this spacing in time, and of the path.
    Assumes: as `singular_value_velocities`.   Cost: T singular value decompositions.   Raises: as `singular_value_velocities`.
    Source: Arora, Cohen, Hu & Luo 2019, theorem 3.
    """
    rates = singular_value_velocities(path, gradients, depth)
    gained = integrate.cumulative_trapezoid(rates.value, dx=spacing, axis=0, initial=0)
    return rates.replace(name="singular_values", value=torch.linalg.svdvals(path[0]).cpu().numpy() + gained)


def end_to_end_path(start: Float[Tensor, "m n"], slope: Callable[[Tensor], Tensor], times: Sequence[float], *, depth: int) -> Reading:
    """The product of N balanced factors under gradient flow, by its own equation, without the factors.

    dW/dt = -sum_j (W W')^((j - 1)/N) G(W) (W' W)^((N - j)/N)

    Shapes: start (m, n); slope maps (m, n) to the gradient G there (m, n); times (T,) -> value (T, m, n).   Units: those of W.
    Error: a bound of 1e-7 of the largest entry: the tolerance of the integration, 1e-9 a step, over some hundred steps.
    Assumes: balanced factors, all at least min(m, n) wide.   Cost: a singular value decomposition a step.
    Raises: InvalidInput for a depth below 1 or times that fall; OutOfScope where the flow leaves for infinity in finite time.
    Source: Arora, Cohen & Hazan 2018, theorem 1, in the form of Arora, Cohen, Hu & Luo 2019.
    """
    _check_depth(depth)
    t = moments_of(times)
    first = start.detach().cpu().double()

    def velocity(_: float, flat: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        made = torch.from_numpy(flat).reshape(first.shape)
        left, singular, right = torch.linalg.svd(made)
        a, b = (torch.nn.functional.pad(singular, (0, side - len(singular))) for side in first.shape)
        weights = sum(a[:, None] ** (2 * (j - 1) / depth) * b[None] ** (2 * (depth - j) / depth) for j in range(1, depth + 1))
        moved: Tensor = -left @ (weights * (left.T @ slope(made) @ right.T)) @ right
        return np.asarray(moved.reshape(-1).numpy())

    solved = integrate.solve_ivp(velocity, (0.0, max(float(t[-1]), 1e-12)), first.reshape(-1).numpy(), method="DOP853", t_eval=t, rtol=1e-9, atol=1e-12)
    if not solved.success:
        raise OutOfScope(f"The flow of the product could not be followed to t = {t[-1]:g} ({solved.message}): ask for earlier times")
    value = solved.y.T.reshape(len(t), *first.shape)
    return Reading.predicted("product", value, unit="", error=1e-7 * float(np.abs(value).max()), error_kind="bound", source=ARORA_2019.at("section 3"), assumes=BALANCED_FLOW)


def two_by_two_completion(losses: Sequence[float]) -> Reading:
    """The completion of ((?, 1), (1, 0)) from a start of positive determinant: at the loss L every norm is at least one bound, and the second singular value at most another.

    |W| >= |w_11| >= (1 - sqrt(2 L))^2 / sqrt(2 L),   sigma_2 <= sqrt(2 L),   L = ((w_12 - 1)^2 + (w_21 - 1)^2 + w_22^2) / 2

    The determinant keeps its sign under the flow of two or more square balanced factors, so that w_11 w_22 > w_12 w_21, where |w_22| <= sqrt(2 L) and
    w_12, w_21 >= 1 - sqrt(2 L); and w_12 w_21 / w_11, between 0 and w_22, in place of w_22 makes the rank 1.  As L falls every norm, quasi-norms too, goes to
    infinity and the rank to its least: no norm is what descent makes small.
    Shapes: losses (T,) -> value (T, 2), the least |w_11| and the largest sigma_2.   Units: none.   Error: exact bounds.
    Assumes: a start with a positive determinant; gradient flow.   Cost: none.
    Raises: InvalidInput for losses that are not between 0 and 1/2, where the bounds say nothing.
    Source: Razin & Cohen 2020, theorem 1 (for all norms, with constants of its own); the two bounds are derived here.
    """
    root = np.sqrt(2 * np.asarray(losses, dtype=np.float64))
    if not ((root > 0) & (root < 1)).all():
        raise InvalidInput(f"The bounds hold for losses between 0 and 1/2, not {list(losses)}.")
    axes = (Axis("loss", tuple(float(loss) for loss in losses), "", "log"), Axis("bound on", ("|w_11|", "sigma_2")))
    assumes = ("a start of positive determinant", *BALANCED_FLOW)
    return Reading("completion_bounds", np.stack([(1 - root) ** 2 / root, root], 1), "", role="bound", axes=axes, source=RAZIN_2020.at("theorem 1"), assumes=assumes)


def component_velocities(norms: Float[Tensor, "*starts r"], pulls: Float[Tensor, "*same p"], order: int) -> Reading:
    """How fast gradient flow on W = sum_r w_r^1 x ... x w_r^N moves the norms of its components.

    d|w_r| / dt = N |w_r|^(2 - 2/N) <-G, w_r / |w_r|>,   w_r being the whole component w_r^1 x ... x w_r^N

    Shapes: (..., r) twice, the norms and the components' directions' products with minus the gradient -> (..., r).   Units: those of W over time.   Error: exact.
    Assumes: balanced components: for each, all |w_r^n| are equal, as with small starts they nearly are.   Cost: none.
    Raises: InvalidInput for an order below 1, negative norms or shapes that differ.
    Source: Razin, Maman & Cohen 2021, theorem 1.
    """
    _check_depth(order)
    if norms.shape != pulls.shape or bool((norms < 0).any()):
        raise InvalidInput(f"Norms, not negative, and pulls have one shape (..., r); {tuple(norms.shape)} and {tuple(pulls.shape)} came, the least norm {float(norms.min()):g}.")
    assumes = ("components whose vectors have equal norms", "gradient flow: lr × sharpness << 1")
    return Reading.predicted("component_velocity", order * norms ** (2 - 2 / order) * pulls, unit="", source=RAZIN_2021.at("theorem 1"), assumes=assumes)


def component_exponent(order: int) -> float:
    """The power of its norm with which a component of a tensor of this order grows, 2 - 2 / N: as `component_velocities`."""
    _check_depth(order)
    return 2 - 2 / order


def local_component_velocities(norms: Float[Tensor, "*starts r"], pulls: Float[Tensor, "*same p"], children: int) -> Reading:
    """How fast gradient flow on a hierarchical factorisation moves the norms of the local components of a node with this many children.

    d s_r / dt = L s_r^(2 - 2/L) <-G, C_r>,   L = children + 1,   s_r = |W^node[r, :]| prod_(children) |W^child[:, r]|

    C_r is the tensor of all that goes through the component, over s_r.  The tensor is linear in each of the component's L vectors, so that d|w|^2 / dt = 2 s_r <-G, C_r>
    for all of them: their squares keep their differences, and where these are 0, s_r = |w|^L moves as said.
    Shapes: (..., r) twice -> (..., r).   Units: those of W over time.   Error: exact.
    Assumes: balanced local components: for each, all L norms are equal, as with small starts they nearly are.   Cost: none.
    Raises: InvalidInput for fewer than 1 child, negative norms or shapes that differ.
    Source: Razin, Maman & Cohen 2022 (the dynamics of local component norms); derived here.
    """
    if children < 1:
        raise InvalidInput(f"A node inside a mode tree has at least 1 child, not {children}.")
    return component_velocities(norms, pulls, children + 1).replace(name="local_component_velocity", source=RAZIN_2022)


def least_sharpness(entry: float, factors: int, *, components: int = 1) -> Reading:
    """The least sharpness of a minimum of |observed * (W - M)|^2 / 2 with loss 0 over N factors, where an entry m of M is seen: a step above 2 over it cannot settle.

    lambda >= N R^(2/N - 1) |m|^(2 - 2/N)

    The sharpness is at least the squared gradient of that entry, which is a sum of R products p_r of N numbers (R = 1 for a product of matrices, of any width); by the
    inequality of means its squared gradient is at least sum_r N |p_r|^(2 - 2/N), and least where the p_r are equal.  For a matrix that is seen whole m is its largest
    singular value, and balanced factors attain the bound.

    Shapes: value ().   Units: those of M, to the power 2 - 2/N.   Error: exact bound.   Assumes: a loss of 0 at the minimum.   Cost: none.
    Raises: InvalidInput for fewer than 1 factor or component.
    Source: Mulayoff & Michaeli 2020 (the flattest minimum of a linear network); the bound for one entry is derived here.
    """
    _check_depth(factors)
    if components < 1:
        raise InvalidInput(f"There is at least 1 component, not {components}.")
    power = 2 - 2 / factors
    value = factors * components ** (1 - power) * abs(entry) ** power
    return Reading("least_sharpness", value, "", role="bound", source=Source("mulayoff2020"), assumes=("a minimum of loss 0",))


def _check_depth(depth: int) -> None:
    if depth < 1 or depth != math.floor(depth):
        raise InvalidInput(f"A factorisation has at least 1 factor, and a whole number of them, not {depth}.")
