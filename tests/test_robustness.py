import contextlib
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, batchnorm, cnn, lstm, mlp_regression, take, tokens
from scipy import optimize
from sklearn.datasets import load_digits
from torch import nn

from gnomon.core import registry
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.examination import robustness as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import robustness
from gnomon.numerics import boundary
from gnomon.numerics.statistics import skewed_interval
from gnomon.run.plan import unmet
from gnomon.theory import robustness as theory


def linear(classes, n=60, inputs=(3, 4), dtype=torch.float64, seed=0):
    """A linear classifier whose labels are mostly its own decisions."""
    rng = chance.generator(seed, "linear")
    size = math.prod(inputs)
    with chance.scoped(chance.child(rng, "network")):
        model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).to(dtype)
    x = (5 + 2 * chance.normal(n, *inputs, rng=rng)).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % classes
    return Subject.freeze(model, "cross_entropy", (x, y), (x, y), chunk=17)


def exact_linear(subject, examples):
    """min_j (f_y - f_j) / |w_y - w_j| over the right examples, in float64."""
    wide = subject.to(torch.float64)
    x, y = (torch.cat([getattr(b, part) for b in robustness._cases(subject, examples).right.blocks]) for part in ("inputs", "targets"))
    w, b = wide.state["1.weight"], wide.state["1.bias"]
    f = x.double().flatten(1) @ w.T + b
    margin = f.gather(1, y[:, None]) - f
    distance = margin / (w[y][:, None] - w).norm(dim=2)
    return distance.scatter(1, y[:, None], torch.inf).amin(1).numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_on_a_linear_network_the_attack_finds_the_exact_distance_and_never_less(classes, dtype):
    subject = linear(classes, dtype=dtype)
    truth = exact_linear(subject, 64)
    ratio = take(robustness.adversarial_distance, subject, examples=64).samples / truth
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 1.01


@pytest.mark.parametrize("classes", [2, 4])
def test_first_order_is_exact_on_a_linear_network(classes):
    subject = linear(classes)
    margins, slopes = take(robustness.logit_margins, subject), take(robustness.margin_slopes, subject)
    assert np.allclose(theory.linear_distances(margins.samples, slopes.samples), exact_linear(subject, 256), rtol=1e-12)


def relu_network(seed, dtype=torch.float64):
    rng = chance.generator(seed, "relu")
    with chance.scoped(chance.child(rng, "network")):
        model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    x = chance.normal(40, 3, rng=rng).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    return Subject.freeze(model, "cross_entropy", (x, y), (x, y))


def brute_force(model, x, label):
    """The distance by going through every linear region of a network of one hidden layer: in each a convex quadratic programme."""
    w, b, v, c = (p.detach().double().numpy() for p in model.parameters())
    best = math.inf
    for pattern in itertools.product([0.0, 1.0], repeat=len(b)):
        d = np.array(pattern)
        slope, offset = v * d @ w, v * d @ b + c
        for j in set(range(len(c))) - {label}:
            # rows . z <= limits: the region, and the other class's logit at least that of the label
            rows = np.concatenate([-(2 * d - 1)[:, None] * w, [slope[label] - slope[j]]])
            limits = np.concatenate([(2 * d - 1) * b, [offset[j] - offset[label]]])
            # min |z - x|^2 / 2 with rows z <= limits, by its dual: nonnegative least squares
            found = nearest_in_polytope(rows, limits - rows @ x)
            best = min(best, found)
    return best


def nearest_in_polytope(rows, limits):
    """min |z| with rows z <= limits by nonnegative least squares (Lawson & Hanson's least distance programming); infinite where it is empty."""
    a = np.vstack([-rows.T, -limits])
    target = np.zeros(rows.shape[1] + 1)
    target[-1] = 1
    u, _ = optimize.nnls(a, target, maxiter=1000)
    r = a @ u - target
    return math.inf if np.linalg.norm(r) < 1e-9 else float(np.linalg.norm(r[:-1] / r[-1]))


def test_the_attack_is_never_below_the_true_distance_of_a_relu_network_and_mostly_at_it():
    ratios = []
    for seed in range(2):
        subject = relu_network(seed)
        found = take(robustness.adversarial_distance, subject, examples=64)
        data = robustness._cases(subject, 64).right.blocks[0]
        kept = found.details.get("found", np.arange(len(data)))
        for length, i in list(zip(found.samples, kept, strict=True))[:12]:
            ratios.append(length / brute_force(subject.module, data.inputs[i].numpy(), int(data.targets[i])))
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) <= 1 + 1e-6
    assert np.mean(ratios) <= 1.05


def trained(width=16, n=300, steps=150):
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x / 16, dtype=torch.float32), torch.as_tensor(y)
    with chance.scoped(chance.generator(0, "digits")):
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:n]), y[:n]).backward()
        optimizer.step()
    return Subject.freeze(model, "cross_entropy", (x[:n], y[:n]), (x[n : n + 150], y[n : n + 150]), initial=initial, lr=0.5)


def test_the_points_found_change_the_class_and_no_random_direction_is_shorter():
    subject = trained()
    found = take(robustness.adversarial_distance, subject, examples=64).samples
    data = robustness._cases(subject, 64).right.blocks[0]
    rng = chance.generator(3)
    for _ in range(50):
        direction = chance.normal(*data.inputs.shape, rng=rng, like=data.inputs)
        direction /= direction.norm(dim=1, keepdim=True)
        inside = data.inputs + 0.999 * torch.as_tensor(found, dtype=torch.float32)[:, None] * direction
        assert bool((subject(subject.state, inside).argmax(1) == data.targets).all())


def test_the_attack_beats_a_plain_descent_of_the_margin():
    """A second optimiser: penalised gradient descent on |d|^2 + c max(margin, 0) with its best of several c, example by example."""
    subject = trained().to(torch.float64)
    found = take(robustness.adversarial_distance, subject, examples=64).samples
    data = robustness._cases(subject, 64).right.blocks[0]
    x, y = data.inputs.double(), data.targets
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for c in (0.3, 1.0, 3.0):
        d = (1e-3 * torch.ones_like(x)).requires_grad_()
        adam = torch.optim.Adam([d], 0.02)
        for _ in range(200):
            f = subject(subject.state, x + d)
            margin = f.gather(1, y[:, None])[:, 0] - f.scatter(1, y[:, None], -torch.inf).amax(1)
            best = torch.where(margin < 0, torch.minimum(best, d.detach().norm(dim=1)), best)
            adam.zero_grad()
            (d.square().sum() + c * margin.clamp_min(0).sum()).backward()
            adam.step()
    finite = torch.isfinite(best).numpy()
    assert finite.mean() > 0.8
    assert np.median(found[finite] / best.numpy()[finite]) <= 1.0


@pytest.mark.parametrize("build", [cnn, lstm, batchnorm])
def test_every_shape_of_input_and_split_is_taken(build):
    one, other = (take(robustness.adversarial_distance, build(n=12, chunk=chunk), examples=64) for chunk in (8, 3))
    assert np.allclose(one.samples, other.samples, rtol=1e-8)
    assert (one.samples > 0).all()


def test_a_binary_network_of_one_logit_has_a_boundary():
    rng = chance.generator(0, "binary")
    x = chance.normal(50, 4, rng=rng)
    with chance.scoped(rng):
        model = nn.Linear(4, 1).double()
    with torch.no_grad():
        y = (model(x) > 0).double()
    subject = Subject.freeze(model, "bce_with_logits", (x, y), (x, y))
    found = take(robustness.adversarial_distance, subject).samples
    with torch.no_grad():
        truth = (model(x)[:, 0].abs() / model.weight.norm()).numpy()
    assert np.allclose(found, truth, rtol=1e-6)
    assert np.allclose(theory.linear_distances(take(robustness.logit_margins, subject).samples, take(robustness.margin_slopes, subject).samples), truth)


def test_what_has_no_boundary_says_so():
    for function in (robustness.logit_margins, robustness.margin_slopes, robustness.adversarial_distance):
        with pytest.raises(OutOfScope, match="regression"):
            take(function, mlp_regression())
        with pytest.raises(OutOfScope, match="labels an example"):
            take(function, tokens())
        with pytest.raises(OutOfScope, match="test data"):
            take(function, dataclasses.replace(cnn(), test=None, _shared={}))
        with pytest.raises(InvalidInput, match="at least 2"):
            take(function, cnn(), examples=1)


def words_classifier():
    rng = chance.generator(0, "integers")
    ids, labels = chance.integers(5, 30, 4, rng=rng), chance.integers(2, 30, rng=rng)
    with chance.scoped(rng):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    return Subject.freeze(model, "cross_entropy", (ids, labels), (ids, labels))


def test_integer_inputs_are_out_of_scope():
    for function in (robustness.adversarial_distance, robustness.logit_margins, robustness.input_jacobian_norm):
        with pytest.raises(OutOfScope, match="integers only"):
            take(function, words_classifier())


def test_a_network_that_ignores_its_input_is_out_of_scope():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    x, y = torch.randn(20, 3, generator=chance.generator(0)), torch.zeros(20, dtype=torch.long)
    subject = Subject.freeze(model, "cross_entropy", (x, y), (x, y))
    with pytest.raises(OutOfScope, match="no perturbation"):
        take(robustness.adversarial_distance, subject)
    with pytest.raises(OutOfScope, match="gradient"):
        theory.first_order_distance(take(robustness.logit_margins, subject).samples, take(robustness.margin_slopes, subject).samples)


@pytest.mark.parametrize("build", NETWORKS)
def test_the_jacobian_norm_is_that_of_whole_jacobians(build, monkeypatch):
    monkeypatch.setattr(robustness, "OUTPUTS", 40)
    subject = build()
    found = take(robustness.input_jacobian_norm, subject)
    assert float(found) == pytest.approx(robustness.exact_jacobian_norm(subject), rel=1e-10)


def test_the_jacobian_norm_of_many_outputs_is_estimated_without_bias(monkeypatch):
    subject, draws = cnn(), []
    monkeypatch.setattr(robustness, "OUTPUTS", 2)
    for seed in range(40):
        draws.append(float(take(robustness.input_jacobian_norm, subject, seed=seed)) ** 2)
    error = np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert abs(np.mean(draws) - robustness.exact_jacobian_norm(subject) ** 2) < 4 * error
    assert error > 0


def test_accuracy_under_attack_counts_what_is_right_and_far():
    subject = trained()
    distance = take(robustness.adversarial_distance, subject, examples=128)
    curve = robustness.robust_accuracy(distance)
    sizes = np.asarray(curve.axes[0].values)
    assert curve.value[0] == pytest.approx(distance.details["right"] / distance.details["looked"])
    assert np.allclose(curve.value, [(distance.samples > size).sum() / distance.details["looked"] for size in sizes])


def test_noise_flips_what_theory_says_on_a_linear_network():
    subject = linear(2, n=400, inputs=(6,), seed=2)
    distances = exact_linear(subject, 400)
    noise = theory.flipping_noise(distances, 0.1)
    data = robustness._cases(subject, 400).right.blocks[0]
    rng = chance.generator(0, "noise")
    flips = [float((subject(subject.state, data.inputs + noise * chance.normal(*data.inputs.shape, rng=rng)).argmax(1) != data.targets).double().mean()) for _ in range(40)]
    assert abs(np.mean(flips) - 0.1) < 4 * np.std(flips) / math.sqrt(40)


def test_theory_refuses_what_it_cannot_take():
    with pytest.raises(InvalidInput, match="shapes"):
        theory.linear_distances(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(InvalidInput, match="classified correctly"):
        theory.linear_distances(-np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(InvalidInput, match="share"):
        theory.flipping_noise(np.ones(3), 0.7)
    with pytest.raises(InvalidInput, match="cannot come"):
        theory.first_order_accuracy(np.ones(3), 2, (0.0,))


def test_the_skewed_interval_covers_where_student_s_does_not_and_is_student_s_without_skewness():
    rng = np.random.default_rng(0)
    inside = np.mean([low <= 0.5 <= high for low, high in (skewed_interval(rng.gamma(0.5, size=20)) for _ in range(1500))])
    assert 0.93 <= inside <= 0.97
    even = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    half = 2.776445105 * even.std(ddof=1) / math.sqrt(5)
    assert skewed_interval(even) == pytest.approx((-half, half), rel=1e-8)


def rows_of(subject, **settings):
    readings = {}
    for name, instrument in registry.instruments().items():
        for at in instrument.at:
            if instrument.topic == "robustness" and not unmet(subject, instrument, at):
                place = subject if at == "end" else subject.at(subject.initial, "initial")
                with contextlib.suppress(OutOfScope):
                    readings[name if at == "end" else f"{name}@{at}"] = instrument(place, rng=chance.generator(0, name), **settings)
    return {row.title: (row, *row.settle()) for row in chapter.chapter(facts_of(subject), readings)}


def test_the_chapter_agrees_on_a_linear_network_and_pairs_examples():
    row, verdict, words, advice = rows_of(linear(3), examples=64)["distance to the decision boundary"]
    assert verdict.outcome == "holds"
    assert float(np.abs(verdict.gap)) < 1e-6 * float(row.predicted)
    assert "Half of the test examples" in advice
    assert "boundary" in words


class Saw(nn.Module):
    """Two classes between which a steep dent lies right at the examples: the slope at an example says nothing of the boundary."""

    def forward(self, x):
        margin = 3 - x[:, :1] + 0.3 * torch.sin(40 * x[:, :1])
        return torch.cat([margin, -margin], 1) + 0 * self.unused

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))


def test_the_chapter_says_where_the_boundary_bends():
    x = chance.normal(100, 2, rng=chance.generator(0, "saw")) * 0.3
    y = torch.zeros(100, dtype=torch.long)
    subject = Subject.freeze(Saw().double(), "cross_entropy", (x, y), (x, y))
    _, verdict, words, _ = rows_of(subject, examples=128)["distance to the decision boundary"]
    assert verdict.outcome == "fails"
    assert "bends" in words
    assert "understates" in words


def test_examples_without_a_boundary_are_left_out_of_the_comparison():
    model = nn.Sequential(nn.Linear(1, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.zero_()

    class Dead(nn.Module):
        """Beyond 5 the output no longer moves with the input."""

        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x.clamp_max(5.0))

    x = torch.cat([torch.linspace(0.5, 4, 30), torch.tensor([6.0, 7.0])])[:, None].double()
    y = torch.zeros(32, dtype=torch.long)
    subject = Subject.freeze(Dead().double(), "cross_entropy", (x, y), (x, y))
    row, verdict, _, _ = rows_of(subject, examples=64)["distance to the decision boundary"]
    assert verdict.outcome == "holds"
    assert len(row.predicted.samples) == len(row.measured.samples) == 30


def test_a_regression_keeps_its_jacobian():
    rows = rows_of(mlp_regression())
    assert set(rows) == {"input-Jacobian norm", "input-Jacobian norm at initialisation"}


def test_repeating_rows_keeps_what_the_network_takes():
    subject = cnn()
    block = next(subject.batches("test"))
    points, back = boundary.flat_inputs(subject, block.inputs)
    assert torch.equal(back(points), block.inputs)
    assert torch.equal(back(points.repeat(3, 1)), block.inputs.repeat(3, 1, 1, 1))
