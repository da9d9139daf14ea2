"""Data by name: a data set that gnomon knows, a file of arrays, or a Python factory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnomon.core import factory
from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput, suggest
from gnomon.data import images

NAMED: dict[str, tuple[Callable[..., Any], str]] = {
    "digits": (images.digits, "digits"),
    "mnist": (images.mnist, "MNIST"),
    "fashion-mnist": (images.fashion_mnist, "Fashion-MNIST"),
}
"""What each known name loads, and how it is shown."""


def load(source: str, *, seed: int = 0) -> tuple[Any, Any, str]:
    """Training data, test data (or None) and a name to show, from what `--data` says.

    `digits`, `mnist` and `fashion-mnist` may carry arguments, as in `mnist(standardise=False)`; an .npz file holds `x_train`, `y_train` and perhaps
    `x_test`, `y_test`, or `x` and `y`; `file.py:make_data(...)` returns training data, or a tuple (train, test), each anything that Subject.freeze takes.
    `seed` seeds the global random state while a factory runs.
    Raises: InvalidInput for unknown names (the nearest is named), missing or broken files, and factories that raise.
    """
    if source.split("(")[0].strip().endswith(".npz"):
        train, test = npz(source)
        return train, test, Path(source).name
    if factory.is_factory(source):
        make = factory.find(source, what="data")
        with chance.scoped(chance.generator(seed, "data")):
            train, test = split(make())
        return train, test, source.strip()
    if Path(source).suffix == ".py":
        factory.find(source, what="data")
    if Path(source).suffix and Path(source).exists():
        raise InvalidInput(f"{source} is not a file that gnomon reads. Give an .npz with x_train and y_train, or a factory file.py:make_data() that returns the data.")
    call = factory.Call.parse(source)
    if call.name not in NAMED:
        raise InvalidInput(f"Unknown data {call.name!r}. {suggest(call.name, NAMED)} Data may also be an .npz file, or a factory file.py:make_data().")
    function, title = NAMED[call.name]
    try:
        train, test = function(*call.args, **call.kwargs)
    except TypeError as error:
        raise InvalidInput(f"The data {call.name!r} do not take these arguments: {error}.") from error
    return train, test, title


def split(made: Any) -> tuple[Any, Any]:
    """Training and test data in what a factory returned: a tuple of two data sets, or training data alone.

    A tuple whose second part is a tensor or an array is one pair (inputs, targets), so training data alone.
    Raises: InvalidInput for a tuple of another length.
    """
    if isinstance(made, tuple) and len(made) != 2:
        raise InvalidInput(f"A data factory must return training data, or a tuple (train, test); a tuple of {len(made)} came.")
    if isinstance(made, tuple) and not isinstance(made[1], (Tensor, np.ndarray)):
        return made[0], made[1]
    return made, None


def pooled(source: str, *, examples: int, side: int) -> tuple[Tensor, Tensor]:
    """The first training images of a data set by name, averaged down to side x side pixels and flattened, and their labels as one-hot vectors.

    Shapes: (examples, side^2) and (examples, classes), float32.
    Raises: InvalidInput as `load`, and where there are fewer examples.
    """
    (inputs, labels), _, title = load(source)
    if examples > len(inputs):
        raise InvalidInput(f"{title} has {len(inputs):,} training examples, not {examples:,}; ask for no more than there are.")
    small = F.adaptive_avg_pool2d(inputs[:examples], side).flatten(1)
    return small, F.one_hot(labels[:examples], int(labels.max()) + 1).to(small.dtype)


def first_classes(source: str, classes: int, *, examples: int) -> tuple[Tensor, Tensor]:
    """The first training images of a data set by name whose labels are below `classes`.

    Shapes: (examples, ...) and (examples,).
    Raises: InvalidInput as `load`, and where there are fewer examples.
    """
    (inputs, labels), _, title = load(source)
    chosen = (labels < classes).nonzero().flatten()[:examples]
    if len(chosen) < examples:
        raise InvalidInput(f"{title} has {len(chosen):,} training examples of the first {classes} classes, not {examples:,}.")
    return inputs[chosen], labels[chosen]


def npz(path: str | Path) -> tuple[Any, Any]:
    """Training and test data from an .npz file; nothing pickled is read.

    Shapes: x (N, ...), y (N, ...).
    Raises: InvalidInput for a missing or broken file, other names than `x_train`, `y_train`, `x_test`, `y_test` or `x`, `y`, and pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(entry.name for entry in path.parent.glob("*.npz")) if path.parent.is_dir() else []
        raise InvalidInput(f"There is no file {path}." + (f" {suggest(path.name, near)}" if near else ""))
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: _tensor(file[key]) for key in file.files}
    except ValueError as error:
        raise InvalidInput(f"{path} holds something else than arrays of numbers ({error}). Save plain arrays with numpy.savez(path, x_train=..., y_train=...).") from error
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InvalidInput(f"{path} is not a whole .npz file ({error}). Write it with numpy.savez(path, x_train=..., y_train=...).") from error
    names = ("x_train", "y_train") if "x_train" in found or "y_train" in found else ("x", "y")
    if any(name not in found for name in names):
        raise InvalidInput(f"{path} must hold x_train and y_train (and perhaps x_test and y_test), or x and y; it holds {', '.join(sorted(found)) or 'nothing'}.")
    if ("x_test" in found) != ("y_test" in found):
        raise InvalidInput(f"{path} holds one of x_test and y_test; give both or neither.")
    test = (found["x_test"], found["y_test"]) if "x_test" in found else None
    return (found[names[0]], found[names[1]]), test


def _tensor(array: Any) -> Tensor:
    """An array as a tensor; integers become int64, as labels and embeddings want them."""
    if array.dtype.kind not in "biufc":
        raise ValueError(f"an array of {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64) if array.dtype.kind in "iu" else array))
