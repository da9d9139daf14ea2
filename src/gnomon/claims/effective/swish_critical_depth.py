r"""At its critical point a SWISH network of 50 layers keeps its signal and its gradients: neither their size nor that of small changes moves by a factor a layer.

$\exp \left( \frac{1}{L - 1} E \ln \frac{|z^{(L)}|^2}{|z^{(1)}|^2} \right) = 1$, and so for a small change, multiplied by $\chi_\perp = 1$ a layer as a gradient is.  At width $n$ a layer
multiplies both by a random factor of mean 1 and relative variance about $\kappa/n$, $\kappa = C_W^2 (\langle s^4 \rangle - \langle s^2 \rangle^2)/K^{*2}$ (4.92 here), so that the mean
logarithm lies about $\kappa/(2 n)$ below 0; that lowers the kernel, and with it $\ln \chi_\perp$, by $\rho = d \ln \chi_\perp / d \ln K$ (0.025) of it: $\kappa L \rho/(4 n)$ more.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator
from torch.nn.functional import silu

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.theory.activations import moments
from gnomon.theory.effective import critical_point


@dataclass(frozen=True)
class Settings:
    """Networks of `depth` layers of `width` units, `members` a block; C_W is (1 - shift / width) of the critical one."""

    depth: int
    width: int
    members: int
    replicates: int
    shift: float = 0.0


def predict(s: Settings) -> Reading:
    """Both factors in the limit of many units: chi_parallel would not move the kernel, and chi_perp at it is 1."""
    point = critical_point(silu)
    found, axes = moments(silu, np.array([point.kernel])), (Axis("of", ("signal", "change")),)
    rates = [(point.bias_variance + point.weight_variance * found.square[0]) / point.kernel, point.weight_variance * found.slope[0]]
    return Reading.predicted("growth_per_layer", rates, unit="", axes=axes, source=Source("roberts2022", "section 5.3.4"))


def measure(s: Settings, *, rng: Generator) -> Array:
    """The geometric means over one block of the two factors a layer, at the book's C_W and C_b; the change is a tangent, carried through exactly."""
    z, change = (chance.normal(s.members, s.width, rng=rng) * 14.32017362**0.5 for _ in range(2))
    start = torch.stack([z, change]).square().sum(-1).log()
    for _ in range(s.depth - 1):
        weights = chance.normal(s.members, s.width, s.width, rng=rng) * (1.98800468 * (1 - s.shift / s.width) / s.width) ** 0.5
        z, change = (weights @ torch.stack(torch.func.jvp(silu, (z,), (change,)), -1)).unbind(-1)
        z = z + chance.normal(s.members, s.width, rng=rng) * 0.55514317**0.5
    return ((torch.stack([z, change]).square().sum(-1).log() - start) / (s.depth - 1)).mean(1).exp().numpy()


CLAIM = Claim(
    version=1, entry="B1", source=Source("roberts2022", "section 5.3.4"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 4.92 / s.width * (1 + 0.0248 * s.depth / 2), because="twice the next order in 1/n; the default initialisation has a factor of 1/12"),
    scales={"smoke": Settings(50, 80, members=8, replicates=10), "standard": Settings(50, 160, members=20, replicates=20), "paper": Settings(50, 512, members=50, replicates=50)},
    sabotage=Sabotage("weights too small in variance, by 15 / width of it", shift=15.0),
)  # fmt: skip
