"""Shuffled epochs, as loaders make them: the covariance where SGD settles against all orders, simulations against it, and what needs independent batches."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.sgd import Sgd
from gnomon.core.subject import Subject
from gnomon.instruments import sde
from gnomon.models.chains import LeastSquaresChains
from gnomon.theory import dynamics
from gnomon.theory import noise as theory


@pytest.mark.parametrize("kind", [{}, {"momentum": 0.6}, {"momentum": 0.6, "nesterov": True}])
def test_the_covariance_of_shuffled_epochs_is_that_of_all_orders(kind):
    """Constant curvature and one number of noise an example: all 5! orders of an epoch of batches of two, one example dropped, by matrices of (theta, v)."""
    h, noise = 0.7, np.array([1.0, -0.4, 0.2, -1.1, 0.3])
    sgd = Sgd(lr=0.5, batch_size=2, examples=5, sampling="epochs", **kind)
    found = dynamics.discrete_covariance(dynamics.Quadratic([[h]], [[noise.var()]]), sgd)
    b, lr = sgd.momentum, sgd.lr

    def step(state, g):
        theta, v = state
        g = h * theta + g
        v = b * v + g
        return np.array([theta - lr * (g + b * v if sgd.nesterov else v), v])

    orders = [[np.mean(order[:2]), np.mean(order[2:4])] for order in itertools.permutations(noise)]
    affine = [(np.stack([step(e, 0.0) for e in np.eye(2)], 1), np.zeros(2))]
    moment = np.zeros((2, 2))
    for _ in range(40):
        middle = np.zeros((2, 2))
        end = np.zeros((2, 2))
        a = affine[0][0]
        for order in orders:
            one = step(np.zeros(2), order[0])
            two = step(one, order[1])
            middle += (a @ moment @ a.T + np.outer(one, one)) / len(orders)
            end += (a @ a @ moment @ a.T @ a.T + np.outer(two, two)) / len(orders)
        moment = end
    assert float(found.details["epoch_end"][0, 0]) == pytest.approx(moment[0, 0], rel=1e-9)
    assert float(found.value[0, 0]) == pytest.approx((middle[0, 0] + moment[0, 0]) / 2, rel=1e-9)


def test_chains_on_epochs_settle_where_their_covariance_says_and_what_needs_independent_batches_says_so():
    """Inputs of +1 and -1 have the same curvature in every example: the noise is the same everywhere."""
    rng = chance.generator(5)
    x = torch.ones(12, 1, dtype=torch.float64)
    x[::2] = -1
    y = chance.normal(12, rng=rng)
    sgd = Sgd(lr=0.1, batch_size=3, examples=12, sampling="epochs")
    problem = dynamics.LeastSquares(x, y)
    chains = LeastSquaresChains(x, y, sgd, chains=4000, rng=rng)
    chains.run(148)
    measured = chains.second_moment(40, about=torch.tensor(problem.minimum), every=1)
    predicted = float(dynamics.discrete_covariance(problem, sgd))
    assert float(measured) == pytest.approx(predicted, rel=0.06)  # 4,000 chains that forget in 10 steps: 1.5 %
    assert predicted < 0.6 * float(dynamics.discrete_covariance(problem, sgd.replace(sampling="without_replacement")))
    counted = torch.cat([chains._batches(4) for _ in range(3)]).transpose(0, 1).reshape(4000, 3, 12)
    assert bool((counted.sort(2).values == torch.arange(12)).all())
    for refused in (dynamics.ou_covariance, dynamics.exact_covariance, dynamics.sde_covariance, dynamics.mean_square_limit, dynamics.averaged_covariance):
        with pytest.raises(OutOfScope, match="shuffled epoch make up for each other"):
            refused(problem, sgd)
    with pytest.raises(OutOfScope, match="shuffled epoch"):
        dynamics.step_losses(problem, sgd, start=[0.0], steps=[1])
    with pytest.raises(OutOfScope, match="independent of each other"):
        sgd.replace(svag=2)


def test_the_test_on_a_network_compares_epochs_with_the_equation_of_independent_batches():
    """L = mean (w - y_i)^2 from its minimum: after an epoch exactly var y + (f - c) sum T_i^2 + c (sum T_i)^2, T_i = lr (1 - 2 lr)^i."""
    y = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    subject = Subject.freeze(model, "mse", (torch.ones_like(y), y), optimizer="sgd", lr=0.4, batch_size=4, chunk=64)
    reading = sde.svag(subject, rng=chance.generator(2), runs=600, steps=10, levels=(16,), sampling="epochs")
    variance, decay = float(y.var(correction=0)), 0.2 ** np.arange(10)
    one, c = 4 * variance / 4 * 36 / 39, -4 * variance / 39
    shuffled = variance + 0.16 * ((one - c) * (decay**2).sum() + c * decay.sum() ** 2)
    equation = variance + 0.4 * one / 4  # lr f S / 2h, all but e^-8 of it after this time
    losses = np.array(reading.details["losses"])
    assert abs(losses.mean() - shuffled) < 4 * losses.std() / 600**0.5
    # the line through levels 1 and 16 lacks b / l^2: 1 / (1 - .4 / l) is no line in 1 / l
    assert float(reading) == pytest.approx(1 - equation / shuffled, abs=4 * float(reading.error) + 0.01)
    with pytest.raises(OutOfScope, match="shuffled epoch"):
        theory.noise_excess_loss([[1.0]], [[1.0]], sde.steps_of(subject, "epochs"), steps=3)
