"""The plan: which instruments run, on how many examples and at which setting, so that a budget holds; said before the work."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.factors import has_factors
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
        "factors": ("factors" not in instrument.needs or has_factors(subject.module), ""),
        "ensemble": (subject.make is not None, "the network cannot be drawn again (give a factory: net.py:make_model, or `make=`)"),
    }
    needs = [*instrument.needs, *(("initial",) if at == "initial" else ())]
    return next((why for need in needs for met, why in [reasons[need]] if not met), None)


def make_plan(subject: Subject, instruments: Mapping[str, Instrument], *, gradients: float, budget: float, seed: int, threads: int, memory: int | None) -> Plan:
    """Share `gradients` full gradients among the instruments that fit the subject.

    Each gets its smallest setting on FEWEST examples; what is left is dealt out in rounds, and cheap instruments leave to the others what they do not need.
    Each buys examples first, up to ENOUGH, then accuracy and examples by turns, in powers of two.  Where not even the smallest settings are affordable, the
    dearest are skipped, those that a chapter rests on last; what does not fit in memory is skipped too, with the reason.
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
    order = [_Group(members, at, sizes) for (_, at), members in sorted(groups.items())]
    order.sort(key=lambda group: (group.cost(len(sizes.levels) - 1, group.largest), group.name))
    kept, dropped = _reachable(order, gradients, memory)
    skipped.extend((reading_key(member.name, group.at), member.topic, why) for group, why in dropped for member in group.members)
    entries = [entry for group in _shared_out(kept, gradients, memory) for entry in group.entries()]
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


class _Group:
    """Instruments that share their work, with the level of examples and the knob that they have been given so far."""

    def __init__(self, members: list[Instrument], at: Where, sizes: _Sizes) -> None:
        first = members[0]
        self.members, self.at, self.sizes, self.name, self.knob = members, at, sizes, first.name, first.knob
        self.largest, self.level, self.value, self.smallest = first.largest, 0, first.smallest, first.smallest
        self.weight = 2.0 if self.essential else 1.0

    @property
    def essential(self) -> bool:
        return any(member.essential for member in self.members)

    def cost(self, level: int | None = None, value: int | None = None) -> float:
        examples, value = self.sizes.levels[self.level if level is None else level], self.value if value is None else value
        return sum(self.sizes.raw(member, examples, value).gradients for member in self.members) * examples / self.sizes.total

    def bytes(self, level: int, value: int) -> int:
        return max(self.sizes.raw(member, self.sizes.levels[level], value).bytes for member in self.members)

    def grow(self, share: float, memory: int | None) -> None:
        """Take as many examples and turn the knob as far as the share and the memory allow: examples up to ENOUGH first, then by turns."""

        def fits(level: int, value: int) -> bool:
            return self.cost(level, value) <= share and _fits_memory(self.bytes(level, value), memory)

        while True:
            more_examples = self.level + 1 < len(self.sizes.levels) and fits(self.level + 1, self.value)
            more_value = self.knob is not None and 2 * self.value <= self.largest and fits(self.level, 2 * self.value)
            examples = self.sizes.levels[self.level]
            ahead = math.log2(max(examples / ENOUGH, 0.5)) >= math.log2(self.value / self.smallest)
            if more_examples and (examples < ENOUGH or not more_value or not ahead):
                self.level += 1
            elif more_value:
                self.value *= 2
            else:
                return

    def entries(self) -> list[Entry]:
        n = self.sizes.levels[self.level]
        value = self.value if self.knob else None
        return [Entry(m.name, self.at, n, m.knob, value, round(self.sizes.raw(m, n, self.value).gradients * n / self.sizes.total, 6)) for m in self.members]


def _fits_memory(taken: int, memory: int | None) -> bool:
    return memory is None or taken <= 0.8 * memory


def _reachable(groups: list[_Group], gradients: float, memory: int | None) -> tuple[list[_Group], list[tuple[_Group, str]]]:
    """The groups whose least settings fit in memory and, together, in the budget: those that chapters rest on first, the cheap before the dear."""
    kept: list[_Group] = []
    dropped: list[tuple[_Group, str]] = []
    left = gradients
    for group in sorted(groups, key=lambda group: (not group.essential, group.cost())):
        taken = group.bytes(0, group.smallest)
        if not _fits_memory(taken, memory):
            why = f"it takes {taken / 2**20:,.0f} MiB and {(memory or 0) / 2**20:,.0f} MiB are free; no smaller setting of {group.knob or 'its examples'} fits"
            dropped.append((group, why))
        elif group.cost() > left:
            room = f"a larger --budget or --only {group.members[0].topic} makes room"
            least = f"the least that it takes is {group.cost():.2g} full gradients, and {left:.2g} of the {gradients:.2g} that the budget buys are left"
            dropped.append((group, f"the budget does not reach: {least}; {room}"))
        else:
            kept.append(group)
            left -= group.cost()
    return [group for group in groups if group in kept], dropped


def _shared_out(groups: list[_Group], gradients: float, memory: int | None) -> list[_Group]:
    """Give every group its least setting, then deal out what is left in rounds, the cheap first: what they do not need goes to the dear."""
    for _ in range(4):
        left = gradients - sum(group.cost() for group in groups)
        for position, group in enumerate(groups):
            before = group.cost()
            group.grow(before + left * group.weight / sum(other.weight for other in groups[position:]), memory)
            left -= group.cost() - before
    return groups
