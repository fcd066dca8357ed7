"""The reference's backward functions against numerical derivatives of its forward ones, in float64.

The kernels' backward functions are compared with the reference's elsewhere in this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from kernel_cases import Array


def numerical(loss: Callable[[], float], array: Array, step: float = 1e-6) -> Array:
    """d loss / d array by central differences; the array is changed in place and put back."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = loss()
        array[index] = value - step
        gradient[index] = (above - loss()) / (2 * step)
        array[index] = value
    return gradient


def check(
    forward: Callable[..., Array],
    backward: Callable[..., Any],
    arrays: list[Array],
    **arguments: Any,
) -> None:
    """backward(grad, *arrays) is the gradient of sum(grad * forward(*arrays)) by each array."""
    grad = np.random.default_rng(9).standard_normal(forward(*arrays, **arguments).shape)
    gradients = backward(grad, *arrays, **arguments)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    for array, gradient in zip(arrays, gradients, strict=True):
        expected = numerical(lambda: float((grad * forward(*arrays, **arguments)).sum()), array)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


def random(*shape: int) -> Array:
    """Distinct values at least 0.01 apart and from 0, so that no maximum or kink is near a tie."""
    size = int(np.prod(shape))
    values = (np.random.default_rng(1).permutation(size) - size / 2 + 0.25) * 0.02
    return values.reshape(shape)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": ((1, 0), (2, 1)), "stride": (2, 1), "rounding": "floor"},
        {"dilation": 2, "padding": 1},
        {"groups": 2, "padding": 1},
    ],
)
def test_conv2d(arguments: dict[str, Any]) -> None:
    weight = random(4, 4 // arguments.get("groups", 1), 3, 2)

    def forward(x: Array, weight: Array, bias: Array) -> Array:
        return reference.conv2d(x, weight, bias, **arguments)

    def backward(grad: Array, x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
        return reference.conv2d_backward(grad, x, weight, **arguments)

    check(forward, backward, [random(2, 4, 6, 5), weight, random(4)])


POOLINGS: list[dict[str, Any]] = [
    {"size": 2},
    {"size": 3, "stride": 2, "padding": 1, "rounding": "ceil"},
    {"size": (2, 3), "stride": 1, "padding": ((1, 0), (0, 2))},
    {"size": 2, "stride": 3, "rounding": "floor"},
]


@pytest.mark.parametrize("arguments", POOLINGS)
def test_max_pool2d(arguments: dict[str, Any]) -> None:
    check(reference.max_pool2d, reference.max_pool2d_backward, [random(2, 2, 6, 4)], **arguments)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("arguments", POOLINGS)
def test_avg_pool2d(arguments: dict[str, Any], counted: bool) -> None:
    arguments = {**arguments, "count_include_pad": counted}
    check(reference.avg_pool2d, reference.avg_pool2d_backward, [random(2, 2, 6, 4)], **arguments)


def test_global_avg_pool2d() -> None:
    check(
        reference.global_avg_pool2d, reference.global_avg_pool2d_backward, [random(2, 3, 3, 2)]
    )  # fmt: skip


def test_affine() -> None:
    def backward(grad: Array, x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
        return reference.affine_backward(grad, x, weight)

    check(reference.affine, backward, [random(3, 5), random(4, 5), random(4)])


def test_relu() -> None:
    check(reference.relu, reference.relu_backward, [random(3, 4, 2)])


@pytest.mark.parametrize("shape", [(3, 2, 3, 2), (5, 3)])
def test_prelu(shape: tuple[int, ...]) -> None:
    slope = np.array([0.25, -0.5, 1.5])[: shape[1]]
    check(reference.prelu, reference.prelu_backward, [random(*shape), slope])


def test_softmax() -> None:
    check(reference.softmax, reference.softmax_backward, [random(3, 5)])


@pytest.mark.parametrize("shape", [(3, 2, 3, 2), (5, 3)])
def test_batch_norm_train(shape: tuple[int, ...]) -> None:
    def forward(x: Array, weight: Array, bias: Array) -> Array:
        return reference.batch_norm_train(x, weight, bias)[0]

    def backward(grad: Array, x: Array, weight: Array, bias: Array) -> tuple[Array, ...]:
        return reference.batch_norm_backward(grad, x, *reference.statistics(x), weight)

    channels = shape[1]
    check(forward, backward, [random(*shape), random(channels) + 1, random(channels)])
