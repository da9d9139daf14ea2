"""The architecture is read as torch builds it: fans, shapes, declared variances against torch's own draws, chains and what interrupts them."""

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnomon.core.architecture import chains, of, read, steps
from gnomon.core.errors import InvalidInput
from gnomon.core.layers import of_operation


class Functional(nn.Module):
    """Everything that is not a layer is written as a function or a method."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 3, padding="same")
        self.c2 = nn.Conv2d(6, 8, 2, stride=2, padding=(1, 0), groups=2)
        self.fc = nn.Linear(8 * 5 * 4, 12)
        self.out = nn.Linear(12, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale=None):
        x = torch.tanh(self.c1(x))
        x = F.leaky_relu(self.c2(x), negative_slope=0.2)
        x = self.drop(x.view(x.size(0), -1))
        if scale is not None:
            x = x * scale
        return F.log_softmax(self.out(F.dropout(self.fc(x).relu(), training=self.training)), dim=1)


class Control(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x if x.sum() > 0 else -x)


def images(n=2, size=8):
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(0))


def test_functional_network():
    found = read(Functional(), images())
    assert found.traced
    assert [(layer.name, layer.kind) for layer in found.layers] == [
        ("x", "input"), ("c1", "conv"), ("tanh", "activation"), ("c2", "conv"), ("leaky_relu", "activation"), ("view", "flatten"), ("drop", "identity"),
        ("fc", "linear"), ("relu", "activation"), ("dropout", "identity"), ("out", "linear"), ("log_softmax", "norm"),
    ]  # fmt: skip
    c2 = found["c2"]
    assert (c2.fan_in, c2.fan_out, c2.units, c2.groups, c2.weights) == (3 * 4, 4 * 4, 8, 2, 8 * 12)
    assert (c2.kernel, c2.stride, c2.padding, c2.input_shape, c2.output_shape) == ((2, 2), (2, 2), ((1, 1), (0, 0)), (6, 8, 8), (8, 5, 4))
    assert found["c1"].padding == ((1, 1), (1, 1))
    assert found["fc"].inputs == ("drop",)
    z = torch.linspace(-2, 2, 9)
    assert torch.equal(found["leaky_relu"].function(z), F.leaky_relu(z, 0.2))
    assert chains(found) == (("c1", "c2"), ("fc", "out"))
    assert "grouped convolution" in steps(found)["fc"].why
    assert steps(found)["out"].through == ("relu", "dropout")


class Turned(nn.Module):
    """A constant over, or to the power of, a layer."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.function, self.out = nn.Linear(3, 4), function, nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.function(self.inner(x)))


@pytest.mark.parametrize(
    ("function", "at_three"),
    [(lambda z: 2 / z, 2 / 3), (lambda z: z / 2, 1.5), (lambda z: torch.div(z, 2.0), 1.5), (lambda z: 2**z, 8.0), (lambda z: z**2, 9.0), (lambda z: 2 * z, 6.0)],
)
def test_constants_stand_on_their_side(function, at_three):
    found = [layer for layer in read(Turned(function), torch.ones(2, 3)).layers if layer.kind == "activation"]
    assert len(found) == 1
    assert float(found[0].function(torch.tensor(3.0))) == pytest.approx(at_three)


def test_dropout_that_stays_on_is_not_an_identity():
    on, off, default = (of_operation("d", F.dropout, args, {}, 1) for args in ((0.5, True), (0.5, False), ()))
    assert (on.kind, off.kind, default.kind) == ("other", "identity", "other")
    assert "eval mode" in on.why


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(40, 50), (40,)), (lambda: nn.Conv2d(6, 12, 3, groups=3), (6, 8, 8)), (lambda: nn.Conv1d(4, 30, 5), (4, 9)), (lambda: nn.Conv3d(2, 20, 2), (2, 4, 4, 4)),
        (lambda: nn.LSTM(9, 16, num_layers=2, batch_first=True), (5, 9)), (lambda: nn.GRU(9, 16, batch_first=True), (5, 9)),
    ],
)  # fmt: skip
def test_default_variances_are_those_that_torch_draws(build, shape):
    torch.manual_seed(0)
    draws = [nn.Sequential(build()) for _ in range(40)]
    layer = next(layer for layer in read(draws[0], torch.randn(2, *shape)).layers if layer.parameters)
    weights = torch.cat([net.get_parameter(key).detach().flatten() for net in draws for key in layer.parameters]).double()
    assert weights.numel() == 40 * layer.weights
    assert float(weights.square().mean()) == pytest.approx(layer.weight_variance, rel=0.03)
    assert float(weights.pow(4).mean() / weights.square().mean() ** 2) == pytest.approx(layer.weight_kurtosis, rel=0.05)
    bias = torch.cat([value.detach().flatten() for net in draws for key, value in net.named_parameters() if "bias" in key]).double()
    assert float(bias.square().mean()) == pytest.approx(layer.bias_variance, rel=0.1)


def test_embedding_and_attention_variances():
    torch.manual_seed(0)
    embedding, attention = nn.Embedding(400, 30), nn.MultiheadAttention(40, 4)
    found = read(nn.Sequential(embedding, nn.Linear(30, 2)), torch.randint(0, 400, (2, 7)))
    assert found["0"].weight_variance == pytest.approx(float(embedding.weight.detach().square().mean()), rel=0.05)
    inside = read(networks.Transformer(), torch.randn(2, 3, 4))["layer.self_attn"]
    assert inside.weight_variance * 4 == pytest.approx(40 * float(attention.in_proj_weight.detach().square().mean()), rel=0.05)


@pytest.mark.parametrize(("scheme", "draw"), [("kaiming", nn.init.kaiming_normal_), ("xavier", nn.init.xavier_normal_), ("orthogonal", nn.init.orthogonal_)])
@pytest.mark.parametrize("build", [lambda: nn.Linear(60, 20), lambda: nn.Linear(20, 60), lambda: nn.Conv2d(8, 24, 3), lambda: nn.Conv2d(8, 100, 3)])
def test_schemes_are_those_of_torch(scheme, draw, build):
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(2, layer.in_features) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    declared = read(nn.Sequential(layer), x, init=(scheme,))["0"]
    assert declared.bias_variance == 0
    drawn = torch.stack([draw(layer.weight.detach()).square().mean() for _ in range(20)]).mean()
    assert declared.weight_variance == pytest.approx(float(drawn), rel=0.03)


def test_one_layer_declared():
    found = read(Functional(), images(), init=("kaiming", "fc=0.25"))
    assert found["fc"].weight_variance == 0.25
    assert found["out"].weight_variance == pytest.approx(2 / 12)


@pytest.mark.parametrize(
    ("init", "message"),
    [(("fcc=0.1",), "Did you mean 'fc'"), (("kaimin",), "kaiming"), (("fc=big",), "must be a number"), (("fc=-1",), "at least 0"), (("kaiming", "xavier"), "Two initialisations")],
)
def test_bad_declarations_are_refused(init, message):
    with pytest.raises(InvalidInput, match=message):
        read(Functional(), images(), init=init)


def test_interruptions_are_named():
    found = of(networks.cnn())
    assert chains(found) == (("conv1",), ("conv2", "head"))
    assert "max_pool2d" in steps(found)["conv2"].why
    assert steps(found)["conv1"].why == "data"
    norm = of(networks.batchnorm())
    assert "BatchNorm1d" in steps(norm)["body.3"].why
    assert "adds branches" in steps(norm)["head"].why
    recurrent = of(networks.lstm())
    assert recurrent.traced
    assert steps(recurrent)["head"].why.startswith("`lstm` (LSTM")


def test_shared_weights_count_once():
    found = of(networks.tied_frozen())
    assert [layer.name for layer in found.parametrised] == ["fixed", "first", "twice", "head"]
    assert found["second"].why == "its weights are those of first"
    assert "called again" in found["twice (call 2)"].why
    tokens = of(networks.tokens())
    assert tokens["head"].why == "its weights are those of embedding"
    assert tokens["embedding"].weight_variance == 1


def test_branches_end_a_chain_of_gradients():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(x) + self.c(x)

    found = read(Branches(), torch.randn(2, 4))
    assert steps(found)["b"].source == steps(found)["c"].source == "a"
    assert chains(found) == (("a",), ("b",), ("c",))


def test_reshapes():
    inward = nn.Sequential(nn.Linear(4, 18), nn.ReLU(), nn.Unflatten(1, (2, 3, 3)), nn.Conv2d(2, 3, 2), nn.Flatten(2), nn.Linear(4, 2))
    found = read(inward, torch.randn(2, 4))
    assert steps(found)["3"].source == "0"
    assert "mixes positions" in steps(found)["5"].why


def test_what_cannot_be_traced_is_read_from_hooks():
    module = Control().train()
    found = read(module, torch.randn(3, 4))
    assert not found.traced
    assert "control flow" in found.reason
    assert [layer.name for layer in found.layers] == ["a", "b"]
    assert found["b"].input_shape == (4,)
    assert all("could not be traced" in step.why for step in steps(found).values())
    assert module.training
    assert not any(child._forward_hooks for child in module.modules())


def test_a_network_that_is_one_layer():
    found = read(nn.Linear(4, 2), torch.randn(3, 4))
    assert [(layer.name, layer.kind, layer.parameters) for layer in found.layers] == [("network", "linear", ("weight",))]
    assert found.reason == "it is one layer"


def test_hooks_and_graph_agree():
    class Opaque(Functional):
        def forward(self, x, scale=None):
            return super().forward(x if float(x.sum()) == float(x.sum()) else -x, scale)

    traced, called = read(Functional(), images()), read(Opaque(), images())
    assert not called.traced
    for layer in traced.parametrised:
        other = called[layer.name]
        assert (other.kind, other.fan_in, other.weight_variance, other.input_shape, other.output_shape) == (
            layer.kind, layer.fan_in, layer.weight_variance, layer.input_shape, layer.output_shape,
        )  # fmt: skip


def test_gpt2_declares_what_it_draws():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=48, n_head=2, vocab_size=80, n_positions=16, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    found = read(model, {"input_ids": torch.randint(0, 80, (2, 8))})
    assert "transformer.h.1.mlp.c_proj" in [layer.name for layer in found.parametrised]
    assert found["lm_head"].why == "its weights are those of transformer.wte"
    for layer in found.parametrised:
        drawn = model.get_parameter(layer.parameters[0]).detach().square().mean()
        assert layer.weight_variance == pytest.approx(float(drawn), rel=5 * (2 / layer.weights) ** 0.5)
