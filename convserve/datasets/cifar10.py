"""CIFAR-10 in its original batches, binary (`*.bin`) or Python pickles: `cifar10:DIR`.

Pickles can run any code when they are loaded. Those of CIFAR-10 hold a dict with one NumPy array,
so the reader knows nothing but plain containers and stand-ins that record an array's state.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from convserve.datasets.base import Dataset, Labels, Pixels, Split, build
from convserve.errors import DatasetError

__all__ = ["load_cifar10"]

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
ORIGINAL = 10_000  # images in each of the original batches
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS  # binary batches: the label's byte, then the image


def load_cifar10(folder: Path, name: str, *, validation: float | None, seed: int) -> Dataset:
    """A folder with data_batch_1 … data_batch_5 and test_batch, all with or all without `.bin`.

    The five may be shorter than the original ones, of 10,000 images, but all of one length: a
    binary batch does not say how many images it has, and may have been cut off between two.
    """
    binary = (folder / "data_batch_1.bin").is_file()
    suffix, read = (".bin", _read_binary) if binary else ("", _read_pickle)
    paths = [folder / f"{batch}{suffix}" for batch in (*TRAIN_BATCHES, "test_batch")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(f"{folder}: missing {', '.join(missing)} of CIFAR-10's six batches")
    batches = [read(path) for path in paths]
    _check_counts(folder, {path.name: len(y) for path, (_, y) in zip(paths, batches, strict=True)})
    x = np.concatenate([images for images, _ in batches[:-1]])
    y = np.concatenate([labels for _, labels in batches[:-1]])
    test = Split(*batches[-1])
    return build(name, Split(x, y), test, CLASSES, validation=validation, seed=seed)


def _check_counts(folder: Path, counts: dict[str, int]) -> None:
    *training, (test, tested) = counts.items()
    longest = max(count for _, count in training)
    short = [f"{name} has {count}" for name, count in training if count < longest]
    if longest == ORIGINAL and tested < ORIGINAL:
        short.append(f"{test} has {tested}")
    if short:
        raise DatasetError(
            f"{folder}: batches of other lengths than the others', of {longest} images: "
            f"{', '.join(short)}; were they cut off?"
        )


def _read_binary(path: Path) -> tuple[Pixels, Labels]:
    data = _read_bytes(path)
    if len(data) % RECORD or not data:
        raise DatasetError(
            f"{path}: {len(data)} bytes; a binary batch is a multiple of {RECORD} (label and image)"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64)


def _read_pickle(path: Path) -> tuple[Pixels, Labels]:
    try:
        batch = _BatchUnpickler(io.BytesIO(_read_bytes(path)), encoding="bytes").load()
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DatasetError(f"{path}: not a CIFAR-10 batch: {error or type(error)}") from error
    if not isinstance(batch, dict):
        raise DatasetError(f"{path}: holds a {type(batch).__name__}, expected a dict")
    fields = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
    array, labels = fields.get("data"), fields.get("labels")
    if not isinstance(array, _ArrayState) or not isinstance(labels, list):
        raise DatasetError(f"{path}: expected an array `data` and a list `labels`")
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise DatasetError(f"{path}: every label must be an integer in 0..{len(CLASSES) - 1}")
    pixels = array.data(path, len(labels))
    x = np.frombuffer(pixels, np.uint8).reshape(-1, *SHAPE)
    return x, np.array(labels, np.int64)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: can't be read: {error}") from error


class _DtypeState:
    """Stands in for numpy.dtype while unpickling."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: of no meaning for bytes."""


class _ArrayState:
    """Stands in for numpy.ndarray while unpickling, and keeps what its state says."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        """What `_reconstruct` is given is only a placeholder shape."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def data(self, path: Path, images: int) -> bytes:
        """The array's bytes, once it is known to be uint8 [images, 3072] in C order."""
        match self.state:
            case (
                _,
                (rows, columns),
                _DtypeState(arguments=(b"u1" | "u1", *_)),
                False | 0,
                bytes(data),
            ):
                if (rows, columns) == (images, PIXELS) and len(data) == rows * columns:
                    return data
        raise DatasetError(f"{path}: `data` must be uint8 [{images}, {PIXELS}]")


class _BatchUnpickler(pickle.Unpickler):
    """Loads dicts, lists, numbers, bytes and strings; array parts become stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return _ArrayState
            case ("numpy", "ndarray"):
                return _ArrayState
            case ("numpy", "dtype"):
                return _DtypeState
            case ("_codecs", "encode"):  # how Python 3 writes bytes for old pickle protocols
                return _encode_latin1
        raise DatasetError(f"refused to load {module}.{name} from a pickle")


def _encode_latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")
