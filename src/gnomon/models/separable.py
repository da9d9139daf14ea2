"""Linear predictors on separable data: the gradient flow of an exponential loss for many data sets at once, in the logarithm of time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput

STEP = 0.01
"""Step in log t; the flow's rates in log t are of the order of the data's squared norms over gamma^2."""


def separable(sets: int, examples: int, inputs: int, *, gap: float, rng: Generator) -> tuple[Float[Tensor, "sets n d"], Float[Tensor, "sets n"]]:
    """Normal inputs pushed `gap` away from a random plane through 0 to their own side, which the labels -1 and 1 name.  Shapes: float64."""
    x, plane = chance.normal(sets, examples, inputs, rng=rng), chance.normal(sets, inputs, 1, rng=chance.child(rng, "plane"))
    plane = plane / plane.norm(dim=1, keepdim=True)
    labels = (x @ plane)[..., 0].sign()
    return x + gap * labels[..., None] * plane.mT, labels


def exponential_flow(
    inputs: Float[Tensor, "sets n d"], labels: Float[Tensor, "sets n"], *, times: Sequence[float], rate: float = 1.0, logistic: bool = False
) -> tuple[Float[Tensor, "times sets"], Float[Tensor, "times sets d"]]:
    """log L and w on the gradient flow of L(w) = sum_i exp(-rate y_i w . x_i) (or log(1 + exp) of it) from w = 0.

    dw / d log t = t rate sum_i y_i x_i exp(-rate y_i w . x_i), by Runge-Kutta steps of the fourth order from t = 1e-3 on.

    Shapes: (sets, n, d), (sets, n) -> (times, sets), (times, sets, d).   Units: log L none.   Error: that of the steps, some 1e-8, and of the start.
    Cost: 100 log(t / 1e-3) steps of 8 products with the data.   Raises: InvalidInput for times that do not grow, or steps that are too long for the data.
    """
    ends = [math.log(1e-3), *(math.log(t) for t in times)]
    if any(after <= before for before, after in itertools.pairwise(ends)):
        raise InvalidInput(f"Times must grow and lie above 0.001, not {list(times)}.")
    z = rate * labels[..., None] * inputs
    slope = _slope(z, logistic)
    w = torch.zeros_like(z[:, 0])
    losses, weights = [], []
    for start, end in itertools.pairwise(ends):
        steps = math.ceil((end - start) / STEP)
        h = (end - start) / steps
        for step in range(steps):
            at = start + h * step
            a = slope(w, at)
            b = slope(w + h / 2 * a, at + h / 2)
            c = slope(w + h / 2 * b, at + h / 2)
            w = w + h / 6 * (a + 2 * b + 2 * c + slope(w + h * c, at + h))
        if not bool(w.isfinite().all()):
            raise InvalidInput("The flow overflowed: the inputs are large beside their margin. Divide them by their norm, or take data with a larger margin.")
        outputs = -torch.einsum("snd,sd->sn", z, w)
        losses.append(torch.nn.functional.softplus(outputs).log().logsumexp(1) if logistic else outputs.logsumexp(1))
        weights.append(w)
    return torch.stack(losses), torch.stack(weights)


def _slope(z: Float[Tensor, "sets n d"], logistic: bool) -> Callable[[Tensor, float], Tensor]:
    def slope(w: Tensor, log_time: float) -> Tensor:
        outputs = torch.bmm(z, w[:, :, None])[..., 0]
        pulls = log_time - outputs - (torch.nn.functional.softplus(-outputs) if logistic else 0)
        return torch.bmm(pulls.exp()[:, None], z)[:, 0]

    return slope


def local_slopes(
    inputs: Float[Tensor, "sets n d"], labels: Float[Tensor, "sets n"], *, times: Sequence[float], window: float = 2.0, rate: float = 1.0
) -> Float[Tensor, "sets times 2"]:
    """d log L / d log t and d|w| / d log t on `exponential_flow`, by differences between t / window and t.

    Shapes: (sets, n, d), (sets, n) -> (sets, times, 2).   Units: none; one over those of the inputs.   Cost, Raises: as `exponential_flow`.
    """
    losses, weights = exponential_flow(inputs, labels, times=[t for time in times for t in (time / window, time)], rate=rate)
    both = torch.stack([losses, weights.norm(dim=2)], -1)
    return ((both[1::2] - both[::2]) / math.log(window)).transpose(0, 1)


def normalised_flows(inputs: Float[Tensor, "n d"], labels: Float[Tensor, "n"], *, norm: float, steps: int) -> Float[Tensor, "3 d"]:
    """Directions that three normalised descents on the exponential loss of a predictor of this norm reach: with a multiplier, weight normalisation, and projection.

    v' = -(g - (v . g) v);   v = u / |u|, u' = -dL/du;   v <- (v - h g) / |v - h g|;   g = grad log L(norm v), which is that of L over L: the same critical points

    Shapes: (n, d), (n,) -> (3, d).   Cost: 3 `steps` gradients.   Raises: InvalidInput for a norm or steps that are not positive.
    """
    if norm <= 0 or steps < 1:
        raise InvalidInput(f"norm and steps must be above 0, not {norm:g} and {steps}.")
    z = norm * labels[:, None] * inputs
    h = 1.0 / float(z.square().sum(1).max())
    v = torch.nn.functional.normalize(z.mean(0), dim=0).repeat(3, 1)
    for _ in range(steps):
        direction = v / v.norm(dim=1, keepdim=True)
        g = -(-direction @ z.T).softmax(1) @ z
        tangent = g - (direction * g).sum(1, keepdim=True) * direction
        projected = torch.nn.functional.normalize(direction[2:] - h * g[2:], dim=1)
        v = torch.cat([v[:1] - h * tangent[:1], v[1:2] - h * tangent[1:2] / v[1:2].norm(), projected])
    return v / v.norm(dim=1, keepdim=True)
