"""The examples that are held to watch a training: drawn once, and without a trace in the loader that they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from gnomon.core import dataset
from gnomon.core import rng as chance
from gnomon.core.dataset import Dataset
from gnomon.core.errors import InvalidInput


def hold(data: Any, *, examples: int, rng: Generator, what: str = "train") -> Dataset:
    """`examples` of a pair (inputs, targets), a Dataset, a DataLoader or a list of batches, drawn without replacement.

    Of a data set that can be indexed only those examples are read, through the loader's `collate_fn` and in this process: the loader's workers and
    generators are not touched.  Any other loader or iterable is read once from beginning to end.
    Raises: InvalidInput for an iterator, which the training would then lack, and as `core.dataset.read`.
    """
    if examples < 1:
        raise InvalidInput(f"examples must be at least 1, not {examples}.")
    if hasattr(data, "__next__"):
        raise InvalidInput(f"The {what} data are an iterator, which can be read only once and which training would then lack. Give the DataLoader, the Dataset or tensors.")
    source, collate, batch = data, None, 256
    members: torch.Tensor | None = None
    if isinstance(data, DataLoader) and not isinstance(data.dataset, IterableDataset) and data.batch_size is not None:
        sampler: Any = data.sampler
        if isinstance(sampler, (RandomSampler, SequentialSampler, DistributedSampler, SubsetRandomSampler)):
            source, collate, batch = data.dataset, data.collate_fn, data.batch_size
            members = torch.as_tensor(list(sampler.indices)) if isinstance(sampler, SubsetRandomSampler) else None
    if not _indexed(source):
        return dataset.read(data, rng=rng, what=what, examples=examples)
    members = torch.arange(len(source)) if members is None else members
    if not len(members):
        raise InvalidInput(f"The {what} data are empty. Give at least one batch of (inputs, targets).")
    chosen = members[chance.permutation(len(members), rng=chance.child(rng, "examples"))[:examples]].sort().values.tolist()
    held = dataset.read(DataLoader(Subset(source, chosen), batch_size=min(batch, examples), collate_fn=collate), rng=rng, what=what)
    return dataclasses.replace(held, population=len(members))


def _indexed(source: Any) -> bool:
    """Whether single examples can be asked for."""
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (list, tuple, Mapping, DataLoader, Dataset, IterableDataset))
