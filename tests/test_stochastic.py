"""SGD as a process in time: predictions against enumeration of all batches, closed forms and transition matrices; simulators against torch's own steps."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from scipy import linalg, special, stats
from scipy.sparse.linalg import spsolve
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.sgd import Sgd, svag_weights
from gnomon.core.training import Training
from gnomon.data.regression import regression
from gnomon.models.catapult import two_layer_curvatures
from gnomon.models.chains import LeastSquaresChains, stationary_moment
from gnomon.models.descent import half_squared_error, tanh_network
from gnomon.models.flat import descend, flat_loss
from gnomon.models.langevin import LangevinChains, occupation
from gnomon.numerics.batches import draw_batches
from gnomon.numerics.flow import gradient_flow, penalised, slope_of
from gnomon.numerics.potentials import double_well, force, quartic
from gnomon.theory import dynamics

KINDS = [
    {}, {"sampling": "without_replacement"}, {"momentum": 0.6}, {"momentum": 0.6, "nesterov": True}, {"weight_decay": 0.3, "decay": "coupled"},
    {"momentum": 0.6, "weight_decay": 0.3, "decay": "coupled"}, {"momentum": 0.6, "weight_decay": 0.3, "decay": "decoupled"}, {"svag": 3}, {"svag": 2, "sampling": "without_replacement"},
]  # fmt: skip
X, Y = (part.numpy() for part in regression(4, 2, 3.0, rng=chance.generator(0, "tiny")))


def rule(**changes):
    return Sgd(**{"lr": 0.3, "batch_size": 2, "examples": 4, "sampling": "with_replacement", **changes})


def every_step(sgd, x=X, y=Y):
    """The affine map of (theta, v) that each batch makes, with its chance, written as torch.optim.SGD writes a step; for SVAG each pair of batches."""
    n, d = x.shape
    if sgd.sampling == "with_replacement":
        batches = list(itertools.product(range(n), repeat=sgd.batch_size))
    else:
        batches = list(itertools.combinations(range(n), sgd.batch_size))
    parts = [(x[list(b)].T @ x[list(b)] / len(b), x[list(b)].T @ y[list(b)] / len(b)) for b in batches]
    if sgd.svag > 1:
        one, two = svag_weights(sgd.svag)
        parts = [(one * h + two * k, one * g + two * f) for (h, g), (k, f) in itertools.product(parts, parts)]
    lr, b, eye = sgd.lr / sgd.svag, sgd.momentum, np.eye(d)
    coupled, kept = (sgd.weight_decay if sgd.decay == "coupled" else 0.0), 1 - (lr * sgd.weight_decay if sgd.decay == "decoupled" else 0.0)
    for h, g in parts:
        h = h + coupled * eye
        # v' = b v + h theta - g;  theta' = kept theta - lr (v' or, for Nesterov, gradient + b v')
        v = np.hstack([h, b * eye])
        used = np.hstack([h, 0 * eye]) + b * v if sgd.nesterov else v
        constant = (1 + b) * g if sgd.nesterov else g
        yield np.vstack([np.hstack([kept * eye, 0 * eye]) - lr * used, v]), np.concatenate([lr * constant, -g]), 1 / len(parts)


def enumerated(sgd):
    """Mean and covariance of theta once settled, and the spectral radius of the second moments, by solving the linear equations of all batches."""
    maps, d = list(every_step(sgd)), X.shape[1]
    a, c = sum(p * m for m, _, p in maps), sum(p * v for _, v, p in maps)
    mean = np.linalg.solve(np.eye(len(a)) - a, c)
    pair = sum(p * np.kron(m, m) for m, _, p in maps)
    rest = sum(p * (np.outer(m @ mean, v) + np.outer(v, m @ mean) + np.outer(v, v)) for m, v, p in maps)
    second = np.linalg.solve(np.eye(len(pair)) - pair, rest.ravel()).reshape(len(a), -1)
    return mean[:d], (second - np.outer(mean, mean))[:d, :d], np.abs(np.linalg.eigvals(pair)).max()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_exact_covariance_is_that_of_all_batches(kind):
    sgd = rule(**kind)
    mean, covariance, _ = enumerated(sgd)
    found = dynamics.exact_covariance(dynamics.LeastSquares(X, Y), sgd)
    assert found.value == pytest.approx(covariance, rel=1e-8)
    assert found.details["center"] == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_limit_in_mean_square_is_where_the_second_moments_of_all_batches_grow(kind):
    problem, sgd = dynamics.LeastSquares(X, Y), rule(**kind)
    limit = float(dynamics.mean_square_limit(problem, sgd))
    assert enumerated(sgd.replace(lr=limit))[2] == pytest.approx(1, abs=1e-6)
    assert limit <= float(dynamics.mean_limit(problem, sgd))
    with pytest.raises(OutOfScope, match="variance diverges|limit of stability"):
        dynamics.exact_covariance(problem, sgd.replace(lr=1.01 * limit))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_both_lyapunov_equations_are_solved(kind):
    """By Kronecker products, with the noise at the place where the steps settle; and by the iteration itself, with noise that is the same everywhere."""
    problem, sgd = dynamics.LeastSquares(X, Y), rule(**kind)
    mean, _, _ = enumerated(sgd)
    gradients = (X @ mean - Y)[:, None] * X
    noise = sgd.noise_factor * np.cov(gradients.T, ddof=0)
    a = sum(p * m for m, _, p in every_step(sgd))
    kick = np.vstack([-sgd.step * (1 + sgd.momentum if sgd.nesterov else 1) * np.eye(2), np.eye(2)])
    pushed, eye = kick @ noise @ kick.T, np.eye(4)
    drift = a - eye
    continuous = np.linalg.solve(np.kron(drift, eye) + np.kron(eye, drift), -pushed.ravel()).reshape(4, 4)[:2, :2]
    second = np.zeros((4, 4))
    for _ in range(2_000):
        second = a @ second @ a.T + pushed
    assert dynamics.ou_covariance(problem, sgd).value == pytest.approx(continuous, rel=1e-8)
    assert dynamics.discrete_covariance(problem, sgd).value == pytest.approx(second[:2, :2], rel=1e-8)


def test_closed_forms_in_one_dimension():
    h, noise, lr = 2.0, 3.0, 0.4
    problem, sgd = dynamics.Quadratic([[h]], [[noise]]), rule(lr=lr, batch_size=1)
    assert float(dynamics.ou_covariance(problem, sgd)) == pytest.approx(lr * noise / (2 * h))
    assert float(dynamics.discrete_covariance(problem, sgd)) == pytest.approx(lr * noise / (h * (2 - lr * h)))
    three = dynamics.stationary_covariances(problem, sgd)
    assert three.value[2] == pytest.approx(three.value[1])
    assert three.details["excess_loss"] == pytest.approx(h * three.value[:, 0, 0] / 2)
    assert float(dynamics.mean_limit(problem, sgd)) == pytest.approx(2 / h)
    for made in ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
        known = float(dynamics.stability_limit(Training("nesterov" if made.get("nesterov") else "sgd", lr=1.0, momentum=0.9)))
        assert float(dynamics.mean_limit(problem, sgd.replace(**made))) == pytest.approx(known / h, rel=1e-9)
    ratio = dynamics.variance_over_ou(problem, sgd, [0.05, 0.2, 0.5])
    assert ratio.value == pytest.approx(1 / (1 - np.array([0.05, 0.2, 0.5]) * h / 2))
    assert any("0.2" in text and "off by" in text for text in ratio.assumes), "1 / (1 - s/2) passes 1.125 at s = 2/9, between the steps"


def test_temperature_of_the_process_and_where_there_is_one():
    h, noise = np.diag([3.0, 1.0, 0.2]), np.diag([2.0, 5.0, 1.0])
    sgd = rule(lr=0.1)
    temperature = dynamics.effective_temperature(dynamics.ou_covariance(dynamics.Quadratic(h, noise), sgd), h)
    assert float(temperature) == pytest.approx(sgd.lr * np.trace(noise) / (2 * sgd.batch_size * 3))
    even = dynamics.effective_temperature(dynamics.ou_covariance(dynamics.Quadratic(h, 0.7 * np.eye(3)), sgd), h).details["directions"]
    assert even == pytest.approx(np.full(3, even[0])), "the same noise in all directions: equipartition"
    hot = dynamics.effective_temperature(dynamics.ou_covariance(dynamics.Quadratic(h, 0.7 * h), sgd), h).details
    assert hot["directions"] / hot["curvatures"] == pytest.approx(np.full(3, sgd.lr * 0.7 / (2 * sgd.batch_size))), "noise in proportion to curvature: C is the same"


def test_svag_tends_to_the_equation_with_the_noise_of_each_place():
    problem, sgd = dynamics.LeastSquares(X, Y), rule(lr=0.2)
    limit = dynamics.sde_covariance(problem, sgd).value
    gaps = [np.abs(dynamics.exact_covariance(problem, sgd.replace(svag=level)).value - limit).max() for level in (256, 512)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)
    second = limit
    pull = problem.hessian @ second + second @ problem.hessian
    assert pull == pytest.approx(sgd.lr * sgd.noise_factor * problem.fluctuation(np.zeros(2), second), rel=1e-8)
    for level in (1, 4, 9):
        one, two = svag_weights(level)
        assert (one + two, one**2 + two**2) == pytest.approx((1, level))


def test_losses_in_time_are_those_of_all_batches():
    problem, sgd = dynamics.LeastSquares(X, Y), rule()
    start, maps = np.array([2.0, -1.0]), [(m[:2, :2], v[:2], p) for m, v, p in every_step(sgd)]
    mean, second, losses = start, np.outer(start, start), []
    for _ in range(6):
        away = second - np.outer(mean, problem.minimum) - np.outer(problem.minimum, mean) + np.outer(problem.minimum, problem.minimum)
        losses.append((problem.hessian * away).sum() / 2)
        second = sum(p * (m @ second @ m.T + np.outer(m @ mean, v) + np.outer(v, m @ mean) + np.outer(v, v)) for m, v, p in maps)
        mean = sum(p * (m @ mean + v) for m, v, p in maps)
    assert dynamics.step_losses(problem, sgd, start=start, steps=range(6)).value == pytest.approx(losses, rel=1e-10)


def test_the_modified_equations_are_of_first_and_second_weak_order():
    problem, start = dynamics.LeastSquares(X, Y), np.array([2.0, -1.0])
    gaps = {1: [], 2: []}
    for steps in (160, 320):
        sgd = rule(lr=1.6 / steps)
        exact = float(dynamics.step_losses(problem, sgd, start=start, steps=[steps]))
        for order, found in gaps.items():
            found.append(abs(float(dynamics.sde_losses(problem, sgd, order=order, start=start, steps=[steps])) - exact))
    assert math.log2(gaps[1][0] / gaps[1][1]) == pytest.approx(1, abs=0.05)
    assert math.log2(gaps[2][0] / gaps[2][1]) == pytest.approx(2, abs=0.05)
    assert gaps[2][1] < gaps[1][1] / 20
    h, s, lr = 1.5, 2.0, 0.1
    plain = dynamics.sde_losses(dynamics.Quadratic([[h]], [[s]]), rule(lr=lr, batch_size=1), order=1, start=[3.0], steps=[0, 5, 40])
    t = lr * np.array([0, 5, 40])
    variance = lr * s / (2 * h) * (1 - np.exp(-2 * h * t))
    assert plain.value == pytest.approx(h * (9 * np.exp(-2 * h * t) + variance) / 2, rel=1e-7)


def test_falling_steps_and_averages():
    """Against the recursion of the variance in one dimension, many steps on."""
    h, s, c, many = 1.5, 2.0, 1.2, 200_000
    problem, sgd = dynamics.Quadratic([[h]], [[s]]), rule(batch_size=2)
    variance = 0.0
    for t in range(1, many + 1):
        variance = (1 - c * h / t) ** 2 * variance + (c / t) ** 2 * s / 2
    assert float(dynamics.robbins_monro_covariance(problem, sgd, constant=c)) == pytest.approx(many * variance, rel=1e-3)
    lr, steps = 0.1, 50_000
    shared = 1 - (1 - lr * h) ** np.arange(steps, 0, -1)
    assert float(dynamics.averaged_covariance(problem, sgd)) == pytest.approx(steps * (s / 2) * (shared**2).sum() / h**2 / steps**2, rel=1e-3)
    with pytest.raises(OutOfScope, match="not as 1/t"):
        dynamics.robbins_monro_covariance(problem, sgd, constant=0.3)


def test_scaling_rules_break_where_they_depart():
    problem = dynamics.LeastSquares(*regression(64, 4, 4.0, rng=chance.generator(1)))
    sgd = Sgd(lr=0.1, batch_size=4, examples=64, sampling="with_replacement")
    found = dynamics.scaling_break(problem, sgd, rule="linear", departure=0.1)
    at, before = found.details["batch_size"] / 4, (found.details["batch_size"] - 1) / 4
    departures = dynamics.scaling_departure(problem, sgd, [before, at], rule="linear").value
    assert departures[0] <= 0.1 < departures[1]
    assert found.details["because"] == "departs"
    assert dynamics.scaling_break(problem, sgd.replace(lr=1.2), rule="linear", departure=1e9).details["because"] == "diverges"
    one, two = (dynamics.excess_loss(dynamics.exact_covariance(problem, made), problem.hessian) for made in (sgd, sgd.replace(lr=0.2, batch_size=16)))
    assert dynamics.scaling_departure(problem, sgd, [4], rule="square_root").value[0] == pytest.approx(float(two) / float(one) - 1)
    with pytest.raises(OutOfScope, match="all 64 examples"):
        dynamics.scaling_break(problem, sgd.replace(lr=1e-4), rule="linear")
    steps, examples = dynamics.steps_and_examples(100, 5_000, [1, 50, 4_000]).value
    assert (steps / 100 - 1) * (examples / 5_000 - 1) == pytest.approx(np.ones(3))
    assert float(dynamics.critical_batch_size(100, 5_000)) == 50
    assert steps[1] == 200
    assert examples == pytest.approx(steps * [1, 50, 4_000])


def test_bad_steps_are_named():
    with pytest.raises(InvalidInput, match="as many as there are data"):
        rule(batch_size=5)
    with pytest.raises(InvalidInput, match="coupled"):
        rule(weight_decay=0.1)
    with pytest.raises(InvalidInput, match="with_replacement"):
        rule(sampling="with replacement")
    with pytest.raises(TypeError, match="sampling"):
        Sgd(lr=0.1, batch_size=1, examples=4)
    with pytest.raises(OutOfScope, match="SVAG"):
        rule(momentum=0.9, svag=2)
    problem = dynamics.LeastSquares(X, Y)
    with pytest.raises(OutOfScope, match=f"limit of stability, {2 / problem.sharpness:.4g}"):
        dynamics.ou_covariance(problem, rule(lr=2.1 / problem.sharpness))
    with pytest.raises(InvalidInput, match="said to be on 7 examples"):
        dynamics.ou_covariance(problem, rule(examples=7))
    with pytest.raises(OutOfScope, match="no curvature"):
        dynamics.discrete_covariance(dynamics.Quadratic(np.diag([1.0, 0.0]), np.eye(2)), rule())
    with pytest.raises(InvalidInput, match="semi-definite"):
        dynamics.Quadratic(np.diag([1.0, -1.0]), np.eye(2))
    with pytest.raises(OutOfScope, match="'lion'"):
        dynamics.stability_limit(Training("lion", lr=0.1))
    with pytest.raises(InvalidInput, match="batch"):
        draw_batches(4, 5, sampling="without_replacement", rng=chance.generator(0))


@pytest.mark.parametrize(("n", "size"), [(6, 3), (6, 2), (5, 4)])
def test_batches_without_replacement_are_subsets_each_as_likely(n, size):
    drawn = draw_batches(n, size, 20_000, sampling="without_replacement", rng=chance.generator(0)).sort(-1).values
    assert bool((drawn.diff(dim=-1) > 0).all())
    counts = np.unique(drawn.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == math.comb(n, size)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "svag" not in kind], ids=str)
def test_chains_step_as_torch_does(kind):
    x, y = regression(12, 3, 4.0, rng=chance.generator(2))
    sgd = Sgd(**{"lr": 0.2, "batch_size": 4, "examples": 12, "sampling": "with_replacement", **kind})
    chains = LeastSquaresChains(x, y, sgd, chains=3, rng=chance.generator(3), start=torch.ones(3))
    chains.run(70)
    rng = chance.generator(3)
    drawn = torch.cat([draw_batches(12, 4, count, 3, sampling=sgd.sampling, rng=rng) for count in (64, 6)])
    for chain in range(3):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        decay = sgd.weight_decay if sgd.decay == "coupled" else 0.0
        optimizer = torch.optim.SGD([weight], lr=0.2, momentum=sgd.momentum, nesterov=sgd.nesterov, weight_decay=decay)
        for batch in drawn[:, chain]:
            optimizer.zero_grad()
            ((x[batch] @ weight - y[batch]).square().mean() / 2).backward()
            if sgd.decay == "decoupled":
                weight.data *= 1 - 0.2 * sgd.weight_decay
            optimizer.step()
        assert chains.theta[chain].numpy() == pytest.approx(weight.detach().numpy(), rel=1e-9)


def test_chains_settle_where_the_recursion_says_with_and_without_amplified_noise():
    x, y = regression(32, 3, 4.0, rng=chance.generator(4))
    problem = dynamics.LeastSquares(x, y)
    for kind in ({"svag": 4}, {"sampling": "without_replacement"}):
        sgd = Sgd(**{"lr": 0.5, "batch_size": 4, "examples": 32, "sampling": "with_replacement", **kind})
        seen = [float((stationary_moment(x, y, sgd, chains=300, relaxations=4, rng=chance.generator(i)) * torch.tensor(problem.hessian)).sum()) / 2 for i in range(6)]
        predicted = float(dynamics.excess_loss(dynamics.exact_covariance(problem, sgd), problem.hessian))
        assert abs(np.mean(seen) - predicted) < 4.5 * np.std(seen, ddof=1) / math.sqrt(6)
        assert np.std(seen, ddof=1) < 0.1 * predicted


def test_a_chain_that_diverges_is_kept_with_its_step(caplog):
    x, y = regression(16, 2, 2.0, rng=chance.generator(5))
    with caplog.at_level(logging.WARNING):
        chains = LeastSquaresChains(x, y, Sgd(lr=3.0, batch_size=4, examples=16, sampling="with_replacement"), chains=4, rng=chance.generator(6))
    assert "above 2, the limit" in caplog.text, "the sharpness is 1"
    sizes = []
    chains.run(2_000, each=lambda theta: sizes.append(theta.abs().amax(1).clone()))
    for chain in range(4):
        step = int(chains.diverged[chain])
        assert step > 1
        assert float(sizes[step - 2][chain]) < 1e100
        assert not float(sizes[step - 1][chain]) < 1e100


def test_gradient_flow_is_the_exponential_and_the_penalty_is_that_of_backward_analysis():
    h = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    start, lr = torch.tensor([1.0, -2.0], dtype=torch.float64), 0.1

    def loss(theta):
        return theta @ h @ theta / 2

    for penalty, rate in ((0.0, h), (lr / 4, h + lr / 2 * h @ h)):
        found = gradient_flow(loss, start, [0.5, 2.0], penalty=penalty)
        assert found[1] == pytest.approx(linalg.expm(-2.0 * rate.numpy()) @ start.numpy(), rel=1e-8)
    assert float(dynamics.implicit_regularizer(loss, start, lr)) == pytest.approx(lr / 4 * float((h @ start).square().sum()))
    assert slope_of(dynamics.modified_loss(loss, lr), start).numpy() == pytest.approx((h @ start + lr / 2 * h @ h @ start).numpy())
    assert penalised(loss, 0.0)(start) == loss(start)
    with pytest.raises(InvalidInput, match="grow"):
        gradient_flow(loss, start, [2.0, 1.0])


def test_a_network_as_a_function_of_one_vector():
    rng = chance.generator(7)
    with chance.scoped(rng):
        network = tanh_network(3, 4, 2).double()
    x, y = chance.normal(5, 3, rng=rng), chance.normal(5, 2, rng=rng)
    loss, start = flat_loss(network, half_squared_error, x, y)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    end = descend(loss, start, lr=0.1, steps=5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    for _ in range(5):
        optimizer.zero_grad()
        half_squared_error(network(x), y).backward()
        optimizer.step()
    assert torch.allclose(end, nn.utils.parameters_to_vector(network.parameters()), rtol=1e-12)


def euler_density(potential, edges, lr, temperature):
    """The stationary density of x - lr U'(x) + sqrt(2 lr T) xi between fine edges: the left eigenvector of its transition matrix."""
    x = torch.from_numpy((edges[1:] + edges[:-1]) / 2)[:, None]
    moved = (x + lr * force(potential, x))[:, 0].numpy()
    steps = np.diff(special.ndtr((edges[None] - moved[:, None]) / math.sqrt(2 * lr * temperature)), axis=1)
    values, vectors = np.linalg.eig(steps.T)
    found = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
    return found / found.sum()


def test_the_density_of_noisy_steps_to_first_order():
    """Off the stationary density of the Euler kernel by less than Gibbs', and four times less at half the step."""
    fine = np.linspace(-3, 3, 401)
    gaps, gibbs_gaps = [], []
    for lr in (0.08, 0.04):
        exact = euler_density(quartic, fine, lr, 0.5)
        found = dynamics.sgld_density(quartic, fine, temperature=0.5, lr=lr)
        gaps.append(np.abs(found.value - exact).sum())
        gibbs_gaps.append(np.abs(found.details["gibbs"] - exact).sum())
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.25)
    assert math.log2(gibbs_gaps[0] / gibbs_gaps[1]) == pytest.approx(1, abs=0.25)
    assert gaps[1] < gibbs_gaps[1] / 10


def test_gibbs_in_a_parabola_is_normal_and_steps_widen_it():
    edges = np.linspace(-4, 4, 33)

    def parabola(points):
        return points.square().sum(-1)

    cells = np.diff(special.ndtr(edges / math.sqrt(0.3)))
    assert dynamics.gibbs_density(parabola, edges, temperature=0.6).value == pytest.approx(cells, abs=1e-6)
    square = dynamics.gibbs_density(parabola, edges, edges, temperature=0.6).value
    assert square == pytest.approx(np.outer(cells, cells), abs=1e-6)
    variance = 1.0
    for _ in range(500):
        variance = (1 - 0.2 * 2) ** 2 * variance + 2 * 0.2 * 0.6 + 0.2**2 * 0.5**2
    assert float(dynamics.sgld_variance(2.0, temperature=0.6, lr=0.2, gradient_noise=0.5)) == pytest.approx(variance)
    with pytest.raises(OutOfScope, match="limit of stability"):
        dynamics.sgld_variance(2.0, temperature=0.6, lr=1.0)


def test_fokker_planck_moves_as_an_ornstein_uhlenbeck_process():
    def parabola(points):
        return points.square().sum(-1) / 2

    edges = np.linspace(-6, 6, 241)
    middles, start = (edges[1:] + edges[:-1]) / 2, np.diff(special.ndtr((edges - 2) / 0.3))
    for density, time in zip(dynamics.fokker_planck(parabola, edges, temperature=0.5, start=start, times=[0.0, 0.4, 2.0]).value, (0.0, 0.4, 2.0), strict=True):
        mean = density @ middles
        assert density.sum() == pytest.approx(1)
        assert mean == pytest.approx(2 * math.exp(-time), rel=2e-3)
        assert density @ middles**2 - mean**2 == pytest.approx(0.5 + (0.09 - 0.5) * math.exp(-2 * time), rel=5e-3)
    assert float(dynamics.relaxation_rate(parabola, edges, temperature=0.5)) == pytest.approx(1, rel=2e-3)
    matrix, energies = dynamics.fokker_planck_generator(double_well(), np.linspace(-2, 2, 30), np.linspace(-1.5, 1.5, 20), temperature=0.3)
    weights = np.exp(-energies / 0.3)
    assert np.abs(matrix @ weights).max() < 1e-10 * weights.max() * np.abs(matrix).max(), "Gibbs' density is stationary without error"
    assert np.abs(matrix.sum(0)).max() < 1e-10 * np.abs(matrix).max(), "nothing leaves the grid"


def test_passage_times_are_those_of_the_generator_and_kramers_is_their_limit():
    at = torch.tensor([-1.0], dtype=torch.float64)
    edges = np.linspace(-3, 1, 1601)
    found = dynamics.mean_passage_time(double_well(), -1.0, 1.0, temperature=0.3, wall=-3.0)
    # what leaves the last cell is taken away: the mean times tau of arrival solve Q' tau = -1 in the others
    matrix, _ = dynamics.fokker_planck_generator(double_well(), edges, temperature=0.3)
    times = spsolve(matrix.T.tocsc()[:-1, :-1], -np.ones(1599))
    assert float(found) == pytest.approx(np.interp(-1.0, (edges[1:-1] + edges[:-2]) / 2, times), rel=5e-3)
    mirrored = dynamics.mean_passage_time(double_well(), 1.0, -1.0, temperature=0.3, wall=3.0)
    assert float(mirrored) == pytest.approx(float(found), rel=1e-9)
    gaps = []
    for temperature in (0.1, 0.05):
        rate = dynamics.kramers_rate(double_well(), at, 0 * at, temperature=temperature)
        gap = float(rate) * float(dynamics.mean_passage_time(double_well(), -1.0, 0.9, temperature=temperature, wall=-3.0)) - 1
        assert abs(gap) < float(rate.error / rate.value)
        gaps.append(gap)
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.2), "the next order is in proportion to T"
    two = torch.tensor([-1.0, 0.0], dtype=torch.float64)
    assert float(dynamics.kramers_rate(double_well(), two, 0 * two, temperature=0.1)) == pytest.approx(float(dynamics.kramers_rate(double_well(), at, 0 * at, temperature=0.1)))
    with pytest.raises(OutOfScope, match="rare"):
        dynamics.kramers_rate(double_well(), at, 0 * at, temperature=0.6)
    with pytest.raises(InvalidInput, match="saddle"):
        dynamics.kramers_rate(double_well(), 0 * at, at, temperature=0.1)


def test_langevin_chains_take_the_steps_of_their_equation():
    start, rng = chance.normal(5, 2, rng=chance.generator(8)), chance.generator(9)
    chains = LangevinChains(double_well(tilt=0.2), start, lr=0.05, temperature=0.3, gradient_noise=0.4, rng=rng)
    chains.run(70)
    again, kicks = start.clone(), chance.generator(9)
    for count in (64, 6):
        for kick in chance.normal(count, 5, 2, rng=kicks):
            again = again + 0.05 * force(double_well(tilt=0.2), again) + math.sqrt(2 * 0.05 * 0.3 + (0.05 * 0.4) ** 2) * kick
    assert torch.allclose(chains.points, again, rtol=1e-10)
    frozen = LangevinChains(double_well(), torch.full((3, 1), -2.0, dtype=torch.float64), lr=0.01, temperature=0.0, rng=rng)
    assert frozen.arrivals(400, home=torch.tensor([-2.0]), arrived=lambda points: points[:, 0] > -1.05) > 3, "each is put back and arrives again"
    shares = occupation(double_well(), np.linspace(-1.6, 1.6, 9), lr=0.01, temperature=0.01, time=1.0, chains=40, wells=(-1.0, 1.0), spread=0.0, rng=rng)
    assert shares[[1, 6]].sum() + shares[[0, 7]].sum() + shares[[2, 5]].sum() == pytest.approx(1)


def test_the_catapult_is_gradient_descent_on_its_network():
    ends = two_layer_curvatures(5, ratio=1.5, steps=7, networks=3, rng=chance.generator(10))
    drawn = chance.normal(2, 3, 5, rng=chance.generator(10))
    for network in range(3):
        u, v = (drawn[side, network].clone().requires_grad_() for side in range(2))
        first = float(u.detach().square().sum() + v.detach().square().sum()) / 5
        optimizer = torch.optim.SGD([u, v], lr=3 / first)
        for _ in range(7):
            optimizer.zero_grad()
            ((u @ v / math.sqrt(5)).square() / 2).backward()
            optimizer.step()
        last = float(u.detach().square().sum() + v.detach().square().sum()) / 5
        assert float(ends[network]) == pytest.approx(last / first * 1.5, rel=1e-9)
