"""The runner of claims: the prediction is stored first, then replicates are mapped over a pool, stored as they end, stacked and judged."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib
import inspect
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.core import rng as chance
from gnomon.core.catalogue import Listed
from gnomon.core.claim import SCALES, Claim
from gnomon.core.environment import cache_folder, code_hash, environment
from gnomon.core.errors import GnomonError, InvalidInput, OutOfScope, unknown
from gnomon.core.judge import Outcome, Verdict, judge
from gnomon.core.reading import Reading, jsonable
from gnomon.run.budget import as_memory_error, peak_bytes
from gnomon.run.interrupt import interruptible
from gnomon.run.pool import LocalPool, Pool, Task
from gnomon.run.store import Store, key_of
from gnomon.run.verdicts import SCHEMA, store_path, write_verdict

Piece = dict[str, Any]
"""What a task returns: `reading`, `out_of_scope` or `error`, the hash of the gnomon that made it, and under `run` what may differ."""
Progress = Callable[[float, str], None]


def run_claims(
    claims: Iterable[Listed], *, scale: str = "smoke", seed: int = 0, pool: Pool | None = None, store: Path | None = None, progress: Progress | None = None
) -> Iterator[dict[str, Any]]:
    """Run claims and yield the document of each as it is decided; it is stored before.

    Every prediction of a batch is stored before a measurement of it starts.  A claim that raises has the verdict `error`, one whose assumption is not met
    `out_of_scope`; the others go on.  A run that was cut goes on replicate by replicate, and what two claims measure in common is measured once.

    Raises: InvalidInput for an unknown scale or a claim without settings for it, CannotWrite for a store that cannot be written.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    chosen = pool if pool is not None else LocalPool()
    keep = Store(Path(store) if store is not None else cache_folder() / "store", pieces="replicates")
    runs = [_Run(listed, scale, seed, chosen.threads) for listed in claims]
    # one worker takes claim after claim, so that what a claim prepares is not built again; several share all that there is to do
    batches = [[run] for run in runs] if chosen.jobs == 1 else [runs]
    tell = _Told(progress, sum(1 + len(run.wanted()) for run in runs))
    for batch in batches:
        yield from _batch(batch, chosen, keep, tell)


class _Told:
    """Progress as tasks done of tasks in all."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress or (lambda part, text: None), max(total, 1), 0

    def __call__(self, text: str) -> None:
        self.done += 1
        self.progress(min(self.done / self.total, 1.0), text)


class _Run:
    """One claim on its way to a verdict."""

    def __init__(self, listed: Listed, scale: str, seed: int, threads: int) -> None:
        self.listed, self.scale, self.seed, self.threads = listed, scale, seed, threads
        self.claim: Claim | None = None
        self.settings: Any = None
        self.prediction: Piece = {}
        self.keys: dict[bool, str] = {}
        self.count = 0
        try:
            self.claim = listed.load()
            self.settings = self.claim.scales.get(scale)
            if self.settings is not None:
                self._prepare(self.claim)
        except Exception as error:
            self.prediction, self.keys = {"error": _said(error), "run": {}}, {}
        if self.claim is not None and scale not in self.claim.scales:
            raise InvalidInput(f"The claim {listed.id} has no settings for the scale {scale!r}; it has {', '.join(self.claim.scales)}.")

    def _prepare(self, claim: Claim) -> None:
        self.count = int(getattr(self.settings, "replicates", 1))
        changed = dataclasses.replace(self.settings, **claim.sabotage.changes)
        shared = None if claim.prepare is None else [_qualified(claim.prepare), settings_json(self.settings)]
        for sabotage, seen in ((False, self.settings), (True, changed)):
            self.keys[sabotage] = key_of("replicates", code_hash(), _qualified(claim.measure), shared, settings_json(seen), self.seed, self.threads)
        self.key = key_of("prediction", code_hash(), self.listed.id, claim.version, self.listed.code_hash, settings_json(self.settings), self.seed, self.threads)

    def wanted(self) -> list[tuple[bool, int]]:
        """The replicates of the claim, then those of its sabotage."""
        return [(sabotage, index) for sabotage in self.keys for index in range(self.count)]

    def task(self, call: str, **arguments: Any) -> Task:
        """A task by name."""
        where = {"module": self.listed.module, "code": self.listed.code_hash, "scale": self.scale, "seed": self.seed}
        return Task(f"{__name__}:{call}", where | arguments)


def _batch(runs: Sequence[_Run], pool: Pool, store: Store, tell: _Told) -> Iterator[dict[str, Any]]:
    """Predict for all, then measure for all, and finish each as its last replicate is there."""
    unpredicted: list[_Run] = []
    for run in runs:
        if run.keys:
            run.prediction = store.piece(run.key, "predicted") or {}
        if run.prediction:
            tell(run.listed.id)
        else:
            unpredicted.append(run)
    for position, piece in _mapped(pool, [run.task("predict") for run in unpredicted]):
        unpredicted[position].prediction = piece
        if "error" not in piece:
            store.put_piece(unpredicted[position].key, "predicted", piece)
        tell(f"{unpredicted[position].listed.id}: predicted")
    done: dict[tuple[str, str], Piece] = {}
    tasks: dict[tuple[str, str], Task] = {}
    for run in runs:
        if "reading" not in run.prediction:
            continue
        for sabotage, index in run.wanted():
            place = (run.keys[sabotage], str(index))
            kept = store.piece(*place)
            if kept is not None:
                done[place] = kept
                tell(run.listed.id)
            elif place not in tasks:
                tasks[place] = run.task("replicate", index=index, sabotage=sabotage)
    left = list(runs)
    yield from _finished(left, done, store)
    places = list(tasks)
    for position, piece in _mapped(pool, list(tasks.values())):
        place = places[position]
        done[place] = piece
        if "error" not in piece:
            store.put_piece(*place, piece)
        tell(next((run.listed.id for run in left if place[0] in run.keys.values()), ""))
        yield from _finished(left, done, store)


def _mapped(pool: Pool, tasks: Sequence[Task]) -> Iterator[tuple[int, Piece]]:
    if not tasks:
        return
    results = pool.run(tasks)
    while True:
        with interruptible():
            found = next(results, None)
        if found is None:
            return
        if found[1]["code"] != code_hash()[:16]:
            raise InvalidInput("A worker runs another gnomon, or other plug-ins, than this process. Install the same on every node, and start the cluster again.")
        yield found


def _finished(left: list[_Run], done: Mapping[tuple[str, str], Piece], store: Store) -> Iterator[dict[str, Any]]:
    """The documents of the runs that lack nothing, which leave the list."""
    for run in list(left):
        places = [(run.keys[sabotage], str(index)) for sabotage, index in run.wanted()] if "reading" in run.prediction else []
        if all(place in done for place in places):
            left.remove(run)
            document = _document(run, {place: done[place] for place in places})
            write_verdict(store_path(store.folder, run.listed.id, run.scale), document)
            yield document


# What runs in a worker.


def predict(*, module: str, code: str, scale: str, seed: int) -> Piece:
    """The prediction of a claim, as a piece."""
    claim: Claim = importlib.import_module(module).CLAIM
    settings = claim.scales[scale]
    return _piece(lambda: claim.predict(settings, *_shared(module, code, scale, seed)), chance.generator(seed, "predict"), f"predicting {module}")


def replicate(*, module: str, code: str, scale: str, seed: int, index: int, sabotage: bool) -> Piece:
    """One replicate of a claim, or of its sabotage, as a piece."""
    claim: Claim = importlib.import_module(module).CLAIM
    seen = dataclasses.replace(claim.scales[scale], **claim.sabotage.changes) if sabotage else claim.scales[scale]
    rng = chance.generator(seed, _name(claim.measure), index)
    paired = {"index": index} if "index" in inspect.signature(claim.measure).parameters else {}
    return _piece(lambda: claim.measure(seen, *_shared(module, code, scale, seed), rng=rng, **paired), rng, f"measuring {module}")


@functools.lru_cache(maxsize=2)
def _shared(module: str, code: str, scale: str, seed: int) -> tuple[Any, ...]:
    """What predict and measure share, built once a process: nothing where the claim prepares nothing."""
    claim: Claim = importlib.import_module(module).CLAIM
    if claim.prepare is None:
        return ()
    rng = chance.generator(seed, _name(claim.prepare))
    with chance.scoped(chance.child(rng, "global")):
        return (claim.prepare(claim.scales[scale], rng=rng),)


def _piece(make: Callable[[], Any], rng: Any, doing: str) -> Piece:
    started, tick = datetime.datetime.now(datetime.UTC), time.perf_counter()
    piece: Piece = {"code": code_hash()[:16]}
    try:
        with chance.scoped(chance.child(rng, "global")):
            made = make()
        reading = made if isinstance(made, Reading) else Reading("", made, "")
        if not np.isfinite(reading.value).all():
            raise InvalidInput("a value is not finite")
        piece["reading"] = reading.to_json()
    except OutOfScope as error:
        piece["out_of_scope"] = str(error)
    except Exception as error:
        piece["error"] = _said(as_memory_error(error, doing) or error)
    return piece | {"run": {"at": started.isoformat(timespec="microseconds"), "seconds": time.perf_counter() - tick, "peak_bytes": peak_bytes()}}


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, GnomonError) else f"{type(error).__name__}: {error}"


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", "<")
    if "<" in name:
        raise InvalidInput(f"measure and prepare must be functions with a name at the top of a module, not {function!r}: their replicates are stored under it.")
    return f"{function.__module__}:{name}"


def _qualified(function: Callable[..., Any]) -> list[str]:
    """A function's name and the hash of the file that it stands in."""
    return [_name(function), hashlib.sha256(Path(inspect.getsourcefile(function) or "").read_bytes()).hexdigest()]


def settings_json(settings: Any) -> dict[str, Any]:
    """Settings as JSON types."""
    return jsonable(dataclasses.asdict(settings))


# From replicates to a verdict.


def stack(predicted: Reading, pieces: Sequence[Piece]) -> Reading:
    """Replicates as one Reading: the mean with Student's t over them, their `bound` errors carried; a single one is taken as it is.

    Raises: InvalidInput where replicates differ in shape.
    """
    readings = [Reading.from_json(piece["reading"]) for piece in pieces]
    first = readings[0]
    if not first.name:
        first = first.replace(name=predicted.name, unit=predicted.unit)
    if not first.axes and first.value.shape == predicted.value.shape:
        first = first.replace(axes=predicted.axes)
    if len(readings) == 1:
        return first
    if len({reading.value.shape for reading in readings}) > 1:
        raise InvalidInput(f"{first.name}: replicates have the shapes {sorted({reading.value.shape for reading in readings})}; measure must return one shape.")
    bounds = [reading.error for reading in readings if reading.error_kind in ("bound", "truncation")]
    return Reading.of_samples(
        first.name, np.stack([reading.value for reading in readings]), unit=first.unit, error_kind="seed", axes=first.axes, source=first.source, assumes=first.assumes,
        skipped=tuple(dict.fromkeys(text for reading in readings for text in reading.skipped)), details={"bound": np.mean(bounds, axis=0)} if bounds else {},
    )  # fmt: skip


def decide(claim: Claim, settings: Any, predicted: Reading, pieces: Sequence[Piece]) -> tuple[Reading | None, Verdict]:
    """The verdict on replicates, and the Reading that they make; the first that raised makes it `error`, or `out_of_scope`."""
    undecided: tuple[Outcome, ...] = ("error", "out_of_scope")
    for outcome in undecided:
        for piece in pieces:
            if outcome in piece:
                return None, Verdict(outcome, piece[outcome], claim.relation)
    try:
        measured = stack(predicted, pieces)
        tolerance = None if claim.tolerance is None else claim.tolerance.of(settings)
        return measured, judge(predicted, measured, relation=claim.relation, tolerance=tolerance, scale=claim.scale, trivial=claim.trivial)
    except Exception as error:
        return None, Verdict("error", _said(error), claim.relation)


def moved(true: Verdict, sabotaged: Verdict) -> float | None:
    """By how many tolerances the sabotage moves what is measured, the most of all elements; None where there is no tolerance to count in."""
    if true.gap is None or sabotaged.gap is None or np.shape(true.gap) != np.shape(sabotaged.gap):
        return None
    limit = np.broadcast_to(np.asarray(true.tolerance, dtype=np.float64), np.shape(true.gap))
    steps = np.abs(np.asarray(sabotaged.gap) - np.asarray(true.gap))[limit > 0] / limit[limit > 0]
    return float(steps.max()) if steps.size else None


def is_as_expected(claim: Claim, scale: str, outcome: str, sabotage: str | None) -> bool:
    """Whether a claim came out as it says, and its sabotage as it must: against a claim that holds, and for any other, as its control, holding.

    At `smoke` a claim that says that it cannot be decided there may be undecided, as long as its sabotage does not come out as the claim should.
    """
    must, never = ("fails", "holds") if claim.expected == "holds" else ("holds", "fails")
    if scale == "smoke" and claim.smoke is not None:
        return outcome in (claim.smoke, claim.expected) and sabotage not in (never, "error")
    return outcome == claim.expected and sabotage in (must, None if outcome == "out_of_scope" else must)


def _document(run: _Run, done: Mapping[tuple[str, str], Piece]) -> dict[str, Any]:
    """All that there is to say of a run; what may differ between two runs stands under `run`."""
    claim, prediction = run.claim, run.prediction
    document = _stated(run)
    predicted = Reading.from_json(prediction["reading"]).replace(role="predicted") if "reading" in prediction else None
    readings: dict[bool, Reading | None] = {False: None, True: None}
    verdicts: dict[bool, Verdict | None] = {False: None, True: None}
    if claim is not None and predicted is not None:
        for sabotage in (False, True):
            pieces = [done[run.keys[sabotage], str(index)] for index in range(run.count)]
            readings[sabotage], verdicts[sabotage] = decide(claim, run.settings, predicted, pieces)
    outcome: Outcome = "out_of_scope" if "out_of_scope" in prediction else "error"
    verdict = verdicts[False] or Verdict(outcome, prediction.get(outcome, ""), claim.relation if claim else "equal")
    document |= {"predicted": _json(predicted), "measured": _json(readings[False])} | verdict.to_json()
    if claim is not None:
        wrong = verdicts[True]
        document["sabotage"] |= {
            "measured": _json(readings[True]), "verdict": wrong.outcome if wrong else None, "why": wrong.why if wrong else "there is no prediction",
            "moved_tolerances": moved(verdict, wrong) if wrong else None,
        }  # fmt: skip
        document["as_expected"] = is_as_expected(claim, run.scale, verdict.outcome, wrong.outcome if wrong else None)
    pieces_run = [piece["run"] for piece in (prediction, *done.values()) if piece["run"]]
    return document | {
        "environment": environment(threads=run.threads, device="cpu"),
        "run": {
            "predicted_at": prediction["run"].get("at"), "measured_at": min((piece["run"]["at"] for piece in done.values()), default=None),
            "seconds": round(sum(entry["seconds"] for entry in pieces_run), 3), "peak_bytes": max((entry["peak_bytes"] for entry in pieces_run), default=0), "host": platform.node(),
        },
    }  # fmt: skip


def _json(reading: Reading | None) -> dict[str, Any] | None:
    return None if reading is None else reading.to_json()


def _stated(run: _Run) -> dict[str, Any]:
    """What is known of a claim before it is run."""
    listed, claim = run.listed, run.claim
    stated: dict[str, Any] = {"schema": SCHEMA, "scale": run.scale, "seed": run.seed, "code": listed.code_hash, "as_expected": False}
    stated |= {"settings": settings_json(run.settings) if run.settings is not None else None} | describe(listed, claim, run.scale)
    return stated


def describe(listed: Listed, claim: Claim | None, scale: str) -> dict[str, Any]:
    """A claim as its file states it; without the Claim, of a file that does not import, what can be read in the file.

    `formula` is the first LaTeX formula ($...$) in the file's docstring.
    """
    try:
        text = listed.statement
    except InvalidInput:
        text = ""
    formula = re.search(r"\$+(.+?)\$+", text, re.DOTALL)
    known: dict[str, Any] = {
        "claim": listed.id, "topic": listed.topic, "statement": listed.summary, "explanation": text.partition("\n\n")[2], "formula": formula.group(1).strip() if formula else None,
        "version": None, "entry": listed.entry, "source": None, "expected": "holds", "because": "", "relation": "equal", "tolerance_because": "", "sabotage": None,
    }  # fmt: skip
    if claim is None:
        return known
    return known | {
        "version": claim.version, "entry": claim.entry, "source": {"key": claim.source.key, "where": claim.source.where},
        "expected": claim.smoke if scale == "smoke" and claim.smoke is not None else claim.expected, "because": claim.because, "relation": claim.relation,
        "tolerance_because": claim.tolerance.because if claim.tolerance is not None else "the prediction's own truncation",
        "sabotage": {"because": claim.sabotage.because, "changes": jsonable(dict(claim.sabotage.changes))},
    }  # fmt: skip


def facts_of(listed: Listed) -> dict[str, Any]:
    """A claim as plain data, with its settings at every scale; `error` says why a file does not import."""
    try:
        claim, error = listed.load(), None
    except InvalidInput as caught:
        claim, error = None, str(caught)
    stated = describe(listed, claim, "standard")
    stated["id"] = stated.pop("claim")
    scales = {scale: settings_json(settings) for scale, settings in claim.scales.items()} if claim else {}
    return stated | {"scales": scales, "smoke": claim.smoke if claim else None, "code": listed.code_hash, "module": listed.module, "error": error}
