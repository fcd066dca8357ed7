"""The public 2-D convolution and its gradients, on packed operands (see _packed.pyx)."""

import numpy as np

from cython.parallel cimport prange, threadid

from libc.stdint cimport int64_t
from libc.string cimport memset

from convserve.kernels._core cimport Buffer, borrow, release, thread_count
from convserve.kernels._packed cimport PackedConv, Source, source_floats, source_planes, stage

from convserve.kernels._arguments import conv_groups, conv_window, float32_array, float32_shaped
from convserve.kernels._packed import PLANAR_CHANNELS
from convserve.kernels._train_conv import TrainConv

# Below this number of multiply-accumulates a second thread costs more than it brings.
cdef double THREADS_FROM = 1e6
# Of a batch, whose weight gradients are computed side by side.
PARTS = 4


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, rounding="error"):
    """2-D convolution (cross-correlation) of a batch: multiply-accumulate of shared local filters.

    x: float32[N, C, H, W], weight: float32[O, C / groups, KH, KW], bias: float32[O] or None.
    Returns float32[N, O, OH, OW], OH = (H + padding - (dilation * (KH - 1) + 1)) / stride + 1.
    stride, dilation: int or (h, w); padding: int, (h, w) or ((top, bottom), (left, right)).
    rounding: "error" refuses sizes that the stride does not divide, "floor" drops the rest.
    Raises ShapeError where sizes do not fit and TypeError for anything but float32 arrays.
    """
    x, weight, window = _checked(x, weight, stride, padding, dilation, groups, rounding, "conv2d")
    if bias is not None:
        bias = float32_shaped(bias, "conv2d: bias", weight.shape[:1], "one value a filter")
    packed = PackedConv(weight, bias, x.shape[2], x.shape[3], stride, padding, dilation, groups)
    out = np.empty((x.shape[0], weight.shape[0], window.oh, window.ow), np.float32)
    cdef Source source = _source(x, packed, window.pt, window.pl,
                                 x.shape[2] + window.pt + window.pb,
                                 x.shape[3] + window.pl + window.pr)
    _run(packed, &source, out)
    return out


def conv2d_backward(grad, x, weight, stride=1, padding=0, dilation=1, groups=1, rounding="error",
                    input_gradient=True):
    """Gradients of `conv2d` for the output's gradient, float32[N, O, OH, OW].

    Returns (dx float32[N, C, H, W], dweight float32[O, C / groups, KH, KW], dbias float32[O]);
    without `input_gradient` dx is None: a network's first layer has nobody to pass it to.
    Raises as `conv2d` does.
    """
    x, weight, window = _checked(x, weight, stride, padding, dilation, groups, rounding,
                                 "conv2d_backward")
    shape = (x.shape[0], weight.shape[0], window.oh, window.ow)
    grad = _whole_steps(float32_shaped(grad, "conv2d_backward: grad", shape, "the output's shape"))
    if not x.shape[0]:
        dx = np.zeros(x.shape, np.float32) if input_gradient else None
        return dx, np.zeros(weight.shape, np.float32), np.zeros(shape[1], np.float32)
    sides = (window.pt, window.pb), (window.pl, window.pr)
    # Of a single window no stride beyond the image makes two, however large it is.
    height, width = x.shape[2] + window.pt + window.pb, x.shape[3] + window.pl + window.pr
    strides = min(window.sh, height), min(window.sw, width)
    arguments = x.shape, weight.shape, strides, sides, window[4:6], groups, "floor"
    # Direct sums, which the documented tolerance is for, of parts that the shapes alone determine.
    choices = {"ways": ("direct",) * 3, "parts": min(x.shape[0], PARTS)}
    layer = TrainConv(*arguments, planar=x.shape[1] < PLANAR_CHANNELS, **choices)
    dweight, dbias = layer.weight_gradient(grad, x)
    if not input_gradient:
        return None, dweight, dbias
    layer = TrainConv(*arguments, **choices)
    return layer.data_gradient(grad, np.ascontiguousarray(weight)), dweight, dbias


def _checked(x, weight, stride, padding, dilation, groups, rounding, name):
    x = float32_array(x, f"{name}: x", 4)
    weight = float32_array(weight, f"{name}: weight", 4)
    conv_groups(x.shape[1], weight.shape, groups, name)
    window = conv_window(x.shape[2:], weight.shape[2:], stride, padding, dilation, rounding, name)
    return _whole_steps(x), weight, window


def _whole_steps(array):
    """The kernels count strides in floats: a view into a structured array may not be so."""
    return array if all(s % 4 == 0 for s in array.strides) else np.ascontiguousarray(array)


cdef Source _source(const float[:, :, :, :] x, PackedConv packed, int top, int left, int rows,
                    int columns):
    cdef Source s
    s.data = &x[0, 0, 0, 0] if x.shape[0] else NULL
    s.n_step, s.c_step = x.strides[0] // 4, x.strides[1] // 4
    s.h_step, s.w_step = x.strides[2] // 4, x.strides[3] // 4
    s.channels, s.height, s.width = <int>x.shape[1], <int>x.shape[2], <int>x.shape[3]
    s.top, s.left, s.rows, s.columns = top, left, rows, columns
    s.planar, s.block = packed.planar, packed.block
    return s


cdef int _run(PackedConv p, const Source *s, float[:, :, :, ::1] out) except -1:
    """out = p(s): whole images shared among the threads, or for few images the parts of each."""
    cdef int64_t n = out.shape[0]
    cdef int64_t x_floats = source_floats(s), pixels = <int64_t>p.conv.oh * p.conv.ow
    cdef int64_t y_floats = p.blocks * pixels * p.block, px = 1 if s.planar else s.block
    cdef int planes = source_planes(s), threads = thread_count(), t
    cdef double macs = <double>n * pixels * p.filters * p.channels // p.groups * p.kh * p.kw
    if macs < THREADS_FROM:
        threads = 1
    if n == 0:
        return 0
    cdef bint split = n < threads
    cdef int slots = 1 if split else threads
    # More parts than threads: one that has lost its core then keeps the others waiting less.
    cdef int parts = <int>min(n, 4 * slots)
    cdef Buffer scratch = borrow(slots * (x_floats + y_floats))
    cdef float *x = scratch.data
    cdef float *y = x + slots * x_floats
    cdef float *result = &out[0, 0, 0, 0]
    p.read_from(px * s.rows * s.columns, s.columns * px, px)
    p.write_to(pixels * p.block, p.conv.ow * p.block, p.block)
    with nogil:
        memset(x, 0, slots * x_floats * sizeof(float))
        if split:
            for t in range(<int>n):
                _parts(p, s, t, planes, threads, x, y, result + t * p.filters * pixels)
        else:
            for t in prange(parts, num_threads=slots, schedule="dynamic", chunksize=1):
                _images(p, s, n * t // parts, n * (t + 1) // parts, planes,
                        x + threadid() * x_floats, y + threadid() * y_floats, result)
    return release(scratch)


cdef void _unpack(PackedConv p, int block, const float *y, float *image) noexcept nogil:
    cdef int64_t pixels = <int64_t>p.conv.oh * p.conv.ow
    cdef int first = block * p.block
    p.kernels.unpack(min(p.block, p.filters - first), 0, p.conv.oh, p.conv.ow,
                     y + first * pixels, p.conv.ow * p.block, image + first * pixels, pixels,
                     p.conv.ow)


cdef void _images(PackedConv p, const Source *s, int64_t first, int64_t end, int planes,
                  float *x, float *y, float *result) noexcept nogil:
    """Images first to end, one after the other in the scratch memory of one thread."""
    cdef int64_t i
    cdef int part
    for i in range(first, end):
        for part in range(planes):
            stage(p.kernels, s, i, part, x)
        for part in range(p.conv.tiles):
            p.kernels.conv(&p.conv, part, 0, p.conv.oh, x, p.weights.data, p.bias.data, NULL, y)
        for part in range(p.blocks):
            _unpack(p, part, y, result + i * p.filters * p.conv.oh * p.conv.ow)


cdef void _parts(PackedConv p, const Source *s, int64_t i, int planes, int threads, float *x,
                 float *y, float *image) noexcept nogil:
    """One image, its planes, tiles and row ranges shared among the threads."""
    cdef int part, bands = min(p.conv.oh, threads)
    cdef int64_t rows = p.conv.oh
    for part in prange(planes, num_threads=threads, schedule="static"):
        stage(p.kernels, s, i, part, x)
    for part in prange(p.conv.tiles * bands, num_threads=threads, schedule="static"):
        p.kernels.conv(&p.conv, part // bands, rows * (part % bands) // bands,
                       rows * (part % bands + 1) // bands, x, p.weights.data, p.bias.data, NULL, y)
    for part in prange(p.blocks, num_threads=threads, schedule="static"):
        _unpack(p, part, y, image)
