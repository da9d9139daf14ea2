"""The class part of a classifier's Gauss-Newton matrix: second moments of class means of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from gnomon.core.dataset import leaves
from gnomon.core.errors import OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.operators import loss_gradient, loss_value


def class_part_eigenvalues(subject: Subject) -> Float64[Tensor, "classes"]:
    """Eigenvalues of B = sum_c w_c d_c d_c', the between-class part of the Gauss-Newton matrix of the cross-entropy, descending.

    G = (1/n) sum_i sum_{c'} p_{i,c'} g_{i,c'} g_{i,c'}' with g_{i,c'} the gradient of the loss of example i were its label c'.  Of its terms with c' another
    class than i's own, w_c is the weight and d_c the weighted mean over the examples of class c.  As sum_{c'} p_{i,c'} g_{i,c'} = 0,
    w_c d_c = -(1/n) sum_{i in c} p_{i,c} g_{i,c}.  A second moment is at least that of its means: lambda_i(G) >= lambda_i(B).

    Shapes: -> (classes,), of which at most as many as parameters are not 0.   Units: loss / parameter^2.   Error: rounding.
    Assumes: cross-entropy of logits with one label an example.   Cost: one gradient and one forward pass.
    Raises: OutOfScope where there are no classes, a class has no example, or its examples have no probability left for other classes.
    Source: Papyan 2020, section 4.
    """

    def probability(output: Tensor, targets: Tensor) -> Tensor:
        return torch.softmax(output, -1).gather(-1, targets.reshape(-1, 1)).mean()

    loss = dataclasses.replace(subject.loss, function=probability, reduction="mean", weight=lambda targets: float(len(targets)))
    columns = []
    for label, (share, examples) in enumerate(by_class(subject)):
        part = dataclasses.replace(examples, loss=loss)
        doubt = 1 - loss_value(part)
        if doubt <= 0:
            raise OutOfScope(f"the network gives class {label} all the probability there is: in its precision its gradients are 0; examine it in float64")
        columns.append(loss_gradient(part)[1].double() * (share / doubt) ** 0.5)
    return torch.linalg.svdvals(torch.stack(columns, 1)).square()


def cross_class_means(subject: Subject) -> Float64[Tensor, "P pairs"]:
    """Columns sqrt(w_{c,c'}) d_{c,c'} for c' other than c: means of gradients of the examples of class c were their label c'.

    w_{c,c'} = (1/n) sum_{i in c} p_{i,c'} and w_{c,c'} d_{c,c'} = -(1/n) sum_{i in c} grad p_{i,c'}.  Their second moments are the class part of the Gauss-Newton matrix,
    of rank `classes`, and the cross-class part, the spread about the classes' means, of rank classes (classes - 2).

    Shapes: (P, classes (classes - 1)).   Units: sqrt(loss) / parameter.   Error: rounding.   Assumes: as `class_part_eigenvalues`.
    Cost: `classes` gradients; as many vectors of memory as there are columns.   Raises: as `class_part_eigenvalues`.
    Source: Papyan 2020, section 4.
    """
    columns = []
    for label, (share, examples) in enumerate(by_class(subject)):
        for other in range(subject.classes or 0):
            if other == label:
                continue

            def probability(output: Tensor, targets: Tensor, other: int = other) -> Tensor:
                return torch.softmax(output, -1)[:, other].mean()

            loss = dataclasses.replace(subject.loss, function=probability, reduction="mean", weight=lambda targets: float(len(targets)))
            mean, gradient = loss_gradient(dataclasses.replace(examples, loss=loss))
            if mean <= 0:
                raise OutOfScope(f"the network gives class {other} no probability on examples of class {label}; examine it in float64")
            columns.append(gradient.double() * (share / mean) ** 0.5)
    return torch.stack(columns, 1)


def by_class(subject: Subject) -> Iterator[tuple[float, Subject]]:
    """For each class its share of the examples, and the subject on them.   Raises: OutOfScope for other than one label an example, or a class without one."""
    labels = torch.cat([leaves(block.targets)[0] for block in subject.train.blocks])
    if subject.classes is None or labels.ndim != 1:
        raise OutOfScope("class means are those of a classifier with one label an example")
    for label in range(subject.classes):
        chosen = (labels == label).nonzero().flatten()
        if not len(chosen):
            raise OutOfScope(f"class {label} has no example among the {len(labels):,} examined; examine more examples")
        yield len(chosen) / len(labels), dataclasses.replace(subject, train=subject.train.select(chosen), _shared={})
