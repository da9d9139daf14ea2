"""What one step of gradient descent does to a network of finite width on average over initialisations: its outputs, and its tangent kernel, which in the limit of many units stays as it is.

Notation as in `first_order`; n_L outputs, targets y_ia, loss sum |z - y|^2 / 2, residuals e = z - y, W_cd = sum_k y_kc y_kd + n_L K_cd, W^i_cd = y_ic y_id + K_cd.  A step changes parameters by
-lr * rate * sum e dz/dtheta, so that, to all orders in it that are of order 1/n,

    z' = z - lr H e + lr^2/2 dH e e - lr^3/6 ddI e e e,     H'_ij = H_ij - lr (dH_ijk + dH_jik) e_k + lr^2 [(ddI_ijkl + ddI_jikl)/2 + ddII_ijkl] e_k e_l,

and, since an odd number of last-layer weights has mean 0, the expectations of the tensors give

    E z'_ia = lr (Theta + H1/n)_ab y_ib - (lr^2/n) (P_abcb + Q_abcb + n_L Q_acbb) y_ic + (lr^3/2n) R_abcd (y_ib W_cd + y_ic K_bd + y_id K_bc),
    E H'_ii,ab - E H_ii,ab = -(lr/n) (P_abcc + n_L Q_abcc + Q_acbc) + (lr^2/n) [(R_abcd/2 + S_abcd/2) W_cd + (R_acdb + R_adbc + T_acdb + U_adbc) W^i_cd / 2] + the same with a and b changed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64

from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.tensors import ASSUMES, Tensors

PRINCIPLES = Source("roberts2022", "chapter 11 and the epilogue")
NEXT = 2.5
"""The next order, relative, is some NEXT * depth/width: ReLU's vertex has it."""


@dataclasses.dataclass(frozen=True)
class Step:
    """After one step: the mean outputs (outputs, inputs), and by how much the tangent kernel of each output moved on average (outputs, inputs, inputs)."""

    outputs: Reading
    ntk_change: Reading


def one_step(found: Tensors, *, targets: Float64[Array, "outputs n"], lr: float, width: int) -> Step:
    """What one step of gradient descent on sum |z - y|^2 / 2 does on average, at order 1/n; the learning rates of the layers are those that `found` was made with, times `lr`.

    The formulas stand in this module's docstring.

    Shapes: `targets` (outputs, inputs), for the inputs of `found`.   Units: outputs; rate times outputs squared.
    Error: truncation, 2.5 depth/width of the largest correction, and for outputs, of (2.5 depth/width)^2 of the largest mean.   Assumes: as `tensors`, all of them; a step as small as in the
    limit of many units, where it moves an output by about itself.   Cost: none.
    Raises: InvalidInput for targets of another shape, a width below 1, or tensors that end before R to U.
    Source: Roberts, Yaida & Hanin 2022, chapter 11 and the epilogue (the expansion); expectations derived above.
    """
    y = np.asarray(targets, dtype=np.float64)
    inputs = found.kernel.shape[1]
    if y.ndim != 2 or y.shape[1] != inputs or width < 1:
        raise InvalidInput(f"Targets must have shape (outputs, {inputs}) and the width be at least 1, not {y.shape} and {width}.")
    k, (p, q, r, s, t, u) = found.kernel[-1], (found.value(name)[-1] for name in "PQRSTU")
    count, depth = len(y), len(found.kernel)
    own = np.einsum("ic,id->icd", y, y) + k
    every = y.T @ y + count * k
    second = np.einsum("abcb->ac", p) + np.einsum("abcb->ac", q) + count * np.einsum("acbb->ac", q)
    third = np.einsum("abcd,ib,cd->ia", r, y, every) + np.einsum("abcd,ic,bd->ia", r, y, k) + np.einsum("abcd,id,bc->ia", r, y, k)
    limit = lr * y @ found.ntk[-1]
    moved = lr * y @ found.value("H1")[-1] - lr**2 * y @ second.T + lr**3 / 2 * third
    first = -lr * (np.einsum("abcc->ab", p) + count * np.einsum("abcc->ab", q) + np.einsum("acbc->ab", q))
    curved = lr**2 / 2 * (np.einsum("abcd,cd->ab", r + s, every) + _single(own, r, t, u))
    change = first + curved
    change = (change + change.transpose(0, 2, 1)) / width
    part = NEXT * depth / width
    units, places = Axis("output", tuple(map(float, range(count)))), tuple(Axis(f"input {letter}", tuple(map(float, range(inputs)))) for letter in "ab")
    settings = {"unit": "", "error_kind": "truncation", "source": PRINCIPLES, "assumes": ASSUMES}
    error = part * float(np.abs(moved).max()) / width + part**2 * float(np.abs(limit).max())
    return Step(
        Reading.predicted("outputs_after_one_step", limit + moved / width, error=error, axes=(units, places[0]), **settings),  # type: ignore[arg-type]
        Reading.predicted("ntk_change", change, error=part * float(np.abs(change).max()), axes=(units, *places), **settings),  # type: ignore[arg-type]
    )


def _single(own: Float64[Array, "outputs n n"], r: Array, t: Array, u: Array) -> Float64[Array, "outputs n n"]:
    """(R_acdb + R_adbc + T_acdb + U_adbc) W^i_cd."""
    return np.asarray(np.einsum("acdb,icd->iab", r + t, own) + np.einsum("adbc,icd->iab", r + u, own))
