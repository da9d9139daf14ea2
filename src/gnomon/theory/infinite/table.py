"""What each place of a window reads, as tables for compiled loops over rows of covariances."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch

from gnomon.theory.infinite.window import Window

WASTE = 4
"""Columns made for one that is wanted, up to which those in between are made too."""


@functools.lru_cache(maxsize=256)
def windowed(windows: tuple[Window, ...], positions: tuple[int, ...], full: bool, dtype: torch.dtype) -> tuple[Any, ...]:
    """What each place of a window reads, of positions told by one number, for `loops.rectified`.

    The row read for every row made, -1 for none; the first column made, the last but one and how far ahead of it the one read is; the number of the mask of columns in between that read
    one, -1 where all do; the masks.  Columns made are counted as those of what is read, of which strides leave out some: last come those that are wanted, no numbers where they all are.
    Where columns are not all as far ahead (paddings that repeat data, large strides) the column read for every one made comes before, else no numbers.
    """
    shape, steps = tuple(window.length(n) for window, n in zip(windows, positions, strict=True)), [math.prod(positions[axis + 1 :]) for axis in range(len(positions))]
    own, found = _flat([np.arange(n) * w.stride for n, w in zip(shape, windows, strict=True)], steps)[0], []
    for place in itertools.product(*(range(window.size) for window in windows)):
        read, inside = _flat([w.read(n, at).numpy() for w, n, at in zip(windows, positions, place, strict=True)], steps)
        if inside.any():
            found.append((read, inside))
    rows = np.stack([np.where(inside, read, -1) for read, inside in found]) if full else np.zeros((len(found), 1), np.int64)
    if (np.diff(own) <= 0).any() or own[-1] >= WASTE * len(own) or any(np.ptp((read - own)[inside]) for read, inside in found):
        every, whether = np.zeros(len(found), np.int64), np.stack([inside for _, inside in found]).astype(_name(dtype))
        return rows, every, every, every, np.arange(len(found)), whether, np.stack([read.clip(0) for read, _ in found]).astype(np.uintp), np.zeros(0, np.uintp)
    runs, masks = [], list[Any]()
    for read, inside in found:
        first, last = own[inside][[0, -1]]
        wide = np.zeros(own[-1] + 1, bool)
        wide[own[inside]] = True
        whole = len(own[inside]) == len(own[(own >= first) & (own <= last)])
        runs.append((first, last + 1, read[inside][0] - first, -1 if whole else len(masks)))
        masks += [] if whole else [wide]
    return (
        rows,
        *np.array(runs).T.copy(),
        np.array(masks, _name(dtype)).reshape(len(masks), own[-1] + 1),
        np.zeros((0, 0), np.uintp),
        own.astype(np.uintp)[: 0 if own[-1] + 1 == len(own) else None],
    )


def _flat(coordinates: list[Any], steps: list[int]) -> tuple[Any, Any]:
    """The numbers of all positions with some coordinates along each axis, and whether none of them is -1."""
    grid = np.meshgrid(*coordinates, indexing="ij")
    return sum(part * step for part, step in zip(grid, steps, strict=True)).reshape(-1), np.logical_and.reduce([part >= 0 for part in grid]).reshape(-1)


@functools.lru_cache(maxsize=256)
def itself(rows: int, columns: int, dtype: torch.dtype) -> tuple[Any, ...]:
    """The same where every position reads itself, so many rows and columns of them."""
    zero, none = np.zeros(1, np.int64), np.zeros(0, np.uintp)
    return np.arange(rows)[None], zero, zero + columns, zero, zero - 1, np.zeros((0, columns), _name(dtype)), none[None, :0].reshape(0, 0), none


def _name(dtype: torch.dtype) -> str:
    return str(dtype).partition(".")[2]
