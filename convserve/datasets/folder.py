"""A tree of image files, a folder a class: `folder:DIR`.

    DIR/train/<class>/*  and  DIR/test/<class>/*        the source has its own test set
    DIR/<class>/*                                       all images are training images

Classes are the folders' names, sorted; what lies in folders below a class belongs to it. Images are
decoded once, into an array or a memory-mapped file of the cache; whatever can't be read is found,
and listed, before training begins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convserve.datasets.base import Dataset, Labels, Pixels, Split, as_text, build
from convserve.datasets.cache import CacheFile, default_cache
from convserve.datasets.decode import LISTED, Outcome, check_faults, decode
from convserve.errors import DatasetError, ImageError
from convserve.images import EXTENSIONS
from convserve.images import image_size as size_of
from convserve.model_file import Preprocessing
from convserve.preprocessing import COLOURS

__all__ = ["load_folder"]

MEMORY_SHARE = 0.6  # of the machine's memory that decoded images may take without a cache
CACHE_FROM = 64 << 20  # bytes of decoded images from which they are kept in the user's cache
SUFFIXES = tuple(sorted(EXTENSIONS))


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
    colour: str | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    skip_bad_files: bool = False,
) -> Dataset:
    """The images of a folder, all resized to `image_size` (height, width).

    Without one they must be of one size, unless the recipe has `resize`: then what that leaves is
    cropped to the first one's size. recipe: `resize`, `interpolation` and `exif` as
    `Preprocessing` has them; the model keeps them. colour: grey, rgb or bgr; None for grey if every
    pixel of every image is, else rgb.
    cache: the folder of a file with the decoded images, which the next run finds again; True for
    the user's own cache folder, False to keep them in memory, None for the cache folder if they
    take more than 64 MiB. skip_bad_files: leave out what can't be read.

    Raises DatasetError for a missing folder, images of other sizes, an empty class, classes that
    differ between train and test, files that can't be read (it lists them), images that would not
    fit in memory, or a cache that can't be written.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    two_levels = (folder / "train").is_dir()
    if two_levels and not (folder / "test").is_dir():
        raise DatasetError(
            f"{folder}: there is a folder train, but no folder test beside it; folder:"
            f"{folder / 'train'} takes the first alone, of which validation can hold images out"
        )
    parts = [_scan(folder / p) for p in ("train", "test")] if two_levels else [_scan(folder)]
    labels = parts[0].labels
    if two_levels and parts[1].labels != labels:
        odd = sorted(set(labels) ^ set(parts[1].labels))
        raise DatasetError(
            f"{folder}: train and test must have the same class folders; "
            f"only one of them has {', '.join(odd[:LISTED])}"
        )
    paths = [path for part in parts for path in part.paths]
    recipe = recipe or {}
    one_size = image_size is None and recipe.get("resize") is None
    height, width = image_size or _first_size(paths, exif=recipe.get("exif", True))
    _check_crop(recipe.get("resize"), height, width, of_first=image_size is None)

    def pixels_in(order: str) -> tuple[Pixels, Outcome]:
        channels = COLOURS[order]
        wanted = Preprocessing(height, width, order, (0.0,) * channels, (1.0,) * channels, **recipe)
        kept = _bytes(paths, wanted) > CACHE_FROM if cache is None else cache
        if kept is False:
            return _in_memory(paths, wanted, skip_bad_files, one_size)
        place = default_cache() if kept is True else Path(kept).expanduser()
        return CacheFile(place, folder, paths, wanted, skip_bad_files, one_size).load()

    # Mostly a folder is as colourful as its model: one file in the cache serves all who ask.
    pixels, outcome = pixels_in("bgr" if colour == "bgr" else "rgb")
    if colour == "grey" and pixels.shape[1] > 1:
        pixels, outcome = pixels_in("grey")
    elif colour in ("rgb", "bgr") and pixels.shape[1] == 1:
        pixels = _three_alike(pixels)
    skipped = check_faults(outcome, len(paths), skip_bad_files)
    bad, count = np.array(list(outcome.faults), np.int64), len(parts[0].paths)
    y = np.delete(np.concatenate([part.y for part in parts]), bad)
    files = np.delete(np.array(paths, object), bad)
    count -= int((bad < count).sum())
    train = Split(pixels[:count], y[:count], files[:count])
    test = Split(pixels[count:], y[count:], files[count:]) if two_levels else None
    brought = "has" if one_size else "is brought to"
    notes = [f"every image {brought} {height}×{width} pixels"]
    if isinstance(pixels, np.memmap):
        notes.append(f"decoded images: {pixels.filename} ({pixels.nbytes / 1e6:,.1f} MB)")
    if skipped:
        notes.append(skipped)
    if ignored := sum(part.ignored for part in parts):
        notes.append(f"files left out, as their names have no image's suffix: {ignored}")
    return build(
        name, train, test, labels, validation=validation, seed=seed, notes=tuple(notes),
        recipe=recipe if colour is None else {**recipe, "colour": colour},
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
            visible = _files_below(os.fspath(folder / name))
            images = sorted(path for path in visible if path.lower().endswith(SUFFIXES))
            if not images:
                raise DatasetError(f"{folder / name}: there are no images of this class")
            ignored += len(visible) - len(images)
            paths += images
            y += [label] * len(images)
    except OSError as error:
        raise DatasetError(f"{folder}: can't be listed: {error}") from error
    return _Files(paths, np.array(y, np.int64), tuple(map(as_text, classes)), ignored)


def _files_below(folder: str) -> list[str]:
    """All files in it and in folders below it, but hidden ones; links are followed, once."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)  # noqa: PTH116  (strings, as the paths of a million images)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in os.scandir(folder):
            if not entry.name.startswith("."):
                (waiting if entry.is_dir() else found).append(entry.path)
    return found


def _check_crop(resize: Any, height: int, width: int, of_first: bool) -> None:
    """DatasetError if a shorter side of `resize` may leave less than what is cropped from it."""
    largest = max(height, width)
    if not isinstance(resize, int) or resize >= largest:
        return
    which = "the first one's size, as no image size is given" if of_first else "the image size"
    raise DatasetError(
        f"images whose shorter side is resized to {resize} (--resize-shorter) can't be cropped to "
        f"{height}×{width} pixels, {which}: choose --image-size {resize} or smaller, or resize to "
        f"{largest} or more"
    )


def _first_size(paths: Sequence[str], exif: bool) -> tuple[int, int]:
    """(height, width) of the first image; unreadable ones are listed by the decoding."""
    for path in paths:
        with suppress(ImageError):
            return size_of(path, exif=exif)
    raise DatasetError(f"{paths[0]}: can't be read as an image, nor can any other image file")


def _bytes(paths: Sequence[str], wanted: Preprocessing) -> int:
    """What the images take, decoded."""
    return len(paths) * wanted.channels * wanted.height * wanted.width


def _three_alike(pixels: Pixels) -> Pixels:
    """Grey images as those of three channels; of a mapped file without a copy."""
    shape = (len(pixels), 3, *pixels.shape[2:])
    if isinstance(pixels, np.memmap):
        return np.broadcast_to(pixels, shape, subok=True)
    return pixels.repeat(3, axis=1)


def _in_memory(
    paths: Sequence[str], wanted: Preprocessing, skip_bad_files: bool, one_size: bool
) -> tuple[Pixels, Outcome]:
    """The images that can be read, uint8 [N, C, H, W], C 1 if all are grey; and the others."""
    size = _bytes(paths, wanted)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > MEMORY_SHARE * memory:
        raise DatasetError(
            f"{len(paths)} images of {wanted.height}×{wanted.width} pixels need {size / 1e9:.1f} "
            f"GB of {memory / 1e9:.1f} GB memory: choose a smaller image size, or --cache DIR"
        )
    shape = (len(paths), wanted.channels, wanted.height, wanted.width)
    pixels = np.empty(shape, np.uint8)
    outcome = decode(paths, wanted, pixels, one_size)
    check_faults(outcome, len(paths), skip_bad_files)
    if outcome.faults:
        pixels = np.delete(pixels, list(outcome.faults), axis=0)
    return np.ascontiguousarray(pixels[:, :1]) if outcome.grey else pixels, outcome
