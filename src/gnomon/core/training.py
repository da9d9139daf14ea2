"""How a network was trained, as far as theory needs to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.core.errors import InvalidInput, unknown

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
            raise InvalidInput("lr must be above 0.")
        if batch_size is not None and batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, not {batch_size}.")
        name = optimizer or ("sgd" if lr is not None else None)
        default = 0.9 if name in ("adam", "adamw") else 0.0
        return cls(name, lr, default if momentum is None else momentum, weight_decay=weight_decay or 0.0, batch_size=batch_size)

    @classmethod
    def _read(cls, optimizer: torch.optim.Optimizer, batch_size: int | None, module: nn.Module) -> Training:
        group, kind = optimizer.param_groups[0], type(optimizer).__name__.lower()
        if kind not in ("sgd", "adam", "adamw"):
            raise InvalidInput(f"The optimizer {type(optimizer).__name__} is not covered; covered are SGD (with momentum, Nesterov), Adam and AdamW. Leave it out to examine without its limit.")
        common = {"lr": float(group["lr"]), "weight_decay": float(group["weight_decay"]), "batch_size": batch_size}
        if kind == "sgd":
            return cls("nesterov" if group["nesterov"] else "sgd", momentum=float(group["momentum"]), **common)
        names = {id(p): key for key, p in module.named_parameters()}
        moments = {names[id(p)]: s["exp_avg_sq"].detach().clone() for p, s in optimizer.state.items() if id(p) in names and "exp_avg_sq" in s}
        steps = max((int(s["step"]) for s in optimizer.state.values() if "step" in s), default=None)
        return cls(kind, momentum=float(group["betas"][0]), beta2=float(group["betas"][1]), epsilon=float(group["eps"]), second_moment=moments or None, steps=steps, **common)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON types; of Adam's state only whether it is known."""
        out = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "second_moment"}
        return out | {"second_moment": self.second_moment is not None}
