"""conv2d and affine, forward and backward, against the reference on every instruction set."""

from __future__ import annotations

from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Array

from convserve import kernels


def check_conv(x: Array, weight: Array, bias: Array | None, **arguments: Any) -> None:
    context = {"isa": kernels.isa(), "x": x.shape, "weight": weight.shape, **arguments}
    expected = reference.conv2d(x, weight, bias, **arguments)
    magnitude = reference.conv2d(
        abs(x), abs(weight), None if bias is None else abs(bias), **arguments
    )
    allowed = reference.tolerance(weight[0].size, magnitude)
    actual = kernels.conv2d(x, weight, bias, **arguments)
    reference.assert_close(actual, expected, allowed, **context)


def check_conv_backward(x: Array, weight: Array, **arguments: Any) -> None:
    context = {"isa": kernels.isa(), "x": x.shape, "weight": weight.shape, **arguments}
    shape = reference.conv2d(x, weight, **arguments).shape
    grad = cases.normal(5, *shape)
    expected = reference.conv2d_backward(grad, x, weight, **arguments)
    magnitudes = reference.conv2d_backward(abs(grad), abs(x), abs(weight), **arguments)
    per_image = shape[2] * shape[3]
    terms = (shape[1] * weight[0, 0].size, shape[0] * per_image, shape[0] * per_image)
    actual = kernels.conv2d_backward(grad, x, weight, **arguments)
    for name, a, e, m, k in zip(
        ("dx", "dweight", "dbias"), actual, expected, magnitudes, terms, strict=True
    ):
        reference.assert_close(a, e, reference.tolerance(k, m), gradient=name, **context)


@settings(max_examples=200)
@given(case=cases.convolutions(), biased=st.booleans())
def test_conv2d_equals_the_reference(
    isa: str, case: tuple[Array, Array, Array, dict[str, Any]], biased: bool
) -> None:
    x, weight, bias, arguments = case
    check_conv(x, weight, bias if biased else None, **arguments)


@settings(max_examples=150)
@given(case=cases.convolutions())
def test_conv2d_backward_equals_the_reference(
    isa: str, case: tuple[Array, Array, Array, dict[str, Any]]
) -> None:
    x, weight, _, arguments = case
    check_conv_backward(x, weight, **arguments)


# Layers of real networks, ragged ones and corner cases: (x, weight, arguments).
LAYERS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    ((2, 6, 14, 14), (16, 6, 5, 5), {}),
    ((2, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}),
    ((1, 3, 33, 35), (20, 3, 7, 7), {"stride": 2, "padding": 3}),
    ((2, 48, 9, 9), (40, 48, 1, 1), {}),
    ((2, 32, 8, 8), (48, 32, 1, 1), {"stride": 2, "rounding": "floor"}),
    ((2, 33, 9, 9), (33, 1, 3, 3), {"padding": 1, "groups": 33}),
    ((2, 16, 9, 9), (32, 1, 3, 3), {"groups": 16}),
    ((1, 40, 13, 13), (24, 20, 3, 3), {"padding": 2, "dilation": 2, "groups": 2}),
    ((2, 5, 40, 3), (7, 5, 9, 3), {"stride": (31, 1)}),
    ((1, 2, 3, 3), (3, 2, 1, 1), {"stride": 2, "padding": ((0, 4), (3, 1))}),
    ((1, 300, 2, 2), (130, 300, 2, 2), {}),
]


@pytest.mark.parametrize(("x", "weight", "arguments"), LAYERS)
def test_conv2d_on_layers_of_networks(
    isa: str, x: tuple[int, ...], weight: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    image, filters = cases.normal(1, *x), cases.normal(2, *weight)
    check_conv(image, filters, cases.normal(3, weight[0]), **arguments)
    check_conv_backward(image, filters, **arguments)


def test_conv2d_of_an_identity_filter_is_the_image(isa: str) -> None:
    """Multiply-accumulate as the books draw it: a filter with a single 1 shifts the image."""
    x = cases.normal(1, 1, 1, 5, 5)
    shifting = np.zeros((1, 1, 3, 3), np.float32)
    shifting[0, 0, 1, 2] = 1
    y = kernels.conv2d(x, shifting, padding=1)
    assert np.array_equal(y[0, 0, :, :-1], x[0, 0, :, 1:])
    assert not y[0, 0, :, -1].any()


def test_conv2d_adds_the_products_of_a_filter_and_its_bias(isa: str) -> None:
    """The 4 x 4 by 3 x 3 example that introduces convolution in the books, bias 3."""
    x = np.array([[1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]], np.float32)
    weight = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], np.float32)
    y = kernels.conv2d(x[None, None], weight[None, None], np.array([3], np.float32))
    assert y.tolist() == [[[[18, 19], [9, 18]]]]


@settings(max_examples=100)
@given(
    n=st.sampled_from([0, 1, 2, 3, 5, 17, 40]),
    inputs=st.integers(1, 70),
    outputs=cases.channels,
    layout=cases.layouts,
    seed=cases.seeds,
    biased=st.booleans(),
)
def test_affine_equals_the_reference(
    isa: str, n: int, inputs: int, outputs: int, layout: str, seed: int, biased: bool
) -> None:
    x = cases.laid_out(cases.normal(seed, n, inputs), layout)
    weight = cases.laid_out(cases.normal(seed + 1, outputs, inputs), layout)
    bias = cases.normal(seed + 2, outputs) if biased else None
    context = {"isa": isa, "inputs": inputs, "layout": layout}

    magnitude = reference.affine(abs(x), abs(weight), None if bias is None else abs(bias))
    reference.assert_close(
        kernels.affine(x, weight, bias),
        reference.affine(x, weight, bias),
        reference.tolerance(inputs, magnitude),
        **context,
    )

    grad = cases.laid_out(cases.normal(seed + 3, n, outputs), layout)
    expected = reference.affine_backward(grad, x, weight)
    magnitudes = reference.affine_backward(abs(grad), abs(x), abs(weight))
    actual = kernels.affine_backward(grad, x, weight)
    for name, a, e, m, k in zip(
        ("dx", "dweight", "dbias"), actual, expected, magnitudes, (outputs, n, n), strict=True
    ):
        reference.assert_close(a, e, reference.tolerance(k, m), gradient=name, **context)


def test_conv2d_backward_without_the_input_gradient():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 9, 9)).astype(np.float32)
    weight = rng.standard_normal((7, 5, 3, 3)).astype(np.float32)
    grad = rng.standard_normal((3, 7, 7, 7)).astype(np.float32)
    whole = kernels.conv2d_backward(grad, x, weight)
    dx, *rest = kernels.conv2d_backward(grad, x, weight, input_gradient=False)
    assert dx is None
    for part, expected in zip(rest, whole[1:], strict=True):
        reference.assert_same_bits(part, expected)
