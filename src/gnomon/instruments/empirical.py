"""Kernels of a finite network as they are: the tangent kernel between all outputs, the kernel of the last hidden layer, and the mean of either over many networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.dataset import Block, Dataset, Tree, leaves, length
from gnomon.core.errors import InvalidInput, OutOfScope, unknown
from gnomon.core.reading import Axis, Reading
from gnomon.core.source import Source
from gnomon.core.subject import Subject
from gnomon.numerics.layers import kind_of
from gnomon.numerics.measuring import measuring
from gnomon.numerics.mixing import refuse_mixing
from gnomon.numerics.tangent_kernel import MEMORY, TangentKernel

NOVAK_2022 = Source("novak2022")
NOVAK_2019 = Source("novak2019", "section 4")
LEE_2018 = Source("lee2018", "section 2")
Outputs = Literal["all", "sum", "mean"]
ROUNDING = 256.0
"""Rounding of a kernel's entry, in units of the dtype's epsilon and of the kernel's largest."""


def tangent_kernel(network: Subject | nn.Module, x1: Tree = None, x2: Tree = None, *, memory: int = MEMORY) -> TangentKernel:
    """The empirical neural tangent kernel as an operator: `full()`, `trace()`, `tiles()`, products with vectors, and `work()`, what they take, beforehand.

    Theta_{ia,jb} = d f_a(x_i) / d theta . d f_b(x'_j) / d theta over the trainable parameters; see `TangentKernel`.

    Shapes: x1 N examples, x2 M (x1 if not given; the training data where neither is), in the layout that the network takes -> tensors (N, M, C, C).   Units: output^2 / parameter^2.
    Error: rounding in the network's dtype.   Assumes: eval mode.   Cost: a few gradients of five examples for the plan.   Raises: as `TangentKernel`; InvalidInput for a module without data.
    Source: Jacot et al. 2018; Novak et al. 2022.
    """
    subject = _subject(network, x1)
    return TangentKernel(subject, subject.train if x1 is None else x1, x2, memory=memory)


def empirical_ntk(network: Subject | nn.Module, x1: Tree = None, x2: Tree = None, *, outputs: Outputs = "all", memory: int = MEMORY) -> Reading:
    """The empirical neural tangent kernel of a network: between all outputs, their sum, or their mean, which is what `infinite_width` predicts.

    Theta_{ia,jb} = d f_a(x_i) / d theta . d f_b(x'_j) / d theta;   sum: sum_a Theta_{ia,ja};   mean: that over C.

    Shapes: x1 N examples, x2 M -> value (N, M, C, C), or (N, M).   Units: output^2 / parameter^2.   Error: bound (rounding).   Assumes: eval mode.
    Cost: `tangent_kernel(...).work()` says it: about C gradients, and at most N M C^2 P multiplications (half of them for one set, N M C P for a sum).   `details`: bytes at the peak, and
    the parameters that were differentiated one example at a time.
    Raises: NotEnoughMemory where it does not fit into `memory` bytes; InvalidInput for unknown `outputs`; else as `tangent_kernel`.
    Source: Novak et al. 2022 (empirical kernels).
    """
    if outputs not in get_args(Outputs):
        raise unknown("choice of outputs", str(outputs), get_args(Outputs))
    kernel = tangent_kernel(network, x1, x2, memory=memory)
    value = kernel.full() if outputs == "all" else kernel.trace() / (kernel.outputs if outputs == "mean" else 1)
    work = kernel.work(trace=outputs != "all")
    axes = tuple(_axis(name, size) for name, size in zip(("example", "other example", "output", "other output"), value.shape, strict=False))
    skipped = tuple(f"{name}: differentiated one example at a time" for name in kernel.fallback)
    return Reading(
        "empirical_ntk", value, "output² / parameter²", error=_rounding(value), error_kind="bound", axes=axes, source=NOVAK_2022, assumes=(*_where(kernel.subject), *skipped),
        details={"bytes": work.bytes, "multiplications": work.multiplications, "fallback": list(kernel.fallback)},
    )  # fmt: skip


def empirical_nngp(network: Subject | nn.Module, x1: Tree = None, x2: Tree = None, *, weight_variance: float = 1.0, bias_variance: float = 0.0) -> Reading:
    """The kernel of a network's last hidden layer: the covariance of its outputs over draws of the last layer alone.

    K(x, x') = C_b + C_W h(x) . h(x') / n,   h what the last layer reads, n units (averaged over positions where there are several).

    Shapes: x1 N examples, x2 M (x1 if not given; the training data where neither is) -> value (N, M).   Units: C_W and C_b are those of `infinite_width`, fan-in times the variance of a
    weight and the variance of a bias.   Error: bound (rounding).   Assumes: eval mode.   Cost: one forward pass, N M n.
    Raises: OutOfScope where the output is not that of a linear layer, examples differ in the number of positions, or the forward mixes examples; InvalidInput as `tangent_kernel`.
    Source: Lee et al. 2018, section 2 (the kernel of which this is a finite sum).
    """
    subject = _subject(network, x1)
    refuse_mixing(subject)
    left = _last_hidden(subject, subject.train if x1 is None else x1)
    right = left if x2 is None else _last_hidden(subject, x2)
    if left.shape[1] != right.shape[1]:
        raise OutOfScope(f"the last hidden layers of the two sets hold {left.shape[1]} and {right.shape[1]} numbers an example: there is no inner product between them")
    value = bias_variance + weight_variance * (left @ right.T) / left.shape[1]
    axes = (_axis("example", len(left)), _axis("other example", len(right)))
    scale = weight_variance * float(left.norm(dim=1).max() * right.norm(dim=1).max()) / left.shape[1]
    error = ROUNDING * torch.finfo(subject.dtype).eps * (abs(bias_variance) + scale)
    return Reading("empirical_nngp", value, "output²", error=error, error_kind="bound", axes=axes, source=LEE_2018, assumes=_where(subject), details={"units": left.shape[1]})


def monte_carlo_kernel(make: Callable[[], nn.Module], x1: Tree, x2: Tree = None, *, kind: str = "ntk", networks: int = 32, rng: Generator, memory: int = MEMORY) -> Reading:
    """The kernel of a wide network as the mean over networks drawn anew: what stands in for `infinite_width` where an architecture has no kernel in closed form.

    nngp: E f_a(x) f_a(x'),   ntk: E d f_a(x) / d theta . d f_a(x') / d theta, the mean over outputs a and over networks; `make` gives a new one, at its initialisation, at each call.

    Shapes: x1 N examples, x2 M (x1 if not given) -> value (N, M); outputs with positions count as many outputs.   Units: output^2, or output^2 / parameter^2 as `parametrization="standard"`.
    Error: standard error over networks; that of a finite width, of relative order depth / width, is not in it: make the networks wider and see.   Assumes: eval mode.
    Cost: a forward pass a network, or an `empirical_ntk`.   Raises: InvalidInput for an unknown kind, fewer than two networks, or where `make` gives no module; else as `empirical_ntk`.
    Source: Novak et al. 2019, section 4 (Monte Carlo estimates of kernels).
    """
    if kind not in ("nngp", "ntk"):
        raise unknown("kind of kernel", str(kind), ("nngp", "ntk"))
    if isinstance(make, nn.Module):
        raise InvalidInput("make must build a new network at each call, and a network was given: pass the class, or lambda: build_model().")
    if networks < 2:
        raise InvalidInput(f"A mean with an error takes at least 2 networks, not {networks}.")
    drawn = []
    for index in range(networks):
        with chance.scoped(chance.child(rng, "networks", index)):
            network = make()
        if not isinstance(network, nn.Module):
            raise InvalidInput(f"make() must give a new nn.Module at each call; it gave {type(network).__name__}. Pass the class, or lambda: build_model().")
        if kind == "ntk":
            drawn.append(torch.as_tensor(empirical_ntk(network, x1, x2, outputs="mean", memory=memory).value))
        else:
            subject = _subject(network, x1)
            left = _outputs(subject, subject.train)
            right = left if x2 is None else _outputs(subject, Dataset((Block(x2, torch.zeros(length(x2))),), length(x2)))
            drawn.append((left @ right.T / left.shape[1]).cpu())
    found = torch.stack(drawn).double().numpy()
    if not found.std(0).any():
        raise InvalidInput("make() gave the same network each time; it must draw new weights at each call: pass the class, or lambda: build_model().")
    axes = tuple(_axis(name, size) for name, size in zip(("example", "other example"), found.shape[1:], strict=True))
    reading = Reading.of_samples(f"monte_carlo_{kind}", found, unit="output²" if kind == "nngp" else "output² / parameter²", error_kind="seed", axes=axes, source=NOVAK_2019)
    return reading.replace(samples=None, assumes=("eval mode", "networks of finite width"))


def _outputs(subject: Subject, data: Dataset) -> Tensor:
    """Outputs, one row an example."""
    refuse_mixing(subject)
    with measuring(subject), torch.no_grad():
        return torch.cat([subject(subject.state, subject.to_device(block.inputs)).flatten(1) for block in data.chunks(subject.chunk)])


def _subject(network: Subject | nn.Module, x1: Tree) -> Subject:
    """The subject itself, or a module on its inputs; no kernel reads the loss and the targets."""
    if isinstance(network, Subject):
        return network
    if x1 is None or not leaves(x1):
        raise InvalidInput("A module alone has no data: give x1, or a Subject, whose training data are then taken.")
    # positive and bounded, so that neither cancellation nor overflow stands in the way of its being a sum
    return Subject.freeze(network, lambda output, targets: output.sigmoid().sum(), (x1, torch.zeros(length(x1))))


def _where(subject: Subject) -> tuple[str, ...]:
    return ("eval mode", "at initialisation") if subject.where == "initial" else ("eval mode",)


def _axis(name: str, size: int) -> Axis:
    return Axis(name, tuple(map(float, range(size))))


def _rounding(value: Tensor) -> float:
    return ROUNDING * torch.finfo(value.dtype).eps * float(value.abs().max())


def _last_hidden(subject: Subject, data: Tree) -> Tensor:
    """What the last linear layer reads.  Shapes: (N, numbers)."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def record(key: str, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen.append((key, args[0], output))

    layers = {key: layer for key, layer in subject.module.named_modules() if kind_of(layer) in ("linear", "transposed", "convolution")}
    handles = [layer.register_forward_hook(lambda module, args, output, key=key: record(key, args, output)) for key, layer in layers.items()]
    set_of = data if isinstance(data, Dataset) else Dataset((Block(data, torch.zeros(length(data))),), length(data))
    parts = []
    try:
        with measuring(subject), torch.no_grad():
            for block in set_of.chunks(subject.chunk):
                seen.clear()
                output = subject(subject.state, subject.to_device(block.inputs))
                key, hidden, last = seen[-1] if seen else ("", output, output)
                if not key or kind_of(layers[key]) == "convolution" or last.shape != output.shape or not torch.equal(last, output):
                    named = f"the last layer with weights, `{key}`, is not what gives it" if key else "there is no linear layer"
                    raise OutOfScope(f"the output is not that of a linear layer ({named}): the kernel of the last hidden layer is not defined")
                parts.append(hidden.reshape(len(output), -1))
    finally:
        for handle in handles:
            handle.remove()
    if len({part.shape[1] for part in parts}) > 1:
        raise OutOfScope("the examples differ in their number of positions: their last hidden layers have no inner product")
    return torch.cat(parts)
