"""Starts that follow from the data: whitening filters, and convolutions that change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import kernels, layers
from convserve.datasets.base import Split, build
from convserve.errors import TrainingError
from convserve.graph import Graph, architectures
from convserve.training import TrainConfig
from convserve.training.initialise import initialise, whitening_filters


def smooth_images(count=60, side=10):
    """Neighbouring pixels and channels go together, as in photos."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3, side + 2, side + 2))
    x = x[..., 1:, 1:] + x[..., :-1, :-1] + x[..., 1:, :-1]
    return (x + x.mean(axis=1, keepdims=True)).astype(np.float32)


def test_whitened_patches_are_uncorrelated():
    x = smooth_images()
    filters = whitening_filters(x, (24, 3, 2, 2))
    y = kernels.conv2d(x, filters)
    flat = y[:, :12].transpose(1, 0, 2, 3).reshape(12, -1).astype(np.float64)
    covariance = flat @ flat.T / flat.shape[1]
    np.testing.assert_allclose(covariance, np.eye(12), atol=5e-3)
    np.testing.assert_array_equal(y[:, 12:], -y[:, :12])
    # The strongest direction first: its filter is the smallest, as it divides by most.
    sizes = np.sqrt((filters[:12].astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    assert np.all(np.diff(sizes) >= -1e-6)
    with pytest.raises(TrainingError, match="2×2 filters has at most 24, not 25"):
        whitening_filters(x, (25, 3, 2, 2))


def made_data():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 3, 32, 32), np.uint8)
    return build("noise", Split(x, np.arange(40) % 10), None, tuple("0123456789"),
                 validation=None, seed=0)  # fmt: skip


def test_the_record_recipe_starts_as_it_should():
    graph, data = architectures.build("airbench"), made_data()
    config = TrainConfig(initialisation="dirac", whiten=True)
    params = initialise(graph, data, config)
    x = data.preprocessing.normalise(data.train.x)
    np.testing.assert_array_equal(params["conv1.weight"], whitening_filters(x, (24, 3, 2, 2)))
    for name in ("conv2", "conv3", "conv4", "conv6"):
        weight = params[f"{name}.weight"]
        same = min(weight.shape[:2])
        maps = np.random.default_rng(0).normal(size=(1, weight.shape[1], 5, 5)).astype(np.float32)
        y = kernels.conv2d(maps, weight, padding=1)
        np.testing.assert_array_equal(y[:, :same], maps[:, :same])
        bound = 1 / np.sqrt(weight[0].size)
        rest = weight[same:]
        assert rest.size == 0 or 0.95 * bound < np.abs(rest).max() <= bound
    head = params["affine1.weight"]
    assert head.std() == pytest.approx(1 / 256, rel=1e-4)
    again = initialise(graph, data, config)
    assert all(again[name].tobytes() == value.tobytes() for name, value in params.items())
    other = initialise(graph, data, TrainConfig(initialisation="dirac", seed=1))
    assert not np.array_equal(other["conv2.weight"], params["conv2.weight"])


def test_whitening_sees_images_from_all_of_the_data(monkeypatch):
    monkeypatch.setattr("convserve.training.initialise.WHITENING_IMAGES", 4)
    graph, data = architectures.build("airbench"), made_data()
    params = initialise(graph, data, TrainConfig(whiten=True))
    x = data.preprocessing.normalise(data.train.x[[0, 13, 26, 39]])
    np.testing.assert_array_equal(params["conv1.weight"], whitening_filters(x, (24, 3, 2, 2)))


def test_the_usual_start_is_the_graph_s_own():
    graph, data = architectures.build("resnet20"), made_data()
    params = initialise(graph, data, TrainConfig(seed=3))
    assert all(
        value.tobytes() == graph.initialise(3)[name].tobytes() for name, value in params.items()
    )


def test_whitening_needs_a_convolution_first():
    g = Graph((3, 32, 32))
    g.add(layers.ReLU())
    g.add(layers.Conv2d(4, 3))
    with pytest.raises(TrainingError, match="begins with a convolution"):
        initialise(g, made_data(), TrainConfig(whiten=True))
