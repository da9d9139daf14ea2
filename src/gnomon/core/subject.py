"""A Subject: a network, its data and how it was trained, copied once and never changed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from gnomon.core import dataset as data_module
from gnomon.core import loss as loss_module
from gnomon.core import rng as chance
from gnomon.core import weights
from gnomon.core.dataset import Block, Dataset, Tree, leaves
from gnomon.core.errors import InvalidInput, OutOfScope, suggest, unknown
from gnomon.core.loss import Loss, LossFunction, Weight
from gnomon.core.training import Training

T = TypeVar("T")
WORKING_SET = 2**23
"""Numbers that the layers of a chunk read and write, at most, where the size of chunks is not given."""
FEWEST_AT_A_TIME, MOST_AT_A_TIME = 16, 4096
State = Mapping[str, Tensor]
"""Parameters and buffers by name, tied ones once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network examined on its data.  Built by `Subject.freeze`; instruments call the pure `subject(state, inputs)`.

    `state` holds parameters and buffers, `trainable` the names of the parameters that derivatives are taken of, `initial` the state at
    initialisation (or None), `make` the factory that re-draws it, `train.population` how many examples `train` was drawn from, `init` what the user
    declares of the initialisation (`kaiming`, `xavier`, `orthogonal`, `name=variance`).
    """

    module: nn.Module
    state: State
    trainable: tuple[str, ...]
    loss: Loss
    train: Dataset
    test: Dataset | None
    initial: State | None
    make: Callable[[], nn.Module] | None
    training: Training
    history: Any
    classes: int | None
    name: str
    chunk: int = 128
    where: str = "end"
    init: tuple[str, ...] = ()
    _shared: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def freeze(
        cls, model: nn.Module, loss: str | LossFunction, train: Any, test: Any = None, *,
        initial: Any = None, make: Callable[[], nn.Module] | None = None,
        optimizer: Any = None, lr: float | None = None, momentum: float | None = None, weight_decay: float | None = None, batch_size: int | None = None,
        history: Any = None, weight: Weight | None = None, examples: int | None = None, name: str | None = None, seed: int = 0, chunk: int | None = None,
        init: str | Iterable[str] = (),
    ) -> Subject:  # fmt: skip
        """Copy a network's parameters and buffers and read its data once; global random state is put back.

        `train` and `test` are a pair (inputs, targets), a Dataset, a DataLoader or an iterable of batches; inputs are a tensor, a tuple (positional
        arguments) or a dict (keyword arguments).  `initial` is a state dict or module at initialisation; `make` builds a freshly drawn network.
        `optimizer` is a name (sgd, nesterov, adam, adamw) or a torch optimizer, whose hyper-parameters and state are then read.  `weight` says what a
        batch counts for in the mean loss.  `chunk` is how many examples are worked on at a time (chosen by the size of the network's activations
        if not given); no result depends on it beyond rounding.  `examples` keeps that many training examples, drawn with `seed`.  `history` is what was read over
        training: a file that `gnomon.hooks.Watch` wrote, or a folder of checkpoints.  `init` declares the initialisation where it is not that of the layers' classes.
        Shapes: the examples run along the first dimension of every input, target and output.
        Raises: InvalidInput for empty or non-finite data or weights, outputs or targets of wrong shape, labels out of range, weights that do not match,
        a loss that is neither a weighted mean nor a sum over examples, quantised networks.
        """
        module = unwrap(model)
        training = Training.of(optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay, batch_size=batch_size, module=module)
        with chance.preserved():
            frozen = _copy(module)
            root = chance.generator(seed, "freeze")
            train_set = data_module.read(train, rng=chance.child(root, "train"), what="train", examples=examples)
            test_set = None if test is None else data_module.read(test, rng=chance.child(root, "test"), what="test")
        state = state_of(frozen)
        parameters = dict(frozen.named_parameters())
        for key, value in state.items():
            # a buffer may hold -inf on purpose: the mask of a causal attention
            if value.is_floating_point() and (value.isnan() if key not in parameters else ~torch.isfinite(value)).any():
                raise InvalidInput(f"{'Parameter' if key in parameters else 'Buffer'} {key!r} has a NaN or infinite value. Was the training run diverging?")
        trainable = tuple(key for key, value in parameters.items() if value.requires_grad)
        if not trainable:
            raise InvalidInput("The network has no parameter with requires_grad=True; unfreeze the parameters that are to be examined.")
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)
        function, loss_name = loss_module.named(loss)
        if isinstance(function, nn.Module):
            function = copy.deepcopy(function).to(next(iter(state.values())).device)
        draft = cls(
            frozen, state, trainable, Loss(function, loss_name, "mean", lambda t: 1.0), train_set, test_set, None, make, training, history, None,
            name or type(module).__name__, chunk or 64, init=(init,) if isinstance(init, str) else tuple(init),
        )  # fmt: skip
        subject = draft._checked(weight)
        if chunk is None:
            subject = dataclasses.replace(subject, chunk=subject._fitting_chunk())
        if initial is None:
            return subject
        complete = initial if isinstance(initial, nn.Module) else weights.fit(initial, frozen, what="initial")
        return dataclasses.replace(subject, initial=match(complete, state, what="initial"))

    def _checked(self, weight: Weight | None) -> Subject:
        """The subject with its loss and task known, once a first batch went through."""
        block = next(self.train.chunks(min(self.chunk, 64)))
        with torch.no_grad():
            output = self._first_output(block)
            targets = self.to_device(block.targets)
            self._check_labels(output)
            try:
                loss = loss_module.check(self.loss.function, self.loss.name, output, targets, weight=weight)
            except InvalidInput:
                raise
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                shapes = [tuple(leaf.shape) for leaf in leaves(targets)]
                raise InvalidInput(
                    f"The loss {self.loss.name!r} does not accept outputs of shape {tuple(output.shape)} with targets of shape {shapes}: {_first_line(error)}"
                ) from error
        classes = output_classes(output, targets) if loss_module.is_classification(loss) or _labels_like(output, targets) else None
        return dataclasses.replace(self, loss=loss, classes=classes)

    def _first_output(self, block: Block) -> Tensor:
        shapes = [tuple(leaf.shape) for leaf in leaves(block.inputs)]
        try:
            output = self(self.state, self.to_device(block.inputs))
        except InvalidInput:
            raise
        except Exception as error:
            raise InvalidInput(
                f"The network does not accept inputs of shape {shapes} (dtype {[str(leaf.dtype) for leaf in leaves(block.inputs)]}): {_first_line(error)}"
            ) from error
        if output.ndim == 0 or len(output) != len(block):
            raise InvalidInput(
                f"The network turned {len(block)} examples into an output of shape {tuple(output.shape)}; the first dimension must run over the examples (batch first)."
            )
        if not torch.isfinite(output).all():
            raise InvalidInput("The network's output has NaN or infinite values on the first training examples. Look at the scale of the inputs, or at a diverged training run.")
        return output

    def _fitting_chunk(self) -> int:
        """A power of two of examples whose activations fit in the caches of a processor, and fill it: about WORKING_SET numbers."""
        counted = [0]

        def count(layer: nn.Module, inputs: Any, output: Any) -> None:
            counted[0] += sum(leaf.numel() for leaf in tree_leaves((inputs, output)) if isinstance(leaf, Tensor))

        hooks = [layer.register_forward_hook(count) for layer in self.module.modules() if not any(True for _ in layer.children())]
        block = next(self.train.chunks(1))
        try:
            with torch.no_grad():
                self(self.state, self.to_device(block.inputs))
        except Exception as error:
            raise InvalidInput(
                f"The network takes a batch but not one example alone ({_first_line(error)}). Does a layer take statistics of the batch? Give it running statistics, or LayerNorm in its place."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        fitting = max(WORKING_SET // max(counted[0], 1), 1)
        return int(min(max(2 ** int(math.log2(fitting)), FEWEST_AT_A_TIME), MOST_AT_A_TIME))

    def _check_labels(self, output: Tensor) -> None:
        """Labels of a classifier lie in 0 .. classes - 1, or are ignored."""
        if not loss_module.is_classification(self.loss):
            return
        ignored = int(getattr(self.loss.function, "ignore_index", -100))
        for what, data in (("train", self.train), ("test", self.test)):
            for block in data.blocks if data else ():
                for leaf in leaves(block.targets):
                    if leaf.is_floating_point():
                        continue
                    classes = output_classes(output, leaf[: len(output)])
                    if classes is None:
                        continue
                    kept = leaf[leaf != ignored]
                    if len(kept) and (int(kept.min()) < 0 or int(kept.max()) >= classes):
                        raise InvalidInput(
                            f"The {what} labels run from {int(kept.min())} to {int(kept.max())}, but the network has {classes} outputs: labels must lie in 0 .. {classes - 1}."
                        )

    def __call__(self, state: State, inputs: Tree) -> Tensor:
        """The network's output, a pure function of parameters, buffers and inputs, in eval mode.  Shapes: output (N, ...)."""
        args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})
        return first_tensor(functional_call(self.module, dict(state), args, dict(kwargs), tie_weights=True, strict=False))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.state[self.trainable[0]].device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first trainable parameter."""
        return self.state[self.trainable[0]].dtype

    @property
    def dimension(self) -> int:
        """How many trainable parameters there are."""
        return sum(self.state[key].numel() for key in self.trainable)

    @property
    def kept(self) -> dict[str, Any] | None:
        """What a reading leaves for that of a later step, in a training that is watched; None elsewhere, where each reading stands alone."""
        return self._shared.get("kept")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters by name."""
        return {key: self.state[key] for key in self.trainable}

    def examples(self, split: str) -> Dataset:
        """The examples of `train` or `test`.   Raises: OutOfScope where there are no test data; InvalidInput for another split."""
        if split not in ("train", "test"):
            raise unknown("split", split, ("train", "test"))
        if (data := self.train if split == "train" else self.test) is None:
            raise OutOfScope("there are no test data; give `test` to Subject.freeze")
        return data

    def batches(self, split: str = "train", *, chunk: int | None = None) -> Iterator[Block]:
        """The examples of `train` or `test` on the subject's device, a chunk at a time."""
        data = self.examples(split)
        for block in data.chunks(chunk or self.chunk):
            yield Block(self.to_device(block.inputs), self.to_device(block.targets))

    def to_device(self, tree: Tree) -> Tree:
        """A tree of tensors on the subject's device; floating inputs take the subject's dtype."""
        if isinstance(tree, Mapping):
            return {key: self.to_device(value) for key, value in tree.items()}
        if isinstance(tree, tuple):
            return tuple(self.to_device(value) for value in tree)
        return tree.to(self.device, self.dtype) if tree.is_floating_point() else tree.to(self.device)

    def total_weight(self, split: str = "train") -> float:
        """What the mean loss over a split is divided by: sum of the batches' weights (1 for a loss that is a sum).  Raises: InvalidInput where every target is ignored."""
        if self.loss.reduction == "sum":
            return 1.0
        total = sum(self.loss.count(block.targets) for block in self.batches(split))
        if total <= 0:
            raise InvalidInput(f"Every target of the {split} data is ignored: the mean loss is undefined.")
        return total

    def at(self, state: Any, where: str = "elsewhere") -> Subject:
        """The same network with other parameters and buffers (at initialisation, an ensemble member).  Raises: InvalidInput where they do not match."""
        return dataclasses.replace(self, state=match(state, self.state, what="state"), where=where, _shared={})

    def sample(self, n: int, *, rng: Generator) -> Subject:
        """The same network on `n` of its training examples; `train.population` stays."""
        return self if n >= len(self.train) else dataclasses.replace(self, train=self.train.sample(n, rng=rng), _shared={})

    def with_chunk(self, chunk: int) -> Subject:
        """The same subject, its data in chunks of another size; no result depends on it beyond rounding."""
        return dataclasses.replace(self, chunk=chunk, _shared={})

    def to(self, dtype: torch.dtype) -> Subject:
        """The same subject with parameters, buffers and floating data in another dtype."""

        def cast(state: State) -> dict[str, Tensor]:
            return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}

        function = self.loss.function
        if isinstance(function, nn.Module):
            function = copy.deepcopy(function).to(dtype)
        return dataclasses.replace(
            self, module=copy.deepcopy(self.module).to(dtype), state=cast(self.state), initial=None if self.initial is None else cast(self.initial),
            loss=dataclasses.replace(self.loss, function=function), _shared={},
        )  # fmt: skip

    def redraw(self, *, rng: Generator) -> dict[str, Tensor]:
        """Parameters and buffers of a freshly drawn network.  Raises: OutOfScope without `make`, InvalidInput where the factory builds another network."""
        if self.make is None:
            raise OutOfScope("only one network is known; give `make`, a factory that draws a fresh one, to get an ensemble")
        with chance.scoped(rng):
            module = unwrap(self.make())
        return match(module, self.state, what="factory")

    def once(self, key: str, build: Callable[[], T]) -> T:
        """The result of `build()`, made at the first call with this key and shared afterwards."""
        if key not in self._shared:
            self._shared[key] = build()
        return self._shared[key]

    def fingerprint(self) -> str:
        """SHA-256 of what makes the subject: its structure, parameters, data, loss and training settings."""
        digest = hashlib.sha256(f"{self.module!r}/{self.loss.name}/{self.loss.reduction}/{self.trainable}/{self.training.to_json()}/{self.classes}/{self.init}".encode())
        for state in (self.state, self.initial or {}):
            for key, value in state.items():
                digest.update(key.encode())
                data_module.hash_tensor(digest, value)
        for data in (self.train, self.test):
            digest.update((data.fingerprint() if data else "none").encode())
        return digest.hexdigest()


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel and torch.compile.  Raises: InvalidInput for what is no nn.Module, and for quantised layers."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"The model must be a torch.nn.Module, not {type(model).__name__}." + (" Call the factory first." if callable(model) else ""))
    while hasattr(model, "_orig_mod") or isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner: Any = model
        model = inner._orig_mod if hasattr(model, "_orig_mod") else inner.module
    if isinstance(model, (torch.jit.ScriptModule,)):
        raise InvalidInput("A TorchScript module cannot be examined: its parameters cannot be exchanged. Give the nn.Module that it was made from.")
    for key, layer in model.named_modules():
        if "quantized" in type(layer).__module__ or "qat" in type(layer).__module__.split("."):
            raise InvalidInput(f"Layer {key or type(layer).__name__!r} ({type(layer).__name__}) is quantised and has no derivative. Examine the network before quantisation.")
    return model


def _copy(module: nn.Module) -> nn.Module:
    try:
        frozen = copy.deepcopy(module)
    except Exception as error:
        raise InvalidInput(
            f"The network {type(module).__name__} cannot be copied ({_first_line(error)}). Run it once without keeping activations, or rebuild it from its state dict."
        ) from error
    for value in frozen.parameters():
        value.grad = None
    return frozen.eval()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, copied, tied ones once."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {key: value.detach().clone() for key, value in named}


def match(given: Any, state: State, *, what: str) -> dict[str, Tensor]:
    """A state with the keys, dtypes and device of `state`, from a module or a state dict (prefixes `module.` and `_orig_mod.` dropped, tied names accepted).

    Raises: InvalidInput that names the missing, unexpected or misshapen entries.
    """
    if isinstance(given, nn.Module):
        given = state_of(unwrap(given))
    clean = {weights.strip_prefix(key): value for key, value in given.items()}
    missing = [key for key in state if key not in clean]
    if missing:
        first = missing[0]
        near = suggest(first, clean) if clean else "The given weights are empty."
        raise InvalidInput(f"The {what} weights do not match: {len(missing)} of {len(state)} entries are missing, first {first!r}. {near}")
    for key, value in state.items():
        if tuple(clean[key].shape) != tuple(value.shape):
            raise InvalidInput(f"The {what} weights do not match: {key!r} has shape {tuple(clean[key].shape)}, the network has {tuple(value.shape)}.")
        if clean[key].is_floating_point() and (~torch.isfinite(clean[key]).cpu() & torch.isfinite(value).cpu()).any():
            raise InvalidInput(f"The {what} weights have a NaN or infinite value in {key!r}.")
    return {key: clean[key].detach().to(value.device, value.dtype).clone() for key, value in state.items()}


def first_tensor(output: Any) -> Tensor:
    """The output of a network: itself, its `.logits`, or the first tensor of a tuple or dict.  Raises: InvalidInput where there is none."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    for part in output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ():
        if isinstance(part, Tensor):
            return part
    raise InvalidInput(f"The network returned a {type(output).__name__} without a tensor; its output must be a tensor, have `.logits`, or hold a tensor first.")


def output_classes(output: Tensor, targets: Tree) -> int | None:
    """How many classes the logits have for integer targets, or None."""
    tensors = leaves(targets)
    if len(tensors) != 1 or tensors[0].is_floating_point() or output.ndim < 2:
        return None
    logits = loss_module.class_last(output, tensors[0])
    return int(logits.shape[-1]) if math.prod(logits.shape[:-1]) == tensors[0].numel() else None


def _labels_like(output: Tensor, targets: Tree) -> bool:
    """Integer targets, one for each row of logits: a classifier, whatever its loss function is called."""
    tensors = leaves(targets)
    return len(tensors) == 1 and not tensors[0].is_floating_point() and output.ndim == tensors[0].ndim + 1 and output.shape[-1] > 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
