"""A matrix in a file of numpy's format that is read block by block: products, rows and the diagonal, without loading it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gnomon.core.errors import InvalidInput

KernelFunction = Callable[..., Any]
"""K(x1, x2, kind): a tensor for one kind, a tuple for a tuple of kinds."""
BLOCK = 2**22
"""Bytes that are read at a time."""


class DiskMatrix:
    """A matrix of float32 or float64 in a `.npy` file, read and never loaded; `numpy.load(path, mmap_mode="r")` reads it too.

    Shapes: (n, m).   Cost: a product reads the file once and holds some tens of MB.   Raises: InvalidInput where the file is no such matrix, or was cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                self.offset = file.tell()
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{self.path} is not a matrix in numpy's format: {error}") from error
        if len(shape) != 2 or fortran or dtype not in (np.float32, np.float64) or self.path.stat().st_size < self.offset + shape[0] * shape[1] * dtype.itemsize:
            raise InvalidInput(f"{self.path} does not hold a whole matrix of float32 or float64 by rows (shape {shape}, {dtype}); fill it again.")
        self.shape: tuple[int, int] = (int(shape[0]), int(shape[1]))
        self.dtype: np.dtype[Any] = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def block(self, rows: slice, columns: slice | None = None) -> Float[Tensor, "rows columns"]:
        """Some consecutive rows and columns, in the file's dtype."""
        first, last, _ = rows.indices(self.shape[0])
        left, right, _ = (columns or slice(None)).indices(self.shape[1])
        out = np.empty((max(last - first, 0), max(right - left, 0)), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            if left == 0 and right == self.shape[1]:
                self._read(file, out, first, 0)
            else:
                for i in range(len(out)):
                    self._read(file, out[i], first + i, left)
        return torch.from_numpy(out)

    def _read(self, file: BinaryIO, into: np.ndarray[Any, np.dtype[Any]], row: int, column: int) -> None:
        file.seek(self.offset + (row * self.shape[1] + column) * self.dtype.itemsize)
        rest = into.reshape(-1).data.cast("B") if into.size else memoryview(b"")
        while len(rest):
            count = file.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise InvalidInput(f"{self.path} ends in the middle of row {row}; fill it again.")
            rest = rest[count:]

    def __getitem__(self, index: int) -> Float[Tensor, "m"]:
        """One row."""
        return self.block(slice(index, index + 1))[0]

    def __matmul__(self, x: Float[Tensor, "m ..."]) -> Float64[Tensor, "n ..."]:
        """The product with a vector or with several, summed in float64; the file is read once."""
        if x.ndim not in (1, 2) or len(x) != self.shape[1]:
            raise InvalidInput(f"A matrix of {self.shape[0]} x {self.shape[1]} is multiplied by {self.shape[1]} numbers, or rows of them, not by shape {tuple(x.shape)}.")
        right, step = x.to("cpu", torch.float64), max(1, BLOCK // (self.shape[1] * self.dtype.itemsize))
        out = torch.empty(self.shape[0], *x.shape[1:], dtype=torch.float64)
        for start in range(0, self.shape[0], step):
            out[start : start + step] = self.block(slice(start, start + step)).double() @ right
        return out

    def diagonal(self) -> Float64[Tensor, "n"]:
        """The diagonal.  Cost: a number a row."""
        with open(self.path, "rb", buffering=0) as file:
            out = np.empty(min(self.shape), self.dtype)
            for i in range(len(out)):
                self._read(file, out[i : i + 1], i, i)
        return torch.from_numpy(out).double()

    def dense(self) -> Float64[Tensor, "n m"]:
        """The whole matrix in memory, in float64.  Cost: 8 n m bytes."""
        return self.block(slice(None)).double()


def start_file(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """A file of full size for a matrix, its room on the disk taken.  Raises: OSError where there is none."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        file.flush()
        size = file.tell() + shape[0] * shape[1] * dtype.itemsize
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
        os.fsync(file.fileno())


def put(file: BinaryIO, part: Tensor, row: int, column: int) -> None:
    """Write a block of a matrix into its open file.  Raises: OSError for a full disk."""
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset, block = file.tell(), np.ascontiguousarray(part.numpy())
    for i in range(len(block)):
        file.seek(offset + ((row + i) * shape[1] + column) * dtype.itemsize)
        write_all(file, block[i].data.cast("B"))


def write_all(file: BinaryIO, rest: bytes | memoryview) -> None:
    """Write all of it to a file without a buffer, which may take a part at a time.  Raises: OSError for a full disk."""
    while len(rest):
        rest = rest[file.write(rest) :]
