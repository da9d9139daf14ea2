"""The hard margin against scikit-learn's support vector machine, and the way that descent takes to it."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import SVC

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.separable import exponential_flow, normalised_flows, separable
from gnomon.theory.margin import growth, max_margin, multiclass_max_margin, normalised_direction


def data(n=80, d=5, gap=0.5, sets=1, seed=0):
    return separable(sets, n, d, gap=gap, rng=chance.generator(seed))


@pytest.mark.parametrize(("n", "d"), [(2, 1), (20, 3), (500, 20), (30, 60)])
def test_the_margin_is_that_of_a_support_vector_machine(n, d):
    (x,), (y,) = data(n, d)
    found = max_margin(x, y)
    both = np.vstack([y[:, None] * x, -y[:, None] * x])  # mirrored, so that the best plane goes through 0
    machine = SVC(kernel="linear", C=1e10, tol=1e-10).fit(both, np.repeat([1, -1], n))
    assert found.margin == pytest.approx(1 / np.linalg.norm(machine.coef_), rel=1e-5)
    assert found.direction @ machine.coef_[0] / np.linalg.norm(machine.coef_) == pytest.approx(1, abs=1e-6)


def test_the_conditions_of_optimality():
    (x,), (y,) = data(400, 10)
    found = max_margin(x.float(), y > 0)  # labels of any two values
    z = (y[:, None] * x.float()).double().numpy()
    margins = z @ found.direction
    assert margins.min() == pytest.approx(found.margin, rel=1e-8)
    assert np.allclose(margins[found.support], found.margin, rtol=1e-8)
    assert np.allclose(z.T @ found.shares, found.direction / found.margin, rtol=1e-8)
    assert found.shares.sum() == pytest.approx(1 / found.margin**2, rel=1e-8)


def test_data_that_are_not_separable_are_refused_with_the_examples_in_the_way():
    (x,), (y,) = data(60, 3, gap=1.0)
    y[18] *= -1
    with pytest.raises(OutOfScope, match=r"on the wrong side: 18\. Correct"):
        max_margin(x, y)
    same = torch.stack([x[0], x[0]])
    with pytest.raises(OutOfScope, match="2 examples.*side: [01]"):
        max_margin(same, torch.tensor([1, -1]))


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.ones(3, 2), torch.ones(3), "two classes"),
        (torch.ones(3, 1, 2), torch.tensor([0, 1, 1]), "flatten"),
        (torch.full((2, 1), torch.nan), torch.tensor([0, 1]), "not finite"),
    ],
)
def test_bad_input(x, y, said):
    with pytest.raises(InvalidInput, match=said):
        max_margin(x, y)


def test_early_times_are_refused():
    (x,), (y,) = data()
    with pytest.raises(InvalidInput, match=r"e\^2"):
        growth(max_margin(x, y), [5.0, 100.0])


def test_the_flow_is_that_of_gradient_descent_with_short_steps_and_comes_to_the_margin():
    x, y = data(20, 3, sets=2)
    losses, weights = exponential_flow(x, y, times=[1.0, 10.0, 1e12])
    z, w, lr = y[..., None] * x, torch.zeros(2, 3, dtype=torch.float64), 1e-3
    for step in range(int(10 / lr)):
        w = w + lr * torch.einsum("snd,sn->sd", z, (-torch.einsum("snd,sd->sn", z, w)).exp())
        if step + 1 == int(1 / lr):
            assert torch.allclose(w, weights[0], atol=3e-2)  # Euler's error at the steep start, and the flow's start at 0.001
    assert torch.allclose(w, weights[1], atol=1e-2)
    for loss, weight, inputs, labels in zip(losses[2], weights[2], x, y, strict=True):
        found = max_margin(inputs, labels)
        assert weight @ torch.from_numpy(found.direction) / weight.norm() > 1 - 3e-3
        assert float(loss) == pytest.approx(-np.log(1e12 * found.margin**2), abs=0.05)  # L -> 1 / (gamma^2 t)


def test_a_logistic_loss_has_the_same_limit():
    x, y = data(20, 3, sets=2)
    both = [exponential_flow(x, y, times=[1e10], logistic=logistic) for logistic in (False, True)]
    assert torch.allclose(both[0][0], both[1][0], atol=1e-2)


@pytest.mark.parametrize("norm", [0.5, 5.0, 50.0])
def test_at_a_norm_the_direction_is_critical_and_nears_the_margin(norm):
    (x,), (y,) = data(30, 4)
    found = torch.from_numpy(normalised_direction(x, y, norm=norm).value)
    v = found.clone().requires_grad_()
    slope = torch.autograd.grad((-norm * (y[:, None] * x) @ v).logsumexp(0), v)[0]
    tangent = slope - (found @ slope) * found
    assert tangent.norm() < 1e-7 * slope.norm()
    assert slope @ found < 0, "along the direction the loss falls"
    assert (normalised_flows(x, y, norm=norm, steps=3_000) - found).abs().max() < 1e-7
    assert np.linalg.norm(found.numpy() - max_margin(x, y).direction) < 4 / norm


def test_a_norm_must_be_positive():
    (x,), (y,) = data(30, 4)
    with pytest.raises(InvalidInput, match="above 0"):
        normalised_direction(x, y, norm=0.0)
    with pytest.raises(InvalidInput, match="above 0"):
        normalised_flows(x, y, norm=0.0, steps=1)
    with pytest.raises(InvalidInput, match="grow"):
        exponential_flow(x[None], y[None], times=[10.0, 1.0])


def classes(n, d, k, seed=0):
    """Inputs and labels that k random directions tell apart by at least 0.3."""
    rng = chance.generator(seed, "classes")
    x, w = chance.normal(20 * n, d, rng=rng), chance.normal(k, d, rng=rng)
    best = (x @ w.T).topk(2, 1)
    clear = best.values[:, 0] - best.values[:, 1] > 0.3
    return x[clear][:n], best.indices[clear, 0][:n]


@pytest.mark.parametrize(("n", "d", "k"), [(12, 3, 3), (9, 5, 4)])
def test_many_classes_are_the_quadratic_program_solved_directly(n, d, k):
    x, y = (part.numpy() for part in classes(n, d, k, seed=3))
    present, y = np.unique(y, return_inverse=True)
    k = len(present)
    found = multiclass_max_margin(x, y)
    pairs = np.stack([np.kron(np.eye(k)[y[i]] - np.eye(k)[c], x[i]) for i in range(n) for c in range(k) if c != y[i]])
    direct = minimize(
        lambda w: w @ w / 2, found.direction.ravel() * 0 + 1, jac=lambda w: w, method="SLSQP", options={"ftol": 1e-14, "maxiter": 2000},
        constraints={"type": "ineq", "fun": lambda w: pairs @ w - 1, "jac": lambda w: pairs},
    )  # fmt: skip
    assert direct.success
    assert found.margin == pytest.approx(1 / np.linalg.norm(direct.x), rel=1e-6)
    assert np.allclose(found.direction.ravel(), direct.x / np.linalg.norm(direct.x), atol=1e-5)
    outputs = x @ found.direction.T
    gaps = (outputs[np.arange(n), y][:, None] - outputs)[found.shares > 0]
    assert np.allclose(gaps, found.margin, rtol=1e-8)
    assert np.abs(found.direction.sum(0)).max() < 1e-9


def test_of_two_classes_it_is_the_binary_margin_and_classes_may_have_any_label():
    (x,), (y,) = data(60, 4)
    one, two = max_margin(x, y), multiclass_max_margin(x, 7 * y)
    assert two.margin == pytest.approx(2**0.5 * one.margin, rel=1e-8)
    assert np.allclose(two.direction[1] - two.direction[0], 2**0.5 * one.direction, atol=1e-7)
    assert np.array_equal(one.support, two.support)


def test_normalised_descent_on_cross_entropy_nears_the_margin_and_never_passes_it():
    """Among weights of norm rho the least loss has a margin at most log(n (K - 1)) / rho below gamma; descent is given twice that."""
    x, y = classes(40, 5, 3, seed=1)
    found, w = multiclass_max_margin(x, y), torch.zeros(3, 5, dtype=torch.float64)
    rest = torch.nn.functional.one_hot(y, 3).double()
    missing = []
    for step in range(1, 20_001):
        wrong = torch.softmax(x @ w.T, 1) * (1 - rest)  # the own class's 1 - p by the others', which does not cancel
        slope = (wrong - rest * wrong.sum(1, keepdim=True)).T @ x
        w -= 0.05 * slope / slope.norm()
        if step in (200, 2_000, 20_000):
            outputs = x @ w.T
            margin = float((outputs.gather(1, y[:, None]) - outputs)[rest == 0].min() / w.norm())
            missing.append((found.margin - margin, 2 * np.log(80) / float(w.norm())))
    assert all(0 < gap <= most for gap, most in missing)
    assert missing[2][0] < missing[1][0] < missing[0][0]


def test_classes_that_nothing_separates_are_refused_with_the_example_in_the_way():
    x, y = classes(60, 4, 3, seed=2)
    y[17] = (y[17] + 1) % 3
    with pytest.raises(OutOfScope, match=r"these 60 examples.*17"):
        multiclass_max_margin(x, y)
    with pytest.raises(InvalidInput, match="all labels are the same"):
        multiclass_max_margin(x, y * 0)
