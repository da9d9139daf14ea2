"""Nodes and weights for expectations of smooth and of kinked functions of a few correlated Gaussian variables, shared by all moments of them."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from jaxtyping import Float64
from scipy import special, stats
from torch import Generator

from gnomon.core import rng as chance

Array = np.ndarray
POLE = math.pi / 2
"""How far from the real axis a function of the kind that networks have is taken to be analytic: tanh has its poles there."""


def grid(kernel: Float64[Array, "n n"], digits: float, most: int) -> tuple[Float64[Array, "nodes n"], Float64[Array, "nodes"]] | None:
    """z and weights for z ~ N(0, K): the trapezoid rule along the eigenvectors of K, within a ball, spaced by how far each moves an input; None where it takes more than `most` nodes.

    The rule's error falls as exp(-2 pi t / h), t the strip about the real axis in which the integrand is analytic, and as exp(-2 pi^2 / h^2) for the Gaussian itself.

    Shapes: kernel (n, n), positive semi-definite -> (nodes, n), (nodes,).   Error: about 10^-digits where the functions are analytic within POLE.
    """
    values, vectors = np.linalg.eigh(kernel)
    scales = np.sqrt(np.maximum(values, 0.0))
    need = digits * math.log(10) + 1
    reach = math.sqrt(2 * need) + 1.0
    moved = scales * np.abs(vectors).max(0)
    steps = np.minimum(math.pi * math.sqrt(2 / need), 2 * math.pi * POLE / need / np.maximum(moved, 1e-300))
    live = moved > 10 ** (-digits / 2) * 1e-3 * math.sqrt(float(np.diag(kernel).max()))
    if special.gamma(live.sum() / 2 + 1) ** -1 * math.pi ** (live.sum() / 2) * reach ** live.sum() / steps[live].prod() > most:
        return None
    u, w = np.zeros((1, 0)), np.ones(1)
    for step in sorted(steps[live]):
        count = math.ceil(reach / step)
        x = np.arange(-count, count + 1) * step
        weight = step * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        u = np.concatenate([np.repeat(u, len(x), 0), np.tile(x, len(u))[:, None]], 1)
        w = np.outer(w, weight).reshape(-1)
        inside = (u**2).sum(1) <= reach**2
        u, w = u[inside], w[inside]
    order = np.argsort(steps[live], kind="stable")
    return u @ (vectors * scales)[:, live][:, order].T, w / w.sum()


@functools.cache
def _panels(level: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 12] in eight panels."""
    x, w = np.polynomial.legendre.leggauss(level)
    return (1.5 * (np.arange(8)[:, None] + (x + 1) / 2)).reshape(-1), np.tile(0.75 * w, 8)


def polar(kernel: Float64[Array, "n n"], level: int) -> tuple[Float64[Array, "nodes n"], Float64[Array, "nodes"]]:
    """z and weights for one or two variables, cut where a variable changes sign, so that kinks at 0 cost nothing.

    Shapes: kernel (1, 1) or (2, 2), positive definite -> (nodes, n), (nodes,).   Error: rounding for functions that are smooth but at 0, from level 16 on.
    """
    r, radial = _panels(level)
    if len(kernel) == 1:
        weight = radial * np.exp(-(r**2) / 2) / math.sqrt(2 * math.pi)
        return np.concatenate([r, -r])[:, None] * math.sqrt(kernel[0, 0]), np.concatenate([weight, weight])
    radial = radial * r * np.exp(-(r**2) / 2) / (2 * math.pi)
    root = np.linalg.cholesky(kernel)
    signs = np.arctan2(root[:, 1], root[:, 0])
    cuts = np.sort(np.remainder(np.concatenate([signs + math.pi / 2, signs - math.pi / 2]), 2 * math.pi))
    ends = np.concatenate([cuts[1:], cuts[:1] + 2 * math.pi])
    low, high = np.concatenate([cuts, (cuts + ends) / 2]), np.concatenate([(cuts + ends) / 2, ends])
    x, w = np.polynomial.legendre.leggauss(level)
    angle = ((low + high)[:, None] / 2 + (high - low)[:, None] / 2 * x).reshape(-1)
    around = ((high - low)[:, None] / 2 * w).reshape(-1)
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    return (r[:, None, None] * direction).reshape(-1, 2) @ root.T, np.outer(radial, around).reshape(-1)


def sobol(dimensions: int, count: int, *, rng: Generator) -> Float64[Array, "count dimensions"]:
    """`count` standard normal points, a power of two: a scrambled Sobol sequence with the mirror image of every point, their covariance made the identity.

    Shapes: (count, dimensions).   Error: measured by scrambling anew.
    """
    seed = int(chance.integers(2**31 - 1, 1, rng=rng)[0])
    drawn = stats.qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed)).random(count // 2)
    half = special.ndtri(np.clip(drawn, 1e-16, 1 - 1e-16))
    values, vectors = np.linalg.eigh(half.T @ half / len(half))
    half = half @ (vectors / np.sqrt(values)) @ vectors.T
    return np.concatenate([half, -half])


def derivatives(function: object, z: Float64[Array, "*shape"], order: int) -> list[Float64[Array, "*shape"]]:
    """A function of numbers and its first derivatives, as autograd takes them.   Shapes: any -> order + 1 of it."""
    at = torch.from_numpy(np.ascontiguousarray(z, dtype=np.float64)).requires_grad_(order > 0)
    with torch.enable_grad():
        found = [function(at).double()]  # type: ignore[operator]
        for number in range(order):
            last = found[-1]
            if not last.requires_grad:
                found.append(torch.zeros_like(at))
                continue
            (slope,) = torch.autograd.grad(last.sum(), at, create_graph=number + 1 < order, materialize_grads=True)
            found.append(slope)
    return [part.detach().numpy() for part in found]
