"""Kernels on disk: filled tile by tile, taken up again where a run was cut, multiplied without being loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from gnomon.core.environment import code_hash, fixed_threads
from gnomon.core.errors import CannotWrite, InvalidInput, NotEnoughMemory
from gnomon.core.task import Pool, Task
from gnomon.theory.infinite.matrix import DiskMatrix, KernelFunction, put, start_file, write_all

SCHEMA = "gnomon/kernel/1"
SIDE = 1024
"""Rows of a tile, at most."""
PARTS = 8
"""Tiles along a side, at least, so that a run that is cut loses little."""
PROCESS = 2**29
"""Bytes of a worker process before it does anything, and those of the operations on a tile."""
COPIES = 4
"""Copies of a tile that are held at once, at most: the kernel as it is made, its transpose, what is written."""

Tile = tuple[int, int]
Progress = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class DiskCost:
    """What filling a kernel takes from here on: seconds of computing on this machine as it is (a disk that is slow to confirm what is written comes on top), bytes on disk in all, bytes of memory at the peak in all processes."""

    tiles: int
    left: int
    seconds: float
    disk: int
    memory: int

    def __str__(self) -> str:
        return f"{self.left} of {self.tiles} tiles to make, about {self.seconds:,.0f} s, {self.disk / 1e9:.3g} GB on disk, {self.memory / 1e9:.2g} GB of memory"


def on_disk(
    kernel: KernelFunction, x1: Tensor, x2: Tensor | None = None, *, folder: str | Path, kind: str | tuple[str, ...] = "ntk", memory: int = 2**31,
    tile: int | None = None, pool: Pool | None = None,
) -> DiskKernel:  # fmt: skip
    """A kernel between two sets of examples, or of one with itself (each pair once), to be filled in a folder tile by tile.

    `.cost()` says beforehand what it takes, `.run()` fills what is not there yet and returns the matrix, a `DiskMatrix` a kind.  The folder holds `<kind>.npy`, the kernel in the format
    of numpy; `done.txt`, a line with the digest of each tile once that is on disk; `manifest.json`, what the kernel was made of.  A run that was cut, by whatever means, goes on where
    it was, to the same bits: tiles whose bytes are not those of their line are made again.  `pool` (of `gnomon.run.pool`, or Ray over a folder that all nodes see) makes `pool.jobs`
    tiles at once; without one they are made in this process.

    Shapes: as the kernel's, without positions: (n1, n2).   Error: the kernel's.   Assumes: nothing about the kernel but that it is called as `Kernel` is.
    Cost: see `.cost()`; the memory of all processes together stays below `memory`, which chooses the side of a `tile` where none is given.
    Raises: InvalidInput where the folder holds another kernel, saying what differs; NotEnoughMemory where not even the smallest tile fits.
    """
    return DiskKernel(kernel, x1, x2, folder=Path(folder), kind=kind, memory=memory, tile=tile, pool=pool)


class DiskKernel:
    """A kernel in a folder, as far as it is filled; see `on_disk`."""

    def __init__(
        self, kernel: KernelFunction, x1: Tensor, x2: Tensor | None, *, folder: Path, kind: str | tuple[str, ...], memory: int, tile: int | None, pool: Pool | None
    ) -> None:
        self.single, self.kinds = isinstance(kind, str), (kind,) if isinstance(kind, str) else tuple(kind)
        self.x1, self.x2 = x1, None if x2 is x1 else x2
        self.folder, self.pool, self.memory = folder, pool, memory
        self.threads = torch.get_num_threads() if pool is None else pool.threads
        self.kernel = kernel.within(memory) if hasattr(kernel, "within") else kernel
        if pool is not None and x1.device.type != "cpu":
            raise InvalidInput(f"A pool works on the CPU, and the data are on {x1.device}; fill the kernel without a pool, or move the data with .cpu().")
        known = self._manifest()
        if known is not None and pool is None:
            self.threads = int(known["threads"])
        made = self._made_of()
        shape, dtype = made["shape"], torch.zeros((), dtype=getattr(torch, made["dtype"])).numpy().dtype
        self.shape, self.dtype = (int(shape[0]), int(shape[1])), dtype
        self.tile = self._side(int(known["tile"]) if known is not None and tile is None else tile)
        self.manifest = {"schema": SCHEMA, "tile": self.tile, "threads": self.threads, **made}
        if known is not None:
            self._compare(known)

    def cost(self) -> DiskCost:
        """Seconds (by timing a small part), bytes on disk and bytes of memory.  Cost: about a second, or two pairs of examples where that takes longer."""
        left, tiles = self._left(), self._tiles()
        pairs = sum(self._pairs(at) for at in left)
        disk = len(self.kinds) * self.shape[0] * self.shape[1] * self.dtype.itemsize
        jobs = self.pool.jobs if self.pool is not None else 1
        return DiskCost(len(tiles), len(left), pairs * self._seconds_a_pair() / jobs, disk, self._bytes(self.tile))

    def run(self, progress: Progress | None = None) -> DiskMatrix | tuple[DiskMatrix, ...]:
        """Fill what is left.  `progress` is called with the part done and what was done.

        Raises: CannotWrite for a full disk or another place that cannot be written; what is done stays, and the next run goes on there.
        """
        try:
            self._place()
            with _locked(self.folder):
                self._start()
                self._fill(self._left(), progress or (lambda part, text: None))
        except OSError as error:
            if isinstance(error, CannotWrite):
                raise
            raise CannotWrite(
                f"Cannot write to {self.folder}: {error.strerror or str(error).strip().rpartition(chr(10))[2]}. The tiles that are done stay there, and the same call goes on with the others once there is room "
                f"({self._missing() / 1e9:.3g} GB are to be written); or delete the folder."
            ) from error
        found = tuple(DiskMatrix(self.folder / f"{kind}.npy") for kind in self.kinds)
        return found[0] if self.single else found

    def _made_of(self) -> dict[str, Any]:
        """What fixes the bits of the kernel: digests of the data, the network as it prints and as it maps two examples, the code."""
        with fixed_threads(self.threads):
            probe = self.kernel(self.x1[:2], None if self.x2 is None else self.x2[:2], self.kinds)
        for part in probe:
            if part.ndim != 2:
                raise InvalidInput(
                    f"The network's output has positions (the kernel of two examples has shape {tuple(part.shape)}); a matrix on disk needs one output vector an example."
                )
        network = str(getattr(self.kernel, "module", self.kernel.__class__.__name__))
        second = self.x1 if self.x2 is None else self.x2
        return {
            "x1": digest(self.x1), "x2": None if self.x2 is None else digest(self.x2), "shape": [len(self.x1), len(second)], "kinds": list(self.kinds),
            "dtype": str(probe[0].dtype).removeprefix("torch."), "device": self.x1.device.type,
            "network": hashlib.sha256(network.encode() + b"".join(digest(part).encode() for part in probe)).hexdigest(), "code": code_hash(), "torch": torch.__version__,
        }  # fmt: skip

    def _manifest(self) -> dict[str, Any] | None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema"] == SCHEMA and found["tile"] > 0 and found["threads"] > 0:
                return cast(dict[str, Any], found)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InvalidInput(f"{path} is not the manifest of a kernel that this gnomon can read; give another folder, or delete this one.")

    def _compare(self, known: dict[str, Any]) -> None:
        names = {
            "x1": "the data x1", "x2": "the data x2", "shape": "the number of examples", "kinds": "the kinds of kernel", "dtype": "the dtype", "device": "the device",
            "network": "the network, its variances or its parametrisation", "code": "gnomon's own code", "torch": "the version of torch", "tile": "the side of a tile", "threads": "the number of threads",
        }  # fmt: skip
        off = {name for name in names if known.get(name) != self.manifest[name]}
        if off & {"x1", "x2", "dtype", "kinds"}:
            off -= {"network"}  # its digest is that of these kernels of two of the examples
        differ = [text for name, text in names.items() if name in off]
        if differ:
            raise InvalidInput(f"{self.folder} holds another kernel: {' and '.join(differ)} differ. Give another folder, or delete this one to make it anew.")

    def _bytes(self, tile: int) -> int:
        """Memory at the peak: this process as it is (or workers), the data, and the tiles in work."""
        features, size = self.x1[0].numel(), self.dtype.itemsize
        work = COPIES * len(self.kinds) * tile**2 * size + 4 * tile * features * self.x1.element_size()
        if self.pool is None:
            return resident() + PROCESS // 4 + work
        return resident() + self.pool.jobs * (PROCESS + work)

    def _side(self, tile: int | None) -> int:
        if tile is not None and tile < 1:
            raise InvalidInput(f"tile is the side of a tile and must be at least 1, not {tile}.")
        longest = max(self.shape)
        side = tile if tile is not None else min(SIDE, math.ceil(longest / PARTS))
        while self._bytes(side) > self.memory:
            if side == 1 or tile is not None:
                raise NotEnoughMemory(
                    f"Tiles of {side} x {side} examples take {self._bytes(side) / 1e9:.3g} GB in all processes, and {self.memory / 1e9:.3g} GB are allowed. "
                    f"Give more `memory`{', a smaller `tile`' if tile is not None else ''} or a pool of fewer jobs."
                )
            side = (side + 1) // 2
        return side

    def _tiles(self) -> list[Tile]:
        n1, n2 = self.shape
        return [(i, j) for i in range(0, n1, self.tile) for j in range(i if self.x2 is None else 0, n2, self.tile)]

    def _pairs(self, at: Tile) -> float:
        rows, columns = min(self.tile, self.shape[0] - at[0]), min(self.tile, self.shape[1] - at[1])
        return rows * columns / (2 if self.x2 is None and at[0] == at[1] else 1)

    def _seconds_a_pair(self) -> float:
        second, m = self.x1 if self.x2 is None else self.x2, 1
        most = max(min(self.tile, len(self.x1), len(second)), 1)
        with fixed_threads(self.threads):
            while True:
                spent = math.inf
                for _ in range(2):  # the first call of a size may wait for memory, or for other programs
                    tick = time.perf_counter()
                    self.kernel(self.x1[:m], second[-m:].clone(), self.kinds)
                    spent = min(spent, time.perf_counter() - tick)
                    if spent <= 0.1 and m < most:
                        break
                if spent > 0.1 or m == most:
                    return spent / m**2
                m = min(2 * m, most)

    def _missing(self) -> float:
        return sum(self._pairs(at) for at in self._left()) * len(self.kinds) * self.dtype.itemsize * (2 if self.x2 is None else 1)

    def _left(self) -> list[Tile]:
        """The tiles that are not on disk as their line in the journal says."""
        done = _journal(self.folder / "done.txt")
        if not done:
            return self._tiles()
        try:
            matrices = [DiskMatrix(self.folder / f"{kind}.npy") for kind in self.kinds]
        except InvalidInput:
            return self._tiles()

        def there(at: Tile) -> bool:
            if at not in done:
                return False
            rows, columns = _span(at, self.tile, self.shape)
            parts = [matrix.block(rows, columns) for matrix in matrices]
            if self.x2 is None and at[0] != at[1]:
                parts += [matrix.block(columns, rows).T for matrix in matrices]
                return done[at] == [digest(part) for part in parts[: len(matrices)]] == [digest(part) for part in parts[len(matrices) :]]
            return done[at] == [digest(part) for part in parts]

        return [at for at in self._tiles() if not there(at)]

    def _place(self) -> None:
        """Make the folder, where it may be made and there is room."""
        if (self.folder / "manifest.json").exists():
            return
        ours = {"manifest.part", "lock", "nngp.npy", "ntk.npy"}  # a run that was cut before its manifest leaves no more than these
        if self.folder.exists() and (not self.folder.is_dir() or {path.name for path in self.folder.iterdir()} - ours):
            raise CannotWrite(f"{self.folder} is not an empty folder, and holds no kernel; nothing was changed. Give another folder.")
        disk = len(self.kinds) * self.shape[0] * self.shape[1] * self.dtype.itemsize
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free + sum(path.stat().st_blocks * 512 for path in self.folder.glob("*.npy"))
        if disk > free:
            raise CannotWrite(
                f"The kernel takes {disk / 1e9:.3g} GB on disk, and {free / 1e9:.3g} GB are free at {self.folder}; nothing was written. Free some space, or give another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def _start(self) -> None:
        """Make files of full size, so that a disk that is too small says so before anything is computed; anew where they were cut off."""
        known = self._manifest()
        if known is not None:
            self._compare(known)  # another run may have made it since
            try:
                whole = all(DiskMatrix(self.folder / f"{kind}.npy").shape == self.shape for kind in self.kinds)
            except InvalidInput:
                whole = False
            if whole:
                return
            (self.folder / "done.txt").unlink(missing_ok=True)
        try:
            for kind in self.kinds:
                start_file(self.folder / f"{kind}.npy", self.shape, self.dtype)
            temporary = self.folder / "manifest.part"
            temporary.write_text(json.dumps(self.manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(temporary, self.folder / "manifest.json")
        except OSError:
            for name in ("manifest.part", *(f"{kind}.npy" for kind in self.kinds)):
                (self.folder / name).unlink(missing_ok=True)
            raise

    def _fill(self, left: Sequence[Tile], progress: Progress) -> None:
        total = len(self._tiles())
        with open(self.folder / "done.txt", "ab", buffering=0) as journal:
            _drop_torn_line(self.folder / "done.txt")
            for count, (at, digests) in enumerate(self._made(left), start=total - len(left) + 1):
                write_all(journal, f"{at[0]} {at[1]} {' '.join(digests)}\n".encode())
                os.fsync(journal.fileno())
                progress(count / total, f"tile {count} of {total}")

    def _made(self, left: Sequence[Tile]) -> Iterator[tuple[Tile, list[str]]]:
        """The digests of tiles, as each is on disk."""
        if self.pool is None:
            with fixed_threads(self.threads):
                for at in left:
                    yield at, _make(self.kernel, self.x1, self.x2, self.folder, self.kinds, self.tile, at)
            return
        try:
            # for our own workers, which read no pickle from a file; once here and once in each of them, not once a tile
            network = pickle.dumps(self.kernel)
        except Exception as error:
            raise InvalidInput(f"The network cannot be sent to another process ({error}); fill the kernel without a pool.") from error
        inputs = [(self.folder / f"{name}.npy", x) for name, x in (("x1", self.x1), ("x2", self.x2)) if x is not None]
        try:
            for path, x in inputs:
                np.save(path, x.detach().numpy())
            shared = {"network": network, "folder": str(self.folder.absolute()), "kinds": self.kinds, "tile": self.tile}
            for position, digests in self.pool.run([Task(f"{__name__}:fill_tile", shared | {"at": at}) for at in left]):
                yield left[position], digests
        finally:
            for path, _ in inputs:
                path.unlink(missing_ok=True)


def fill_tile(network: bytes, folder: str, kinds: tuple[str, ...], tile: int, at: Tile) -> list[str]:
    """Make one tile in a worker process and return its digests.  Cost: the tile's part of `DiskKernel.cost`."""
    paths = [Path(folder) / f"{name}.npy" for name in ("x1", "x2")]
    x1, x2 = (np.load(path, mmap_mode="r") if path.exists() else None for path in paths)
    return _make(_kernel(network), x1, x2, Path(folder), kinds, tile, at)


@lru_cache(maxsize=1)
def _kernel(network: bytes) -> KernelFunction:
    return cast(KernelFunction, pickle.loads(network))


def _make(kernel: KernelFunction, x1: Any, x2: Any, folder: Path, kinds: tuple[str, ...], tile: int, at: Tile) -> list[str]:
    """Compute one tile, write it and its mirror image, and wait until the disk has them."""
    shape = (len(x1), len(x1 if x2 is None else x2))
    rows, columns = _span(at, tile, shape)
    alone = x2 is None and at[0] == at[1]
    made = kernel(_part(x1, rows), None if alone else _part(x1 if x2 is None else x2, columns), kinds)
    digests = []
    for kind, part in zip(kinds, made, strict=True):
        part = part.cpu()
        with open(folder / f"{kind}.npy", "r+b", buffering=0) as file:
            put(file, part, rows.start, columns.start)
            if x2 is None and not alone:
                put(file, part.T, columns.start, rows.start)
            os.fsync(file.fileno())
        digests.append(digest(part))
    return digests


def _part(x: Any, at: slice) -> Tensor:
    return x[at] if isinstance(x, Tensor) else torch.from_numpy(np.array(x[at]))


def _span(at: Tile, tile: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    return slice(at[0], min(at[0] + tile, shape[0])), slice(at[1], min(at[1] + tile, shape[1]))


def digest(x: Tensor) -> str:
    """The bytes of a tensor, told apart."""
    return hashlib.sha256(np.ascontiguousarray(x.detach().cpu().numpy()).data).hexdigest()


def _journal(path: Path) -> dict[Tile, list[str]]:
    """Digests by tile; a line that was cut off or spoilt does not count."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
    found = (re.fullmatch(r"(\d+) (\d+)((?: [0-9a-f]{64})+)", line) for line in lines)
    return {(int(match[1]), int(match[2])): match[3].split() for match in found if match}


def _drop_torn_line(path: Path) -> None:
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        os.truncate(path, whole.rfind(b"\n") + 1)


def resident() -> int:
    """Bytes that this process holds now, or what it takes at least where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return PROCESS


class _locked:
    """Keeps a second run out of the folder while this one fills it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.file = folder / "lock", cast("BinaryIO | None", None)

    def __enter__(self) -> None:
        try:
            import fcntl
        except ImportError:
            return
        self.file = open(self.path, "wb")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                raise FileNotFoundError(self.path)  # another run ended, and a third one may have begun
        except OSError as error:
            self.file.close()
            raise CannotWrite(f"Another run is filling {self.path.parent}; wait for its end, or give another folder.") from error

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()
