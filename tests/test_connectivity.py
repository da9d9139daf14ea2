"""Curves between networks: barriers in closed form, a fitted curve round a hill, and batch normalisation on the way."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject
from gnomon.instruments import connectivity
from gnomon.instruments.connectivity import Curve, along, barrier, fit_curve, segment
from gnomon.numerics.operators import loss_value
from gnomon.numerics.parameter_space import at_vector, parameters_of


class Product(nn.Module):
    """f(x) = u v x: with targets x the loss is (u v - 1)^2 E x^2, whose minima are the two branches of a hyperbola."""

    def __init__(self, u, v):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([u, v], dtype=torch.float64))

    def forward(self, x):
        return self.weights[0] * self.weights[1] * x


def hyperbola(u, v):
    inputs = torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    return Subject.freeze(Product(u, v), "mse", (inputs, inputs), (inputs[:4], inputs[:4])), float(inputs.square().mean())


def classifier(seed, norm=False):
    with chance.scoped(chance.generator(seed, "net")):
        layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Linear(8, 3)]
        model = nn.Sequential(*layers).double()
    inputs, labels = chance.normal(40, 6, rng=chance.generator(1)), chance.integers(3, 40, rng=chance.generator(2))
    return Subject.freeze(model, "cross_entropy", (inputs, labels), (inputs[:10], labels[:10]), chunk=7)


def test_the_barrier_between_two_minima_of_a_product():
    """From (4, 1/4) to (1/4, 4): u v - 1 = t (1 - t) (4 - 1/4)^2, largest in the middle."""
    subject, scale = hyperbola(4.0, 0.25)
    profile = along(subject, segment(subject, {"weights": torch.tensor([0.25, 4.0])}), points=9)
    t = np.linspace(0, 1, 9)
    assert profile["train_loss"].value == pytest.approx(scale * (t * (1 - t) * 3.75**2) ** 2, abs=1e-12)
    assert float(barrier(profile["train_loss"])) == pytest.approx(scale * (3.75**2 / 4) ** 2)
    assert set(profile) == {"train_loss", "test_loss"}


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("chain", 1), ("chain", 3)])
def test_a_fitted_curve_goes_round_the_hill(kind, bends):
    subject, _scale = hyperbola(4.0, 0.25)
    other = {"weights": torch.tensor([0.25, 4.0])}
    straight = float(barrier(along(subject, segment(subject, other))["train_loss"]))
    curve = fit_curve(subject, other, rng=chance.generator(0), kind=kind, bends=bends, steps=600, lr=0.02)
    assert len(curve.points) == bends + 2
    assert torch.equal(curve.at(0.0), parameters_of(subject))
    # a chain of two straight pieces, or a parabola, cannot lie on the hyperbola; its best has a twentieth of the barrier
    assert float(barrier(along(subject, curve)["train_loss"])) < straight / 20


def test_the_gradient_of_a_curve_is_that_of_its_mean_loss():
    """One step without momentum moves an inner point by -lr c(t) grad L(phi(t)), checked by finite differences of L(phi(t)) over that point."""
    subject, other = classifier(0), classifier(5)
    rng, lr = chance.generator(0), 1e-3
    before, after = (fit_curve(subject, other, rng=rng, steps=steps, lr=lr, momentum=0.0, batch_size=40) for steps in (0, 1))
    t = float(chance.uniform(1, rng=chance.child(rng, "t", 0)))
    step = (before.points - after.points)[1] / lr
    direction, h = chance.normal(len(step), rng=chance.generator(9)), 1e-6
    moved = [loss_value(at_vector(subject, Curve(before.points + sign * h * torch.stack([0 * direction, direction, 0 * direction]), "bezier").at(t))) for sign in (1, -1)]
    assert (moved[0] - moved[1]) / (2 * h) == pytest.approx(float(step @ direction), rel=1e-6)


def test_the_coefficients_of_curves():
    points = torch.tensor([[0.0], [1.0], [0.0], [-1.0]], dtype=torch.float64)
    for t in (0.0, 0.2, 1 / 3, 0.75, 1.0):
        chain, bezier = Curve(points), Curve(points, "bezier")
        assert float(chain.at(t)) == pytest.approx(np.interp(t, [0, 1 / 3, 2 / 3, 1], points[:, 0].numpy()), abs=1e-12)
        # de Casteljau's construction
        rows = points
        while len(rows) > 1:
            rows = (1 - t) * rows[:-1] + t * rows[1:]
        assert float(bezier.at(t)) == pytest.approx(float(rows), abs=1e-12)
        assert float(bezier.coefficients(t).sum()) == pytest.approx(1.0)


def test_error_is_counted_and_splits_do_not_matter():
    subject, other = classifier(0), classifier(5)
    profile = along(subject, segment(subject, other), points=5)
    again = along(subject.with_chunk(40), segment(subject, other), points=5)
    assert set(profile) == {"train_loss", "train_error", "test_loss", "test_error"}
    with torch.no_grad():
        wrong = [float((s.module(s.train.blocks[0].inputs).argmax(1) != s.train.blocks[0].targets).double().mean()) for s in (subject, other)]
    assert profile["train_error"].value[[0, -1]] == pytest.approx(wrong)
    for name, reading in profile.items():
        assert reading.value == pytest.approx(again[name].value, rel=1e-12)


def test_batch_normalisation_uses_the_statistics_of_the_point():
    subject, other = classifier(0, norm=True), classifier(5, norm=True)
    buffers = {key: value.clone() for key, value in subject.state.items()}
    curve = fit_curve(subject, other, rng=chance.generator(0), steps=3, batch_size=16)
    profile = along(subject, curve, points=3)["train_loss"]
    middle = at_vector(subject, curve.at(0.5))
    inputs, labels = subject.train.blocks[0].inputs, subject.train.blocks[0].targets
    hidden = inputs @ middle.state["0.weight"].T + middle.state["0.bias"]
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt() * middle.state["1.weight"] + middle.state["1.bias"]
    exact = torch.nn.functional.cross_entropy(hidden.relu() @ middle.state["3.weight"].T + middle.state["3.bias"], labels)
    assert profile.value[1] == pytest.approx(float(exact), rel=1e-10)
    assert "1" in profile.assumes[0]
    assert all(torch.equal(value, subject.state[key]) for key, value in buffers.items())
    assert not any(layer.training for layer in subject.module.modules())


def test_a_summed_loss_takes_steps_of_the_mean():
    inputs = chance.normal(12, 3, rng=chance.generator(1))
    ends = [nn.Linear(3, 1).double() for _ in range(2)]
    curves = []
    for reduction in ("mean", "sum"):
        subject = Subject.freeze(ends[0], nn.MSELoss(reduction=reduction), (inputs, inputs[:, :1]))
        curves.append(fit_curve(subject, ends[1], rng=chance.generator(0), steps=5, batch_size=4))
    assert torch.allclose(curves[0].points, curves[1].points)


def test_the_barrier_is_above_the_line_between_unequal_ends():
    def profile(values):
        from gnomon.core.reading import Axis

        return Reading("train_loss", values, "loss", axes=(Axis("t", tuple(np.linspace(0, 1, len(values)).tolist())),))

    assert float(barrier(profile([0.0, 0.5, 1.0]))) == 0.0
    assert float(barrier(profile([0.0, 2.0, 1.0]))) == 1.5
    assert float(barrier(profile([1.0, -2.0, 0.0]))) == 0.0
    with pytest.raises(InvalidInput, match="profile along t"):
        barrier(Reading("train_loss", 1.0, "loss"))


BAD = [
    (lambda s: segment(s, s), "same network"),
    (lambda s: fit_curve(s, dict(s.state), rng=chance.generator(0)), "same network"),
    (lambda s: segment(s, {**s.state, "0.weight": torch.zeros(8, 5)}), "shape"),
    (lambda s: fit_curve(s, classifier(5), rng=chance.generator(0), kind="beziers"), "Did you mean 'bezier'"),
    (lambda s: fit_curve(s, classifier(5), rng=chance.generator(0), bends=0), "at least 1"),
    (lambda s: fit_curve(s, classifier(5), rng=chance.generator(0), lr=1e200, steps=50), "diverged|NaN"),
    (lambda s: along(s, segment(s, classifier(5)), points=2), "three points"),
    (lambda s: segment(s, classifier(5)).at(1.5), "outside"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InvalidInput, match=message):
        call(classifier(0))


def test_a_profile_is_drawn():
    subject = classifier(0)
    profile = along(subject, segment(subject, classifier(5)), points=4)
    assert profile["train_loss"].plot().get_xlabel() == "t"
    assert math.isfinite(float(connectivity.barrier(profile["test_error"])))
