"""All statistics of a fully connected network at order 1/n: pre-activations, the tangent kernel, its first and its second differentials, on several inputs.

Notation: z_ia is unit i of a layer on input a, H_ij,ab = sum over parameters of rate * dz_ia dz_jb, biases learning at lambda_b and weights at lambda_W / fan_in;  dH_ijk,abc is the second derivative
of z_ia along the gradients of z_jb and z_kc;  ddI_ijkl,abcd the third derivative of z_ia along those of z_jb, z_kc, z_ld;  ddII_ijkl,abcd the second derivatives of z_ia and z_jb joined at one end, the
others along the gradients of z_kc and of z_ld.  To order 1/n, with K and Theta the limits,

    E z_ia z_jb = d_ij (K + G1/n)_ab,   E H_ij,ab = d_ij (Theta + H1/n)_ab,   E z_ia z_jb z_kc z_ld (connected) = [d_ij d_kl V_abcd + d_ik d_jl V_acbd + d_il d_jk V_adbc]/n,
    Cov(H_ij,ab, H_kl,cd) = [d_ij d_kl A_abcd + d_ik d_jl B_acbd + d_il d_jk B_adbc]/n   (so B_abcd is the covariance of H_ij,ac and H_ij,bd),
    E z_ia z_jb (H - E H)_kl,cd = [d_ij d_kl D_abcd + d_ik d_jl F_acbd + d_il d_jk F_adbc]/n,
    E dH_ijk,abc z_ld = [d_il d_jk P_abcd + d_ij d_kl Q_abcd + d_ik d_jl Q_acbd]/n,
    E ddI_ijkl,abcd = [d_ij d_kl R_abcd + d_ik d_lj R_acdb + d_il d_jk R_adbc]/n,
    E ddII_ijkl,abcd = [d_ij d_kl S_abcd + d_ik d_lj T_acdb + d_il d_jk U_adbc]/n.

Given a layer, each unit of the next is a sum over its units j of w_j times functions of z_j, so that every tensor is a sum over one unit, a Gaussian expectation of four factors (the source), and over
two, the tensors of the layer before with expectations of two factors for legs (what is carried).  Write s, p, q, r for the activation and its derivatives, <.> at K,
    Omega_ab = lambda_W s_a s_b + C_W Theta_ab p_a p_b,   u_ab = C_W Theta_ab q_a p_b + lambda_W p_a s_b,   v_ab = C_W Theta_ab r_a p_b + lambda_W q_a s_b,
and [f]_ef X_ef = <d_e d_f f> X_ef / 2, [f]_e X_e = <d_e f> X_e for derivatives with respect to the z of input e, summed.  Then with C = C_W, everything on the right of the layer before,

    K' = C_b + C <s s>,   Theta' = lambda_b + <Omega>,   G1' = C ([ss] G1 + <dddd ss> V / 8),
    H1' = [Omega] G1 + <dddd Omega> V / 8 + C [pp] (D + 2F) + C <pp> H1,
    V'_abcd = C^2 (<s_a s_b; s_c s_d> + [ss] V [ss]),     D'_abcd = C (<s_a s_b; Omega_cd> + [ss] V [Omega] + [ss] D C <pp>),
    A'_abcd = <Omega_ab; Omega_cd> + [Omega] V [Omega] + C <pp> D [Omega] + [Omega] D C <pp> + C^2 <pp> A <pp>,
    B'_abcd = C^2 (<p_a p_b p_c p_d> Theta_ac Theta_bd + <p_a p_b> <p_c p_d> B_abcd),
    F'_acbd = C^2 (<s_a p_c s_b p_d> Theta_cd + [s_a p_c]_e [s_b p_d]_f F_ecfd),
    P'_abcd = C^2 (<q_a s_d p_b p_c> Theta_ab Theta_ac + <q_a s_d> <p_b p_c> B_aabc + <p_b p_c> [p_a s_d]_e P_abce),
    Q'_abcd = C (<u_ab p_c s_d> Theta_ac + [u_ab]_e [p_c s_d]_f F_eafc + C <p_a p_b> [p_c s_d]_f Q_abcf),
    R'_abcd = C (<v_ab p_c p_d> Theta_ac Theta_ad + <v_ab> <p_c p_d> B_aacd + <p_c p_d> [u_ab]_e P_acde + C <p_a p_b> <p_c p_d> R_abcd),
    S'_abcd = C^2 Theta_ab (<q_a q_b p_c p_d> Theta_ac Theta_bd + <q_a q_b> <p_c p_d> B_abcd) + C lambda_W (<p_a p_b p_c p_d> Theta_ac Theta_bd + <p_a p_b> <p_c p_d> B_abcd) + C^2 <p_a p_b> <p_c p_d> S_abcd,
    T'_acdb = <u_ac u_bd> Theta_ab + [u_ac]_e [u_bd]_f F_eafb + C (<p_b p_d> [u_ac]_e Q_bdae + <p_a p_c> [u_bd]_f Q_acbf) + C^2 <p_a p_c> <p_b p_d> T_acdb,
    U'_adbc = C^2 (<q_a q_b p_c p_d> Theta_ab Theta_ac Theta_bd + <p_a p_d> <p_b p_c> U_adbc).

The first layer is Gaussian and its H is fixed: all tensors are 0 there.

Source: Roberts, Yaida & Hanin 2022 (arXiv v2), eqs. (4.8) (the first K), (4.90) (V') and (4.115) (G1'), chapters 8 and 11 and the epilogue (definitions); derived above.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float64

from gnomon.core.reading import Array
from gnomon.theory.pairs import Table
from gnomon.theory.sources import Sources

Through = Literal["kernel", "ntk", "dntk", "ddntk"]
ORDER: tuple[Through, ...] = ("kernel", "ntk", "dntk", "ddntk")
NAMES: dict[Through, tuple[str, ...]] = {"kernel": ("G1", "V"), "ntk": ("H1", "A", "B", "D", "F"), "dntk": ("P", "Q"), "ddntk": ("R", "S", "T", "U")}
"""What each stage adds to the one before."""


def names(through: Through) -> tuple[str, ...]:
    """The tensors up to a stage."""
    return tuple(name for stage in ORDER[: ORDER.index(through) + 1] for name in NAMES[stage])


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one layer is made with: C_W and C_b, lambda_W and lambda_b; `share` is n over the units that it reads, by which what it adds is multiplied."""

    weight: float
    bias: float
    weight_rate: float
    bias_rate: float
    share: float = 1.0


def zero(inputs: int, through: Through) -> dict[str, Float64[Array, "..."]]:
    """The tensors of the first layer."""
    return {name: np.zeros((inputs,) * (2 if name in ("G1", "H1") else 4)) for name in names(through)}


def limits(two: Table, theta: Float64[Array, "n n"], layer: Layer) -> tuple[Float64[Array, "n n"], Float64[Array, "n n"]]:
    """K and Theta of the next layer."""
    carried = layer.weight * theta * two[1, 1]
    return layer.bias + layer.weight * two[0, 0], layer.bias_rate + layer.weight_rate * two[0, 0] + carried


def step(before: dict[str, Array], two: Table, four: Sources, theta: Float64[Array, "n n"], layer: Layer, through: Through) -> dict[str, Array]:
    """The tensors of the next layer, by the recursions of this module.   Shapes: those of `before`."""
    made = _kernel(before, two, four, layer)
    if ORDER.index(through) >= 1:
        made |= _ntk(before, two, four, theta, layer)
    if ORDER.index(through) >= 2:
        made |= _dntk(before, two, four, theta, layer)
    if ORDER.index(through) >= 3:
        made |= _ddntk(before, two, four, theta, layer)
    return made


def _bent(m20: Array, m11: Array, x: Array) -> Array:
    """[f]_ef X_ef for f = f(z_a) f(z_b), from its moments <f'' f> and <f' f'>.   Shapes: (n, n) twice, X (n, n, ...) symmetric -> (n, n, ...)."""
    own = np.moveaxis(np.diagonal(x, axis1=0, axis2=1), -1, 0)
    wide = (..., *[None] * (x.ndim - 2))
    return (m20[wide] * own[:, None] + m20.T[wide] * own[None, :]) / 2 + m11[wide] * x


def _curled(m40: Array, m31: Array, m22: Array, v: Array) -> Array:
    """<dddd f> V / 8 for f = f(z_a) f(z_b).   Shapes: (n, n) thrice, (n, n, n, n) -> (n, n)."""
    all_four, three = np.einsum("aaaa->a", v), np.einsum("aaab->ab", v)
    pairs, crossed = np.einsum("aabb->ab", v), np.einsum("abab->ab", v)
    return (m40 * all_four[:, None] + m40.T * all_four[None, :] + 4 * (m31 * three + m31.T * three.T) + m22 * (2 * pairs + 4 * crossed)) / 8


def _leg(first: Array, second: Array, x: Array) -> Array:
    """[f]_e X_ec for f = f(z_a) g(z_c): first_ac X_ac + second_ac X_cc over the first two indices of X.   Shapes: (n, n) twice, (n, n, ...) -> (n, n, ...)."""
    own = np.moveaxis(np.diagonal(x, axis1=0, axis2=1), -1, 0)
    wide = (..., *[None] * (x.ndim - 2))
    return first[wide] * x + second[wide] * own[None, :]


def _legs(first: tuple[Array, Array], second: tuple[Array, Array], x: Array) -> Array:
    """Legs on both pairs of indices of X.   Shapes: (n, n, n, n) -> the same."""
    return _leg(*first, _leg(*second, x.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1))


def _along(first: Array, second: Array, x: Array) -> Array:
    """[f]_e X_e for f = f(z_a) g(z_b) and X whose last index is e: first_ab X_..a + second_ab X_..b.   Shapes: (n, n) twice, (n, n, n, n) -> (a, b, n, n, n)."""
    moved = np.moveaxis(x, -1, 0)
    return first[:, :, None, None, None] * moved[:, None] + second[:, :, None, None, None] * moved[None, :]


def _kernel(t: dict[str, Array], two: Table, four: Sources, layer: Layer) -> dict[str, Array]:
    c = layer.weight
    v = _bent(two[2, 0], two[1, 1], t["V"])
    v = _bent(two[2, 0], two[1, 1], v.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)
    return {
        "G1": c * (_bent(two[2, 0], two[1, 1], t["G1"]) + _curled(two[4, 0], two[3, 1], two[2, 2], t["V"])),
        "V": c**2 * (four.ssss + v),
    }


def _omega(two: Table, theta: Array, layer: Layer) -> tuple[Array, Array]:
    """The moments of Omega with two derivatives: <f'' f> and <f' f'>."""
    c, rate = layer.weight, layer.weight_rate
    return rate * two[2, 0] + c * theta * two[3, 1], rate * two[1, 1] + c * theta * two[2, 2]


def _ntk(t: dict[str, Array], two: Table, four: Sources, theta: Array, layer: Layer) -> dict[str, Array]:
    c, rate = layer.weight, layer.weight_rate
    omega, chi, scaled = _omega(two, theta, layer), c * two[1, 1], c * theta
    flipped = t["V"].transpose(2, 3, 0, 1)
    v_omega = _bent(*omega, flipped).transpose(2, 3, 0, 1)  # V_ef [Omega_cd]
    d_chi = t["D"] * chi
    connected = rate * four.ssss + four.sspp * scaled
    both = rate**2 * four.ssss + rate * (four.sspp * scaled + (four.sspp * scaled).transpose(2, 3, 0, 1)) + np.multiply.outer(scaled, scaled) * four.pppp
    mixed = _bent(*omega, d_chi)
    twice = t["D"] + np.einsum("ecfd->efcd", t["F"]) + np.einsum("fced->efcd", t["F"])
    bent = _bent_own(two[3, 1], two[2, 2], twice)
    curled = rate * _curled(two[4, 0], two[3, 1], two[2, 2], t["V"]) + scaled * _curled(two[5, 1], two[4, 2], two[3, 3], t["V"])
    ps = (two[1, 1], two[2, 0].T)
    return {
        "H1": _bent(*omega, t["G1"]) + curled + c * bent + chi * t["H1"],
        "A": both + _bent(*omega, v_omega) + mixed + mixed.transpose(2, 3, 0, 1) + np.multiply.outer(chi, chi) * t["A"],
        "B": c**2 * (four.full_pppp * np.einsum("ac,bd->abcd", theta, theta) + np.multiply.outer(two[1, 1], two[1, 1]) * t["B"]),
        "D": c * (connected + _bent(two[2, 0], two[1, 1], v_omega + d_chi)),
        "F": c**2 * (np.einsum("cadb,cd->acbd", four.psps, theta) + _legs(ps, ps, t["F"])),
    }


def _bent_own(m20: Array, m11: Array, x: Array) -> Array:
    """[f_ab]_ef X_efab.   Shapes: (n, n) twice, (n, n, n, n) -> (n, n)."""
    first, second, both = np.einsum("aaab->ab", x), np.einsum("bbab->ab", x), np.einsum("abab->ab", x)
    return (m20 * first + m20.T * second) / 2 + m11 * both


def _u(two: Table, theta: Array, layer: Layer) -> tuple[Array, Array]:
    """<d_a u_ab> and <d_b u_ab>; the first is <v_ab> too."""
    c, rate = layer.weight, layer.weight_rate
    return c * theta * two[3, 1] + rate * two[2, 0], c * theta * two[2, 2] + rate * two[1, 1]


def _dntk(t: dict[str, Array], two: Table, four: Sources, theta: Array, layer: Layer) -> dict[str, Array]:
    c, rate = layer.weight, layer.weight_rate
    pp, qs = two[1, 1], two[2, 0]
    u_first, u_second = _u(two, theta, layer)
    same = np.einsum("aabc->abc", t["B"])
    qspp = four.qspp
    p = np.einsum("adbc,ab,ac->abcd", qspp, theta, theta) + np.einsum("ad,bc,abc->abcd", qs, pp, same) + np.einsum("bc,adabc->abcd", pp, _along(qs, pp, t["P"]))
    # <u_ab p_c s_d> = C Theta_ab <q_a s_d p_b p_c> + lambda_W <p_a p_c s_b s_d>
    source = c * np.einsum("ab,adbc->abcd", theta, qspp) + rate * np.einsum("bdac->abcd", four.full_sspp)
    carried = _legs((u_second.T, u_first.T), (pp, qs.T), t["F"])  # indices (b, a, d, c)
    q = np.einsum("abcd,ac->abcd", source, theta) + carried.transpose(1, 0, 3, 2) + c * np.einsum("ab,cdabc->abcd", pp, _along(qs, pp, t["Q"]))
    return {"P": c**2 * p, "Q": c * q}


def _ddntk(t: dict[str, Array], two: Table, four: Sources, theta: Array, layer: Layer) -> dict[str, Array]:
    c, rate = layer.weight, layer.weight_rate
    pp, qq, full = two[1, 1], two[2, 2], four.full_pppp
    u_first, u_second = _u(two, theta, layer)
    same = np.einsum("aabc->abc", t["B"])
    v = c * np.einsum("ab,abcd->abcd", theta, four.rppp) + rate * four.qspp
    r = np.einsum("abcd,ac,ad->abcd", v, theta, theta) + np.einsum("ab,cd,acd->abcd", u_first, pp, same)
    r += np.einsum("cd,abacd->abcd", pp, _along(u_first, u_second, t["P"])) + c * np.multiply.outer(pp, pp) * t["R"]
    joined = np.einsum("ac,bd->abcd", theta, theta)
    s = c**2 * theta[:, :, None, None] * (four.qqpp * joined + np.multiply.outer(qq, pp) * t["B"])
    s += c * rate * (full * joined + np.multiply.outer(pp, pp) * t["B"]) + c**2 * np.multiply.outer(pp, pp) * t["S"]
    cross = np.einsum("ac,adbc->abcd", theta, four.qspp)  # Theta_ac <q_a p_c p_b s_d>
    uu = c**2 * np.einsum("ac,bd,abcd->abcd", theta, theta, four.qqpp) + c * rate * (cross + cross.transpose(1, 0, 3, 2)) + rate**2 * np.einsum("cdab->abcd", four.full_sspp)
    legs = (u_second.T, u_first.T)
    carried = _legs(legs, legs, t["F"])  # indices (c, a, d, b)
    turned = np.einsum("bd,acbda->abcd", pp, _along(u_first, u_second, t["Q"]))
    made = uu * theta[:, :, None, None] + np.einsum("cadb->abcd", carried) + c * (turned + turned.transpose(1, 0, 3, 2)) + c**2 * np.einsum("ac,bd,acdb->abcd", pp, pp, t["T"])
    u = four.qqpp * theta[:, :, None, None] * joined + np.einsum("ad,bc,adbc->abcd", pp, pp, t["U"])
    return {"R": c * r, "S": s, "T": np.einsum("abcd->acdb", made), "U": c**2 * np.einsum("abcd->adbc", u)}
