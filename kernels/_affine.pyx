"""The affine (fully connected) layer: a convolution whose pixels are the rows of the batch."""

import numpy as np

from cython.parallel cimport prange

from libc.stdint cimport int64_t

from convserve.kernels._core cimport Buffer, borrow, cs_conv, release, thread_count
from convserve.kernels._packed cimport PackedConv

from convserve.errors import ShapeError
from convserve.kernels._arguments import float32_array, float32_shaped

cdef double THREADS_FROM = 1e6


def affine(x, weight, bias=None):
    """x @ weight.T + bias for x float32[N, I], weight float32[O, I], bias float32[O] or None.

    Returns float32[N, O]. A row's bits do not depend on the other rows.
    Raises ShapeError where sizes do not fit and TypeError for anything but float32 arrays.
    """
    x, weight = _checked(x, weight, "affine")
    if bias is not None:
        bias = float32_shaped(bias, "affine: bias", weight.shape[:1], "one value a row of weight")
    return _product(x, weight, bias)


def affine_backward(grad, x, weight):
    """Gradients of `affine` for the output's gradient, float32[N, O].

    Returns (dx float32[N, I], dweight float32[O, I], dbias float32[O]). Raises as `affine` does.
    """
    x, weight = _checked(x, weight, "affine_backward")
    shape = (x.shape[0], weight.shape[0])
    grad = float32_shaped(grad, "affine_backward: grad", shape, "the output's shape")
    dbias = grad.sum(axis=0, dtype=np.float64).astype(np.float32)
    if not x.shape[0]:
        return np.zeros_like(x), np.zeros(weight.shape, np.float32), dbias
    return _product(grad, weight.T, None), _product(grad.T, x.T, None), dbias


def _checked(x, weight, name):
    x = float32_array(x, f"{name}: x", 2)
    weight = float32_array(weight, f"{name}: weight", 2)
    if x.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"{name}: weight must have as many columns as x has features, {x.shape[1]}, "
            f"got shape {weight.shape}"
        )
    if not weight.shape[0]:
        raise ShapeError(f"{name}: weight must have at least one row, got shape {weight.shape}")
    return x, weight


def _product(x, weight, bias):
    """Each tile of outputs walks the rows of x; ranges of rows are shared among the threads."""
    cdef const float[:, ::1] rows = np.ascontiguousarray(x)
    cdef int64_t n = rows.shape[0], inputs = rows.shape[1], outputs = weight.shape[0]
    out = np.empty((n, outputs), np.float32)
    if not n:
        return out
    # One plane of one row: the inputs are its taps.
    cdef PackedConv p = PackedConv(weight.reshape(outputs, 1, 1, inputs), bias, 1, inputs,
                                   planar=True)
    cdef int threads = thread_count() if <double>n * inputs * outputs > THREADS_FROM else 1
    cdef int bands = min(n, threads), part
    cdef int64_t width = <int64_t>p.blocks * p.block, i
    cdef Buffer scratch = borrow(n * width)
    cdef float[:, ::1] result = out
    cdef float *y = scratch.data
    p.read_from(0, 0, 0)
    p.write_to(p.block, 0, width)
    p.conv.x_px = inputs
    with nogil:
        for part in prange(p.conv.tiles * bands, num_threads=threads, schedule="static"):
            _band(p, part // bands, n * (part % bands) // bands, n * (part % bands + 1) // bands,
                  &rows[0, 0], y, width)
        for i in prange(n, num_threads=threads, schedule="static"):
            _copy_row(y + i * width, &result[i, 0], outputs)
    release(scratch)
    return out


cdef void _band(PackedConv p, int t, int64_t first, int64_t end, const float *x, float *y,
                int64_t width) noexcept nogil:
    cdef cs_conv conv = p.conv
    conv.ow = <int>(end - first)
    p.kernels.conv(&conv, t, 0, 1, x + first * conv.x_px, p.weights.data, p.bias.data, NULL,
                   y + first * width)


cdef void _copy_row(const float *source, float *target, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        target[i] = source[i]
