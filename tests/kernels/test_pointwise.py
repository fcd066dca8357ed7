"""ReLU, PReLU, softmax and batch normalisation, forward and backward, against the reference."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Array

from convserve import kernels

pytestmark = pytest.mark.usefixtures("isa")

images = st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
flat = st.tuples(st.integers(0, 9), st.integers(1, 40))


@settings(max_examples=60)
@given(shape=st.one_of(images, flat), layout=cases.layouts, seed=cases.seeds)
def test_relu_equals_the_reference(shape: tuple[int, ...], layout: str, seed: int) -> None:
    x = cases.laid_out(cases.normal(seed, *shape), layout)
    grad = cases.laid_out(cases.normal(seed + 1, *shape), layout)
    reference.assert_close(kernels.relu(x), reference.relu(x), layout=layout)
    reference.assert_close(
        kernels.relu_backward(grad, x), reference.relu_backward(grad, x), layout=layout
    )


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 0, 2), (2, 3, 4, 5, 6)])
def test_relu_takes_any_rank(shape: tuple[int, ...]) -> None:
    x = cases.normal(1, *shape)
    reference.assert_close(kernels.relu(x), reference.relu(x))
    reference.assert_close(kernels.relu_backward(x, x), reference.relu_backward(x, x))


def test_relu_of_special_values() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1], np.float32)
    reference.assert_close(kernels.relu(x), reference.relu(x))
    assert kernels.relu_backward(x, x)[1] == np.inf
    assert np.isnan(kernels.relu_backward(x, x)[0])


@settings(max_examples=60)
@given(shape=st.one_of(images, flat), layout=cases.layouts, seed=cases.seeds)
def test_prelu_equals_the_reference(shape: tuple[int, ...], layout: str, seed: int) -> None:
    x = cases.laid_out(cases.normal(seed, *shape), layout)
    grad = cases.laid_out(cases.normal(seed + 1, *shape), layout)
    slope = cases.normal(seed + 2, shape[1])
    y, (dx, dslope) = reference.prelu(x, slope), reference.prelu_backward(grad, x, slope)
    reference.assert_close(kernels.prelu(x, slope), y, reference.tolerance(1, abs(y)))
    actual_dx, actual_dslope = kernels.prelu_backward(grad, x, slope)
    reference.assert_close(actual_dx, dx, reference.tolerance(1, abs(dx)), layout=layout)
    # Summed in double: one rounding at the end.
    allowed = reference.tolerance(0, abs(dslope))
    reference.assert_close(actual_dslope, dslope, allowed, layout=layout)


def test_prelu_of_special_values() -> None:
    x = np.array([[np.nan], [np.inf], [-np.inf], [0], [-1], [1]], np.float32)
    slope = np.array([0.5], np.float32)
    expected = np.array([[np.nan], [np.inf], [-np.inf], [0], [-0.5], [1]])
    reference.assert_close(kernels.prelu(x, slope), expected)
    dx, dslope = kernels.prelu_backward(np.ones_like(x), x, slope)
    reference.assert_close(dx, np.array([[0.5], [1], [0.5], [0.5], [0.5], [1]]))
    assert np.isnan(dslope)
    assert kernels.prelu_backward(np.ones_like(x[3:]), x[3:], slope)[1] == -1


@settings(max_examples=60)
@given(shape=flat, layout=cases.layouts, scale=st.sampled_from([1.0, 100.0, 1e30]))
def test_softmax_equals_the_reference(shape: tuple[int, int], layout: str, scale: float) -> None:
    x = cases.laid_out(cases.normal(1, *shape) * np.float32(scale), layout)
    expected = reference.softmax(x)
    reference.assert_close(
        kernels.softmax(x), expected, reference.tolerance(1, expected), layout=layout, scale=scale
    )

    grad = cases.laid_out(cases.normal(2, *shape), layout)
    magnitude = expected * (abs(grad) + (abs(grad) * expected).sum(axis=1, keepdims=True))
    reference.assert_close(
        kernels.softmax_backward(grad, x),
        reference.softmax_backward(grad, x),
        reference.tolerance(8, magnitude),  # y has a rounding of its own
        layout=layout,
        scale=scale,
    )


def test_softmax_is_stable_and_a_nan_stays_in_its_row() -> None:
    rows = [[1e38, 1e38, -1e38], [0, np.nan, 1], [1, 2, 3], [-np.inf, 0, 0], [-np.inf] * 3]
    x = np.array(rows, np.float32)
    reference.assert_close(kernels.softmax(x), reference.softmax(x), 1e-7)


def statistics_of(seed: int, channels: int) -> tuple[Array, Array, Array, Array]:
    mean, weight, bias = cases.normal(seed, 3, channels)
    return mean, np.exp(cases.normal(seed + 1, channels)), weight, bias


@settings(max_examples=100)
@given(shape=st.one_of(images, flat), layout=cases.layouts, plain=st.booleans(), seed=cases.seeds)
def test_batch_norm_equals_the_reference(
    shape: tuple[int, ...], layout: str, plain: bool, seed: int
) -> None:
    x = cases.laid_out(cases.normal(seed, *shape), layout)
    mean, var, weight, bias = statistics_of(seed + 1, shape[1])
    terms = (None, None) if plain else (weight, bias)
    scale = reference.along(1 / np.sqrt(var) * (1 if plain else abs(weight)), x)
    magnitude = (abs(x) + reference.along(abs(mean), x)) * scale + reference.along(abs(bias), x)
    reference.assert_close(
        kernels.batch_norm(x, mean, var, *terms, eps=0.01),
        reference.batch_norm(x, mean, var, *terms, eps=0.01),
        reference.tolerance(2, magnitude),
        x=shape,
        layout=layout,
    )


@settings(max_examples=100)
@given(
    shape=st.one_of(images, flat).filter(lambda shape: shape[0] > 0),
    layout=cases.layouts,
    plain=st.booleans(),
    offset=st.sampled_from([0.0, 100.0]),
    seed=cases.seeds,
)
def test_batch_norm_train_equals_the_reference(
    shape: tuple[int, ...], layout: str, plain: bool, offset: float, seed: int
) -> None:
    x = cases.laid_out(cases.normal(seed, *shape) + np.float32(offset), layout)
    weight, bias = cases.normal(seed + 1, 2, shape[1])
    terms = (None, None) if plain else (weight, bias)
    y, mean, var = kernels.batch_norm_train(x, *terms)
    y_expected, mean_expected, var_expected = reference.batch_norm_train(x, *terms)
    context = {"x": shape, "layout": layout}
    # Statistics are summed in double: one rounding at the end.
    reference.assert_close(mean, mean_expected, reference.tolerance(0, abs(mean_expected)))
    reference.assert_close(var, var_expected, reference.tolerance(0, var_expected))
    scale = reference.along((1 if plain else abs(weight)) / np.sqrt(var_expected + 1e-5), x)
    magnitude = (abs(x) + reference.along(abs(mean_expected), x)) * scale
    magnitude = magnitude + reference.along(abs(bias), x)
    reference.assert_close(y, y_expected, reference.tolerance(2, magnitude), **context)

    # The gradient at the rounded statistics that the caller got.
    grad = cases.laid_out(cases.normal(seed + 2, *shape), layout)
    scale = terms[0]
    actual = kernels.batch_norm_backward(grad, x, mean, var, scale)
    expected = reference.batch_norm_backward(grad, x, mean, var, scale)
    inverse = reference.along(1 / np.sqrt(var.astype(np.float64) + 1e-5), x)
    axes = (0, *range(2, x.ndim))
    spread = (abs(x) + reference.along(abs(mean), x)) * inverse
    total = (abs(grad) * spread).sum(axis=axes)
    count = x.size / shape[1]
    inner = abs(grad) + reference.along(abs(grad).sum(axis=axes), x) / count
    inner = inner + spread * reference.along(total, x) / count
    factor = inverse if scale is None else inverse * reference.along(abs(scale), x)
    allowed = (inner * factor, total, abs(grad).sum(axis=axes))
    for name, a, e, m in zip(("dx", "dweight", "dbias"), actual, expected, allowed, strict=True):
        reference.assert_close(a, e, reference.tolerance(5, m), gradient=name, **context)


def test_batch_norm_train_keeps_precision_far_from_zero() -> None:
    """A one-pass float32 variance would be nonsense here."""
    x = np.float32(4096) + cases.normal(1, 64, 3, 16, 16)
    _, mean, var = kernels.batch_norm_train(x)
    reference.assert_close(var, x.astype(np.float64).var(axis=(0, 2, 3)), 1e-6)
    reference.assert_close(mean, x.astype(np.float64).mean(axis=(0, 2, 3)), 3e-4)


def test_batch_norm_backward_of_no_images_is_zero() -> None:
    x = np.empty((0, 3, 2, 2), np.float32)
    ones = np.ones(3, np.float32)
    dx, dweight, dbias = kernels.batch_norm_backward(x, x, ones, ones)
    assert dx.shape == x.shape
    assert not dweight.any() and not dbias.any()
