"""Curvature of chains of linear layers and functions of one number: products that take the matrix products of H v and little else.

What a network does to a chunk is recorded while it runs.  Where that is x -> s_L(W_L ... s_1(W_1 x + b_1) ... + b_L) from the first trainable parameter on, products are
Pearlmutter's: a tangent goes forward, its derivative back, through slopes and gradients that are made once; autograd differentiates any other network.
Arrays stand units x rows, so that matrix products run along memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gnomon.core import layers
from gnomon.core.dataset import Block
from gnomon.core.loss import LOSSES
from gnomon.core.subject import Subject
from gnomon.numerics import derivatives
from gnomon.numerics.derivatives import LinearMap, Middle, Route, Tensors, gradients, output_of
from gnomon.numerics.measuring import measuring

Units = Float[Tensor, "_ rows"]
ASKED = frozenset(("shape", "dtype", "device", "requires_grad", "ndim", "is_cuda", "layout", "size", "dim", "numel", "__len__", "is_floating_point"))
"""What may be asked of an array that derivatives go through."""


class _Other(BaseException):
    """The network does something that is no part of a chain; no `except Exception` of its own stops this."""


@dataclasses.dataclass(eq=False)
class _Link:
    """x -> s(W x + b); `places` are those of W and b among the trainable parameters, None where they are fixed."""

    weight: Float[Tensor, "units inputs"]
    places: tuple[int | None, int | None]
    functions: list[Callable[[Tensor], Tensor]]


class _Recorder(TorchFunctionMode):
    """Reads the chain off the operations that derivatives go through, as they are done."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        super().__init__()
        self.places = {id(leaf): place for place, leaf in enumerate(leaves)}
        self.links: list[_Link] = []
        self.inside: list[Units] = []  # W x + b
        self.entry: Tensor | None = None
        self.last: tuple[Any, Any] = (None, None)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.requires_grad for tensor in given) or _asks(func):
            return func(*args, **kwargs)
        if func is F.linear:
            used = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            self._check_linear(**used)
        else:
            self._take_function(func, args, kwargs, len(given))
        before = given[0].dtype, given[0].device
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.requires_grad or (result.dtype, result.device) != before:
            raise _Other
        if func is F.linear:
            self._take_linear(result, **used)
        self.last = result, result.grad_fn
        return result

    def ends(self, tensor: Tensor) -> bool:
        """Whether a tensor is what the chain has come to; what was done to it unseen leaves it another node."""
        return tensor is self.last[0] and tensor.grad_fn is self.last[1]

    def _check_linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        fits = self.ends(input) and input.shape[-1] == len(self.links[-1].weight) if self.links else not input.requires_grad and input.ndim > 1
        known = all(tensor is None or id(tensor) in self.places or not tensor.requires_grad for tensor in (weight, bias))
        if not (fits and known and weight.ndim == 2):
            raise _Other

    def _take_linear(self, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        if not self.links:
            self.entry = input.detach()
        places = self.places.get(id(weight)), None if bias is None else self.places.get(id(bias))
        # A copy: what follows may act in place.
        self.inside.append(result.detach().reshape(-1, len(weight)).T.clone(memory_format=torch.contiguous_format))
        self.links.append(_Link(weight.detach(), places, []))

    def _take_function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: int) -> None:
        if not (self.links and args and self.ends(args[0])):
            raise _Other
        layer = layers.of_operation("", func, args[1:], kwargs, tensors)
        if layer.kind == "activation" and layer.activation != "rrelu":  # which may be drawn anew at every call
            self.links[-1].functions.append(lambda z: func(z, *args[1:], **kwargs))
        elif layer.kind not in ("identity", "flatten"):
            raise _Other


def _asks(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (getattr(func.__self__, "__name__", "") if name == "__get__" else name) in ASKED


class Chain:
    """The network's part from the first trainable parameter on, on one chunk: what products keep.

    `entries` are the links' inputs, `slopes` s'(z), `deltas` dL/dz, `bends` dL/dh s''(z) for h = s(z); None stands for s' = 1 and s'' = 0.
    """

    def __init__(self, links: list[_Link], inside: list[Units], entry: Float[Tensor, "*positions inputs"], like: Tensors) -> None:
        self.links, self.like = links, like
        self.rows = entry.reshape(-1, entry.shape[-1])
        self.entries: list[Units] = [self.rows.T.contiguous()]
        self.slopes: list[Units | None] = []
        self.deltas: list[Units] = []
        self.bends: list[Units | None] = []
        self._graphs: list[tuple[Tensor, Tensor] | None] = []
        for link, z in zip(links, inside, strict=True):
            h, slope, graph = z, None, None
            if link.functions:
                h = z.requires_grad_().clone()
                for function in link.functions:
                    h = function(h)
                (slope,) = gradients(h, [z], torch.ones_like(h), keep=True)
                graph = z, slope
            self.entries.append(h.detach())
            self.slopes.append(None if slope is None else slope.detach())
            self._graphs.append(graph)
        self.units = len(self.entries.pop())

    def follow(self, back: Units) -> None:
        """Take the loss's gradient at the chain's end back through it."""
        for i in reversed(range(len(self.links))):
            slope, graph = self.slopes[i], self._graphs[i]
            bend = None if graph is None else gradients(graph[1], [graph[0]], back)[0]
            self.bends.append(None if bend is None or float(bend.norm()) == 0 else bend)
            self.deltas.append(back if slope is None else back * slope)
            if i:
                back = self.links[i].weight.T @ self.deltas[-1]
        self.bends.reverse()
        self.deltas.reverse()

    def standing(self, array: Float[Tensor, "N ..."]) -> Units:
        """An array shaped like the output as units x rows."""
        return array.reshape(-1, self.units).T

    def sealed(self) -> Chain:
        """The chain without what only its making took."""
        self._graphs = []
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that are kept beside the chunk."""
        return sum(array.nbytes for array in (*self.entries, *self.slopes, *self.deltas, *self.bends) if array is not None)

    def push(self, tangents: Tensors) -> tuple[list[Units], list[Units | None], Units]:
        """The derivatives along tangents of the parameters: of every z, of every link's input (None where it is fixed), and of the end."""
        inner: list[Units] = []
        entering: list[Units | None] = [None]
        for link, entry, slope in zip(self.links, self.entries, self.slopes, strict=True):
            weight, bias = (None if place is None else tangents[place] for place in link.places)
            dot = entering[-1]
            if weight is not None:
                z = weight @ entry if bias is None else torch.addmm(bias[:, None], weight, entry)
                z = z if dot is None else z.addmm_(link.weight, dot)
            else:
                z = entry.new_zeros(len(link.weight), entry.shape[1]) if dot is None else link.weight @ dot
                z = z if bias is None else z.add_(bias[:, None])
            inner.append(z)
            entering.append(z if slope is None else z * slope)
        end = entering.pop()
        assert end is not None
        return inner, entering, end

    def pull(self, back: Units, tangents: Tensors | None, inner: Sequence[Units], entering: Sequence[Units | None]) -> Tensors:
        """What comes back to the parameters from the end; with `tangents`, what their own second derivatives add too."""
        found: list[Tensor | None] = [None] * len(self.like)

        def keep(place: int, value: Tensor) -> None:
            known = found[place]
            found[place] = value if known is None else known.add_(value)

        for i in reversed(range(len(self.links))):
            link, slope, dot, curved = self.links[i], self.slopes[i], entering[i], tangents is not None
            at_weight, at_bias = link.places
            if slope is not None:
                back = back.mul_(slope) if i < len(self.links) - 1 else back * slope
            bend = self.bends[i] if curved else None
            if bend is not None:
                back = back.addcmul_(bend, inner[i])
            if at_weight is not None:
                own = back @ (self.entries[i].T if i else self.rows)
                keep(at_weight, own.addmm_(self.deltas[i], dot.T) if curved and dot is not None else own)
            if at_bias is not None:
                keep(at_bias, back.sum(1))
            if i:
                back = link.weight.T @ back
                if tangents is not None and at_weight is not None:
                    back.addmm_(tangents[at_weight].T, self.deltas[i])
        return tuple(torch.zeros_like(tensor) if value is None else value for value, tensor in zip(found, self.like, strict=True))


def read(subject: Subject, block: Block) -> tuple[Chain, Tensor] | None:
    """The chain that the network is on a chunk and its output there, or None where it is none.   Cost: less than a gradient."""
    parameters = derivatives.leaf_parameters(subject)
    recorder = _Recorder(list(parameters.values()))
    try:
        with torch.enable_grad(), recorder:
            output = output_of(subject, parameters, block.inputs)
    except (_Other, *derivatives.FAILURES):
        return None
    if recorder.entry is None or not recorder.ends(output):
        return None
    return Chain(recorder.links, recorder.inside, recorder.entry, tuple(subject.parameters.values())), output.detach()


def is_chain(subject: Subject) -> bool:
    """Whether the network is a chain with second derivatives, tried once on two examples."""
    return subject.once("numerics.chain", lambda: _try(subject))


def _try(subject: Subject) -> bool:
    found = read(subject, derivatives.first_block(subject, 2))
    if found is None:
        return False
    chain, _ = found
    try:
        chain.follow(chain.rows.new_ones(chain.units, len(chain.rows)))
    except derivatives.FAILURES:
        return False
    return True


def route_of(subject: Subject) -> Route:
    """How curvature is taken of this network; a chain under a loss of gnomon's own needs no trial.   Raises: as `derivatives.route_of`."""
    with measuring(subject):
        known = subject.loss.function in LOSSES.values() and is_chain(subject)
    return "double" if known else derivatives.route_of(subject, "double")


def hessian_map(subject: Subject, block: Block, route: Route) -> LinearMap:
    """v -> H_b v for the loss of one chunk, by the chain where the network is one.

    Cost: of a chain about one gradient and a half now and one a product; else as `derivatives.hessian_map`.   Source: Pearlmutter 1994.
    """
    found = read(subject, block) if route == "double" and is_chain(subject) else None
    if found is None:
        return derivatives.hessian_map(subject, block, route)
    chain, output = found
    seen = output.clone().requires_grad_()
    chain.follow(chain.standing(gradients(subject.loss(seen, block.targets), [seen])[0]))
    return _product(chain, output.shape, derivatives.loss_curvature(subject, block, route, output), curved=True)


def gauss_newton_map(subject: Subject, block: Block, route: Route) -> LinearMap:
    """v -> J_b^T H_out J_b v for the loss of one chunk, by the chain where the network is one.   Cost: as `hessian_map`."""
    return sandwich_map(subject, block, route, lambda output: derivatives.loss_curvature(subject, block, route, output))


def sandwich_map(subject: Subject, block: Block, route: Route, middle: Middle) -> LinearMap:
    """v -> J_b^T M J_b v for one chunk, M = `middle(output)`, by the chain where the network is one.   Cost: as `hessian_map`."""
    found = read(subject, block) if route == "double" and is_chain(subject) else None
    if found is None:
        return derivatives.sandwich_map(subject, block, route, middle)
    chain, output = found
    return _product(chain, output.shape, middle(output), curved=False)


def _product(chain: Chain, shape: torch.Size, inside: Callable[[Tensor], Tensor], *, curved: bool) -> LinearMap:
    chain = chain.sealed()

    def product(tangents: Tensors) -> Tensors:
        inner, entering, end = chain.push(tangents)
        return chain.pull(chain.standing(inside(end.T.reshape(shape))), tangents if curved else None, inner, entering)

    return product
