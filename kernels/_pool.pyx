"""Max, average and global average pooling of NCHW arrays, forward and backward.

Pooling has no parameters and keeps the number of channels. Every image's channel is one plane; the
planes are shared out among the threads, and a plane's result never depends on another plane.
Windows are clipped to the input, so padding is never stored.
"""

import numpy as np
from cython.parallel cimport prange
from libc.math cimport INFINITY

from convserve.kernels._arguments import float32_array, float32_shaped, pool_window
from convserve.kernels._core cimport thread_count
from convserve.kernels._rows cimport row_sum

# Elements below which waking other threads costs more than they save (empirical, two cores).
cdef Py_ssize_t SMALL = 1 << 15

cdef struct Pool:
    Py_ssize_t h, w, oh, ow, kh, kw, sh, sw, pt, pb, pl, pr

# Combines n outputs y[i] with the inputs x[i * step] that one tap of the window sees.
ctypedef void (*Tap)(float *y, float *x, Py_ssize_t step, Py_ssize_t n) noexcept nogil


def max_pool2d(x, size, stride=None, padding=0, rounding="error"):
    """Largest value in each window.

    x: float32 [N, C, H, W]. size and stride: int or (h, w); the stride defaults to the size.
    padding: int, (h, w) or ((top, bottom), (left, right)), smaller than the size; it never wins.
    rounding: "error", "floor" or "ceil" where the stride does not divide.
    Returns float32 [N, C, OH, OW]; a NaN in a window is its maximum. Raises ShapeError, TypeError.
    """
    cdef Pool p
    x = rows(float32_array(x, "max_pool2d: x", 4))
    y = pooled(x, pool_window(x.shape[2:], size, stride, padding, rounding, "max_pool2d"), &p)
    cdef const float[:, :, :, :] xv = x
    cdef float[:, :, :, ::1] yv = y
    cdef Py_ssize_t channels = x.shape[1], row = xv.strides[2] // 4
    cdef Py_ssize_t i, n, c
    cdef int threads = threads_for(x.size)
    for i in prange(xv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        max_plane(&p, &xv[n, c, 0, 0], row, &yv[n, c, 0, 0])
    return y


def max_pool2d_backward(grad, x, size, stride=None, padding=0, rounding="error"):
    """Gradient of max_pool2d: each window's gradient goes to its maximum.

    grad: float32 [N, C, OH, OW]. The other arguments are those of max_pool2d. Among equal values
    the first in row-major order takes the gradient, and the first NaN where there is one.
    Returns dx, float32 [N, C, H, W].
    """
    cdef Pool p
    x = rows(float32_array(x, "max_pool2d_backward: x", 4))
    name = "max_pool2d_backward"
    y = pooled(x, pool_window(x.shape[2:], size, stride, padding, rounding, name), &p)
    grad = rows(float32_shaped(grad, f"{name}: grad", y.shape, "the output's"))
    dx = np.empty(x.shape, np.float32)
    cdef const float[:, :, :, :] xv = x, gv = grad
    cdef float[:, :, :, ::1] dxv = dx
    cdef Py_ssize_t channels = x.shape[1], x_row = xv.strides[2] // 4, g_row = gv.strides[2] // 4
    cdef Py_ssize_t i, n, c
    cdef int threads = threads_for(x.size)
    for i in prange(xv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        max_plane_backward(&p, &gv[n, c, 0, 0], g_row, &xv[n, c, 0, 0], x_row, &dxv[n, c, 0, 0])
    return dx


def avg_pool2d(x, size, stride=None, padding=0, rounding="error", count_include_pad=True):
    """Mean of each window.

    The arguments are those of max_pool2d. count_include_pad: whether padding counts, as zeros, in
    the mean; the part of a window beyond the padding ("ceil") never does.
    Returns float32 [N, C, OH, OW]. Raises ShapeError, TypeError.
    """
    cdef Pool p
    x = rows(float32_array(x, "avg_pool2d: x", 4))
    y = pooled(x, pool_window(x.shape[2:], size, stride, padding, rounding, "avg_pool2d"), &p)
    cdef const float[:, :, :, :] xv = x
    cdef float[:, :, :, ::1] yv = y
    cdef float[:, ::1] divisor = divisors(&p, count_include_pad)
    cdef Py_ssize_t channels = x.shape[1], row = xv.strides[2] // 4
    cdef Py_ssize_t i, n, c
    cdef int threads = threads_for(x.size)
    for i in prange(xv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        avg_plane(&p, &xv[n, c, 0, 0], row, &divisor[0, 0], &yv[n, c, 0, 0])
    return y


def avg_pool2d_backward(
    grad, x, size, stride=None, padding=0, rounding="error", count_include_pad=True
):
    """Gradient of avg_pool2d: each window's gradient is spread evenly over its inputs.

    grad: float32 [N, C, OH, OW]. The other arguments are those of avg_pool2d.
    Returns dx, float32 [N, C, H, W].
    """
    cdef Pool p
    x = float32_array(x, "avg_pool2d_backward: x", 4)
    name = "avg_pool2d_backward"
    y = pooled(x, pool_window(x.shape[2:], size, stride, padding, rounding, name), &p)
    grad = float32_shaped(grad, f"{name}: grad", y.shape, "the output's")
    dx = np.zeros(x.shape, np.float32)
    divisor = divisors(&p, count_include_pad)
    cdef float[:, :, :, ::1] share = np.divide(grad, divisor, out=y)
    cdef float[:, :, :, ::1] dxv = dx
    cdef Py_ssize_t channels = x.shape[1], i, n, c, oh
    cdef int threads = threads_for(x.size)
    for i in prange(dxv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        for oh in range(p.oh):
            walk(&p, oh, &dxv[n, c, 0, 0], p.w, &share[n, c, oh, 0], spread)
    return dx


def global_avg_pool2d(x):
    """Mean of each channel of each image: float32 [N, C, H, W] -> float32 [N, C, 1, 1]."""
    x = rows(float32_array(x, "global_avg_pool2d: x", 4))
    y = np.empty((*x.shape[:2], 1, 1), np.float32)
    cdef const float[:, :, :, :] xv = x
    cdef float[:, :, :, ::1] yv = y
    cdef Py_ssize_t channels = x.shape[1], h = x.shape[2], w = x.shape[3]
    cdef Py_ssize_t row = xv.strides[2] // 4, i, n, c
    cdef int threads = threads_for(x.size)
    for i in prange(xv.shape[0] * channels, nogil=True, num_threads=threads, schedule="static"):
        n = i // channels
        c = i % channels
        yv[n, c, 0, 0] = <float>(plane_sum(&xv[n, c, 0, 0], row, h, w) / <double>(h * w))
    return y


def global_avg_pool2d_backward(grad, x):
    """Gradient of global_avg_pool2d: grad float32 [N, C, 1, 1] -> dx float32 [N, C, H, W]."""
    x = float32_array(x, "global_avg_pool2d_backward: x", 4)
    shape = (*x.shape[:2], 1, 1)
    grad = float32_shaped(grad, "global_avg_pool2d_backward: grad", shape, "the output's")
    dx = np.empty(x.shape, np.float32)
    dx[...] = grad / np.float32(x.shape[2] * x.shape[3])
    return dx


cdef int threads_for(Py_ssize_t elements) noexcept:
    return 1 if elements < SMALL else thread_count()


cdef object rows(x):
    """The array itself if its rows are contiguous, else a copy of it."""
    return x if x.strides[3] == 4 else np.ascontiguousarray(x)


cdef object pooled(x, window, Pool *p):
    """Fills p; returns the empty output."""
    p.h, p.w = x.shape[2:]
    p.kh, p.kw, p.sh, p.sw, _, _, p.pt, p.pb, p.pl, p.pr, p.oh, p.ow = window
    return np.empty((*x.shape[:2], p.oh, p.ow), np.float32)


cdef object divisors(const Pool *p, count_include_pad):
    """float32 [OH, OW]: how many elements each window's mean counts."""
    if not isinstance(count_include_pad, (bool, np.bool_)):
        raise TypeError(f"count_include_pad must be a bool, got {count_include_pad!r}")

    def counts(size, kernel, stride, before, after, steps):
        start = np.arange(steps) * stride - before
        stop = start + kernel
        low, high = (-before, size + after) if count_include_pad else (0, size)
        return np.minimum(stop, high) - np.maximum(start, low)

    return np.multiply.outer(
        counts(p.h, p.kh, p.sh, p.pt, p.pb, p.oh), counts(p.w, p.kw, p.sw, p.pl, p.pr, p.ow)
    ).astype(np.float32)


cdef void walk(
    const Pool *p, Py_ssize_t oh, float *x, Py_ssize_t x_row, float *y, Tap tap
) noexcept nogil:
    """Calls tap for each row and column of the window, with the outputs of row oh that see it."""
    cdef Py_ssize_t top = oh * p.sh - p.pt
    cdef Py_ssize_t h, k, ow, left, first, last
    for h in range(max(top, 0), min(top + p.kh, p.h)):
        if p.kw > p.w:  # a window wider than the input has columns that see none of it
            for ow in range(p.ow):
                left = ow * p.sw - p.pl
                for k in range(max(left, 0), min(left + p.kw, p.w)):
                    tap(y + ow, x + h * x_row + k, 1, 1)
            continue
        for k in range(p.kw):
            left = k - p.pl
            first = (p.sw - 1 - left) // p.sw if left < 0 else 0
            last = min(p.ow, (p.w - 1 - left) // p.sw + 1) if left < p.w else 0
            if first < last:
                tap(y + first, x + h * x_row + left + first * p.sw, p.sw, last - first)


cdef inline bint beats(float b, float a) noexcept nogil:
    """Whether b, the later one, is the maximum of both: larger, or the first NaN."""
    return (b > a) | ((b != b) & (a == a))


cdef inline float larger(float a, float b) noexcept nogil:
    """The maximum; a NaN is larger than any number. Selects on values, which become vector code."""
    cdef float most = a if a > b else b  # b where either is NaN
    return a if a != a else most


cdef void keep_max(float *y, float *x, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        for i in range(n):
            y[i] = larger(y[i], x[i])
    else:
        for i in range(n):
            y[i] = larger(y[i], x[i * step])


cdef void add(float *y, float *x, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        for i in range(n):
            y[i] += x[i]
    else:
        for i in range(n):
            y[i] += x[i * step]


cdef void spread(float *y, float *x, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        x[i * step] += y[i]


cdef bint halves(const Pool *p) noexcept nogil:
    """Whether the windows are 2 x 2 and tile the input, the usual pooling between layers."""
    return (
        p.kh == 2 and p.kw == 2 and p.sh == 2 and p.sw == 2
        and p.h == 2 * p.oh and p.w == 2 * p.ow and p.pt == 0 and p.pl == 0
    )


cdef void max_plane(
    const Pool *p, const float *x, Py_ssize_t x_row, float *y
) noexcept nogil:
    cdef Py_ssize_t oh, ow
    cdef const float *upper
    cdef const float *lower
    for oh in range(p.oh):
        if halves(p):
            upper = x + 2 * oh * x_row
            lower = upper + x_row
            for ow in range(p.ow):
                y[ow] = larger(
                    larger(upper[2 * ow], upper[2 * ow + 1]),
                    larger(lower[2 * ow], lower[2 * ow + 1]),
                )
        else:
            for ow in range(p.ow):
                y[ow] = -INFINITY
            walk(p, oh, <float *>x, x_row, y, keep_max)
        y += p.ow


cdef void max_plane_backward(
    const Pool *p,
    const float *g, Py_ssize_t g_row,
    const float *x, Py_ssize_t x_row,
    float *dx,  # OUT, h rows of w
) noexcept nogil:
    cdef Py_ssize_t oh, ow, i
    if halves(p):
        for _ in range(p.oh):
            route_halves(p.ow, g, x, x + x_row, dx, dx + p.w)
            g += g_row
            x += 2 * x_row
            dx += 2 * p.w
        return
    for i in range(p.h * p.w):
        dx[i] = 0
    for oh in range(p.oh):
        for ow in range(p.ow):
            dx[argmax(p, oh, ow, x, x_row)] += g[ow]
        g += g_row


cdef void route_halves(
    Py_ssize_t n,
    const float *g,
    const float *upper, const float *lower,  # IN, 2n each
    float *d_upper, float *d_lower,          # OUT, 2n each
) noexcept nogil:
    """Rows of 2 x 2 windows without a branch, since which element wins can't be predicted."""
    cdef Py_ssize_t i
    cdef float a, b, c, d, most, rest
    cdef bint wins
    for i in range(n):
        a = upper[2 * i]
        b = upper[2 * i + 1]
        c = lower[2 * i]
        d = lower[2 * i + 1]
        most = larger(larger(a, b), larger(c, d))
        rest = g[i]  # until the first winner takes it
        wins = (a == most) | (a != a)
        d_upper[2 * i] = rest if wins else <float>0
        rest = <float>0 if wins else rest
        wins = (b == most) | (b != b)
        d_upper[2 * i + 1] = rest if wins else <float>0
        rest = <float>0 if wins else rest
        wins = (c == most) | (c != c)
        d_lower[2 * i] = rest if wins else <float>0
        d_lower[2 * i + 1] = <float>0 if wins else rest


cdef Py_ssize_t argmax(
    const Pool *p, Py_ssize_t oh, Py_ssize_t ow, const float *x, Py_ssize_t x_row
) noexcept nogil:
    """Index in the plane (rows of w) of the window's maximum, the first among equals."""
    cdef Py_ssize_t top = oh * p.sh - p.pt, left = ow * p.sw - p.pl
    cdef Py_ssize_t h0 = max(top, 0), w0 = max(left, 0)
    cdef Py_ssize_t h, w, at = h0 * p.w + w0
    cdef float best = x[h0 * x_row + w0]
    for h in range(h0, min(top + p.kh, p.h)):
        for w in range(w0, min(left + p.kw, p.w)):
            if beats(x[h * x_row + w], best):
                best = x[h * x_row + w]
                at = h * p.w + w
    return at


cdef void avg_plane(
    const Pool *p, const float *x, Py_ssize_t x_row, const float *divisor, float *y
) noexcept nogil:
    cdef Py_ssize_t oh, ow
    for oh in range(p.oh):
        for ow in range(p.ow):
            y[ow] = 0
        walk(p, oh, <float *>x, x_row, y, add)
        for ow in range(p.ow):
            y[ow] /= divisor[ow]
        divisor += p.ow
        y += p.ow


cdef double plane_sum(const float *x, Py_ssize_t x_row, Py_ssize_t h, Py_ssize_t w) noexcept nogil:
    cdef Py_ssize_t i
    cdef double total = 0
    if x_row == w:
        return row_sum(x, h * w)
    for i in range(h):
        total = total + row_sum(x + i * x_row, w)
    return total
