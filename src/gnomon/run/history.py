"""Readings over training: what is taken at a step, and the file `gnomon/history/1` that keeps it."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnomon.core import registry
from gnomon.core import rng as chance
from gnomon.core.environment import environment
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import CHANCE, Axis, Reading
from gnomon.core.subject import State, Subject
from gnomon.core.training import Training
from gnomon.run.budget import as_memory_error
from gnomon.run.store import read_json, write_atomic

SCHEMA = "gnomon/history/1"
MOST_BYTES = 2**20
"""Bytes of the records of a file beyond which every second one is dropped."""
USUAL = ("training_loss", "gradient_noise_scale", "sharpness", "preconditioned_sharpness", "distance_from_initialization", "test_error")
"""What is read over training where nothing else is asked for, as far as what it needs is known."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """An instrument that is read over training: its settings, on how many examples, at which steps, and what one reading costs (in steps of training)."""

    instrument: str
    settings: Mapping[str, int]
    examples: int
    every: int
    cost: float


class Recorder:
    """Takes chosen readings of one network at any of its states."""

    def __init__(self, subject: Subject, choices: Sequence[Choice], *, seed: int, warm: bool = False) -> None:
        """With `warm`, a reading may start from what it found at the state before: in a training, whose states follow each other."""
        self.kept: dict[int, dict[str, Any]] | None = {choice.examples: {} for choice in choices} if warm else None
        self.subject, self.choices, self.seed = subject, tuple(choices), seed
        self.samples = {choice.examples: subject.sample(choice.examples, rng=chance.generator(seed, "examples")) for choice in choices}

    def record(self, state: State, step: int, *, training: Training | None = None, due: Iterable[Choice] | None = None) -> dict[str, Any]:
        """The readings of a state as a record of the history; what cannot be read is skipped with its reason.

        `state` holds parameters and buffers by the subject's own names; it is copied.   Cost: that of the readings.
        """
        wanted = self.choices if due is None else tuple(due)
        readings: dict[str, Any] = {}
        skipped: dict[str, str] = {}
        known = training or self.subject.training
        record = {"step": step, "training": known.to_json() if known.lr is not None else None, "readings": readings, "skipped": skipped}
        # the keys and shapes are known to fit; `Subject.at` would look at all of them again
        like = self.subject.state
        if odd := [key for key in like if key not in state or state[key].shape != like[key].shape]:
            skipped.update({choice.instrument: f"{odd[0]!r} is not whole in this process (sharded parameters are not covered)" for choice in wanted})
            return record
        here = {key: state[key].detach().to(like[key].device, like[key].dtype).clone() for key in like}
        if (bad := _not_finite(here, self.subject.state)) is not None:
            skipped.update({choice.instrument: f"{bad!r} has a NaN or infinite value" for choice in wanted})
            return record
        placed: dict[int, Subject] = {}
        for choice in wanted:
            base = self.samples[choice.examples]
            # what depends on the network's structure and on the data alone is found once for all steps
            kept = {key: value for key, value in base._shared.items() if key.startswith("numerics.")}
            if self.kept is not None:
                kept["kept"] = self.kept[choice.examples]
            at = placed.setdefault(choice.examples, dataclasses.replace(base, state=here, training=known, _shared=kept))
            found, why = _take(at, choice, chance.generator(self.seed, choice.instrument, step))
            base._shared.update({key: value for key, value in at._shared.items() if key.startswith("numerics.")})
            if found is None:
                skipped[choice.instrument] = why
            else:
                readings[choice.instrument] = _short(found)
        return record


def _not_finite(state: State, like: State) -> str | None:
    """The first entry that has a NaN, or an infinite value where the network at hand has none (a causal mask holds -inf on purpose)."""
    floating = {key: value for key, value in state.items() if value.is_floating_point()}
    # a finite sum tells that every entry is; only where one is not are the entries looked at
    if all(math.isfinite(float(value.sum())) for value in floating.values()):
        return None
    for key, value in floating.items():
        if value.isnan().any() or (not bool(torch.isfinite(value).all()) and bool(torch.isfinite(like[key]).all())):
            return key
    return None


def _take(subject: Subject, choice: Choice, rng: Any) -> tuple[Reading | None, str]:
    """A reading, or why there is none: whatever goes wrong, the training that is watched goes on."""
    try:
        return registry.get_instrument(choice.instrument)(subject, rng=rng, **choice.settings), ""
    except (OutOfScope, InvalidInput) as error:
        return None, str(error)
    except Exception as error:
        memory = as_memory_error(error, f"measuring {choice.instrument}")
        return None, str(memory) if memory else f"gnomon failed here ({type(error).__name__}: {error}); please report it"


def _short(reading: Reading) -> dict[str, Any]:
    """A reading without its replicates; of the details the bound alone, which the judge asks for."""
    bound = reading.details.get("bound")
    return dataclasses.replace(reading, samples=None, details={} if bound is None else {"bound": bound}).to_json()


class History:
    """A history: its head, and its records in the order of their steps.  Each record is one line of the file."""

    def __init__(self, head: Mapping[str, Any], records: Sequence[Mapping[str, Any]] = ()) -> None:
        self.head, self.steps, self.lines = {key: value for key, value in head.items() if key != "records"}, list[int](), list[str]()
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; those of the same and of later steps go."""
        self.drop_from(int(record["step"]))
        self.steps.append(int(record["step"]))
        self.lines.append(json.dumps(record, sort_keys=True, allow_nan=False, ensure_ascii=False))
        if sum(map(len, self.lines)) > MOST_BYTES:
            self._thin()

    def _thin(self) -> None:
        """Keep every second record among those with the same readings, so that what is read rarely is not lost, and the last."""
        seen: dict[frozenset[str], int] = {}
        keep = []
        for i, line in enumerate(self.lines):
            names = frozenset(json.loads(line)["readings"])
            seen[names] = seen.get(names, -1) + 1
            if seen[names] % 2 == 0 or i == len(self.lines) - 1:
                keep.append(i)
        self.steps, self.lines = [self.steps[i] for i in keep], [self.lines[i] for i in keep]

    def drop_from(self, step: int) -> None:
        """Drop the records of this step and of later ones: training goes on from there."""
        first = bisect.bisect_left(self.steps, step)
        del self.steps[first:], self.lines[first:]

    def document(self) -> dict[str, Any]:
        """The whole as JSON types."""
        return {**self.head, "records": [json.loads(line) for line in self.lines]}

    def text(self) -> str:
        """The file: the head, then one line a record."""
        head = json.dumps(self.head, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1)
        return head[:-2] + ',\n "records": [\n' + ",\n".join(self.lines) + "\n ]\n}\n"

    def write(self, path: Path) -> None:
        """Write the file in one go, without waiting for the disk, which the training would feel.  Raises: CannotWrite; what stood there stays."""
        write_atomic(path, self.text(), durable=False)

    @classmethod
    def read(cls, path: str | Path) -> History:
        """The history in a file.  Raises: InvalidInput for what is none, or is broken."""
        document = read_json(Path(path), schema=SCHEMA)
        return cls(checked(document, str(path)), document["records"])


def head_of(subject: Subject, choices: Sequence[Choice], *, kind: str, settings: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What stands above the records."""
    test = None if subject.test is None else {"examples": len(subject.test)}
    about = {
        "name": subject.name, "parameters": sum(value.numel() for value in subject.module.parameters()), "trainable": subject.dimension, "loss": subject.loss.name,
        "train": {"examples": len(subject.train), "population": subject.train.population}, "test": test,
    }  # fmt: skip
    return {
        "schema": SCHEMA, "kind": kind, "subject": about, "settings": dict(settings), "readings": [dataclasses.asdict(choice) for choice in choices], "notes": [], "skipped": [],
        "environment": environment(threads=threads, device=str(subject.device)),
    }  # fmt: skip


def checked(document: Mapping[str, Any], where: str = "the history") -> Mapping[str, Any]:
    """The document itself, once its parts are seen to be there and its steps to rise.  Raises: InvalidInput."""
    try:
        if str(document["schema"]) != SCHEMA:
            raise InvalidInput(f"{where} is not a history: expected the schema {SCHEMA!r}, found {document['schema']!r}.")
        steps = [record["step"] for record in document["records"]]
        if any(type(step) is not int for step in steps) or any(a >= b for a, b in itertools.pairwise(steps)):
            raise InvalidInput(f"{where}: the steps of the records must be whole numbers that rise.")
        int(document["subject"]["parameters"])
        for part in ("readings", "notes", "skipped"):
            list(document[part])
        dict(document["settings"])
        for record in document["records"]:
            if not isinstance(record["skipped"], Mapping) or not isinstance(record["training"], (Mapping, type(None))):
                raise TypeError("a record")
            for data in record["readings"].values():
                Reading.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{where} is not a whole history ({type(error).__name__}: {error}). Give the file that gnomon.hooks.Watch wrote.") from error
    return document


def over_steps(document: Mapping[str, Any], name: str, *, most: int | None = None) -> Reading | None:
    """One reading over the steps at which it was taken, as an array whose last axis is `step` (or `epoch`); None where it never was.

    With `most`, at most that many steps, evenly spread, the first and the last among them.
    Shapes: value (*value of the reading, steps).   Error: that of each reading; the fewest replicates of all of them decide the degrees of freedom.
    """
    taken = [(record["step"], Reading.from_json(record["readings"][name])) for record in document["records"] if name in record["readings"]]
    if not taken:
        return None
    shape, axes = taken[-1][1].value.shape, taken[-1][1].axes
    taken = [(step, reading) for step, reading in taken if reading.value.shape == shape]
    if most is not None and len(taken) > most:
        taken = [taken[i] for i in sorted({round(k * (len(taken) - 1) / max(most - 1, 1)) for k in range(most)})]
    readings = [reading for _, reading in taken]
    last = readings[-1]
    kind = next((reading.error_kind for reading in readings if reading.error_kind in CHANCE), last.error_kind)
    bounds = [np.broadcast_to(np.asarray(reading.details.get("bound", 0.0), dtype=np.float64), shape) for reading in readings]
    ends = [reading.interval for reading in readings if reading.interval is not None]
    step = Axis(str(document["settings"].get("axis", "step")), tuple(float(step) for step, _ in taken))

    def stack(parts: Iterable[Any]) -> Any:
        return np.stack(list(parts), axis=-1)

    return Reading(
        f"{name}_over_training", stack(reading.value for reading in readings), last.unit, error=stack(reading.error for reading in readings), error_kind=kind,
        n=min((reading.n for reading in readings if reading.n), default=None), interval=(stack(low for low, _ in ends), stack(high for _, high in ends)),
        axes=(*axes, step) if len(axes) == len(shape) else (), source=last.source,
        assumes=tuple(dict.fromkeys(line for reading in readings for line in reading.assumes)), details={"bound": stack(bounds)} if any(part.any() for part in bounds) else {},
    )  # fmt: skip


def training_at(document: Mapping[str, Any], steps: Sequence[float]) -> list[Training | None]:
    """Optimizer and step size at each of these steps, as far as the records say."""
    at = {record["step"]: record["training"] for record in document["records"]}
    out: list[Training | None] = []
    for step in steps:
        data = at.get(int(step))
        fields = {field.name for field in dataclasses.fields(Training)} - {"second_moment"}
        out.append(None if data is None else Training(**{key: value for key, value in data.items() if key in fields}))
    return out


def round_stride(least: float) -> int:
    """The smallest of 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, ... that is not below a number."""
    power = 10 ** math.floor(math.log10(max(least, 1.0)))
    factors = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return next(int(factor * power) for factor in factors if factor * power >= least * (1 - 1e-9) and factor * power == int(factor * power))
