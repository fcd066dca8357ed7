"""Make convserve/datasets/mnist_sample.xz from the original MNIST files.

    python scripts/make_mnist_sample.py DIR [OUT]

DIR holds train-images-idx3-ubyte and train-labels-idx1-ubyte, gzipped or not. The same DIR gives
the same bytes. The test set is not read.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np

from convserve.datasets.idx import load_mnist
from convserve.datasets.sample import FILE, TEST, TRAIN

SEED = 0
# Least of the settings tried: images as they are, four literal context bits, no alignment.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def main(folder: str, out: str = f"convserve/datasets/{FILE}") -> None:
    train = load_mnist(Path(folder), "mnist", validation=None, seed=0).train
    rng = np.random.default_rng(SEED)
    # An image that is there twice must not be in both parts: keep the first of each.
    _, first = np.unique(train.x.reshape(len(train), -1), axis=0, return_index=True)
    parts: tuple[list[int], list[int]] = ([], [])
    for digit in range(10):
        rows = rng.permutation(np.sort(first[train.y[first] == digit]))
        parts[0].extend(rows[: TRAIN // 10])
        parts[1].extend(rows[TRAIN // 10 : (TRAIN + TEST) // 10])
    rows = np.concatenate([np.sort(part) for part in parts])
    data = train.y[rows].astype(np.uint8).tobytes() + train.x[rows].tobytes()
    packed = lzma.compress(data, format=lzma.FORMAT_XZ, filters=FILTERS)
    Path(out).write_bytes(packed)
    print(f"{out}: {len(packed):,} bytes, {len(rows):,} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
