"""The public 2-D convolution and its gradients, on packed operands (see _packed.pyx)."""

import numpy as np

from cython.parallel cimport prange, threadid

from libc.stdint cimport int64_t
from libc.string cimport memset

from convserve.kernels._core cimport Buffer, borrow, cs_wgrad, release, thread_count
from convserve.kernels._packed cimport PackedConv, Source, source_floats, source_planes, stage

from convserve.kernels._arguments import conv_groups, conv_window, float32_array, float32_shaped

# Below this number of multiply-accumulates a second thread costs more than it brings.
cdef double THREADS_FROM = 1e6
# Floats that the weight gradient stages at a time: what the caches hold.
cdef int64_t STAGED_FLOATS = 1 << 20


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
    cdef Source source = _source(x, packed, window.pt, window.pl, 1, 1,
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
    grad = float32_shaped(grad, "conv2d_backward: grad", shape, "the output's shape")
    dbias = grad.sum(axis=(2, 3), dtype=np.float64).sum(axis=0).astype(np.float32)
    dx = _input_gradient(grad, x, weight, window, groups) if input_gradient else None
    return dx, _weight_gradient(grad, x, weight, window, groups), dbias


def _checked(x, weight, stride, padding, dilation, groups, rounding, name):
    x = float32_array(x, f"{name}: x", 4)
    weight = float32_array(weight, f"{name}: weight", 4)
    conv_groups(x.shape[1], weight.shape, groups, name)
    window = conv_window(x.shape[2:], weight.shape[2:], stride, padding, dilation, rounding, name)
    return _whole_steps(x), weight, window


def _whole_steps(array):
    """The kernels count strides in floats: a view into a structured array may not be so."""
    return array if all(s % 4 == 0 for s in array.strides) else np.ascontiguousarray(array)


def _sides(window):
    return (window.pt, window.pb), (window.pl, window.pr)


cdef Source _source(const float[:, :, :, :] x, PackedConv packed, int top, int left, int up_h,
                    int up_w, int rows, int columns):
    cdef Source s
    s.data = &x[0, 0, 0, 0] if x.shape[0] else NULL
    s.n_step, s.c_step = x.strides[0] // 4, x.strides[1] // 4
    s.h_step, s.w_step = x.strides[2] // 4, x.strides[3] // 4
    s.channels, s.height, s.width = <int>x.shape[1], <int>x.shape[2], <int>x.shape[3]
    s.top, s.left, s.up_h, s.up_w, s.rows, s.columns = top, left, up_h, up_w, rows, columns
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


def _input_gradient(grad, x, weight, window, groups):
    """dx: the output's gradient, its pixels a stride apart, convolved with the rotated filters."""
    _, c, h, w = x.shape
    o, depth, kh, kw = weight.shape
    turned = weight.reshape(groups, o // groups, depth, kh, kw)[..., ::-1, ::-1]
    turned = turned.transpose(0, 2, 1, 3, 4).reshape(c, o // groups, kh, kw)
    reach_h, reach_w = window.dh * (kh - 1), window.dw * (kw - 1)
    packed = PackedConv(turned, None, h + reach_h, w + reach_w, dilation=(window.dh, window.dw),
                        groups=groups)
    dx = np.empty(x.shape, np.float32)
    cdef Source source = _source(_whole_steps(grad), packed, reach_h - window.pt,
                                 reach_w - window.pl, window.sh, window.sw, h + reach_h,
                                 w + reach_w)
    _run(packed, &source, dx)
    return dx


def _weight_gradient(grad, x, weight, window, groups):
    """dweight: for each filter tap, the sum over images and pixels of input times gradient."""
    cdef PackedConv p = PackedConv(np.zeros(weight.shape, np.float32), None, x.shape[2], x.shape[3],
                                   (window.sh, window.sw), _sides(window), (window.dh, window.dw),
                                   groups)
    cdef float[:, :, :, ::1] dweight = np.empty(weight.shape, np.float32)
    cdef Source s = _source(x, p, window.pt, window.pl, 1, 1, x.shape[2] + window.pt + window.pb,
                            x.shape[3] + window.pl + window.pr)
    cdef Source g = _source(_whole_steps(grad), p, 0, 0, 1, 1, window.oh, window.ow)
    g.planar = False
    cdef int64_t n = x.shape[0], done = 0, chunk, i, px = 1 if s.planar else s.block
    cdef int64_t x_floats = source_floats(&s), g_floats = source_floats(&g)
    cdef int planes = source_planes(&s), g_planes = source_planes(&g), threads = thread_count()
    cdef int64_t room = min(n, max(1, STAGED_FLOATS // (x_floats + g_floats)))
    cdef int taps = p.kh * p.conv.kw, tasks = p.conv.tiles * p.planes * taps, task
    cdef double macs = <double>n * window.oh * window.ow * weight.size
    if macs < THREADS_FROM:
        threads = 1
    cdef Buffer scratch = borrow(room * (x_floats + g_floats))
    cdef float *xs = scratch.data
    cdef float *gs = xs + room * x_floats
    cdef cs_wgrad a
    p.read_from(px * s.rows * s.columns, s.columns * px, px)
    a.oh, a.ow = window.oh, window.ow
    a.x_image, a.x_oh, a.x_px = x_floats, p.conv.x_oh, p.conv.x_px
    a.g_image, a.g_row = g_floats, <int64_t>g.columns * p.block
    a.g_block = g.rows * a.g_row
    with nogil:
        memset(xs, 0, room * x_floats * sizeof(float))
        while done < n:
            chunk = min(room, n - done)
            a.n = chunk
            for i in prange(chunk, num_threads=threads, schedule="guided"):
                _stage_both(p, &s, &g, done + i, planes, g_planes, xs + i * x_floats,
                            gs + i * g_floats)
            for task in prange(tasks, num_threads=threads, schedule="dynamic"):
                _tap_gradient(p, &a, task // (p.planes * taps), task // taps % p.planes,
                              task % taps, xs, gs)
            done += chunk
        p.transfer(&dweight[0, 0, 0, 0], p.weights.data, True)
    release(scratch)
    return np.asarray(dweight)


cdef void _stage_both(PackedConv p, const Source *s, const Source *g, int64_t i, int planes,
                      int g_planes, float *x, float *grad) noexcept nogil:
    cdef int plane
    for plane in range(planes):
        stage(p.kernels, s, i, plane, x)
    for plane in range(g_planes):
        stage(p.kernels, g, i, plane, grad)


cdef void _tap_gradient(PackedConv p, const cs_wgrad *a, int t, int plane, int tap, const float *x,
                        const float *g) noexcept nogil:
    """One tap of one plane for one tile, added to its place among the packed weights."""
    cdef int kh = tap // p.conv.kw, kw = tap % p.conv.kw
    cdef int ldw = p.tiles[t].blocks * p.block, inner = p.inner(plane), b = 0, blocks
    cdef float *dw = p.weights.data + p.tiles[t].weight
    plane -= p.tiles[t].plane
    if plane < 0 or plane >= p.tiles[t].planes:
        return
    # all planes before the tensor's last one are full
    dw += (<int64_t>plane * p.kh * p.conv.kw * p.conv.inner + <int64_t>tap * inner) * ldw
    x += (plane + p.tiles[t].plane) * p.conv.x_plane + kh * p.conv.x_kh + kw * p.conv.x_kw
    while b < p.tiles[t].blocks:
        blocks = min(2, p.tiles[t].blocks - b)
        p.kernels.wgrad(a, inner, blocks, ldw, x, g + (p.tiles[t].block + b) * a.g_block,
                        dw + b * p.block)
        b += blocks
