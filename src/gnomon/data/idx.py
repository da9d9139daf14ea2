"""The IDX format of MNIST and Fashion-MNIST: found in folders, or downloaded once with checksums."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import math
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.core.environment import cache_folder
from gnomon.core.errors import InvalidInput

logger = logging.getLogger(__name__)
UNSIGNED_BYTE = 0x08
SECONDS = 60


@dataclass(frozen=True)
class Checksums:
    """MD5 of a file as it is downloaded (gzip), and of its contents; whoever packs it again changes the first only."""

    packed: str
    contents: str


@dataclass(frozen=True)
class Archive:
    """A data set of four IDX files: its name, the address of its folder, and the checksums of train-images, train-labels, t10k-images and t10k-labels."""

    name: str
    title: str
    mirror: str
    files: dict[str, Checksums]
    system: str | None = None


MNIST = Archive(
    "mnist", "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte": Checksums("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": Checksums("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": Checksums("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": Checksums("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    },
)  # fmt: skip
FASHION_MNIST = Archive(
    "fashion-mnist", "Fashion-MNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    {
        "train-images-idx3-ubyte": Checksums("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        "train-labels-idx1-ubyte": Checksums("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
        "t10k-images-idx3-ubyte": Checksums("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
        "t10k-labels-idx1-ubyte": Checksums("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
    },
    system="/usr/share/datasets/fashion-mnist",
)  # fmt: skip


def parse(raw: bytes, where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of unsigned bytes in an IDX file: two zero bytes, the type, the number of dimensions, each size (big-endian), the bytes.

    Raises: InvalidInput for another format, another type than unsigned bytes, or a file cut short or too long.
    """
    if len(raw) < 4 or raw[0] or raw[1]:
        raise InvalidInput(f"{where} is not an IDX file: it does not begin with two zero bytes.")
    if raw[2] != UNSIGNED_BYTE:
        raise InvalidInput(f"{where} holds IDX type 0x{raw[2]:02x}; only unsigned bytes (0x08) are read.")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise InvalidInput(f"{where} is cut short: its header needs {start} bytes, {len(raw)} are there. Fetch the file again.")
    shape = tuple(int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(raw[3]))
    if len(raw) - start != math.prod(shape):
        raise InvalidInput(
            f"{where} is {'cut short' if len(raw) - start < math.prod(shape) else 'too long'}: {math.prod(shape):,} bytes expected for shape {shape}, {len(raw) - start:,} came. Fetch the file again."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def arrays(archive: Archive) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    """The four arrays of a data set by file name, from the first folder that has them: GNOMON_DATA, the system's, the cache; else downloaded to the cache.

    Shapes: images (N, height, width), labels (N,).
    Raises: InvalidInput for a broken file, a wrong checksum, or a download that fails.
    """
    folders = [Path(os.environ["GNOMON_DATA"]) / archive.name] if os.environ.get("GNOMON_DATA") else []
    folders += [Path(archive.system)] if archive.system else []
    folders.append(cache_folder() / "data" / archive.name)
    return {name: parse(_contents(_place(archive, name, folders), checksums), f"{archive.title}'s {name}") for name, checksums in archive.files.items()}


def _place(archive: Archive, name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    return _download(archive, name, folders[-1] / f"{name}.gz")


def _contents(path: Path, checksums: Checksums) -> bytes:
    """A file unpacked, once its checksum is right."""
    advice = f"Delete it, so that it is fetched again, or put the right file in its place: {path}"
    try:
        packed = path.read_bytes()
        raw = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{path.name} is not a whole gzip file ({error}). {advice}") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != checksums.contents:
        parse(raw, str(path))
        raise InvalidInput(f"{path.name} has another checksum than the published file: MD5 of the contents {found}, expected {checksums.contents}. {advice}")
    return raw


def _download(archive: Archive, name: str, path: Path) -> Path:
    """Fetch a file to the cache; it is put in place whole, and only with the right checksum."""
    address, by_hand = f"{archive.mirror}{name}.gz", f"Or put the file into {path.parent}, or into a folder {archive.name}/ under the one that GNOMON_DATA names."
    logger.info("downloading %s", address)
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            packed = answer.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise InvalidInput(f"{archive.title} is not on this machine, and {address} cannot be fetched ({getattr(error, 'reason', error)}). Try again. {by_hand}") from error
    found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if found != archive.files[name].packed:
        raise InvalidInput(f"{address} came with another checksum: MD5 {found}, expected {archive.files[name].packed}; it was not kept. Try again. {by_hand}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(packed)
        os.replace(temporary, path)
    except OSError as error:
        raise InvalidInput(f"{archive.title} cannot be kept in {path.parent} ({error.strerror}). Choose another cache with GNOMON_CACHE. {by_hand}") from error
    return path
