"""MNIST's IDX files, whole and damaged."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from convserve import datasets
from convserve.datasets.idx import read_idx
from convserve.errors import DatasetError

X = np.random.default_rng(0).integers(0, 256, (20, 6, 5), np.uint8)
Y = (np.arange(20) % 4).astype(np.uint8)


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_mnist(folder, pack=lambda data: data, suffix="", dash="-"):
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        for stem, kind, array in (("images", "idx3", X), ("labels", "idx1", Y)):
            name = f"{part}-{stem}{dash}{kind}-ubyte{suffix}"
            (folder / name).write_bytes(pack(idx(array)))
    return folder


@pytest.mark.parametrize(
    "form", [{}, {"pack": gzip.compress, "suffix": ".gz"}, {"dash": "."}, {"pack": gzip.compress}]
)
def test_plain_and_gzipped_files_by_either_name(tmp_path, form):
    data = datasets.load(f"mnist:{write_mnist(tmp_path / 'digits', **form)}")
    assert (data.train.x == X[:, None]).all()
    assert (data.train.y == Y).all()
    assert data.test is not None
    assert data.labels == ("0", "1", "2", "3")
    assert data.name == "mnist:digits"


def test_without_a_test_set(tmp_path):
    write_mnist(tmp_path)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).unlink()
    assert datasets.load(f"mnist:{tmp_path}").test is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x00\x00\x0d\x03" + bytes(12), "not an IDX file"),
        (idx(Y), "not an IDX file of 3 dimensions"),
        (idx(X)[:10], "header is cut off"),
        (idx(X)[:-1], "600 bytes, it holds 599"),
        (idx(X) + b"!", "600 bytes, it holds more"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "header announces"),
        (gzip.compress(idx(X))[:-9], "can't be read"),
        (b"\x1f\x8b" + bytes(30), "can't be read"),
    ],
)
def test_damaged_files_are_named_with_their_fault(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(DatasetError, match="no train-images-idx3-ubyte"):
        datasets.load(f"mnist:{tmp_path}")
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte .* is missing"):
        datasets.load(f"mnist:{tmp_path}")


def test_images_and_labels_must_be_as_many(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(Y[:-1]))
    with pytest.raises(DatasetError, match=r"20 images .* 19 labels"):
        datasets.load(f"mnist:{tmp_path}")
