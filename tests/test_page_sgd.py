"""The page `docs/sgd_as_a_process.md`: its code runs and prints what stands there, and the functions that it names are there."""

import re
from pathlib import Path

import pytest

from gnomon.theory import dynamics

TEXT = (Path(__file__).parents[1] / "docs" / "sgd_as_a_process.md").read_text(encoding="utf-8")


def numbers(text):
    return [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+", text)]


def test_the_code_of_the_page_prints_what_stands_there(capsys):
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == TEXT.count("```python") == 4
    names = {}
    for code, shown in blocks:
        exec(compile(code, "page", "exec"), names)
        printed = capsys.readouterr().out
        assert re.sub(r"\d", "", printed) == re.sub(r"\d", "", shown)
        assert numbers(printed) == pytest.approx(numbers(shown), rel=1e-2), "another processor may round another way"


def test_the_functions_of_the_table_are_there():
    named = re.findall(r"`(\w+)(?:\(.*?\))?`", TEXT.partition("| prediction |")[2])
    assert len(named) > 15
    assert all(callable(getattr(dynamics, name)) for name in named)
