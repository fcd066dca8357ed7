"""What every data set becomes: uint8 images NCHW, integer labels, and the preprocessing to store.

reader → build(train, test, …) → hold-out, if asked for → mean and std of what is left → Dataset
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convserve.errors import DatasetError
from convserve.model_file import Preprocessing

__all__ = [
    "Dataset",
    "HeldOut",
    "Images",
    "Selection",
    "Split",
    "as_text",
    "build",
    "channel_statistics",
    "stratified_split",
]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

# Images per histogram pass: keeps the index array that bincount makes within the L2/L3 caches.
STATISTICS_CHUNK = 512


@dataclass(frozen=True, eq=False)
class Selection:
    """Some images of a file that may be larger than memory; copied only as they are asked for.

    base: uint8 [M, C, H, W]; rows: int64 [N], which of them. Slices and index arrays give arrays.
    """

    base: Pixels
    rows: NDArray[np.int64]

    ndim = 4

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.base.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Pixels]:
        return (self.base[row] for row in self.rows)

    def __getitem__(self, key: int | slice | NDArray[Any]) -> Pixels:
        return np.asarray(self.base[self.rows[key]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        return self[:] if dtype is None else self[:].astype(dtype)


Images: TypeAlias = Pixels | Selection


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: `x` uint8 [N, C, H, W] of raw 0–255 pixels, `y` int64 [N].

    x may be a memory-mapped file, or a `Selection` of one: take what is needed by slices and rows.
    origin: [N], where each image comes from: a file's path, or its row in the source. None: the
    rows 0 to N-1.
    """

    x: Images
    y: Labels
    origin: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != np.uint8 or self.x.ndim != 4:
            raise DatasetError(f"x must be uint8 [N, C, H, W], not {self.x.dtype} {self.x.shape}")
        if self.y.dtype != np.int64 or self.y.shape != self.x.shape[:1]:
            raise DatasetError(
                f"y must be int64 [{len(self.x)}], a label an image, "
                f"not {self.y.dtype} {self.y.shape}"
            )
        if self.origin is not None and self.origin.shape != self.y.shape:
            raise DatasetError(f"origin must be [{len(self.x)}], not {self.origin.shape}")

    def __len__(self) -> int:
        return len(self.x)

    def place(self, row: int) -> str | int:
        """The path of the image's file, or its row in the source."""
        if self.origin is None:
            return row
        origin = self.origin[row]
        return as_text(origin) if isinstance(origin, str) else int(origin)

    def take(self, rows: NDArray[np.int64]) -> Split:
        """The images at `rows`: copied, but for those of a memory-mapped file."""
        x: Images
        if isinstance(self.x, Selection):
            x = Selection(self.x.base, self.x.rows[rows])
        elif isinstance(self.x, np.memmap):
            x = Selection(self.x, rows)
        else:
            x = self.x[rows]
        return Split(x, self.y[rows], rows if self.origin is None else self.origin[rows])

    def crc32(self) -> int:
        """Of all pixels, then all labels; a chunk at a time."""
        crc = 0
        for start in range(0, len(self), STATISTICS_CHUNK):
            part = np.ascontiguousarray(self.x[start : start + STATISTICS_CHUNK])
            crc = zlib.crc32(part.data, crc)
        return zlib.crc32(np.ascontiguousarray(self.y).data, crc)


@dataclass(frozen=True)
class HeldOut:
    """Which of a source's training images are its validation images: `share` of every class."""

    share: float
    seed: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training images with what may stand beside them, class names and preprocessing.

    `validation` is what was held out of the training images on request, as `held_out` says; `test`
    is what the source itself sets apart. `notes` tells a person what the reader decided on its own.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    held_out: HeldOut | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = self.train.x.shape
        return channels, height, width

    def in_bgr(self) -> Dataset:
        """The same images with their channels turned round, in memory."""
        p = self.preprocessing
        parts = {
            part: replace(split, x=np.ascontiguousarray(split.x[:][:, ::-1]))
            for part in ("train", "validation", "test")
            if (split := getattr(self, part)) is not None
        }
        turned = replace(p, colour="bgr", mean=p.mean[::-1], std=p.std[::-1])
        return replace(self, preprocessing=turned, **parts)


def as_text(name: str) -> str:
    """The name of a file as text that JSON can hold: bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def build(
    name: str,
    train: Split,
    test: Split | None,
    labels: tuple[str, ...],
    *,
    validation: float | None,
    seed: int,
    notes: tuple[str, ...] = (),
    recipe: Mapping[str, Any] | None = None,
) -> Dataset:
    """Check the splits against each other, hold validation images out, measure mean and std.

    recipe: how the images were brought to their size, for the model's preprocessing, and their
    colour if they are bgr.

    The test images take no part in the mean and std, nor do those held out.
    """
    for part, split in (("training", train), ("test", test)):
        if split is not None:
            _check_split(name, part, split, labels)
    if test is not None and test.x.shape[1:] != train.x.shape[1:]:
        raise DatasetError(
            f"{name}: test images are {test.x.shape[1:]} and training images {train.x.shape[1:]}"
            " (channels, height, width); they must be equal"
        )
    if len(labels) < 2:
        raise DatasetError(f"{name}: needs two or more classes, it has {len(labels)}")
    counts = np.bincount(train.y, minlength=len(labels))
    if not counts.all():
        empty = [labels[i] for i in np.flatnonzero(counts == 0)[:10]]
        raise DatasetError(f"{name}: no training image of class {', '.join(empty)}")
    validation_images = held_out = None
    if validation is not None:
        kept_rows, held_rows = stratified_split(train.y, validation, seed, labels)
        train, validation_images = train.take(kept_rows), train.take(held_rows)
        held_out = HeldOut(validation, seed)
    mean, std = channel_statistics(train.x)
    _, channels, height, width = train.x.shape
    told: dict[str, Any] = {"colour": "grey" if channels == 1 else "rgb", **(recipe or {})}
    preprocessing = Preprocessing(height=height, width=width, mean=mean, std=std, **told)
    return Dataset(name, train, validation_images, test, labels, preprocessing, notes, held_out)


def _check_split(name: str, part: str, split: Split, labels: tuple[str, ...]) -> None:
    if len(split) == 0:
        raise DatasetError(f"{name}: there are no {part} images")
    if split.x.shape[1] not in (1, 3) or 0 in split.x.shape:
        raise DatasetError(
            f"{name}: {part} images are {split.x.shape[1:]}; channels must be 1 (grey) or 3 (RGB)"
            " and no side may be 0"
        )
    low, high = int(split.y.min()), int(split.y.max())
    if low < 0 or high >= len(labels):
        raise DatasetError(
            f"{name}: {part} labels go from {low} to {high}; "
            f"with {len(labels)} classes they must be in 0..{len(labels) - 1}"
        )


def stratified_split(
    y: Labels, fraction: float, seed: int, names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to keep and rows to hold out: `fraction` of every class, chosen by `seed`, both sorted.

    Each class gives at least one image and keeps at least one. names: of the classes, for messages.
    Raises DatasetError for a fraction outside 0 < fraction < 1, or a class of fewer than two
    images.
    """
    if not 0.0 < fraction < 1.0:
        raise DatasetError(f"validation must be a fraction between 0 and 1, not {fraction}")
    rng = np.random.default_rng([seed, 0x5B117])
    held = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        if len(rows) < 2:
            raise DatasetError(
                f"class {label if names is None else names[label]} has {len(rows)} image: "
                "validation needs at least 2 of every class"
            )
        count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        held[rng.permutation(rows)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def channel_statistics(x: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the 0–1 scale, exact (from histograms).

    A channel of one constant value gets a standard deviation of 1, as there is nothing to scale.
    """
    levels = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(x.shape[1]):
        histogram = np.zeros(256, np.int64)
        for start in range(0, len(x), STATISTICS_CHUNK):
            part = x[start : start + STATISTICS_CHUNK][:, channel]
            histogram += np.bincount(part.ravel(), minlength=256)
        share = histogram / histogram.sum()
        mean = float(share @ levels)
        variance = float(share @ (levels - mean) ** 2)
        constant = np.count_nonzero(histogram) == 1
        means.append(mean)
        stds.append(1.0 if constant else variance**0.5)
    return tuple(means), tuple(stds)
