"""What the executor walks: `convserve.plan` describes tensors and operations, once."""

from math import gcd

import numpy as np

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, realloc

from convserve.kernels._activation cimport described
from convserve.kernels._core cimport (
    CS_ADD, CS_MUL, CS_SUB, Buffer, cs_depthwise, cs_norm, cs_pointwise, cs_pool,
)
from convserve.kernels._packed cimport PackedConv
from convserve.kernels._plan cimport (
    CS_ACTIVATE, CS_AFFINE, CS_ARITHMETIC, CS_AVG_POOL, CS_CONV, CS_DEPTHWISE, CS_FLATTEN,
    CS_GLOBAL_AVG_POOL, CS_GLOBAL_MAX_POOL, CS_LAYER_NORM, CS_LOG_SOFTMAX, CS_LRN, CS_MAX_POOL,
    CS_OUTPUT, CS_PAD, CS_PRELU, CS_REARRANGE, CS_SCALE_SHIFT, CS_SOFTMAX, CS_STAGE,
    CS_WINOGRAD, cs_conv_op, cs_op, cs_pad, cs_rearrange, cs_tensor, cs_winograd_op,
)
from convserve.kernels._tensors cimport Tensors
from convserve.kernels._winograd cimport PackedWinograd

from convserve.kernels._arguments import halves
from convserve.kernels._winograd import pass_tiles

# A convolution with a larger input and fewer weights goes through it in bands of rows.
cdef int64_t BAND_INPUT = 64 * 1024
cdef int64_t BAND_WEIGHTS = 12 * 1024
cdef int64_t BAND_FLOATS = 32 * 1024
# Of the rows that a convolution hands to the pooling after it.
cdef int POOLED_FLOATS = 16 * 1024
# Of the rows that go to a result together, for the first-level cache to hold them.
cdef int STRIP_FLOATS = 8 * 1024
# The widest strip of Winograd tiles, in pixels.
cdef int STRIP_WIDTH = 64
# Which operations make their result strip by strip, if it is to be NCHW.
cdef tuple STRIPS = (
    CS_CONV, CS_WINOGRAD, CS_DEPTHWISE, CS_MAX_POOL, CS_AVG_POOL, CS_SCALE_SHIFT, CS_PRELU,
    CS_ARITHMETIC, CS_ACTIVATE, CS_LRN, CS_PAD,
)


cdef void set_window(cs_pool *p, window, bint count_padding):
    p.oh, p.ow = window.oh, window.ow
    p.kh, p.kw, p.sh, p.sw = window.kh, window.kw, window.sh, window.sw
    p.pt, p.pb, p.pl, p.pr = window.pt, window.pb, window.pl, window.pr
    p.count_padding = count_padding


cdef class Operations(Tensors):
    """Tensors and operations in the order of their execution, level by level."""

    def __cinit__(self):
        self.ops = NULL
        self.kept = []

    def __dealloc__(self):
        free(self.ops)

    cdef cs_op *_op(self, int kind, int level, int x, int y) except NULL:
        cdef void *grown = realloc(self.ops, (self.plan.op_count + 1) * sizeof(cs_op))
        if grown == NULL:
            raise MemoryError("no memory for a plan's operations")
        self.ops = <cs_op *>grown
        self.plan.ops = self.ops
        cdef int result = self.tensors[y].result if y >= 0 else 0
        if result:
            assert kind in STRIPS, f"operation {kind} can't store as NCHW"
            self._tensor(self.tensors[y].channels, self.tensors[y].height, self.tensors[y].width,
                         False)
            y = self.tensor_count - 1
        cdef cs_op *op = &self.ops[self.plan.op_count]
        self.plan.op_count += 1
        op.kind, op.level, op.x, op.r, op.y, op.first, op.x_start = kind, level, x, -1, y, 0, 0
        op.weight = op.bias = NULL
        op.strip = op.scratch = 0
        if result:
            op.first = result - 1
            op.strip = 1
            self._cut(op, 1, 0, 0)
        return op

    cdef void _cut(self, cs_op *op, int blocks, int rows, int width):
        """Sizes the strip that the operation makes at a time; 0: as many whole rows as fit."""
        cdef cs_tensor *t = &self.tensors[op.y]
        t.row = (width or t.width) * t.px
        op.strip = rows or self._aligned(op, min(t.height, STRIP_FLOATS // (blocks * t.row)))
        t.plane = op.strip * t.row
        op.scratch = (blocks * t.plane + 15) // 16 * 16
        self._reserve(op, 0)

    cdef int _aligned(self, cs_op *op, int64_t rows) noexcept:
        """About so many rows of y, which in an NCHW result end where a vector does, if any do."""
        cdef cs_tensor *t = &self.tensors[op.y]
        cdef int step = t.px // gcd(t.width, t.px) if op.strip else 1
        return max(1, rows) if step > t.height else max(step, rows - rows % step)

    cdef void _reserve(self, cs_op *op, int64_t floats):
        """Scratch memory for the operation itself."""
        self.scratch_floats = max(self.scratch_floats, op.scratch + floats)

    def stage(self, int level, int x, int y):
        self._op(CS_STAGE, level, x, y)

    def flatten(self, int level, int x, int y):
        self._op(CS_FLATTEN, level, x, y)

    def softmax(self, int level, int x, int y):
        self._softmax(CS_SOFTMAX, level, x, y)

    def log_softmax(self, int level, int x, int y):
        self._softmax(CS_LOG_SOFTMAX, level, x, y)

    cdef void _softmax(self, int kind, int level, int x, int y):
        cdef cs_op *op = self._op(kind, level, x, y)
        cdef cs_tensor *t = &self.tensors[y]
        if t.plane != t.px:  # one pixel with a halo: the row is made elsewhere
            self._reserve(op, (t.channels + 15) // 16 * 16)

    def rearrange(self, int level, int y, channels, tensors, sources):
        """channels[i] of y becomes sources[i] of tensors[i]; the others stay. int64[n] each."""
        cdef cs_rearrange *r = &self._op(CS_REARRANGE, level, y, y).as_.rearrange
        cdef int block = self.plan.kernels.block
        # each of y's blocks with each block that gives it something, in order
        keys = np.stack([channels // block, tensors, sources // block], axis=1)
        pieces, piece = np.unique(keys, axis=0, return_inverse=True)
        blocks, first, count = np.unique(pieces[:, 0], return_index=True, return_counts=True)
        lanes = np.full((len(pieces), block), -1, np.int32)
        lanes[piece.ravel(), channels % block] = sources % block
        to = np.stack([blocks, first, count], axis=1).astype(np.int32)
        from_ = pieces[:, 1:].astype(np.int32)
        r.blocks = len(blocks)
        r.to = <const int32_t (*)[3]>self._numbers(to)
        r.from_ = <const int32_t (*)[2]>self._numbers(from_)
        r.lanes = self._numbers(lanes)

    cdef const int32_t *_numbers(self, array) except NULL:
        cdef const int32_t[::1] view = array.ravel()
        self.kept.append(view)
        return &view[0]

    def pad(self, int level, int x, int y, int top, int left, float value):
        """x with its first pixel at row `top`, column `left` of y; negative: a crop."""
        self._op(CS_PAD, level, x, y).as_.pad = cs_pad(top, left, value)

    def global_avg_pool(self, int level, int x, int y):
        self._op(CS_GLOBAL_AVG_POOL, level, x, y)

    def global_max_pool(self, int level, int x, int y):
        self._op(CS_GLOBAL_MAX_POOL, level, x, y)

    def layer_norm(self, int level, int x, int y, weight, bias, float eps):
        """Over the channels of each pixel: weight and bias float32[C]."""
        cdef cs_op *op = self._norm(CS_LAYER_NORM, level, x, y)
        op.as_.norm.eps = eps
        op.weight, op.bias = self._constant(weight), self._constant(bias)

    def lrn(self, int level, int x, int y, int before, int after, float alpha, float beta,
            float bias):
        """x / (bias + alpha * sum of the squares of those channels and its own)^beta."""
        cdef cs_norm *p = &self._norm(CS_LRN, level, x, y).as_.norm
        p.before, p.after = before, after
        p.alpha, p.beta, p.bias = alpha, beta, bias

    cdef cs_op *_norm(self, int kind, int level, int x, int y) except NULL:
        cdef cs_op *op = self._op(kind, level, x, y)
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        op.as_.norm = cs_norm(tx.channels, tx.width, 0, 0, 0, 0, 0, 0,
                              tx.row, tx.plane, ty.row, ty.plane)
        return op

    def activate(self, int level, int x, int y, activation):
        self._op(CS_ACTIVATE, level, x, y).as_.activation = described(activation)

    def conv(self, int level, int x, int y, PackedConv packed, window, activation=None,
             residual=None, pool=None):
        """A convolution whose padding is x's halo; the residual is added before the activation.

        pool: the window, whether the largest is taken and whether padding counts, of the pooling
        that is done after the activation, on store.
        """
        cdef cs_op *op = self._op(CS_CONV, level, x, y)
        cdef cs_conv_op *o = &op.as_.conv
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        cdef cs_tensor *tr
        cdef int t, widest = 0
        for t in range(packed.conv.tiles):
            widest = max(widest, packed.tiles[t].blocks)
        if op.strip:
            self._cut(op, widest, 0, 0)
        packed.read_from(tx.plane, tx.row, tx.px)
        packed.write_to(ty.plane, ty.row, ty.px)
        o.conv = packed.conv
        o.conv.activation = described(activation)
        o.rows, o.pooling, o.band = ty.height, -1, 0
        op.x_start = -<int64_t>window.pt * tx.row - window.pl * tx.px
        self._keep(op, packed)
        if residual is not None:
            op.r, o.conv.pixels = residual, 0
            tr = &self.tensors[op.r]
            o.conv.r_block, o.conv.r_row, o.conv.r_px = tr.plane, tr.row, tr.px
        elif op.strip and pool is None and packed.by_pixels(True):
            self._by_pixels(op, y, packed)
        if pool is not None:
            self._pool_on_store(op, pool, widest)
        cdef int64_t row = tx.row * (o.conv.oh * window.sh // o.rows) * packed.planes
        o.light = packed.weight_floats <= tx.image
        if (o.rows > 1 and o.conv.tiles > 1 and packed.weight_floats <= BAND_WEIGHTS
                and row * o.rows > BAND_INPUT):
            o.band = self._aligned(op, BAND_FLOATS // row)

    cdef void _by_pixels(self, cs_op *op, int y, PackedConv packed):
        """Stores vectors of pixels where they belong in an NCHW result; without a strip."""
        cdef cs_conv_op *o = &op.as_.conv
        cdef cs_tensor *ty = &self.tensors[y]
        op.y, op.strip, op.scratch = y, 0, 0
        o.conv.pixels = 1
        o.conv.y_block, o.conv.y_row, o.conv.y_px = ty.plane * packed.block, ty.row, 1

    cdef void _pool_on_store(self, cs_op *op, pool, int widest):
        window, largest, count_padding = pool
        cdef cs_conv_op *o = &op.as_.conv
        cdef cs_tensor *ty = &self.tensors[op.y]
        cdef int block = self.plan.kernels.block
        cdef cs_pool *p = &o.pool
        halved = largest and halves(window, o.conv.oh, o.conv.ow)
        if halved and o.conv.pixels and 2 * window.ow >= block:
            o.conv.pool = 1
            return
        o.pooling = CS_MAX_POOL if largest else CS_AVG_POOL
        p.h, p.w = o.conv.oh, o.conv.ow
        set_window(p, window, count_padding)
        p.x_row, p.y_row, p.y_plane = o.conv.ow * block, ty.row, ty.plane
        rows = POOLED_FLOATS // (widest * p.x_row)
        o.strip = max(1, min(o.rows, (rows - p.kh) // p.sh + 1))
        p.x_plane = p.x_row * ((o.strip - 1) * p.sh + p.kh)
        self._reserve(op, widest * p.x_plane)

    def winograd(self, int level, int x, int y, PackedWinograd packed, window, activation=None,
                 residual=None, bint pool=False):
        """The same for 3 x 3 filters and stride 1, by Winograd tiles.

        pool: the largest of each 2 x 2 outputs is stored.
        """
        cdef cs_op *op = self._op(CS_WINOGRAD, level, x, y)
        cdef cs_winograd_op *o = &op.as_.winograd
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        cdef PackedConv product = packed.product
        cdef int block = product.block, m = packed.m, coefficients = (m + 2) * (m + 2)
        product.read_from(0, 0, block)
        product.write_to(0, 0, block)
        o.product, o.coefficient = product.conv, packed.coefficient
        o.tiles.m, o.tiles.planes, o.tiles.blocks = m, product.planes, product.blocks
        o.tiles.oh, o.tiles.ow = packed.oh, packed.ow
        o.tiles.h = tx.height + window.pt + window.pb
        o.tiles.w = tx.width + window.pl + window.pr
        o.tiles.rows, o.tiles.columns = (packed.oh + m - 1) // m, (packed.ow + m - 1) // m
        o.tiles.activation, o.tiles.pool = described(activation), pool
        cdef int i, widest = 0
        for i in range(product.conv.tiles):
            widest = max(widest, product.tiles[i].blocks)
        if op.strip:
            self._cut(op, widest, m // 2 if pool else m, min(ty.width, STRIP_WIDTH))
        o.tiles.x_plane, o.tiles.x_row = tx.plane, tx.row
        o.tiles.y_block, o.tiles.y_row = ty.plane, ty.row
        o.tiles.top = o.tiles.left = 0
        op.x_start = -<int64_t>window.pt * tx.row - window.pl * tx.px
        op.weight, op.bias = packed.weights.data, packed.bias.data
        self.kept.append(packed)
        if residual is not None:
            op.r = residual
            o.tiles.r_block, o.tiles.r_row = self.tensors[op.r].plane, self.tensors[op.r].row
        # Inputs and products of a pass in the Winograd domain.
        a_tile = coefficients * block * (product.planes + widest)
        steps = 2 * coefficients * block   # what keeps the coefficients apart
        tiles = o.tiles.rows * o.tiles.columns * self.plan.group[level]
        o.slots = pass_tiles(m, packed.channels, packed.filters, tiles)
        self._reserve(op, <int64_t>(o.slots * a_tile + steps))

    def affine(self, int level, int x, int y, PackedConv packed, activation=None):
        """A convolution with a filter as large as the image; the chunk's images are its pixels."""
        cdef cs_op *op = self._op(CS_AFFINE, level, x, y)
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        packed.read_from(tx.plane, tx.row, tx.px)
        packed.write_to(ty.plane, 0, ty.image)
        op.as_.affine = packed.conv
        op.as_.affine.activation = described(activation)
        op.as_.affine.x_px = tx.image
        self._keep(op, packed)

    cdef void _keep(self, cs_op *op, PackedConv packed):
        op.weight, op.bias = packed.weights.data, packed.bias.data
        self.kept.append(packed)

    def depthwise(self, int level, int x, int y, weight, bias, window, activation=None):
        """One filter a channel: weight float32[C, KH, KW], bias float32[C]."""
        cdef cs_op *op = self._op(CS_DEPTHWISE, level, x, y)
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        cdef cs_depthwise *d = &op.as_.depthwise
        d.oh, d.ow, d.kh, d.kw = window.oh, window.ow, window.kh, window.kw
        d.activation = described(activation)
        d.x_plane, d.x_kh, d.x_kw = tx.plane, window.dh * tx.row, window.dw * tx.px
        d.x_oh, d.x_px = window.sh * tx.row, window.sw * tx.px
        d.y_block, d.y_row = ty.plane, ty.row
        op.x_start = -<int64_t>window.pt * tx.row - window.pl * tx.px
        # [C / b][KH][KW][b]
        channels, kh, kw = weight.shape
        width = self.plan.kernels.block
        blocked = np.zeros(((channels + width - 1) // width, width, kh, kw), np.float32)
        blocked.reshape(-1, kh, kw)[:channels] = weight
        op.weight = self._constant(blocked.transpose(0, 2, 3, 1).ravel())
        op.bias = self._constant(bias)

    def scale_shift(self, int level, int x, int y, scale, shift, activation=None):
        """y = x * scale + shift by channel: float32[C] each."""
        cdef cs_op *op = self._pointwise(CS_SCALE_SHIFT, level, x, y, activation)
        op.weight, op.bias = self._constant(scale), self._constant(shift)

    def prelu(self, int level, int x, int y, slope):
        """x where it is above 0, else x * slope by channel: float32[C]."""
        self._pointwise(CS_PRELU, level, x, y, None).weight = self._constant(slope)

    def arithmetic(self, int level, str kind, int x, int r, int y, activation=None):
        """x + r, x - r or x * r ("add", "sub", "mul"); one may have a single pixel for all."""
        cdef cs_op *op = self._pointwise(CS_ARITHMETIC, level, x, y, activation)
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *tr = &self.tensors[r]
        cdef cs_tensor *ty = &self.tensors[op.y]
        cdef cs_pointwise *p = &op.as_.pointwise
        op.r = r
        p.arithmetic = {"add": CS_ADD, "sub": CS_SUB, "mul": CS_MUL}[kind]
        if (tx.height, tx.width) != (ty.height, ty.width):
            p.a_px = p.a_row = 0
        if (tr.height, tr.width) == (ty.height, ty.width):
            p.b_px, p.b_row = tr.px, tr.row
        p.b_plane = tr.plane

    cdef cs_op *_pointwise(self, int kind, int level, int x, int y, activation) except NULL:
        cdef cs_op *op = self._op(kind, level, x, y)
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        op.as_.pointwise = cs_pointwise(ty.height, ty.width, 0, described(activation), tx.px,
                                        tx.row, tx.plane, 0, 0, 0, ty.row, ty.plane)
        return op

    def pool(self, int level, int x, int y, window, bint largest, bint count_padding):
        cdef cs_op *op = self._op(CS_MAX_POOL if largest else CS_AVG_POOL, level, x, y)
        cdef cs_tensor *tx = &self.tensors[x]
        cdef cs_tensor *ty = &self.tensors[op.y]
        cdef cs_pool *p = &op.as_.pool
        p.h, p.w = tx.height, tx.width
        set_window(p, window, count_padding)
        p.x_row, p.x_plane, p.y_row, p.y_plane = tx.row, tx.plane, ty.row, ty.plane

    def output(self, int level, int x, int number):
        """A result: tensor x as NCHW."""
        self._op(CS_OUTPUT, level, x, -1).first = number

    cdef const float *_constant(self, values) except NULL:
        """One value a channel (or any packed weights), zero up to a whole number of vectors."""
        cdef const float[::1] v = np.ascontiguousarray(values, np.float32)
        cdef Buffer buffer = Buffer((v.shape[0] + 15) // 16 * 16)
        cdef Py_ssize_t i
        for i in range(v.shape[0]):
            buffer.data[i] = v[i]
        self.kept.append(buffer)
        return buffer.data

    @property
    def operations(self):
        """How many operations it has so far."""
        return self.plan.op_count
