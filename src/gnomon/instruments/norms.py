"""Norms of weights: spectral norms of layers as operators, distance from initialisation, and margins in their units."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor, nn

from gnomon.core import rng as chance
from gnomon.core.dataset import length
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Array, Axis, Reading
from gnomon.core.registry import Cost, instrument
from gnomon.core.source import Source
from gnomon.core.subject import Subject, first_tensor
from gnomon.instruments.outcomes import labelled
from gnomon.numerics.lanczos import lanczos_eigenvalues
from gnomon.numerics.measuring import measuring
from gnomon.numerics.statistics import student_quantile

BARTLETT_2017 = Source("bartlett2017")
SEDGHI_2019 = Source("sedghi2019")
NEYSHABUR_2018 = Source("neyshabur2018")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DENSE = 256
"""Largest smaller side of a matrix whose norm comes from all eigenvalues of its Gram matrix; larger ones are iterated."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_LAYERS = 300
LANCZOS = 100
"""Products that Lanczos' iteration may take for a norm."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """A layer's first call: what it is, its weights as they were then, and the shape of one example that it saw."""

    layer: nn.Module
    weights: dict[str, Tensor]
    shape: tuple[int, ...]


def _weights(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name in ("weight", "bias", "running_mean", "running_var") if isinstance(value := getattr(layer, name, None), Tensor)}


def _covered(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Embedding, *CONVOLUTIONS)) or (isinstance(layer, BATCH_NORMS) and layer.track_running_stats) or _is_transposed_linear(layer)


def _is_transposed_linear(layer: nn.Module) -> bool:
    """Hugging Face's Conv1D: x W + b, whose weight is (inputs, outputs)."""
    return type(layer).__name__ == "Conv1D" and isinstance(weight := getattr(layer, "weight", None), Tensor) and weight.ndim == 2


def _calls(subject: Subject) -> dict[str, _Call]:
    """The first call of every layer with weights, in order, seen by hooks on one example."""
    seen: dict[str, _Call] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if name not in seen:
                given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
                seen[name] = _Call(layer, _weights(layer), () if given is None else tuple(given.shape[1:]))

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in subject.module.named_modules():
            if _covered(layer):
                handle = layer.register_forward_hook(keep(name), with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(measuring(subject))
        stack.enter_context(torch.no_grad())
        block = next(subject.batches(chunk=1))
        subject(subject.state, block.inputs)
    return seen


def _left_out(subject: Subject, calls: dict[str, _Call]) -> tuple[str, ...]:
    """Layers with parameters of their own that no spectral norm is given for."""
    out = []
    for name, layer in subject.module.named_modules():
        if any(True for _ in layer.parameters(recurse=False)) and name not in calls:
            why = "not called as a layer" if _covered(layer) else f"{type(layer).__name__} is no single linear map"
            out.append(f"{name or type(layer).__name__}: {why}")
    return tuple(out)


def _linear_map(call: _Call) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A layer as a linear map of one example, without its bias, and an example of zeros."""
    layer, weights = call.layer, call.weights
    replaced = {"weight": weights["weight"], **({"bias": torch.zeros_like(weights["bias"])} if "bias" in weights else {})}
    zero = torch.zeros(1, *call.shape, dtype=weights["weight"].dtype, device=weights["weight"].device)
    return lambda x: first_tensor(torch.func.functional_call(layer, replaced, (x,))), zero


def _matrix(call: _Call) -> Tensor | None:
    """The matrix of a layer that is one, or None."""
    weight = call.weights.get("weight")
    return weight.double() if weight is not None and (isinstance(call.layer, (nn.Linear, nn.Embedding)) or _is_transposed_linear(call.layer)) else None


def _batch_norm_scale(call: _Call) -> Tensor:
    """|gamma| / sqrt(var + eps) of a batch norm in eval mode.  Raises: OutOfScope where it keeps no running statistics: it is then no linear map."""
    if "running_var" not in call.weights:
        raise OutOfScope("a batch norm without running statistics is no linear map")
    variance = call.weights["running_var"].double()
    gamma = call.weights["weight"].double() if "weight" in call.weights else torch.ones_like(variance)
    return gamma.abs() / (variance + float(vars(call.layer)["eps"])).sqrt()


def _norm(call: _Call, rng: Generator) -> tuple[float, float]:
    """The largest singular value of a layer and a bound on its error."""
    if isinstance(call.layer, BATCH_NORMS):
        return float(_batch_norm_scale(call).max()), 0.0
    matrix = _matrix(call)
    if matrix is not None:
        if min(matrix.shape) <= DENSE:
            # the Gram matrix of the smaller side would lose half of the digits of small singular values, not of the largest one
            small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            return math.sqrt(max(float(torch.linalg.eigvalsh(small @ small.T)[-1]), 0.0)), 0.0
        return _lanczos(lambda v: matrix.T @ (matrix @ v), matrix.shape[1], matrix, rng)
    function, zero = _linear_map(call)
    size = zero.numel()

    def gram(v: Tensor) -> Tensor:
        pushed = torch.func.vjp(function, v.reshape(zero.shape).to(zero.dtype))
        return pushed[1](pushed[0])[0].reshape(-1)

    if size <= 256:
        identity = torch.eye(size, dtype=zero.dtype, device=zero.device).reshape(size, *zero.shape[1:])
        dense = function(identity).reshape(size, -1).double()
        return float(torch.linalg.matrix_norm(dense, 2)), 0.0
    return _lanczos(gram, size, zero, rng)


def _lanczos(gram: Callable[[Tensor], Tensor], size: int, like: Tensor, rng: Generator) -> tuple[float, float]:
    """The square root of the largest eigenvalue of a symmetric map, and what the eigenvalue's residual bound makes of it."""
    found = lanczos_eigenvalues(gram, size, rng=rng, like=like, tolerance=1e-4, max_products=LANCZOS)
    value, bound = max(float(found.values[0]), 0.0), float(found.bounds[0])
    return math.sqrt(value), math.sqrt(value) - math.sqrt(max(value - bound, 0.0))


def _spectral(subject: Subject) -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
    """Norm and bound by layer, and what is left out; made once."""

    def build() -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
        calls = _calls(subject)
        found = {}
        with measuring(subject), torch.no_grad():
            for name, call in calls.items():
                value, bound = _norm(call, chance.generator(0, f"spectral/{name}"))
                size = math.sqrt(float(sum((w.double() ** 2).sum() for key, w in call.weights.items() if key == "weight"))) if call.weights else 0.0
                found[name] = (value, bound + 4 * torch.finfo(subject.dtype).eps * max(value, size))
        return found, _left_out(subject, calls)

    return subject.once("norms/spectral", build)


def exact_spectral_norms(subject: Subject) -> Array:
    """Every layer's norm from its dense matrix, formed column by column."""
    out = []
    with measuring(subject), torch.no_grad():
        for call in _calls(subject).values():
            matrix = _matrix(call)
            if matrix is None and isinstance(call.layer, BATCH_NORMS):
                matrix = torch.diag(_batch_norm_scale(call))
            if matrix is None:
                function, zero = _linear_map(call)
                matrix = torch.stack([function(row.reshape(zero.shape)).reshape(-1) for row in torch.eye(zero.numel(), dtype=zero.dtype)])
            out.append(float(torch.linalg.svdvals(matrix.double())[0]))
    return np.asarray(out)


def _norm_cost(subject: Subject) -> Cost:
    """Convolutions dominate: Lanczos goes through them with one example, forth and back, some thirty times."""
    convolutional = any(isinstance(layer, CONVOLUTIONS) for layer in subject.module.modules())
    return Cost(gradients=(30 if convolutional else 1) / len(subject.train), bytes=8 * max(value.numel() for value in subject.state.values()))


@instrument(topic="generalization", truth=exact_spectral_norms, cost=_norm_cost)
def spectral_norms(subject: Subject, *, rng: Generator) -> Reading:
    """Spectral norm of every layer as a linear map: the most by which it can stretch a change of its input.

    Linear layers and embeddings: the largest singular value of the matrix.  Convolutions: of the operator on an input of the size that the layer sees, padding and
    stride included, by Lanczos' iteration on A'A.  Batch norm in eval mode: the largest of |gamma| / sqrt(var + eps).

    Shapes: value (layers,), in the order of their first calls.   Units: none.   Error: bound: the residual of the singular vector, and rounding.
    Assumes: eval mode; bias left out.   Cost: some 30 passes of one example where there are convolutions.
    Raises: OutOfScope where no layer is covered; the layers that are not are named in `skipped`.
    Source: Bartlett et al. 2017, section 1; convolutions as operators: Sedghi et al. 2019.
    """
    found, skipped = _spectral(subject)
    if not found:
        raise OutOfScope("no linear, convolution, embedding or batch norm layer was called: there is no norm to give")
    names = tuple(name or "network" for name in found)[:MOST_LAYERS]
    values = np.array([value for value, _ in found.values()])[:MOST_LAYERS]
    bounds = np.array([bound for _, bound in found.values()])[:MOST_LAYERS]
    left = (*skipped, *(f"{name}: beyond the first {MOST_LAYERS} layers" for name in list(found)[MOST_LAYERS:]))
    return Reading("spectral_norms", values, "", error=bounds, error_kind="bound", axes=(Axis("layer", names),), source=SEDGHI_2019, skipped=left, assumes=("eval mode",))


def _by_layer(subject: Subject) -> Iterator[tuple[str, list[str]]]:
    layers: dict[str, list[str]] = {}
    for key in subject.trainable:
        layers.setdefault(key.rpartition(".")[0] or "network", []).append(key)
    yield from list(layers.items())[:MOST_LAYERS]


def _root(subject: Subject, keys: list[str], *, moved: bool) -> float:
    assert subject.initial is not None
    return math.sqrt(sum(float(((subject.state[k].double() - (subject.initial[k].double() if moved else 0.0)) ** 2).sum()) for k in keys))


def exact_distance(subject: Subject) -> Array:
    """Layer by layer, by numpy."""
    assert subject.initial is not None
    pairs = [[(subject.state[k].cpu().numpy(), subject.initial[k].cpu().numpy()) for k in keys] for _, keys in _by_layer(subject)]
    return np.asarray([np.linalg.norm(np.concatenate([(a - b).ravel() for a, b in layer])) for layer in pairs])


@instrument(topic="generalization", needs=("initial",), truth=exact_distance, cost=lambda subject: Cost(gradients=1 / len(subject.train)))
def distance_from_initialization(subject: Subject, *, rng: Generator) -> Reading:
    """How far training has moved every layer: |W - W_0|_F over its trainable parameters; norms now and at initialisation stand in `details`.

    Shapes: value (layers,).   Units: parameter.   Error: bound, rounding of the parameters.
    Assumes: nothing.   Cost: none to speak of.   Raises: OutOfScope without the initial parameters.
    Source: Neyshabur et al. 2018.
    """
    if subject.initial is None:
        raise OutOfScope("the parameters at initialisation are not known (--initial, or `initial=`)")
    layers = list(_by_layer(subject))
    distance = np.array([_root(subject, keys, moved=True) for _, keys in layers])
    now = np.array([_root(subject, keys, moved=False) for _, keys in layers])
    first = np.array([math.sqrt(sum(float((subject.initial[k].double() ** 2).sum()) for k in keys)) for _, keys in layers])
    bound = torch.finfo(subject.dtype).eps * (now + first + np.finfo(np.float64).tiny)
    total = {"total": float(np.sqrt((distance**2).sum())), "total_now": float(np.sqrt((now**2).sum())), "total_initial": float(np.sqrt((first**2).sum()))}
    return Reading(
        "distance_from_initialization", distance, "parameter", error=bound, error_kind="bound", axes=(Axis("layer", tuple(name for name, _ in layers)),), source=NEYSHABUR_2018,
        details={"norm": now.tolist(), "initial_norm": first.tolist(), **total},
    )  # fmt: skip


def _margins(subject: Subject) -> tuple[Array, Array]:
    """Margins z_y - max_{j != y} z_j of the training targets that count, and the number of the example of each."""
    values, owners, start = [], [], 0
    with measuring(subject), torch.no_grad():
        for block in subject.batches():
            logits, labels, kept = labelled(subject, block, subject(subject.state, block.inputs))
            own = logits.gather(-1, labels[..., None])[..., 0]
            best = logits.scatter(-1, labels[..., None], -math.inf).amax(-1)
            rows = torch.arange(start, start + len(block), device=kept.device)[:, None].expand_as(kept)
            values.append((own - best)[kept].double().cpu().numpy())
            owners.append(rows[kept].cpu().numpy())
            start += length(block.inputs)
    return np.concatenate(values), np.concatenate(owners)


def exact_margins(subject: Subject) -> Array:
    """The quantiles over all training targets, over the product of the dense norms."""
    margins, _ = _margins(subject)
    return np.quantile(margins, QUANTILES, method="inverted_cdf") / float(np.prod(exact_spectral_norms(subject)))


@instrument(topic="generalization", needs=("labels",), truth=exact_margins, cost=lambda subject: Cost(gradients=1 / 3))
def margin_normalized(subject: Subject, *, rng: Generator) -> Reading:
    """Quantiles of the training margins divided by the product of the layers' spectral norms.

    (z_y - max_{j != y} z_j) / prod_l |A_l|: what a network's outputs are worth once each layer is scaled to stretch nothing.

    Shapes: value (5,), the 5, 25, 50, 75 and 95 % quantiles.   Units: input.
    Error: where the examples are a sample, by order statistics (binomial, for tokens with as many trials as have the variance between examples) with the factor
    1 - n/N; else bound, rounding and the norms'.
    Assumes: eval mode; layers that no norm covers (named in `skipped`) count as 1.   Cost: a forward pass.
    Raises: OutOfScope where no layer is covered, or the norms' product is 0.
    Source: Bartlett et al. 2017, section 1 (their figure of margin distributions, there also over the size of the data).
    """
    found, skipped = _spectral(subject)
    margins, owners = _margins(subject)
    product = math.exp(sum(math.log(max(value, 1e-300)) for value, _ in found.values())) if found else 0.0
    if not (0 < product < math.inf) or min((value for value, _ in found.values()), default=0.0) == 0:
        raise OutOfScope("the product of the layers' spectral norms is 0, or there is none: margins have no unit")
    relative = sum(bound / value for value, bound in found.values()) + 64 * torch.finfo(subject.dtype).eps * (
        1 + float(np.abs(margins).max()) / max(float(np.abs(margins).min()), 1e-3)
    )
    value = np.quantile(margins, QUANTILES, method="inverted_cdf")
    n, population = len(subject.train), subject.train.population
    fields: dict[str, Any] = {
        "axes": (Axis("quantile", QUANTILES),), "source": BARTLETT_2017.at("section 1"), "skipped": skipped, "assumes": ("layers without a norm count as 1",) if skipped else (),
        "details": {"norm_product": product, "negative": float((margins < 0).mean()), "layers": len(found)},
    }  # fmt: skip
    bound = (relative * np.abs(value) + torch.finfo(subject.dtype).eps * float(np.abs(margins).max())) / product
    if n == population:
        return Reading("margin_normalized", value / product, "input", error=bound, error_kind="bound", **fields)
    ends = np.array([_quantile_ends(margins, owners, q, value[i], 1 - n / population) for i, q in enumerate(QUANTILES)])
    interval = (ends[:, 0] / product - bound, ends[:, 1] / product + bound)
    error = (interval[1] - interval[0]) / (2 * student_quantile(0.975, n - 1))
    return Reading("margin_normalized", value / product, "input", error=np.maximum(error, bound), error_kind="sample", n=n, interval=interval, **fields)


def _quantile_ends(margins: Array, owners: Array, q: float, value: float, left: float) -> tuple[float, float]:
    """The interval of a quantile: the order statistics between which a count with the variance of #{margin <= value} stays."""
    below = np.bincount(owners, weights=margins <= value)[np.unique(owners)]
    counts = np.bincount(owners)[np.unique(owners)]
    n, total = len(counts), counts.sum()
    rest = below - q * counts
    spread = max(float((rest**2).sum()) / total**2 * n / max(n - 1, 1), q * (1 - q) / total if counts.max() == 1 else 0.0) * left
    half = float(stats.norm.ppf(0.975)) * math.sqrt(spread)
    ordered = np.sort(margins)
    low, high = math.floor((q - half) * total), math.ceil((q + half) * total)
    # with nothing beyond the sample's extremes the interval would stop at them
    reach = ordered[-1] - ordered[0]
    return (float(ordered[low]) if low >= 0 else float(ordered[0] - reach)), (float(ordered[high]) if high < total else float(ordered[-1] + reach))
