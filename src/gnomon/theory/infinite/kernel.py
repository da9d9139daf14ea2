"""The kernel function of a network of infinite width: from data to a matrix, tile by tile."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import traceback
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from gnomon.core import architecture
from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.layers import Scheme
from gnomon.theory.infinite.plan import INSTEAD, Reader
from gnomon.theory.infinite.recipe import Options, Parametrization, Plan, Variance
from gnomon.theory.infinite.rewrite import functional, with_examples
from gnomon.theory.infinite.tiles import Tiles
from gnomon.theory.infinite.written import rewritten

Kind = Literal["nngp", "ntk"]


class Kernel:
    """K(x1, x2=None, kind="nngp" | "ntk" | ("nngp", "ntk")) of a network, as `infinite_width` makes it.

    Shapes: x1 (n1, ...), x2 (n2, ...) in the layout that the network takes -> (n1, n2), and (n1, n2, *positions) where the output has positions; a tuple of kinds gives a tuple.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        model = getattr(model, "_orig_mod", model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else model)  # what torch.compile wraps
        self._module = model if not isinstance(model, nn.Module) or any(True for _ in model.children()) else nn.Sequential(model)
        self._options = options
        self._graph = _traced(self._module)
        self._plans: dict[tuple[object, ...], Plan] = {}

    def __call__(self, x1: Tensor, x2: Tensor | None = None, kind: str | tuple[str, ...] = "nngp") -> Tensor | tuple[Tensor, ...]:
        """The kernel between two sets of examples, or of one with itself (each pair once).  Cost: n1 x n2 x positions times some tens of operations a layer."""
        made = self.tiles(x1, x2, kind).block()
        return made[0] if isinstance(kind, str) else made

    def tiles(self, x1: Tensor, x2: Tensor | None = None, kind: str | tuple[str, ...] = "nngp") -> Tiles:
        """The same kernel block by block: `.block(rows, columns)` makes one, `.cost(rows, columns)` says beforehand what it takes.

        Cost: what the network does to the data before its first weights.   Raises: InvalidInput for an unknown kind, or data that are not alike.
        """
        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        for name in kinds:
            if name not in get_args(Kind):
                raise unknown("kind of kernel", str(name), get_args(Kind))
        symmetric = x2 is None or x2 is x1
        second = x1 if x2 is None else x2
        for name, x in (("x1", x1), ("x2", second)):
            _check(name, x)
        if x1.shape[1:] != second.shape[1:] or x1.dtype != second.dtype or x1.device != second.device:
            raise InvalidInput(
                f"x1 and x2 must be alike but for the number of examples: {tuple(x1.shape)} {x1.dtype} on {x1.device}, {tuple(second.shape)} {second.dtype} on {second.device}."
            )
        plan = self._plan(x1)
        with torch.no_grad():
            return Tiles(plan, x1, None if symmetric else second, kinds, memory=self._options.memory)

    @property
    def lazy(self) -> bool:
        """Whether the network's training is described by this kernel in the limit: not where features move at any width."""
        return self._options.parametrization in ("standard", "ntk")

    @property
    def module(self) -> nn.Module:
        """The network, in a Sequential where it is a single layer."""
        return self._module

    @property
    def options(self) -> Options:
        """How variances and the parametrisation were chosen."""
        return self._options

    def within(self, memory: int) -> Kernel:
        """The same kernel, whose calls may hold so many bytes."""
        return self if memory >= self._options.memory else Kernel(self._module, dataclasses.replace(self._options, memory=memory))

    def __reduce__(self) -> tuple[type[Kernel], tuple[nn.Module, Options]]:
        return Kernel, (self._module, self._options)

    def variances(self, x: Tensor) -> dict[str, tuple[float, float, str]]:
        """What was taken for every layer with weights, on data shaped like x: C_W (fan-in times the variance of a weight), C_b, and where they come from."""
        return dict(self._plan(x).variances)

    def _plan(self, x: Tensor) -> Plan:
        key = (tuple(x.shape[1:]), x.is_floating_point())
        if key not in self._plans:
            own = next((p for p in self._module.parameters() if p.is_floating_point()), None)
            example = torch.cat([x[:1], x[:1]]).detach()  # two, so that a squeeze() does not take the examples' dimension
            if own is not None:
                example = example.to(own.device, own.dtype if x.is_floating_point() else x.dtype)
            try:
                with architecture.quiet(self._module):
                    graph = rewritten(self._graph, self._module, example)
                    with_examples(graph, example)
                self._plans[key] = Reader(self._module, graph, example, self._options).plan()
            except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
                if isinstance(error, InvalidInput):
                    raise
                hint = "" if x.is_floating_point() else f" (the data are {x.dtype}; for a layer that reads numbers convert them with .float())"
                raise InvalidInput(f"The network does not take data of shape {tuple(x.shape)}: {str(error).strip().splitlines()[0]}{hint}") from error
        return self._plans[key]


def infinite_width(
    model: nn.Module,
    *,
    parametrization: str = "standard",
    weight_variance: Variance | str = None,
    bias_variance: Variance = None,
    tolerance: float = 1e-6,
    memory: int = 2**32,
) -> Kernel:
    """The NNGP kernel and the neural tangent kernel at initialisation of a network whose layers are infinitely wide, read from the module.

    K^{l+1} = C_b + C_W E s(z) s(z'),   Theta^{l+1} = C_W E s'(z) s'(z') Theta^l + w E s(z) s(z') + b,   (z, z') ~ N(0, K^l).
    In the parametrisation "standard" (that of torch) w is the layer's own fan-in and b is 1 where there is a bias: Theta is that of the network as it is, of its own widths, to
    leading order; the last layer's width does not enter.  In "ntk" w = C_W and b = C_b.  "mup" and "mean_field" are "ntk" with the output divided by the square root of the width and the
    learning rate multiplied by it: at initialisation the output is its bias and Theta that of "ntk", but features move at any width, so that no fixed kernel describes training
    ("mean_field" is the same for one hidden layer; behind a second one its pre-activations vanish, which is refused).
    `weight_variance` is C_W = fan_in x variance of a weight, a number or a mapping from layer to number, or "kaiming" | "xavier" | "orthogonal"; `bias_variance` is C_b;
    what is not given is the declared initialisation of the layer's class.  `tolerance` bounds what the Hermite series of an activation without a closed form leaves out (one with kinks has them taken out first, and 1e-10 where the variance allows it), `memory` the bytes that a call may hold.

    Covered: Linear, Conv1d/2d/3d (stride, dilation, every padding; groups of many channels), Embedding, elementwise activations (an expression of one layer, such as x * sigmoid(x), is one), residual sums, of activations too (which no activation reads then),
    products and concatenations of branches, parts of the channels (chunk, split, slices, GLU), slices of positions, upsampling to the nearest, linear attention (Q K^T) V (its scores unbounded, heads many), average pooling (global too), LayerNorm, RMSNorm and GroupNorm (over channels, or over channels and all positions) before and behind activations,
    dropout (as in eval mode), flatten, factors; anything at all without weights before the first layer with weights.
    Weights that require no gradient are random and have no part in Theta (where none does, all are taken as trained).
    Shapes: as `Kernel`.   Units: those of the squared output.   Error: rounding for closed forms, `tolerance` for series; the network's own width is not accounted for.
    Assumes: independent Gaussian weights, widths to infinity (uniform weights, torch's default, have the same limit, but for a first layer of few inputs: off by a part of about
    1 / inputs); at inputs of exactly 0 derivatives are autograd's.
    Cost: tracing; the first kernel on a machine compiles loops for its processor, some seconds, which are kept on disk.   Raises: InvalidInput where the module cannot be traced, with the place; OutOfScope for a layer that is not covered, by name, when the kernel is first called;
    NotEnoughMemory before anything is computed, with what it would take.
    Source: Lee et al. 2018, section 2; Jacot et al. 2018, theorem 1; Novak et al. 2019 (convolutions); Arora et al. 2019 (convolutional tangent kernels); Hron et al. 2020 (attention);
    Yang & Hu 2021 (what moves: the parametrisations as powers of the width).
    """
    if parametrization not in get_args(Parametrization):
        raise unknown("parametrisation", parametrization, get_args(Parametrization))
    scheme: Scheme | None = None
    if isinstance(weight_variance, str):
        if weight_variance not in get_args(Scheme):
            raise unknown("initialisation", weight_variance, get_args(Scheme))
        scheme, weight_variance = cast(Scheme, weight_variance), None
    for what, given in (("weight", weight_variance), ("bias", bias_variance)):
        for value in given.values() if not isinstance(given, (int, float, type(None))) else [given]:
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"A {what} variance must be finite and at least 0, not {value}.")
    return Kernel(model, Options(cast(Parametrization, parametrization), weight_variance, bias_variance, scheme, tolerance, memory))


def _traced(module: nn.Module) -> torch.fx.GraphModule:
    if not isinstance(module, nn.Module):
        raise InvalidInput(f"A network is an nn.Module; got {type(module).__name__}.")
    first, *others = inspect.signature(module.forward).parameters.values()
    absent = {one.name: one.default for one in others if one.default is not inspect.Parameter.empty}
    if first.kind is inspect.Parameter.VAR_POSITIONAL:
        raise InvalidInput(f"The network's forward takes *{first.name}; the kernel is that of one tensor: wrap the network so that it reads one.")
    with architecture.quiet(module):  # `self.training`, read by the forward, is that of eval mode
        try:
            return functional(architecture.trace(module, absent, in_place=True))
        except OutOfScope:
            raise
        except Exception as error:  # fx raises whatever the traced code raises on a proxy
            with contextlib.suppress(Exception):  # an operation on a buffer alone that takes a size from the data
                return functional(architecture.trace(module, absent, in_place=True, buffers=True))
            raise _untraced(error) from error


def _untraced(error: Exception) -> InvalidInput:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "gnomon" not in Path(frame.filename).parts]
    home = Path(torch.__file__).parent
    own = [frame for frame in frames if home not in Path(frame.filename).parents] or [frame for frame in frames if home / "nn" in Path(frame.filename).parents]
    where = f" at {Path(own[-1].filename).name}, line {own[-1].lineno} (`{own[-1].line}`)" if own else ""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InvalidInput(
        f"The network cannot be traced{where}: {first}. Its forward must not branch, loop or assert on tensors and their sizes; choose the branch in __init__, or trace the part that does not{INSTEAD}."
    )


def _check(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or (x.ndim < 2 and x.is_floating_point()) or x.ndim < 1 or len(x) == 0:
        raise InvalidInput(f"{name} must be a tensor of examples, examples first, with at least one; got {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}.")
    if x.is_floating_point():
        if x.dtype not in (torch.float32, torch.float64):
            raise InvalidInput(f"{name} must be float32 or float64 (or whole numbers for an embedding), not {x.dtype}; convert it with .float().")
        finite = torch.isfinite(x).flatten(1).all(1)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten()
            raise InvalidInput(f"{name} holds numbers that are not finite, in {len(bad)} examples, the first of them {int(bad[0])}.")
