"""How tensors come to compiled loops: as arrays, and in parts where torch may use several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

SHARE = 1 << 17
"""Numbers made from which on threads share the work."""


def array(x: Tensor, shape: tuple[int, ...]) -> Any:
    """The numbers of a tensor, in order, as an array; the tensor's own where they are in order already."""
    return x.detach().reshape(shape).contiguous().numpy()


def shared(work: Callable[[int, int], None], rows: int, length: int) -> None:
    """Call work(first, last but one) for so many rows of that length: in as many parts as torch has threads where that is worth it."""
    threads = torch.get_num_threads()
    if threads == 1 or rows * length < SHARE:
        work(0, rows)
        return
    ends = [rows * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))
