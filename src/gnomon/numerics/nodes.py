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
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array
from gnomon.numerics.quadrature import Function

POLE = math.pi / 2
"""How far from the real axis a function of the kind that networks have is taken to be analytic: tanh has its poles there."""


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
    half = half @ (vectors / np.sqrt(values)) @ vectors.T  # exact for polynomials of degree 3
    return np.concatenate([half, -half])


def derivatives(function: Function, z: Float64[Array, "*shape"], order: int) -> list[Float64[Array, "*shape"]]:
    """A function of numbers and its first derivatives, as autograd takes them.   Shapes: any -> order + 1 of it.   Raises: InvalidInput where one is not finite."""
    at = torch.from_numpy(np.ascontiguousarray(z, dtype=np.float64)).requires_grad_(order > 0)
    with torch.enable_grad():
        try:
            found = [function(at).double()]
        except (RuntimeError, TypeError, AttributeError) as error:
            raise InvalidInput(f"The function must be one of a tensor that autograd can follow, such as torch.tanh: {error}") from error
        for number in range(order):
            last = found[-1]
            if not last.requires_grad:
                found.append(torch.zeros_like(at))
                continue
            (slope,) = torch.autograd.grad(last.sum(), at, create_graph=number + 1 < order, materialize_grads=True)
            found.append(slope)
    for number, part in enumerate(found):
        if not bool(torch.isfinite(part).all()):
            worst = float(at.detach()[~torch.isfinite(part)].reshape(-1)[0])
            raise InvalidInput(
                f"The function's derivative of order {number}, as autograd takes it, is not finite at {worst:.4g}; write the function so that it is, or take a smaller kernel."
            )
    return [part.detach().numpy() for part in found]
