"""Naive NumPy reference of the kernels, and the tolerance to compare them with.

Every function of `convserve.kernels` that computes is here under the same name and signature,
written to be checked by eye: loops over window positions, float64 throughout, no argument checks.
Results are float64. Every operator has a forward and a backward function, in this order:
conv2d, max_pool2d, avg_pool2d, global_avg_pool2d, affine, relu, prelu, softmax, batch_norm.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Unit roundoff of float32: the largest relative error of one operation.
ROUNDOFF = 2.0**-24


def tolerance(terms: int, magnitude: Any) -> Any:
    """Largest error of a float32 sum of `terms` products, in any order of summation.

    magnitude: the sum of the terms' absolute values (a number or an array), or an upper bound of it
    such as terms * max_product. The three more roundings are the product's, the bias's and the
    result's; the smallest normal number allows for denormals flushed to zero.
    """
    return (terms + 3) * ROUNDOFF * np.asarray(magnitude) + np.finfo(np.float32).tiny


def assert_close(actual: Array, expected: Array, allowed: Any = 0.0, **context: Any) -> None:
    """Fails, naming the first bad index, unless |actual - expected| <= allowed everywhere.

    NaN equals NaN, and an infinity itself. actual must be float32 and C-contiguous, as kernels
    return it. context: what the message shall also say, such as isa or strides.
    """
    assert isinstance(actual, np.ndarray), type(actual)
    where = " ".join(f"{name}={value!r}" for name, value in context.items())
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}; {where}"
    assert actual.dtype == np.float32, f"dtype {actual.dtype}; {where}"
    assert actual.flags.c_contiguous, f"strides {actual.strides}; {where}"
    with np.errstate(invalid="ignore"):
        error = np.abs(actual.astype(np.float64) - expected)
        same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        bad = ~(same | (error <= allowed))
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"shape {actual.shape}: {int(bad.sum())} of {bad.size} differ, first at {index}: "
            f"{actual[index]!r}, not {expected[index]!r} "
            f"(allowed {np.broadcast_to(allowed, bad.shape)[index]:.3g}); {where}"
        )


def assert_same_bits(actual: Array, expected: Array, **context: Any) -> None:
    """Fails unless both arrays hold the same bits (NaN payloads apart)."""
    assert_close(actual, expected, **context)
    zero = actual == 0
    if not np.array_equal(np.signbit(actual[zero]), np.signbit(expected[zero])):
        raise AssertionError(f"zeros of different sign; {context}")


def signature(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of the parameters."""
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


# Windows


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def sides(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    top_bottom, left_right = pair(padding)
    return pair(top_bottom), pair(left_right)


def starts(
    size: int, extent: int, stride: int, before: int, after: int, rounding: str
) -> list[int]:
    """Where windows start, in coordinates of the padded input."""
    padded = size + before + after
    found = list(range(0, padded - extent + 1, stride))
    rest = padded - extent - found[-1]
    assert rest == 0 or rounding != "error", "the stride does not divide"
    following = found[-1] + stride
    if rest and rounding == "ceil" and following < size + before:
        found.append(following)
    return found


def pool_windows(
    x: Array, size: Any, stride: Any, padding: Any, rounding: str
) -> list[tuple[int, int, int, int, int, int]]:
    """(oh, ow, top, bottom, left, right) of each window, in coordinates of the unpadded input."""
    kh, kw = pair(size)
    sh, sw = pair(size if stride is None else stride)
    (pt, pb), (pl, pr) = sides(padding)
    h, w = x.shape[2:]
    return [
        (oh, ow, top - pt, top - pt + kh, left - pl, left - pl + kw)
        for oh, top in enumerate(starts(h, kh, sh, pt, pb, rounding))
        for ow, left in enumerate(starts(w, kw, sw, pl, pr, rounding))
    ]


def output_like(x: Array, windows: list[tuple[int, int, int, int, int, int]]) -> Array:
    return np.zeros((*x.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1))


def conv_parts(
    x: Array,
    weight: Array,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    rounding: str,
) -> tuple[Array, list[tuple[slice, slice, int, int, slice, slice]], tuple[int, int]]:
    """The padded input; (channels, filters, kh, kw, rows, columns) of each tap; (OH, OW)."""
    (pt, pb), (pl, pr) = sides(padding)
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    filters, depth, kh, kw = weight.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pt, pb), (pl, pr)))
    oh = len(starts(x.shape[2], dh * (kh - 1) + 1, sh, pt, pb, rounding))
    ow = len(starts(x.shape[3], dw * (kw - 1) + 1, sw, pl, pr, rounding))
    each = filters // groups
    taps = [
        (
            slice(g * depth, (g + 1) * depth),
            slice(g * each, (g + 1) * each),
            i,
            j,
            slice(i * dh, i * dh + (oh - 1) * sh + 1, sh),
            slice(j * dw, j * dw + (ow - 1) * sw + 1, sw),
        )
        for g in range(groups)
        for i in range(kh)
        for j in range(kw)
    ]
    return padded, taps, (oh, ow)


# Convolution


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    rounding: str = "error",
) -> Array:
    padded, taps, (oh, ow) = conv_parts(x, weight, stride, padding, dilation, groups, rounding)
    y = np.zeros((x.shape[0], weight.shape[0], oh, ow))
    if bias is not None:
        y += bias[:, None, None]
    w = weight.astype(np.float64)
    for channels, filters, i, j, rows, columns in taps:
        seen = padded[:, channels, rows, columns]
        y[:, filters] += np.einsum("nchw,oc->nohw", seen, w[filters, :, i, j])
    return y


def conv2d_backward(
    grad: Array,
    x: Array,
    weight: Array,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    rounding: str = "error",
    input_gradient: bool = True,
) -> tuple[Array | None, Array, Array]:
    padded, taps, _ = conv_parts(x, weight, stride, padding, dilation, groups, rounding)
    g, w = grad.astype(np.float64), weight.astype(np.float64)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(w)
    for channels, filters, i, j, rows, columns in taps:
        seen = padded[:, channels, rows, columns]
        dweight[filters, :, i, j] = np.einsum("nohw,nchw->oc", g[:, filters], seen)
        dpadded[:, channels, rows, columns] += np.einsum(
            "nohw,oc->nchw", g[:, filters], w[filters, :, i, j]
        )
    (top, _), (left, _) = sides(padding)
    dx = dpadded[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return dx if input_gradient else None, dweight, g.sum(axis=(0, 2, 3))


# Pooling


def max_pool2d(
    x: Array, size: Any, stride: Any = None, padding: Any = 0, rounding: str = "error"
) -> Array:
    windows = pool_windows(x, size, stride, padding, rounding)
    y = output_like(x, windows)
    for oh, ow, top, bottom, left, right in windows:
        seen = x[:, :, max(top, 0) : bottom, max(left, 0) : right]
        y[:, :, oh, ow] = seen.max(axis=(2, 3))
    return y


def max_pool2d_backward(
    grad: Array,
    x: Array,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    rounding: str = "error",
) -> Array:
    dx = np.zeros(x.shape)
    images, channels = np.indices(x.shape[:2])
    for oh, ow, top, bottom, left, right in pool_windows(x, size, stride, padding, rounding):
        top, left = max(top, 0), max(left, 0)
        seen = x[:, :, top:bottom, left:right]
        first = seen.reshape(*x.shape[:2], seen.shape[2] * seen.shape[3]).argmax(axis=2)
        i, j = np.unravel_index(first, seen.shape[2:])
        dx[images, channels, top + i, left + j] += grad[:, :, oh, ow]
    return dx


def avg_pool2d(
    x: Array,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    rounding: str = "error",
    count_include_pad: bool = True,
) -> Array:
    windows = pool_windows(x, size, stride, padding, rounding)
    y = output_like(x, windows)
    for oh, ow, top, bottom, left, right in windows:
        seen = x[:, :, max(top, 0) : bottom, max(left, 0) : right].astype(np.float64)
        count = counted(x, padding, (top, bottom, left, right), count_include_pad)
        y[:, :, oh, ow] = seen.sum(axis=(2, 3)) / count
    return y


def avg_pool2d_backward(
    grad: Array,
    x: Array,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    rounding: str = "error",
    count_include_pad: bool = True,
) -> Array:
    dx = np.zeros(x.shape)
    for oh, ow, top, bottom, left, right in pool_windows(x, size, stride, padding, rounding):
        count = counted(x, padding, (top, bottom, left, right), count_include_pad)
        share = grad[:, :, oh, ow].astype(np.float64)[:, :, None, None] / count
        dx[:, :, max(top, 0) : bottom, max(left, 0) : right] += share
    return dx


def counted(
    x: Array, padding: Any, window: tuple[int, int, int, int], count_include_pad: bool
) -> int:
    """How many elements the mean counts: what lies beyond the padding never does."""
    top, bottom, left, right = window
    h, w = x.shape[2:]
    (pt, pb), (pl, pr) = sides(padding) if count_include_pad else ((0, 0), (0, 0))
    rows = min(bottom, h + pb) - max(top, -pt)
    columns = min(right, w + pr) - max(left, -pl)
    return rows * columns


def global_avg_pool2d(x: Array) -> Array:
    return x.astype(np.float64).mean(axis=(2, 3), keepdims=True)


def global_avg_pool2d_backward(grad: Array, x: Array) -> Array:
    return np.ones(x.shape) * grad / (x.shape[2] * x.shape[3])


# Affine


def affine(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    return y if bias is None else y + bias


def affine_backward(grad: Array, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    g = grad.astype(np.float64)
    return g @ weight, g.T @ x, g.sum(axis=0)


# Pointwise


def relu(x: Array) -> Array:
    return np.maximum(x.astype(np.float64), 0)


def relu_backward(grad: Array, x: Array) -> Array:
    return np.where(x <= 0, 0.0, grad)


def prelu(x: Array, slope: Array) -> Array:
    return np.where(x > 0, x.astype(np.float64), along(slope, x) * x)


def prelu_backward(grad: Array, x: Array, slope: Array) -> tuple[Array, Array]:
    g = grad.astype(np.float64)
    axes = (0, *range(2, x.ndim))
    return np.where(x > 0, g, along(slope, x) * g), np.where(x > 0, 0.0, g * x).sum(axis=axes)


def softmax(x: Array) -> Array:
    with np.errstate(invalid="ignore"):
        e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)


def softmax_backward(grad: Array, x: Array) -> Array:
    y = softmax(x)
    return y * (grad - (grad * y).sum(axis=1, keepdims=True))


def batch_norm(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
) -> Array:
    y = (x - along(mean, x)) / np.sqrt(along(var, x) + eps)
    if weight is not None:
        y = y * along(weight, x)
    return y if bias is None else y + along(bias, x)


def batch_norm_train(
    x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    mean, var = statistics(x)
    return batch_norm(x, mean, var, weight, bias, eps), mean, var


def batch_norm_backward(
    grad: Array,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    g = grad.astype(np.float64)
    normalised = batch_norm(x, mean, var, eps=eps)
    dbias = g.sum(axis=axes)
    dweight = (g * normalised).sum(axis=axes)
    count = max(x.size // x.shape[1], 1)
    inner = g - along(dbias, x) / count - normalised * along(dweight, x) / count
    dx = inner / np.sqrt(along(var, x) + eps)
    return (dx if weight is None else dx * along(weight, x)), dweight, dbias


def statistics(x: Array) -> tuple[Array, Array]:
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    return x.astype(np.float64).mean(axis=axes), x.astype(np.float64).var(axis=axes)


def along(values: Array, x: Array) -> Array:
    """[C] in float64, shaped to broadcast along axis 1 of x."""
    return values.astype(np.float64).reshape(1, -1, *[1] * (x.ndim - 2))
