"""The contract that every instrument keeps, checked on small subjects; third parties check their own with it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from gnomon.core import rng as chance
from gnomon.core.errors import GnomonError
from gnomon.core.reading import CHANCE, Reading
from gnomon.core.registry import Instrument
from gnomon.core.subject import Subject

SEED = 20_260_000
FEWEST_TESTS = 64
"""Test examples that are drawn for a reading at least."""


class ContractBroken(GnomonError):
    """An instrument does not keep its contract; the message names the rule and what was seen."""


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How often the stated 95 % interval held the exact value.  Shapes: `each` is one rate an element."""

    rate: float
    each: tuple[float, ...]
    draws: int
    error_kind: str


def settings(instrument: Instrument) -> dict[str, int]:
    """The smallest setting of an instrument, where its error bar has least to stand on."""
    return {instrument.knob: instrument.smallest} if instrument.knob else {}


def take(instrument: Instrument, subject: Subject, *, index: int = 0, **more: int) -> Reading:
    """One reading at the smallest setting."""
    return instrument(subject, rng=chance.generator(SEED, instrument.name, index), **(settings(instrument) | more))


def check_reading(instrument: Instrument, subject: Subject) -> None:
    """The reading has the instrument's name, a unit, finite numbers, a source that resolves; at most 1,000 numbers; the docstring says its shapes."""
    reading = take(instrument, subject)
    _require(reading.name == instrument.name, instrument, f"the reading is called {reading.name!r}, the instrument {instrument.name!r}")
    _require(isinstance(reading.unit, str), instrument, "no unit is set (an empty string says that there is none)")
    _require(bool(np.isfinite(reading.value).all()), instrument, "the value is not finite")
    _require(reading.role == "measured", instrument, f"an instrument measures, but the reading's role is {reading.role!r}")
    _require(reading.value.size <= 1000, instrument, f"the reading has {reading.value.size} numbers; thin it out to 1,000")
    _require(reading.source is not None and bool(reading.source.bibtex), instrument, "no source is given")
    document = instrument.function.__doc__ or ""
    _require("Shapes:" in document, instrument, "the docstring does not say the shapes")
    if reading.error_kind not in CHANCE and subject.dtype == torch.float32 and reading.error_kind == "bound":
        _require(bool((reading.error > 0).all()), instrument, "a bound in float32 is never 0: rounding belongs to it")
    if reading.error_kind in CHANCE:
        _require(bool((reading.error > 0).any()) or bool((reading.value == 0).all()), instrument, "the error is 0, yet chance is said to be in it")
    _require(Reading.from_json(reading.to_json()).to_json() == reading.to_json(), instrument, "the reading does not survive JSON")


def check_repeats(instrument: Instrument, subject: Subject) -> None:
    """The same rng gives the same bits."""
    _require(take(instrument, subject).to_json() == take(instrument, subject.with_chunk(subject.chunk)).to_json(), instrument, "two runs with one rng differ")


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state(legacy=False)
    return [*state["state"]["key"].tolist(), state["state"]["pos"]]


def check_untouched(instrument: Instrument, subject: Subject) -> None:
    """Parameters, buffers, gradients, train/eval mode and the global random state are left as they were."""
    before, modes = {key: value.clone() for key, value in subject.state.items()}, [layer.training for layer in subject.module.modules()]
    inside = {key: value.clone() for key, value in subject.module.state_dict().items()}
    random_before = (random.getstate(), _numpy_state(), torch.random.get_rng_state())
    take(instrument, subject)
    _require(all(torch.equal(value, subject.state[key]) for key, value in before.items()), instrument, "the subject's parameters or buffers were changed")
    _require(all(torch.equal(value, subject.module.state_dict()[key]) for key, value in inside.items()), instrument, "the module's parameters or buffers were changed")
    _require(all(value.grad is None for value in subject.module.parameters()), instrument, "gradients were left in the module")
    _require([layer.training for layer in subject.module.modules()] == modes, instrument, "the train/eval mode was changed")
    hooks = [layer for layer in subject.module.modules() if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks]
    _require(not hooks, instrument, "hooks were left on the module")
    random_after = (random.getstate(), _numpy_state(), torch.random.get_rng_state())
    same = random_before[0] == random_after[0] and random_before[1] == random_after[1] and torch.equal(random_before[2], random_after[2])
    _require(same, instrument, "the global random state was moved; draw from the given rng only")


def check_split(instrument: Instrument, subject: Subject) -> None:
    """The result does not depend on how the data are split into chunks, beyond rounding."""
    exact = subject.to(torch.float64)
    one, other = take(instrument, exact.with_chunk(len(exact.train))), take(instrument, exact.with_chunk(3))
    scale = max(float(np.abs(one.value).max()), 1e-30)
    worst = float(np.abs(one.value - other.value).max()) / scale
    allowed = 1e-8 + float(np.max(one.error)) / scale * (one.error_kind == "bound")
    _require(worst <= allowed, instrument, f"the value changes by {worst:.1e} of its size when the data are split otherwise")


def check_precision(instrument: Instrument, subject: Subject) -> None:
    """float32 agrees with float64 to the stated error; a float32 bound contains the float64 value."""
    single, double = take(instrument, subject.to(torch.float32)), take(instrument, subject.to(torch.float64))
    slack = 0.0 if single.error_kind == "bound" else 1e-3 * float(np.abs(double.value).max())
    allowed = np.nan_to_num(single.error, posinf=math.inf) + slack + (double.error if double.error_kind == "bound" else 0.0)
    worst = float((np.abs(single.value - double.value) - allowed).max())
    _require(worst <= 0, instrument, f"float32 and float64 differ by {worst:.2e} more than the stated error")


def check_bad_input(instrument: Instrument, subject: Subject) -> None:
    """An impossible setting is refused with a message, not with a crash or a number."""
    if instrument.knob is None:
        return
    for value in (0, -1):
        try:
            instrument(subject, rng=chance.generator(SEED, instrument.name), **{instrument.knob: value})
        except GnomonError:
            continue
        except Exception as error:
            raise ContractBroken(f"{instrument.name}: {instrument.knob}={value} raises {type(error).__name__} ({error}) instead of InvalidInput.") from error
        raise ContractBroken(f"{instrument.name}: {instrument.knob}={value} is accepted; it must be refused with InvalidInput.")


CHECKS: tuple[Callable[[Instrument, Subject], None], ...] = (check_reading, check_repeats, check_untouched, check_split, check_precision, check_bad_input)


def draws_of(instrument: Instrument, subject: Subject, draws: int, *, half: bool = False) -> Iterator[Reading]:
    """Independent readings: other probes, seeds or partitions, and other random halves of the examples with `half`.

    Where the instrument needs test data, these are drawn anew, independently, from the test examples at hand: for them they are the world.
    """
    part = max(len(subject.train) // 2, 2)
    for index in range(draws):
        seen = subject.sample(part, rng=chance.generator(SEED, "half", index)) if half else subject
        if "test" in instrument.needs and subject.test is not None:
            chosen = chance.integers(len(subject.test), max(len(subject.test), FEWEST_TESTS), rng=chance.generator(SEED, "test", index))
            seen = dataclasses.replace(seen, test=subject.test.select(chosen), _shared={})
        yield take(instrument, seen, index=index + 1)


def coverage(instrument: Instrument, subject: Subject, *, draws: int = 200, half: bool = False) -> Coverage:
    """How often the stated 95 % interval holds the exact value of the whole subject over independent draws, each on a random half of its examples with `half`.

    Shapes: rates one an element of the reading.   Error: binomial, about 1.5 points at 200 draws.
    Cost: `draws` readings and one truth; three readings where the error is no chance.
    Raises: ContractBroken where the instrument has no truth.
    """
    if instrument.truth is None:
        raise ContractBroken(f"{instrument.name}: a stochastic instrument needs `truth`, its small exact answer.")
    inside, kind, exact = [], "", subject.to(torch.float64)
    per_reading = "reading" in inspect.signature(instrument.truth).parameters
    truth: Any = None
    for index, reading in enumerate(draws_of(instrument, subject, draws, half=half)):
        kind = reading.error_kind
        if kind not in CHANCE and index == 3:
            break
        if truth is None or per_reading:
            truth = np.asarray(instrument.truth(exact, reading) if per_reading else instrument.truth(exact), dtype=np.float64)
        assert reading.interval is not None
        inside.append((reading.interval[0] <= truth) & (truth <= reading.interval[1]))
    rates = np.mean(inside, axis=0)
    return Coverage(float(np.mean(rates)), tuple(np.atleast_1d(rates).ravel().tolist()), len(inside), kind)


def check_coverage(instrument: Instrument, subject: Subject, *, draws: int = 200) -> None:
    """Over `draws` readings the stated 95 % interval covers the exact value in 90 to 99 % of them; always where the error is no chance."""
    if instrument.truth is None:
        stochastic = take(instrument, subject).error_kind in CHANCE
        _require(not stochastic, instrument, "a stochastic instrument needs `truth`, its small exact answer")
        return
    seen = coverage(instrument, subject, draws=draws)
    low, high = (0.90, 0.99) if seen.error_kind in CHANCE else (1.0, 1.0)
    found = f"the 95 % interval ({seen.error_kind}) covers the truth in {100 * seen.rate:.1f} % of {seen.draws} draws; it must be {100 * low:.0f} to {100 * high:.0f} %"
    _require(low <= seen.rate <= high, instrument, found)


def _require(met: bool, instrument: Instrument, message: str) -> None:
    if not met:
        raise ContractBroken(f"{instrument.name}: {message}.")
