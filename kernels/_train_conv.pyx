"""The three passes of a convolution in training (csrc/train_conv.h) on arrays.

The compiled training step calls the C functions itself; `conv2d_backward` and the tests of all the
choices that these functions have come here.
"""

import numpy as np

from cython.parallel cimport prange, threadid

from libc.stdint cimport int64_t
from libc.string cimport memset

from convserve.kernels._activation cimport described
from convserve.kernels._core cimport Buffer, borrow, cs_activation, release, table, thread_count

from convserve.errors import ShapeError
from convserve.kernels._arguments import conv_groups, conv_window

WAYS = {"auto": 0, "direct": 1, "winograd2": 2, "winograd4": 3, "depthwise": 4}
# Below this number of multiply-accumulates a second thread costs more than it brings.
cdef double THREADS_FROM = 1e6


cdef cs_train_layout laid_out(int channels, int h, int w, int halo, bint planar) noexcept nogil:
    cdef cs_train_layout layout
    cdef int block = table().block, px = 1 if planar else block
    layout.row = (<int64_t>w + 2 * halo) * px
    layout.plane = (<int64_t>h + 2 * halo) * layout.row
    layout.image = (channels if planar else (channels + block - 1) // block) * layout.plane
    layout.halo = halo
    return layout


cdef class Blocked:
    """A batch of images in the blocked layout (or NCHW, planar) with a halo of zeros."""
    cdef Buffer buffer
    cdef cs_train_layout layout
    cdef int n, channels, h, w, planes
    cdef bint planar

    def __init__(self, int n, int channels, int h, int w, int halo, bint planar):
        self.n, self.channels, self.h, self.w, self.planar = n, channels, h, w, planar
        self.layout = laid_out(channels, h, w, halo, planar)
        self.planes = <int>(self.layout.image // self.layout.plane)
        self.buffer = borrow(max(1, n * self.layout.image))
        if halo:
            memset(self.buffer.data, 0, n * self.layout.image * sizeof(float))

    cdef float *at(self, int i, int plane, int row) noexcept nogil:
        cdef int px = 1 if self.planar else table().block
        return (self.buffer.data + i * self.layout.image + plane * self.layout.plane
                + (row + self.layout.halo) * self.layout.row + self.layout.halo * px)

    cdef void fill(self, const float[:, :, :, :] values, int threads) noexcept nogil:
        cdef int i
        for i in prange(self.n, num_threads=threads, schedule="static"):
            self._fill(values, i)

    cdef void _fill(self, const float[:, :, :, :] v, int i) noexcept nogil:
        cdef int block = table().block, p, first, h, w
        for p in range(self.planes):
            first = p if self.planar else p * block
            if not self.planar:
                table().pack(min(block, self.channels - first), 0, self.h, self.w,
                             &v[i, first, 0, 0], v.strides[1] // 4, v.strides[2] // 4,
                             v.strides[3] // 4, self.at(i, p, 0), self.layout.row, block)
                continue
            for h in range(self.h):
                for w in range(self.w):
                    self.at(i, p, h)[w] = v[i, p, h, w]

    def spoil(self, value):
        """The value for all surplus channels."""
        cdef int block = table().block, i, h, lane
        cdef int64_t w
        cdef float junk = value
        if self.planar:
            return
        for i in range(self.n):
            for h in range(self.h):
                for w in range(self.w):
                    for lane in range(self.channels - (self.planes - 1) * block, block):
                        self.at(i, self.planes - 1, h)[w * block + lane] = junk

    cdef void unfill(self, float[:, :, :, ::1] out, int threads) noexcept nogil:
        cdef int i, p, block = table().block
        for i in prange(self.n, num_threads=threads, schedule="static"):
            for p in range(self.planes):
                table().unpack(min(block, self.channels - p * block), 0, self.h, self.w,
                               self.at(i, p, 0), self.layout.row, &out[i, p * block, 0, 0],
                               <int64_t>self.h * self.w, self.w)

    cdef array(self, int threads):
        out = np.empty((self.n, self.channels, self.h, self.w), np.float32)
        if self.n:
            self.unfill(out, threads)
        return out

    cdef int done(self) except -1:
        release(self.buffer)
        self.buffer = None
        return 0


cdef class TrainConv:
    """The passes of one layer for batches of one shape.

    shape: of x; weight_shape: (O, C / groups, KH, KW). ways: of the forward pass, the data and the
    weight gradient, names of WAYS, which are wishes; halos: of x, y, dx and dy; junk: what surplus
    channels of inputs hold; step: images a call (0: as the layer wants); parts: of the batch, whose
    weight gradients are added up. Raises ShapeError as `conv2d` does.
    """
    cdef cs_train_conv layer
    cdef object weight_shape, halos, junk
    cdef int step, parts, threads

    def __init__(self, shape, weight_shape, stride=1, padding=0, dilation=1, groups=1,
                 rounding="error", planar=False, bias=True, ways=("auto", "auto", "auto"),
                 halos=(0, 0, 0, 0), junk=0.0, step=0, parts=1):
        conv_groups(shape[1], weight_shape, groups, "conv2d_backward")
        window = conv_window(shape[2:], weight_shape[2:], stride, padding, dilation, rounding,
                             "conv2d_backward")
        if not set(ways) <= WAYS.keys():
            raise ShapeError(f"conv2d_backward: ways are {', '.join(WAYS)}, got {ways!r}")
        cdef cs_train_conv *layer = &self.layer
        layer.kernels = table()
        layer.images, layer.c, layer.h, layer.w = shape
        layer.o, layer.oh, layer.ow = weight_shape[0], window.oh, window.ow
        layer.kh, layer.kw, layer.sh, layer.sw, layer.dh, layer.dw = window[:6]
        layer.pt, layer.pl, layer.groups, layer.planar, layer.bias = (
            window.pt, window.pl, groups, planar, bias)
        layer.forward_way, layer.data_way, layer.weight_way = (WAYS[way] for way in ways)
        layer.x = laid_out(layer.c, layer.h, layer.w, halos[0], planar)
        layer.y = laid_out(layer.o, layer.oh, layer.ow, halos[1], False)
        layer.dx = laid_out(layer.c, layer.h, layer.w, halos[2], False)
        layer.dy = laid_out(layer.o, layer.oh, layer.ow, halos[3], False)
        if cs_train_conv_init(layer):
            raise MemoryError("no memory for a convolution's tiles")
        macs = float(layer.images) * layer.oh * layer.ow * np.prod(weight_shape)
        self.weight_shape, self.halos, self.junk = weight_shape, halos, junk
        self.threads = thread_count() if macs >= THREADS_FROM else 1
        self.step, self.parts = step or layer.batch, parts

    def __dealloc__(self):
        cs_train_conv_free(&self.layer)

    def ways(self):
        """What the three passes do."""
        names = list(WAYS)
        return (names[self.layer.forward_way], names[self.layer.data_way],
                names[self.layer.weight_way])

    cdef Blocked _input(self, values, int halo, bint planar):
        n, c, h, w = values.shape
        cdef Blocked blocked = Blocked(n, c, h, w, halo, planar)
        if n:
            blocked.fill(values, self.threads)
        if self.junk:
            blocked.spoil(self.junk)
        return blocked

    cdef tuple _packed(self, const float[:, :, :, ::1] weight):
        cdef Buffer forward = Buffer(self.layer.forward_floats)
        cdef Buffer backward = Buffer(self.layer.backward_floats)
        # a name of its own: a checked build can't leave the start of a parallel loop
        cdef int part, threads = self.threads
        for part in prange(threads, num_threads=threads, nogil=True, schedule="static"):
            cs_train_conv_pack(&self.layer, &weight[0, 0, 0, 0], forward.data, backward.data, part,
                               self.threads)
        return forward, backward

    def forward(self, x, weight, bias=None, activation=None):
        """(y, sums of its channels, sums of squares)"""
        cdef cs_train_conv *layer = &self.layer
        cdef cs_activation f = described(activation)
        cdef Blocked xs = self._input(x, self.halos[0], layer.planar)
        cdef Blocked ys = Blocked(layer.images, layer.o, layer.oh, layer.ow, self.halos[1], False)
        cdef Buffer packed = self._packed(weight)[0], scratch = borrow(layer.scratch_floats)
        cdef double[:, ::1] sums = np.zeros((2, layer.blocks * layer.block))
        cdef const float[::1] values
        cdef const float *shift = NULL
        cdef int n
        if bias is not None:
            values = bias
            shift = &values[0]
        for n in range(0, layer.images, self.step):
            cs_train_conv_forward(layer, n, min(layer.images, n + self.step), xs.at(0, 0, 0),
                                  packed.data, shift, &f, ys.at(0, 0, 0), &sums[0, 0], scratch.data)
        y = ys.array(self.threads)
        release(scratch)
        ys.done()
        xs.done()
        return y, *np.asarray(sums)[:, :layer.o]

    def data_gradient(self, grad, weight, dx=None):
        """The gradient of x, plus dx where that is given."""
        cdef cs_train_conv *layer = &self.layer
        cdef Blocked gs = self._input(grad, self.halos[3], False), out
        cdef Buffer packed = self._packed(weight)[1]
        cdef Buffer scratch = borrow(self.threads * layer.scratch_floats)
        cdef bint add = dx is not None
        cdef int n, calls = (layer.images + self.step - 1) // self.step, threads = self.threads
        if add:
            out = self._input(dx, self.halos[2], False)
        else:
            out = Blocked(layer.images, layer.c, layer.h, layer.w, self.halos[2], False)
        for n in prange(calls, num_threads=threads, nogil=True, schedule="dynamic"):
            cs_train_conv_data_gradient(layer, n * self.step,
                                        min(layer.images, (n + 1) * self.step),
                                        gs.at(0, 0, 0), packed.data, out.at(0, 0, 0), add,
                                        scratch.data + threadid() * layer.scratch_floats)
        result = out.array(self.threads)
        release(scratch)
        out.done()
        gs.done()
        return result

    def weight_gradient(self, grad, x):
        """(dweight, dbias or None)"""
        cdef cs_train_conv *layer = &self.layer
        cdef Blocked gs = self._input(grad, self.halos[3], False)
        cdef Blocked xs = self._input(x, self.halos[0], layer.planar)
        cdef Buffer partials = borrow(self.parts * layer.partial_floats)
        cdef Buffer scratch = borrow(self.threads * layer.scratch_floats)
        cdef float[:, :, :, ::1] dweight = np.zeros(self.weight_shape, np.float32)
        cdef float[::1] dbias = np.zeros(layer.o, np.float32)
        cdef int tasks = self.parts * layer.filter_parts, threads = self.threads
        cdef int task, part, filters
        with nogil:
            memset(partials.data, 0, self.parts * layer.partial_floats * sizeof(float))
            for task in prange(tasks, num_threads=threads, schedule="dynamic"):
                part, filters = task // layer.filter_parts, task % layer.filter_parts
                self._part(part, filters, xs.at(0, 0, 0), gs.at(0, 0, 0),
                           partials.data + part * layer.partial_floats,
                           scratch.data + threadid() * layer.scratch_floats)
            for task in prange(threads, num_threads=threads, schedule="static"):
                cs_train_conv_reduce(layer, partials.data, self.parts, &dweight[0, 0, 0, 0],
                                     &dbias[0] if layer.bias else NULL, task, self.threads)
        release(partials)
        release(scratch)
        gs.done()
        xs.done()
        return np.asarray(dweight), np.asarray(dbias) if layer.bias else None

    cdef void _part(self, int part, int filters, const float *x, const float *dy, float *partial,
                    float *scratch) noexcept nogil:
        cdef cs_train_conv *layer = &self.layer
        cdef int n = <int>(<int64_t>layer.images * part // self.parts), first = n, end
        cdef int last = <int>(<int64_t>layer.images * (part + 1) // self.parts)
        while n < last:
            end = min(last, n + self.step)
            cs_train_conv_weight_gradient(layer, n, end, filters, filters + 1, x, dy, partial,
                                          n > first, scratch)
            n = end
