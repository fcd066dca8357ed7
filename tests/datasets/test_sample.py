"""The embedded sample is what it says: real, balanced, and split without overlap."""

from __future__ import annotations

import gzip
import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from convserve import datasets
from convserve.datasets import sample
from convserve.errors import DatasetError

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.fixture(scope="module")
def data():
    return datasets.load()


def test_counts_labels_and_types(data):
    assert data.train.x.shape == (10_000, 1, 28, 28)
    assert data.test.x.shape == (2_000, 1, 28, 28)
    assert data.labels == tuple("0123456789")
    assert np.bincount(data.train.y).tolist() == [1000] * 10
    assert np.bincount(data.test.y).tolist() == [200] * 10
    assert data.validation is None
    assert data.preprocessing.colour == "grey"


def test_no_test_image_is_a_training_image(data):
    train = {image.tobytes() for image in data.train.x}
    assert not any(image.tobytes() in train for image in data.test.x)


def test_it_is_small_and_its_origin_is_told():
    folder = files("convserve.datasets")
    assert len(folder.joinpath(sample.FILE).read_bytes()) < 3_000_000
    assert "LeCun" in folder.joinpath("mnist_sample.txt").read_text()


def test_every_image_is_from_the_training_set_of_mnist(data):
    if not MNIST.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{MNIST} must be there in CI")
        pytest.skip(f"{MNIST} is not there")
    with gzip.open(MNIST / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(MNIST / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for split in (data.train, data.test):
        assert all(known[x.tobytes()] == y for x, y in zip(split.x, split.y, strict=True))


def test_a_damaged_sample_is_an_error(monkeypatch, tmp_path):
    (tmp_path / sample.FILE).write_bytes(b"\xfd7zXZ\x00 and no more")
    monkeypatch.setattr(sample, "files", lambda package: tmp_path)
    with pytest.raises(DatasetError, match="embedded sample"):
        datasets.load()
    (tmp_path / sample.FILE).unlink()
    with pytest.raises(DatasetError, match="embedded sample"):
        datasets.load()
