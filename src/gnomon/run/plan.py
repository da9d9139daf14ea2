"""The plan: which instruments run, on how many examples and at which setting, so that a budget holds; said before the work."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.registry import Cost, Instrument, Where
from gnomon.core.subject import Subject

FEWEST = 64
"""Fewest examples that a subsample may have."""
ENOUGH = 1024
"""Examples that are bought before an instrument's knob is turned."""
USED = 0.8
"""The part of the budget that is planned; the rest is for reading data, setting up and writing."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One measurement of a plan: `gradients` counts full passes of loss and gradient over all training examples."""

    instrument: str
    at: Where
    examples: int
    knob: str | None
    value: int | None
    gradients: float

    @property
    def key(self) -> str:
        """How the reading is called: the instrument's name, with `@initial` where it is taken at initialisation."""
        return reading_key(self.instrument, self.at)

    def settings(self) -> dict[str, int]:
        """The instrument's knob as a keyword argument."""
        return {self.knob: self.value} if self.knob is not None and self.value is not None else {}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be measured; equal plans on equal subjects give equal results."""

    budget: float
    seed: int
    threads: int
    chunk: int
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return dataclasses.asdict(self) | {"entries": [dataclasses.asdict(entry) for entry in self.entries], "skipped": [list(entry) for entry in self.skipped]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.  Raises: InvalidInput where parts are missing."""
        try:
            entries = tuple(Entry(**entry) for entry in data["entries"])
            return cls(float(data["budget"]), int(data["seed"]), int(data["threads"]), int(data["chunk"]), entries, tuple(tuple(entry) for entry in data["skipped"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"The plan is not complete: {error}. Give a report.json that gnomon wrote.") from error

    @property
    def gradients(self) -> float:
        """What the whole plan costs, in full gradients."""
        return sum(entry.gradients for entry in self.entries)


def reading_key(instrument: str, at: str) -> str:
    """The name of a reading: that of its instrument, `@initial` where it is taken at initialisation."""
    return instrument if at == "end" else f"{instrument}@{at}"


def seconds_per_example(subject: Subject, gradient: Callable[[Subject], Any], *, rng: Any) -> float:
    """Seconds that loss and gradient take per example: the lesser of two timings of one pass over at most two chunks, after one to warm up."""
    few = subject.sample(min(2 * subject.chunk, len(subject.train)), rng=chance.child(rng, "timing"))
    gradient(subject.sample(min(8, len(subject.train)), rng=chance.child(rng, "timing")))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        gradient(few)
        times.append(time.perf_counter() - start)
    return min(times) / len(few.train)


def affordable(budget: float, per_example: float, examples: int) -> float:
    """How many full gradients the budget buys, rounded down to a power of the square root of 2 so that small timing noise does not change the plan."""
    raw = max(USED * budget / (per_example * examples), 1e-9)
    return 2 ** (math.floor(2 * math.log2(raw)) / 2)


def unmet(subject: Subject, instrument: Instrument, at: Where) -> str | None:
    """Why an instrument cannot run on a subject, or None; the empty string where it is not meant for such a subject at all."""
    reasons = {
        "initial": (subject.initial is not None, "the parameters at initialisation are not known (--initial, or `initial=`)"),
        "make": (subject.make is not None, "the network cannot be drawn again (give a factory: net.py:make_model, or `make=`)"),
        "optimizer": (subject.training.optimizer is not None and subject.training.lr is not None, "optimizer and learning rate are not known (--optimizer, --lr)"),
        "adaptive": (subject.training.optimizer in ("adam", "adamw"), ""),
        "labels": (subject.classes is not None, "the targets are not class labels"),
        "test": (subject.test is not None, "there are no test data"),
        "ensemble": (subject.make is not None, "the network cannot be drawn again (give a factory: net.py:make_model, or `make=`)"),
    }
    needs = [*instrument.needs, *(("initial",) if at == "initial" else ())]
    return next((why for need in needs for met, why in [reasons[need]] if not met), None)


def make_plan(subject: Subject, instruments: Mapping[str, Instrument], *, gradients: float, budget: float, seed: int, threads: int, memory: int | None) -> Plan:
    """Share `gradients` full gradients among the instruments that fit the subject.

    Cheap instruments take what they need and leave the rest to the others.  Each first buys examples, up to ENOUGH, then accuracy, in powers of two.
    What is not affordable at its smallest setting on FEWEST examples, or does not fit in memory, is skipped with the reason.
    """
    skipped: list[tuple[str, str, str]] = []
    candidates: list[tuple[Instrument, Where]] = []
    for name, instrument in instruments.items():
        for at in instrument.at:
            why = unmet(subject, instrument, at)
            if why is None:
                candidates.append((instrument, at))
            elif why:
                skipped.append((reading_key(name, at), instrument.topic, why))
    sizes = _Sizes(subject)
    groups: dict[tuple[str, Where], list[Instrument]] = {}
    for instrument, at in candidates:
        groups.setdefault((instrument.shares or instrument.name, at), []).append(instrument)
    left, entries = gradients, []
    order = sorted(groups.items(), key=lambda group: (sizes.cost(group[1], len(subject.train), group[1][0].largest), group[0]))
    for position, ((_, at), members) in enumerate(order):
        found = _fit(members, at, left / (len(order) - position), sizes, memory)
        if isinstance(found, str):
            skipped.extend((reading_key(instrument.name, at), instrument.topic, found) for instrument in members)
            continue
        entries.extend(found)
        left = max(left - sum(entry.gradients for entry in found), 0.0)
    entries.sort(key=lambda e: (e.gradients, e.instrument, e.at))
    return Plan(budget, seed, threads, subject.chunk, tuple(entries), tuple(sorted(skipped)))


class _Sizes:
    """Costs of instruments on subsamples of a subject, in full gradients."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.total, self.samples = subject, len(subject.train), {}  # type: ignore[var-annotated]
        self.levels = [n for n in (2**k for k in range(int(math.log2(FEWEST)), 40)) if n < self.total] + [self.total]

    def raw(self, instrument: Instrument, examples: int, value: int) -> Cost:
        if examples not in self.samples:
            self.samples[examples] = self.subject.sample(examples, rng=chance.generator(0, "plan"))
        return instrument.cost(self.samples[examples], **({instrument.knob: value} if instrument.knob else {}))

    def cost(self, members: list[Instrument], examples: int, value: int) -> float:
        return sum(self.raw(instrument, examples, value).gradients for instrument in members) * examples / self.total

    def bytes(self, members: list[Instrument], examples: int, value: int) -> int:
        return max(self.raw(instrument, examples, value).bytes for instrument in members)


def _fit(members: list[Instrument], at: Where, share: float, sizes: _Sizes, memory: int | None) -> list[Entry] | str:
    """Entries for instruments that share their work: the same examples and knob for all, as much of both as the share buys."""
    knob, smallest, largest = members[0].knob, members[0].smallest, members[0].largest

    def fits(level: int, value: int) -> bool:
        n = sizes.levels[level]
        return sizes.cost(members, n, value) <= share and (memory is None or sizes.bytes(members, n, value) <= 0.8 * memory)

    level, value, top = 0, smallest, len(sizes.levels) - 1
    if not fits(level, value):
        taken = sizes.bytes(members, sizes.levels[0], value)
        if memory is not None and taken > 0.8 * memory:
            return f"it takes {taken / 2**20:,.0f} MiB and {memory / 2**20:,.0f} MiB are free; no smaller setting of {knob or 'its examples'} fits"
        least = sizes.cost(members, sizes.levels[0], value)
        return f"the budget does not reach: its least costs {least:.2g} full gradients, its share is {share:.2g}; a larger --budget or --only {members[0].topic} makes room"
    while True:
        more_examples = level < top and fits(level + 1, value)
        more_value = knob is not None and 2 * value <= largest and fits(level, 2 * value)
        ahead = math.log2(max(sizes.levels[level] / ENOUGH, 0.5)) >= math.log2(value / smallest)
        if more_examples and (sizes.levels[level] < ENOUGH or not more_value or not ahead):
            level += 1
        elif more_value:
            value *= 2
        else:
            break
    n = sizes.levels[level]
    return [Entry(m.name, at, n, m.knob, value if m.knob else None, round(sizes.cost([m], n, value), 6)) for m in members]
