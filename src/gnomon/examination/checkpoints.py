"""A folder of checkpoints as a history: each one's weights are read, and the usual readings are taken of them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gnomon.core import registry, weights
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject
from gnomon.instruments.timing import one_gradient
from gnomon.run.budget import available_bytes
from gnomon.run.history import USUAL, Choice, History, Recorder, checked, head_of
from gnomon.run.interrupt import interruptible
from gnomon.run.plan import affordable, make_plan, seconds_per_example, unmet
from gnomon.run.store import Store, key_of

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
INSIDE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What holds the weights in a checkpoint that is a folder, as the Hugging Face Trainer writes it."""
SHARE = 0.25
"""The part of the budget that is spent on checkpoints."""
STEP = re.compile(r"(?:step|steps|iter|iteration|checkpoint|ckpt)[=_-]?(\d+)", re.IGNORECASE)
EPOCH = re.compile(r"epoch[=_-]?(\d+)", re.IGNORECASE)
BARE = re.compile(r"(?:^|[_=-])(\d+)$")

Skipped = list[dict[str, str]]


def history(
    subject: Subject, folder: Path, *, budget: float, seed: int, threads: int, store: Store, identity: Any, progress: Callable[[float, str], None],
    readings: Sequence[Mapping[str, Any]] = (),
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """The readings of every checkpoint in a folder that fits the network, in the order of their steps, and the store's key of what is pending.

    Files that are no checkpoints, or another network's, are named in `skipped`; uneven steps in `notes`.  `readings` repeats an earlier report's choice.
    Cost: `budget` seconds.   Raises: InvalidInput where no file fits.
    """
    axis, files, skipped = checkpoints_in(folder)
    key = key_of("checkpoints", identity, budget, [[step, str(path), path.stat().st_size, path.stat().st_mtime_ns] for step, path in files])
    chosen = store.piece(key, "plan") or ({"choices": list(readings), "skipped": []} if readings else _chosen(subject, budget / len(files), seed, threads))
    store.put_piece(key, "plan", chosen)
    recorder = Recorder(subject, [Choice(**choice) for choice in chosen["choices"]], seed=seed)
    made = History(head_of(subject, recorder.choices, kind="checkpoints", settings={"axis": axis, "seed": seed, "budget": budget}, threads=threads))
    blank = copy.deepcopy(subject.module)
    for number, (step, path) in enumerate(files):
        progress(number / len(files), f"checkpoint {_name(path, folder)}")
        piece = store.piece(key, f"{step}")
        if piece is None:
            try:
                state = weights.fit(read_weights(path), blank, what=f"weights in {_name(path, folder)}")
            except InvalidInput as error:
                skipped.append({"what": _name(path, folder), "why": str(error)})
                continue
            with interruptible():
                piece = recorder.record(state, step)
            store.put_piece(key, f"{step}", piece)
        made.add(piece)
    if not made.steps:
        reasons = "; ".join(f"{entry['what']}: {entry['why']}" for entry in skipped[:3])
        raise InvalidInput(f"No checkpoint in {folder} fits the network. {reasons}" + (f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""))
    for entry in skipped:
        logging.getLogger(__name__).warning("skipped %s: %s", entry["what"], entry["why"])
    made.head["skipped"], made.head["notes"] = [*skipped, *chosen["skipped"]], list(_gaps(made.steps, axis))
    return dict(checked(made.document())), key


def checkpoints_in(folder: Path) -> tuple[str, list[tuple[int, Path]], Skipped]:
    """`step` or `epoch`, the files of weights with their numbers in rising order, and what else lies in the folder with the reason why it is not read.

    The number is the one after `step`, `iter` or `checkpoint`, that at the end of the name, or else that after `epoch`.  Hidden files are passed over.
    Raises: InvalidInput for no folder, and for one without checkpoints.
    """
    if not folder.is_dir():
        raise InvalidInput(f"There is no folder {folder}; give the one that holds the checkpoints.")
    found: dict[str, list[tuple[int, Path]]] = {"step": [], "epoch": []}
    skipped: Skipped = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        held, why = _weights_file(path)
        kind, number = number_of(path.name if path.is_dir() else path.stem)
        if held is None or number is None:
            skipped.append({"what": path.name, "why": why or "its name has no step, such as step_100 or epoch=3-step=300"})
        else:
            found[kind].append((number, held))
    axis = "step" if found["step"] else "epoch"
    if axis == "step":
        skipped.extend({"what": path.name, "why": "its name has an epoch and no step, unlike the others"} for _, path in found["epoch"])
    kept: dict[int, Path] = {}
    for number, path in found[axis]:
        if number in kept:
            skipped.append({"what": _name(path, folder), "why": f"{_name(kept[number], folder)} is of the same {axis}"})
        else:
            kept[number] = path
    if not kept:
        there = "it is empty" if not skipped else f"{skipped[0]['what']}: {skipped[0]['why']}"
        raise InvalidInput(
            f"There are no checkpoints in {folder} ({there}). Expected files such as step_100.safetensors, epoch=3-step=300.ckpt, 0100.pt, or folders checkpoint-500."
        )
    return axis, sorted(kept.items()), skipped


def number_of(name: str) -> tuple[str, int | None]:
    """What a checkpoint's name says: (`step`, 300), (`epoch`, 3), or (`step`, None)."""
    for kind, pattern in (("step", STEP), ("step", BARE), ("epoch", EPOCH)):
        if pattern is BARE and EPOCH.search(name):
            continue
        if match := pattern.search(name):
            return kind, int(match.group(1))
    return "step", None


def _weights_file(path: Path) -> tuple[Path | None, str]:
    """The file with a checkpoint's weights, or why there is none."""
    if path.is_dir():
        inside = next((path / name for name in INSIDE if (path / name).is_file()), None)
        return inside, "" if inside else f"a folder without {INSIDE[0]} or {INSIDE[2]}"
    return (path, "") if path.is_file() and path.suffix in SUFFIXES else (None, "not a file of weights (.safetensors, .pt, .pth, .ckpt, .bin)")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, or in the files that an index names; nothing pickled is run.  Raises: InvalidInput."""
    if path.suffix != ".json":
        return weights.read(path)
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a name that leaves the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} is not an index of weights ({type(error).__name__}: {error}).") from error
    out: dict[str, Tensor] = {}
    for name in names:
        out |= weights.read(path.parent / name)
    return out


def _name(path: Path, folder: Path) -> str:
    """A file as seen from the folder; a checkpoint that is a folder goes by its own name."""
    return path.relative_to(folder).parts[0]


def _chosen(subject: Subject, budget: float, seed: int, threads: int) -> dict[str, Any]:
    """The usual readings, on as many examples and at such settings as the budget for one checkpoint buys, and what it does not buy."""
    known = registry.instruments()
    wanted = {name: known[name] for name in USUAL if name != "preconditioned_sharpness" and unmet(subject, known[name], "end") is None}
    # what a reading shares its work with is planned too, since it carries the cost, and then not recorded
    leaders = {shared: known[shared] for instrument in wanted.values() if (shared := instrument.shares)}
    per_example = seconds_per_example(subject, one_gradient, rng=chance.generator(seed, "timing"))
    gradients = affordable(max(budget, 1e-3), per_example, len(subject.train))
    plan = make_plan(subject, wanted | leaders, gradients=gradients, budget=budget, seed=seed, threads=threads, memory=available_bytes())
    chosen = [Choice(entry.instrument, entry.settings(), entry.examples, 1, entry.gradients) for entry in plan.entries if entry.instrument in wanted and entry.at == "end"]
    if not chosen:
        raise InvalidInput(f"The budget does not reach for one reading of each checkpoint ({1000 * budget:.0f} ms each): give a larger --budget, or a folder with fewer of them.")
    left_out = [{"what": f"{what.replace('_', ' ')} of checkpoints", "why": why} for what, _, why in plan.skipped if what in wanted]
    return {"choices": [dataclasses.asdict(choice) for choice in chosen], "skipped": left_out}


def _gaps(steps: Sequence[int], axis: str) -> Iterator[str]:
    """Where checkpoints are missing: steps farther apart than one and a half times the usual distance."""
    apart = [b - a for a, b in itertools.pairwise(steps)]
    usual = statistics.median(apart) if apart else 0
    wide = [(a, b) for a, b in itertools.pairwise(steps) if b - a > 1.5 * usual]
    if wide:
        first = ", ".join(f"{a:,} and {b:,}" for a, b in wide[:3]) + (f" and {len(wide) - 3} more places" if len(wide) > 3 else "")
        yield f"no checkpoint between {axis}s {first}; the others are about {usual:,.0f} apart"
