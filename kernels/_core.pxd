"""The C kernels' vocabulary (csrc/cs.h) and what all compiled modules share."""

from libc.stdint cimport int32_t, int64_t


cdef extern from "cs.h" nogil:
    ctypedef struct cs_conv_tile:
        int32_t block, blocks, plane, planes
        int64_t weight

    ctypedef struct cs_activation:
        float low, high, a, b
        int32_t curve

    ctypedef struct cs_conv:
        int32_t oh, ow, kh, kw, inner, inner_last, last_plane
        cs_activation activation
        int64_t x_plane, x_kh, x_kw, x_px, x_oh
        int64_t y_block, y_row, y_px
        int64_t r_block, r_row, r_px
        int32_t filters, pixels, far, pool, tiles
        const cs_conv_tile *tile

    ctypedef struct cs_depthwise:
        int32_t oh, ow, kh, kw
        cs_activation activation
        int64_t x_plane, x_kh, x_kw, x_px, x_oh
        int64_t y_block, y_row

    ctypedef struct cs_winograd:
        int32_t m, planes, blocks, h, w, oh, ow, rows, columns, top, left, pool
        cs_activation activation
        int64_t x_plane, x_row, y_block, y_row, r_block, r_row

    ctypedef struct cs_pool:
        int32_t h, w, oh, ow, kh, kw, sh, sw, pt, pl, pb, pr
        int32_t count_padding
        int64_t x_row, x_plane, y_row, y_plane

    ctypedef struct cs_pointwise:
        int32_t h, w, arithmetic
        cs_activation activation
        int64_t a_px, a_row, a_plane, b_px, b_row, b_plane, y_row, y_plane

    ctypedef struct cs_norm:
        int32_t channels, w, before, after
        float eps, alpha, beta, bias
        int64_t x_row, x_plane, y_row, y_plane

    ctypedef struct cs_kernels:
        const char *isa
        int32_t block, half
        int (*conv_tile_blocks)(int ow, int blocks) noexcept nogil
        int (*conv_by_pixels)(int ow, int filters, int taps) noexcept nogil
        int (*conv_planar_by_pixels)(int ow, int filters, int taps) noexcept nogil
        int (*conv_tile_pixels)(int blocks) noexcept nogil
        void (*conv)(const cs_conv *p, int t, int oh0, int oh1, const float *x, const float *w,
                     const float *bias, const float *r, float *y) noexcept nogil
        void (*depthwise)(const cs_depthwise *p, int block, int oh0, int oh1, const float *x,
                          const float *w, const float *bias, float *y) noexcept nogil
        void (*activate)(const cs_activation *f, int64_t n, const float *x, int64_t x_px, float *y,
                         int64_t y_px) noexcept nogil
        void (*pack)(int channels, int h0, int h1, int w, const float *x, int64_t x_c, int64_t x_h,
                     int64_t x_w, float *y, int64_t y_row, int64_t y_px) noexcept nogil
        void (*unpack)(int channels, int h0, int h1, int w, const float *x, int64_t x_row,
                       float *y, int64_t y_c, int64_t y_h) noexcept nogil
        double (*peak)(int64_t rounds, float *sink) noexcept nogil

    enum: CS_ADD, CS_SUB, CS_MUL


# The table of the instruction set in use.
cdef const cs_kernels *table() noexcept nogil
# Threads that a public function may use.
cdef int thread_count() noexcept nogil


cdef class Buffer:
    """float32 memory, 64-byte aligned: its own, zeroed when made, or that of an array that it is
    given. Python can read it (as bytes)."""
    cdef float *data
    cdef void *own        # what is to be freed
    cdef object array     # whose memory it is, if not its own
    cdef readonly size_t floats


# Scratch memory that the next call finds again: fresh pages cost more than the work on them.
# Its contents are arbitrary. Give it back with `release` when the call is done.
cdef Buffer borrow(size_t floats)
cdef int release(Buffer buffer) except -1
