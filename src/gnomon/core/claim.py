"""A Claim: a result of the literature as an experiment, its prediction and tolerance fixed before the measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.judge import Outcome, Relation
from gnomon.core.source import Source

SCALES = ("smoke", "standard", "paper")


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """A tolerance as a function of the settings (a number, or an array shaped like the prediction), with the reason for its size."""

    of: Callable[[Any], Any]
    because: str


@dataclasses.dataclass(frozen=True, init=False)
class Sabotage:
    """A change of settings that only `measure` sees and that must make the claim fail."""

    because: str
    changes: Mapping[str, Any]

    def __init__(self, because: str, **changes: Any) -> None:
        object.__setattr__(self, "because", because)
        object.__setattr__(self, "changes", changes)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim; its id and topic are its file's path, its statement the file's docstring.

    `prepare(s, *, rng)` builds what both sides share, once a process, from its seed; `predict(s)` or `predict(s, shared)` is a Reading, stored before
    `measure(s, *, rng)` or `measure(s, shared, *, rng)`, one replicate, starts: a number, an array or a Reading.  `s.replicates` is how many there are, one
    where the settings do not say.  Where predict gives `samples`, one a replicate, a measure that takes `index` too knows which one it stands beside.
    `expected` is strict, and with another verdict than `holds` comes `because`; `smoke="inconclusive"` says that the claim cannot be decided at that scale.
    `scale` is what a prediction of 0 is compared with, `trivial` the value at which a bound says nothing.
    Raises: InvalidInput for unknown scales, a missing smoke setting or a missing reason.
    """

    version: int
    entry: str
    source: Source
    relation: Relation
    scales: Mapping[str, Any]
    predict: Callable[..., Any]
    measure: Callable[..., Any]
    sabotage: Sabotage
    expected: Outcome = "holds"
    because: str = ""
    tolerance: Tolerance | None = None
    prepare: Callable[..., Any] | None = None
    smoke: Outcome | None = None
    scale: float | None = None
    trivial: float | None = None

    def __post_init__(self) -> None:
        for name in self.scales:
            if name not in SCALES:
                raise unknown("scale", name, SCALES)
        if "smoke" not in self.scales:
            raise InvalidInput("A claim needs settings for the scale `smoke`: every claim is run at it.")
        if self.expected != "holds" and not self.because:
            raise InvalidInput(f"A claim that expects {self.expected!r} must say why (`because`).")
