"""The linearisation of a network at its initialisation: what it misses of the trained outputs, and the curvature that the loss has on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gnomon.core import rng as chance
from gnomon.core.dataset import Block
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.instruments.kernels import GROUPS, at_initialisation, refuse_batch_norm, rounding_of, scores
from gnomon.numerics.derivatives import flatten
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.measuring import measuring
from gnomon.numerics.memory import operator_bytes
from gnomon.numerics.operators import PRODUCT, GaussNewton, ParameterJacobian
from gnomon.numerics.statistics import finite_population_factor, ratio_of_means, student_quantile

LEE_2019 = Source("lee2019")
LEWKOWYCZ_2020 = Source("lewkowycz2020")

PAIRS_FOUND = 4
"""Eigenpairs of the Gauss-Newton matrix that are found: what lies outside them tells the bias of the first on a subsample."""


def exact_linearised(subject: Subject) -> float:
    """The relative error of the linearised network by double backward."""
    start = at_initialisation(subject)
    moved, kept, before = [], [], tuple(start.parameters.values())
    steps = tuple(subject.state[key] - start.state[key] for key in subject.trainable)
    with measuring(subject):
        for block in subject.batches():

            def outputs(*tensors: Tensor, block: Block = block) -> Tensor:
                out = subject({**start.state, **dict(zip(subject.trainable, tensors, strict=True))}, block.inputs)
                found, weights = scores(subject, out, block.targets)
                return found[weights > 0]

            first, slope = torch.autograd.functional.jvp(outputs, before, steps)
            real = outputs(*subject.parameters.values())
            moved.append(float((real - first).square().sum()))
            kept.append(float((real - first - slope).square().sum()))
    return math.sqrt(sum(kept) / sum(moved))


def _squares(values: Tensor, kept: Tensor) -> Tensor:
    """The sum of squares of each example, where it counts.  Shapes: values (n, positions, outputs), kept (n, positions, 1) -> (n,), float64 on the CPU."""
    return (values.square() * kept).sum((1, 2)).cpu().double()


@instrument(topic="kernels", needs=("initial",), truth=exact_linearised, essential=True, cost=lambda subject: Cost(gradients=1.5, bytes=24 * subject.dimension))
def linearised_outputs(subject: Subject, *, rng: Generator) -> Reading:
    """How much of what training did to the outputs the network's linearisation at initialisation misses.

    |f(w_T) - f_lin(w_T)| / |f(w_T) - f(w_0)|,   f_lin(w) = f(w_0) + J(w_0) (w - w_0),   norms over outputs and training examples

    0: the network is its linearisation; 1: the linearisation is as wrong as if the outputs had stayed at their start.  `details`: `disagree`, the share of targets for
    which the linearised network has another class than the real one.
    Shapes: value ().   Units: none.   Error: bound (rounding); on a subsample Fieller's interval of the ratio of mean squares, with the factor 1 - n/N.
    Assumes: eval mode.   Cost: two forward passes and a Jacobian product.
    Raises: OutOfScope where the outputs have not moved, where other state than the trainable parameters changed, or at batch norm.
    Source: Lee et al. 2019 (the linearised network).
    """
    start = at_initialisation(subject)
    step = flatten(subject.state[key] - start.state[key] for key in subject.trainable)
    missed, moved, sizes, other, targets = [], [], 0.0, 0.0, 0.0
    with measuring(subject), torch.no_grad():
        for block in subject.batches():
            outputs = (subject(subject.state, block.inputs), start(start.state, block.inputs), ParameterJacobian(start, block.inputs)(step))
            found = [scores(subject, output, block.targets) for output in outputs]
            real, first, slope = (part for part, _ in found)
            kept = (found[0][1] > 0)[..., None]
            linear = first + slope
            missed.append(_squares(real - linear, kept))
            moved.append(_squares(real - first, kept))
            sizes += sum(float(_squares(part, kept).sum()) for part in (real, first, slope))
            other += float(((real.argmax(-1) != linear.argmax(-1)) & kept[..., 0]).sum())
            targets += float(kept.sum())
    a, b = torch.cat(missed).numpy(), torch.cat(moved).numpy()
    if b.sum() <= rounding_of(subject) ** 2 * sizes:
        raise OutOfScope("the outputs at the end are those at initialisation: there is no change to compare with")
    value = math.sqrt(a.sum() / b.sum())
    rounding = rounding_of(subject) * math.sqrt(sizes / b.sum())
    details = {"examples": len(a), "disagree": other / targets} if subject.classes is not None else {"examples": len(a)}
    common: dict[str, Any] = {"source": LEE_2019, "details": details}
    if not subject.train.is_sample or len(a) < 2:
        return Reading("linearised_outputs", value, "", error=rounding, error_kind="bound", **common)
    ratio = ratio_of_means(a, b, factor=finite_population_factor(len(a), subject.train.population))
    low, high = (math.sqrt(max(end, 0.0)) for end in ratio.interval)
    error = max(ratio.error / (2 * value) if value else 0.0, rounding)
    assumes = (f"{len(a):,} of {subject.train.population:,} training examples",)
    return Reading("linearised_outputs", value, "", error=error, error_kind="sample", n=len(a), interval=(max(low - rounding, 0.0), high + rounding), assumes=assumes, **common)


def exact_gauss_newton(subject: Subject) -> float:
    """The largest eigenvalue of the Gauss-Newton matrix, from dense Jacobians and Hessians of the loss in the outputs, example by example."""
    total, matrix = subject.total_weight(), torch.zeros(subject.dimension, subject.dimension, dtype=torch.float64)
    for block in subject.train.chunks(1):
        inputs, targets = subject.to_device(block.inputs), subject.to_device(block.targets)
        share = subject.loss.count(targets) / total if subject.loss.reduction == "mean" else 1.0
        if not share:
            continue
        with measuring(subject), torch.enable_grad():
            here = {key: value.detach().clone().requires_grad_() for key, value in subject.parameters.items()}
            output = subject({**subject.state, **here}, inputs)
            parts = [torch.autograd.grad(value, list(here.values()), retain_graph=True, materialize_grads=True) for value in output.reshape(-1)]
            jacobian = torch.stack([flatten(part) for part in parts]).double()
            curvature = torch.autograd.functional.hessian(lambda out, t=targets: subject.loss(out, t), output.detach())
        size = len(jacobian)
        matrix += share * jacobian.T @ curvature.reshape(size, size).double() @ jacobian
    return float(torch.linalg.eigvalsh(matrix)[-1])


@instrument(
    topic="kernels", at=("initial",), truth=exact_gauss_newton, knob="products", smallest=32, largest=128,
    cost=lambda subject, products: Cost(PRODUCT * (products + 1), 60 * subject.dimension * subject.state[subject.trainable[0]].element_size() + operator_bytes(subject)),
)  # fmt: skip
def gauss_newton_sharpness(subject: Subject, *, rng: Generator, products: int = 64) -> Reading:
    """Largest eigenvalue of the Gauss-Newton matrix of the training loss: the NTK as the loss sees it.

    G = sum_i w_i J_i' A_i J_i / sum_i w_i, A_i the Hessian of the loss in the outputs; G has the eigenvalues of A^(1/2) J J' A^(1/2) but for zeros, and is the
    Hessian of the loss of the linearised network.

    Shapes: value ().   Units: loss / parameter^2.
    Error: the residual bound of Lanczos; on a subsample the standard error over groups of examples, the bias of a sample's largest eigenvalue taken off to second
    order and its size added in quadrature.   Assumes: eval mode.   Cost: at most `products` + 1 Gauss-Newton products, at most 2.4 gradients each.
    Raises: InvalidInput for too few products; OutOfScope for batch norm at initialisation, or where the network has no second derivative.
    Source: Lewkowycz et al. 2020 (the curvature at initialisation, the top eigenvalue of the NTK for the squared loss).
    """
    if products < 1:
        raise InvalidInput(f"products must be at least 1, not {products}.")
    if subject.where == "initial":
        refuse_batch_norm(subject)
    k, matrix = min(PAIRS_FOUND, subject.dimension), GaussNewton(subject)
    eigen = lanczos_eigenvalues(matrix, subject.dimension, k=k, rng=chance.child(rng, "lanczos"), like=subject.state[subject.trainable[0]], max_products=max(products, k + 2))
    value, bound = float(eigen.values[0]), float(eigen.bounds[0])
    common: dict[str, Any] = {"unit": "loss / parameter²", "source": LEWKOWYCZ_2020, "details": {"bound": bound, "products": eigen.products}}
    if not subject.train.is_sample:
        return Reading("gauss_newton_sharpness", value, error=bound, error_kind="bound", **common)
    n, vector, values, outside, shares = len(subject.train), eigen.vectors[:, 0], [], [], []
    for share, product in matrix.grouped(vector, min(GROUPS, n)):
        values.append(float(vector @ product))
        outside.append(float((product - eigen.vectors @ (eigen.vectors.T @ product)).double().square().sum()))
        shares.append(share)
    weight, factor = np.asarray(shares), len(shares) / max(len(shares) - 1, 1) * (1 - n / subject.train.population)
    spread = factor * float((weight**2 * (np.asarray(values) - weight @ np.asarray(values)) ** 2).sum())
    bias = min(factor * float((weight**2 * np.asarray(outside)).sum()) / value, value) if value > 0 else 0.0
    error = math.sqrt(spread + bias**2)
    half = student_quantile(0.975, max(len(shares) - 1, 1)) * error + bound
    interval = (max(value - bias - half, 0.0), value - bias + half)
    assumes = (f"{n:,} of {subject.train.population:,} training examples",)
    return Reading("gauss_newton_sharpness", value - bias, error=error, error_kind="sample", n=len(shares), interval=interval, assumes=assumes, **common)
