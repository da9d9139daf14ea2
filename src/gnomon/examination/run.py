"""`examine`: plan, measure, judge and word the theory report on one subject; what is cut off is taken up again."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gnomon.core import registry
from gnomon.core import rng as chance
from gnomon.core.environment import cache_folder, code_hash, environment, fixed_threads
from gnomon.core.errors import GnomonError, InvalidInput, OutOfScope, unknown
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject
from gnomon.examination import checkpoints, infinite
from gnomon.examination import facts as facts_module
from gnomon.examination import history as over_training
from gnomon.examination.document import assemble, bounded
from gnomon.examination.report import Report
from gnomon.instruments.timing import one_gradient
from gnomon.run.budget import as_memory_error, available_bytes, peak_bytes, seconds
from gnomon.run.interrupt import interruptible
from gnomon.run.plan import Entry, Plan, affordable, make_plan, seconds_per_example
from gnomon.run.store import REPORT, Store, key_of, read_json

Progress = Callable[[float, str], None]
"""Called with the part done, 0 to 1, and what is being done."""

DEFAULT_BUDGET = "60s"
SMALL = 100_000
"""Networks with fewer parameters run on one thread: two on tiny tensors are slower."""


def examine(
    subject: Subject, *, budget: str | float = DEFAULT_BUDGET, seed: int = 0, threads: int | None = None, only: Any = None, plan: Any = None,
    store: Any = None, progress: Progress | None = None, data_name: str | None = None, again: str | None = None,
) -> Report:  # fmt: skip
    """The theory report on a subject: what theory predicts beside what is measured, each with its error.

    `budget` is the time to spend (`90s`, `5m`); `only` names chapters; `plan` is a Plan, a report's JSON or its path, and repeats or resumes that plan;
    the subject's `history` (a file that `gnomon.hooks.Watch` wrote, or a folder of checkpoints, for which a quarter of the budget is spent) becomes the chapter `training`;
    `threads` is part of what fixes the bits: by default 1 for networks of fewer than 100,000 parameters, else 2;
    `store` the folder that keeps what is done so that a run that was cut goes on where it was.
    Cost: the budget.   Error: each reading says its own.
    Raises: InvalidInput for unknown chapters or a budget that is no time, NotEnoughMemory where a single gradient does not fit.
    """
    if not isinstance(subject, Subject):
        raise InvalidInput(f"examine takes a Subject, not {type(subject).__name__}; build one with gnomon.Subject.freeze(model, loss, train, test).")
    chapters = registry.chapters()
    wanted = _wanted(only, chapters)
    started, tick = datetime.datetime.now(datetime.UTC), time.perf_counter()
    report_progress = progress or (lambda part, text: None)
    keep = Store(Path(store) if store is not None else cache_folder() / "store")
    known = Plan.from_json(_plan_json(plan)) if plan is not None else None
    threads, seed = (known.threads, known.seed) if known else (threads if threads is not None else default_threads(subject.dimension), seed)
    with fixed_threads(threads), chance.preserved():
        fingerprint = subject.fingerprint()
        identity = [fingerprint, code_hash(), seed, threads, sorted(wanted)]
        history, more = _history(subject, plan, known.budget if known else seconds(budget), seed, threads, keep, identity[:2], report_progress)
        time_left = seconds(budget) * (1 - checkpoints.SHARE if more else 1)
        draft_key = key_of("plan", identity, time_left)
        chosen = (
            known
            or _stored_plan(keep, draft_key)
            or _new_plan(subject, {topic for name in wanted for topic in registry.reads(chapters[name])}, time_left, seed, threads, report_progress)
        )
        keep.put_piece(draft_key, "plan", chosen.to_json())
        key = key_of("report", identity, chosen.to_json())
        subject = subject.with_chunk(chosen.chunk)
        readings, failures, skipped = measure(subject, chosen, keep, key, report_progress)
        facts = facts_module.facts_of(subject)
        if "kernels" in wanted:
            facts = infinite.with_predictions(facts, subject, chosen, _placed)
    document, arrays = assemble(
        facts, chosen, readings, failures=failures, skipped=skipped, chapters={name: module for name, module in chapters.items() if name in wanted}, data_name=data_name,
        fingerprint=fingerprint, environment=environment(threads=threads, device=str(subject.device)), history=history,
    )  # fmt: skip
    document["run"] = {
        "key": key, "started": started.isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - tick, 3), "peak_bytes": peak_bytes(), "host": platform.node(),
        "again": again or "gnomon.examine(subject, plan='report.json')",
    }  # fmt: skip
    document, arrays = bounded(document, arrays)
    keep.finish(key, document, pending=(draft_key, key, *more))
    return Report(document, arrays, readings)


def _history(
    subject: Subject, plan: Any, budget: float, seed: int, threads: int, store: Store, identity: Any, progress: Progress
) -> tuple[tuple[dict[str, Any], str] | None, tuple[str, ...]]:
    """The history that the subject was given and what it is called, or None; and the store's keys of what is measured for it where it is a folder of checkpoints."""
    given = subject.history
    if given is None:
        return None, ()
    if not isinstance(given, (str, Path)) or not Path(given).is_dir():
        document, source = over_training.load(given)
        over_training.check_network(document, subject, source)
        return (document, source), ()
    readings = _document(plan).get("history", {}).get("readings", ()) if plan is not None else ()
    spent = checkpoints.SHARE * budget
    document, key = checkpoints.history(
        subject, Path(given), budget=spent, seed=seed, threads=threads, store=store, identity=[*identity, seed, threads], progress=progress, readings=readings
    )
    return (document, Path(given).name or str(given)), (key,)


def default_threads(parameters: int) -> int:
    """Threads for a network of this size: one where the tensors are small, else two.   Units: count."""
    return 1 if parameters < SMALL else 2


def _wanted(only: Any, chapters: Mapping[str, Any]) -> list[str]:
    if only is None:
        return list(chapters)
    names = [part.strip() for part in only.split(",")] if isinstance(only, str) else list(only)
    for name in names:
        if name not in chapters:
            raise unknown("chapter", name, chapters)
    return names


def _plan_json(plan: Any) -> Mapping[str, Any]:
    if isinstance(plan, Plan):
        return plan.to_json()
    document = _document(plan)
    return document.get("plan", document)


def _document(plan: Any) -> Mapping[str, Any]:
    """The report that a plan is taken from; empty where the plan came by itself."""
    if isinstance(plan, Plan):
        return {}
    return plan.document if isinstance(plan, Report) else plan if isinstance(plan, Mapping) else read_json(Path(plan), schema=REPORT)


def _stored_plan(store: Store, key: str) -> Plan | None:
    piece = store.piece(key, "plan")
    return None if piece is None else Plan.from_json(piece)


def _new_plan(subject: Subject, topics: set[str], budget: float, seed: int, threads: int, progress: Progress) -> Plan:
    """Time a gradient and share what the budget buys; where a chunk does not fit in memory, smaller chunks are tried."""
    progress(0.0, "timing one gradient")
    while True:
        try:
            per_example = seconds_per_example(subject, one_gradient, rng=chance.generator(seed, "timing"))
            break
        except (RuntimeError, MemoryError) as error:
            memory = as_memory_error(error, f"computing one gradient on {subject.chunk} examples at a time")
            if memory is None:
                raise
            if subject.chunk <= 8:
                raise memory from error
            subject = subject.with_chunk(subject.chunk // 2)
    instruments = {name: instrument for name, instrument in registry.instruments().items() if instrument.topic in topics}
    buys = affordable(budget, per_example, len(subject.train))
    return make_plan(subject, instruments, gradients=buys, budget=budget, seed=seed, threads=threads, memory=available_bytes())


def measure(subject: Subject, plan: Plan, store: Store, key: str, progress: Progress) -> tuple[dict[str, Reading], dict[str, str], list[tuple[str, str, str]]]:
    """Every reading of a plan, from the store where it is there already.  Returns readings, faults by reading, and what was skipped (what, chapter, why)."""
    readings: dict[str, Reading] = {}
    failures: dict[str, str] = {}
    skipped = list(plan.skipped)
    subjects: dict[tuple[str, int], Subject] = {}
    done, total = 0.0, max(plan.gradients, 1e-12)
    for entry in plan.entries:
        progress(done / total, f"{entry.key.replace('_', ' ')} on {entry.examples:,} examples")
        piece = store.piece(key, entry.key)
        if piece is None:
            with interruptible():
                piece = _piece(_placed(subject, entry, plan.seed, subjects), entry, plan.seed)
            store.put_piece(key, entry.key, piece)
        topic = piece["topic"]
        if "reading" in piece:
            readings[entry.key] = Reading.from_json(piece["reading"])
        elif "skipped" in piece:
            skipped.append((entry.key, topic, piece["skipped"]))
        else:
            failures[entry.key] = piece["fault"]
        done += entry.gradients
    progress(1.0, "writing the report")
    return readings, failures, sorted(skipped)


def _placed(subject: Subject, entry: Entry, seed: int, made: dict[tuple[str, int], Subject]) -> Subject:
    """The subject at its end or initialisation, on the entry's number of examples; equal ones are shared, and smaller samples lie inside larger ones."""
    place = (entry.at, entry.examples)
    if place not in made:
        at = subject if entry.at == "end" else subject.at(subject.initial, "initial")
        made[place] = at.sample(entry.examples, rng=chance.generator(seed, "examples"))
    return made[place]


def _piece(subject: Subject, entry: Entry, seed: int) -> dict[str, Any]:
    instrument = registry.get_instrument(entry.instrument)
    piece: dict[str, Any] = {"topic": instrument.topic}
    try:
        reading = instrument(subject, rng=chance.generator(seed, entry.key), **entry.settings())
        return piece | {"reading": reading.to_json()}
    except (OutOfScope, InvalidInput) as error:
        return piece | {"skipped": str(error)}
    except GnomonError:
        raise
    except Exception as error:
        memory = as_memory_error(error, f"measuring {entry.key}")
        if memory is not None:
            return piece | {"skipped": str(memory)}
        return piece | {"fault": f"{type(error).__name__}: {error}"}
