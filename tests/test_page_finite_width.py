"""The page `docs/finite_width.md`: its code runs, at a small size."""

import re
from pathlib import Path

import pytest
import torch

from gnomon.core import rng as chance
from gnomon.data import images

PAGE = Path(__file__).parents[1] / "docs" / "finite_width.md"


def test_the_code_of_the_page_runs(monkeypatch, capsys):
    def drawn():
        rng = chance.generator(0, "images")
        return tuple((chance.normal(n, 1, 28, 28, rng=rng).float(), chance.integers(10, n, rng=rng)) for n in (60, 20))

    monkeypatch.setattr(images, "fashion_mnist", drawn)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    for large, small in (("10_000, 3", "60, 1"), ("members=2_000", "members=200"), ("depth=30", "depth=5"), ("30, 128", "5, 16"), ("(0.5, 1, 2, 4)", "(1,)")):
        assert large in code
        code = code.replace(large, small)
    with chance.preserved():
        exec(compile(code, str(PAGE), "exec"), {})
    shown = capsys.readouterr().out
    assert shown.count("test accuracy") == 2
    found = re.search(r"NTK ([\d.]+) ± ([\d.]+), predicted ([\d.]+) up to ([\d.]+)", shown)
    value, error, predicted, next_order = map(float, found.groups())
    assert abs(value - predicted) < next_order + 4 * error


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "silu"])
def test_the_table_of_the_page_is_what_theory_says(name):
    from gnomon.theory.activations import named
    from gnomon.theory.aspect_ratio import optimal_ratio
    from gnomon.theory.criticality import critical_point

    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    point = critical_point(named(name))
    assert float(cells[2]) == pytest.approx(point.weight_variance, rel=3e-6)
    assert float(cells[3]) == pytest.approx(point.bias_variance, rel=3e-6)
    assert eval(cells[4].removesuffix(" l/n")) == pytest.approx(point.exponents.vertex_slope, rel=2e-3)
    assert float(cells[5]) == pytest.approx(float(optimal_ratio(named(name), outputs=10)), rel=0.03)
    assert torch.is_grad_enabled()
