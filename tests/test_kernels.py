import dataclasses
import math

import numpy as np
import pytest
import torch
from networks import NETWORKS, Tokens, batchnorm, cnn, mlp_regression, tied_frozen, tokens
from torch import nn

from gnomon.core import contract, registry
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject
from gnomon.core.training import Training
from gnomon.examination import kernels as chapter
from gnomon.examination.facts import facts_of
from gnomon.instruments import kernels, linearisation
from gnomon.studies.contract import moved, token_loss, token_weight
from gnomon.theory import kernels as theory

RNG = chance.generator(0, "kernels")
TRUTHS = [
    (kernels.ntk_spectrum, kernels.exact_spectrum), (kernels.ntk_movement, kernels.exact_movement), (kernels.kernel_target_alignment, kernels.exact_alignment),
    (linearisation.linearised_outputs, linearisation.exact_linearised), (linearisation.gauss_newton_sharpness, linearisation.exact_gauss_newton),
]  # fmt: skip


def least_squares(n=20, outputs=1, dtype=torch.float64, **settings):
    """A linear network: its NTK is x.x' for every output, at any weights."""
    x = chance.normal(n, 5, rng=chance.generator(1, "x")).to(dtype)
    y = chance.normal(n, outputs, rng=chance.generator(1, "y")).to(dtype)
    return moved(lambda: nn.Linear(5, outputs, bias=False), dtype, "mse", (x, y), (x, y), **settings), x.double().numpy(), y.double().numpy()


class Product(nn.Module):
    """f = a b x."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a, dtype=torch.float64)), nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, x):
        return self.a * self.b * x


def product(start, end, n=9):
    x = chance.normal(n, 1, rng=chance.generator(2, "x"))
    return Subject.freeze(Product(*end), "mse", (x, 2 * x), initial=Product(*start), lr=0.1)


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_readings_are_those_of_dense_jacobians(build):
    subject = build()
    if build is tied_frozen:  # its frozen layer would have changed
        subject = dataclasses.replace(subject, initial={key: value if key in subject.trainable else subject.state[key] for key, value in subject.initial.items()})
    for instrument, truth in TRUTHS:
        try:
            reading = instrument(subject, rng=RNG)
        except OutOfScope:
            assert build is batchnorm
            continue
        exact = truth(subject)
        assert np.abs(reading.value - exact).max() <= max(1e-10 * np.abs(exact).max(), float(np.max(reading.error)))


def test_a_linear_network_never_moves_its_kernel():
    subject, x, y = least_squares(outputs=3)
    spectrum = kernels.ntk_spectrum(subject, rng=RNG)
    expected = np.linalg.eigvalsh(x @ x.T / 20)[::-1][:10]
    assert np.allclose(spectrum.value, expected, atol=1e-12)
    assert spectrum.details["trace"] == pytest.approx(float(np.trace(x @ x.T)) / 20)
    assert float(kernels.ntk_movement(subject, rng=RNG)) <= 1e-12
    assert float(linearisation.linearised_outputs(subject, rng=RNG)) <= 1e-12
    left, right = x - x.mean(0), y - y.mean(0)
    cka = np.linalg.norm(left.T @ right) ** 2 / (np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right))  # linear CKA, written with features
    assert float(kernels.kernel_target_alignment(subject, rng=RNG)) == pytest.approx(cka, rel=1e-10)


def test_the_loss_sees_the_kernel():
    """For the squared loss with one output the Gauss-Newton matrix has the eigenvalues of 2 Theta / n; for a linear network it is the Hessian."""
    subject, x, _ = least_squares()
    sharpness = linearisation.gauss_newton_sharpness(subject, rng=RNG)
    assert float(sharpness) == pytest.approx(2 * float(kernels.ntk_spectrum(subject, rng=RNG).value[0]), rel=1e-6)
    assert float(sharpness) == pytest.approx(2 * float(np.linalg.eigvalsh(x.T @ x / 20)[-1]), rel=1e-6)


def test_the_product_of_two_weights_in_closed_form():
    (a0, b0), (a1, b1) = (0.4, 0.7), (1.3, 1.5)
    subject = product((a0, b0), (a1, b1))
    movement = kernels.ntk_movement(subject, rng=RNG)
    growth = (a1**2 + b1**2) / (a0**2 + b0**2)
    assert float(movement) == pytest.approx(growth - 1)
    assert movement.details["growth"] == pytest.approx(growth)
    assert movement.details["distance"] == pytest.approx(0, abs=1e-12)
    missed = (a1 - a0) * (b1 - b0) / (a1 * b1 - a0 * b0)
    assert float(linearisation.linearised_outputs(subject, rng=RNG)) == pytest.approx(missed)


def test_alignment_is_one_for_the_kernel_of_the_targets_and_ignores_scale_and_shift():
    targets = chance.normal(12, 3, rng=chance.generator(3, "y")).numpy()
    orthogonal = np.linalg.qr(targets - targets.mean(0))[0]
    assert kernels._alignment(targets @ targets.T, targets) == pytest.approx(1)
    assert kernels._alignment(5 * targets @ targets.T + 2, targets + 1) == pytest.approx(1)
    assert kernels._alignment(np.eye(12), orthogonal) == pytest.approx(3 / math.sqrt(11 * 3))


def test_scores_of_positions_are_averaged_whichever_dimension_holds_the_classes():
    subject = tokens(n=10)

    class Moved(Tokens):
        def forward(self, ids, mask):
            return super().forward(ids, mask)["logits"].movedim(-1, 1)

    def build():
        return Moved()

    def loss(output, targets):
        return token_loss(output.movedim(1, -1), targets)

    (block,) = subject.train.blocks
    other = moved(build, torch.float64, loss, (block.inputs, block.targets), (block.inputs, block.targets), weight=token_weight)
    assert other.classes == subject.classes == 7
    one, two = (kernels._kernel(s, 16).whole for s in (subject, other))
    assert np.allclose(one, two, rtol=1e-12)
    ignored = [i for i, row in enumerate(block.targets) if (row == -1).all()]
    assert ignored
    assert np.abs(one[ignored]).max() == 0


DRAWS = 40
LEAST = 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / DRAWS)
"""Two and a half binomial errors below 95 %."""


@pytest.mark.parametrize("name", ["ntk_spectrum", "ntk_movement", "kernel_target_alignment", "linearised_outputs", "gauss_newton_sharpness"])
def test_a_half_of_the_examples_speaks_for_all(name):
    seen = contract.coverage(registry.get_instrument(name), mlp_regression(n=48, chunk=48), draws=DRAWS, half=True)
    assert seen.error_kind == "sample"
    assert seen.rate >= LEAST, seen


def wide():
    """A network of forty outputs, more than there are directions."""

    def build():
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 40))

    x, y = chance.normal(16, 6, rng=chance.generator(4, "x")), chance.integers(40, 16, rng=chance.generator(4, "y"))
    return moved(build, torch.float64, "cross_entropy", (x, y), (x, y), chunk=64)


def test_random_directions_stand_for_many_outputs(monkeypatch):
    subject, plain = wide(), kernels._kernel
    exact = {instrument: truth(subject) for instrument, truth in TRUTHS[:3]}
    inside = {instrument: [] for instrument in exact}
    for seed in range(DRAWS):
        monkeypatch.setattr(kernels, "_kernel", lambda part, probes, seed=seed: plain(part, probes, seed))
        for instrument, truth in exact.items():
            reading = instrument(subject, rng=RNG, probes=16)
            inside[instrument].append((reading.interval[0] <= truth) & (truth <= reading.interval[1]))
            assert reading.error_kind == "probe"
            assert any("16 random directions" in text for text in reading.assumes)
    monkeypatch.setattr(kernels, "_kernel", plain)
    for instrument, truth in exact.items():
        assert np.mean(inside[instrument]) >= LEAST, instrument
        assert np.allclose(instrument(subject, rng=RNG, probes=40).value, truth, rtol=1e-10)


def test_many_examples_are_drawn_from(monkeypatch):
    monkeypatch.setattr(kernels, "MOST", 24)
    reading = kernels.ntk_movement(cnn(n=64), rng=RNG)
    assert reading.error_kind == "sample"
    assert reading.details["examples"] == 24
    assert "the NTK on 24 of 64 examples" in reading.assumes


def test_what_cannot_be_compared_is_refused_by_name():
    with pytest.raises(OutOfScope, match=r"body\.1.*batch norm"):
        kernels.ntk_movement(batchnorm(), rng=RNG)
    with pytest.raises(OutOfScope, match=r"body\.1.*batch norm"):
        kernels.ntk_spectrum(batchnorm().at(batchnorm().initial, "initial"), rng=RNG)
    assert kernels.ntk_spectrum(batchnorm(), rng=RNG).value.size == 10
    with pytest.raises(OutOfScope, match=r"fixed\.weight"):
        linearisation.linearised_outputs(tied_frozen(), rng=RNG)
    with pytest.raises(OutOfScope, match="initial"):
        kernels.ntk_movement(dataclasses.replace(cnn(), initial=None), rng=RNG)
    with pytest.raises(OutOfScope, match="have not moved|are those at initialisation"):
        linearisation.linearised_outputs(product((1.0, 2.0), (1.0, 2.0)), rng=RNG)
    with pytest.raises(OutOfScope, match="is 0"):
        kernels.ntk_movement(product((0.0, 0.0), (1.0, 2.0)), rng=RNG)
    with pytest.raises(OutOfScope, match="at least 4"):
        kernels.ntk_spectrum(cnn(n=3), rng=RNG)
    same = Subject.freeze(nn.Linear(2, 1), "mse", (chance.normal(8, 2, rng=RNG), torch.ones(8, 1)))
    with pytest.raises(OutOfScope, match="equal"):
        kernels.kernel_target_alignment(same.to(torch.float64), rng=RNG)
    with pytest.raises(InvalidInput, match="probes"):
        kernels.ntk_spectrum(cnn(), rng=RNG, probes=0)
    lengths = [(torch.randn(5, length, generator=chance.generator(0)), torch.zeros(5, length)) for length in (3, 4)]
    with pytest.raises(OutOfScope, match="from 3 to 4"):
        kernels.ntk_spectrum(Subject.freeze(nn.PReLU(), "mse", lengths), rng=RNG)


class Scaled(nn.Module):
    """scale (h(w) - h(w_0)), zero at initialisation."""

    def __init__(self, scale):
        super().__init__()
        with chance.scoped(chance.generator(5, "scaled")):
            self.body = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        self.scale = scale
        self.register_buffer("weights", torch.cat([p.detach().reshape(-1) for p in self.body.parameters()]))

    def forward(self, x):
        state, start = {}, 0
        for key, value in self.body.named_parameters():
            state[key], start = self.weights[start : start + value.numel()].view(value.shape), start + value.numel()
        return self.scale * (self.body(x) - torch.func.functional_call(self.body, state, (x,)))


def fitted(scale, lr=0.3, steps=400):
    """Trained by full-batch gradient descent on the squared loss, with the step that belongs to the scale."""
    x = chance.normal(24, 3, rng=chance.generator(6, "x"))
    y = torch.sin(2 * x[:, :1])
    model = Scaled(scale)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(steps):
        gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr / scale**2 * gradient
    return Subject.freeze(model, "mse", (x, y), initial=initial, lr=lr / scale**2, batch_size=24)


def rows_of(subject, **changes):
    readings = {"ntk_movement": kernels.ntk_movement(subject, rng=RNG), "linearised_outputs": linearisation.linearised_outputs(subject, rng=RNG)}
    at_start = subject.at(subject.initial, "initial")
    for name in ("ntk_spectrum", "kernel_target_alignment"):
        readings |= {name: registry.get_instrument(name)(subject, rng=RNG), f"{name}@initial": registry.get_instrument(name)(at_start, rng=RNG)}
    readings["gauss_newton_sharpness@initial"] = linearisation.gauss_newton_sharpness(at_start, rng=RNG)
    rows = chapter.chapter(dataclasses.replace(facts_of(subject), **changes), readings)
    return {row.title: (row, *row.settle()) for row in rows}, readings


def test_a_large_output_scale_is_lazy():
    rows, readings = rows_of(fitted(100))
    for title in ("movement of the NTK", "error of the linearised network", "eigenvalues of the NTK", "curvature that the first steps see"):
        assert rows[title][1].outcome == "holds", title
    assert rows["alignment of the NTK with the targets"][1].outcome == "out_of_scope"
    advice = rows["movement of the NTK"][3]
    assert "hardly learns features" in advice
    assert chapter.format_number(theory.output_scale(float(readings["ntk_movement"]), chapter.FEATURES), 1) in advice


def test_the_movement_falls_as_one_over_the_output_scale():
    """The relative error of what `output_scale` foretells is of first order in the movement."""
    small = float(kernels.ntk_movement(fitted(1000), rng=RNG))
    errors = []
    for wanted in (0.008, 0.004):
        found = float(kernels.ntk_movement(fitted(1000 * theory.output_scale(small, wanted)), rng=RNG))
        errors.append(abs(found / wanted - 1))
    assert errors[0] < 0.1
    assert 1.5 < errors[0] / errors[1] < 3


def test_a_small_output_scale_is_rich():
    rows, _ = rows_of(fitted(0.5, lr=0.1))
    for title in ("movement of the NTK", "error of the linearised network", "eigenvalues of the NTK"):
        assert rows[title][1].outcome == "fails", title
    assert rows["movement of the NTK"][2].startswith("rich")
    assert "Features move" in rows["movement of the NTK"][3]
    assert rows["alignment of the NTK with the targets"][1].outcome == "holds"


def test_the_step_against_the_curvature_at_initialisation():
    """Full-batch gradient descent on the linearised network diverges exactly where the row fails."""
    subject = fitted(100)
    title = "curvature that the first steps see"
    _, readings = rows_of(subject)
    sharpness = float(readings["gauss_newton_sharpness@initial"])
    (block,) = subject.train.blocks
    start = subject.at(subject.initial)
    jacobian = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in _rows(start, block.inputs)])
    for share, outcome in ((0.9, "holds"), (1.1, "fails")):
        training = Training("sgd", share * 2 / sharpness)
        assert rows_of(subject, training=training)[0][title][1].outcome == outcome
        weights = torch.zeros(jacobian.shape[1], dtype=torch.float64)
        losses = []
        for _ in range(300):
            rest = jacobian @ weights[:, None] - block.targets
            losses.append(float(rest.square().mean()))
            weights = weights - training.lr * 2 / len(rest) * (jacobian.T @ rest)[:, 0]
        assert (losses[-1] < losses[0]) == (outcome == "holds")
    assert rows_of(subject, training=Training("adam", 0.01))[0][title][1].outcome == "out_of_scope"
    _, verdict, words, _ = rows_of(subject, training=Training())[0][title]
    assert verdict is None
    assert "not known" in words


def _rows(subject, inputs):
    here = {key: value.clone().requires_grad_() for key, value in subject.parameters.items()}
    return [torch.autograd.grad(value, list(here.values()), retain_graph=True) for value in subject({**subject.state, **here}, inputs).reshape(-1)]


def test_without_the_initial_weights_rows_are_measurements():
    subject = mlp_regression()
    facts = facts_of(subject)
    readings = {name: registry.get_instrument(name)(subject, rng=RNG) for name in ("ntk_spectrum", "kernel_target_alignment")}
    rows = list(chapter.chapter(facts, readings))
    assert [row.settle()[0] for row in rows] == [None, None]
    assert list(chapter.chapter(facts, {})) == []


def test_an_undecided_movement_gives_no_advice():
    movement = Reading("ntk_movement", 0.05, "", error=0.02, error_kind="sample", n=16, details={"growth": 1.0, "distance": 0.001})
    (row,) = chapter.chapter(facts_of(mlp_regression()), {"ntk_movement": movement})
    verdict, words, advice = row.settle()
    assert verdict.outcome == "inconclusive"
    assert "as far as the error tells" in words
    assert advice is None
    with pytest.raises(InvalidInput, match="above 0"):
        theory.output_scale(0.0, 0.5)
