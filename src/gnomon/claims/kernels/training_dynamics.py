r"""The outputs of wide networks under gradient descent on squared error have the mean and the variance of the closed form, at every time.

$E f_t = \Theta_* A y, \quad Var f_t = K_{**} + \Theta_* A K A \Theta_*^T - 2 \Theta_* A K_*^T, \quad A = \Theta^{-1} (1 - e^{-\Theta t})$

over random initialisations, at new points (*); $K$ is the NNGP kernel, $\Theta$ the tangent kernel.  Of ReLU networks, whose kernels scatter more, the variance is off by all of the tolerance.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Reading
from gnomon.core.source import Source
from gnomon.models.wide import LAYERS, descended, tanh_networks
from gnomon.theory.kernels import gradient_flow, infinite_width

TRAIN, NEW = (torch.nn.functional.normalize(chance.normal(8, 3, rng=chance.generator(4, "dynamics"))) * 3**0.5).split((6, 2))
C_W, TIMES, LR, Y = 2.0, (0.06, 0.12, 0.18), 0.004, 2 * torch.sign(TRAIN[:, :1])  # the kernel's eigenvalues are below 11: a step decays by 4 % at most


@dataclass(frozen=True)
class Settings:
    """Tanh networks of two hidden layers of `width` units, `members` a block; the variance of their weights is C_W (1 - shift / width)."""

    width: int
    members: int
    replicates: int
    shift: float = 0.0


def flow(time: float) -> Tensor:
    """Mean and variance at the new points, for the network as a module."""
    layers = [nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False)]
    made = gradient_flow(infinite_width(nn.Sequential(*layers), parametrization="ntk", weight_variance=C_W), TRAIN, Y, NEW, time=time)
    return torch.stack([made.mean[:, 0], made.covariance.diagonal()])


def predict(s: Settings) -> Reading:
    """Both, time by time."""
    return Reading.predicted("moments_in_training", torch.stack([flow(time) for time in TIMES]), unit="", source=Source("lee2019", "section 2"), assumes=("infinite width",))


def measure(s: Settings, *, rng: Generator) -> Array:
    """Mean and variance over one block of networks."""
    (networks,), moments = tanh_networks(3, s.width, members=s.members, weight_variance=C_W * (1 - s.shift / s.width), rng=rng), []
    for _ in TIMES:
        networks = descended(networks, TRAIN, Y, lr=LR, steps=round(TIMES[0] / LR))
        moments.append(torch.stack(torch.var_mean(networks.outputs(NEW).double()[..., 0], 0)[::-1]))
    return torch.stack(moments).numpy()


CLAIM = Claim(
    version=1, entry="B3", source=Source("lee2019", "section 2"), relation="equal", predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 2 * LAYERS / s.width * flow(0.0)[1].numpy() ** [[0.5], [1.0]], because="next order: twice depth / width of deviation and variance at the start"),
    scales={"smoke": Settings(48, members=200, replicates=12), "standard": Settings(96, members=200, replicates=40), "paper": Settings(512, members=200, replicates=400)},
    sabotage=Sabotage("weights too small in variance, by 12 / width of it", shift=12.0),
)  # fmt: skip
