"""What the limit of infinite width predicts of a subject: the tangent kernel of its own architecture on the examples that were measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gnomon.core.architecture import Architecture
from gnomon.core.errors import GnomonError, OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.layers import PARAMETRISED
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.kernels import CORNER, _seen
from gnomon.run.plan import Entry, Plan
from gnomon.theory import kernels as theory

NAME = "infinite_width_ntk"
MEASURED = "ntk_spectrum"
MOST = 2_000_000_000
"""A kernel that works on more covariances, of pairs of examples, positions and layers, is not made: about a minute in closed forms.  Counted, not timed: a report is the same on a busy machine."""
SHOWN = 10

Place = Callable[[Subject, Entry, int, dict[tuple[str, int], Subject]], Subject]


def with_predictions(facts: Facts, subject: Subject, plan: Plan, place: Place) -> Facts:
    """The facts with the infinite-width kernel's eigenvalues on the examples of the measured spectrum, or with the reason why there are none.

    Cost: the kernel of at most 512 examples, or none: at most MOST covariances.
    """
    entry = next((entry for entry in plan.entries if entry.instrument == MEASURED and entry.at == "initial"), None)
    if entry is None:
        return facts
    try:
        reading = spectrum(_seen(place(subject, entry, plan.seed, {})), facts.architecture)
    except GnomonError as error:
        return dataclasses.replace(facts, uncovered={**facts.uncovered, NAME: str(error)})
    return dataclasses.replace(facts, predictions={**facts.predictions, NAME: reading})


def spectrum(subject: Subject, architecture: Architecture) -> Reading:
    """Largest eigenvalues of the infinite-width tangent kernel of the network on a subject's training examples, divided by their number.

    Shapes: value (eigenvalues,).   Units: as `ntk_spectrum`.   Error: truncation: two standard deviations of one random network, see `fluctuation`.
    `details`: `corner`, the kernel of the first examples, and `fluctuation`, relative.   Assumes: weights as declared.   Cost: the kernel, n^3.
    Raises: OutOfScope, or another GnomonError, naming what is not covered.   Source: Jacot et al. 2018.
    """
    inputs = _inputs(subject)
    kernel = theory.infinite_width(subject.module, weight_variance=_declared(architecture))
    if (covariances := kernel.tiles(inputs, kind="ntk").cost().covariances) > MOST:
        fewer = int(len(inputs) * math.sqrt(MOST / covariances))
        raise OutOfScope(
            f"the infinite-width kernel of the {len(inputs)} examples takes too long to make here: it works on {covariances:.2g} covariances, more than {MOST:.2g}; keep about {fewer} examples "
            "(--examples, or Subject.freeze(examples=...)), or call gnomon.theory.kernels.infinite_width yourself"
        )
    matrix = kernel(inputs, kind="ntk")
    assert isinstance(matrix, Tensor)
    if matrix.ndim != 2:
        raise OutOfScope("the network's output has positions: its infinite-width kernel has an entry for each of them, and the measured one is averaged over them")
    values = torch.linalg.eigvalsh(matrix.double() / len(inputs)).flip(0)[: min(SHOWN, len(inputs) - 2)].cpu().numpy()
    relative = fluctuation(architecture)
    axes = (Axis("eigenvalue", tuple(float(i + 1) for i in range(len(values)))),)
    return Reading.predicted(
        NAME, np.maximum(values, 0.0), unit="output² / parameter²", error=2 * relative * np.maximum(values, 0.0), error_kind="truncation", axes=axes, source=Source("jacot2018"),
        assumes=("infinite width", "weights drawn as declared"), details={"corner": matrix[:CORNER, :CORNER].tolist(), "fluctuation": relative},
    )  # fmt: skip


def fluctuation(architecture: Architecture) -> float:
    """The relative standard deviation of an entry of the tangent kernel of one random network about its mean: of order sqrt(depth / width).

    sqrt(sum_l 5/n_l) over the hidden layers: what is added by the layer above n ReLU units goes as (1/n) sum s^2, of relative variance (<s^4>/<s^2>^2 - 1)/n = 5/n.  Convolutions count
    their channels.

    Units: none.   Error: exact to leading order for the last layer's part of a ReLU network, the order for others.   Cost: none.   Source: derived here.
    """
    widths = [layer.units for layer in architecture.layers if layer.kind in PARAMETRISED][:-1]
    return math.sqrt(sum(5 / n for n in widths if n))


def _declared(architecture: Architecture) -> dict[str, float] | None:
    """C_W by layer, where the user has declared it (--init): elsewhere infinite_width reads the layers' defaults itself."""
    found = {layer.name: layer.fan_in * layer.weight_variance for layer in architecture.layers if layer.kind in PARAMETRISED and layer.weight_variance is not None}
    return found or None


def _inputs(subject: Subject) -> Tensor:
    """The training inputs as one tensor.  Raises: OutOfScope where theory's network is not the subject's."""
    parameters = [name for name, value in subject.module.named_parameters()]
    if set(parameters) - set(subject.trainable):
        raise OutOfScope(
            f"`{min(set(parameters) - set(subject.trainable))}` is not trained: the tangent kernel over the other parameters is another than the one that theory gives"
        )
    if len(list(subject.module.named_parameters(remove_duplicate=False))) > len(parameters):
        raise OutOfScope("the network ties parameters, and theory takes the weights of every layer as independent")
    parts = [block.inputs for block in subject.train.blocks]
    if len(parts) != 1 or not isinstance(parts[0], Tensor):
        raise OutOfScope("the network reads more than one tensor, or examples of several shapes: theory has one kernel function for one tensor")
    inputs = subject.to_device(parts[0])
    return inputs if not inputs.is_floating_point() else inputs.to(torch.float64)
