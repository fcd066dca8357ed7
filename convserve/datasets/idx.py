"""MNIST in its own IDX format, gzipped or not: `mnist:DIR`.

An IDX file is a big-endian header, 0x00 0x00, 0x08 (unsigned byte), the number of dimensions, a
32-bit size for each of them, and then the bytes themselves.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convserve.datasets.base import Dataset, Split, build
from convserve.errors import DatasetError

__all__ = ["load_mnist", "read_idx"]

GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The uint8 array of an IDX file with that many dimensions; DatasetError on any fault."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _shape(path, header, dimensions)
            size = math.prod(shape)
            # One byte more than announced: enough to see that the file is too long.
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: can't be read: {error}") from error
    except (MemoryError, OverflowError) as error:
        raise DatasetError(f"{path}: the header announces {shape}, too much to read") from error
    if len(data) != size:
        have = "more" if len(data) > size else f"{len(data)}"
        raise DatasetError(f"{path}: the header announces {shape} = {size} bytes, it holds {have}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    magic = bytes((0, 0, 8, dimensions))
    if header[:4] != magic:
        raise DatasetError(
            f"{path}: not an IDX file of {dimensions} dimensions of unsigned bytes: "
            f"it begins with {header[:4].hex() or 'nothing'}, expected {magic.hex()}"
        )
    if len(header) < 4 + 4 * dimensions:
        raise DatasetError(f"{path}: the IDX header is cut off after {len(header)} bytes")
    return struct.unpack(f">{dimensions}I", header[4:])


def load_mnist(folder: Path, name: str, *, validation: float | None, seed: int) -> Dataset:
    """A folder with the four (or, without test set, two) files of MNIST or a data set like it."""
    train = _read_part(folder, "train")
    if train is None:
        raise DatasetError(f"{folder}: no train-images-idx3-ubyte (or .gz) there")
    labels = tuple(str(i) for i in range(int(train.y.max(initial=0)) + 1))
    return build(name, train, _read_part(folder, "t10k"), labels, validation=validation, seed=seed)


def _read_part(folder: Path, part: str) -> Split | None:
    images = _find(folder, f"{part}-images", "idx3-ubyte")
    labels = _find(folder, f"{part}-labels", "idx1-ubyte")
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        missing = "images-idx3-ubyte" if images is None else "labels-idx1-ubyte"
        raise DatasetError(f"{folder}: {part}-{missing} (or .gz) is missing")
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if len(x) != len(y):
        raise DatasetError(f"{images} holds {len(x)} images and {labels} {len(y)} labels")
    return Split(x[:, None], y.astype(np.int64))


def _find(folder: Path, stem: str, kind: str) -> Path | None:
    names = (f"{stem}{dash}{kind}{end}" for dash in "-." for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)
