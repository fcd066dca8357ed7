"""ReLU, PReLU, softmax and batch normalisation, forward and backward.

Work is shared out by ranges of elements, rows or channels; what belongs to one channel is always
summed by one thread, in double and in a fixed order, so that the bits do not depend on the threads.
"""

import numpy as np
from cython.parallel cimport prange
from libc.math cimport INFINITY, exp

from convserve.errors import ShapeError
from convserve.kernels._arguments import float32_array, float32_shaped, positive
from convserve.kernels._core cimport thread_count
from convserve.kernels._rows cimport row_negative_products, row_products, row_squares, row_sum

# Elements below which waking other threads costs more than they save (empirical, two cores).
cdef Py_ssize_t SMALL = 1 << 15
# Elements that a thread takes at a time from a flat array.
cdef Py_ssize_t CHUNK = 1 << 13


def relu(x):
    """max(x, 0) of each element: float32 of any shape -> float32 of that shape. NaN stays NaN."""
    x = float32_array(x, "relu: x")
    y = np.empty(x.shape, np.float32)
    cdef const float[::1] xv = flat(x)
    cdef float[::1] yv = y.reshape(-1)
    cdef Py_ssize_t i, j, size = xv.shape[0]
    cdef int threads = threads_for(size)
    for j in prange(0, size, CHUNK, nogil=True, num_threads=threads, schedule="static"):
        for i in range(j, min(j + CHUNK, size)):
            yv[i] = 0 if xv[i] <= 0 else xv[i]
    return y


def relu_backward(grad, x):
    """Gradient of relu: grad where x is above 0 (or NaN), else 0. grad and x have one shape."""
    x = float32_array(x, "relu_backward: x")
    grad = float32_shaped(grad, "relu_backward: grad", x.shape, "that of x")
    dx = np.empty(x.shape, np.float32)
    cdef const float[::1] xv = flat(x), gv = flat(grad)
    cdef float[::1] dxv = dx.reshape(-1)
    cdef float g  # read in any case, or the loop would keep a branch
    cdef Py_ssize_t i, j, size = xv.shape[0]
    cdef int threads = threads_for(size)
    for j in prange(0, size, CHUNK, nogil=True, num_threads=threads, schedule="static"):
        for i in range(j, min(j + CHUNK, size)):
            g = gv[i]
            dxv[i] = 0 if xv[i] <= 0 else g
    return dx


def prelu(x, slope):
    """x where it is above 0, else slope * x, with one slope a channel.

    x: float32 [N, C, H, W] or [N, C]. slope: float32 [C]. Returns float32 of the shape of x.
    """
    x = float32_array(x, "prelu: x", (2, 4))
    y = np.empty(x.shape, np.float32)
    cdef const float[::1] sv = slopes(slope, "prelu: slope", x.shape[1])
    cdef const float[:, :, :] xv = planes(x)
    cdef float[:, :, ::1] yv = planes(y)
    cdef Py_ssize_t i, n, c, channels = x.shape[1], length = xv.shape[2]
    cdef int threads = threads_for(x.size)
    for i in prange(xv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        prelu_row(&xv[n, c, 0], &xv[n, c, 0], sv[c], &yv[n, c, 0], length)
    return y


def prelu_backward(grad, x, slope):
    """Gradient of prelu: grad and x as there. Returns (dx, dslope): as x, and float32 [C]."""
    x = float32_array(x, "prelu_backward: x", (2, 4))
    grad = float32_shaped(grad, "prelu_backward: grad", x.shape, "that of x")
    dx = np.empty(x.shape, np.float32)
    dslope = np.zeros(x.shape[1])
    cdef const float[::1] sv = slopes(slope, "prelu_backward: slope", x.shape[1])
    cdef const float[:, :, :] xv = planes(x), gv = planes(grad)
    cdef float[:, :, ::1] dxv = planes(dx)
    cdef double[::1] dsv = dslope
    cdef Py_ssize_t c, n, images = xv.shape[0], length = xv.shape[2]
    cdef int threads = threads_for(x.size)
    for c in prange(xv.shape[1], nogil=True, num_threads=threads, schedule="static"):
        for n in range(images):
            prelu_row(&gv[n, c, 0], &xv[n, c, 0], sv[c], &dxv[n, c, 0], length)
            dsv[c] += row_negative_products(&gv[n, c, 0], &xv[n, c, 0], length)
    return dx, single(dslope)


def softmax(x):
    """exp(x) / sum(exp(x)) of each row: float32 [N, K] -> float32 [N, K].

    Stable: the row's largest value is taken off first. A row that holds a NaN becomes NaN.
    """
    x = float32_array(x, "softmax: x", 2)
    y = np.empty(x.shape, np.float32)
    cdef const float[:, ::1] xv = np.ascontiguousarray(x)
    cdef float[:, ::1] yv = y
    cdef Py_ssize_t n, classes = x.shape[1]
    cdef int threads = threads_for(x.size)
    for n in prange(xv.shape[0], nogil=True, num_threads=threads, schedule="static"):
        softmax_row(&xv[n, 0], &yv[n, 0], classes)
    return y


def softmax_backward(grad, x):
    """Gradient of softmax: grad and x float32 [N, K] -> dx float32 [N, K]."""
    x = float32_array(x, "softmax_backward: x", 2)
    grad = float32_shaped(grad, "softmax_backward: grad", x.shape, "that of x")
    dx = softmax(x)
    cdef const float[:, ::1] gv = np.ascontiguousarray(grad)
    cdef float[:, ::1] dxv = dx
    cdef Py_ssize_t n, classes = x.shape[1]
    cdef int threads = threads_for(x.size)
    for n in prange(dxv.shape[0], nogil=True, num_threads=threads, schedule="static"):
        softmax_row_backward(&gv[n, 0], &dxv[n, 0], classes)
    return dx


def batch_norm(x, mean, var, weight=None, bias=None, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias, with given statistics (inference).

    x: float32 [N, C, H, W] or [N, C]. mean, var, weight (default 1), bias (default 0): float32 [C].
    Returns float32 of the shape of x. Raises ShapeError, TypeError.
    """
    x = float32_array(x, "batch_norm: x", (2, 4))
    channels = x.shape[1]
    mean = per_channel(mean, "batch_norm: mean", channels)
    var = per_channel(var, "batch_norm: var", channels)
    scale = inverse_deviation(var, positive(eps, "batch_norm: eps"))
    scale *= per_channel(weight, "batch_norm: weight", channels, 1)
    y = np.empty(x.shape, np.float32)
    bias = per_channel(bias, "batch_norm: bias", channels, 0)
    scaled(planes(x), mean, scale, bias, planes(y))
    return y


def batch_norm_train(x, weight=None, bias=None, eps=1e-5):
    """batch_norm with the statistics of this batch.

    x: float32 [N, C, H, W] or [N, C], N >= 1. weight (default 1), bias (default 0): float32 [C].
    Returns (y, mean, var): y as x, mean and var float32 [C]; the variance is the biased one.
    """
    x = float32_array(x, "batch_norm_train: x", (2, 4))
    if not x.shape[0]:
        raise ShapeError(
            f"batch_norm_train: x must hold at least one image to have statistics, got {x.shape}"
        )
    eps = positive(eps, "batch_norm_train: eps")
    channels = x.shape[1]
    weight = per_channel(weight, "batch_norm_train: weight", channels, 1)
    bias = per_channel(bias, "batch_norm_train: bias", channels, 0)
    y = np.empty(x.shape, np.float32)
    x = planes(x)
    mean = np.empty(channels)
    var = np.empty(channels)
    cdef const float[:, :, :] xv = x
    cdef double[::1] mv = mean, vv = var
    cdef Py_ssize_t c, n, images = x.shape[0], length = x.shape[2]
    cdef double count = images * length
    cdef int threads = threads_for(x.size)
    for c in prange(xv.shape[1], nogil=True, num_threads=threads, schedule="static"):
        mv[c] = 0
        vv[c] = 0
        for n in range(images):
            mv[c] += row_sum(&xv[n, c, 0], length)
        mv[c] /= count
        for n in range(images):
            vv[c] += row_squares(&xv[n, c, 0], mv[c], length)
        vv[c] /= count
    scaled(x, mean, inverse_deviation(var, eps) * weight, bias, planes(y))
    return y, single(mean), single(var)


def batch_norm_backward(grad, x, mean, var, weight=None, eps=1e-5):
    """Gradient of batch_norm_train, through the statistics of the batch.

    grad, x: float32 [N, C, H, W] or [N, C]. mean, var: as batch_norm_train returned them.
    Returns (dx, dweight, dbias): float32 of the shape of x, [C] and [C].
    """
    x = float32_array(x, "batch_norm_backward: x", (2, 4))
    grad = float32_shaped(grad, "batch_norm_backward: grad", x.shape, "that of x")
    channels = x.shape[1]
    mean = per_channel(mean, "batch_norm_backward: mean", channels)
    var = per_channel(var, "batch_norm_backward: var", channels)
    inverse = inverse_deviation(var, positive(eps, "batch_norm_backward: eps"))
    weight = per_channel(weight, "batch_norm_backward: weight", channels, 1)
    dx = np.empty(x.shape, np.float32)
    dweight = np.empty(channels)
    dbias = np.empty(channels)
    cdef const float[:, :, :] xv = planes(x), gv = planes(grad)
    cdef float[:, :, ::1] dxv = planes(dx)
    cdef double[::1] mv = mean, iv = inverse, wv = weight, dwv = dweight, dbv = dbias
    cdef Py_ssize_t c, n, images = xv.shape[0], length = xv.shape[2]
    cdef double count = images * length
    cdef int threads = threads_for(x.size)
    for c in prange(xv.shape[1], nogil=True, num_threads=threads, schedule="static"):
        dbv[c] = 0
        dwv[c] = 0
        for n in range(images):
            dbv[c] += row_sum(&gv[n, c, 0], length)
            dwv[c] += row_products(&gv[n, c, 0], &xv[n, c, 0], mv[c], length)
        dwv[c] *= iv[c]
        for n in range(images):
            norm_row_backward(
                &gv[n, c, 0], &xv[n, c, 0],
                <float>(wv[c] * iv[c]), <float>mv[c],
                <float>(dbv[c] / count), <float>(dwv[c] * iv[c] / count),
                &dxv[n, c, 0], length,
            )
    return dx, single(dweight), single(dbias)


cdef int threads_for(Py_ssize_t elements) noexcept:
    return 1 if elements < SMALL else thread_count()


cdef object flat(x):
    """All elements in C order as one contiguous row; a copy where the array is not contiguous."""
    return np.ascontiguousarray(x).reshape(-1)


cdef object planes(x):
    """[N, C, H, W] or [N, C] as [N, C, L] with contiguous rows; a copy only where it has to be."""
    x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3] if x.ndim == 4 else 1)
    return x if x.strides[2] == 4 else np.ascontiguousarray(x)


cdef object per_channel(value, name, channels, default=None):
    """float64 [C] from float32 [C], or from the default where the value is None."""
    if value is None and default is not None:
        return np.full(channels, default, np.float64)
    return float32_shaped(value, name, (channels,), "the channels of x").astype(np.float64)


cdef object slopes(value, name, channels):
    return np.ascontiguousarray(float32_shaped(value, name, (channels,), "the channels of x"))


cdef object inverse_deviation(var, eps):
    with np.errstate(invalid="ignore", divide="ignore"):  # a var below -eps gives NaN
        return 1 / np.sqrt(var + eps)


cdef object single(values):
    """float64 rounded to float32; what is too large becomes infinite, as in any float32 sum."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


cdef void scaled(x, mean, scale, bias, y):
    """y = (x - mean) * scale + bias over [N, C, L], with float64 [C] statistics."""
    cdef const float[:, :, :] xv = x
    cdef float[:, :, ::1] yv = y
    cdef double[::1] mv = mean, sv = scale, bv = bias
    cdef Py_ssize_t i, n, c, channels = x.shape[1], length = x.shape[2]
    cdef int threads = threads_for(x.size)
    for i in prange(xv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        scale_row(&xv[n, c, 0], <float>mv[c], <float>sv[c], <float>bv[c], &yv[n, c, 0], length)


cdef void prelu_row(
    const float *v, const float *x, float slope, float *y, Py_ssize_t n
) noexcept nogil:
    """v where x is above 0, else slope * v"""
    cdef Py_ssize_t i
    cdef float scaled
    for i in range(n):
        scaled = slope * v[i]
        y[i] = v[i] if x[i] > 0 else scaled


cdef void scale_row(
    const float *x, float mean, float scale, float bias, float *y, Py_ssize_t n
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = (x[i] - mean) * scale + bias


cdef void norm_row_backward(
    const float *g, const float *x, float scale, float mean,
    float g_mean,   # mean of g over the channel
    float x_share,  # dweight / deviation / count: what one unit of x - mean takes off
    float *dx, Py_ssize_t n,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        dx[i] = scale * (g[i] - g_mean - (x[i] - mean) * x_share)


cdef void softmax_row(const float *x, float *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef float top = -INFINITY
    cdef double total = 0
    for i in range(n):
        top = x[i] if x[i] > top else top
    for i in range(n):
        y[i] = <float>exp(<double>x[i] - top)
        total += y[i]
    for i in range(n):
        y[i] = <float>(y[i] / total)


cdef void softmax_row_backward(
    const float *g,
    float *y,  # IN the softmax, OUT the gradient
    Py_ssize_t n,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef double mean = 0
    for i in range(n):
        mean += <double>g[i] * y[i]
    for i in range(n):
        y[i] = <float>(y[i] * (g[i] - mean))
