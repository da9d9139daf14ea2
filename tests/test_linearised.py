import pytest
import torch
from networks import NETWORKS, cnn, tokens
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.models.linearised import Taylorised, linearize, quadratic
from gnomon.numerics.measuring import measuring
from gnomon.numerics.operators import ParameterJacobian


def displaced(taylorised, seed=0, size=0.1):
    with torch.no_grad():
        for index, parameter in enumerate(taylorised.parameters()):
            drawn = chance.normal(parameter.numel(), rng=chance.generator(seed, "step", index), like=parameter)
            parameter.copy_(size * drawn.reshape(parameter.shape))


def module_of(subject):
    module = subject.module
    module.load_state_dict(dict(subject.state), strict=False)
    for key in subject.trainable:
        module.get_parameter(key).requires_grad_(True)
    return module


def called(network, inputs):
    return network(**inputs) if isinstance(inputs, dict) else network(inputs)


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_it_is_the_taylor_expansion(build):
    """Against the network's values along the step and their derivatives in its length, of first order by double backward, of second by a difference of those."""
    subject = build()
    (block,) = subject.train.blocks
    module = module_of(subject)
    first, second = linearize(module), quadratic(module)
    displaced(first)
    second.load_state_dict(first.state_dict())
    start = {key: subject.state[key] for key in subject.trainable}
    step = {key: first.displacement[key.replace(".", "/")].detach() for key in subject.trainable}

    def along(t):
        with measuring(subject):
            return subject({**subject.state, **{key: start[key] + t * step[key] for key in start}}, block.inputs)

    def slope(t):
        at = torch.tensor(t, dtype=subject.dtype)
        return torch.autograd.functional.jvp(along, at, torch.ones_like(at))[1]

    value, reach = along(torch.zeros((), dtype=subject.dtype)), 1e-3
    curve = (8 * (slope(reach) - slope(-reach)) - slope(2 * reach) + slope(-2 * reach)) / (12 * reach)
    assert torch.allclose(called(first, block.inputs), value + slope(0.0), atol=1e-10)
    assert torch.allclose(called(second, block.inputs), value + slope(0.0) + curve / 2, atol=1e-8)
    vector = torch.cat([step[key].reshape(-1) for key in subject.trainable])
    assert torch.allclose(called(first, block.inputs), value + ParameterJacobian(subject, block.inputs)(vector), atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LayerNorm(4),
        nn.InstanceNorm1d(3, affine=True),
        nn.InstanceNorm1d(3),
        nn.GroupNorm(1, 3),
        nn.GLU(),
        nn.Softmax(-1),
        weight_norm(nn.Linear(4, 4)),
        weight_norm(nn.Linear(4, 4), dim=None),
    ],
    ids=repr,
)
def test_the_second_order_of_layers_that_forward_mode_alone_gets_wrong(layer):
    """Against the second difference of the network along the step."""
    with chance.scoped(chance.generator(2)):
        module = nn.Sequential(nn.Conv1d(2, 3, 2), layer, nn.Conv1d(3, 1, 2)).double()
    x = chance.normal(4, 2, 5, rng=chance.generator(3))
    network = quadratic(module)
    displaced(network, size=1e-4)
    first = linearize(module)
    first.load_state_dict(network.state_dict())
    state = module.state_dict()
    reached = network.reached()
    values = [torch.func.functional_call(module, {key: state[key] + t * (reached[key] - state[key]) for key in state}, (x,)) for t in (-1, 0, 1)]
    curve = values[0] - 2 * values[1] + values[2]
    assert torch.allclose(2 * (network(x) - first(x)), curve, atol=1e-4 * float(curve.abs().max()))


@pytest.mark.parametrize("order", [1, 2])
def test_its_gradient_is_that_of_its_formula(order):
    """d/dd of f + J d + d'H d / 2 is J' (+ H d), here through a product of two weights, for which order 2 is exact."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.5, -0.5))

        def forward(self, x):
            return self.a * self.b * x

    network = Taylorised(Product(), order)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), (0.3, 0.7), strict=True):
            parameter.fill_(value)
    x = torch.tensor([2.0], dtype=torch.float64)
    exact = 1.8 * 0.2 * 2 if order == 2 else (1.5 * -0.5 + 0.3 * -0.5 + 0.7 * 1.5) * 2
    assert float(network(x)) == pytest.approx(exact)
    slopes = [float(g) for g in torch.autograd.grad(network(x).sum(), list(network.parameters()))]
    assert slopes == pytest.approx([2 * (0.2 if order == 2 else -0.5), 2 * (1.8 if order == 2 else 1.5)])


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=1e-2)], ids=["sgd", "adamw"])
def test_any_optimizer_trains_it(optimizer):
    subject = cnn()
    (block,) = subject.train.blocks
    for make in (linearize, quadratic):
        network = make(module_of(subject))
        stepper, losses = optimizer(network.parameters()), []
        for _ in range(15):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(network(block.inputs), block.targets)
            loss.backward()
            stepper.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.9 * losses[0]
        reached = network.reached()
        assert any(not torch.equal(reached[key], subject.state[key]) for key in subject.trainable)
        assert set(reached) == set(subject.state)


def test_the_linearised_network_follows_its_tangent_kernel():
    """One step of gradient descent on half the squared error moves the outputs by lr Theta (f - y), exactly."""
    from gnomon.numerics.tangent_kernel import TangentKernel

    subject = cnn()
    (block,) = subject.train.blocks
    network = linearize(module_of(subject))
    targets = chance.normal(len(block), 4, rng=chance.generator(1))
    kernel = TangentKernel(subject, block.inputs).full()
    outputs = network(block.inputs)
    for _ in range(3):
        gradients = torch.autograd.grad((outputs - targets).square().sum() / 2, list(network.parameters()))
        expected = outputs.detach() - 0.01 * torch.einsum("ijab,jb->ia", kernel, outputs.detach() - targets)
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient
        outputs = network(block.inputs)
        assert torch.allclose(outputs, expected, atol=1e-10)


def test_tied_parameters_move_together_and_it_moves_between_dtypes():
    subject = tokens()
    (block,) = subject.train.blocks
    network = linearize(module_of(subject))
    assert len(list(network.parameters())) == len(subject.trainable)
    displaced(network)
    double = network(**block.inputs)
    single = network.float()(ids=block.inputs["ids"], mask=block.inputs["mask"].float())
    assert single.dtype == torch.float32
    assert torch.allclose(double.float(), single, atol=1e-4)


def test_what_cannot_be_expanded_is_said():
    with pytest.raises(InvalidInput, match="order 1 or 2"):
        Taylorised(nn.Linear(2, 2), 3)
    with pytest.raises(InvalidInput, match="nothing to expand in"):
        linearize(nn.Linear(2, 2).requires_grad_(False))

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Custom(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    with pytest.raises(OutOfScope, match="forward mode"):
        linearize(Custom(2, 2))(torch.ones(1, 2))
