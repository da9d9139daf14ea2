"""Nodes and weights for expectations of smooth and of kinked functions of a few correlated Gaussian variables, shared by all moments of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from scipy import special, stats
from torch import Generator
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Array
from gnomon.numerics.quadrature import Function

POLE = math.pi / 2
"""How far from the real axis a function of the kind that networks have is taken to be analytic: tanh has its poles there."""


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


class _Twice(TorchFunctionMode):
    """Functions of which PyTorch has no second derivative, by others of which it has."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def derivatives(function: Function, z: Float64[Array, "*shape"], order: int) -> list[Float64[Array, "*shape"]]:
    """A function of numbers and its first derivatives, as autograd takes them.   Shapes: any -> order + 1 of it.   Raises: InvalidInput where one is not finite."""
    at = torch.from_numpy(np.ascontiguousarray(z, dtype=np.float64)).requires_grad_(order > 0)
    with torch.enable_grad(), _Twice():
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
    return [part.numpy(force=True) for part in found]  # second derivatives of abs are tensors without storage
