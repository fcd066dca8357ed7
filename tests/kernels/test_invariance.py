"""The same bits for any batch and any number of threads; a NaN never reaches another image."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
import reference
from kernel_cases import Array

from convserve import kernels

pytestmark = pytest.mark.usefixtures("isa", "threads")

normal = cases.normal
WEIGHT, BIAS = normal(90, 48, 24, 3, 3), normal(91, 48)
GROUPED, DENSE = normal(92, 24, 3, 3, 3), normal(93, 60, 500)
CHANNELS = normal(94, 24), abs(normal(95, 24)), normal(96, 24), normal(97, 24)
IMAGES, ROWS = (7, 24, 26, 26), (7, 500)

# Functions of a batch whose outputs belong to one image each: name -> (shape of x, function).
# The shapes are large enough for every function to use its threads.
PER_IMAGE: dict[str, tuple[tuple[int, ...], Callable[[Array], Array]]] = {
    "conv2d": (IMAGES, lambda x: kernels.conv2d(x, WEIGHT, BIAS, padding=1)),
    "conv2d strided": (IMAGES, lambda x: kernels.conv2d(x, WEIGHT, stride=2, rounding="floor")),
    "conv2d dilated": (IMAGES, lambda x: kernels.conv2d(x, WEIGHT, dilation=2)),
    "conv2d grouped": (IMAGES, lambda x: kernels.conv2d(x, GROUPED, groups=8)),
    "conv2d depthwise": (IMAGES, lambda x: kernels.conv2d(x, GROUPED[:, :1], groups=24)),
    "conv2d 1x1": (IMAGES, lambda x: kernels.conv2d(x, WEIGHT[:, :, :1, :1], BIAS)),
    "conv2d first layer": ((7, 3, 90, 90), lambda x: kernels.conv2d(x, WEIGHT[:, :3])),
    "conv2d narrow": ((7, 24, 40, 3), lambda x: kernels.conv2d(x, WEIGHT, padding=(0, 1))),
    "conv2d_backward dx": (
        (7, 48, 24, 24),
        lambda g: kernels.conv2d_backward(g, normal(1, len(g), *IMAGES[1:]), WEIGHT)[0],
    ),
    "affine": (ROWS, lambda x: kernels.affine(x, DENSE, normal(1, 60))),
    "affine_backward dx": (
        (7, 60),
        lambda g: kernels.affine_backward(g, normal(1, len(g), 500), DENSE)[0],
    ),
    "max_pool2d": (IMAGES, lambda x: kernels.max_pool2d(x, 2)),
    "max_pool2d overlapping": (IMAGES, lambda x: kernels.max_pool2d(x, 3, 1, 1)),
    "max_pool2d_backward": (
        IMAGES,
        lambda g: kernels.max_pool2d_backward(g, normal(1, *g.shape), 3, 1, 1),
    ),
    "avg_pool2d": (IMAGES, lambda x: kernels.avg_pool2d(x, 2)),
    "avg_pool2d_backward": (
        IMAGES,
        lambda g: kernels.avg_pool2d_backward(g, normal(1, *g.shape), 3, 1, 1),
    ),
    "global_avg_pool2d": (IMAGES, kernels.global_avg_pool2d),
    "relu": (IMAGES, kernels.relu),
    "prelu": (IMAGES, lambda x: kernels.prelu(x, CHANNELS[0])),
    "prelu_backward dx": (
        IMAGES,
        lambda g: kernels.prelu_backward(g, normal(1, *g.shape), CHANNELS[0])[0],
    ),
    "softmax": ((70, 500), kernels.softmax),
    "batch_norm": (IMAGES, lambda x: kernels.batch_norm(x, *CHANNELS)),
}

# Functions whose outputs are sums over the batch too.
OVER_BATCH: dict[str, Callable[[], tuple[Array, ...]]] = {
    "conv2d_backward": lambda: kernels.conv2d_backward(
        normal(1, 7, 48, 24, 24), normal(2, *IMAGES), WEIGHT
    ),
    "affine_backward": lambda: kernels.affine_backward(
        normal(1, 70, 60), normal(2, 70, 500), DENSE
    ),
    "batch_norm_train": lambda: kernels.batch_norm_train(normal(1, *IMAGES)),
    "batch_norm_backward": lambda: kernels.batch_norm_backward(
        normal(1, *IMAGES), normal(2, *IMAGES), *CHANNELS[:3]
    ),
    "softmax_backward": lambda: (kernels.softmax_backward(normal(1, 70, 500), normal(2, 70, 500)),),
    "prelu_backward": lambda: kernels.prelu_backward(
        normal(1, *IMAGES), normal(2, *IMAGES), CHANNELS[0]
    ),
    "relu_backward": lambda: (kernels.relu_backward(normal(1, *IMAGES), normal(2, *IMAGES)),),
}


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize("count", [2, 3])
def test_threads_do_not_change_the_bits(name: str, count: int) -> None:
    shape, function = PER_IMAGE[name]
    # One, two and all images: threads may share out images, or the parts of one.
    for images in (1, 2, shape[0]):
        x = normal(3, images, *shape[1:])
        kernels.set_num_threads(1)
        alone = function(x)
        kernels.set_num_threads(count)
        reference.assert_same_bits(function(x), alone, threads=count, images=images)


@pytest.mark.parametrize("name", OVER_BATCH)
@pytest.mark.parametrize("count", [2, 3])
def test_threads_do_not_change_the_bits_of_sums(name: str, count: int) -> None:
    kernels.set_num_threads(1)
    alone = OVER_BATCH[name]()
    kernels.set_num_threads(count)
    for one, many in zip(alone, OVER_BATCH[name](), strict=True):
        reference.assert_same_bits(many, one, threads=count)


@pytest.mark.parametrize("name", [n for n in PER_IMAGE if "_backward" not in n])
def test_an_image_has_the_same_bits_alone_and_anywhere_in_a_batch(name: str) -> None:
    shape, function = PER_IMAGE[name]
    kernels.set_num_threads(2)
    x = normal(3, *shape)
    whole = function(x)
    for i in range(0, shape[0], 3):
        reference.assert_same_bits(function(x[i : i + 1]), whole[i : i + 1], image=i)
    reference.assert_same_bits(function(x[2:]), whole[2:], batch="a part")
    order = np.random.default_rng(1).permutation(shape[0])
    reference.assert_same_bits(function(x[order]), whole[order], batch="shuffled")
    reference.assert_same_bits(function(x[::-1]), whole[::-1].copy(), batch="reversed view")
    assert function(x[:0]).shape == (0, *whole.shape[1:])


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_nan_or_infinity_never_reaches_another_image(name: str, value: float) -> None:
    shape, function = PER_IMAGE[name]
    x = normal(3, *shape)
    clean = function(x)
    poisoned = x.copy()
    poisoned[1].reshape(-1)[::97] = value
    with np.errstate(invalid="ignore"):
        result = function(poisoned)
    others = [i for i in range(shape[0]) if i != 1]
    reference.assert_same_bits(result[others], clean[others], value=value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_makes_non_finite_what_the_reference_does(
    groups: int, where: str, value: float
) -> None:
    arrays = {
        "x": normal(1, 2, 20, 9, 9),
        "weight": normal(2, 36, 20 // groups, 3, 3),
        "bias": normal(3, 36),
    }
    arrays[where].reshape(-1)[-40:-20] = value
    arguments: dict[str, Any] = {"padding": 1, "stride": 2, "groups": groups}
    with np.errstate(invalid="ignore"):
        expected = reference.conv2d(**arrays, **arguments)
        actual = kernels.conv2d(**arrays, **arguments)
    assert not np.isfinite(expected).all()
    assert not np.isfinite(actual[~np.isfinite(expected)]).any()
    # Padding of channel blocks may make more of the image non-finite, and nothing wrong.
    finite = np.isfinite(actual)
    np.testing.assert_allclose(actual[finite], expected[finite], atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_affine_makes_non_finite_what_the_reference_does(value: float) -> None:
    x, weight = normal(1, 5, 33), normal(2, 19, 33)
    x[3, 32] = value
    weight[7, 5] = value
    with np.errstate(invalid="ignore"):
        expected = reference.affine(x, weight)
        actual = kernels.affine(x, weight)
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))


def test_calls_from_many_python_threads_do_not_disturb_one_another() -> None:
    x = normal(1, 4, 24, 20, 20)
    kernels.set_num_threads(2)

    def run(i: int) -> tuple[Array, Array]:
        return kernels.conv2d(x + np.float32(i), WEIGHT), kernels.max_pool2d(x * np.float32(i), 2)

    expected = [run(i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for i, (conv, pooled) in enumerate(pool.map(run, [0, 1, 2, 3] * 4)):
            reference.assert_same_bits(conv, expected[i % 4][0])
            reference.assert_same_bits(pooled, expected[i % 4][1])
