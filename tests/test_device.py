"""Everything runs on a device other than the CPU: each instrument, the kernels, a report; what would mix devices is refused by a device that is pretended."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from pretended import CPU, DEVICE, pretended
from torch import nn

from gnomon import Subject, examine
from gnomon.core import contract, registry
from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.hooks import Watch
from gnomon.hooks.watch import moved
from gnomon.instruments.empirical import empirical_nngp, empirical_ntk, monte_carlo_kernel, tangent_kernel
from gnomon.numerics import walks
from gnomon.studies.contract import NETWORKS, subject_for
from gnomon.studies.contract import moved as contract_network
from gnomon.studies.critical import tune
from gnomon.theory import kernels
from gnomon.theory.infinite import inference

INSTRUMENTS = registry.instruments()
DIFFERENT = "Expected all tensors to be on the same device"


class Cubed(torch.autograd.Function):
    """x^3, whose backward makes its factor on the CPU."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x**2 * torch.full(x.shape, 3.0)


def hooked(there):
    leaf = there.clone().requires_grad_()
    leaf.register_hook(lambda grad: grad * torch.ones(3))
    torch.autograd.grad((leaf**2).sum(), leaf)


MIXES = {
    "sum": lambda here, there: here + there,
    "product": lambda here, there: there @ here,
    "in place": lambda here, there: here.add_(there),
    "scalar in place": lambda here, there: torch.zeros(()).add_(there.sum()),
    "concatenation": lambda here, there: torch.cat([here, there]),
    "stack of scalars": lambda here, there: torch.stack([torch.ones(()), there.sum()]),
    "index on the device": lambda here, there: here[there.long()],
    "values put": lambda here, there: there.index_put_((torch.tensor([0, 1, 2]),), here),
    "index_select": lambda here, there: there.index_select(0, torch.tensor([0])),
    "a factory": lambda here, there: there * torch.arange(3),
    "a copy": lambda here, there: copy.deepcopy(there) + here,
    "vmap": lambda here, there: torch.func.vmap(lambda row: row * here)(torch.eye(3, device=DEVICE)),
    "vjp": lambda here, there: torch.func.vjp(lambda x: x**2, there)[1](here),
    "jvp": lambda here, there: torch.func.jvp(lambda x: x * here, (there,), (there,)),
    "hessian": lambda here, there: torch.func.hessian(lambda x: (x**3 * here).sum())(there),
    "double backward": lambda here, there: torch.autograd.grad(torch.func.grad(lambda x: (x**3).sum())(there.requires_grad_()), there, here),
    "backward of a function": lambda here, there: torch.autograd.grad(Cubed.apply(there.requires_grad_()).sum(), there),
    "a hook": lambda here, there: hooked(there),
    "a module": lambda here, there: nn.Linear(3, 2)(there),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_mixed_devices_are_refused(mix):
    with pretended(), pytest.raises(RuntimeError, match=DIFFERENT):
        mix(torch.ones(3), torch.ones(3, device=DEVICE))


def test_what_the_cpu_alone_can_do_is_refused():
    with pretended():
        there = torch.ones(3, device="cuda")
        for refused in (lambda: there.numpy(), lambda: np.asarray(there), lambda: np.sqrt(there)):
            with pytest.raises(TypeError, match="can't convert"):
                refused()
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.randn(3, generator=torch.Generator(), device="cuda")
        with pytest.raises(RuntimeError, match="not implemented for 'Long'"):
            there.long() @ there.long()


def test_what_cuda_allows_is_allowed():
    with pretended() as device:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        on_it = [
            there * torch.tensor(2.0), there[torch.tensor([0, 2])], there.new_zeros(2), torch.zeros_like(here, device=DEVICE), here.to(there), here.to(DEVICE, torch.float64),
            torch.func.vmap(torch.sum)(torch.eye(3, device=DEVICE)), nn.functional.one_hot(there.long()), torch.empty(3, device="cuda").copy_(here), torch.tensor([1], device=DEVICE),
            nn.Linear(3, 2).to(DEVICE).weight, copy.deepcopy(nn.BatchNorm1d(3).to("cuda")).running_mean, torch.as_tensor(here, device=DEVICE),
        ]  # fmt: skip
        assert all(tensor.device == DEVICE and device.has(tensor) for tensor in on_it)
        away = [there.cpu(), there.to("cpu"), here, torch.tensor([there.sum(), there.sum()]), torch.as_tensor(np.ones(3)), here.copy_(there), torch.zeros_like(there, device="cpu")]
        assert all(tensor.device == CPU for tensor in away)
        assert float(there.sum()) == 3.0
        assert there.tolist() == [1.0, 1.0, 1.0]
        assert there.cpu().numpy().sum() == 3.0
    assert there.device == CPU, "nothing is left of it"


def perceptron():
    inputs = chance.normal(16, 4, rng=chance.generator(0, "inputs")).float()
    return contract_network(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.float32, "cross_entropy", (inputs, torch.arange(16) % 3), None)


def readings(instrument):
    """Readings of one instrument on the CPU and on the device, on the first small network that it is for."""
    for subject in filter(None, (*(subject_for(instrument, network, torch.float32) for network in NETWORKS), perceptron())):
        with contextlib.suppress(OutOfScope):
            subject = subject.with_chunk(40)  # sums over chunks are carried apart
            here = contract.take(instrument, subject)
            with pretended():
                there = moved(subject, DEVICE, torch.float32)
                assert there.device == DEVICE
                return here, contract.take(instrument, there)
    raise AssertionError(f"{instrument.name} is for none of the small networks")


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_every_instrument_runs_on_a_device(name):
    """All numbers are those of the CPU, but for sums in another order where a copy lies otherwise in memory."""
    here, there = readings(INSTRUMENTS[name])
    np.testing.assert_allclose(there.value, here.value, rtol=1e-4, atol=1e-6 * float(np.abs(here.value).max()))
    assert there.skipped == here.skipped


def network(*layers):
    with chance.scoped(chance.generator(0, "device")):
        return nn.Sequential(*(layer() for layer in layers)).double()


def classifier():
    return network(lambda: nn.Conv2d(1, 3, 3, stride=2), nn.ReLU, nn.Flatten, lambda: nn.Linear(12, 3))


INPUTS, LABELS = chance.normal(40, 1, 6, 6, rng=chance.generator(0, "inputs")), torch.arange(40) % 3
WIDE = {
    "mlp": lambda: network(nn.Flatten, lambda: nn.Linear(36, 8), nn.ReLU, lambda: nn.Linear(8, 8), nn.GELU, lambda: nn.Linear(8, 1)),
    "flattened": lambda: network(lambda: nn.Conv2d(1, 8, 3, padding=1), nn.ReLU, lambda: nn.Conv2d(8, 8, 3, stride=2), nn.ReLU, nn.Flatten, lambda: nn.Linear(32, 1)),
    "pooled": lambda: network(lambda: nn.Conv2d(1, 8, 3), nn.ReLU, lambda: nn.AvgPool2d(2), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten, lambda: nn.Linear(8, 1)),
    "normalised": lambda: network(nn.Flatten, lambda: nn.Linear(36, 8), lambda: nn.LayerNorm(8), nn.Tanh, lambda: nn.Linear(8, 1)),
    "series": lambda: network(nn.Flatten, lambda: nn.Linear(36, 8), nn.SiLU, lambda: nn.Linear(8, 8), nn.ELU, lambda: nn.Linear(8, 1)),
    "kinks": lambda: network(nn.Flatten, lambda: nn.Linear(36, 8), nn.Hardtanh, lambda: nn.Linear(8, 8), nn.Hardswish, lambda: nn.Linear(8, 1)),
}


def both(work):
    """What `work(to)` gives on the CPU and on the device, `to` moves a tensor there."""
    here = work(lambda x: x)
    with pretended():
        there = work(lambda x: x.to(DEVICE))
        for one, other in zip(here, there, strict=True):
            if isinstance(other, torch.Tensor):
                assert other.device == DEVICE
            one, other = (getattr(x, "value", x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x) for x in (one, other))
            np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", WIDE.values(), ids=WIDE)
def test_kernels_of_infinite_width_are_made_on_the_device(make):
    x = INPUTS[:3]
    both(lambda to: kernels.infinite_width(to(make()))(to(x), None, ("nngp", "ntk")))


@pytest.mark.parametrize("make", [WIDE["mlp"], WIDE["pooled"]], ids=["mlp", "pooled"])
def test_kernels_of_two_sets_of_examples_are_made_on_the_device(make):
    """The module itself may lie elsewhere: its weights are not looked at."""
    both(lambda to: (kernels.infinite_width(make())(to(INPUTS[:2]), to(INPUTS[2:5]), "ntk"),))


def test_what_wide_networks_predict_stays_on_the_device():
    x, y, new, kernel = INPUTS[:12], INPUTS[:12, 0, 0, :2], INPUTS[12:15], kernels.infinite_width(WIDE["mlp"]())
    both(lambda to: kernels.gradient_flow(kernel, to(x), to(y), to(new), time=10.0))
    both(lambda to: kernels.gradient_flow(kernel, to(x), to(y), time=math.inf))
    both(lambda to: kernels.posterior(kernel, to(x), to(y), to(new), noise=0.1))
    both(lambda to: (kernels.ridge_regression(kernel, to(x), to(y), to(new), ridge=0.1), *kernels.log_marginal_likelihood(kernel, to(x), to(y), noise=0.1)))


def test_kernels_on_disk_are_used_from_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "_beyond", lambda *sizes: True)
    x, y, new, kernel = INPUTS[:4], INPUTS[:4, 0, 0], INPUTS[4:6], kernels.infinite_width(network(nn.Flatten, lambda: nn.Linear(36, 8), nn.ReLU, lambda: nn.Linear(8, 1)))
    folders = (tmp_path / str(number) for number in range(2))
    both(lambda to: kernels.posterior(kernel, to(x), to(y), to(new), noise=0.1, folder=next(folders)))


def frozen(to):
    return Subject.freeze(
        to(classifier()), "cross_entropy", (to(INPUTS), to(LABELS)), (INPUTS[:16], LABELS[:16]), initial=halved(), make=classifier, optimizer="sgd", lr=0.1, batch_size=4
    )


def halved():
    """The classifier with other weights, on the CPU."""
    other = classifier()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    return other


def test_kernels_of_networks_as_they_are():
    x, one = INPUTS[:6], torch.ones(6, 3, dtype=torch.float64)
    both(lambda to: (empirical_ntk(frozen(to)), empirical_ntk(to(classifier()), to(x), INPUTS[6:9], outputs="sum"), empirical_nngp(to(classifier()), to(x))))
    both(lambda to: (tangent_kernel(to(classifier()), to(x)).full(), tangent_kernel(to(classifier()), to(x))(to(one))))
    both(lambda to: (monte_carlo_kernel(lambda: to(nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 2)).double()), x, networks=2, rng=chance.generator(0)),))


def test_a_network_is_tuned_and_watched_where_it_lies(tmp_path):
    def chain():
        return network(lambda: nn.Linear(6, 8), nn.Tanh, lambda: nn.Linear(8, 8), nn.Tanh, lambda: nn.Linear(8, 3))

    def tuned(to):
        found = tune(to(chain()), to(INPUTS[:, 0, 0]), rng=chance.generator(0))
        found.model(to(INPUTS[:4, 0, 0])).square().sum().backward()
        torch.optim.SGD(found.parameter_groups()).step()
        return found.lr, found.after, next(found.model.parameters())

    both(tuned)
    files, names = iter([tmp_path / "here.json", tmp_path / "there.json"]), ("training_loss", "sharpness", "gradient_noise_scale", "spectral_norms")

    def trained(to):
        """The network is moved once it is watched, as trainers do."""
        model = classifier()
        watch = Watch(model, "cross_entropy", (INPUTS, LABELS), (INPUTS[:16], LABELS[:16]), every=2, readings=names, out=next(files), lr=0.1, optimizer="sgd")
        to(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            watch.step(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(to(INPUTS)), to(LABELS)).backward()
            optimizer.step()
        assert [set(record["readings"]) for record in watch.history["records"]] == 2 * [set(names)]
        return *(watch[name] for name in names), model[0].weight

    both(trained)


def test_a_whole_report_is_made_on_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(walks, "TRACED_AFTER", math.inf)  # a trace writes down where things are made, which is the CPU in truth
    with pretended():
        document = examine(frozen(lambda x: x.to(DEVICE)), budget=2.0, store=tmp_path, threads=1).document
    assert document["environment"]["device"] == "cuda:0"
    assert len(document["rows"]) > 5
    assert not [row["title"] for row in document["rows"] if row["verdict"] == "error"]
    assert not [left for left in document["skipped"] if DIFFERENT in left["why"]]
