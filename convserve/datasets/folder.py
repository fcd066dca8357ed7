"""A tree of image files, a folder a class: `folder:DIR`.

    DIR/train/<class>/*  and  DIR/test/<class>/*        the source has its own test set
    DIR/<class>/*                                       all images are training images

Classes are the folders' names, sorted. Images are decoded by a pool of threads straight into one
array; whatever can't be read is found, and listed, before training begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convserve.datasets.base import Dataset, Labels, Pixels, Split, as_text, build
from convserve.errors import DatasetError, ImageError
from convserve.images import EXTENSIONS, to_pixels
from convserve.kernels._cores import usable_cores
from convserve.model_file import Preprocessing

__all__ = ["load_folder"]

FILES_PER_TASK = 64  # enough that handing a task to a thread costs nothing beside it
LISTED = 10  # unreadable files that a message names
MEMORY_SHARE = 0.6  # of the machine's memory that the decoded images may take
SUFFIXES = tuple(sorted(EXTENSIONS))
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True)
class _Files:
    """The image files of one split, in a fixed order, and how many others lie beside them."""

    paths: list[str]
    y: Labels
    labels: tuple[str, ...]
    ignored: int


def load_folder(
    folder: Path,
    name: str,
    *,
    validation: float | None,
    seed: int,
    image_size: tuple[int, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Dataset:
    """The images of a folder, all resized to `image_size` (height, width), or the first one's size.

    recipe: `resize`, `interpolation` and `exif` as `Preprocessing` has them; the model keeps them.

    The data set is grey if every pixel of every image is, else RGB. Raises DatasetError for a
    missing folder, an empty class, classes that differ between train and test, files that can't
    be read (it lists them), or images that would not fit in memory.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    two_levels = (folder / "train").is_dir()
    if two_levels and not (folder / "test").is_dir():
        raise DatasetError(f"{folder}: there is a folder train, but no folder test beside it")
    parts = [_scan(folder / p) for p in ("train", "test")] if two_levels else [_scan(folder)]
    labels = parts[0].labels
    if two_levels and parts[1].labels != labels:
        odd = sorted(set(labels) ^ set(parts[1].labels))
        raise DatasetError(
            f"{folder}: train and test must have the same class folders; "
            f"only one of them has {', '.join(odd[:LISTED])}"
        )
    paths = [path for part in parts for path in part.paths]
    height, width = image_size or _first_size(paths)
    wanted = Preprocessing(height, width, "rgb", (0.0,) * 3, (1.0,) * 3, **(recipe or {}))
    pixels = _decode(paths, wanted)
    if _is_grey(pixels):
        pixels = np.ascontiguousarray(pixels[:, :1])
    count = len(parts[0].paths)
    train = Split(pixels[:count], parts[0].y)
    test = Split(pixels[count:], parts[1].y) if two_levels else None
    origin = (
        "as asked for" if image_size else "the size of the first; set an image size for another"
    )
    notes = [f"every image is brought to {height}×{width} pixels ({origin})"]
    if ignored := sum(part.ignored for part in parts):
        notes.append(f"files left out, as their names have no image's suffix: {ignored}")
    return build(
        name, train, test, labels, validation=validation, seed=seed, notes=tuple(notes),
        recipe=recipe,
    )  # fmt: skip


def _scan(folder: Path) -> _Files:
    try:
        classes = sorted(
            e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")
        )
        if len(classes) < 2:
            raise DatasetError(
                f"{folder}: needs a folder for each of two or more classes, "
                f"it has {len(classes)}: {', '.join(classes) or 'none'}"
            )
        paths: list[str] = []
        y: list[int] = []
        ignored = 0
        for label, name in enumerate(classes):
            visible = [e.path for e in os.scandir(folder / name) if not e.name.startswith(".")]
            images = sorted(path for path in visible if path.lower().endswith(SUFFIXES))
            if not images:
                raise DatasetError(f"{folder / name}: there are no images of this class")
            ignored += len(visible) - len(images)
            paths += images
            y += [label] * len(images)
    except OSError as error:
        raise DatasetError(f"{folder}: can't be listed: {error}") from error
    return _Files(paths, np.array(y, np.int64), tuple(map(as_text, classes)), ignored)


def _first_size(paths: Sequence[str]) -> tuple[int, int]:
    """(height, width) of the first image, upright; unreadable ones are listed by the decoding."""
    from PIL import Image

    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
                sideways = image.getexif().get(0x0112) in SIDEWAYS
        except Exception:  # Pillow raises nearly anything for damaged files
            continue
        return (width, height) if sideways else (height, width)
    raise DatasetError(f"{paths[0]}: can't be read as an image, nor can any other image file")


def _decode(paths: Sequence[str], wanted: Preprocessing) -> Pixels:
    """uint8 [N, 3, height, width] of the files, in their order."""
    height, width = wanted.height, wanted.width
    size = len(paths) * 3 * height * width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > MEMORY_SHARE * memory:
        raise DatasetError(
            f"{len(paths)} images of {height}×{width} pixels need {size / 1e9:.1f} GB of "
            f"{memory / 1e9:.1f} GB memory: choose a smaller image size"
        )
    pixels = np.empty((len(paths), 3, height, width), np.uint8)

    def decode(start: int) -> list[str]:
        faults = []
        for i in range(start, min(start + FILES_PER_TASK, len(paths))):
            try:
                pixels[i] = to_pixels(paths[i], wanted)
            except ImageError as error:
                faults.append(str(error))
        return faults

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode") as pool:
        results = list(pool.map(decode, range(0, len(paths), FILES_PER_TASK)))
    if faults := [fault for part in results for fault in part]:
        more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise DatasetError(
            f"{len(faults)} of {len(paths)} images can't be read: "
            f"{'; '.join(faults[:LISTED])}{more}"
        )
    return pixels


def _is_grey(pixels: Pixels) -> bool:
    """Whether all three channels are equal everywhere; stops at the first image that has colour."""
    return all(
        bool((image[0] == image[1]).all() and (image[1] == image[2]).all()) for image in pixels
    )
