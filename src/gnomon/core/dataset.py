"""Data, read once: blocks of examples of equal shapes, memory-mapped past a stated size."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gnomon.core import rng as chance
from gnomon.core.errors import InvalidInput

Tree = Any
"""A tensor, or a tuple or dict of tensors whose first dimension runs over the examples."""

MAPPED_BYTES = 2 * 2**30
"""Data larger than this are kept in files and memory-mapped."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Examples of equal shapes.  Shapes: every tensor of `inputs` and `targets` has the examples in its first dimension."""

    inputs: Tree
    targets: Tree

    def __len__(self) -> int:
        return length(self.inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples held in memory, or mapped; `population` is how many they were drawn from."""

    blocks: tuple[Block, ...]
    population: int
    keep: Any = None

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    @property
    def is_sample(self) -> bool:
        """Whether there are more examples than those at hand."""
        return len(self) < self.population

    def chunks(self, size: int) -> Iterator[Block]:
        """The examples in order, at most `size` at a time; the last chunk of a block may be short.  Raises: InvalidInput for a size below 1."""
        if size < 1:
            raise InvalidInput(f"A chunk must hold at least one example, not {size}.")
        for block in self.blocks:
            for start in range(0, len(block), size):
                yield Block(*(tree_map(lambda leaf, s=start: leaf[s : s + size], part) for part in (block.inputs, block.targets)))

    def select(self, indices: Tensor) -> Dataset:
        """The examples with these numbers, in increasing order, drawn from the same population.  Shapes: indices (n,)."""
        wanted, blocks, start = indices.sort().values, [], 0
        for block in self.blocks:
            local = wanted[(wanted >= start) & (wanted < start + len(block))] - start
            if len(local):
                blocks.append(Block(*(tree_map(lambda leaf, at=local: leaf[at], part) for part in (block.inputs, block.targets))))
            start += len(block)
        return Dataset(tuple(blocks), self.population, self.keep)

    def sample(self, n: int, *, rng: Generator) -> Dataset:
        """`n` examples drawn without replacement, or all of them where there are no more."""
        return self if n >= len(self) else self.select(chance.permutation(len(self), rng=rng)[:n])

    def fingerprint(self) -> str:
        """SHA-256 of the contents, in order, and of the population's size."""
        digest = hashlib.sha256(str(self.population).encode())
        for block in self.blocks:
            for leaf in leaves(block.inputs) + leaves(block.targets):
                hash_tensor(digest, leaf)
        return digest.hexdigest()


def hash_tensor(digest: Any, tensor: Tensor) -> None:
    """Feed a tensor's dtype, shape and bytes to a hash."""
    flat = tensor.detach().cpu().contiguous()
    digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy() if flat.numel() else b"")


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def length(tree: Tree) -> int:
    """How many examples a tree holds: the first dimension of its tensors.  Raises: InvalidInput where they disagree or there is none."""
    if isinstance(tree, Tensor) and tree.ndim:
        return len(tree)  # asked for at every turn, and nearly always of one tensor
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in leaves(tree)}
    if len(sizes) != 1 or -1 in sizes:
        raise InvalidInput(f"Every tensor of a batch must have the examples in its first dimension; first dimensions found: {sorted(sizes)}.")
    return sizes.pop()


def read(data: Any, *, rng: Generator, what: str = "train", examples: int | None = None) -> Dataset:
    """Read data once: a pair of arrays, a map-style Dataset, a DataLoader or any iterable of batches (inputs, targets).

    The global random state is seeded from `rng` while reading and put back, so that a shuffling or augmenting loader gives the same examples
    every time.  With `examples`, that many are kept, drawn without replacement.
    Raises: InvalidInput for empty data, NaN or infinite inputs, batches that are not (inputs, targets), or tensors of unequal length.
    """
    if examples is not None and examples < 1:
        raise InvalidInput(f"examples must be at least 1, not {examples}.")
    if isinstance(data, Dataset):
        return data if examples is None else data.sample(examples, rng=chance.child(rng, "examples"))
    columns = _Columns(what)
    with chance.scoped(chance.child(rng, "read")), _generators_kept(data):
        for inputs, targets in _batches(data, what):
            columns.append(inputs, targets)
    dataset = columns.dataset()
    return dataset if examples is None else dataset.sample(examples, rng=chance.child(rng, "examples"))


def _batches(data: Any, what: str) -> Iterator[tuple[Tree, Tree]]:
    if _is_pair(data):
        yield _as_batch(tuple(data), what)
        return
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (list, tuple, Mapping, torch.utils.data.DataLoader)):
        data = torch.utils.data.DataLoader(data, batch_size=256, shuffle=False)
    if not isinstance(data, Iterable):
        raise InvalidInput(f"{what} data must be a pair (inputs, targets), a Dataset, a DataLoader or an iterable of such pairs, not {type(data).__name__}.")
    for batch in data:
        yield _as_batch(batch, what)


def _is_pair(data: Any) -> bool:
    """Whether these are inputs and targets, not a list of batches: a tuple of two, or a list of two arrays."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or (isinstance(data, list) and not all(isinstance(part, (Tensor, np.ndarray)) for part in data)):
        return False
    return all(isinstance(next(iter(tree_flatten(part)[0]), None), (Tensor, np.ndarray)) for part in data)


def _as_batch(batch: Any, what: str) -> tuple[Tree, Tree]:
    if isinstance(batch, Mapping) and "labels" in batch:
        batch = ({key: value for key, value in batch.items() if key != "labels"}, batch["labels"])
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InvalidInput(f"A batch of {what} data must be (inputs, targets), or a dict with `labels`; a {type(batch).__name__} came. Wrap the loader so that it yields pairs.")
    inputs, targets = (_as_tensors(part) for part in batch)
    if length(inputs) != length(targets):
        raise InvalidInput(f"A batch of {what} data has {length(inputs)} inputs and {length(targets)} targets; give one target for each input.")
    return inputs, targets


def _as_tensors(part: Any) -> Tree:
    if isinstance(part, Mapping):
        return {str(key): _as_tensors(value) for key, value in part.items()}
    if isinstance(part, (tuple, list)):
        return tuple(_as_tensors(value) for value in part)
    if isinstance(part, np.ndarray) and part.dtype == object:
        raise InvalidInput("An array of Python objects cannot be read; give numbers.")
    return torch.as_tensor(part).detach().cpu()


@contextlib.contextmanager
def _generators_kept(data: Any) -> Iterator[None]:
    """Put the generators that a loader was given back on leaving: reading it leaves no trace."""
    owners = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    generators = {id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), Generator)}
    states = {key: g.get_state() for key, g in generators.items()}
    try:
        yield
    finally:
        for key, state in states.items():
            generators[key].set_state(state)


class _Columns:
    """Batches gathered into blocks of equal shapes; past MAPPED_BYTES a block's tensors go to files and are mapped."""

    def __init__(self, what: str) -> None:
        self.what, self.groups, self.held, self.count = what, [], 0, 0  # type: ignore[var-annotated]
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def append(self, inputs: Tree, targets: Tree) -> None:
        flat, spec = tree_flatten((inputs, targets))
        for leaf in leaves(inputs):
            if leaf.is_floating_point() and not torch.isfinite(leaf).all():
                bad = int((~torch.isfinite(leaf.reshape(len(leaf), -1)).all(1)).nonzero()[0])
                raise InvalidInput(f"{self.what} input {self.count + bad} has a NaN or infinite value. Remove or mend that example.")
        for leaf in leaves(targets):
            if leaf.is_floating_point() and not torch.isfinite(leaf).all():
                bad = int((~torch.isfinite(leaf.reshape(len(leaf), -1)).all(1)).nonzero()[0])
                raise InvalidInput(f"{self.what} target {self.count + bad} has a NaN or infinite value. Remove or mend that example.")
        self.count += length(inputs)
        shape = (spec, tuple((leaf.shape[1:], leaf.dtype) for leaf in flat))
        if not self.groups or self.groups[-1][0] != shape:
            self.groups.append((shape, [[] for _ in flat], [None] * len(flat)))
        for column, leaf in zip(self.groups[-1][1], flat, strict=True):
            column.append(leaf.clone())
            self.held += leaf.numel() * leaf.element_size()
        if self.held > MAPPED_BYTES:
            self.spill()

    def spill(self) -> None:
        self.folder = self.folder or tempfile.TemporaryDirectory(prefix="gnomon-")
        for number, (_, columns, files) in enumerate(self.groups):
            for position, column in enumerate(columns):
                if column:
                    files[position] = files[position] or Path(self.folder.name) / f"{number}-{position}"
                    with open(files[position], "ab") as file:
                        for leaf in column:
                            file.write(leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
                    column.clear()
        self.held = 0

    def dataset(self) -> Dataset:
        if not self.count:
            raise InvalidInput(f"The {self.what} data are empty. Give at least one batch of (inputs, targets).")
        if self.folder is not None:
            self.spill()
        blocks = []
        for (spec, kinds), columns, files in self.groups:
            flat = []
            for (shape, dtype), column, file in zip(kinds, columns, files, strict=True):
                if file is None:
                    flat.append(torch.cat(column))
                else:
                    size = file.stat().st_size // torch.empty(0, dtype=dtype).element_size()
                    flat.append(torch.from_file(str(file), shared=False, size=size, dtype=dtype).reshape(-1, *shape))
            blocks.append(Block(*tree_unflatten(flat, spec)))
        return Dataset(tuple(block for block in blocks if len(block)), self.count, self.folder)
