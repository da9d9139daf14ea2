"""Facts of a subject: the plain numbers that chapters and theory may know."""

from __future__ import annotations

import torch

from gnomon.core import architecture
from gnomon.core.affine import bent_by
from gnomon.core.dataset import Block
from gnomon.core.facts import Facts
from gnomon.core.subject import Subject


def facts_of(subject: Subject) -> Facts:
    """The Facts of a subject.  Cost: one forward pass of two examples."""
    block = next(subject.train.chunks(2))
    block = Block(subject.to_device(block.inputs), subject.to_device(block.targets))
    with torch.no_grad():
        output = subject(subject.state, block.inputs)
    return Facts(
        name=subject.name, parameters=sum(value.numel() for key, value in subject.module.named_parameters()), trainable=subject.dimension, classes=subject.classes,
        output_size=output[0].numel(), loss=subject.loss.name, reduction=subject.loss.reduction, train_examples=len(subject.train), train_population=subject.train.population,
        test_examples=len(subject.test) if subject.test else 0, training=subject.training, architecture=architecture.of(subject),
        has_initial=subject.initial is not None, has_make=subject.make is not None, bent=bent_by(subject),
    )  # fmt: skip
