"""Pooling, forward and backward, against the reference; and what pooling is for."""

from __future__ import annotations

import inspect
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Array

from convserve import kernels

pytestmark = pytest.mark.usefixtures("isa")


@settings(max_examples=200)
@given(case=cases.poolings())
def test_max_pool2d_equals_the_reference(case: tuple[Array, dict[str, Any]]) -> None:
    x, arguments = case
    expected = reference.max_pool2d(x, **arguments)
    reference.assert_close(kernels.max_pool2d(x, **arguments), expected, x=x.shape, **arguments)

    grad = np.round(cases.normal(1, *expected.shape) * 8)  # sums of integers are exact
    reference.assert_close(
        kernels.max_pool2d_backward(grad, x, **arguments),
        reference.max_pool2d_backward(grad, x, **arguments),
        x=x.shape,
        **arguments,
    )


@settings(max_examples=200)
@given(case=cases.poolings(), count_include_pad=st.booleans())
def test_avg_pool2d_equals_the_reference(
    case: tuple[Array, dict[str, Any]], count_include_pad: bool
) -> None:
    x, arguments = case
    arguments = {**arguments, "count_include_pad": count_include_pad}
    expected = reference.avg_pool2d(x, **arguments)
    terms = int(np.prod(arguments["size"]))
    reference.assert_close(
        kernels.avg_pool2d(x, **arguments),
        expected,
        reference.tolerance(terms, reference.avg_pool2d(abs(x), **arguments)),
        x=x.shape,
        **arguments,
    )

    grad = cases.normal(1, *expected.shape)
    reference.assert_close(
        kernels.avg_pool2d_backward(grad, x, **arguments),
        reference.avg_pool2d_backward(grad, x, **arguments),
        reference.tolerance(terms, reference.avg_pool2d_backward(abs(grad), x, **arguments)),
        x=x.shape,
        **arguments,
    )


@settings(max_examples=60)
@given(
    shape=st.tuples(
        st.integers(0, 3), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12)
    ),
    layout=cases.layouts,
)  # fmt: skip
def test_global_avg_pool2d_equals_the_reference(
    shape: tuple[int, int, int, int], layout: str
) -> None:
    x = cases.laid_out(cases.normal(1, *shape), layout)
    reference.assert_close(
        kernels.global_avg_pool2d(x),
        reference.global_avg_pool2d(x),
        reference.tolerance(shape[2] * shape[3], reference.global_avg_pool2d(abs(x))),
        x=shape,
        layout=layout,
    )
    grad = cases.normal(2, *shape[:2], 1, 1)
    expected = reference.global_avg_pool2d_backward(grad, x)
    reference.assert_close(
        kernels.global_avg_pool2d_backward(grad, x), expected, reference.tolerance(1, abs(expected))
    )


@pytest.mark.parametrize("shape", [(3, 5, 28, 28), (2, 3, 7, 9), (1, 2, 2, 2), (2, 1, 3, 40)])
def test_two_by_two_pooling(shape: tuple[int, ...]) -> None:
    """The usual pooling between layers has code of its own where the windows tile the input."""
    for x in (cases.normal(1, *shape), np.round(cases.normal(2, *shape))):
        expected = reference.max_pool2d(x, 2, rounding="floor")
        reference.assert_close(kernels.max_pool2d(x, 2, rounding="floor"), expected)
        grad = cases.normal(3, *expected.shape)
        reference.assert_close(
            kernels.max_pool2d_backward(grad, x, 2, rounding="floor"),
            reference.max_pool2d_backward(grad, x, 2, rounding="floor"),
        )


@pytest.mark.parametrize("where", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [2, 3])
def test_max_pool2d_of_nan_and_infinities(size: int, value: float, where: tuple[int, int]) -> None:
    x = cases.normal(1, 2, 2, 6, 6)
    x[0, 0][where] = value
    x[1, 1, :3, :3] = value
    expected = reference.max_pool2d(x, size)
    reference.assert_close(kernels.max_pool2d(x, size), expected)
    grad = cases.normal(2, *expected.shape)
    reference.assert_close(
        kernels.max_pool2d_backward(grad, x, size), reference.max_pool2d_backward(grad, x, size)
    )


def test_a_window_larger_than_the_input_costs_only_what_it_sees() -> None:
    x = cases.normal(1, 1, 2, 3, 4)
    arguments: dict[str, Any] = {"size": 10**9, "stride": 10**9 - 2, "padding": 10**9 - 1}
    arguments["rounding"] = "floor"
    for pool, whole in (
        (kernels.max_pool2d(x, **arguments), x.max(axis=(2, 3))),
        (kernels.avg_pool2d(x, count_include_pad=False, **arguments), x.mean(axis=(2, 3))),
    ):
        assert np.array_equal(pool[:, :, 0, 0], x[:, :, 0, 0])  # the first sees one pixel
        np.testing.assert_allclose(pool[:, :, 1, 1], whole, rtol=1e-6)


def test_ceil_drops_a_window_that_would_start_in_the_far_padding() -> None:
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 1, 5)
    arguments: dict[str, Any] = {"size": (1, 2), "stride": (1, 3), "padding": (0, 1)}
    assert kernels.max_pool2d(x, rounding="ceil", **arguments).tolist() == [[[[1, 4]]]]
    # The third window [5, 7) sees no input; with a stride of 2 it sees the last pixel.
    arguments["stride"] = (1, 2)
    assert kernels.max_pool2d(x, rounding="ceil", **arguments).tolist() == [[[[1, 3, 5]]]]


def test_an_average_never_counts_what_is_beyond_the_padding() -> None:
    x = np.full((1, 1, 1, 4), 6, np.float32)
    arguments: dict[str, Any] = {"size": (1, 3), "stride": (1, 2), "padding": ((0, 0), (0, 1))}
    arguments["rounding"] = "ceil"
    assert kernels.avg_pool2d(x, **arguments).tolist() == [[[[6, 4]]]]
    arguments["padding"] = 0
    assert kernels.avg_pool2d(x, **arguments).tolist() == [[[[6, 6]]]]
    arguments["padding"] = ((0, 0), (0, 1))
    y = kernels.avg_pool2d(x, count_include_pad=False, **arguments)
    assert y.tolist() == [[[[6, 6]]]]


# What the books say about pooling


@pytest.mark.parametrize("pool", [kernels.max_pool2d, kernels.avg_pool2d])
def test_pooling_keeps_the_channels_and_has_no_parameters(pool: Any) -> None:
    x = cases.normal(1, 2, 7, 8, 8)
    assert pool(x, 2).shape == (2, 7, 4, 4)
    settings_only = {"x", "size", "stride", "padding", "rounding", "count_include_pad"}
    assert set(inspect.signature(pool).parameters) <= settings_only
    # Each channel by itself gives the same: nothing is mixed between them.
    for c in range(7):
        reference.assert_same_bits(pool(x[:, c : c + 1], 2), pool(x, 2)[:, c : c + 1])


def test_max_pooling_is_robust_to_a_small_shift() -> None:
    """A feature that moves inside its window changes nothing; a picture changes less."""
    point = np.zeros((1, 1, 12, 12), np.float32)
    point[0, 0, 4, 4] = 1
    shifted = np.roll(point, (1, 1), axis=(2, 3))
    assert not np.array_equal(point, shifted)
    assert np.array_equal(kernels.max_pool2d(point, 3), kernels.max_pool2d(shifted, 3))

    def change(before: Array, after: Array) -> float:
        return float(np.linalg.norm(after - before) / np.linalg.norm(before))

    strokes = (cases.normal(7, 1, 1, 64, 64) > 1.8).astype(np.float32)
    moved = np.roll(strokes, 1, axis=3)
    pooled, pooled_moved = kernels.max_pool2d(strokes, 4), kernels.max_pool2d(moved, 4)
    assert change(pooled, pooled_moved) < 0.65 * change(strokes, moved)
