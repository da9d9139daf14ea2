"""Derivatives of one chunk of examples: gradient, Hessian, Gauss-Newton and Jacobian products, forward mode or double backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from gnomon.core.dataset import Block, Tree
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.measuring import measuring

Route = Literal["forward", "double"]
Tensors = tuple[Tensor, ...]
FAILURES = (RuntimeError, NotImplementedError)


def accumulator(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that sums over chunks are kept in: float64 where the device has it."""
    return torch.float64 if device.type != "mps" else dtype


def split(subject: Subject, vector: Float[Tensor, "P"]) -> Tensors:
    """A flat vector as one tensor a trainable parameter, in their dtypes.  Shapes: vector (P,).  Raises: InvalidInput for another length."""
    if vector.shape != (subject.dimension,):
        raise InvalidInput(f"A vector of shape ({subject.dimension},) was expected, one entry a trainable parameter, not {tuple(vector.shape)}.")
    parameters = subject.parameters.values()
    parts = vector.to(subject.device).split([p.numel() for p in parameters])
    return tuple(part.reshape(p.shape).to(p.dtype) for part, p in zip(parts, parameters, strict=True))


def flatten(tensors: Iterable[Tensor]) -> Float[Tensor, "P"]:
    """Tensors as one flat vector.  Shapes: (P,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def scaled_blocks(subject: Subject, name: str = "train") -> Iterator[tuple[Block, float]]:
    """The chunks of a split with what each one's loss counts for in the whole: w_b / sum w for a mean, 1 for a sum; chunks that count for nothing are left out."""
    total = subject.once(f"numerics.total.{name}", lambda: subject.total_weight(name))
    for block in subject.batches(name):
        share = subject.loss.count(block.targets) / total if subject.loss.reduction == "mean" else 1.0
        if share:
            yield block, share


def leaf_parameters(subject: Subject) -> dict[str, Tensor]:
    """The trainable parameters as fresh leaves that gradients are taken of."""
    return {key: value.detach().requires_grad_() for key, value in subject.parameters.items()}


def output_of(subject: Subject, parameters: dict[str, Tensor], inputs: Tree) -> Tensor:
    """The network's output with these trainable parameters, the rest of the state as it is."""
    return subject({**subject.state, **parameters}, inputs)


def gradients(value: Tensor, of: Iterable[Tensor], direction: Tensor | None = None, *, keep: bool = False) -> Tensors:
    """d value / d of, against `direction` for a value that is an array; zeros where nothing depends."""
    of = list(of)
    if not value.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    return torch.autograd.grad(value, of, direction, create_graph=keep, materialize_grads=True)


def _duals(parameters: dict[str, Tensor], tangents: Tensors) -> dict[str, Tensor]:
    return {key: forward_ad.make_dual(value, tangent) for (key, value), tangent in zip(parameters.items(), tangents, strict=True)}


def _at_rest(targets: Tree) -> Tree:
    """Floating-point targets with a tangent of zeros: F.mse_loss has no forward mode of its gradient for targets without one (torch 2.13)."""
    return tree_map(lambda leaf: forward_ad.make_dual(leaf, torch.zeros_like(leaf)) if leaf.is_floating_point() else leaf, targets)


def _tangent(dual: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(dual)
    return (torch.zeros_like(primal) if tangent is None else tangent).detach()


def loss_of(subject: Subject, parameters: dict[str, Tensor], block: Block) -> Float[Tensor, ""]:
    """The loss of a chunk, a scalar."""
    return subject.loss(output_of(subject, parameters, block.inputs), block.targets)


def hessian_product(subject: Subject, block: Block, tangents: Tensors, route: Route) -> Tensors:
    """H_b v for the loss of one chunk: forward over reverse, or the gradient of <gradient, v>."""
    leaves = leaf_parameters(subject)
    if route == "double":
        first = gradients(loss_of(subject, leaves, block), leaves.values(), keep=True)
        return tuple(g.detach() for g in gradients(_inner(first, tangents), leaves.values()))
    with forward_ad.dual_level():
        duals = _duals(leaves, tangents)
        value = loss_of(subject, duals, Block(block.inputs, _at_rest(block.targets)))
        return tuple(_tangent(g) for g in gradients(value, duals.values()))


def gauss_newton_product(subject: Subject, block: Block, tangents: Tensors, route: Route) -> Tensors:
    """J_b^T H_out J_b v for the loss of one chunk, H_out the Hessian of the loss with respect to the network's output."""
    leaves = leaf_parameters(subject)
    if route == "double":
        output = output_of(subject, leaves, block.inputs)
        pushed = _pushforward_by_reverse(output, list(leaves.values()), tangents)
        return gradients(output, leaves.values(), _output_hessian(subject, output, pushed, block, route))
    with forward_ad.dual_level():
        output, tangent = forward_ad.unpack_dual(output_of(subject, _duals(leaves, tangents), block.inputs))
        pushed = torch.zeros_like(output) if tangent is None else tangent
    return gradients(output, leaves.values(), _output_hessian(subject, output, pushed, block, route))


def _output_hessian(subject: Subject, output: Float[Tensor, "*output"], direction: Float[Tensor, "*output"], block: Block, route: Route) -> Float[Tensor, "*output"]:
    leaf, direction = output.detach().requires_grad_(), direction.detach()
    if route == "double":
        (first,) = gradients(subject.loss(leaf, block.targets), [leaf], keep=True)
        return gradients((first * direction).sum(), [leaf])[0].detach()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(leaf, direction)
        return _tangent(gradients(subject.loss(dual, _at_rest(block.targets)), [dual])[0])


def _inner(left: Tensors, right: Tensors) -> Float[Tensor, ""]:
    return sum(((a * b).sum() for a, b in zip(left, right, strict=True)), start=torch.zeros((), dtype=left[0].dtype, device=left[0].device))


def _pushforward_by_reverse(output: Float[Tensor, "*output"], leaves: list[Tensor], tangents: Tensors) -> Float[Tensor, "*output"]:
    """J v without forward mode: J^T u is linear in u, and its derivative against v is J v."""
    dummy = torch.zeros_like(output).requires_grad_()
    pulled = gradients(output, leaves, dummy, keep=True)
    return gradients(_inner(pulled, tangents), [dummy])[0].detach()


def pushforward(function: Callable[[Tensors], Tensor], at: Tensors, tangents: Tensors, route: Route) -> Tensor:
    """The derivative of `function` at `at` against `tangents`."""
    if route == "double":
        leaves = [tensor.detach().requires_grad_() for tensor in at]
        return _pushforward_by_reverse(function(tuple(leaves)), leaves, tangents)
    with torch.no_grad(), forward_ad.dual_level():
        return _tangent(function(tuple(forward_ad.make_dual(a.detach(), t) for a, t in zip(at, tangents, strict=True))))


def pullback(function: Callable[[Tensors], Tensor], at: Tensors, direction: Tensor) -> Tensors:
    """The transpose of the derivative of `function` at `at` applied to `direction`."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in at)
    return gradients(function(leaves), leaves, direction)


def route_of(subject: Subject) -> Route:
    """How second derivatives are taken of this network, tried once on two examples: forward over reverse, else double backward.

    Raises: OutOfScope that names the operation where neither works.
    """
    with measuring(subject):
        return subject.once("numerics.route", lambda: _try_routes(subject))


def _try_routes(subject: Subject) -> Route:
    block = next((block for block, _ in scaled_blocks(subject.with_chunk(2))))
    tangents = tuple(torch.ones_like(p) for p in subject.parameters.values())
    said: list[str] = []
    routes: tuple[Route, ...] = ("forward", "double")
    for route in routes:
        try:
            if route == "double":
                _refuse_once_differentiable(subject, block)
            hessian_product(subject, block, tangents, route)
            return route
        except FAILURES as error:
            said.append((str(error).strip().splitlines() or [type(error).__name__])[0])
    culprits = _custom_functions(loss_of(subject, leaf_parameters(subject), block))
    named = f" Functions of the network's own on the way: {', '.join(culprits)}." if culprits else ""
    raise OutOfScope(
        f"{subject.name} has no second derivative: forward mode says {said[0]!r}, double backward says {said[1]!r}.{named} "
        "Replace that operation by one with a derivative of its gradient (for a custom autograd.Function: write `jvp`, or a `backward` made of differentiable operations)."
    )


def _refuse_once_differentiable(subject: Subject, block: Block) -> None:
    """torch leaves such functions out of the second derivative without a word where it is asked for by name."""
    leaves = leaf_parameters(subject)
    for first in gradients(loss_of(subject, leaves, block), leaves.values(), keep=True):
        if any(type(node).__name__ in ("Error", "DelayedError", "NotImplemented") for node in _nodes(first)):
            raise RuntimeError("the gradient of a function has no derivative (@once_differentiable)")


def _custom_functions(value: Tensor) -> list[str]:
    """The names of the autograd.Functions written in Python that a value was made by."""
    return sorted({type(node).__name__.removesuffix("Backward") for node in _nodes(value) if isinstance(node, torch.autograd.function.BackwardCFunction)})


def _nodes(value: Tensor) -> set[Any]:
    """The nodes of the graph that a value was made by."""
    seen: set[Any] = set()
    todo: list[Any] = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)
    return seen
