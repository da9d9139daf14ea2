"""Networks at criticality: what they are initialised with, what they keep of a signal, and what cannot be tuned."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import gnomon
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.studies import critical_mlp
from gnomon.theory.criticality import critical_point
from gnomon.theory.finite_width import layer_by_layer


def chain(activation, depth=6, width=64, features=20, **options):
    sizes = [features, *[width] * (depth - 1), 10]
    return nn.Sequential(*[layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b, **options), activation())][:-1])


@pytest.mark.parametrize(("activation", "name"), [(nn.Tanh, "tanh"), (nn.GELU, "gelu"), (nn.ReLU, "relu"), (nn.SiLU, "silu")])
def test_a_deep_network_keeps_its_signal_where_the_default_loses_it(activation, name):
    x = chance.normal(200, 20, rng=chance.generator(0, "x")).float()
    x = x / x.square().mean(1, keepdim=True).sqrt()
    model = chain(activation, depth=20, width=200)
    tuned = gnomon.tune(model, x)
    assert tuned.before.value[-2] < 1e-2 * tuned.before.value[0], "PyTorch's default initialisation shrinks signals"
    point = critical_point(lambda z: activation()(z))
    settings = {"weight_variance": point.weight_variance, "bias_variance": point.bias_variance, "kernel": float(tuned.predicted.value[0])}
    vertex = layer_by_layer(activation(), depth=20, width=200, **settings)[1].value
    # one network: its layers' mean squares vary by V/(nK^2), and over the units of a layer by 2/units where deep layers see all inputs alike
    spread = (vertex + 2 / np.array([200] * 19 + [10])) ** 0.5
    assert (abs(tuned.after.value / tuned.predicted.value - 1) < 4 * spread).all()
    if point.kernel and name != "relu":
        assert abs(tuned.predicted.value - point.kernel).max() < 1e-6
    assert name in ("relu", "gelu", "silu") or tuned.point.kind == "zero"
    weights = model[4].weight.detach().double()
    assert abs(float(weights.square().mean()) * 200 / point.weight_variance - 1) < 5 * (2 / weights.numel()) ** 0.5
    assert "before" in str(tuned)
    assert tuned.vertex == pytest.approx(vertex[-1])
    assert str(tuned).endswith(f"varies by {100 * vertex[-1] ** 0.5:.0f} %")


def test_rates_are_those_of_the_effective_theory_over_fan_in():
    tuned = gnomon.tune(chain(nn.ReLU, depth=4, width=30, features=5))
    for rate, fan_in in zip(tuned.weight_rates, (5, 30, 30, 30), strict=True):
        assert rate == pytest.approx(1 / (4 * fan_in))
    assert tuned.bias_rates == pytest.approx([1 / 4] * 4)
    groups = tuned.parameter_groups(0.2)
    assert [group["name"] for group in groups[:2]] == ["0.weight", "0.bias"]
    assert groups[0]["lr"] == pytest.approx(0.2 / 20)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in tuned.model.parameters()}
    torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
def test_the_lr_of_the_kernel_is_one_over_the_curvature_at_one_input(activation):
    """By autograd on wide networks: sum over parameters of rate (dz/dtheta)^2, times the lr and the curvature 2 of a square, is 1."""
    found = []
    for seed in range(6):
        model = critical_mlp(5, 400, activation, inputs=50, outputs=1, dtype=torch.float64, rng=chance.generator(seed))
        x = chance.normal(1, 50, rng=chance.generator(seed, "input"))
        x /= x.square().mean().sqrt()
        model(x).backward()
        groups = model.parameter_groups(model.tuned.kernel_lr)
        found.append(2 * sum(group["lr"] * float(p.grad.square().sum()) for group in groups for p in group["params"]))
    found = torch.tensor(found)
    assert abs(float(found.mean()) - 1) < 3 * float(found.std()) / 6**0.5 + 5 / 400


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 3), ("mse", 3), ("bce_with_logits", 2)])
def test_lr_is_one_over_the_largest_curvature(loss, outputs):
    """Dense: the eigenvalues of D^(1/2) H D^(1/2), H the Gauss-Newton matrix by autograd, at a network whose targets do not matter."""
    x = chance.normal(7, 6, rng=chance.generator(1, "x"))
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout(0.5), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, outputs)).double()
    tuned = gnomon.tune(model, x, loss=loss)
    groups = tuned.parameter_groups(1.0)
    model.eval()
    z = model(x)
    rows = torch.stack([
        torch.cat([g.flatten() * group["lr"] ** 0.5 for g, group in zip(torch.autograd.grad(value, [group["params"][0] for group in groups], retain_graph=True), groups, strict=True)])
        for value in z.flatten()
    ]).view(7, outputs, -1)  # fmt: skip
    p = z.detach().softmax(1)
    inner = {"cross_entropy": torch.diag_embed(p) - p[:, :, None] * p[:, None], "mse": 2 / outputs * torch.eye(outputs).double().expand(7, -1, -1)}
    q = z.detach().sigmoid()
    inner["bce_with_logits"] = torch.diag_embed(q * (1 - q)) / outputs
    matrix = torch.einsum("nap,nab,nbq->pq", rows, inner[loss], rows) / 7
    assert tuned.lr * float(torch.linalg.eigvalsh(matrix)[-1]) == pytest.approx(1, rel=0.01)
    with pytest.raises(InvalidInput, match=r"cross_entropy|mse"):
        gnomon.tune(model, x, loss="cross-entropyy")


def test_weights_are_the_same_again_and_the_global_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    one, two = (critical_mlp(3, 8, "tanh", inputs=4, outputs=2, rng=chance.generator(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert critical_mlp(3, 8, "tanh", inputs=4, outputs=2)(torch.ones(5, 2, 2)).shape == (5, 2)
    gnomon.tune(chain(nn.Tanh))
    # building a module draws from the global state; tuning it does not
    built = torch.random.get_rng_state()
    gnomon.tune(one)
    assert torch.equal(torch.random.get_rng_state(), built)
    assert state.shape == built.shape


def test_convolutions_are_a_chain_too():
    model = nn.Sequential(
        nn.Conv2d(1, 40, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(40, 40, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(40 * 36, 10),
    )
    x = chance.normal(100, 1, 6, 6, rng=chance.generator(0)).float()
    tuned = gnomon.tune(model, x)
    assert tuned.layers == ("0", "2", "5")
    assert abs(tuned.after.value / tuned.predicted.value - 1).max() < 0.4
    with pytest.raises(InvalidInput, match=r"tune\(model, inputs\)"):
        gnomon.tune(model)


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.7))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


class Centred(nn.Module):
    def forward(self, x):
        return torch.tanh(x - x.mean(1, keepdim=True))


def test_an_activation_of_ones_own_is_one_and_its_parameters_learn():
    """s(1.7 z)/1.7 of SiLU: K* is divided by 1.7^2.  A module that sees its neighbours is none."""
    tuned = gnomon.tune(chain(Swish, depth=3, width=16))
    assert tuned.point.kernel == pytest.approx(critical_point(nn.functional.silu).kernel / 1.7**2, rel=1e-6)
    assert {id(p) for group in tuned.parameter_groups() for p in group["params"]} == {id(p) for p in tuned.model.parameters()}
    with pytest.raises(OutOfScope, match="`2` does not follow `0`"):
        gnomon.tune(chain(Centred, depth=3, width=16))
    half = chain(nn.Tanh, depth=3, width=16).bfloat16()
    assert gnomon.tune(half, torch.ones(5, 20).bfloat16()).lr > 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        z = self.one(x)
        return self.three(z + self.two(torch.tanh(z)))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: chain(nn.Sigmoid), "negative variance"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8)), "`1`"),
        (Residual, "`one` is read by several layers"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), "before `4`"),
        (lambda: chain(nn.GELU, bias=False), "`0` has no bias"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Tanh()), "give|needs|no linear"),
    ],
)
def test_what_has_no_critical_point_is_named_and_left_as_it_was(model, says):
    model = model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((OutOfScope, InvalidInput), match=says):
        gnomon.tune(model, torch.randn(10, 20) if model.__class__ is nn.Sequential and isinstance(model[0], nn.Linear) and model[0].in_features == 20 else torch.randn(10, 8))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "says"), [({"depth": 0}, "at least 1"), ({"activation": "tanhh"}, "tanh"), ({"square": 0.0}, "above 0"), ({"outputs": 1, "loss": "cross_entropy"}, "one output")]
)
def test_what_cannot_be_made(changes, says):
    settings = {"depth": 3, "width": 4, "activation": "tanh"} | changes
    with pytest.raises(InvalidInput, match=says):
        critical_mlp(**settings)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_inputs_of_any_size_are_scaled_by_the_first_layer(activation):
    """Pixels from 0 to 255: after the first layer, the same network and the same function of the learning rate as from pixels from 0 to 1."""
    x = chance.normal(30, 20, rng=chance.generator(2)).abs().double()
    one, other = (chain(activation, depth=4, width=30).double() for _ in range(2))
    small, large = gnomon.tune(one, x), gnomon.tune(other, 255 * x)
    assert torch.allclose(one(x), other(255 * x), rtol=1e-9)
    assert large.lr == pytest.approx(small.lr, rel=0.02)
    assert large.weight_rates[0] * 255**2 == pytest.approx(small.weight_rates[0])


@pytest.mark.parametrize("inputs", [torch.ones(5, 7), torch.ones(5, 20).long(), np.ones((5, 20)), (torch.ones(5, 20), torch.zeros(5))])
def test_inputs_that_the_network_does_not_take_are_refused(inputs):
    with pytest.raises(InvalidInput, match="does not take these inputs"):
        gnomon.tune(chain(nn.Tanh, depth=3, width=8), inputs)


def test_zero_inputs_are_refused():
    with pytest.raises(InvalidInput, match="zero"):
        gnomon.tune(chain(nn.Tanh), torch.zeros(4, 20))
