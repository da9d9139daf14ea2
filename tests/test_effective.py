"""Signals at initialisation: theory against closed forms and brute ensembles, instruments against exact means, the chapter against sabotage."""

import dataclasses
import math

import networks
import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from gnomon.core import architecture
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.facts import Facts
from gnomon.core.reading import Reading
from gnomon.core.subject import Subject
from gnomon.examination import effective as chapter
from gnomon.instruments import effective as instruments
from gnomon.theory import activations
from gnomon.theory import effective as theory

K = np.array([0.2, 1.0, 6.0])


def adaptive(function, variance):
    """A second way to Gaussian expectations: scipy's adaptive quadrature."""
    deviation = math.sqrt(variance)

    def integrand(u):
        return float(function(torch.tensor(deviation * u, dtype=torch.float64))) * math.exp(-u * u / 2) / math.sqrt(2 * math.pi)

    return integrate.quad(integrand, -12, 12, points=[0.0], limit=400, epsabs=1e-13, epsrel=1e-12)[0]


# --- moments of activations


def test_moments_of_erf_and_sine_in_closed_form():
    found = activations.moments(torch.erf, K)
    np.testing.assert_allclose(found.square, 2 / np.pi * np.arcsin(2 * K / (1 + 2 * K)), rtol=1e-9)
    np.testing.assert_allclose(found.slope, 4 / np.pi / np.sqrt(1 + 4 * K), rtol=1e-9)
    np.testing.assert_allclose(found.growth, 4 / np.pi / ((1 + 2 * K) * np.sqrt(1 + 4 * K)), rtol=1e-9)
    np.testing.assert_allclose(found.slope_growth, -8 / np.pi * (1 + 4 * K) ** -1.5, rtol=1e-8)
    sine = activations.moments(torch.sin, K)
    np.testing.assert_allclose(sine.square, (1 - np.exp(-2 * K)) / 2, rtol=1e-9)
    np.testing.assert_allclose(sine.fourth, (3 - 4 * np.exp(-2 * K) + np.exp(-8 * K)) / 8, rtol=1e-9)
    np.testing.assert_allclose(sine.slope_growth, -np.exp(-2 * K), rtol=1e-8)


@pytest.mark.parametrize(("function", "right", "left"), [(torch.relu, 1, 0), (nn.LeakyReLU(0.3), 1, 0.3), (lambda z: z, 1, 1), (torch.abs, 1, -1)])
def test_moments_of_scale_invariant_activations(function, right, left):
    assert activations.scale_invariant(function) == (right, left)
    found = activations.moments(function, K)
    np.testing.assert_allclose(found.square, (right**2 + left**2) / 2 * K, rtol=1e-14)
    np.testing.assert_allclose(found.fourth, 1.5 * (right**4 + left**4) * K**2, rtol=1e-14)
    z = torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * math.sqrt(K[2])
    assert float(function(z).pow(4).mean()) == pytest.approx(found.fourth[2], rel=0.01)


def test_where_nothing_arrives_relu_passes_no_gradient():
    found = activations.moments(torch.relu, np.array([0.0, 1.0]))
    assert found.slope.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("function", [torch.tanh, nn.functional.gelu, nn.functional.silu, nn.functional.softplus, torch.sigmoid])
def test_moments_by_a_second_quadrature(function):
    found = activations.moments(function, K)
    step = 1e-4
    for i, k in enumerate(K):
        assert found.square[i] == pytest.approx(adaptive(lambda z: function(z) ** 2, k), rel=1e-8)
        assert found.growth[i] == pytest.approx((adaptive(lambda z: function(z) ** 2, k + step) - adaptive(lambda z: function(z) ** 2, k - step)) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(("function", "rel"), [(torch.tanh, 1e-7), (nn.functional.gelu, 1e-6), (nn.Hardtanh(), 1e-3), (nn.functional.softplus, 1e-3)])
def test_many_variances_are_interpolated(function, rel):
    many = np.geomspace(1e-4, 20, 500)
    some = many[::83]
    found, exact = activations.moments(function, many), activations.moments(function, some)
    for field in dataclasses.fields(found):
        if field.name != "slope_growth":
            np.testing.assert_allclose(getattr(found, field.name)[::83], getattr(exact, field.name), rtol=rel)
    np.testing.assert_allclose(many[::83] * found.slope_growth[::83], some * exact.slope_growth, atol=1e-3 * float(exact.slope.max()))


def test_critical_weight_scales():
    assert activations.critical_weight_variance(torch.relu)[0] == pytest.approx(2)
    assert activations.critical_weight_variance(nn.LeakyReLU(0.5))[0] == pytest.approx(2 / 1.25)
    assert activations.critical_weight_variance(lambda z: z)[0] == pytest.approx(1)
    assert activations.critical_weight_variance(torch.tanh)[0] == pytest.approx(1)
    c_w, at = activations.critical_weight_variance(torch.tanh, bias_variance=0.05)
    step = 1e-5
    slope = adaptive(lambda z: ((torch.tanh(z + step) - torch.tanh(z - step)) / (2 * step)) ** 2, at)
    assert c_w * slope == pytest.approx(1, rel=1e-6)
    assert 0.05 + c_w * adaptive(lambda z: torch.tanh(z) ** 2, at) == pytest.approx(at, rel=1e-6)


def test_depth_scale():
    assert theory.depth_scale(1.0) == math.inf
    assert theory.depth_scale(math.exp(-0.25)) == pytest.approx(4)
    assert theory.depth_scale(math.exp(0.25)) == pytest.approx(4)


# --- the recursion


def variances(found, names, maps, squares):
    return theory.preactivation_variance(found, names, theory.forward(found, maps=maps, squares=squares), squares)


def gradients_of(found, names, maps, squares):
    return theory.gradient_variance(found, names, theory.backward(found, theory.forward(found, maps=maps, squares=squares)))


def ensemble(net, x, found, draws, seed=0):
    """Brute force: normal weights of the declared variances, mean squares of pre-activations and of gradients of a random projection."""
    names = [layer.name for layer in found.parametrised]
    generator = torch.Generator().manual_seed(seed)
    moments, gradients = [], []
    made = {}
    handles = [net.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: made.__setitem__(name, o)) for name in names]
    for _ in range(draws):
        for name in names:
            child, layer = net.get_submodule(name), found[name]
            child.weight.data.normal_(0, math.sqrt(layer.weight_variance), generator=generator)
            if child.bias is not None:
                child.bias.data.normal_(0, math.sqrt(layer.bias_variance), generator=generator)
        output = net(x)
        projection = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        found_gradients = torch.autograd.grad((output * projection).sum(), [made[name] for name in names])
        moments.append([float(made[name].detach().square().mean()) for name in names])
        gradients.append([float(g.square().mean()) for g in found_gradients])
    for handle in handles:
        handle.remove()
    return names, np.array(moments), np.array(gradients)


def within(samples, predicted, rel, sigmas=4.5):
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    return np.abs(samples.mean(0) - predicted) <= sigmas * error + rel * np.abs(predicted)


CONVOLUTIONS = [
    nn.Conv2d(1, 48, 3, padding=1), nn.Tanh(), nn.Conv2d(48, 64, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(64, 48, 3, dilation=2, padding=2, padding_mode="circular"),
    nn.ReLU(), nn.Conv2d(48, 48, (3, 1), padding="same"), nn.SiLU(), nn.Flatten(), nn.Linear(48 * 16, 64), nn.ELU(), nn.Linear(64, 32),
]  # fmt: skip


def test_convolutions_with_padding_stride_and_dilation_against_an_ensemble():
    torch.manual_seed(0)
    net = nn.Sequential(*CONVOLUTIONS).double()
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64) * torch.tensor([0.3, 1.0, 2.0, 3.0, 0.1]).reshape(-1, 1, 1, 1)
    found = architecture.read(net, x)
    names, moments, gradients = ensemble(net, x, found, 120)
    maps = {"0": x.square().mean(1).numpy()}
    predicted = variances(found, names, maps, {})
    assert within(moments, predicted.value, 0.015).all()
    back = gradients_of(found, names[:-1], maps, {})
    assert within(gradients[:, :-1] / gradients[:, -1:], back.value, 0.03).all()
    edges = moments.mean(0)[0] / (found["0"].bias_variance + found["0"].weight_variance * 9 * maps["0"].mean())
    assert edges < 0.95  # zero padding is seen: without it the first layer would be predicted too large


def test_zero_padding_by_hand():
    net = nn.Sequential(nn.Conv1d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 2, bias=False))
    found = architecture.read(net, torch.zeros(2, 1, 5), init=("0=0.5", "2=0.25"))
    bias = found["0"].bias_variance
    signals = theory.forward(found, maps={"0": np.array([[1.0, 2.0, 3.0, 4.0, 5.0]])}, squares={})
    first = [bias + 0.5 * (1 + 2), bias + 0.5 * (2 + 3 + 4), bias + 0.5 * (4 + 5)]
    np.testing.assert_allclose(signals["0"].kernel, [first])
    np.testing.assert_allclose(signals["2"].kernel, [[0.25 * 8 * (first[0] + first[1]) / 2, 0.25 * 8 * (first[1] + first[2]) / 2]])


def test_a_tower_of_tanh_follows_each_example():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 100)).double()
    x = torch.randn(6, 30, dtype=torch.float64) * torch.tensor([0.1, 0.3, 1.0, 2.0, 5.0, 9.0]).reshape(-1, 1)
    found = architecture.read(net, x, init=("xavier",))
    names, moments, gradients = ensemble(net, x, found, 150)
    maps = {"0": x.square().mean(1).numpy()}
    predicted = variances(found, names, maps, {}).value
    assert within(moments, predicted, 0.01).all()
    pooled = variances(found, names, {"0": maps["0"].mean(keepdims=True)}, {}).value
    assert abs(pooled[1] / moments[:, 1].mean() - 1) > 0.1  # the mean norm of the data would not do
    assert within(gradients[:, :2] / gradients[:, 2:], gradients_of(found, names[:2], maps, {}).value, 0.02).all()


@pytest.mark.parametrize(("function", "grows"), [(nn.ReLU, 5), (nn.Identity, 2)])
def test_fluctuations_are_those_of_one_network(function, grows):
    """For one input Var(K-hat)/K^2 + 2 (1 + .)/n, where exactly Var(K-hat)/K^2 = (1 + grows/n)^(l-1) - 1."""
    width, depth, draws = 64, 4, 20_000
    net = nn.Sequential(*[part for _ in range(depth) for part in (nn.Linear(width, width, bias=False), function())], nn.Linear(width, width, bias=False))
    c_w = 2.0 if grows == 5 else 1.0
    found = architecture.read(net, torch.randn(2, width), init=tuple(f"{2 * i}={c_w / width}" for i in range(depth + 1)))
    names = [layer.name for layer in found.parametrised]
    predicted = variances(found, names, {"0": np.ones(1) / c_w}, {})
    rng = np.random.default_rng(0)
    kernel = np.ones(draws)
    act = (lambda z: np.maximum(z, 0)) if grows == 5 else (lambda z: z)
    for layer in range(depth + 1):
        z = rng.standard_normal((draws, width)) * np.sqrt(kernel)[:, None]
        mean_square = (z**2).mean(1)
        assert predicted.error[layer] == pytest.approx(mean_square.std(), rel=0.12)
        assert predicted.value[layer] == pytest.approx(1.0)
        kernel = c_w * (act(z) ** 2).mean(1)


def test_fluctuations_of_gradients():
    width, draws = 48, 4000
    net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).double()
    x = torch.ones(1, 8, dtype=torch.float64)
    found = architecture.read(net, x, init=("kaiming",))
    names, _, gradients = ensemble(net, x, found, draws)
    predicted = gradients_of(found, names[:2], {"0": np.ones(1)}, {})
    ratio = gradients[:, :2] / gradients[:, 2:]
    assert predicted.error / predicted.value == pytest.approx(ratio.std(0) / ratio.mean(0), rel=0.15)


def test_theory_refuses_what_it_cannot_predict():
    found = architecture.of(networks.cnn())
    with pytest.raises(InvalidInput, match="conv1"):
        theory.forward(found, maps={}, squares={})
    with pytest.raises(InvalidInput, match="shape"):
        theory.forward(found, maps={"conv1": np.ones((2, 5))}, squares={"conv2": np.ones(3)})
    maps, squares = {"conv1": np.ones((2, 6, 6)), "conv2": np.ones((2, 6, 6))}, {}
    with pytest.raises(InvalidInput, match="head"):
        gradients_of(found, ["head"], maps, squares)
    with pytest.raises(InvalidInput, match="nothing"):
        variances(found, ["nothing"], maps, squares)


# --- instruments


def mlp(width=6, depth=3, inputs=5, outputs=4, activation=nn.ReLU, bias=True):
    layers = [part for i in range(depth) for part in (nn.Linear(inputs if i == 0 else width, width, bias=bias), activation())]
    return nn.Sequential(*layers, nn.Linear(width, outputs, bias=bias))


def subject_of(make, shape=(5,), n=24, classes=4, seed=0):
    x = chance.normal(n, *shape, rng=chance.generator(seed, "x")).float()
    return Subject.freeze(make(), "cross_entropy", (x, chance.integers(classes, n, rng=chance.generator(seed, "y"))), make=make, lr=0.1)


def test_interval_covers_the_exact_mean_of_a_relu_network():
    """E z^2 = C_b + v sum E x^2 and E relu(z)^2 = E z^2 / 2 at every width, whatever the weights' distribution."""
    subject = subject_of(mlp)
    moment, exact = float(instruments.examples(subject).inputs.double().square().mean()), []
    for fan_in in (5, 6, 6, 6):
        exact.append(1 / (3 * fan_in) + moment / 3)
        moment = exact[-1] / 2
    inside = []
    for index in range(200):
        reading = instruments.preactivation_variance(subject, rng=chance.generator(3, "coverage", index), draws=16)
        inside.append((reading.interval[0] <= exact) & (exact <= reading.interval[1]))
    assert 0.90 <= np.mean(inside) <= 0.99


def test_interval_covers_the_declared_variance_of_weights():
    subject = networks.lstm(n=10)
    exact = instruments.declared_weight_variance(subject)
    readings = [instruments.weight_variance(subject, rng=chance.generator(4, "coverage", index), draws=8) for index in range(200)]
    assert 0.90 <= np.mean([(r.interval[0] <= exact) & (exact <= r.interval[1]) for r in readings]) <= 0.99


def test_an_activation_in_place_changes_nothing():
    plain, inplace = (lambda: mlp(activation=nn.ReLU)), (lambda: mlp(activation=lambda: nn.ReLU(inplace=True)))
    for instrument in (instruments.preactivation_variance, instruments.gradient_variance):
        a, b = (instrument(subject_of(make), rng=chance.generator(0, "in place"), draws=8) for make in (plain, inplace))
        np.testing.assert_array_equal(a.samples, b.samples)


def test_a_network_that_is_one_layer():
    subject = subject_of(lambda: nn.Linear(5, 4))
    reading = instruments.preactivation_variance(subject, rng=chance.generator(0, "one"), draws=200)
    predicted = variances(architecture.of(subject), ["network"], {}, reading.details["squares"])
    assert abs(float(reading) - float(predicted)) < 4 * float(reading.error[0])


def test_what_a_layer_reads_is_measured_as_it_reads_it():
    subject = networks.cnn(n=12)
    reading = instruments.preactivation_variance(subject, rng=chance.generator(0, "squares"), draws=16)
    x = instruments.examples(subject).inputs
    patches = nn.functional.unfold(x, 3, padding=1)
    assert reading.details["squares"]["conv1"] == pytest.approx(np.full(16, float(patches.square().sum(1).mean())))
    assert "conv1" not in reading.details["maps"]
    assert reading.details["maps"]["conv2"].shape == (12, 6, 6)
    paired = variances(architecture.of(subject), reading.axes[0].values, reading.details["maps"], reading.details["squares"])
    assert paired.samples.shape == reading.samples.shape
    assert paired.value[1] == pytest.approx(paired.samples[:, 1].mean())


def test_a_factory_that_seeds_itself_is_found():
    def seeded():
        torch.manual_seed(7)
        return mlp()

    for instrument in (instruments.preactivation_variance, instruments.gradient_variance, instruments.weight_variance):
        with pytest.raises(OutOfScope, match="seeds its own"):
            instrument(subject_of(seeded), rng=chance.generator(0, "seeded"), draws=8)


def test_out_of_scope_says_why():
    with pytest.raises(OutOfScope, match="no two layers follow"):
        instruments.gradient_variance(networks.lstm(), rng=chance.generator(0, "lstm"), draws=8)
    with pytest.raises(OutOfScope, match="make"):
        instruments.weight_variance(dataclasses.replace(networks.lstm(), make=None), rng=chance.generator(0, "none"), draws=8)
    with pytest.raises(InvalidInput, match="at least 2"):
        instruments.weight_variance(networks.lstm(), rng=chance.generator(0, "none"), draws=1)


def test_batch_normalisation_uses_the_statistics_of_the_examples():
    subject = networks.batchnorm(n=12)
    before = [child.training for child in subject.module.modules()]
    reading = instruments.preactivation_variance(subject, rng=chance.generator(0, "bn"), draws=32)
    assert any("body.1" in text and "statistics" in text for text in reading.assumes)
    assert [child.training for child in subject.module.modules()] == before
    assert reading.details["squares"]["body.3"].mean() / 6 == pytest.approx(0.355, rel=0.1)  # <silu(z)^2> of normalised z; about 0.08 with running statistics


# --- the chapter


def facts_of(subject, init=()):
    found = architecture.read(subject.module, subject.to_device(next(subject.train.chunks(2)).inputs), init=init)
    return Facts(subject.name, 1, 1, subject.classes, "cross_entropy", "mean", len(subject.train), len(subject.train), 0, subject.training, found)


def settled(make, shape, init=(), draws=24, seed=0):
    subject = subject_of(make, shape, n=8)
    readings = {}
    for instrument in (instruments.preactivation_variance, instruments.gradient_variance, instruments.weight_variance):
        reading = instrument(subject, rng=chance.generator(seed, instrument.__name__), draws=draws)
        readings[instrument.__name__] = Reading.from_json(reading.to_json())
    return {row.title: (row, *row.settle()) for row in chapter.chapter(facts_of(subject, init), readings)}


class SmallCNN(nn.Module):
    def __init__(self, width=8, scaled=None):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc, self.out = nn.Linear(2 * width * 4, 32), nn.Linear(32, 10)
        if scaled:
            getattr(self, scaled).weight.data.mul_(1.5)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.c2(torch.relu(self.c1(x)))), 2)
        return self.out(self.fc(x.flatten(1)).relu())


def kaiming(width=32, scaled=None, depth=3):
    net = mlp(width, depth, inputs=20, outputs=10)
    for name, layer in net.named_children():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layer.weight.data.mul_(1.5 if name == scaled else 1.0)
    return net


def tanh(width=64, scaled=None):
    net = mlp(width, 3, inputs=20, outputs=10, activation=nn.Tanh)
    if scaled:
        net.get_submodule(scaled).weight.data.mul_(1.5)
    return net


NETWORKS = {
    "cnn": (SmallCNN, (1, 8, 8), (), ("c1", "c2", "fc", "out")), "kaiming": (kaiming, (20,), ("kaiming",), ("0", "2", "4", "6")), "tanh": (tanh, (20,), (), ("0", "2", "4", "6")),
}  # fmt: skip
WEIGHTS = "variance of weights, declared and drawn"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_good_network_never_fails(name):
    make, shape, init, _ = NETWORKS[name]
    held = 0
    for seed in range(20):
        rows = settled(make, shape, init, draws=16, seed=seed)
        assert not [title for title, (_, verdict, _, _) in rows.items() if verdict is not None and verdict.outcome in ("fails", "error")]
        held += rows[WEIGHTS][1].outcome == "holds"
    assert held >= 18


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, entry in NETWORKS.items() for layer in entry[3]])
def test_one_layer_drawn_too_wide_fails_by_name(name, layer):
    make, shape, init, layers = NETWORKS[name]
    row, verdict, words, advice = settled(lambda: make(scaled=layer), shape, init)[WEIGHTS]
    assert verdict.outcome == "fails"
    assert [layers[i] for i, outcome in enumerate(verdict.elements) if outcome == "fails"] == [layer]
    assert f"`{layer}` declared" in words
    assert f"--init {layer}=" in advice
    assert row.measured.value[layers.index(layer)] == pytest.approx(2.25 * row.predicted.value[layers.index(layer)], rel=0.2)


def test_signals_fail_too_where_units_are_many():
    rows = settled(lambda: tanh(scaled="2"), (20,))
    _, verdict, words, _ = rows["variance of pre-activations"]
    assert verdict.outcome == "fails"
    assert verdict.elements[:2] == ("holds", "fails")
    assert "`2` predicted" in words
    assert rows["slope chi, 0 to 6"][1].outcome == "fails"


def test_the_declared_scale_mends_it():
    row, _, _, advice = settled(lambda: tanh(scaled="2"), (20,))[WEIGHTS]
    told = row.measured.value[1]
    assert f"{told:.3g}" in advice
    assert settled(lambda: tanh(scaled="2"), (20,), init=(f"2={told}",), seed=1)[WEIGHTS][1].outcome == "holds"


def test_the_critical_scale_is_advised_and_makes_the_slope_one():
    row, verdict, words, advice = settled(lambda: mlp(64, 3, 20, 10), (20,))["slope chi, 0 to 6"]
    assert verdict.outcome == "holds"
    assert float(row.predicted) == pytest.approx(1 / 6, rel=1e-6)
    assert "ordered" in words
    assert "2.45" in advice
    assert "`2`, `4`, `6`" in advice
    row, verdict, words, advice = settled(kaiming, (20,), ("kaiming",), draws=48)["slope chi, 0 to 6"]
    assert float(row.predicted) == pytest.approx(1)
    assert "critical" in words
    assert advice is None


def test_where_the_declared_biases_allow_no_kernel_that_stays_the_critical_ones_are_advised():
    """C_W <s'^2> = 1 has a fixed point for GELU with PyTorch's biases, too, but it repels: networks at it explode.  Those as advised do not."""
    row, _, _, advice = settled(lambda: mlp(96, 3, 20, 10, nn.GELU), (20,))["slope chi, 0 to 6"]
    assert float(row.predicted) < 0.3
    assert "biases of variance 0.173" in advice
    assert "1.98/fan_in" in advice
    scale = theory._kept(nn.functional.gelu, 1 / 60, 1.0)
    z, kernels = chance.normal(400, 20, rng=chance.generator(0)), []
    for _ in range(30):
        weights = chance.normal(400, 400, rng=chance.generator(len(kernels), "weights")) * (scale[0] / 400) ** 0.5
        z = weights @ nn.functional.gelu(z) + scale[1] ** 0.5 * chance.normal(400, 1, rng=chance.generator(len(kernels), "biases"))
        kernels.append(float(z.square().mean()))
    assert min(kernels) > 0.5
    assert max(kernels) < 8
    assert theory._kept(torch.tanh, 0.05, 1.0)[1] is None


def test_width_changes_what_is_predicted():
    narrow, wide = settled(tanh, (20,)), settled(lambda: tanh(width=128), (20,))
    for title in ("variance of pre-activations", WEIGHTS, "slope chi, 0 to 6"):
        assert not np.allclose(narrow[title][0].predicted.value, wide[title][0].predicted.value, rtol=1e-3)


@pytest.mark.parametrize("build", [networks.batchnorm, networks.lstm, networks.tokens, networks.tied_frozen, networks.transformer, networks.cnn])
def test_every_network_has_rows(build):
    subject, readings = build(n=12), {}
    for instrument in (instruments.preactivation_variance, instruments.gradient_variance, instruments.weight_variance):
        try:
            readings[instrument.__name__] = instrument(subject, rng=chance.generator(0, "rows"), draws=16)
        except OutOfScope:
            assert instrument is instruments.gradient_variance
    rows = [(row, *row.settle()) for row in chapter.chapter(facts_of(subject), readings)]
    assert {row.title for row, *_ in rows} >= {"variance of pre-activations", WEIGHTS}
    assert all((verdict is None or verdict.outcome not in ("fails", "error")) and words for _, verdict, words, _ in rows)


@pytest.mark.parametrize("source", [theory.PRINCIPLES, theory.HE_2015, theory.SCHOENHOLZ_2017, instruments.HE_2015, instruments.POOLE_2016])
def test_sources_resolve(source):
    assert source.bibtex.count("{") == source.bibtex.count("}")
    assert source.url.startswith("https://arxiv.org/")


def test_without_readings_there_are_no_rows():
    assert list(chapter.chapter(facts_of(networks.cnn()), {})) == []
