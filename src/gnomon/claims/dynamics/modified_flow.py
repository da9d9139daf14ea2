r"""Gradient descent is nearer to the gradient flow of another loss: after a fixed time it is $O(\eta)$ from that of $L$, and $O(\eta^2)$ from that of $\tilde L$.

$\tilde L = L + \frac{\eta}{4} |\nabla L|^2$

Measured are the slopes of both distances, on a tanh network, against the learning rate.  Steps beyond $2 / \lambda_{\max}$ follow neither flow: the series in
$\eta \lambda_{\max}$ says nothing there.
"""

from dataclasses import dataclass

import numpy as np
from torch import Generator

from gnomon.core import rng as chance
from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.source import Source
from gnomon.data.load import pooled
from gnomon.models.descent import half_squared_error, tanh_network
from gnomon.models.flat import descend, flat_loss
from gnomon.numerics.flow import gradient_flow


@dataclass(frozen=True)
class Settings:
    """A tanh network with these hidden layers on so many images, for `time` = lr x steps, with these numbers of steps; the penalty's factor over lr."""

    data: str
    examples: int
    side: int
    hidden: tuple[int, ...]
    time: float
    steps: tuple[int, ...]
    factor: float = 0.25


def predict(s: Settings) -> Reading:
    """The orders of both."""
    assumes = ("lr × sharpness << 1", "a loss with three derivatives")
    return Reading.predicted("slope", [1.0, 2.0], unit="", axes=(Axis("flow of", ("L", "L + lr/4 |grad L|²")),), source=Source("barrett2021", "section 3"), assumes=assumes)


def measure(s: Settings, *, rng: Generator) -> Array:
    """Slopes over the learning rates, from one initialisation."""
    inputs, targets = (part.double() for part in pooled(s.data, examples=s.examples, side=s.side))
    with chance.scoped(chance.child(rng, "network")):
        network = tanh_network(inputs.shape[1], *s.hidden, targets.shape[1]).double()
    loss, start = flat_loss(network, half_squared_error, inputs, targets)
    plain, lrs = gradient_flow(loss, start, [s.time])[0], [s.time / steps for steps in s.steps]
    distances = []
    for lr, steps in zip(lrs, s.steps, strict=True):
        reached = descend(loss, start, lr=lr, steps=steps).numpy()
        distances.append([float(np.linalg.norm(reached - flow)) for flow in (plain, gradient_flow(loss, start, [s.time], penalty=s.factor * lr)[0])])
    return np.polyfit(np.log(lrs), np.log(distances), 1)[0]


CLAIM = Claim(
    version=1, entry="D4", source=Source("barrett2021", "section 3"), relation="equal", predict=predict, measure=measure, tolerance=Tolerance(lambda s: 0.15, because="the next order changes a slope by about lr x sharpness, a tenth at the steps taken; a wrong factor changes it by 1"),
    scales={"smoke": Settings("digits", 20, 4, (6,), 2.0, (20, 40, 80)), "standard": Settings("digits", 100, 8, (20, 20), 5.0, (50, 100, 200, 400)), "paper": Settings("mnist", 1_000, 14, (64, 64), 5.0, (50, 100, 200, 400, 800))}, sabotage=Sabotage("a penalty of half that size: the flow is no nearer than that of the loss, up to a factor", factor=0.125),
)  # fmt: skip
