"""`npz:FILE`."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import datasets
from convserve.errors import DatasetError

rng = np.random.default_rng(0)
GREY = rng.integers(0, 256, (12, 6, 5), np.uint8)
COLOUR = rng.integers(0, 256, (12, 3, 6, 5), np.uint8)
Y = np.arange(12) % 3


def load(path, **arrays):
    np.savez(path, **arrays)
    return datasets.load(f"npz:{path}")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_grey_images(tmp_path, dtype):
    data = load(tmp_path / "d.npz", x=GREY, y=Y.astype(dtype))
    assert (data.train.x == GREY[:, None]).all()
    assert (data.train.y == Y).all()
    assert data.test is None
    assert data.labels == ("0", "1", "2")


def test_colour_images_with_one_class_held_out_in_part(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=COLOUR, y=Y)
    data = datasets.load(f"npz:{tmp_path / 'd.npz'}", validation=0.25)
    assert (len(data.train), len(data.validation)) == (9, 3)
    assert data.preprocessing.colour == "rgb"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": GREY}, "no array y"),
        ({"x_train": GREY, "y_train": Y}, r"no array x and y \(it holds x_train, y_train\)"),
        ({"x": GREY / 255, "y": Y}, "x must be uint8"),
        ({"x": GREY[0], "y": Y}, "x must be uint8"),
        ({"x": COLOUR.transpose(0, 2, 3, 1), "y": Y}, r"NHWC: use x.transpose\(0, 3, 1, 2\)"),
        ({"x": COLOUR[:, :2], "y": Y}, "1 or 3 channels"),
        ({"x": GREY, "y": Y[1:]}, "y must be integers"),
        ({"x": GREY, "y": Y * 1.0}, "y must be integers"),
        ({"x": GREY, "y": Y - 1}, "y goes from -1 to 1"),
        ({"x": GREY, "y": Y * 10**9}, "y goes from 0 to 2000000000"),
        ({"x": GREY, "y": np.where(Y == 1, 3, Y)}, "no training image of class 1"),
        ({"x": GREY[:0], "y": Y[:0]}, "there are no images"),
        ({"x": GREY, "y": Y.astype(object)}, "can't be read"),
    ],
)
def test_arrays_that_are_no_data_set(tmp_path, arrays, message):
    with pytest.raises(DatasetError, match=message):
        load(tmp_path / "d.npz", **arrays)


def test_files_that_are_no_archive(tmp_path):
    path = tmp_path / "d.npz"
    for place in (path, tmp_path):
        with pytest.raises(DatasetError, match="no such file"):
            datasets.load(f"npz:{place}")
    with path.open("wb") as file:
        np.save(file, GREY)
    for content in (b"", b"text", path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"not an \.npz archive"):
            datasets.load(f"npz:{path}")
    np.savez(path, x=GREY, y=Y)
    for content in (b"PK\x03\x04 and no more", b"PK", path.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match="can't be read"):
            datasets.load(f"npz:{path}")


def test_damaged_pixels_do_not_pass(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, x=GREY, y=Y)
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="can't be read"):
        datasets.load(f"npz:{path}")
