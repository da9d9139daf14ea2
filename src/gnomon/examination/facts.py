"""Facts of a subject: the plain numbers that chapters and theory may know."""

from __future__ import annotations

from gnomon.core import architecture
from gnomon.core.affine import bent_by
from gnomon.core.facts import Facts
from gnomon.core.subject import Subject


def facts_of(subject: Subject) -> Facts:
    """The Facts of a subject."""
    return Facts(
        name=subject.name, parameters=sum(value.numel() for key, value in subject.module.named_parameters()), trainable=subject.dimension, classes=subject.classes,
        loss=subject.loss.name, reduction=subject.loss.reduction, train_examples=len(subject.train), train_population=subject.train.population,
        test_examples=len(subject.test) if subject.test else 0, training=subject.training, architecture=architecture.of(subject),
        bent=bent_by(subject),
    )  # fmt: skip
