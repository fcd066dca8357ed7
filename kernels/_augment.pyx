"""Augmentation: raw pixels to normalised float32, moved, re-coloured and erased in one pass.

    uint8 image ─ photometry ─▶ table of 256 floats a channel ─ geometry ─▶ float32 ─ erase ─▶ out

Photometry and normalisation are functions of one byte, so they are a table: the shared one of the
preprocessing, or one that is made for the image. Geometry is one affine map from the pixels of the
result to those of the source, however many transforms it is made of, so pixels are interpolated
once at the most: a map of whole pixels copies. An image's result depends on its own arguments only,
and the whole call runs without the GIL, in the calling thread.
"""

import numpy as np
from libc.math cimport fabs, floor, fmod, isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t

from convserve.errors import ShapeError

cdef extern from "pixels.h" nogil:
    void cs_prefetch(const uint8_t *pixels, int64_t bytes)
    void cs_normalise(int width, const uint8_t *pixels, float factor, float shift, float *out)
    void cs_look_up(int width, const uint8_t *pixels, const float *table, float *out)
    void cs_fill(int width, float value, float *out)
    void cs_mirror(int width, const float *row, float *out)
    void cs_places(int width, float step, float first, float last, float *out)
    void cs_interpolate_row(int channels, int width, float *x, float *y, int32_t *at,
                            const float *planes, int64_t plane, int32_t stride, float *out,
                            int64_t out_plane)

# Planes of a source image in floats have a border of one pixel before and two behind: a place just
# beyond an edge is then interpolated as any other.
cdef enum:
    BEFORE = 1
    BORDER = 3
    NEAR = 2    # images ahead of the one that is made, brought into the cache


def augment(
    x, rows, maps, table, factor, shift, luma, out, photometry=None, boxes=None,
    bint reflect=False,
):
    """Makes out[i] of x[rows[i]].

    x: uint8 [M, C, H, W]; rows: int64 [N]; out: float32 [N, C, H, W], overwritten.
    maps: float64 [N, 6], the pixel (row i, column j) of the result lies in the source at column
    m0·j + m1·i + m2 and row m3·j + m4·i + m5; bilinear between pixels.
    table: float32 [C, 256], what each value is normalised to: value · factor - shift, which are
    float32 [C].
    photometry: float64 [N, 2], brightness and contrast factors: v · brightness, then
    v · contrast + (1 - contrast) · the image's mean grey, each limited to 0..255; luma: float64
    [C], the shares of the channels in grey. None leaves pixels as they are.
    boxes: int32 [N, 4], top, left, bottom, right (exclusive) of what is erased (0, the mean).
    reflect: what lies beyond the source is mirrored at its edges (which are not repeated), else it
    is the pixel value 0.
    Raises ShapeError for arrays that do not fit together.
    """
    cdef Py_ssize_t n = rows.shape[0]
    _check("x", x, np.uint8, (None, None, None, None))
    _check("rows", rows, np.int64, (n,))
    _check("maps", maps, np.float64, (n, 6))
    _check("table", table, np.float32, (x.shape[1], 256))
    _check("factor", factor, np.float32, (x.shape[1],))
    _check("shift", shift, np.float32, (x.shape[1],))
    _check("luma", luma, np.float64, (x.shape[1],))
    _check("out", out, np.float32, (n, *x.shape[1:]))
    if photometry is not None:
        _check("photometry", photometry, np.float64, (n, 2))
    if boxes is not None:
        _check("boxes", boxes, np.int32, (n, 4))
    if not n:
        return
    if 0 in x.shape:
        raise ShapeError("augment: images must not be empty")
    if x.strides[3] != 1:
        raise ShapeError("augment: the pixels of a row of x must be adjacent")
    cdef Source s
    s.channels, s.height, s.width = x.shape[1], x.shape[2], x.shape[3]
    s.x_channel, s.x_row = x.strides[1], x.strides[2]
    s.stride = s.width + BORDER
    s.plane = s.stride * (s.height + BORDER)
    s.reflect = reflect
    # Scratch of this call: the source in floats, of which the border stays black; a table; the
    # places of a row's pixels (four at the least), or the row itself.
    cdef float[:, ::1] planes = np.repeat(table[:, :1], s.plane, axis=1)
    cdef float[:, ::1] own = np.empty((s.channels, 256), np.float32)
    cdef float[:, ::1] at = np.zeros((2, max(s.width, 4)), np.float32)
    cdef int32_t[::1] places = np.zeros(max(s.width, 4), np.int32)
    s.planes, s.across, s.down, s.places = &planes[0, 0], &at[0, 0], &at[1, 0], &places[0]
    cdef const uint8_t[:, :, :, :] xv = x
    cdef const int64_t[::1] rv = rows
    cdef const double[:, ::1] mv = maps
    cdef const float[::1] fv = factor, sv = shift
    cdef const double[::1] lv = luma
    cdef float[:, :, :, ::1] ov = out
    cdef const double[:, ::1] pv = photometry
    cdef const int32_t[:, ::1] bv = boxes
    cdef bint recoloured = photometry is not None, erased = boxes is not None
    cdef const float[:, ::1] tv = table
    cdef Py_ssize_t i, k
    for i in range(n):
        if not 0 <= rv[i] < xv.shape[0]:
            raise ShapeError(f"augment: rows must be in 0..{xv.shape[0] - 1}, got {rv[i]}")
        for k in range(6):
            if not isfinite(mv[i, k]):
                raise ShapeError(f"augment: maps must be finite, got {mv[i, k]}")
    s.table = s.shared = &tv[0, 0]
    s.factor, s.shift = &fv[0], &sv[0]
    with nogil:
        for i in range(n):
            if i + NEAR < n:
                prefetch(&s, &xv[rv[i + NEAR], 0, 0, 0])
            s.x = &xv[rv[i], 0, 0, 0]
            if recoloured:
                recolour(&s, &lv[0], pv[i, 0], pv[i, 1], &own[0, 0])
                s.table = &own[0, 0]
            if whole_pixels(&mv[i, 0]):
                copy(&s, &mv[i, 0], &ov[i, 0, 0, 0])
            else:
                interpolate(&s, &mv[i, 0], &ov[i, 0, 0, 0])
            if erased:
                erase(&s, &bv[i, 0], &ov[i, 0, 0, 0])


def _check(name, array, dtype, shape):
    fits = array.dtype == dtype and array.ndim == len(shape)
    if not fits or any(w is not None and w != h for w, h in zip(shape, array.shape, strict=True)):
        raise ShapeError(
            f"augment: {name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
        )


cdef struct Source:
    int channels, height, width
    bint reflect
    const uint8_t *x             # [C, H, W] by these strides, in bytes
    Py_ssize_t x_channel, x_row
    const float *table           # [C, 256], what becomes of a byte
    const float *shared          # the same without photometry, whose entry 0 lies beyond the edges
    const float *factor          # [C], this one's numbers
    const float *shift
    float *planes                # [C, H + BORDER, W + BORDER]
    Py_ssize_t stride, plane
    float *across                # [W], where a row's pixels lie in a plane: columns, rows, both
    float *down
    int32_t *places


cdef void prefetch(const Source *s, const uint8_t *x) noexcept nogil:
    cdef int c
    for c in range(s.channels):
        cs_prefetch(x + c * s.x_channel, s.height * s.x_row)


cdef double limited(double v) noexcept nogil:
    return 0 if v < 0 else 255 if v > 255 else v


cdef void make_table(
    const Source *s, double brightness, double contrast, double grey, float *table,
) noexcept nogil:
    cdef int c, v
    cdef float value
    for c in range(s.channels):
        for v in range(256):
            value = limited(contrast * limited(brightness * v) + (1 - contrast) * grey)
            table[256 * c + v] = value * s.factor[c] - s.shift[c]


cdef void recolour(
    const Source *s, const double *luma, double brightness, double contrast, float *table,
) noexcept nogil:
    cdef double grey = 0
    cdef int c, i, v
    cdef int64_t counts[256]
    cdef double total
    cdef const uint8_t *row
    if contrast != 1:
        for c in range(s.channels):
            for v in range(256):
                counts[v] = 0
            for i in range(s.height):
                row = s.x + c * s.x_channel + i * s.x_row
                for v in range(s.width):
                    counts[row[v]] += 1
            total = 0
            for v in range(256):
                total += counts[v] * limited(brightness * v)
            grey += luma[c] * total / (<double> s.height * s.width)
    make_table(s, brightness, contrast, grey, table)


cdef bint whole_pixels(const double *m) noexcept nogil:
    """Whether a map moves by whole pixels and mirrors at the most."""
    return (
        fabs(m[0]) == 1 and m[1] == 0 and m[3] == 0 and m[4] == 1
        and floor(m[2]) == m[2] and floor(m[5]) == m[5]
    )


cdef double folded(double at, int size) noexcept nogil:
    """The place within 0..size - 1 that a mirror at both edges shows at `at`."""
    cdef double period = 2.0 * (size - 1)
    if 0 <= at <= size - 1:
        return at
    if size == 1:
        return 0
    at = fmod(fabs(at), period)
    return at if at <= size - 1 else period - at


cdef int source_index(const Source *s, double at, int size) noexcept nogil:
    """The row or column at a whole number, or -1 for one that is black."""
    if s.reflect:
        return <int> folded(at, size)
    return <int> at if 0 <= at <= size - 1 else -1


cdef void convert(
    const Source *s, int c, int row, int column, int count, float *out,
) noexcept nogil:
    """Pixels of a row of the source in floats."""
    cdef const uint8_t *pixels = s.x + c * s.x_channel + row * s.x_row + column
    if s.table == s.shared:
        cs_normalise(count, pixels, s.factor[c], s.shift[c], out)
    else:
        cs_look_up(count, pixels, s.table + 256 * c, out)


cdef void copy(const Source *s, const double *m, float *out) noexcept nogil:
    cdef int c, i, j, row
    cdef bint mirrored = m[0] < 0
    # The columns of the result that lie in the source: from `first` to before `end`.
    cdef double left = m[2] - (s.width - 1) if mirrored else -m[2]
    cdef int first = <int> min(max(left, 0), s.width)
    cdef int end = <int> min(max(left + s.width, 0), s.width)
    cdef int column = <int> (first - left)   # of `first`, or of end - 1
    cdef float black
    cdef float *to
    cdef const uint8_t *pixels
    if mirrored:
        column = <int> (left + s.width - end)
    for c in range(s.channels):
        black = s.shared[256 * c]
        for i in range(s.height):
            to = out + (c * s.height + i) * <Py_ssize_t> s.width
            row = source_index(s, i + m[5], s.height)
            if row < 0:
                cs_fill(s.width, black, to)
                continue
            if mirrored:
                convert(s, c, row, column, end - first, s.across)
                cs_mirror(end - first, s.across, to + first)
            else:
                convert(s, c, row, column, end - first, to + first)
            if not s.reflect:
                cs_fill(first, black, to)
                cs_fill(s.width - end, black, to + end)
                continue
            pixels = s.x + c * s.x_channel + row * s.x_row
            for j in range(first):
                to[j] = s.table[256 * c + pixels[source_index(s, m[0] * j + m[2], s.width)]]
            for j in range(end, s.width):
                to[j] = s.table[256 * c + pixels[source_index(s, m[0] * j + m[2], s.width)]]


cdef void interpolate(const Source *s, const double *m, float *out) noexcept nogil:
    cdef int i
    cdef Py_ssize_t area = <Py_ssize_t> s.height * s.width
    fill_planes(s)
    for i in range(s.height):
        find_places(s, m, i)
        cs_interpolate_row(
            s.channels, s.width, s.across, s.down, s.places, s.planes, s.plane,
            <int32_t> s.stride, out + i * <Py_ssize_t> s.width, area,
        )


cdef void fill_planes(const Source *s) noexcept nogil:
    """The source in floats, within its border."""
    cdef int c, i
    for c in range(s.channels):
        for i in range(s.height):
            convert(s, c, i, 0, s.width,
                    s.planes + c * s.plane + (i + BEFORE) * s.stride + BEFORE)


cdef void find_places(const Source *s, const double *m, int i) noexcept nogil:
    """Of row i: where each pixel lies in the planes."""
    cdef int j
    cdef float m0 = m[0], m3 = m[3], x0 = m[1] * i + m[2], y0 = m[4] * i + m[5]
    if s.reflect:
        for j in range(s.width):
            s.across[j] = folded(m0 * j + x0, s.width) + BEFORE
            s.down[j] = folded(m3 * j + y0, s.height) + BEFORE
    else:   # farther out is as black as just beyond the edge
        cs_places(s.width, m0, x0 + BEFORE, s.width + BEFORE, s.across)
        cs_places(s.width, m3, y0 + BEFORE, s.height + BEFORE, s.down)


cdef void erase(const Source *s, const int32_t *box, float *out) noexcept nogil:
    cdef int c, i, j
    cdef int top = max(box[0], 0), left = max(box[1], 0)
    cdef int bottom = min(box[2], s.height), right = min(box[3], s.width)
    for c in range(s.channels):
        for i in range(top, bottom):
            for j in range(left, right):
                out[(c * s.height + i) * <Py_ssize_t> s.width + j] = 0
