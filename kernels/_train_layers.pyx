"""Layers of a training step that have memory of their own: packed weights, statistics, sums.

`kernels._trainer` runs operations that work with them. Addresses come only from arrays that are
kept alive here.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset

from convserve.kernels._core cimport Buffer, table
from convserve.kernels._train_conv cimport (
    cs_train_conv, cs_train_conv_free, cs_train_conv_init, cs_train_layout,
)
from convserve.kernels._train_step cimport cs_train_norm


cdef float *address(float[::1] values, list kept) except NULL:
    kept.append(values)
    return &values[0]


cdef class ConvLayer:
    """One convolution: its kernels, packed weights and partial sums (csrc/train_conv.h).

    shape: (C, H, W) of the input; window: of the filter over it; layouts: of x, y, dx and dy, each
    (image, plane, row, halo), to be given once the tensors have their halos.
    """

    def __init__(self, int images, shape, int filters, window, int groups, bint planar,
                 bint bias, layouts=((0, 0, 0, 0),) * 4):
        cdef cs_train_conv *conv = &self.layer
        cs_train_conv_free(conv)
        memset(conv, 0, sizeof(cs_train_conv))
        conv.kernels, conv.images, conv.groups, conv.planar = table(), images, groups, planar
        conv.bias = bias
        conv.c, conv.h, conv.w = shape
        conv.o, conv.oh, conv.ow = filters, window.oh, window.ow
        conv.kh, conv.kw, conv.sh, conv.sw = window.kh, window.kw, window.sh, window.sw
        conv.pt, conv.pl, conv.dh, conv.dw = window.pt, window.pl, window.dh, window.dw
        x, y, dx, dy = layouts
        conv.x = cs_train_layout(x[0], x[1], x[2], x[3])
        conv.y = cs_train_layout(y[0], y[1], y[2], y[3])
        conv.dx = cs_train_layout(dx[0], dx[1], dx[2], dx[3])
        conv.dy = cs_train_layout(dy[0], dy[1], dy[2], dy[3])
        if cs_train_conv_init(conv):
            raise MemoryError("no memory for a convolution's kernels")

    def __dealloc__(self):
        cs_train_conv_free(&self.layer)

    @property
    def halos(self):
        """The halos of x and of dy that spare copies."""
        return self.layer.want_x, self.layer.want_dy

    @property
    def parts(self):
        """How many the forward pass, the data and the weight gradient have that had better go by
        filters (0: by images)."""
        cdef cs_train_conv *layer = &self.layer
        return layer.forward_parts, layer.data_parts, layer.weight_parts

    @property
    def batch(self):
        """Images that a call should have at the least."""
        return self.layer.batch

    @property
    def partial_floats(self):
        return self.layer.partial_floats

    def allocate(self, bint forward, bint backward, int partials):
        """Memory for packed weights of either pass, and for so many partial sums."""
        if forward:
            self.forward = Buffer(self.layer.forward_floats)
        if backward:
            self.backward = Buffer(self.layer.backward_floats)
        if partials:
            self.partials = Buffer(self.layer.partial_floats * partials)


cdef class NormLayer:
    """One batch norm: its parameters, statistics and partial sums."""

    def __init__(self, weight, bias, running_mean, running_var, dweight, dbias, float eps,
                 float momentum, int lanes):
        cdef cs_train_norm *n = &self.norm
        cdef int64_t block = table().block
        self.kept = []
        n.channels, n.eps, n.momentum = len(weight), eps, momentum
        n.room = (n.channels + block - 1) // block * block
        for values in (weight, bias, running_mean, running_var, dweight, dbias):
            if len(values) != n.channels:
                raise ValueError(f"batch norm of {n.channels} channels, got {len(values)} values")
        n.weight, n.bias = address(weight, self.kept), address(bias, self.kept)
        n.running_mean = address(running_mean, self.kept)
        n.running_var = address(running_var, self.kept)
        n.dweight, n.dbias = address(dweight, self.kept), address(dbias, self.kept)
        self.floats = Buffer((7 + lanes) * n.room)
        n.mean = self.floats.data
        n.istd, n.scale, n.shift = n.mean + n.room, n.mean + 2 * n.room, n.mean + 3 * n.room
        n.of_dy, n.of_x, n.offset = n.mean + 4 * n.room, n.mean + 5 * n.room, n.mean + 6 * n.room
        n.start = n.mean + 7 * n.room
        self.doubles = Buffer(4 * lanes * n.room)
        n.sums = <double *>self.doubles.data
        n.squares = n.sums + lanes * n.room
