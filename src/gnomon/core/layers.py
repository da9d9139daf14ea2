"""What a module or an operation is as a layer: its kind, its geometry and its declared initialisation."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnomon.core.errors import InvalidInput, unknown

Kind = Literal["input", "linear", "conv", "activation", "flatten", "identity", "embedding", "norm", "pool", "add", "recurrent", "attention", "other"]
Scheme = Literal["kaiming", "xavier", "orthogonal"]

UNIFORM = 1.8
"""<w^4>/<w^2>^2 of uniform weights."""

PARAMETRISED: tuple[Kind, ...] = ("linear", "conv", "embedding")
"""Kinds whose pre-activations theory predicts."""

WHY: Mapping[str, str] = {
    "norm": "it divides by statistics of what it reads", "pool": "it mixes positions", "add": "it adds branches", "recurrent": "it feeds back into itself",
    "attention": "its weights depend on what it reads", "other": "its effect on the variance is not covered",
}  # fmt: skip


PART = "it takes a part of what it reads"


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: plain numbers and names, no tensor.

    `inputs` are the layers that feed it, `parameters` the names of its weights in the state, `weights` how many entries they have; `weight_variance` and
    `bias_variance` the declared variance of one entry (None where nothing is declared, 0 where there is no bias), `weight_kurtosis` <w^4>/<w^2>^2 (3 normal, 1.8
    uniform), `declared` how it was declared.
    `fan_in` and `fan_out` count the entries that one unit reads and that one entry of the input feeds (padding apart), `units` features or channels.
    Geometry is that of a convolution, `padding` a pair a dimension.  `function` is the activation of one number.
    Shapes: `input_shape` and `output_shape` without the examples' dimension, () where they are not known.   `why`: why it is not covered.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...] = ()
    fan_in: int = 0
    fan_out: int = 0
    units: int = 0
    parameters: tuple[str, ...] = ()
    weights: int = 0
    weight_variance: float | None = None
    bias_variance: float = 0.0
    weight_kurtosis: float = 3.0
    declared: str = ""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    activation: str = ""
    function: Callable[..., Any] | None = dataclasses.field(default=None, compare=False, repr=False)
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    why: str = ""


_ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.LeakyReLU: "leaky_relu", nn.RReLU: "rrelu", nn.ELU: "elu", nn.SELU: "selu", nn.CELU: "celu", nn.GELU: "gelu", nn.SiLU: "silu",
    nn.Mish: "mish", nn.Softplus: "softplus", nn.Softsign: "softsign", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.LogSigmoid: "logsigmoid", nn.Hardtanh: "hardtanh",
    nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid", nn.Tanhshrink: "tanhshrink", nn.Softshrink: "softshrink", nn.Hardshrink: "hardshrink", nn.Threshold: "threshold",
}  # fmt: skip
_ACTIVATION_NAMES = {*_ACTIVATION_MODULES.values(), "erf", "sin", "cos", "abs", "square", "pow", "sign", "exp", "arctan", "atan"}
_IDENTITY_NAMES = {"contiguous", "clone", "detach", "to", "float", "double", "half", "type", "type_as", "requires_grad_", "alias"}
_RESHAPE_NAMES = {"flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten", "reshape_as", "view_as", "ravel"}
_DROPOUT_NAMES = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
_NORM_NAMES = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize", "softmax", "log_softmax"}
_ADD_NAMES = {"add", "iadd", "sub", "isub"}
_ATTENTION_NAMES = {"scaled_dot_product_attention", "multi_head_attention_forward"}


def of_module(name: str, module: nn.Module) -> Layer:
    """The layer that a module is, with the default initialisation of its class; `parameters` are names within the module.  Cost: none."""
    if isinstance(module, nn.Linear):
        return _linear(name, module, module.in_features, module.out_features, 1 / (3 * max(module.in_features, 1)), "1/(3 fan_in), nn.Linear's default")
    if is_hf_conv1d(module):
        rows, columns = cast(Tensor, module.weight).shape
        return dataclasses.replace(_linear(name, module, int(rows), int(columns), 0.02**2, "0.02^2, Conv1D's default"), bias_variance=0.0, weight_kurtosis=3.0)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _conv(name, module)
    if isinstance(module, nn.Embedding):
        layer = Layer(name, "embedding", fan_in=1, fan_out=module.embedding_dim, units=module.embedding_dim)
        return _with_weights(layer, module, ("weight",), 1.0, "1, nn.Embedding's default")
    if isinstance(module, nn.PReLU):
        return Layer(name, "activation", activation="prelu", function=functools.partial(F.leaky_relu, negative_slope=float(module.init)))
    for kind, activation in _ACTIVATION_MODULES.items():
        if type(module) is kind:
            return Layer(name, "activation", activation=activation, function=_frozen(module))
    if acts_elementwise(module):
        return Layer(name, "activation", activation=type(module).__name__.lower(), function=_frozen(module))
    return _uncovered(name, module)


def acts_elementwise(module: nn.Module) -> bool:
    """Whether a module of somebody's own is an activation: of every number it makes another, whatever stands beside it.   Cost: three calls with 24 numbers."""
    if module.__module__.startswith("torch.nn") or any(True for _ in module.children()) or any(p.numel() > 1 for p in module.parameters()):
        return False
    like = next(iter(module.parameters()), torch.empty(0))
    at = torch.linspace(-3, 3, 24, dtype=like.dtype if like.is_floating_point() else torch.float32, device=like.device)
    frozen = _frozen(module)
    try:
        with torch.no_grad():
            given = at.view(2, 3, 4).clone()
            together, turned, alone = frozen(given), frozen(at.flip(0).view(4, 6).clone()), frozen(at[5:7].clone())
        if not torch.equal(given, at.view(2, 3, 4)):  # it works in place: no function of a number, but what its operations are
            return False
        made = isinstance(together, torch.Tensor) and (together.shape, turned.shape, alone.shape) == ((2, 3, 4), (4, 6), (2,))
        return made and all(torch.allclose(a, b, rtol=0.01, atol=1e-4) for a, b in ((together.flatten(), turned.flatten().flip(0)), (together.flatten()[5:7], alone)))
    except Exception:  # a module that does not take such an array is no activation, whatever it says of it
        return False


def _uncovered(name: str, module: nn.Module) -> Layer:
    called = type(module).__name__
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)):
        return Layer(name, "identity")
    if isinstance(module, (nn.Flatten, nn.Unflatten)):
        return Layer(name, "flatten")
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        weights = tuple(key for key, _ in module.named_parameters() if key.startswith("weight"))
        bound = 1 / (3 * module.hidden_size)
        layer = Layer(name, "recurrent", units=module.hidden_size, bias_variance=bound, weight_kurtosis=UNIFORM, why=_why(called, "recurrent"))
        return _with_weights(layer, module, weights, bound, f"1/(3 hidden), nn.{called}'s default")
    if isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight is not None
        layer = Layer(name, "attention", units=module.embed_dim, weight_kurtosis=UNIFORM, why=_why(called, "attention"))
        declared = "2/(fan_in + fan_out), nn.MultiheadAttention's default"
        return _with_weights(layer, module, ("in_proj_weight",) if packed else (), 1 / (2 * module.embed_dim) if packed else None, declared)
    kind: Kind = "other"
    if "Norm" in called or isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmax2d)):
        kind = "norm"
    elif "Pool" in called:
        kind = "pool"
    elif "Attention" in called:
        kind = "attention"
    return Layer(name, kind, why=_why(called, kind))


def _why(called: str, kind: str) -> str:
    return f"{called}: {WHY[kind]}"


def is_hf_conv1d(module: nn.Module) -> bool:
    """Whether a module is Hugging Face's Conv1D: a linear layer whose weight is stored transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", torch.empty(0)).ndim == 2


def _linear(name: str, module: nn.Module, fan_in: int, fan_out: int, variance: float, declared: str) -> Layer:
    bias = 1 / (3 * max(fan_in, 1)) if getattr(module, "bias", None) is not None else 0.0
    return _with_weights(Layer(name, "linear", fan_in=fan_in, fan_out=fan_out, units=fan_out, bias_variance=bias, weight_kurtosis=UNIFORM), module, ("weight",), variance, declared)


def _conv(name: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Layer:
    size = math.prod(module.kernel_size)
    fan_in = module.in_channels // module.groups * size
    flat = module._reversed_padding_repeated_twice
    pairs = tuple((int(flat[2 * i]), int(flat[2 * i + 1])) for i in reversed(range(len(module.kernel_size))))
    layer = Layer(
        name, "conv", fan_in=fan_in, fan_out=module.out_channels // module.groups * size, units=module.out_channels, kernel=tuple(module.kernel_size), stride=tuple(module.stride),
        padding=pairs, dilation=tuple(module.dilation), groups=module.groups, padding_mode=module.padding_mode,
        bias_variance=1 / (3 * fan_in) if module.bias is not None else 0.0, weight_kurtosis=UNIFORM,
    )  # fmt: skip
    return _with_weights(layer, module, ("weight",), 1 / (3 * fan_in), f"1/(3 fan_in), nn.{type(module).__name__}'s default")


def _with_weights(layer: Layer, module: nn.Module, keys: tuple[str, ...], variance: float | None, declared: str) -> Layer:
    """The layer with its weights, where they are parameters of its own (a weight computed by a parametrisation has no declared variance)."""
    own = dict(module.named_parameters(remove_duplicate=False))
    if not keys or any(key not in own for key in keys):
        return dataclasses.replace(layer, bias_variance=0.0, why=layer.why or "its weight is computed from other parameters, so no variance is declared")
    return dataclasses.replace(layer, parameters=keys, weights=sum(own[key].numel() for key in keys), weight_variance=variance, declared=declared)


def _frozen(module: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(module).eval()
    if hasattr(frozen, "inplace"):
        setattr(frozen, "inplace", False)  # noqa: B010
    return frozen


@dataclasses.dataclass(frozen=True)
class Applied:
    """A function of one number with its other arguments fixed: what an activation written as an operation is."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    before: tuple[Any, ...] = ()

    def __call__(self, value: Any) -> Any:
        """The function's value."""
        return self.function(*self.before, value, *self.arguments, **self.keywords)


def of_operation(name: str, target: Any, others: tuple[Any, ...], keywords: Mapping[str, Any], tensors: int, *, last: bool = False) -> Layer:
    """The layer that an operation is: a function or a tensor's method with `tensors` tensor arguments, the first one left out of `others`; `last`: the others stand before it, as in 2 / x."""
    called = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    function: Callable[..., Any]
    base = called.rstrip("_") if called != "requires_grad_" else called
    constants = tuple(keywords.values()) + others
    if last and tensors == 1 and base in ("pow", "ipow", "truediv", "div"):
        function = operator.pow if "pow" in base else operator.truediv
        return Layer(name, "activation", activation="exponential" if "pow" in base else "reciprocal", function=Applied(function, before=others))
    if base in _ACTIVATION_NAMES and tensors == 1:
        function = getattr(torch.Tensor, base) if isinstance(target, str) else getattr(F, base, None) or getattr(torch, base)
        kept = {key: value for key, value in keywords.items() if key not in ("inplace", "training")}
        return Layer(name, "activation", activation=base, function=Applied(function, others, kept))
    if base in ("mul", "imul", "truediv", "div", "neg") and tensors == 1 and len(constants) == (base != "neg") and all(isinstance(c, (int, float)) for c in constants):
        fixed: Callable[..., Any] = operator.neg if base == "neg" else operator.mul if "mul" in base else operator.truediv
        return Layer(name, "activation", activation=f"{base} {constants[0]}" if constants else base, function=Applied(fixed, constants))
    if base in _DROPOUT_NAMES:
        rest = dict(zip(("p", "training"), others, strict=False)) | dict(keywords)
        drops = rest.get("training", True) and rest.get("p", 0.5)
        return Layer(name, "other", why="it drops activations in eval mode too (training=True)") if drops else Layer(name, "identity")
    kind: Kind = "other"
    if base in _IDENTITY_NAMES:
        return Layer(name, "identity")
    if base in _RESHAPE_NAMES:
        return Layer(name, "flatten")
    if "pool" in base or base in ("mean", "sum", "amax", "max", "interpolate"):
        kind = "pool"
    elif base == "getitem":
        return Layer(name, "other", why=PART)
    elif base in _NORM_NAMES:
        kind = "norm"
    elif base in _ADD_NAMES:
        kind = "add"
    elif base in _ATTENTION_NAMES:
        kind = "attention"
    return Layer(name, kind, why=_why(called, kind))


def parse_init(init: tuple[str, ...]) -> tuple[Scheme | None, dict[str, float]]:
    """A scheme for every linear and convolution layer, or None, and the weight variance of single layers, from texts `kaiming` or `layer=variance`.

    Raises: InvalidInput for an unknown scheme, two schemes, or a variance that is no number of at least 0.
    """
    scheme: Scheme | None = None
    single: dict[str, float] = {}
    for text in init:
        name, equals, value = text.partition("=")
        if not equals:
            if name not in get_args(Scheme):
                raise InvalidInput(f"{unknown('initialisation', name, get_args(Scheme))} Give one of {', '.join(get_args(Scheme))}, or layer=variance.")
            if scheme not in (None, name):
                raise InvalidInput(f"Two initialisations for the whole network were given, {scheme!r} and {name!r}; give one, and layer=variance for what differs.")
            scheme = cast(Scheme, name)
            continue
        try:
            single[name.strip()] = float(value)
        except ValueError:
            raise InvalidInput(f"The weight variance of layer {name!r} must be a number, not {value!r}; for example --init {name}=0.01.") from None
        if not (math.isfinite(single[name.strip()]) and single[name.strip()] >= 0):
            raise InvalidInput(f"The weight variance of layer {name!r} must be finite and at least 0, not {value}.")
    return scheme, single


def declare(layer: Layer, scheme: Scheme | None) -> Layer:
    """The layer with the variances of a scheme: He normal 2/fan_in, Glorot 2/(fan_in + fan_out), orthogonal 1/max(rows, columns); bias 0.

    The entries of a semi-orthogonal r x c matrix have squares that sum to min(r, c), so their mean square is min(r, c)/(r c) = 1/max(r, c); fans are
    those of torch.nn.init.   Source: He et al. 2015, section 2.2 (forward); Glorot & Bengio 2010, section 4.2.1.
    """
    if scheme is None or layer.kind not in ("linear", "conv") or layer.weight_variance is None:
        return layer
    fan_out = layer.units * math.prod(layer.kernel)
    variance, text = {
        "kaiming": (2 / layer.fan_in, "2/fan_in, kaiming"), "xavier": (2 / (layer.fan_in + fan_out), "2/(fan_in + fan_out), xavier"),
        "orthogonal": (1 / max(layer.units, layer.fan_in), "1/max(fan_in, units), orthogonal"),
    }[scheme]  # fmt: skip
    return dataclasses.replace(layer, weight_variance=variance, bias_variance=0.0, weight_kurtosis=3.0, declared=text)
