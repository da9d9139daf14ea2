"""Chance: seeded CPU generators, draws that are the same in every dtype and on every device, and the one place that touches global state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor


def generator(seed: int, name: str = "", index: int = 0) -> Generator:
    """A CPU generator keyed by the hash of (seed, name, index)."""
    digest = hashlib.sha256(f"{int(seed)}/{name}/{int(index)}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))


def child(rng: Generator, name: str, index: int = 0) -> Generator:
    """A generator keyed by the hash of (seed of `rng`, name, index); it does not depend on what `rng` has drawn already."""
    return generator(rng.initial_seed(), name, index)


def normal(*shape: int, rng: Generator, like: Tensor | None = None) -> Tensor:
    """Standard normal numbers, drawn in float64 on the CPU, then cast and moved to `like`.  Shapes: `shape`."""
    return _as(torch.randn(*shape, generator=rng, dtype=torch.float64), like)


def uniform(*shape: int, rng: Generator, like: Tensor | None = None) -> Tensor:
    """Uniform numbers in [0, 1), drawn in float64 on the CPU, then cast and moved to `like`.  Shapes: `shape`."""
    return _as(torch.rand(*shape, generator=rng, dtype=torch.float64), like)


def rademacher(*shape: int, rng: Generator, like: Tensor | None = None) -> Tensor:
    """Signs -1 or +1 with equal chance, cast and moved to `like`.  Shapes: `shape`."""
    return _as(torch.randint(0, 2, shape, generator=rng).to(torch.float64) * 2 - 1, like)


def integers(high: int, *shape: int, rng: Generator) -> Tensor:
    """Integers in [0, high), on the CPU.  Shapes: `shape`."""
    return torch.randint(0, high, shape, generator=rng)


def permutation(n: int, *, rng: Generator) -> Tensor:
    """A random permutation of 0 .. n-1, on the CPU.  Shapes: (n,)."""
    return torch.randperm(n, generator=rng)


def _as(drawn: Tensor, like: Tensor | None) -> Tensor:
    return drawn if like is None else drawn.to(dtype=like.dtype, device=like.device)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put the global random state (torch on every device, numpy, random) back on leaving, whatever was drawn inside."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def scoped(rng: Generator) -> Iterator[None]:
    """Seed the global random state from `rng` for the block, and put it back on leaving.

    Modules and user factories are built, and loaders read, inside this.
    """
    seed = rng.initial_seed()
    with preserved():
        if torch.accelerator.is_available():
            torch.manual_seed(seed % (2**63))
        else:  # without one, `torch.manual_seed` spends milliseconds on remembering the seed for devices that never come
            torch.default_generator.manual_seed(seed % (2**63))
        np.random.seed(seed % (2**32))
        random.seed(seed)
        yield
