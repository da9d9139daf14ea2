"""The whole grid of coverage: every instrument on every small network, in float32 and float64; writes docs/coverage.md.  Run by `make coverage`.

Rows that are there already stay, so that a run that was cut goes on; `python tests/coverage_grid.py NAME ...` makes the rows of these instruments anew.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import torch
from networks import NETWORKS, cnn, tokens

from gnomon.core import contract, registry
from gnomon.core.environment import fixed_threads
from gnomon.core.errors import GnomonError
from gnomon.run.plan import unmet
from gnomon.studies.contract import prepared

DRAWS, EXAMPLES, HALVES = 200, 64, (cnn, tokens)


def cell(instrument, build, dtype, half=False) -> str:
    subject = prepared(instrument, build(dtype, n=EXAMPLES, chunk=EXAMPLES))
    if unmet(subject, instrument, "end") is not None:
        return "n/a"
    try:
        seen = contract.coverage(instrument, subject, draws=DRAWS, half=half)
    except GnomonError:
        return "n/a"
    if half and seen.error_kind != "sample":
        return "n/a"
    return f"{100 * seen.rate:.1f}" if seen.error_kind in ("probe", "sample", "seed", "fit") else f"{100 * seen.rate:.0f} ({seen.error_kind})"


def row(task: tuple[str, torch.dtype]) -> str:
    """One line of the table."""
    name, dtype = task
    instrument = registry.get_instrument(name)
    with fixed_threads(1):
        cells = [cell(instrument, build, dtype) for build in NETWORKS]
        cells += [cell(instrument, build, dtype, half=True) if dtype is torch.float64 else "-" for build in HALVES]
    return f"| {name} | {str(dtype).removeprefix('torch.')} | " + " | ".join(cells) + " |"


def tasks() -> list[tuple[str, torch.dtype]]:
    """Instruments that have a truth, those without a knob first."""
    known = sorted(registry.instruments().items(), key=lambda item: (item[1].knob is not None, item[0]))
    return [(name, dtype) for name, instrument in known if instrument.truth is not None for dtype in (torch.float64, torch.float32)]


def header() -> str:
    names = [*(build.__name__ for build in NETWORKS), *(f"{build.__name__}, half" for build in HALVES)]
    return "| instrument | dtype | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names)


NOTE = f"""# Coverage of the stated 95 % intervals

Per cent of {DRAWS} draws, at each instrument's smallest setting, in which the interval holds the exact value (an array's elements averaged).
Every network has {EXAMPLES} examples; `half`: each draw sees a fresh half of them and its interval is for all (in float64). A `bound` must hold always.
Binomial error: 1.5 points. `n/a`: the instrument has nothing to measure there. Made by `make coverage`.
"""


def written(path: Path) -> dict[tuple[str, str], str]:
    """The rows of an earlier run, by instrument and dtype."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {(parts[1], parts[2]): line for parts, line in zip(cells, lines, strict=True) if len(parts) > 3 and parts[2].startswith("float")}


def main(path: Path, again: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = {key: line for key, line in written(path).items() if key[0] not in again}
    keys = [(name, str(dtype).removeprefix("torch.")) for name, dtype in tasks()]
    missing = [task for task, key in zip(tasks(), keys, strict=True) if key not in rows]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for line in pool.imap_unordered(row, missing):
            print(line, file=sys.stderr, flush=True)
            rows |= {(line.split("|")[1].strip(), line.split("|")[2].strip()): line}
            path.write_text(NOTE + "\n" + header() + "\n" + "".join(rows[key] + "\n" for key in keys if key in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path("docs/coverage.md"), sys.argv[1:])
