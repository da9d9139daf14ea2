"""How large a first step may be: the largest curvature of a loss on some examples, in parameters that learn at rates of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from gnomon.core import architecture
from gnomon.core.dataset import Tree, leaves
from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.subject import Subject
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.operators import GaussNewton

CURVATURE = {"mse": lambda outputs: 2 / outputs, "cross_entropy": lambda outputs: 1 / outputs, "bce_with_logits": lambda outputs: 1 / (4 * outputs)}
"""The curvature of a loss along one output of a network that knows nothing yet, by the number of outputs."""
TOLERANCE = 0.01
PRODUCTS = 100


def loss_of(name: str | None, outputs: int) -> str:
    """The loss of a name; where none is given cross-entropy, or mean squares for one output.   Raises: InvalidInput for what has no curvature that is known without targets."""
    if name is None:
        return "cross_entropy" if outputs > 1 else "mse"
    if name not in CURVATURE:
        raise unknown("loss", str(name), CURVATURE)
    if name == "cross_entropy" and outputs == 1:
        raise InvalidInput("Cross-entropy of one output is 0: a step has no size. Say loss='mse' or loss='bce_with_logits'.")
    return name


def largest_curvature(model: nn.Module, inputs: Tree, loss: str, rates: Mapping[str, float], *, class_first: bool, rng: Generator) -> float:
    """The largest eigenvalue of D^(1/2) J^T H J D^(1/2), H the curvature of the loss in the outputs, D the rates of the parameters.

    Gradient descent with learning rates lr D on these examples is stable at first while lr < 2 / this.  For squared errors and cross-entropy H knows no targets.

    Shapes: `rates` by the names of the parameters; `class_first` where the classes stand before the positions.   Units: loss.   Error: TOLERANCE, relative.
    Cost: some 20 gradients.   Raises: InvalidInput as `Subject.freeze`, and where the network does not curve the loss at all.   Source: Schraudolph 2002 (the matrix).
    """
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in model.parameters()):  # sums over examples are lost in so few digits
        model = copy.deepcopy(model).float()
        inputs = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, inputs)
    with architecture.quiet(model), torch.no_grad():
        output = leaves(model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs))[0]
    shape = (len(output), *output.shape[2:]) if class_first else output.shape[:-1]
    targets = output.new_zeros(shape, dtype=torch.long) if loss == "cross_entropy" else torch.zeros_like(output)
    subject = Subject.freeze(model, loss, (inputs, targets))
    scale = torch.cat([torch.full((value.numel(),), rates[name] ** 0.5, dtype=value.dtype, device=value.device) for name, value in subject.parameters.items()])
    curvature = GaussNewton(subject)

    def product(v: Tensor) -> Tensor:
        return scale * curvature(scale * v)

    found = lanczos_eigenvalues(product, subject.dimension, rng=rng, like=scale, tolerance=TOLERANCE, max_products=PRODUCTS)
    value = float(found.values[0])
    if not value > 0:
        raise InvalidInput(f"The loss does not curve along any parameter (largest eigenvalue {value:.3g}): the examples, or a layer, let nothing through.")
    return value
