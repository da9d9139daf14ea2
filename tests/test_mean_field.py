"""Order parameters of the teacher-student setting against samples, and against students that learn."""

import math

import numpy as np
import pytest
import torch

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.teacher_student import committee, fluctuations, learn_on_line, orthogonal_teacher, particle_outputs, particle_paths
from gnomon.theory.mean_field import _velocities, generalization_error, teacher_student_path
from gnomon.theory.particles import mean_field_path


def overlaps(student, teacher):
    return student @ student.mT, student @ teacher.T, teacher @ teacher.T


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_averages_are_those_of_samples(noise):
    rng = chance.generator(0)
    student, teacher, lr = 0.7 * chance.normal(3, 4, rng=rng), chance.normal(2, 4, rng=rng), 0.3
    x = chance.normal(250_000, 4, rng=rng)
    fields, aims = x @ student.T, x @ teacher.T
    delta = committee(teacher, x) - committee(student, x)
    q, r, t = (part.numpy() for part in overlaps(student, teacher))
    squares = delta.square() / 2
    assert generalization_error(q, r, t) == pytest.approx(float(squares.mean()), abs=5 * float(squares.std()) / 500)
    delta = delta + noise * chance.normal(len(x), rng=rng)
    d = math.sqrt(2 / math.pi) * (-fields.square() / 2).exp() * delta[:, None]
    found = _velocities(q, r, t, lr, noise)
    drawn = lr * (d[:, :, None] * fields[:, None] + d[:, None] * fields[:, :, None]) + lr**2 * d[:, :, None] * d[:, None], lr * d[:, :, None] * aims[:, None]
    for theory, samples in zip(found, drawn, strict=True):
        assert (abs(torch.from_numpy(theory) - samples.mean(0)) < 5 * samples.std(0) / 500).all()


def test_students_with_many_inputs_follow_the_equations():
    rng = chance.generator(1)
    teacher = orthogonal_teacher(2, 200, rng=rng)
    student = 0.5 * chance.normal(1, 2, 200, rng=rng) / 200**0.5
    path = teacher_student_path(*overlaps(student[0], teacher), lr=0.5, times=[0.0, 5.0, 15.0])
    made = learn_on_line(student.repeat(10, 1, 1), teacher, lr=0.5, records=[0, 1_000, 3_000], rng=rng)
    errors = np.array([[generalization_error(*(part.numpy() for part in overlaps(one, teacher))) for one in record] for record in made])
    assert errors[0] == pytest.approx(np.full(10, path.value[0]))
    assert (abs(errors.mean(1) - path.value)[1:] < 4 * errors.std(1, ddof=1)[1:] / 10**0.5 + 5 / 200 * path.value[1:]).all()
    assert path.value[2] < 0.8 * path.value[0]


def test_a_student_that_knows_the_teacher_stays():
    teacher = orthogonal_teacher(3, 5, rng=chance.generator(0))
    path = teacher_student_path(*overlaps(teacher, teacher), lr=0.5, times=[1.0, 10.0])
    assert abs(path.value).max() < 1e-12


def test_bad_input():
    one = torch.eye(1).double()
    for arguments, said in (
        ((one, 2 * one, one, 0.1, [1.0]), "no covariance"), ((one, one, one, -0.1, [1.0]), "above 0"), ((one, one, one, 0.1, [2.0, 1.0]), "not fall"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=said):
            teacher_student_path(*arguments[:3], lr=arguments[3], times=arguments[4])
    with pytest.raises(InvalidInput, match="orthogonal"):
        orthogonal_teacher(3, 2, rng=chance.generator(0))
    with pytest.raises(InvalidInput, match="records"):
        learn_on_line(one[None], one, lr=0.1, records=[2, 1], rng=chance.generator(0))


def test_particles_take_the_gradient_of_the_mean_field_loss():
    rng = chance.generator(0)
    x, y = chance.normal(5, 2, rng=rng), chance.normal(5, rng=rng)
    drawn = chance.normal(3, 7, 3, rng=chance.generator(1)).requires_grad_()

    def units(of):
        return of[..., :1] * torch.erf(of[..., 1:] @ x.T / math.sqrt(2))

    loss = (units(drawn).mean(1) - y).square().sum() / (2 * len(x))
    moved = drawn - 0.3 * 7 * torch.autograd.grad(loss, drawn)[0]
    assert torch.allclose(particle_outputs(x, y, width=7, networks=3, lr=0.3, steps=1, rng=chance.generator(1)), units(moved))


def test_fluctuations_are_those_of_independent_and_of_equal_units():
    drawn = chance.normal(20_000, 4, 2, rng=chance.generator(0))
    variance, covariance = fluctuations(drawn)
    assert (variance, covariance) == (pytest.approx(0.25, rel=0.05), pytest.approx(0, abs=0.02))
    assert fluctuations(drawn[:, :1].expand(-1, 4, -1)) == pytest.approx((1, 1), rel=0.05)


def test_the_density_of_units_at_early_times_and_against_a_wide_network():
    rng = chance.generator(3)
    x, at = chance.normal(8, 2, rng=rng), chance.normal(5, 2, rng=rng)
    y = torch.sin(x[:, 0])
    path = mean_field_path(x, y, times=[0.0, 0.01, 3.0], at=at, particles=1024, activation=lambda z: torch.erf(z / math.sqrt(2)))
    assert abs(path.value[0]).max() < 1e-12

    # to first order in t, f = t K y / N with the tangent kernel of the start, <s s> + <a^2> x.x' <s' s'>: arcsines and their slopes
    def kernel(u, v):
        c, one, two = u @ v.T, 1 + u.square().sum(1)[:, None], 1 + v.square().sum(1)[None]
        return 2 / math.pi * (torch.arcsin(c / (one * two).sqrt()) + c / (one * two - c**2).sqrt())

    first = (kernel(at, x) @ y / len(x)).numpy()
    assert path.value[1] / 0.01 == pytest.approx(first, abs=0.02 * abs(first).max())
    wide = particle_paths(x, y, at, width=1_000, networks=20, lr=0.02, records=[150], rng=rng)[0]
    error = wide.std(0, unbiased=True).numpy() / 20**0.5
    assert (abs(wide.mean(0).numpy() - path.value[2]) < 4 * np.hypot(error, path.error[2]) + 0.005 + 2 / 1_000).all()


def test_bad_input_of_the_density():
    x, y = torch.ones(3, 2), torch.ones(3)
    for change, said in (
        ({"times": [2.0, 1.0]}, "not fall"),
        ({"times": [1.0], "scrambles": 1}, "2 scrambles"),
        ({"times": [1.0], "targets": y / 0}, "finite"),
    ):
        with pytest.raises(InvalidInput, match=said):
            mean_field_path(x, **({"targets": y} | change))


def test_a_path_that_is_too_stiff_says_how_far_it_came(monkeypatch):
    monkeypatch.setattr("gnomon.theory.particles.EVALUATIONS", 300)
    with pytest.raises(OutOfScope, match="300 evaluations got to"):
        mean_field_path(torch.ones(3, 2), torch.full((3,), 1e6), times=[1e3], activation=lambda z: z, particles=64)
