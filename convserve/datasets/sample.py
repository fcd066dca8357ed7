"""The embedded sample: 12,000 handwritten digits of MNIST, so that nothing needs a download.

10,000 training and 2,000 test images, 1,000 and 200 of each digit, all taken from the training set
of MNIST; MNIST's own test set is untouched and stays a fair test of a model trained on the sample.
`mnist_sample.txt` beside this file says where the images come from and who holds which right;
`scripts/make_mnist_sample.py` makes the file again.

The format is one xz stream (checked by its CRC) of 12,000 label bytes and then 12,000 images of
28×28 bytes, the training images first. Measured for these images: xz 1.63 MB, bzip2 1.68, WebP
1.82, zlib 1.93, PNG 1.99; it needs nothing but the standard library and loads in 0.1 s.
"""

from __future__ import annotations

import lzma
from importlib.resources import files

import numpy as np

from convserve.datasets.base import Dataset, Split, build
from convserve.errors import DatasetError

__all__ = ["load_sample"]

FILE = "mnist_sample.xz"
TRAIN, TEST = 10_000, 2_000
SIDE = 28


def load_sample(*, validation: float | None, seed: int) -> Dataset:
    """The sample; DatasetError if its file is missing or damaged."""
    try:
        data = lzma.decompress(files("convserve.datasets").joinpath(FILE).read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise DatasetError(f"the embedded sample {FILE} can't be read: {error}") from error
    total = TRAIN + TEST
    if len(data) != total * (1 + SIDE * SIDE):
        raise DatasetError(f"the embedded sample {FILE} has a wrong size, {len(data)} bytes")
    y = np.frombuffer(data, np.uint8, total).astype(np.int64)
    x = np.frombuffer(data, np.uint8, offset=total).reshape(total, 1, SIDE, SIDE)
    return build(
        "mnist-sample",
        Split(x[:TRAIN], y[:TRAIN]),
        Split(x[TRAIN:], y[TRAIN:]),
        tuple("0123456789"),
        validation=validation,
        seed=seed,
    )
