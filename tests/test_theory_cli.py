"""`gnomon theory`: critical points and the table of every layer, through the command line."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gnomon.cli.main import application
from gnomon.theory import effective
from gnomon.theory.activations import NAMED
from gnomon.theory.finite_width import layer_by_layer


def invoke(*words):
    return CliRunner().invoke(application(), ["theory", "effective", *map(str, words)])


def test_the_critical_point_as_json_and_as_text():
    result = invoke("--activation", "gelu", "--json")
    assert result.exit_code == 0, result.output
    point = json.loads(result.stdout)["critical_point"]
    assert (point["kind"], point["attracts"]) == ("half-stable", "above")
    assert point["weight_variance"] == pytest.approx(1.98305826, abs=5e-9)
    shown = invoke("--activation", "GELU")
    assert "C_W 1.98305826" in shown.stdout
    assert "those below go to K = 3.035" in shown.stdout
    assert "run away for good" in invoke("--activation", "mish").stdout
    assert "K = (2 l)^-1" in invoke("--activation", "tanh").stdout
    assert "K* any   C_W 2" in invoke("--activation", "relu").stdout


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_activation_has_a_point_or_a_reason(name):
    result = invoke("--activation", name)
    assert result.exit_code == 0, result.output
    assert ("chi_parallel = chi_perp = 1" in result.stdout) != ("there is no critical point" in result.stdout)


def test_where_there_is_none_the_reason_is_a_result():
    result = invoke("--activation", "sigmoid", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["critical_point"] is None
    assert "negative variance" in document["out_of_scope"]
    refused = invoke("--activation", "sigmoid", "--depth", 4, "--width", 9)
    assert refused.exit_code == 2
    assert "--weight-variance" in refused.stderr
    assert json.loads(invoke("--activation", "sigmoid", "--depth", 4, "--width", 9, "--weight-variance", 4, "--json").stdout)["network"]["kernel"] == 1


def test_the_table_is_that_of_the_theory():
    result = invoke("--activation", "tanh", "--depth", 5, "--width", 40, "--weight-variance", 1.5, "--bias-variance", 0.1, "--kernel", 0.8, "--json")
    network = json.loads(result.stdout)["network"]
    found = effective.expansion(torch.tanh, depth=5, weight_variance=1.5, bias_variance=0.1, kernel=0.8)
    by_name = {reading["name"]: reading for reading in network["readings"]}
    np.testing.assert_allclose(by_name["preactivation_variance"]["value"], found.kernel)
    np.testing.assert_allclose(by_name["four_point_vertex"]["value"], found.vertex / (40 * found.kernel**2))
    assert network["vacuous_from"] is None
    text = invoke("--activation", "relu", "--depth", 12, "--width", 8)
    assert len(text.stdout.splitlines()) == 4 + 1 + 3 + 12
    assert "off K*" in invoke("--activation", "gelu", "--depth", 2, "--width", 99, "--kernel", 1).stdout
    assert "off K*" not in invoke("--activation", "gelu", "--depth", 2, "--width", 99).stdout
    narrow = json.loads(invoke("--activation", "gelu", "--depth", 12, "--width", 8, "--json").stdout)
    assert narrow["network"]["vacuous_from"] == 3, "4.9 (l - 1)/8 reaches 1"


def test_the_depth_that_suits_a_width():
    document = json.loads(invoke("--activation", "relu", "--depth", 24, "--width", 128, "--outputs", 10, "--json").stdout)["aspect"]
    assert document["optimal_ratio"]["value"] == pytest.approx(0.016)
    assert 0 < document["optimal_residual"]["value"] < 1
    assert "12 times as deep; residual connections" in invoke("--activation", "relu", "--depth", 24, "--width", 128).stdout
    shallow = invoke("--activation", "relu", "--depth", 2, "--width", 1024)
    assert "8.2 times shallower" in shallow.stdout
    assert "residual" not in shallow.stdout
    assert "at least one output" in invoke("--activation", "relu", "--outputs", 0).stderr
    assert "aspect" not in json.loads(invoke("--activation", "sigmoid", "--json").stdout)


def test_susceptibilities_by_layer_are_derivatives_of_the_recursion():
    kernel, vertex, parallel, perpendicular = layer_by_layer(torch.sin, depth=3, width=100, weight_variance=1.4, bias_variance=0.1, kernel=0.9)
    step = 1e-4
    above, below = (effective.expansion(torch.sin, depth=2, weight_variance=1.4, bias_variance=0.1, kernel=0.9 + side * step).kernel[1] for side in (1, -1))
    assert parallel.value[0] == pytest.approx((above - below) / (2 * step), rel=1e-6)
    assert perpendicular.value[0] == pytest.approx(1.4 * (1 + np.exp(-2 * 0.9)) / 2, rel=1e-9), "<cos^2> = (1 + exp(-2K))/2"
    assert (vertex.value[0], kernel.error[1]) == (0, 0)


def test_an_activation_from_a_file_and_bad_input(tmp_path):
    (tmp_path / "act.py").write_text("import torch\n\ndef mine(z):\n    return torch.tanh(2 * z)\n")
    result = invoke("--activation", f"{tmp_path / 'act.py'}:mine", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["critical_point"]["weight_variance"] == pytest.approx(0.25)
    for words, says in (
        (("--activation", "gleu"), "Did you mean 'gelu'"), (("--activation", "tanh", "--depth", 3), "both --depth and --width"),
        (("--activation", "tanh", "--depth", 0, "--width", 3), "at least 1"), (("--activation", "tanh", "--depth", 3, "--width", 3, "--kernel", -1), "kernel"),
        (("--activation", "gelu", "--depth", 3, "--width", 9, "--kernel", 0.1), "cannot be 0.1 where C_b is 0.17"),
    ):  # fmt: skip
        refused = invoke(*words)
        assert refused.exit_code == 2, refused.output
        assert says in refused.stderr
