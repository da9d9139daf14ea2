"""Descents on factors: what diverges is kept with its step, what was cut goes on, what cannot be stable is said before."""

import io
import logging

import pytest
import torch
from networks import normal

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.sgd import Sgd
from gnomon.data.regression import regression
from gnomon.models import deep_matrix as matrices
from gnomon.models import factor_descent
from gnomon.models import tensor_factorization as tensors
from gnomon.models.chains import LeastSquaresChains
from gnomon.models.factor_descent import FactorDescent, squared_slope
from gnomon.models.langevin import LangevinChains
from gnomon.numerics.potentials import double_well


def a_matrix(lr, size=1.0):
    return matrices.descent(matrices.normal_factors((3, 4), depth=3, size=size, starts=4, rng=chance.generator(0)), squared_slope(normal(3, 4)), lr=lr)


def a_tensor(lr, size=1.0):
    return tensors.descent(tensors.normal_components((3, 2, 4), components=3, size=size, starts=4, rng=chance.generator(0)), squared_slope(normal(3, 2, 4)), lr=lr)


@pytest.mark.parametrize("build", [a_matrix, a_tensor])
def test_a_start_that_diverges_is_kept_with_its_step_and_leaves_the_others_alone(build, caplog):
    """The first start is far too large; each step is made by hand beside it."""
    made, plain = build(0.05), build(0.05)
    made.factors[0][0] *= 60.0
    before, lost = [factor.clone() for factor in made.factors], 1
    while True:
        after = [factor - 0.05 * move for factor, move in zip(before, made.gradients(before), strict=True)]
        if not all(bool(torch.isfinite(part[0]).all()) for part in [*after, *made.gradients(after)]):
            break
        before, lost = after, lost + 1
    with caplog.at_level(logging.WARNING):
        made.run(100)
        made.run(100)
    plain.run(200)
    assert made.diverged.tolist() == [lost, 0, 0, 0]
    assert f"first at step {lost}" in caplog.text
    for kept, last, other in zip(made.factors, before, plain.factors, strict=True):
        assert torch.allclose(kept[0], last[0])
        assert torch.equal(kept[1:], other[1:])


@pytest.mark.parametrize("build", [a_matrix, a_tensor])
def test_a_run_that_was_cut_goes_on_to_the_bit(build):
    whole, cut, other = build(0.05), build(0.05), build(0.05)
    whole.factors[0][0] *= 60.0
    cut.factors[0][0] *= 60.0
    whole.run(150)
    cut.run(70)
    file = io.BytesIO()
    torch.save(cut.state(), file)
    file.seek(0)
    other.resume(torch.load(file))
    other.run(80)
    assert other.steps == 150
    assert torch.equal(other.diverged, whole.diverged)
    assert int(whole.diverged[0]) > 0
    assert all(torch.equal(a, b) for a, b in zip(other.factors, whole.factors, strict=True))
    with pytest.raises(InvalidInput, match="another simulation"):
        matrices.descent([normal(2, 3, 3)], squared_slope(normal(3, 3)), lr=0.1).resume(cut.state())


def chains(seed, sampling="without_replacement"):
    x, y = regression(12, 3, 4.0, rng=chance.generator(2))
    sgd = Sgd(lr=0.2, batch_size=4, examples=12, sampling=sampling, momentum=0.5)
    return LeastSquaresChains(x, y, sgd, chains=3, rng=chance.generator(seed))


def chains_of_epochs(seed):
    return chains(seed, "epochs")


def langevin(seed):
    return LangevinChains(double_well(), normal(5, 1), lr=0.01, temperature=0.3, rng=chance.generator(seed))


@pytest.mark.parametrize("build", [chains, chains_of_epochs, langevin])
def test_chains_that_were_cut_go_on_to_the_bit(build):
    """In a new process the seed may be another: chance goes on where it was."""
    whole, cut, other = build(3), build(3), build(4)
    further = {} if build is langevin else {"averaged": True}
    for made in (whole, cut):
        made.run(70, **further)
    file = io.BytesIO()
    torch.save(cut.state(), file)
    file.seek(0)
    other.resume(torch.load(file))
    for made in (whole, other):
        made.run(50, **further)
    assert all(torch.equal(part, other.state()[key]) for key, part in whole.state().items())
    with pytest.raises(InvalidInput, match="another simulation"):
        other.resume(a_matrix(0.1).state())


@pytest.mark.parametrize(("depth", "whole"), [(1, True), (2, True), (4, True), (2, False), (3, False)])
def test_above_the_limit_that_is_said_no_minimum_is_stable_and_below_it_one_is(depth, whole, caplog):
    """Balanced factors of a matrix at rest, moved a little: they come back below the limit of a matrix seen whole, and leave above it."""
    target = normal(4, 4)
    seen = torch.ones(4, 4) if whole else (normal(4, 4, seed=1) > 0.3).double()
    factors = matrices.balanced_factors(target[None], depth)
    size = torch.linalg.matrix_norm(target, 2) if whole else (seen * target).abs().max()
    limit = 2 / (depth * float(size) ** (2 - 2 / depth))
    for share in (0.95, 1.05) if whole else (1.05,):
        caplog.clear()
        moved = [factor + 1e-6 * normal(*factor.shape, seed=5 + place) for place, factor in enumerate(factors)]
        made = matrices.descent(moved, squared_slope(target, seen), lr=share * limit)
        assert (f"above {limit:.4g}" in caplog.text) == (share > 1)
        loss = lambda made=made: float((seen * (matrices.product(made.factors) - target)).norm())  # noqa: E731
        start = loss()
        made.run(60)
        assert (loss() > start) == (share > 1)


def test_the_sharpness_of_completed_tensors_is_at_least_what_the_limit_says(caplog):
    """At minima of the tensor's loss, by the Hessian that autograd makes, with components of all kinds."""
    for seed, components in ((0, 1), (1, 2), (2, 4)):
        parts = [normal(1, components, d, seed=10 * seed + place) for place, d in enumerate((2, 3, 2))]
        target, seen = tensors.dense(parts)[0], (normal(2, 3, 2, seed=seed) > 0).double()
        shapes = [part.shape for part in parts]

        def loss(flat, shapes=shapes, seen=seen, target=target):
            pieces = [piece.reshape(shape) for piece, shape in zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)]
            return (seen * (tensors.dense(pieces)[0] - target).square()).sum() / 2

        sharpness = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, torch.cat([part.flatten() for part in parts])))[-1])
        caplog.clear()
        tensors.descent(parts, squared_slope(target, seen), lr=2.0 / sharpness * 1e6)
        assert float(caplog.messages[0].split("above ")[1].split(",")[0]) >= 2 / sharpness * 0.999


def test_bad_input():
    for call, said in (
        (lambda: FactorDescent([normal(2, 3)], lambda parts: parts, lr=0.0), "above 0"),
        (lambda: FactorDescent([normal(2, 3)], lambda parts: parts, lr=float("nan")), "above 0"),
        (lambda: FactorDescent([normal(2, 3), normal(3, 3)], lambda parts: parts, lr=0.1), "runs over the starts"),
        (lambda: FactorDescent([], lambda parts: parts, lr=0.1), "runs over the starts"),
        (lambda: FactorDescent([torch.full((1, 2), torch.inf)], lambda parts: parts, lr=0.1), "finite factors"),
        (lambda: tensors.descent([1e200 * normal(2, 1, 2), normal(2, 1, 2)], squared_slope(normal(2, 2)), lr=0.1), "begin with smaller"),
        (lambda: squared_slope(torch.tensor([[1.0, torch.nan]])), "1 and 0 entries"),
        (lambda: squared_slope(normal(2, 3), torch.ones(3, 2)), "shape of what is seen"),
        (lambda: matrices.descent([normal(1, 2, 3), normal(1, 2, 3)], squared_slope(normal(2, 3)), lr=0.1), "the first to act first"),
        (lambda: matrices.descent([normal(1, 2, 3)], squared_slope(normal(2, 1, 2, 3)), lr=0.1), "is the target of that shape"),
        (lambda: matrices.descent([], squared_slope(normal(2, 3)), lr=0.1), "the first to act first"),
        (lambda: factor_descent.check_records([3, 2]), "do not fall"),
        (lambda: factor_descent.check_records([1.5]), "whole numbers"),
        (lambda: a_matrix(0.1).run(-1), "cannot make -1 steps"),
        (lambda: factor_descent.check_records([]), "do not fall"),
    ):
        with pytest.raises(InvalidInput, match=said):
            call()
