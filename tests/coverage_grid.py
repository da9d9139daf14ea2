"""The whole grid of coverage: every instrument on every small network, in float32 and float64; prints a Markdown table.  Run by `make coverage`."""

from __future__ import annotations

import sys
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


def table() -> str:
    names = [*(build.__name__ for build in NETWORKS), *(f"{build.__name__}, half" for build in HALVES)]
    lines = ["| instrument | dtype | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for name, instrument in registry.instruments().items():
        if instrument.truth is None:
            continue
        for dtype in (torch.float32, torch.float64):
            row = [cell(instrument, build, dtype) for build in NETWORKS] + [cell(instrument, build, dtype, half=True) for build in HALVES]
            lines.append(f"| {name} | {str(dtype).removeprefix('torch.')} | " + " | ".join(row) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    with fixed_threads(1):
        text = table()
    note = (
        f"# Coverage of the stated 95 % intervals\n\nPer cent of {DRAWS} draws, at each instrument's smallest setting, in which the interval holds the exact value "
        f"(an array's elements averaged). Every network has {EXAMPLES} examples; `half`: each draw sees a fresh half of them and its interval is for all. "
        "A `bound` must hold always. Binomial error: 1.5 points. "
        "`n/a`: the instrument has nothing to measure there. Made by `make coverage`.\n\n"
    )
    Path("docs").mkdir(exist_ok=True)
    Path("docs/coverage.md").write_text(note + text + "\n", encoding="utf-8")
