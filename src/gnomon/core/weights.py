"""Weights as people keep them: safetensors or torch files, nested, prefixed or tied, read without executing anything in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.core.errors import InvalidInput, suggest

KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "weights")
"""Where a checkpoint may keep its weights, looked at in this order."""
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim")
"""Where a checkpoint may keep its optimizer's state."""


def load_file(path: str | Path) -> Any:
    """The contents of a .safetensors file, or of any file that torch.save wrote, on the CPU; pickled code is never run.

    Raises: InvalidInput for a missing or broken file, and for a file that holds more than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file()) if path.parent.is_dir() else []
        raise InvalidInput(f"There is no file {path}." + (f" {suggest(path.name, near)}" if suggest(path.name, near).startswith("Did") else ""))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file as load_safetensors

            return load_safetensors(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported (?:global|class)[^\n]*?([\w.]+\.[\w.]+)|GLOBAL ([\w.]+)", str(error))
        what = f" ({next(group for group in found.groups() if group)})" if found else ""
        raise InvalidInput(
            f"{path} holds pickled Python objects{what} or is no torch file; gnomon reads tensors only and runs no code from a file. If you trust it, convert it once: "
            f"import torch; m = torch.load({str(path)!r}, weights_only=False); torch.save(m.state_dict() if hasattr(m, 'state_dict') else m['state_dict'], 'weights.pt')"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"{path} cannot be read ({type(error).__name__}: {line}). Expected a .safetensors file, or one that torch.save(model.state_dict(), ...) wrote."
        ) from error


def read(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file by name, found under a key such as `state_dict` where they are nested.  Raises: InvalidInput where there are none, or several sets."""
    return tensors_in(load_file(path), str(path))


def tensors_in(loaded: Any, where: str = "the checkpoint") -> dict[str, Tensor]:
    """The one mapping of tensors in what a file holds: under one of KEYS, the only nested one, or itself.

    Raises: InvalidInput where there is none, or several and none under a known key.
    """
    if not isinstance(loaded, Mapping):
        raise InvalidInput(f"{where} holds a {type(loaded).__name__}, not weights by name; save model.state_dict().")
    nested = {str(key): value for key, value in loaded.items() if isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())}
    for key in KEYS:
        if key in nested:
            return tensors_in(nested[key], where)
    own = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if own:
        return own
    if len(nested) == 1:
        return tensors_in(next(iter(nested.values())), where)
    if nested:
        raise InvalidInput(f"{where} holds several sets of weights: {', '.join(sorted(nested))}. Save the one to examine by itself, or under the key 'state_dict'.")
    raise InvalidInput(f"{where} holds no tensors by name (its keys: {', '.join(map(str, list(loaded)[:8])) or 'none'}). Save model.state_dict().")


def strip_prefix(key: str) -> str:
    """A parameter's name without what DistributedDataParallel and torch.compile put before it or before a part of it."""
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key.replace("_orig_mod.", "").removeprefix("module.")


def fit(given: Mapping[str, Tensor], module: nn.Module, *, what: str = "weights") -> dict[str, Tensor]:
    """Parameters and buffers of `module` (tied ones once) with the values given for them.

    Prefixes `module.` and `_orig_mod.` are dropped, and a prefix that all of the network's names have in the file (`model.`, `net.`); a tied
    parameter may stand under any of its names; buffers that are not saved, and counts of batches, keep the module's own values.
    Raises: InvalidInput that names missing, unexpected or misshapen entries.
    """
    aliases = _aliases(module)
    saved = set(module.state_dict())
    optional = {name for name, value in module.named_buffers() if name not in saved or not value.is_floating_point()}
    clean = _without_prefix(
        {_stripped(key, saved): value for key, value in given.items() if isinstance(value, Tensor)}, {name: names for name, names in aliases.items() if name not in optional}
    )
    current: dict[str, Tensor] = dict([*module.named_parameters(), *module.named_buffers()])
    out, missing = {}, []
    for name, value in current.items():
        key = next((alias for alias in aliases[name] if alias in clean), None)
        if key is not None:
            if tuple(clean[key].shape) != tuple(value.shape):
                raise InvalidInput(f"The {what} do not match: {key!r} has shape {tuple(clean[key].shape)}, the network has {tuple(value.shape)}.")
            if clean[key].is_floating_point() and (~torch.isfinite(clean[key].cpu()) & torch.isfinite(value.detach().cpu())).any():
                raise InvalidInput(f"The {what} have a NaN or infinite value in {key!r}. Was the training run diverging?")
            out[name] = clean[key].detach().to(value.device, value.dtype)
        elif name in optional:
            out[name] = value.detach()
        else:
            missing.append(name)
    known = {alias for names in aliases.values() for alias in names} | saved
    unexpected = [key for key in clean if key not in known]
    if missing:
        hint = suggest(missing[0], unexpected or clean) if clean else "The file has none."
        raise InvalidInput(f"The {what} do not match: {len(missing)} of {len(current)} entries are missing ({_few(missing)}). {hint}")
    if unexpected:
        raise InvalidInput(
            f"The {what} do not match: the network has no place for {len(unexpected)} of their {len(clean)} entries ({_few(unexpected)}). Was the network built with other arguments?"
        )
    return out


def put(given: Mapping[str, Tensor], module: nn.Module, *, what: str = "weights") -> None:
    """Give a network its weights, in place.  Raises: as `fit`."""
    values = fit(given, module, what=what)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            value.copy_(values[name])


def optimizer_state_in(loaded: Any, where: str = "the file") -> Mapping[str, Any]:
    """The state dict of a torch optimizer in what a file holds: itself, or under one of OPTIMIZER_KEYS.  Raises: InvalidInput where there is none."""
    if isinstance(loaded, Mapping):
        if "state" in loaded and "param_groups" in loaded:
            return loaded
        for key in OPTIMIZER_KEYS:
            found = loaded.get(key)
            found = found[0] if isinstance(found, (list, tuple)) and found else found
            if isinstance(found, Mapping) and "state" in found and "param_groups" in found:
                return found
    raise InvalidInput(f"{where} holds no optimizer state; save it with torch.save(optimizer.state_dict(), ...).")


def _aliases(module: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter and buffer, by its first."""
    names: dict[int, list[str]] = {}
    for name, value in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        names.setdefault(id(value), []).append(name)
    return {found[0]: found for found in names.values()}


def _stripped(key: str, saved: set[str]) -> str:
    """The key without wrappers' prefixes, unless the network itself has such a name."""
    return key if key in saved else strip_prefix(key)


def _without_prefix(given: dict[str, Tensor], aliases: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """What is given for the network: all, or what stands under a prefix under which all of the network's names are found."""
    if not aliases or any(name in given for name in next(iter(aliases.values()))):
        return given
    prefixes = {key.removesuffix(name) for name in next(iter(aliases.values())) for key in given if key.endswith(f".{name}")}
    for prefix in sorted(prefixes, key=len):
        if all(any(prefix + name in given for name in names) for names in aliases.values()):
            return {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    return given


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
