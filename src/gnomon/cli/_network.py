"""The Subject that the options of a command describe."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnomon.core import dataset, factory, weights
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput
from gnomon.core.subject import Subject, unwrap
from gnomon.data.load import load


@dataclasses.dataclass(frozen=True)
class Network:
    """What the command line says of a network, its data and its training."""

    model: str
    data: str
    weights: Path | None = None
    initial: Path | None = None
    loss: str | None = None
    optimizer: str | None = None
    optimizer_state: Path | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    init: tuple[str, ...] = ()
    examples: int | None = None
    device: str = "cpu"
    seed: int = 0
    history: Path | None = None
    checkpoints: Path | None = None


def subject_of(network: Network) -> tuple[Subject, str]:
    """The Subject, and its data's name.  Raises: InvalidInput for whatever does not exist, does not load or does not fit."""
    device = check_device(network.device)
    make = factory.find(network.model)
    with chance.scoped(chance.generator(network.seed, "model")):
        module = unwrap(make())
    if network.weights is not None:
        weights.put(weights.read(network.weights), module, what=f"weights in {network.weights.name}")
    initial = None if network.initial is None else weights.fit(weights.read(network.initial), module, what=f"weights in {network.initial.name}")
    train, test, data_name = load(network.data, seed=network.seed)
    # read with the generator that freeze would use, so that the examples are those of a Subject frozen in Python
    train = dataset.read(train, rng=chance.child(chance.generator(network.seed, "freeze"), "train"))
    subject = Subject.freeze(
        module.to(device), loss_of(network.loss, train), train, test, initial=initial, make=make, optimizer=network.optimizer, lr=network.lr, momentum=network.momentum,
        weight_decay=network.weight_decay, batch_size=network.batch_size, init=network.init, examples=network.examples, seed=network.seed,
        history=network.history or network.checkpoints,
        name=make.call.name if type(module) is nn.Sequential else None,
    )  # fmt: skip
    if network.optimizer_state is not None:
        state = weights.optimizer_state_in(weights.load_file(network.optimizer_state), str(network.optimizer_state))
        subject = dataclasses.replace(subject, training=subject.training.with_state(state, module))
    return subject, data_name


def loss_of(text: str | None, train: dataset.Dataset) -> Any:
    """The loss that `--loss` says: a name, or `file.py:function`; without it, cross-entropy for integer targets and mean squares for real ones.

    `file.py:name` is the loss itself (a class is made first), `file.py:name(arguments)` a call that returns it.
    """
    if text is None:
        real = any(leaf.is_floating_point() for leaf in dataset.leaves(train.blocks[0].targets))
        return "mse" if real else "cross_entropy"
    if not factory.is_factory(text):
        return text
    found = factory.find(text, what="loss")
    return found() if found.call.called or inspect.isclass(found.function) else found.function


def check_device(name: str) -> torch.device:
    """The device of this name.  Raises: InvalidInput where this machine, or this PyTorch, has none such."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(f"Unknown device {name!r}; known are cpu, cuda, cuda:0, mps.") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise InvalidInput(
            f"There is no device {name!r}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here. Use --device cpu, or install a CUDA build of PyTorch."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InvalidInput("There is no device 'mps' here. Use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InvalidInput(f"Device {name!r} is not covered; covered are cpu, cuda and mps (which has no float64).")
    return device
