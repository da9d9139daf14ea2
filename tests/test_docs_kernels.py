"""The page on kernels: its code runs, at a smaller size, and prints as many lines as the page shows."""

import contextlib
import io
import re
from pathlib import Path

import torch

PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
SMALL = {"N, TESTS = 1000, 500": "N, TESTS = 200, 60", "x[:300], y[:300]": "x[:60], y[:60]"}


def test_the_page_runs():
    text = PAGE.read_text(encoding="utf-8")
    parts = re.findall(r"^```(python|)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    threads, space = torch.get_num_threads(), {"__name__": "page"}
    try:
        for (kind, code), (after, shown) in zip(parts, [*parts[1:], ("python", "")], strict=True):
            if kind != "python":
                continue
            for large, small in SMALL.items():
                code = code.replace(large, small)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(code, str(PAGE), "exec"), space)
            lines = len(shown.splitlines()) if after == "" else 0
            made = len(out.getvalue().splitlines())
            assert made == lines or "for n in (16" in code, code
    finally:
        torch.set_num_threads(threads)
    assert all(large in text for large in SMALL)
    assert space["posterior"].mean.shape == (60, 10)
    assert space["solved"].method == "conjugate gradients"
