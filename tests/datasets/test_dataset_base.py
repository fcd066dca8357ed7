"""Splits, hold-out and statistics, whatever the source."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import datasets
from convserve.datasets.base import Split, build, channel_statistics, stratified_split
from convserve.errors import DatasetError


def random_split(count: int = 40, classes: int = 4, channels: int = 1, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, channels, 5, 6), np.uint8)
    return Split(x, np.arange(count) % classes)


def test_statistics_are_those_of_numpy():
    x = random_split(1500, channels=3).x
    mean, std = channel_statistics(x)
    np.testing.assert_allclose(mean, (x / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std(axis=(0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_is_not_scaled():
    mean, std = channel_statistics(np.full((3, 1, 2, 2), 51, np.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


def test_stratified_split_takes_the_share_of_every_class_and_loses_nothing():
    y = np.repeat(np.arange(3), [10, 50, 2])
    kept, held = stratified_split(y, 0.1, seed=1)
    assert np.bincount(y[held]).tolist() == [1, 5, 1]
    assert sorted([*kept, *held]) == list(range(len(y)))
    again = stratified_split(y, 0.1, seed=1)
    assert (again[0] == kept).all()
    assert (again[1] == held).all()
    assert (stratified_split(y, 0.1, seed=2)[1] != held).any()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(DatasetError, match="validation must be a fraction between 0 and 1"):
        stratified_split(np.array([0, 0, 1, 1]), fraction, seed=0)


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(DatasetError, match="class 1 has 1 image"):
        stratified_split(np.array([0, 0, 1]), 0.5, seed=0)


def test_statistics_do_not_look_at_what_is_held_out():
    split = random_split()
    data = build("x", split, None, tuple("abcd"), validation=0.25, seed=3)
    assert data.validation is not None
    assert len(data.validation) == 8  # 2.5 of each class's 10, rounded to even
    statistics = (data.preprocessing.mean, data.preprocessing.std)
    assert statistics == channel_statistics(data.train.x)
    assert len(data.train) + len(data.validation) == len(split)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (Split(np.zeros((0, 1, 2, 2), np.uint8), np.zeros(0, np.int64)), None, "no training"),
        (random_split(channels=2), None, "channels must be 1"),
        (random_split(classes=5), None, "training labels go from 0 to 4"),
        (random_split(classes=3), None, "no training image of class d"),
        (random_split(), random_split(channels=3), "they must be equal"),
        (random_split(), random_split(classes=5), "test labels go from 0 to 4"),
    ],
)
def test_splits_that_do_not_fit_are_refused(train, test, message):
    with pytest.raises(DatasetError, match=message):
        build("some", train, test, tuple("abcd"), validation=None, seed=0)


def test_one_class_is_refused():
    with pytest.raises(DatasetError, match="two or more classes, it has 1"):
        build("some", random_split(classes=1), None, ("a",), validation=None, seed=0)


def test_a_split_checks_its_arrays():
    with pytest.raises(DatasetError, match="x must be uint8"):
        Split(np.zeros((1, 1, 2, 2), np.float32), np.zeros(1, np.int64))
    with pytest.raises(DatasetError, match="y must be int64"):
        Split(np.zeros((2, 1, 2, 2), np.uint8), np.zeros(1, np.int64))


@pytest.mark.parametrize("spec", ["", "mnist", "mnist:", "folders:x", "some/dir", ":x"])
def test_a_spec_of_no_known_kind_lists_those_that_are(spec):
    with pytest.raises(DatasetError, match="mnist:DIR, cifar10:DIR, folder:DIR, npz:FILE"):
        datasets.load(spec)


@pytest.mark.parametrize("spec", [None, "mnist:x", "npz:x"])
def test_only_folders_have_a_choice_of_size(spec):
    with pytest.raises(DatasetError, match="image size can only be set for folder:DIR"):
        datasets.load(spec, image_size=(8, 8))
