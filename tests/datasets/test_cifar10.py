"""CIFAR-10's original batches: made ones of a few images, and hostile ones."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from convserve import datasets
from convserve.datasets.cifar10 import CLASSES, TRAIN_BATCHES
from convserve.errors import DatasetError

PER_BATCH = 20
NAMES = [*TRAIN_BATCHES, "test_batch"]
rng = np.random.default_rng(0)
X = rng.integers(0, 256, (6, PER_BATCH, 3072), np.uint8)
Y = np.tile(np.arange(10), (6, 2))


def binary(x, y):
    return np.concatenate([y[:, None].astype(np.uint8), x], axis=1).tobytes()


def python2_like(x, y):
    """Protocol 2 with bytes keys, as the original files."""
    return pickle.dumps({b"data": x, b"labels": y.tolist(), b"batch_label": b"some"}, protocol=2)


def python3_like(x, y):
    return pickle.dumps({"data": x, "labels": y.tolist(), "filenames": ["a"]}, protocol=4)


def write(folder, form, suffix=""):
    for name, x, y in zip(NAMES, X, Y, strict=True):
        (folder / f"{name}{suffix}").write_bytes(form(x, y))


@pytest.mark.parametrize(
    ("form", "suffix"), [(binary, ".bin"), (python2_like, ""), (python3_like, "")]
)
def test_both_forms_give_the_same_images(tmp_path, form, suffix):
    write(tmp_path, form, suffix)
    data = datasets.load(f"cifar10:{tmp_path}")
    assert (data.train.x == X[:5].reshape(-1, 3, 32, 32)).all()
    assert (data.train.y == Y[:5].ravel()).all()
    assert (data.test.x == X[5].reshape(-1, 3, 32, 32)).all()
    assert data.labels == CLASSES
    assert data.preprocessing.colour == "rgb"


def test_missing_batches_are_named(tmp_path):
    write(tmp_path, binary, ".bin")
    (tmp_path / "data_batch_3.bin").unlink()
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(DatasetError, match=r"missing data_batch_3.bin, test_batch.bin"):
        datasets.load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("content", [b"", binary(X[0], Y[0])[:-1]])
def test_a_cut_binary_batch(tmp_path, content):
    write(tmp_path, binary, ".bin")
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(DatasetError, match=r"data_batch_2.bin: \d+ bytes; .* multiple of 3073"):
        datasets.load(f"cifar10:{tmp_path}")


def test_a_binary_batch_that_is_cut_between_two_images(tmp_path, monkeypatch):
    write(tmp_path, binary, ".bin")
    path = tmp_path / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[: 3073 * 7])
    with pytest.raises(DatasetError, match=r"of 20 images: data_batch_2.bin has 7; were they cut"):
        datasets.load(f"cifar10:{tmp_path}")
    path.write_bytes(whole)
    (tmp_path / "test_batch.bin").write_bytes(whole[: 3073 * 9])
    assert len(datasets.load(f"cifar10:{tmp_path}").test) == 9  # a small set of one's own
    monkeypatch.setattr("convserve.datasets.cifar10.ORIGINAL", 20)
    with pytest.raises(DatasetError, match=r"of 20 images: test_batch.bin has 9"):
        datasets.load(f"cifar10:{tmp_path}")


def test_a_label_beyond_the_classes(tmp_path):
    write(tmp_path, binary, ".bin")
    (tmp_path / "test_batch.bin").write_bytes(binary(X[0], Y[0] + 1))
    with pytest.raises(DatasetError, match="test labels go from 1 to 10"):
        datasets.load(f"cifar10:{tmp_path}")


class Touch:
    """A pickle that would run code, as any pickle may."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_cannot_run_code(tmp_path):
    write(tmp_path, python2_like)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    with pytest.raises(DatasetError, match=r"data_batch_1: refused to load (_?io)\.open"):
        datasets.load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "touched").exists()


LABELS = Y[0].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CIFAR-10 batch"),
        (python2_like(X[0], Y[0])[:-100], "not a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"data": X[0]}), "an array `data` and a list `labels`"),
        (pickle.dumps({"data": b"abc", "labels": LABELS}), "an array `data`"),
        (pickle.dumps({"data": X[0], "labels": [*LABELS[1:], 10]}), "in 0..9"),
        (pickle.dumps({"data": X[0], "labels": [*LABELS[1:], "3"]}), "in 0..9"),
        (pickle.dumps({"data": X[0], "labels": LABELS[1:]}), r"uint8 \[19, 3072\]"),
        (pickle.dumps({"data": X[0] * 1.0, "labels": LABELS}), r"uint8 \[20, 3072\]"),
        (pickle.dumps({"data": X[0].astype(object), "labels": LABELS}), r"uint8 \[20, 3072\]"),
        (pickle.dumps({"data": np.asfortranarray(X[0]), "labels": LABELS}), r"uint8 \[20, 3072\]"),
        (pickle.dumps(OrderedDict(data=X[0], labels=LABELS)), "refused to load collections"),
    ],
)
def test_pickles_that_are_no_batch(tmp_path, content, message):
    write(tmp_path, python2_like)
    (tmp_path / "data_batch_4").write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        datasets.load(f"cifar10:{tmp_path}")
    assert "data_batch_4" in str(caught.value)
