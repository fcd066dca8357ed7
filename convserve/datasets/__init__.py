"""Images with labels, from where people keep them.

    load(None)            the embedded sample of MNIST      sample
    load("mnist:DIR")     IDX files, gzipped or not         idx
    load("cifar10:DIR")   binary or Python batches          cifar10
    load("folder:DIR")    a folder of images a class        folder
    load("npz:FILE")      arrays x and y                    npz
        │
    Dataset               uint8 splits, labels, preprocessing

Images are uint8 [N, C, H, W], in memory or in a memory-mapped file of the cache (a folder may be
larger than memory); what the network sees is made from them batch by batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convserve import preprocessing
from convserve.datasets.base import Dataset, HeldOut, Selection, Split, as_text
from convserve.datasets.cifar10 import load_cifar10
from convserve.datasets.folder import load_folder
from convserve.datasets.idx import load_mnist
from convserve.datasets.npz import load_npz
from convserve.datasets.sample import load_sample
from convserve.errors import DatasetError

__all__ = ["Dataset", "HeldOut", "Selection", "Split", "load"]

_READERS = {"cifar10": load_cifar10, "folder": load_folder, "mnist": load_mnist, "npz": load_npz}


def load(
    spec: str | None = None,
    *,
    validation: float | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
    colour: str | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    skip_bad_files: bool = False,
) -> Dataset:
    """The data set that `spec` names: None, mnist:DIR, cifar10:DIR, folder:DIR or npz:FILE.

    validation: the share of every class's training images to hold out (None: none), chosen by
    `seed`. image_size: (height, width) to which a folder's images are resized; other sources have
    a size of their own. recipe: how they are, as `resize`, `interpolation` and `exif` of
    `Preprocessing`; the trained model keeps it. colour: grey, rgb or bgr, to which a folder's
    images are brought (None: grey if all are, else rgb); of other data rgb becomes bgr, and else
    they stay as they are. cache: where a folder's decoded images are kept in a memory-mapped file
    (True: in the user's cache folder, False: nowhere, None: there if they take more than 64 MiB).
    skip_bad_files: leave out files of a folder that can't be read. Raises DatasetError for every
    fault, and before any training begins.
    """
    if colour is not None and colour not in preprocessing.COLOURS:
        allowed = ", ".join(preprocessing.COLOURS)
        raise DatasetError(f"colour must be one of {allowed}, not {colour!r}")
    said = {
        "image size": image_size is not None,
        "how images are resized": bool(recipe),
        "a cache": cache not in (None, False),
        "skipping bad files": skip_bad_files,
    }
    if any(said.values()) and (spec is None or not spec.startswith("folder:")):
        what = next(what for what, is_said in said.items() if is_said)
        raise DatasetError(f"{what} can only be set for folder:DIR; other data have their own")
    if spec is None:
        return load_sample(validation=validation, seed=seed)
    kind, colon, place = spec.partition(":")
    if kind not in _READERS or not colon or not place:
        raise DatasetError(
            f"data must be one of mnist:DIR, cifar10:DIR, folder:DIR, npz:FILE "
            f"(or nothing, for the embedded sample), not {spec!r}"
        )
    path = Path(place).expanduser()
    name = f"{kind}:{as_text(path.resolve().name)}"
    if kind == "folder":
        return load_folder(
            path,
            name,
            validation=validation,
            seed=seed,
            image_size=image_size,
            recipe=recipe,
            colour=colour,
            cache=cache,
            skip_bad_files=skip_bad_files,
        )
    data = _READERS[kind](path, name, validation=validation, seed=seed)
    return data.in_bgr() if colour == "bgr" and data.preprocessing.colour == "rgb" else data
