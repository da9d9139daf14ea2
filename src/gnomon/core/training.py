"""How a network was trained, as far as theory needs to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.core.errors import InvalidInput, unknown
from gnomon.core.weights import strip_prefix

OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Optimizer and hyper-parameters; None where they are not known.

    `momentum` is beta (for Adam beta_1), `second_moment` Adam's running mean of squared gradients by parameter name and `steps` the steps it has made.
    """

    optimizer: str | None = None
    lr: float | None = None
    momentum: float = 0.0
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    batch_size: int | None = None
    second_moment: Mapping[str, Tensor] | None = None
    steps: int | None = None

    @classmethod
    def of(cls, optimizer: Any, *, lr: float | None, momentum: float | None, weight_decay: float | None, batch_size: int | None, module: nn.Module) -> Training:
        """From an optimizer's name and numbers, or from a torch optimizer.  Raises: InvalidInput for unknown optimizers and impossible numbers."""
        if isinstance(optimizer, torch.optim.Optimizer):
            return cls._read(optimizer, batch_size, module)
        if optimizer is not None and optimizer not in OPTIMIZERS:
            raise unknown("optimizer", str(optimizer), OPTIMIZERS)
        for what, value, low, high in (("lr", lr, 0.0, float("inf")), ("momentum", momentum, 0.0, 1.0), ("weight_decay", weight_decay, 0.0, float("inf"))):
            if value is not None and not low <= value < high:
                raise InvalidInput(f"{what} must lie in [{low:g}, {high:g}), not {value}.")
        if lr == 0:
            raise InvalidInput(f"lr must be above 0, not {lr}.")
        if batch_size is not None and batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, not {batch_size}.")
        name = optimizer or ("sgd" if lr is not None else None)
        default = 0.9 if name in ("adam", "adamw") else 0.0
        return cls(name, lr, default if momentum is None else momentum, weight_decay=weight_decay or 0.0, batch_size=batch_size)

    @classmethod
    def _read(cls, optimizer: torch.optim.Optimizer, batch_size: int | None, module: nn.Module) -> Training:
        group, kind = optimizer.param_groups[0], type(optimizer).__name__.lower()
        if kind not in ("sgd", "adam", "adamw"):
            raise InvalidInput(
                f"The optimizer {type(optimizer).__name__} is not covered; covered are SGD (with momentum, Nesterov), Adam and AdamW. Leave it out to examine without its limit."
            )
        common: dict[str, Any] = {"lr": float(group["lr"]), "weight_decay": float(group["weight_decay"]), "batch_size": batch_size}
        if kind == "sgd":
            return cls("nesterov" if group["nesterov"] else "sgd", momentum=float(group["momentum"]), **common)
        names = {id(p): key for key, p in module.named_parameters()}
        moments = {names[id(p)]: s["exp_avg_sq"].detach().clone() for p, s in optimizer.state.items() if id(p) in names and "exp_avg_sq" in s}
        steps = max((int(s["step"]) for s in optimizer.state.values() if "step" in s), default=None)
        return cls(kind, momentum=float(group["betas"][0]), beta2=float(group["betas"][1]), epsilon=float(group["eps"]), second_moment=moments or None, steps=steps, **common)

    def with_state(self, state: Mapping[str, Any], module: nn.Module) -> Training:
        """The same training with what a torch optimizer's state dict tells: Adam's second moments and steps; its hyper-parameters where they were not given.

        Parameters are told apart by their names where the state dict has them, else by their order, for one group of parameters.
        Raises: InvalidInput where the state does not fit the module or the optimizer.
        """
        groups = state["param_groups"]
        kind = _kind(groups[0])
        if self.optimizer is not None and {"adamw": "adam", "nesterov": "sgd"}.get(self.optimizer, self.optimizer) != {"adamw": "adam", "nesterov": "sgd"}.get(kind, kind):
            raise InvalidInput(f"The optimizer state is one of {kind}, not of {self.optimizer}.")
        names = _parameter_names(groups, module)
        if foreign := [number for number in state["state"] if number not in names]:
            raise InvalidInput(f"The optimizer state speaks of a parameter {foreign[0]!r} that is in none of its groups; save it again with optimizer.state_dict().")
        parameters, moments = dict(module.named_parameters()), {}
        for number, entry in state["state"].items():
            moment, name = entry.get("max_exp_avg_sq", entry.get("exp_avg_sq")), names[number]
            if moment is not None and tuple(moment.shape) != tuple(parameters[name].shape):
                raise InvalidInput(f"The optimizer state does not fit the network: {name!r} has shape {tuple(parameters[name].shape)}, its state {tuple(moment.shape)}.")
            if moment is not None:
                moments[name] = moment.detach().to(parameters[name].device)
        steps = max((int(entry["step"]) for entry in state["state"].values() if "step" in entry), default=None)
        betas = groups[0].get("betas", (groups[0].get("momentum", 0.0), self.beta2))
        return dataclasses.replace(
            self, optimizer=self.optimizer or kind, lr=float(groups[0]["lr"]) if self.lr is None else self.lr, momentum=float(betas[0]), beta2=float(betas[1]),
            epsilon=float(groups[0].get("eps", self.epsilon)), weight_decay=self.weight_decay or float(groups[0].get("weight_decay", 0.0)), second_moment=moments or None, steps=steps,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON types; of Adam's state only whether it is known."""
        out = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "second_moment"}
        return out | {"second_moment": self.second_moment is not None}


def _kind(group: Mapping[str, Any]) -> str:
    if "amsgrad" in group:
        return "adamw" if group.get("decoupled_weight_decay") else "adam"
    if "nesterov" in group:
        return "nesterov" if group["nesterov"] else "sgd"
    raise InvalidInput("The optimizer state is neither SGD's nor Adam's; covered are SGD (with momentum, Nesterov), Adam and AdamW.")


def _parameter_names(groups: Any, module: nn.Module) -> dict[Any, str]:
    """The name of each parameter number of an optimizer's state dict."""
    numbers = [number for group in groups for number in group["params"]]
    parameters = dict(module.named_parameters())
    trainable = [name for name, value in parameters.items() if value.requires_grad]
    if all("param_names" in group for group in groups):
        names = [strip_prefix(str(name)) for group in groups for name in group["param_names"]]
    elif len(groups) > 1:
        raise InvalidInput(
            f"The optimizer state has {len(groups)} groups and no names, so its parameters cannot be told apart. Build the optimizer from named_parameters() and save it again."
        )
    else:
        names = list(parameters) if len(numbers) == len(parameters) else trainable
    if len(names) != len(numbers) or any(name not in parameters for name in names):
        raise InvalidInput(f"The optimizer state has {len(numbers)} parameters, the network {len(parameters)}, of which {len(trainable)} trainable: it is another network's.")
    return dict(zip(numbers, names, strict=True))
