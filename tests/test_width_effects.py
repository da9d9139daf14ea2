"""What finite width does to a network as it is declared: closed forms, re-drawn networks, the error bars of the measurement, and the rows of the report."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core import architecture, contract, registry
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.examination import width_effects as chapter
from gnomon.instruments import width_effects as instrument
from gnomon.theory.effective import tensors
from gnomon.theory.width_effects import KERNEL, STEP, width_effects


def mlp(activation, *sizes):
    return nn.Sequential(*[layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())][:-1]).double()


def subject(make, shape, examples=16):
    x = chance.normal(examples, *shape, rng=chance.generator(3, "inputs"))
    with chance.scoped(chance.generator(0)):
        model = make()
    return Subject.freeze(model, lambda output, targets: output.square().mean(), (x, torch.zeros(examples)), make=make)


def test_hidden_layers_of_unequal_widths_add_what_their_own_units_add():
    """Linear layers at C_W = 1: V/n = 2 K^2 sum 1/n_l; and A of the kernel, whose layers add K^2 each at rate 1, from its own recursion by hand."""
    widths = (10, 40, 25)
    found = tensors(lambda z: z, kernel=1.5, depth=4, weight_variance=1.0, weight_rates=[1.0, 2.0, 0.5, 1.0], bias_rates=0.0, widths=widths, through="ntk")
    n = 3 / sum(1 / w for w in widths)
    assert float(found.V[-1].squeeze()) / n == pytest.approx(2 * 1.5**2 * sum(1 / w for w in widths))
    # H' = lambda k + (sum of w^2 over the row) H: Var and Cov over networks to first order, for any widths
    k, theta, v, d, a = 1.5, 1.5, 0.0, 0.0, 0.0
    for rate, w in zip((2.0, 0.5, 1.0), widths, strict=True):
        v, d, a = v + 2 * k**2 / w, d + rate * (v + 2 * k**2 / w), a + 2 * rate * d + rate**2 * (v + 2 * k**2 / w)
        theta += rate * k
    assert float(found.V[-1].squeeze()) / n == pytest.approx(v)
    assert float(found.ntk[-1].squeeze()) == pytest.approx(theta)
    assert float(found.D[-1].squeeze()) / n == pytest.approx(d)
    assert float(found.A[-1].squeeze()) / n == pytest.approx(a)
    for wrong in ((10, 40), (10, 0, 25)):
        with pytest.raises(InvalidInput, match="hidden layers"):
            tensors(lambda z: z, kernel=1.5, depth=4, weight_variance=1.0, widths=wrong)


@pytest.mark.parametrize(("activation", "sizes"), [(nn.Tanh, (40, 50, 30, 4)), (nn.GELU, (30, 40, 60, 50, 1)), (nn.ReLU, (40, 60, 40, 2))])
def test_re_drawn_networks_do_as_predicted(activation, sizes):
    """PyTorch's own initialisation: uniform weights, biases, unequal widths, every parameter at one rate."""
    drawn = subject(lambda: mlp(activation, *sizes), sizes[:1])
    measured = registry.get_instrument("width_effects")(drawn, rng=chance.generator(1), draws=300)
    predicted = width_effects(architecture.of(drawn), square=measured.details["square"], biases=measured.details["biases"])
    count = len(predicted.value)
    assert (STEP in predicted.axes[0].values) == (activation is not nn.ReLU)
    gaps = np.abs(measured.value[:count] - predicted.value)
    assert (gaps <= predicted.error + 3.5 * measured.error[:count]).all()
    assert (predicted.value[:-1] > 4 * measured.error[: count - 1]).all(), "the measurement sees what is predicted"
    if activation is nn.ReLU:
        assert measured.value[-1] < -3 * measured.error[-1]


def test_deep_layers_whose_biases_are_most_of_the_signal():
    """PyTorch's are uniform: their squares vary by 0.8, not by 2 as those of normal ones."""
    sizes = (20, *[100] * 5, 2)
    drawn = subject(lambda: mlp(nn.GELU, *sizes), sizes[:1])
    measured = registry.get_instrument("width_effects")(drawn, rng=chance.generator(1), draws=200)
    predicted = width_effects(architecture.of(drawn), square=measured.details["square"], biases=measured.details["biases"])
    gaps, deep = np.abs(measured.value[:5] - predicted.value[:5]), predicted.value[3:5]
    assert (gaps <= predicted.value[:5] ** 2 + 3.5 * measured.error[:5]).all()
    assert (deep < 1.6 / 100).all(), "normal biases, and GELU of slope 1/2 near 0, would have some 2/100"
    assert predicted.details["biases"] > 0.4
    rows = [row.settle() for row in chapter.rows(architecture.of(drawn), measured)]
    assert rows[0][0].outcome != "fails"
    assert "biases are most of the signal" in rows[1][1]


def test_exact_where_it_is_known_and_what_is_refused():
    linear = architecture.read(nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)), torch.zeros(2, 5))
    found = width_effects(linear, square=1.0, biases=[False] * 3)
    np.testing.assert_allclose(found.value[:2], [(1 + 5 / 8) - 1, (1 + 5 / 8) * (1 + 5 / 4) - 1])
    assert (found.error[:2] == 0).all()
    with pytest.raises(InvalidInput, match="zero"):
        width_effects(linear, square=0.0, biases=[False] * 3)
    zeros = Subject.freeze(mlp(nn.Tanh, 3, 4, 2), lambda output, targets: output.square().mean(), (torch.zeros(4, 3).double(), torch.zeros(4)), make=lambda: mlp(nn.Tanh, 3, 4, 2))
    with pytest.raises(OutOfScope, match="all 0"):
        instrument.width_effects(zeros, rng=chance.generator(0))


@pytest.mark.parametrize(
    ("layers", "shape", "says"),
    [
        ((nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)), (1, 5, 5), "`0` is a convolution"),
        ((nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)), (5,), "`1`"),
        ((nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), (5,), "before `4` is another"),
    ],
)
def test_the_layer_that_is_not_covered_is_named(layers, shape, says):
    drawn = subject(lambda: nn.Sequential(*layers).double(), shape)
    (row,) = chapter.rows(architecture.of(drawn), None)
    assert row.settle()[0].outcome == "out_of_scope"
    assert says in row.settle()[0].why
    if "another" not in says:
        with pytest.raises(OutOfScope, match="`[01]`"):
            instrument.width_effects(drawn, rng=chance.generator(0))


def test_the_rows_of_the_report():
    def settled(activation, *sizes, draws=200):
        drawn = subject(lambda: mlp(activation, *sizes), sizes[:1])
        return [(row.title, *row.settle()) for row in chapter.rows(architecture.of(drawn), instrument.width_effects(drawn, rng=chance.generator(2), draws=draws))]

    signal, kernel, learning = settled(nn.Tanh, 40, 64, 64, 10, draws=300)
    assert (signal[0], kernel[0], learning[0]) == (chapter.SIGNAL, chapter.FLUCTUATION, chapter.LEARNING)
    assert {row[1].outcome for row in (signal, kernel, learning)} <= {"holds", "inconclusive"}
    assert learning[1].outcome == "holds"
    assert "features move" in learning[2]
    assert settled(nn.ReLU, 40, 64, 64, 10, draws=40)[2][1].outcome == "out_of_scope"
    deep = settled(nn.Tanh, 8, *[6] * 9, 2, draws=40)
    assert deep[1][1].outcome == "vacuous"
    assert "too deep for its width" in deep[1][2]


def test_the_contract_is_kept_on_a_network_that_is_covered():
    tiny = subject(lambda: mlp(nn.Tanh, 4, 6, 2), (4,))
    found = registry.get_instrument("width_effects")
    for check in contract.CHECKS:
        check(found, tiny)
    assert contract.take(found, tiny).axes[0].values == ("2", KERNEL, STEP)


@pytest.mark.parametrize("degrees", [8, 40])
def test_the_stated_intervals_cover_the_relative_variance(degrees):
    """Of a chi-square of k degrees, as the squared norm of a layer is: 2/k, at the fewest networks that a plan gives."""
    smallest, inside = registry.get_instrument("width_effects").smallest, []
    for index in range(1000):
        drawn = chance.normal(smallest, degrees, rng=chance.generator(index, "chi")).square().sum(1).numpy()
        value, error = instrument.jackknife(lambda p, q: p / q**2 - 1, drawn**2, drawn)
        low, high = instrument.intervals(np.array([value, 0.0]), np.array([error, 0.0]), smallest)
        inside.append(low[0] <= 2 / degrees <= high[0])
    assert 0.90 <= np.mean(inside) <= 0.99
