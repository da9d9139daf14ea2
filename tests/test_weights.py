import argparse
import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gnomon.core import factory, weights
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject, state_of
from gnomon.core.training import Training


class Tied(nn.Module):
    """Tied weights, batch norm, a buffer that is not saved and a causal mask of -inf."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens).mean(1)) * self.scale)


def fresh(seed):
    torch.manual_seed(seed)
    return Tied()


def same(a, b):
    return all(torch.equal(value, state_of(b)[key]) for key, value in state_of(a).items())


DRESSES = {
    "plain": lambda s: s,
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "compiled inside ddp": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "lightning": lambda s: {"epoch": 3, "state_dict": {**{f"model.{k}": v for k, v in s.items()}, "metric.total": torch.zeros(1)}, "hyper_parameters": {"lr": 0.1}},
    "lightning compiled": lambda s: {"state_dict": {f"net._orig_mod.{k}": v for k, v in s.items()}},
    "checkpoint": lambda s: {"step": 7, "model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    "model": lambda s: {"model": s, "ema": s},
    "only one": lambda s: {"my_weights": s, "iteration": torch.tensor(3)}["my_weights"],
    "unknown key": lambda s: {"generator": s, "epoch": 1},
    "tied once, second name": lambda s: {k: v for k, v in s.items() if k != "embed.weight"},
    "old batch norm": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "half": lambda s: {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_weights_are_found_in_every_dress(tmp_path, dress, suffix):
    trained, other = fresh(1), fresh(2)
    if dress == "half":
        trained.load_state_dict({k: v.bfloat16().to(v.dtype) for k, v in trained.state_dict().items()})
    torch.save(DRESSES[dress](trained.state_dict()), tmp_path / f"w{suffix}")
    weights.put(weights.read(tmp_path / f"w{suffix}"), other)
    assert same(trained, other)
    assert other.head.weight is other.embed.weight


def test_safetensors(tmp_path):
    trained, other = fresh(1), fresh(2)
    save_file({k: v for k, v in trained.state_dict().items() if k != "head.weight"}, tmp_path / "w.safetensors")
    weights.put(weights.read(tmp_path / "w.safetensors"), other)
    assert same(trained, other)
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InvalidInput, match="cannot be read"):
        weights.read(tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('evil').touch()",))


def test_pickled_code_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": fresh(1).state_dict(), "extra": Evil()}, "evil.pt")
    torch.save(nn.Linear(2, 2), "whole.pt")
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "args.pt")
    for name in ("evil.pt", "whole.pt", "args.pt"):
        with pytest.raises(InvalidInput, match=r"runs no code.*convert it once"):
            weights.read(name)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"hello, world", None])
def test_broken_files_are_named(tmp_path, content):
    path = tmp_path / "w.pt"
    torch.save(fresh(1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    with pytest.raises(InvalidInput, match=r"w\.pt"):
        weights.read(path)
    with pytest.raises(InvalidInput, match="Did you mean 'w.pt'"):
        weights.read(tmp_path / "w.pth")


def test_what_does_not_match_is_named():
    state, module = dict(fresh(1).state_dict()), fresh(2)
    short = {k: v for k, v in state.items() if k != "norm.running_mean"}
    with pytest.raises(InvalidInput, match=r"1 of .* missing \(norm.running_mean\)"):
        weights.fit(short, module)
    with pytest.raises(InvalidInput, match="no place for 1 of their .*norm2.weight"):
        weights.fit({**state, "norm2.weight": torch.ones(4)}, module)
    with pytest.raises(InvalidInput, match=r"'norm.bias' has shape \(5,\), the network has \(4,\)"):
        weights.fit({**state, "norm.bias": torch.ones(5)}, module)
    with pytest.raises(InvalidInput, match="NaN or infinite value in 'norm.bias'"):
        weights.fit({**state, "norm.bias": torch.full((4,), torch.nan)}, module)
    with pytest.raises(InvalidInput, match="several sets of weights: discriminator, generator"):
        weights.tensors_in({"generator": state, "discriminator": state})
    with pytest.raises(InvalidInput, match="no tensors by name"):
        weights.tensors_in({"epoch": 3})
    with pytest.raises(InvalidInput, match="holds a list"):
        weights.tensors_in([1])


def test_freeze_takes_an_initial_state_dict_without_the_buffers_that_are_not_saved():
    trained, initial = fresh(1), fresh(2)
    tokens = torch.arange(12).reshape(6, 2) % 7
    subject = Subject.freeze(trained, "cross_entropy", (tokens, tokens[:, 0]), initial=initial.state_dict(), init="xavier")
    assert torch.equal(subject.initial["embed.weight"], initial.embed.weight)
    assert subject.init == ("xavier",)
    assert subject.fingerprint() != dataclasses.replace(subject, init=()).fingerprint()
    with pytest.raises(InvalidInput, match=r"initial do not match.*embed.weight"):
        Subject.freeze(trained, "cross_entropy", (tokens, tokens[:, 0]), initial={"x": torch.ones(1)})


def stepped(optimizer_class, groups, **settings):
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = optimizer_class(groups(module), lr=0.01, **settings)
    for step in range(3):
        optimizer.zero_grad()
        module(torch.full((4, 3), 1.0 + step)).square().mean().backward()
        optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("groups", [lambda m: m.parameters(), lambda m: m.named_parameters()])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_s_state_comes_from_a_file_as_from_the_optimizer(tmp_path, kind, groups):
    module, optimizer = stepped(kind, groups, betas=(0.8, 0.99))
    torch.save({"optimizer_states": [optimizer.state_dict()]}, tmp_path / "o.ckpt")
    state = weights.optimizer_state_in(weights.load_file(tmp_path / "o.ckpt"))
    read = Training().with_state(state, module)
    direct = Training.of(optimizer, lr=None, momentum=None, weight_decay=None, batch_size=None, module=module)
    assert read.to_json() == direct.to_json()
    assert read.second_moment.keys() == direct.second_moment.keys() == dict(module.named_parameters()).keys()
    assert all(torch.equal(value, direct.second_moment[key]) for key, value in read.second_moment.items())


def test_an_optimizer_state_that_does_not_fit_is_refused(tmp_path):
    module, optimizer = stepped(torch.optim.Adam, lambda m: m.parameters())
    with pytest.raises(InvalidInput, match="it is another network's"):
        Training().with_state(optimizer.state_dict(), nn.Linear(3, 2))
    with pytest.raises(InvalidInput, match="does not fit the network: '0.weight'"):
        Training().with_state(optimizer.state_dict(), nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 1)))
    with pytest.raises(InvalidInput, match="one of adam, not of sgd"):
        Training("sgd", 0.1).with_state(optimizer.state_dict(), module)
    module, optimizer = stepped(torch.optim.Adam, lambda m: [{"params": m[0].parameters()}, {"params": m[1].parameters()}])
    with pytest.raises(InvalidInput, match="2 groups and no names"):
        Training().with_state(optimizer.state_dict(), module)
    with pytest.raises(InvalidInput, match="no optimizer state"):
        weights.optimizer_state_in({"state_dict": {}})


FILE = """
from helper import width
import torch
class Net(torch.nn.Linear): pass
def make_model(width=width, *, names=("a",), scale=1e-3):
    return Net(width, len(names))
def broken():
    x = {}
    return x["weights"]
def leave():
    raise SystemExit(3)
value = 3
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "helper.py").write_text("width = 5\n")
    return tmp_path / "net.py"


def test_factories_are_found_and_called_with_literals(net, monkeypatch):
    made = factory.find(f"{net}:make_model(width=6, names=('x', 'y'))")()
    assert (made.in_features, made.out_features) == (6, 2)
    assert factory.find(f"{net}:make_model")().in_features == 5
    assert type(factory.find(f"{net}:make_model")()) is type(made), "a file is imported once"
    monkeypatch.chdir(net.parent)
    assert factory.find("helper:dict(a=1)".replace("helper", "builtins"))() == {"a": 1}
    assert factory.is_factory("C:\\nets\\net.py:make_model(a=':')")
    assert not factory.is_factory("digits(standardise=False)")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{net}:make_modle", "Did you mean 'make_model'"),
        ("{net}:broken()", r"raised KeyError: 'weights' \(net.py, line 9\)"),
        ("{net}:leave", "ended the program"),
        ("{net}:value", "is a int, not a function"),
        ("{net}:make_model(width=w)", "only literals"),
        ("{net}:make_model(**{{}})", "only literals"),
        ("{net}:make_model(width=3", "only literals"),
        ("{net}:make_model(depth=3)", "raised TypeError.*depth"),
        ("{net}", "defines: Net, make_model, broken, leave"),
        ("{folder}/nett.py:make_model", "Did you mean 'net.py'"),
        ("no.such.module:make", "no module 'no.such.module'"),
        ("make_model", "must name a factory"),
    ],
)
def test_a_factory_that_does_not_work_says_why(net, text, says):
    with pytest.raises(InvalidInput, match=says):
        factory.find(text.format(net=net, folder=net.parent))()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("1/0", "ZeroDivisionError.*bad.py, line 1"),
        ("def f(:", r"SyntaxError.*bad.py, line 1"),
        ("import nosuchthing", "No module named 'nosuchthing'"),
        ("raise SystemExit(1)", "SystemExit"),
    ],
)
def test_a_file_that_does_not_import_shows_its_own_error(tmp_path, code, says):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(InvalidInput, match=says):
        factory.find(f"{tmp_path}/bad.py:f")


def test_numbers_of_any_width_survive_npz(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2), np.float16), y=np.array([True, False]))
    from gnomon.data.load import npz

    (x, y), _ = npz(tmp_path / "a.npz")
    assert (x.dtype, y.dtype) == (torch.float16, torch.bool)
