"""Weights packed for the C kernels: made once by the plan, at each call by the public functions.

    tile    one run of 1, 2 or 4 blocks of output channels that a register tile computes together
    plane   what one step of the kernel's outer loop reads: a block of input channels, or in the
            planar (NCHW) form, for images of few channels, one channel
    packed  [tile][plane][filter row][filter column][inner][channels of the tile]

In the planar form `inner` runs over the taps of a filter row, in the blocked one over the channels
of a block. With groups a tile reads only the planes of its own groups, and weights between
channels of different groups are zeros.
"""

import time

import numpy as np

from cython.parallel cimport prange

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from convserve.kernels._activation cimport described
from convserve.kernels._core cimport Buffer, cs_kernels, table

from convserve.kernels._arguments import conv_groups, conv_window, float32_array, integer

# From this number of channels on, the blocked form is the quicker one.
PLANAR_CHANNELS = 8  # read by convserve.plan too


cdef int source_planes(const Source *s) noexcept nogil:
    return s.channels if s.planar else (s.channels + s.block - 1) // s.block


cdef int64_t source_floats(const Source *s) noexcept nogil:
    return <int64_t>source_planes(s) * s.rows * s.columns * (1 if s.planar else s.block)


cdef void stage(const cs_kernels *k, const Source *s, int64_t n, int plane,
                float *buffer) noexcept nogil:
    cdef int h0 = max(0, -s.top), h1 = min(s.height, s.rows - s.top)
    cdef int w0 = max(0, -s.left), w1 = min(s.width, s.columns - s.left)
    cdef int64_t size = 1 if s.planar else s.block, row = s.columns * size
    cdef float *y = buffer + (<int64_t>plane * s.rows + s.top) * row
    y += (s.left + <int64_t>w0) * size
    cdef const float *x = s.data + n * s.n_step + plane * size * s.c_step + w0 * s.w_step
    cdef int h, w
    if w1 <= w0:
        return
    if not s.planar:
        k.pack(min(s.block, s.channels - plane * s.block), h0, h1, w1 - w0, x,
               s.c_step, s.h_step, s.w_step, y, row, size)
        return
    for h in range(h0, h1):
        if s.w_step == 1:
            memcpy(y + h * row, x + h * s.h_step, (w1 - w0) * sizeof(float))
        else:
            for w in range(w1 - w0):
                y[h * row + w] = x[h * s.h_step + w * s.w_step]


cdef class PackedConv:
    """A convolution's weights and geometry in the order of the C kernels.

    weight: float32[O, C / groups, KH, KW]; bias: float32[O] or None. The input is stored planar
    (NCHW) or blocked; by default as its number of channels suggests. ready: the `memory` of an
    equal one, which is used where it lies; of weight only the shape counts then.
    Raises ShapeError and TypeError as `conv2d` does.
    """

    def __cinit__(self):
        self.tiles = NULL

    def __init__(self, weight, bias, height, width, stride=1, padding=0, dilation=1, groups=1,
                 rounding="floor", planar=None, ready=None):
        weight = np.ascontiguousarray(float32_array(weight, "conv2d: weight", 4))
        self.filters = weight.shape[0]
        self.groups = integer(groups, "conv2d: groups", 1)
        self.channels = weight.shape[1] * self.groups
        conv_groups(self.channels, weight.shape, self.groups, "conv2d")
        window = conv_window((height, width), weight.shape[2:], stride, padding, dilation, rounding)
        self.kh, self.kw, self.sh, self.sw, self.dh, self.dw = window[:6]
        self.kernels = table()
        self.block = self.kernels.block
        self.blocks = (self.filters + self.block - 1) // self.block
        self.planar = self.channels < PLANAR_CHANNELS if planar is None else planar
        self.planes = self.channels
        if not self.planar:
            self.planes = (self.channels + self.block - 1) // self.block

        # A row of neighbouring taps is walked by the kernel's inner loop.
        self.row_taps = self.kw if self.planar and self.dw == 1 else 1
        self.conv.oh, self.conv.ow = window.oh, window.ow
        self.conv.kh, self.conv.kw = self.kh, self.kw // self.row_taps
        self.conv.inner = self.row_taps if self.planar else self.block
        self.conv.last_plane = self.planes - 1
        self.conv.inner_last = self.inner(self.planes - 1)
        self.conv.activation = described(None)
        self.conv.filters = self.filters
        self.conv.pixels = self.by_pixels(False)
        self._lay_tiles()

        cdef const float[:, :, :, ::1] w = weight
        self.weights = Buffer(self.weight_floats, ready)
        if ready is None:
            with nogil:  # a large network's take seconds
                self.transfer(&w[0, 0, 0, 0], self.weights.data)
        cdef const float[:] b
        cdef int o
        self.bias = Buffer(<size_t>self.blocks * self.block)
        if bias is not None:
            b = bias
            for o in range(self.filters):
                self.bias.data[o] = b[o]

    def __dealloc__(self):
        free(self.tiles)

    @property
    def memory(self):
        """The weights as the kernels read them: float32[n], read-only."""
        return np.frombuffer(self.weights, np.float32)

    cdef bint by_pixels(self, bint planar) noexcept nogil:
        cdef int taps = self.channels * self.kh * self.kw
        if not self.planar or self.sw != 1 or self.groups != 1:
            return False
        if planar:
            return self.kernels.conv_planar_by_pixels(self.conv.ow, self.filters, taps)
        return self.kernels.conv_by_pixels(self.conv.ow, self.filters, taps)

    def _lay_tiles(self):
        cdef int size = self.kernels.conv_tile_blocks(self.conv.ow, self.blocks)
        cdef int per_group = self.filters // self.groups, depth = self.channels // self.groups
        cdef int t = 0, first = 0, plane, plane_channels = 1 if self.planar else self.block
        cdef int low, high
        cdef int64_t floats = 0
        # A tile over several groups would multiply with zeros.
        while self.groups > 1 and size > 1 and per_group % (size * self.block):
            size //= 2
        self.tiles = <cs_conv_tile *>malloc(self.blocks * sizeof(cs_conv_tile))
        if self.tiles == NULL:
            raise MemoryError("no memory for a convolution's tiles")
        # A last block with few filters: a tile of its own.
        cdef int together = self.blocks
        if self.kernels.half and 0 < self.filters % self.block <= self.block // 2:
            together -= 1
        while first < self.blocks:
            while size > 1 and size > together - first:
                size //= 2
            low = first * self.block // per_group * depth
            high = (min(self.filters, (first + size) * self.block) - 1) // per_group * depth + depth
            self.tiles[t].block = first
            self.tiles[t].blocks = size
            self.tiles[t].plane = low // plane_channels
            self.tiles[t].planes = (high - 1) // plane_channels + 1 - self.tiles[t].plane
            self.tiles[t].weight = floats
            for plane in range(self.tiles[t].plane, self.tiles[t].plane + self.tiles[t].planes):
                floats += <int64_t>self.kh * self.conv.kw * self.inner(plane) * size * self.block
            first += size
            t += 1
        self.weight_floats = floats
        self.conv.tiles = t
        self.conv.tile = self.tiles

    cdef int inner(self, int plane) noexcept nogil:
        if self.planar:
            return self.row_taps
        return min(self.block, self.channels - plane * self.block)

    cdef void read_from(self, int64_t plane, int64_t row, int64_t px) noexcept nogil:
        self.conv.x_plane = plane
        self.conv.x_kh = self.dh * row
        self.conv.x_kw = self.dw * px
        self.conv.x_oh = self.sh * row
        self.conv.x_px = self.sw * px

    cdef void write_to(self, int64_t block, int64_t row, int64_t px) noexcept nogil:
        self.conv.y_block = block
        self.conv.y_row = row
        self.conv.y_px = px

    cdef void transfer(self, const float *oihw, float *packed) noexcept nogil:
        cdef int per_group = self.filters // self.groups, depth = self.channels // self.groups
        cdef int t, plane, kh, kw, tap, k, lane, o, c, inner, first, end
        cdef const cs_conv_tile *tile
        for t in range(self.conv.tiles):
            tile = &self.tiles[t]
            for plane in range(tile.plane, tile.plane + tile.planes):
                inner = self.inner(plane)
                for kh in range(self.kh):
                    for kw in range(self.conv.kw):
                        for k in range(inner):
                            c = plane if self.planar else plane * self.block + k
                            tap = k if self.row_taps > 1 else kw
                            # the filters of this channel's group
                            first = c // depth * per_group - tile.block * self.block
                            end = min(first + per_group, tile.blocks * self.block)
                            first = max(first, 0)
                            memset(packed, 0, tile.blocks * self.block * sizeof(float))
                            for lane in range(first, end):
                                o = tile.block * self.block + lane
                                packed[lane] = oihw[tap + self.kw * (
                                    (<int64_t>o * depth + c % depth) * self.kh + kh)]
                            packed += tile.blocks * self.block

    def bench(self, images=1, threads=1, seconds=0.2):
        """GFLOP/s of the convolution alone, on `images` packed images, the best of many rounds."""
        cdef int rows = (self.conv.oh - 1) * self.sh + (self.kh - 1) * self.dh + 1
        cdef int columns = (self.conv.ow - 1) * self.sw + (self.kw - 1) * self.dw + 1
        cdef int64_t px = 1 if self.planar else self.block
        cdef int64_t x_floats = px * rows * columns * self.planes
        cdef int64_t y_floats = <int64_t>self.blocks * self.conv.oh * self.conv.ow * self.block
        cdef int64_t n = integer(images, "bench: images", 1), i
        cdef int workers = integer(threads, "bench: threads", 1), t
        cdef Buffer x = Buffer(n * x_floats), y = Buffer(n * y_floats)
        for i in range(n * x_floats):
            x.data[i] = <float>(i % 17) - 8
        self.read_from(px * rows * columns, columns * px, px)
        self.write_to(y_floats // self.blocks, self.conv.ow * self.block, self.block)
        best = float("inf")
        end = time.perf_counter() + seconds
        while True:
            start = time.perf_counter()
            for i in prange(n, nogil=True, num_threads=workers, schedule="static"):
                for t in range(self.conv.tiles):
                    self.kernels.conv(&self.conv, t, 0, self.conv.oh, x.data + i * x_floats,
                                      self.weights.data, self.bias.data, NULL,
                                      y.data + i * y_floats)
            now = time.perf_counter()
            best = min(best, now - start)
            if now > end:
                break
        flops = 2.0 * n * self.conv.oh * self.conv.ow * self.filters * self.kh * self.kw
        return flops * (self.channels // self.groups) / best * 1e-9
