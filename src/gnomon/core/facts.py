"""Facts: all that a chapter, and through it theory, may know of a subject beside readings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gnomon.core.architecture import Architecture
from gnomon.core.reading import Reading
from gnomon.core.training import Training


@dataclasses.dataclass(frozen=True)
class Facts:
    """Plain numbers and names about a subject: no tensor, no module.

    `predictions` are what theory says of the data at hand, made before a chapter is written; `uncovered` says why it says nothing.
    """

    name: str
    parameters: int
    trainable: int
    classes: int | None
    loss: str
    reduction: str
    train_examples: int
    train_population: int
    test_examples: int
    training: Training
    architecture: Architecture
    bent: str = "it is not known"
    """Why the output is not piecewise linear along every single parameter; empty where it is."""
    predictions: Mapping[str, Reading] = dataclasses.field(default_factory=dict)
    uncovered: Mapping[str, str] = dataclasses.field(default_factory=dict)
