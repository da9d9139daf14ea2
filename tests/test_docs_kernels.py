"""The page on kernels: its code runs, at a smaller size and on drawn images, and prints as many lines as the page shows."""

import contextlib
import io
import re
from pathlib import Path

import torch

from gnomon.core import rng as chance
from gnomon.data import images

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
SMALL = {"N, TESTS = 1000, 500": "N, TESTS = 200, 60", "x[:300], y[:300]": "x[:60], y[:60]", "(16, 32, 64, 128)": "(16,)"}


def drawn():
    rng = chance.generator(0, "images")
    return tuple((chance.normal(n, 1, 28, 28, rng=rng).float(), chance.integers(10, n, rng=rng)) for n in (200, 60))


def test_the_page_runs(monkeypatch):
    monkeypatch.setattr(images, "fashion_mnist", drawn)
    text = PAGE.read_text(encoding="utf-8")
    parts = re.findall(r"^```(python|)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    threads, space = torch.get_num_threads(), {"__name__": "page"}
    try:
        for (kind, code), (after, shown) in zip(parts, [*parts[1:], ("python", "")], strict=True):
            if kind != "python":
                continue
            small = code
            for large in SMALL:
                small = small.replace(large, SMALL[large])
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(small, str(PAGE), "exec"), space)
            lines = len(shown.splitlines()) if after == "" else 0
            assert len(out.getvalue().splitlines()) == (1 if "(16, 32" in code else lines), code
    finally:
        torch.set_num_threads(threads)
    assert all(large in text for large in SMALL)
    assert space["posterior"].mean.shape == (60, 10)
    assert space["solved"].method == "conjugate gradients"
