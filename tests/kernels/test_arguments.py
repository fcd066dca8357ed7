"""Wrong arguments are refused with parameter, value and rule; sizes follow the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from convserve import kernels
from convserve.errors import ShapeError
from convserve.kernels import _arguments


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


X, W = zeros(2, 4, 6, 6), zeros(8, 4, 3, 3)
ROWS, DENSE, C = zeros(2, 5), zeros(3, 5), zeros(4)
HUGE = 10**5000

# (call, error, what the message says)
BAD: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    # Not float32 arrays
    (lambda: kernels.conv2d([[1.0]], W), TypeError, ["conv2d: x", "numpy array", "list"]),
    (lambda: kernels.conv2d(X.astype(float), W), TypeError, ["x", "float32", "float64"]),
    (lambda: kernels.conv2d(X, W.astype(np.float16)), TypeError, ["weight", "float16"]),
    (lambda: kernels.conv2d(X, W, C.astype(np.int32)), TypeError, ["bias", "int32"]),
    (lambda: kernels.conv2d(X, None), TypeError, ["weight", "NoneType"]),
    (lambda: kernels.max_pool2d(X.astype(">f4"), 2), TypeError, ["x", ">f4"]),
    (lambda: kernels.affine(ROWS, DENSE, [0.0] * 3), TypeError, ["bias", "list"]),
    (lambda: kernels.relu(3.0), TypeError, ["relu: x", "float"]),
    (lambda: kernels.relu_backward(None, X), TypeError, ["relu_backward: grad", "NoneType"]),
    (lambda: kernels.softmax("x"), TypeError, ["softmax: x", "str"]),
    (lambda: kernels.batch_norm(X, None, C), TypeError, ["batch_norm: mean", "NoneType"]),
    # Rank and size
    (lambda: kernels.conv2d(X[0], W), ShapeError, ["conv2d: x", "4 axes", "(4, 6, 6)"]),
    (lambda: kernels.conv2d(X, W[0]), ShapeError, ["weight", "4 axes", "(4, 3, 3)"]),
    (lambda: kernels.conv2d(X, W[:0]), ShapeError, ["weight", "at least one", "(0, 4, 3, 3)"]),
    (lambda: kernels.conv2d(X[:, :0], W[:, :0]), ShapeError, ["x", "empty", "(2, 0, 6, 6)"]),
    (lambda: kernels.conv2d(X[..., :0], W), ShapeError, ["x", "empty", "(2, 4, 6, 0)"]),
    (lambda: kernels.conv2d(X, W, C), ShapeError, ["bias", "(8,)", "(4,)"]),
    (lambda: kernels.conv2d(X, W, zeros(8, 1)), ShapeError, ["bias", "(8,)", "(8, 1)"]),
    (lambda: kernels.max_pool2d(X[0], 2), ShapeError, ["max_pool2d: x", "4 axes"]),
    (lambda: kernels.global_avg_pool2d(ROWS), ShapeError, ["global_avg_pool2d: x", "4 axes"]),
    (lambda: kernels.affine(X, DENSE), ShapeError, ["affine: x", "2 axes", "(2, 4, 6, 6)"]),
    (lambda: kernels.affine(ROWS, DENSE[:, 1:]), ShapeError, ["weight", "5", "(3, 4)"]),
    (lambda: kernels.affine(ROWS, DENSE[:0]), ShapeError, ["weight", "(0, 5)"]),
    (lambda: kernels.affine(ROWS, DENSE, C), ShapeError, ["bias", "(3,)", "(4,)"]),
    (lambda: kernels.softmax(X), ShapeError, ["softmax: x", "2 axes"]),
    (lambda: kernels.softmax(zeros(2, 0)), ShapeError, ["softmax: x", "empty", "(2, 0)"]),
    (lambda: kernels.batch_norm(X[0], C, C), ShapeError, ["batch_norm: x", "2 or 4 axes"]),
    (lambda: kernels.batch_norm(X, C[1:], C), ShapeError, ["mean", "(4,)", "(3,)"]),
    (lambda: kernels.batch_norm(X, C, C[1:]), ShapeError, ["var", "(4,)", "(3,)"]),
    (lambda: kernels.batch_norm(X, C, C, C[1:]), ShapeError, ["weight", "(4,)", "(3,)"]),
    (lambda: kernels.batch_norm(X, C, C, C, C[1:]), ShapeError, ["bias", "(4,)", "(3,)"]),
    (lambda: kernels.batch_norm_train(X[:0]), ShapeError, ["batch_norm_train: x", "at least one"]),
    # Channels and groups
    (lambda: kernels.conv2d(X, W[:, :3]), ShapeError, ["weight", "channels", "4", "got 3"]),
    (lambda: kernels.conv2d(X, W, groups=3), ShapeError, ["groups", "3", "channels 4"]),
    (lambda: kernels.conv2d(X, W[:7, :2], groups=2), ShapeError, ["groups 2", "filters 7"]),
    (lambda: kernels.conv2d(X, W, groups=0), ShapeError, ["groups", "from 1", "got 0"]),
    (lambda: kernels.conv2d(X, W, groups=1.0), TypeError, ["groups", "integer", "1.0"]),
    (lambda: kernels.conv2d(X, W, groups=True), TypeError, ["groups", "integer", "True"]),
    # Window settings
    (lambda: kernels.conv2d(X, W, stride=0), ShapeError, ["conv2d: stride", "from 1", "got 0"]),
    (lambda: kernels.conv2d(X, W, stride=(1, -2)), ShapeError, ["stride[1]", "got -2"]),
    (lambda: kernels.conv2d(X, W, stride=(1,)), ShapeError, ["stride", "(h, w)", "(1,)"]),
    (lambda: kernels.conv2d(X, W, stride=(1, 1, 1)), ShapeError, ["stride", "(1, 1, 1)"]),
    (lambda: kernels.conv2d(X, W, stride=None), TypeError, ["stride", "integer", "None"]),
    (lambda: kernels.conv2d(X, W, stride="1"), TypeError, ["stride", "integer", "'1'"]),
    (lambda: kernels.conv2d(X, W, stride=(1, 1.0)), TypeError, ["stride[1]", "1.0"]),
    (lambda: kernels.conv2d(X, W, stride=2**31), ShapeError, ["stride", "2147483647"]),
    (lambda: kernels.conv2d(X, W, stride=HUGE), ShapeError, ["stride", "bits"]),
    (lambda: kernels.conv2d(X, W, stride=(HUGE,)), ShapeError, ["stride", "tuple"]),
    (lambda: kernels.conv2d(X, W, padding=-1), ShapeError, ["padding", "from 0", "got -1"]),
    (lambda: kernels.conv2d(X, W, padding=0.5), TypeError, ["padding", "integer", "0.5"]),
    (lambda: kernels.conv2d(X, W, padding=np.nan), TypeError, ["padding", "integer", "nan"]),
    (lambda: kernels.conv2d(X, W, padding=((1, 1),)), ShapeError, ["padding", "(left, right)"]),
    (lambda: kernels.conv2d(X, W, padding=(1, (1, 2))), ShapeError, ["padding", "(1, (1, 2))"]),
    (lambda: kernels.conv2d(X, W, padding=(1, 1, 1, 1)), ShapeError, ["padding", "(1, 1, 1, 1)"]),
    (lambda: kernels.conv2d(X, W, padding=2**31 - 1), ShapeError, ["padded height", "limit"]),
    (lambda: kernels.conv2d(X, W, dilation=0), ShapeError, ["dilation", "got 0"]),
    (lambda: kernels.conv2d(X, W, dilation=3), ShapeError, ["7 with dilation 3", "6 + padding"]),
    (lambda: kernels.conv2d(X, W, dilation=2**31 - 1), ShapeError, ["window's height"]),
    (lambda: kernels.conv2d(X[:, :, :2], W), ShapeError, ["window's height 3", "2 + padding"]),
    (lambda: kernels.conv2d(X, W, stride=2), ShapeError, ["stride 2", "divide", "2.5", "floor"]),
    (lambda: kernels.conv2d(X, W, rounding="ceil"), ShapeError, ["rounding", "floor", "'ceil'"]),
    (lambda: kernels.conv2d(X, W, rounding=None), TypeError, ["rounding", "string", "None"]),
    (lambda: kernels.max_pool2d(X, 2, rounding="up"), ShapeError, ["rounding", '"ceil"', "'up'"]),
    (lambda: kernels.max_pool2d(X, 0), ShapeError, ["max_pool2d: size", "from 1", "got 0"]),
    (lambda: kernels.max_pool2d(X, None), TypeError, ["max_pool2d: size", "integer", "None"]),
    (lambda: kernels.max_pool2d(X, 7), ShapeError, ["window's height 7", "6 + padding"]),
    (lambda: kernels.max_pool2d(X, 4), ShapeError, ["stride 4", "divide"]),
    (
        lambda: kernels.max_pool2d(X, 2, padding=2),
        ShapeError,
        ["padding", "smaller", "padding 2"],
    ),
    (lambda: kernels.max_pool2d(X, (1, 3), padding=1), ShapeError, ["padding 1", "height of 1"]),
    (lambda: kernels.avg_pool2d(X, 2, stride=-1), ShapeError, ["avg_pool2d: stride", "got -1"]),
    (
        lambda: kernels.avg_pool2d(X, 2, count_include_pad=1),
        TypeError,
        ["count_include_pad", "bool", "1"],
    ),
    (lambda: kernels.batch_norm(X, C, C, eps=0), ShapeError, ["eps", "above 0", "got 0"]),
    (lambda: kernels.batch_norm(X, C, C, eps=np.inf), ShapeError, ["eps", "finite", "inf"]),
    (lambda: kernels.batch_norm_train(X, eps=HUGE), ShapeError, ["eps", "finite"]),
    (lambda: kernels.batch_norm_train(X, eps="1"), TypeError, ["eps", "number", "'1'"]),
    # Gradients that do not have the output's shape
    (lambda: kernels.conv2d_backward(X, X, W), ShapeError, ["grad", "(2, 8, 4, 4)"]),
    (lambda: kernels.max_pool2d_backward(X, X, 2), ShapeError, ["grad", "(2, 4, 3, 3)"]),
    (lambda: kernels.avg_pool2d_backward(X, X, 2), ShapeError, ["grad", "(2, 4, 3, 3)"]),
    (lambda: kernels.global_avg_pool2d_backward(X, X), ShapeError, ["grad", "(2, 4, 1, 1)"]),
    (lambda: kernels.affine_backward(ROWS, ROWS, DENSE), ShapeError, ["grad", "(2, 3)"]),
    (lambda: kernels.relu_backward(ROWS, X), ShapeError, ["grad", "(2, 4, 6, 6)", "(2, 5)"]),
    (lambda: kernels.prelu_backward(ROWS, X, C), ShapeError, ["grad", "(2, 4, 6, 6)", "(2, 5)"]),
    (lambda: kernels.prelu(X, ROWS), ShapeError, ["prelu: slope", "(4,)", "(2, 5)"]),
    (lambda: kernels.prelu(C, C), ShapeError, ["prelu: x", "(4,)"]),
    (lambda: kernels.softmax_backward(DENSE, ROWS), ShapeError, ["grad", "(2, 5)", "(3, 5)"]),
    (lambda: kernels.batch_norm_backward(ROWS, X, C, C), ShapeError, ["grad", "(2, 4, 6, 6)"]),
]


@pytest.mark.parametrize(("call", "error", "parts"), BAD)
def test_wrong_arguments(call: Callable[[], Any], error: type[Exception], parts: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    message = str(raised.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in {message!r}"
    assert len(message) < 300 and "\n" not in message


def test_numpy_integers_and_lists_are_fine() -> None:
    plain = kernels.conv2d(X, W, stride=1, padding=((1, 2), (0, 1)))
    numpy = kernels.conv2d(X, W, stride=np.int64(1), padding=[[np.uint8(1), 2], (0, np.int32(1))])
    assert plain.shape == numpy.shape == (2, 8, 7, 5)
    assert kernels.max_pool2d(X, np.int16(2)).shape == (2, 4, 3, 3)


def test_unaligned_arrays_are_copied() -> None:
    values = np.random.default_rng(1).standard_normal((2, 4, 6, 6), dtype=np.float32)
    raw = np.frombuffer(b"?" + values.tobytes(), np.uint8)[1:]
    unaligned = raw.view(np.float32).reshape(values.shape)
    assert not unaligned.flags.aligned
    for function in (
        kernels.relu,
        lambda x: kernels.max_pool2d(x, 2),
        lambda x: kernels.conv2d(x, W),
    ):
        reference.assert_same_bits(function(unaligned), function(values))


@given(
    size=st.integers(1, 60),
    kernel=st.integers(1, 9),
    stride=st.integers(1, 9),
    before=st.integers(0, 8),
    after=st.integers(0, 8),
    dilation=st.integers(1, 3),
    rounding=st.sampled_from(["error", "floor", "ceil"]),
)
def test_the_output_size_counts_the_windows(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, rounding: str
) -> None:
    arguments = (size, kernel, stride, before, after, dilation, rounding)
    extent = dilation * (kernel - 1) + 1
    if extent > size + before + after:
        with pytest.raises(ShapeError, match="must not exceed"):
            _arguments.output_size(*arguments)
    elif rounding == "error" and (size + before + after - extent) % stride:
        with pytest.raises(ShapeError, match="does not divide"):
            _arguments.output_size(*arguments)
    else:
        starts = reference.starts(size, extent, stride, before, after, rounding)
        assert _arguments.output_size(*arguments) == len(starts)


def test_the_formula_of_the_book() -> None:
    """(28 + 2 * 2 - 5) / 1 + 1 = 28; (7 + 0 - 3) / 2 + 1 = 3; an error where it does not divide."""
    assert _arguments.output_size(28, 5, 1, 2, 2) == 28
    assert _arguments.output_size(7, 3, 2) == 3
    with pytest.raises(ShapeError, match=r"3\.5"):
        _arguments.output_size(8, 3, 2)
