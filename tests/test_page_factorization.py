"""The page `docs/factorization.md`: its code runs and prints what stands there."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "factorization.md").read_text(encoding="utf-8")


def numbers(text):
    return [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+", text)]


def test_the_code_of_the_page_prints_what_stands_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == TEXT.count("```python") == 4
    names = {}
    for code, shown in blocks:
        exec(compile(code, "page", "exec"), names)
        printed = capsys.readouterr().out
        assert re.sub(r"\d", "", printed) == re.sub(r"\d", "", shown)
        assert numbers(printed) == pytest.approx(numbers(shown), rel=2e-2, abs=0.02), "another processor may round another way"
