"""A NumPy archive with images `x` and labels `y`: `npz:FILE`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convserve.datasets.base import Dataset, Split, build
from convserve.errors import DatasetError

__all__ = ["load_npz"]


def load_npz(path: Path, name: str, *, validation: float | None, seed: int) -> Dataset:
    """`x`: uint8 [N, H, W] (grey) or [N, C, H, W] with C 1 or 3; `y`: integers 0..K-1, [N].

    All images are training images; there is no test set, so evaluation needs `--validation` or a
    second file.
    """
    x, y = _read(path)
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise DatasetError(
            f"{path}: x must be uint8 [N, H, W] or [N, C, H, W], it is {x.dtype} {x.shape}"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[1] not in (1, 3):
        hint = " It looks like NHWC: use x.transpose(0, 3, 1, 2)." if x.shape[3] in (1, 3) else ""
        raise DatasetError(f"{path}: x {x.shape} must have 1 or 3 channels in axis 1.{hint}")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise DatasetError(
            f"{path}: y must be integers [{len(x)}], a label an image; it is {y.dtype} {y.shape}"
        )
    if len(y) == 0:
        raise DatasetError(f"{path}: there are no images")
    classes = int(y.max()) + 1
    # Checked before anything of that size is made; a class without an image is refused anyway.
    if int(y.min()) < 0 or classes > len(y):
        raise DatasetError(
            f"{path}: y goes from {int(y.min())} to {int(y.max())}; "
            "classes must be 0..K-1, each with at least one image"
        )
    split = Split(np.ascontiguousarray(x), y.astype(np.int64))
    labels = tuple(str(i) for i in range(classes))
    return build(name, split, None, labels, validation=validation, seed=seed)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise DatasetError(f"{path}: not an .npz archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                missing = {"x", "y"} - set(archive.files)
                if missing:
                    held = ", ".join(archive.files) or "nothing"
                    raise DatasetError(
                        f"{path}: no array {' and '.join(sorted(missing))} (it holds {held})"
                    )
                return archive["x"], archive["y"]
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path}: can't be read as .npz: {error}") from error
