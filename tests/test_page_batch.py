"""The page `docs/batch_and_learning_rate.md`: its code runs, at a small size, and its numbers follow from each other."""

import re
from pathlib import Path

import pytest

from gnomon.core import rng as chance
from gnomon.theory.dynamics import lr_ratio, steps_ratio

PAGE = Path(__file__).parents[1] / "docs" / "batch_and_learning_rate.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    changes = [("(4, 8, 12, 16, 20)", "(1, 2)"), ("0.2, 40, range(5)", "2.4, 1, range(1)"), ("(0.1, 0.2, 0.3, 0.4, 0.6, 0.8)", "(0.1, 0.2)"), ("(16, 64, 256)", "(256,)")]
    for large, small in changes:
        assert large in code
        code = code.replace(large, small)
    with chance.preserved():
        exec(compile(code, str(PAGE), "exec"), {})
    shown = capsys.readouterr().out
    assert shown.count("noise scale ") == 3
    assert shown.count("| linear scaling |") == 2
    assert "batch 256: best lr 0." in shown


@pytest.mark.parametrize("batch", [16, 256])
def test_the_suggestions_of_the_page_are_what_theory_says(batch):
    noise = int(re.search(r"noise scale over the training: (\d+)", TEXT)[1])
    lr, steps = re.search(rf"batch +{batch}: lr ([\d.]+), ([\d.]+) times", TEXT).groups()
    assert float(lr) == pytest.approx(0.1 * lr_ratio(noise, 64, batch), abs=0.006)
    assert float(steps) == pytest.approx(steps_ratio(noise, 64, batch), abs=0.02)


def test_the_training_at_the_suggestions_took_about_the_steps_foretold():
    rows = re.findall(r"\| [\d.]+ \| [^|]+ \| ([\d.]+) \| [\d,]+ \| suggested: ([\d.]+) times", TEXT)
    assert len(rows) == 2
    for measured, foretold in rows:
        assert float(measured) == pytest.approx(float(foretold), rel=0.1)
