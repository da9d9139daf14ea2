"""The class part of the Gauss-Newton matrix, against per-example gradients of every label by autograd."""

import pytest
import torch
from torch import nn

from gnomon.core import rng as chance
from gnomon.core.errors import OutOfScope
from gnomon.core.subject import Subject
from gnomon.instruments.mini_bulk import mini_bulk
from gnomon.numerics.class_means import class_part_eigenvalues, cross_class_means
from gnomon.numerics.operators import GaussNewton


def subject(classes=3, n=20, labels=None):
    with chance.scoped(chance.generator(0)):
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double()
        x, y = torch.randn(n, 4, dtype=torch.float64), torch.randint(classes, (n,)) if labels is None else labels
    return Subject.freeze(net, "cross_entropy", (x, y), chunk=7)


def test_it_is_the_second_moment_of_the_class_means_over_labels_that_the_examples_do_not_have():
    """Built from its definition, one gradient for every example and label; and below the Gauss-Newton matrix, eigenvalue by eigenvalue."""
    found = subject()
    net, block = found.module, found.train.blocks[0]
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    means = []
    for label in range(3):
        total, weight = torch.zeros(found.dimension, dtype=torch.float64), 0.0
        for x in block.inputs[block.targets == label]:
            p = torch.softmax(net(x), -1).detach()
            for other in {0, 1, 2} - {label}:
                loss = nn.functional.cross_entropy(net(x), torch.tensor(other))
                total += float(p[other]) * torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
                weight += float(p[other])
        means.append(total / weight * (weight / 20) ** 0.5)
    truth = torch.linalg.svdvals(torch.stack(means, 1)).square()
    values = class_part_eigenvalues(found)
    assert torch.allclose(values, truth, rtol=1e-10)
    product = GaussNewton(found)
    whole = torch.linalg.eigvalsh(torch.stack([product(row) for row in torch.eye(found.dimension, dtype=torch.float64)])).flip(0)
    assert bool((whole[:3] >= values).all())


def test_pairs_of_classes_are_the_whole_where_the_examples_of_a_class_are_one():
    """Then nothing of the Gauss-Newton matrix is left outside their means, C^2 - C directions; it is never less than their second moment."""
    spread = subject(n=60)
    labels = spread.train.blocks[0].targets
    collapsed = Subject.freeze(spread.module.requires_grad_(True), "cross_entropy", (torch.eye(3, 4, dtype=torch.float64)[labels], labels))
    for found, same in ((collapsed, True), (spread, False)):
        means = cross_class_means(found)
        assert means.shape == (found.dimension, 6)
        product = GaussNewton(found)
        left = torch.stack([product(row) for row in torch.eye(found.dimension, dtype=torch.float64)]) - means @ means.T
        assert torch.linalg.eigvalsh(left)[0] > -1e-12
        basis = torch.linalg.qr(means)[0]
        assert (float((left - basis @ (basis.T @ left)).abs().max()) < 1e-12) is same
    assert mini_bulk(collapsed, rng=chance.generator(0)).value.tolist() == [2.0, 6.0]
    with pytest.raises(OutOfScope, match="2 to 10 classes"):
        mini_bulk(subject(classes=11, n=40), rng=chance.generator(0))


def test_what_has_no_class_part_is_refused():
    with pytest.raises(OutOfScope, match="class 2 has no example"):
        class_part_eigenvalues(subject(labels=torch.arange(20) % 2))
    with pytest.raises(OutOfScope, match="one label an example"):
        class_part_eigenvalues(Subject.freeze(nn.Linear(2, 1), "mse", (torch.zeros(3, 2), torch.zeros(3, 1))))
    with pytest.raises(OutOfScope, match="gives class . all the probability"):
        class_part_eigenvalues(
            Subject.freeze(nn.Linear(2, 2), "cross_entropy", (torch.tensor([[1.0, 0], [0, 1]]), torch.arange(2))).at({"weight": 1e4 * torch.eye(2), "bias": torch.zeros(2)})
        )
