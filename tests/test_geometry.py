"""Sharpness in a ball, slices, trajectories and local entropy, against closed forms on quadratic losses and against rescaled networks."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.reading import Axis, Reading
from gnomon.core.subject import Subject
from gnomon.instruments import geometry, slices
from gnomon.numerics import dense
from gnomon.numerics.operators import loss_value
from gnomon.numerics.parameter_space import at_vector, parameters_of, refreshed
from gnomon.report.figure import describe
from gnomon.report.svg import draw

DIMENSION = 6


def quadratic(offset=0.0):
    """Least squares y = X w: the loss is quadratic with Hessian 2 X'X / n, its minimum at w = 1 of height 0; `offset` moves the network away from it."""
    inputs = chance.normal(40, DIMENSION, rng=chance.generator(0, "x")) * torch.arange(1.0, DIMENSION + 1)
    model = nn.Linear(DIMENSION, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0 + offset)
    subject = Subject.freeze(model, "mse", (inputs, inputs.sum(1, keepdim=True)))
    return subject, 2 * inputs.T @ inputs / len(inputs)


def relu_network(seed=0):
    with chance.scoped(chance.generator(seed, "relu")):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    images, labels = chance.normal(20, 1, 4, 4, rng=chance.generator(1)), chance.integers(3, 20, rng=chance.generator(2))
    return Subject.freeze(model, "cross_entropy", (images, labels))


def rescaled(subject, factors):
    """The same function: what enters unit i of the hidden linear layer times a_i, what leaves it over a_i."""
    state = dict(subject.state)
    state["3.weight"], state["3.bias"] = state["3.weight"] * factors[:, None], state["3.bias"] * factors
    state["5.weight"] = state["5.weight"] / factors
    return subject.at(state)


def test_average_sharpness_of_a_quadratic_is_its_trace():
    subject, hessian = quadratic()
    reading = geometry.average_sharpness(subject, rng=chance.generator(0), radius=0.3, probes=400)
    exact = 0.3**2 * float(hessian.trace()) / (2 * DIMENSION)
    assert reading.interval[0] < exact < reading.interval[1]
    assert reading.error < 0.1 * exact


def test_average_sharpness_does_not_see_the_gradient():
    flat, _ = quadratic()
    steep, _ = quadratic(offset=5.0)
    one, other = (geometry.average_sharpness(s, rng=chance.generator(0), radius=0.3, probes=4) for s in (flat, steep))
    assert one.samples == pytest.approx(other.samples, rel=1e-9)


def test_average_adaptive_sharpness_of_a_quadratic():
    subject, hessian = quadratic(offset=1.0)
    reading = geometry.average_sharpness(subject, rng=chance.generator(0), radius=0.1, probes=400, adaptive=True)
    exact = 0.1**2 * float((4 * hessian).trace()) / (2 * DIMENSION)
    assert reading.interval[0] < exact < reading.interval[1]


def test_worst_sharpness_at_a_minimum_is_that_of_the_largest_eigenvalue():
    subject, hessian = quadratic()
    reading = geometry.worst_sharpness(subject, rng=chance.generator(0), radius=0.3, steps=60)
    exact = 0.3**2 * float(torch.linalg.eigvalsh(hessian)[-1]) / 2
    assert float(reading) == pytest.approx(exact, rel=1e-8)
    assert reading.ends() == (float(reading), math.inf)


def test_worst_sharpness_on_a_slope_solves_the_trust_region_problem():
    subject, hessian = quadratic(offset=0.1)
    values, vectors = torch.linalg.eigh(hessian)
    gradient = vectors.T @ (hessian @ (parameters_of(subject) - 1))
    # max g'd + d'Hd/2 on |d| = rho: (mu - H) d = g with mu > lambda_max, found by bisection
    low, high = float(values[-1]) * (1 + 1e-12), float(values[-1]) + float(gradient.norm()) / 0.2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((gradient / (middle - values)).norm()) > 0.2 else (low, middle)
    step = gradient / (high - values)
    exact = float(gradient @ step + (values * step**2).sum() / 2)
    assert float(geometry.worst_sharpness(subject, rng=chance.generator(0), radius=0.2, steps=200)) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_adaptive_sharpness_of_a_quadratic(offset):
    subject, hessian = quadratic(offset)
    exact = (1 + offset) ** 2 * float(torch.linalg.eigvalsh(hessian)[-1])
    reading = geometry.adaptive_sharpness(subject, rng=chance.generator(0))
    assert abs(float(reading) - exact) <= float(reading.error)
    assert reading.error < 1e-4 * exact


def test_adaptive_sharpness_stays_under_rescaling_of_units_and_plain_sharpness_does_not():
    subject = relu_network()
    other = rescaled(subject, torch.tensor([0.1, 0.5, 2.0, 7.0, 30.0], dtype=torch.float64))
    assert loss_value(other) == pytest.approx(loss_value(subject), rel=1e-12)
    assert geometry.dense_adaptive_sharpness(other) == pytest.approx(geometry.dense_adaptive_sharpness(subject), rel=1e-9)
    assert dense.sharpness(other) > 10 * dense.sharpness(subject)
    for measure in (geometry.worst_sharpness, geometry.average_sharpness):
        plain = [float(measure(s, rng=chance.generator(3), radius=0.1)) for s in (subject, other)]
        adaptive = [float(measure(s, rng=chance.generator(3), radius=0.1, adaptive=True)) for s in (subject, other)]
        # the ascent's start from the centre is invariant, its random starts and the probes too: T u has the same meaning in both networks
        assert adaptive[0] == pytest.approx(adaptive[1], rel=1e-9)
        assert plain[1] > 3 * plain[0]


@pytest.mark.parametrize(
    ("by", "factors", "moves"), [("filter", "layer", False), ("layer", "layer", False), ("element", "units", False), ("none", "layer", True), ("filter", "units", True)]
)
def test_slices_under_rescaling(by, factors, moves):
    """`filter` and `layer` are invariant under one factor a layer, `element` under one a unit; a raw slice is not, nor is `filter` under factors of units."""
    subject = relu_network()
    given = torch.full((5,), 8.0, dtype=torch.float64) if factors == "layer" else torch.tensor([0.1, 0.5, 2.0, 7.0, 30.0], dtype=torch.float64)
    one, other = (slices.loss_slice(s, rng=chance.generator(0), normalise=by, points=5) for s in (subject, rescaled(subject, given)))
    gap = np.abs(one.value - other.value).max()
    assert gap > 1e-3 if moves else gap < 1e-12


def test_filters_have_the_length_of_the_weights():
    subject = relu_network()
    direction = slices.random_direction(subject, rng=chance.generator(0))
    parts = dict(zip(subject.trainable, direction.split([p.numel() for p in subject.parameters.values()]), strict=True))
    for key, weight in subject.parameters.items():
        part = parts[key].reshape(weight.shape)
        assert not part.any() if weight.ndim == 1 else torch.allclose(part.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))


def test_a_transposed_convolution_has_its_filters_along_the_second_dimension():
    model = nn.ConvTranspose2d(2, 3, 2).double()
    subject = Subject.freeze(model, "mse", (torch.randn(2, 2, 2, 2).double(), torch.zeros(2, 3, 3, 3).double()))
    direction = slices.random_direction(subject, rng=chance.generator(0))[: model.weight.numel()].reshape(model.weight.shape)
    assert torch.allclose(direction.transpose(0, 1).flatten(1).norm(dim=1), model.weight.detach().transpose(0, 1).flatten(1).norm(dim=1))


def test_a_slice_of_a_quadratic_is_a_parabola_and_ends_at_the_other_state():
    subject, hessian = quadratic()
    other, _ = quadratic(offset=2.0)
    direction = slices.direction_to(subject, other.state)
    reading = slices.loss_slice(subject, rng=chance.generator(0), direction=direction, span=(0.0, 1.0), points=5)
    steps = np.asarray(reading.axes[0].values)
    assert reading.value == pytest.approx(steps**2 * float(direction @ hessian @ direction) / 2, abs=1e-10)
    assert reading.value[-1] == pytest.approx(loss_value(other))


def test_a_plane_along_the_largest_curvature():
    subject, hessian = quadratic()
    vectors = slices.curvature_directions(subject, k=2)
    reading = slices.loss_plane(subject, rng=chance.generator(0), directions=list(vectors.T), points=3)
    top = torch.linalg.eigvalsh(hessian).flip(0)[:2].tolist()
    assert reading.value == pytest.approx(np.asarray([[(s * s * top[0] + t * t * top[1]) / 2 for t in (-1, 0, 1)] for s in (-1, 0, 1)]), rel=1e-6, abs=1e-9)


def test_a_trajectory_in_a_plane_is_found_in_its_plane():
    subject, _ = quadratic()
    turn, _ = torch.linalg.qr(chance.normal(DIMENSION, 2, rng=chance.generator(5)))
    path = torch.tensor([[0.0, 0.0], [1.0, 0.2], [3.0, -0.2], [6.0, 0.4]], dtype=torch.float64)
    states = [{"weight": (1 + turn @ point)[None]} for point in path]
    reading = slices.trajectory(subject, states)
    assert sum(reading.details["explained"]) == pytest.approx(1.0)
    centred = path - path.mean(0)
    exact = torch.linalg.svdvals(centred) ** 2 / (centred**2).sum()
    assert reading.details["explained"] == pytest.approx(exact.tolist())
    seen = torch.cdist(torch.tensor(reading.details["coordinates"]), torch.tensor(reading.details["coordinates"]))
    assert torch.allclose(seen, torch.cdist(path, path))
    assert reading.axes[0].values[-1] > reading.axes[0].values[0]


def test_a_trajectory_reads_a_folder_in_the_order_of_its_numbers(tmp_path):
    subject, _ = quadratic()
    for step in (0, 2, 10):
        torch.save({"weight": torch.full((1, DIMENSION), float(step))}, tmp_path / f"step{step}.pt")
    found = slices.checkpoints_in(tmp_path)
    assert [path.name for path in found] == ["step0.pt", "step2.pt", "step10.pt"]
    reading = slices.trajectory(subject, found)
    assert np.diff(reading.axes[0].values) == pytest.approx(math.sqrt(DIMENSION) * np.asarray([2.0, 8.0]))


def test_local_entropy_of_a_quadratic_is_half_a_log_determinant():
    subject, hessian = quadratic()
    widths = (0.003, 0.01, 0.03, 0.1)
    inside = []
    for seed in range(40):
        reading = geometry.local_entropy(subject, rng=chance.generator(seed), widths=widths, probes=64)
        exact = np.asarray([-0.5 * float(torch.logdet(torch.eye(DIMENSION) + w * w * hessian)) for w in widths])
        inside.append((reading.interval[0] <= exact) & (exact <= reading.interval[1]))
    # 160 intervals of 95 %, four of one draw alike: fewer than 80 % inside would be more than three standard errors away
    assert np.mean(inside) > 0.8
    assert np.asarray(reading.details["effective"])[0] > 60


def test_a_volume_that_one_probe_decides_has_an_interval_that_is_open_above():
    subject, _ = quadratic()
    reading = geometry.local_entropy(subject, rng=chance.generator(0), widths=(0.01, 3.0), probes=8, inverse_temperature=100.0)
    assert reading.details["effective"][1] < 4 < reading.details["effective"][0]
    assert np.isinf(reading.interval[1]).tolist() == [False, True]


def test_the_jackknife_corrects_the_bias_of_a_square():
    """(mean)^2 is too large by s^2 / n; the jackknife takes exactly that off."""
    samples = np.asarray([1.0, 4.0, 2.0, 9.0, 5.0])
    value, error, bias = geometry.jackknife(samples, lambda x: float(x.mean()) ** 2)
    assert bias == pytest.approx(samples.var(ddof=1) / 5)
    assert value == pytest.approx(samples.mean() ** 2 - bias)
    assert geometry.jackknife(samples, lambda x: float(x.mean()))[1] == pytest.approx(samples.std(ddof=1) / math.sqrt(5))
    assert error > 0


def test_batch_statistics_are_made_anew():
    with chance.scoped(chance.generator(0)):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).double()
        inputs = torch.randn(30, 4).double()
    subject = Subject.freeze(model, "cross_entropy", (inputs, torch.arange(30) % 2), chunk=7)
    fresh = refreshed(subject)
    hidden = inputs @ model[0].weight.T + model[0].bias
    assert torch.allclose(fresh.state["1.running_mean"], hidden.mean(0))
    assert torch.allclose(fresh.state["1.running_var"], hidden.var(0))
    assert torch.equal(subject.state["1.running_mean"], torch.zeros(5).double())
    assert not subject.module[1].training
    assert subject.module[1].momentum == 0.1


BAD = [
    (lambda s: geometry.average_sharpness(s, rng=chance.generator(0), probes=1), "two probes"),
    (lambda s: geometry.worst_sharpness(s, rng=chance.generator(0), radius=-1.0), "radius"),
    (lambda s: geometry.worst_sharpness(s, rng=chance.generator(0), steps=0), "at least 1"),
    (lambda s: geometry.local_entropy(s, rng=chance.generator(0), widths=(0.0,)), "widths"),
    (lambda s: geometry.local_entropy(s, rng=chance.generator(0), probes=2), "four probes"),
    (lambda s: slices.loss_slice(s, rng=chance.generator(0), normalise="filtr"), "Did you mean 'filter'"),
    (lambda s: slices.loss_slice(s, rng=chance.generator(0), points=1), "two points"),
    (lambda s: slices.loss_slice(s, rng=chance.generator(0), span=(1.0, -1.0)), "low < high"),
    (lambda s: slices.loss_slice(s, rng=chance.generator(0), direction=torch.full((DIMENSION,), 1e200, dtype=torch.float64)), "smaller span"),
    (lambda s: slices.loss_plane(s, rng=chance.generator(0), directions=[torch.ones(DIMENSION)]), "two directions"),
    (lambda s: slices.trajectory(s, [s.state, s.state]), "three checkpoints"),
    (lambda s: slices.trajectory(s, [s.state] * 3), "same network"),
    (lambda s: slices.checkpoints_in("nowhere"), "no checkpoints"),
    (lambda s: at_vector(s, torch.full((DIMENSION,), math.nan)), "NaN"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InvalidInput, match=message):
        call(quadratic()[0])


def test_pictures_are_drawn():
    subject = relu_network()
    line, plane = slices.loss_slice(subject, rng=chance.generator(0), points=5), slices.loss_plane(subject, rng=chance.generator(0), points=4)
    assert line.plot().get_xlabel() == "step"
    assert plane.plot().get_ylabel() == "step along the first"
    assert "svg" in line._repr_html_()


def test_a_plane_has_lines_of_equal_height_and_a_matrix_of_elements_has_none():
    """Of s^2 + t^2 they are circles, as many as there are levels inside the square or cut by it."""
    steps = np.linspace(-1, 1, 31)
    axes = tuple(Axis(name, tuple(steps.tolist())) for name in "st")
    bowl = describe(Reading("bowl", steps[:, None] ** 2 + steps[None] ** 2, "loss", axes=axes))
    lines = bowl.contours(bowl.series[0], levels=3)
    inside = [line for line in lines if np.allclose(line[0], line[-1])]
    middle = (np.asarray(bowl.series[0].values.shape) - 1) / 2
    for line in inside:
        radius = np.linalg.norm(line - middle, axis=1)
        assert radius.std() < 0.05 * radius.mean()
    assert inside
    assert draw(bowl).count('class="pw"') >= 9
    numbered = describe(Reading("matrix", np.eye(4), ""))
    assert numbered.contours(numbered.series[0]) == []


def bowl_reading():
    steps = np.linspace(-1, 1, 9)
    axes = tuple(Axis(f"step along the {which}", tuple(steps.tolist())) for which in ("first", "second"))
    return Reading("bowl", steps[:, None] ** 2 + 2 * steps**2 + 0.5, "loss", axes=axes)


def test_a_plane_is_drawn_as_a_surface_too():
    """In the SVG a quadrilateral a cell, lower cells behind higher ones nearer by; the corners are where the projection puts them."""
    picture = draw(describe(bowl_reading()))
    cells = re.findall(r'<path class="s(\d+)" d="M([^"]+)z"', picture)
    assert len(cells) == 64
    assert {int(shade) for shade, _ in cells} <= set(range(12))
    points = [[tuple(map(float, point.split())) for point in path.split("L")] for _, path in cells]
    far, near = points[0][0], points[-1][2]
    left = min(point for path in points for point in path)
    right = max(point for path in points for point in path)
    assert far[0] == pytest.approx(near[0], abs=0.11)
    assert left[0] + right[0] == pytest.approx(2 * far[0], abs=0.21)
    assert left[1] == pytest.approx(right[1], abs=0.11)
    assert int(cells[0][0]) == int(cells[-1][0]) == 9
    assert min(int(shade) for shade, _ in cells) == 0
    numbered = draw(describe(Reading("v", np.eye(3), "", axes=(Axis("i", (1.0, 2.0, 3.0)), Axis("j", (1.0, 2.0, 3.0))))))
    assert 'class="s' not in numbered


def test_matplotlib_draws_map_and_surface():
    import matplotlib.pyplot as plt

    ax = bowl_reading().plot()
    assert [axes.name for axes in ax.figure.axes if axes.get_label() != "<colorbar>"] == ["rectilinear", "3d"]
    own = plt.figure().add_subplot(projection="3d")
    assert bowl_reading().plot(own) is own
    assert (own.get_zlim()[0] <= 0.5, own.get_zlabel()) == (True, "loss")
    alone = plt.figure().add_subplot()
    bowl_reading().plot(alone)
    assert alone.get_xlabel() == "step along the second"
    plt.close("all")
