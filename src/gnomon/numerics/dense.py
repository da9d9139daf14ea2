"""Small exact answers by dense linear algebra, written apart from the engine: what the contract tests compare with."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gnomon.core.dataset import leaves
from gnomon.core.reading import Array, Reading
from gnomon.core.subject import Subject
from gnomon.numerics.measuring import measuring


def flat_loss(subject: Subject, flat: Float[Tensor, "P"]) -> Float[Tensor, ""]:
    """The training loss as a function of one flat parameter vector.  Shapes: flat (P,)."""
    state, start = dict(subject.state), 0
    for key in subject.trainable:
        size = subject.state[key].numel()
        state[key] = flat[start : start + size].view(subject.state[key].shape)
        start += size
    total, weight = torch.zeros((), dtype=flat.dtype, device=flat.device), 0.0
    for block in subject.train.blocks:
        inputs, targets = subject.to_device(block.inputs), subject.to_device(block.targets)
        count = subject.loss.count(targets) if subject.loss.reduction == "mean" else 1.0
        if count:
            total = total + count * subject.loss(subject(state, inputs), targets)
            weight += count
    return total / weight if subject.loss.reduction == "mean" else total


def hessian(subject: Subject) -> Float[Tensor, "P P"]:
    """The whole Hessian of the training loss, row by row by double backward.  Shapes: (P, P).   Cost: P products; for small networks only."""

    def build() -> Float[Tensor, "P P"]:
        with measuring(subject), torch.enable_grad():
            flat = torch.cat([subject.state[key].reshape(-1) for key in subject.trainable]).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(flat_loss(subject, flat), flat, create_graph=True)
            rows = [torch.autograd.grad(gradient[i], flat, retain_graph=True, allow_unused=True)[0] for i in range(len(flat))]
            matrix = torch.stack([torch.zeros_like(flat) if row is None else row for row in rows]).detach()
        return (matrix + matrix.T) / 2

    return subject.once("dense/hessian", build)


def eigenvalues(subject: Subject) -> Float[Tensor, "P"]:
    """Every eigenvalue of the Hessian, descending.  Shapes: (P,)."""
    return subject.once("dense/eigenvalues", lambda: torch.linalg.eigvalsh(hessian(subject)).flip(0))


def largest_eigenvalues(subject: Subject) -> Float[Array, "k"]:
    """The ten largest eigenvalues of the Hessian.  Shapes: (10,)."""
    return eigenvalues(subject)[:10].cpu().numpy()


def sharpness(subject: Subject) -> float:
    """The largest eigenvalue of the Hessian."""
    return float(eigenvalues(subject)[0])


def preconditioned_sharpness(subject: Subject) -> float:
    """The largest eigenvalue of P^(-1) H with P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps), a matrix that is not symmetric."""
    training = subject.training
    assert training.second_moment is not None
    assert training.steps is not None
    second = torch.cat([training.second_moment[key].reshape(-1).to(subject.dtype) for key in subject.trainable])
    scale = (1 - training.momentum**training.steps) * ((second / (1 - training.beta2**training.steps)) ** 0.5 + training.epsilon)
    return float(torch.linalg.eigvals(hessian(subject) / scale[:, None]).real.max())


def hessian_trace(subject: Subject) -> float:
    """The trace of the Hessian."""
    return float(hessian(subject).diagonal().sum())


def gauss_newton(subject: Subject) -> Float[Tensor, "P P"]:
    """The whole Gauss-Newton matrix J^T H_out J, from the Jacobian row by row.  Shapes: (P, P).   Cost: a gradient for each number of the output; for small networks only."""

    def build() -> Float[Tensor, "P P"]:
        total = torch.zeros(subject.dimension, subject.dimension, dtype=subject.dtype, device=subject.device)
        weight = sum(subject.loss.count(subject.to_device(block.targets)) for block in subject.train.blocks) if subject.loss.reduction == "mean" else 1.0
        for block in subject.train.blocks:
            inputs, targets = subject.to_device(block.inputs), subject.to_device(block.targets)
            count = subject.loss.count(targets) if subject.loss.reduction == "mean" else 1.0
            if not count:
                continue
            with measuring(subject), torch.enable_grad():
                state = {key: value.detach().clone().requires_grad_(key in subject.trainable) for key, value in subject.state.items()}
                output = subject(state, inputs)
                rows = [torch.autograd.grad(entry, [state[key] for key in subject.trainable], retain_graph=True, materialize_grads=True) for entry in output.reshape(-1)]
                jacobian = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
                bend = torch.autograd.functional.hessian(lambda z, targets=targets: subject.loss(z, targets), output.detach())
            total += count / weight * (jacobian.T @ bend.reshape(len(jacobian), -1) @ jacobian)
        return total

    return subject.once("dense/gauss_newton", build)


def gauss_newton_trace(subject: Subject) -> float:
    """The trace of the Gauss-Newton matrix."""
    return float(gauss_newton(subject).diagonal().sum())


def density(subject: Subject, reading: Reading) -> Float64[Array, "points"]:
    """The density of the Hessian's eigenvalues with the smoothing and on the grid of a reading.  Shapes: (points,)."""
    grid, width = np.asarray(reading.axes[0].values, dtype=np.float64), float(reading.details["width"])
    values = eigenvalues(subject).cpu().numpy()
    return np.exp(-((grid[:, None] - values) ** 2) / (2 * width**2)).mean(1) / (width * np.sqrt(2 * np.pi))


def hessian_outliers(subject: Subject) -> float:
    """Eigenvalues of the Hessian above the largest one of its restriction to the complement of the centred class means of p grad loss."""
    matrix = hessian(subject)
    (block,) = subject.train.blocks
    inputs, labels = subject.to_device(block.inputs), leaves(block.targets)[0]
    means = []
    for label in range(subject.classes or 0):
        with measuring(subject), torch.enable_grad():
            chosen = labels == label
            state = {key: value.detach().clone().requires_grad_(key in subject.trainable) for key, value in subject.state.items()}
            mean = torch.softmax(subject(state, inputs)[chosen], -1)[:, label].mean()
            parts = torch.autograd.grad(mean, [state[key] for key in subject.trainable])
        means.append(torch.cat([part.reshape(-1) for part in parts]))
    share = torch.bincount(labels, minlength=subject.classes or 0).to(matrix.dtype) / len(labels)
    between = torch.stack(means, 1) @ (torch.eye(len(means), dtype=matrix.dtype) - share[:, None])
    left, size, _ = torch.linalg.svd(between, full_matrices=True)
    rest = left[:, int((size > 1e-5 * size[0]).sum()) :]
    edge = torch.linalg.eigvalsh(rest.T @ matrix @ rest)[-1]
    return float((eigenvalues(subject) > edge).sum())
