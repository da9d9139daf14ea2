"""Derivatives of one chunk of examples: gradient, Hessian, Gauss-Newton and Jacobian products, double backward or forward mode.

Where a network has a second derivative by double backward, a chunk's gradient is made once with its graph, and a product goes back through it: it takes the
matrix products of H v alone and none of the gradient's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from gnomon.core import loss as loss_module
from gnomon.core.dataset import Block, Tree
from gnomon.core.errors import InvalidInput, OutOfScope
from gnomon.core.subject import Subject
from gnomon.numerics.measuring import measuring

Route = Literal["forward", "double"]
Tensors = tuple[Tensor, ...]
LinearMap = Callable[[Tensors], Tensors]
"""From one tensor a trainable parameter to the same."""
FAR = 1e4
"""A logit beside zeros whose softmax is 1 to the last bit."""
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


def first_block(subject: Subject, examples: int) -> Block:
    """The first few examples whose targets are not all ignored, on which routes and sizes are tried.   Raises: InvalidInput where every target is ignored."""
    for block in subject.batches(chunk=examples):
        if subject.loss.count(block.targets):
            return block
    raise InvalidInput("Every target of the train data is ignored: the mean loss is undefined.")


def leaf_parameters(subject: Subject) -> dict[str, Tensor]:
    """The trainable parameters as fresh leaves that gradients are taken of."""
    return {key: value.detach().requires_grad_() for key, value in subject.parameters.items()}


def output_of(subject: Subject, parameters: dict[str, Tensor], inputs: Tree) -> Tensor:
    """The network's output with these trainable parameters, the rest of the state as it is.   Shapes: inputs (n, ...) -> (n, ...)."""
    return subject({**subject.state, **parameters}, inputs)


def gradients(value: Tensor, of: Iterable[Tensor], direction: Tensor | None = None, *, keep: bool = False, again: bool = False) -> Tensors:
    """d value / d of, against `direction` for a value that is an array; zeros where nothing depends.  `keep` its graph, or use this one `again`.

    Shapes: those of `of`; `direction` that of `value`.
    """
    of = list(of)
    if not value.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    return torch.autograd.grad(value, of, direction, create_graph=keep, retain_graph=keep or again, materialize_grads=True)


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


def hessian_map(subject: Subject, block: Block, route: Route) -> LinearMap:
    """v -> H_b v for the loss of one chunk: back through its gradient, or forward over reverse.

    Cost: by double backward one gradient now and one to two a product; forward over reverse about three a product and nothing kept.
    """
    if route == "forward":
        return lambda tangents: _hessian_forward(subject, block, tangents)
    parameters = leaf_parameters(subject)
    leaves = list(parameters.values())
    first = gradients(loss_of(subject, parameters, block), leaves, keep=True)
    return lambda tangents: _transposed(first, leaves, tangents)


Middle = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""From a chunk's output to a symmetric linear map of arrays shaped like it."""


def gauss_newton_map(subject: Subject, block: Block, route: Route) -> LinearMap:
    """v -> J_b^T H_out J_b v for the loss of one chunk, H_out the Hessian of the loss with respect to the network's output.

    Cost: by double backward one gradient now and one to one and a half a product; in forward mode about two and a half a product and nothing kept.
    """
    return sandwich_map(subject, block, route, lambda output: loss_curvature(subject, block, route, output))


def sandwich_map(subject: Subject, block: Block, route: Route, middle: Middle) -> LinearMap:
    """v -> J_b^T M J_b v for one chunk, M = `middle(output)` a map of the network's output.   Cost: as `gauss_newton_map`."""
    parameters = leaf_parameters(subject)
    leaves = list(parameters.values())
    if route == "forward":
        return lambda tangents: _sandwich_forward(subject, block, tangents, middle)
    output = output_of(subject, parameters, block.inputs)
    pushed_by, inside = _pushforward_of(output, leaves), middle(output.detach())
    return lambda tangents: _transposed([output], leaves, [inside(pushed_by(tangents)[0])])


def loss_curvature(subject: Subject, block: Block, route: Route, output: Tensor) -> Callable[[Tensor], Tensor]:
    """u -> H_out u, the Hessian of the loss with respect to the network's output; in closed form for the cross-entropy of a softmax.

    Shapes: u like the output.   Cost: negligible beside the network's.
    """
    if output.ndim == 2 and output.shape[1] > 1 and _is_softmax(subject.loss.function):
        return _softmax_curvature(subject, block, output.detach())
    seen = output.detach().requires_grad_()
    if route == "double":
        slope = gradients(subject.loss(seen, block.targets), [seen], keep=True)
        return lambda pushed: _transposed(slope, [seen], [pushed])[0]

    def curved(pushed: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(seen, pushed)
            return _tangent(gradients(subject.loss(dual, _at_rest(block.targets)), [dual])[0])

    return curved


def _is_softmax(function: object) -> bool:
    return function in (loss_module.cross_entropy, F.cross_entropy) or type(function) is nn.CrossEntropyLoss


def _softmax_curvature(subject: Subject, block: Block, output: Float[Tensor, "N C"]) -> Callable[[Tensor], Tensor]:
    """u -> a_n (p_n u_n - p_n (p_n . u_n)): the loss's gradient in a row is a_n p_n - q_n, whatever the class weights, smoothing and ignored targets.

    Where p_n is (1, 0, ..) and where it is (0, 1, ..), the first entries of that differ by a_n.
    """
    first, second = (torch.zeros_like(output).index_fill_(1, torch.tensor([column], device=output.device), FAR).requires_grad_() for column in (0, 1))
    counts = [gradients(subject.loss(rows, block.targets), [rows])[0][:, :1] for rows in (first, second)]
    p = output.softmax(1)
    weighted = (counts[0] - counts[1]) * p

    def curved(u: Tensor) -> Tensor:
        bent = weighted * u
        return bent.addcmul_(p, bent.sum(1, keepdim=True), value=-1)

    return curved


def _transposed(values: Sequence[Tensor], of: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensors:
    """sum_i (d values_i / d of)^T directions_i; the graph stays."""
    pairs = [(value, direction) for value, direction in zip(values, directions, strict=True) if value.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    outputs, against = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, list(of), against, retain_graph=True, materialize_grads=True)


def _pushforward_of(output: Float[Tensor, "*output"], leaves: Sequence[Tensor]) -> LinearMap:
    """v -> (J v,) without forward mode: J^T u is linear in u, and its derivative against v is J v."""
    dummy = torch.zeros_like(output).requires_grad_()
    pulled = gradients(output, leaves, dummy, keep=True)
    return lambda tangents: _transposed(pulled, [dummy], tangents)


def _hessian_forward(subject: Subject, block: Block, tangents: Tensors) -> Tensors:
    leaves = leaf_parameters(subject)
    with forward_ad.dual_level():
        duals = _duals(leaves, tangents)
        value = loss_of(subject, duals, Block(block.inputs, _at_rest(block.targets)))
        return tuple(_tangent(g) for g in gradients(value, duals.values()))


def _sandwich_forward(subject: Subject, block: Block, tangents: Tensors, middle: Middle) -> Tensors:
    leaves = leaf_parameters(subject)
    with forward_ad.dual_level():
        output, tangent = forward_ad.unpack_dual(output_of(subject, _duals(leaves, tangents), block.inputs))
        pushed = torch.zeros_like(output) if tangent is None else tangent.detach()
    return gradients(output, leaves.values(), middle(output.detach())(pushed))


def pushforward(function: Callable[[Tensors], Tensor], at: Tensors, tangents: Tensors, route: Route) -> Tensor:
    """The derivative of `function` at `at` against `tangents`.   Shapes: tangents those of `at` -> that of the function's value."""
    if route == "double":
        leaves = [tensor.detach().requires_grad_() for tensor in at]
        return _pushforward_of(function(tuple(leaves)), leaves)(tangents)[0].detach()
    with torch.no_grad(), forward_ad.dual_level():
        return _tangent(function(tuple(forward_ad.make_dual(a.detach(), t) for a, t in zip(at, tangents, strict=True))))


def pullback(function: Callable[[Tensors], Tensor], at: Tensors, direction: Tensor) -> Tensors:
    """The transpose of the derivative of `function` at `at` applied to `direction`.   Shapes: direction that of the function's value -> those of `at`."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in at)
    return gradients(function(leaves), leaves, direction)


def route_of(subject: Subject, prefer: Route = "forward") -> Route:
    """How second derivatives are taken of this network, tried once on two examples: the preferred way, else the other.

    Raises: OutOfScope that names the operation where neither works.
    """
    with measuring(subject):
        return subject.once(f"numerics.route.{prefer}", lambda: _try_routes(subject, ("forward", "double") if prefer == "forward" else ("double", "forward")))


def _try_routes(subject: Subject, routes: tuple[Route, Route]) -> Route:
    block = first_block(subject, 2)
    tangents = tuple(torch.ones_like(p) for p in subject.parameters.values())
    said: dict[Route, str] = {}
    for route in routes:
        try:
            if route == "double":
                _refuse_once_differentiable(subject, block)
            hessian_map(subject, block, route)(tangents)
            return route
        except FAILURES as error:
            said[route] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    culprits = _custom_functions(loss_of(subject, leaf_parameters(subject), block))
    named = f" Functions of the network's own on the way: {', '.join(culprits)}." if culprits else ""
    raise OutOfScope(
        f"{subject.name} has no second derivative: forward mode says {said['forward']!r}, double backward says {said['double']!r}.{named} "
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
