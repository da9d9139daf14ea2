"""The whole grid of coverage: every instrument on every small network, in float32 and float64; writes docs/coverage.md.  Run by `make coverage`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from networks import NETWORKS, cnn, tokens

from gnomon.core import contract, registry
from gnomon.core.environment import fixed_threads
from gnomon.core.errors import GnomonError
from gnomon.run.plan import unmet

DRAWS, EXAMPLES, HALVES = 200, 64, (cnn, tokens)


def cell(instrument, build, dtype, half=False) -> str:
    subject = build(dtype, n=EXAMPLES, chunk=EXAMPLES)
    if unmet(subject, instrument, "end") is not None:
        return "n/a"
    try:
        seen = contract.coverage(instrument, subject, draws=DRAWS, half=half)
    except GnomonError:
        return "n/a"
    if half and seen.error_kind != "sample":
        return "n/a"
    return f"{100 * seen.rate:.1f}" if seen.error_kind in ("probe", "sample", "seed", "fit") else f"{100 * seen.rate:.0f} ({seen.error_kind})"


def rows() -> Iterator[str]:
    """The table line by line, cheap instruments first."""
    names = [*(build.__name__ for build in NETWORKS), *(f"{build.__name__}, half" for build in HALVES)]
    yield "| instrument | dtype | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for name, instrument in sorted(registry.instruments().items(), key=lambda item: (item[1].knob is not None, item[0])):
        if instrument.truth is None:
            continue
        for dtype in (torch.float32, torch.float64):
            row = [cell(instrument, build, dtype) for build in NETWORKS] + [cell(instrument, build, dtype, half=True) for build in HALVES]
            yield f"| {name} | {str(dtype).removeprefix('torch.')} | " + " | ".join(row) + " |"


NOTE = f"""# Coverage of the stated 95 % intervals

Per cent of {DRAWS} draws, at each instrument's smallest setting, in which the interval holds the exact value (an array's elements averaged).
Every network has {EXAMPLES} examples; `half`: each draw sees a fresh half of them and its interval is for all. A `bound` must hold always.
Binomial error: 1.5 points. `n/a`: the instrument has nothing to measure there. Made by `make coverage`.
"""

if __name__ == "__main__":
    Path("docs").mkdir(exist_ok=True)
    with fixed_threads(1), open("docs/coverage.md", "w", encoding="utf-8") as file:
        file.write(NOTE + "\n")
        for line in rows():
            print(line, file=sys.stderr, flush=True)
            file.write(line + "\n")
            file.flush()
