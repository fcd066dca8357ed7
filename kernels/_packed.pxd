"""Convolution weights in the order in which the C kernels read them, and the inputs beside them."""

from libc.stdint cimport int64_t

from convserve.kernels._core cimport Buffer, cs_conv, cs_conv_tile, cs_kernels


# An image of C planes that is copied into a zeroed, padded buffer before a convolution reads it.
cdef struct Source:
    const float *data
    int64_t n_step, c_step, h_step, w_step  # strides of `data`, in floats
    int channels, height, width
    int top, left         # where its first pixel goes; negative: the rows before are left out
    int rows, columns     # of the buffer
    bint planar           # NCHW instead of blocked
    int block


cdef int source_planes(const Source *s) noexcept nogil
cdef int64_t source_floats(const Source *s) noexcept nogil
# Copy one plane (a channel, or a block of channels) of image n to its place in `buffer`.
cdef void stage(const cs_kernels *k, const Source *s, int64_t n, int plane,
                float *buffer) noexcept nogil


cdef class PackedConv:
    cdef const cs_kernels *kernels
    cdef readonly int channels, filters, groups, kh, kw, block, blocks, planes
    cdef readonly bint planar
    cdef int sh, sw, dh, dw, row_taps
    cdef cs_conv conv
    cdef cs_conv_tile *tiles
    cdef int64_t weight_floats
    cdef Buffer weights, bias

    cdef int inner(self, int plane) noexcept nogil
    # Whether it runs by vectors of pixels; planar: into an NCHW result.
    cdef bint by_pixels(self, bint planar) noexcept nogil
    # Strides of the input, which already holds its padding, and of the output: set before running.
    cdef void read_from(self, int64_t plane, int64_t row, int64_t px) noexcept nogil
    cdef void write_to(self, int64_t block, int64_t row, int64_t px) noexcept nogil
    # OIHW -> the packed order
    cdef void transfer(self, const float *oihw, float *packed) noexcept nogil
