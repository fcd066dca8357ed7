"""Winograd-domain weights U = G g G' of F(m x m, 3 x 3), m = 2, 4 and 6.

The points of F(4, 3) are 0, +-sqrt(1/2), +-sqrt(2) and infinity, those of F(2, 3) 0, +-1 and
infinity, those of F(6, 3) 0, +-1, +-2, +-1/2 and infinity; the transforms of inputs and outputs in
csrc/winograd.tmpl.h belong to them. U is computed in float64 and rounded once.
"""

import numpy as np

from convserve.errors import ShapeError
from convserve.kernels._arguments import conv_window, float32_array

from convserve.kernels._core cimport Buffer, table
from convserve.kernels._packed cimport PackedConv

ROOT = 2.0 ** 0.5
G = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array(
        [
            [1, 0, 0],
            [-2 / 3.0, -ROOT / 3, -1 / 3.0],  # floats: integers divide as in C here
            [-2 / 3.0, ROOT / 3, -1 / 3.0],
            [1 / 6.0, ROOT / 6, 1 / 3.0],
            [1 / 6.0, -ROOT / 6, 1 / 3.0],
            [0, 0, 1],
        ]
    ),
    6: np.array(
        [
            [1, 0, 0],
            [-2 / 9.0, -2 / 9.0, -2 / 9.0],
            [-2 / 9.0, 2 / 9.0, -2 / 9.0],
            [1 / 90.0, 1 / 45.0, 2 / 45.0],
            [1 / 90.0, -1 / 45.0, 2 / 45.0],
            [1 / 45.0, 1 / 90.0, 1 / 180.0],
            [1 / 45.0, -1 / 90.0, 1 / 180.0],
            [0, 0, 1],
        ]
    ),
}


# What the inputs and products of a pass may take: most of a second-level cache, or, where the
# weights are larger and each pass reads them from farther away, a part of the last-level one.
# Inputs are read for one product in 32 only, weights for one in as many as the pass has tiles.
CACHED_WEIGHTS = 640 * 1024  # floats
PASS_FLOATS = 160 * 1024
LARGE_PASS_FLOATS = 1280 * 1024


def pass_tiles(m, channels, filters, tiles):
    """How many tiles of m x m outputs go through their products together; `tiles`: at the most."""
    cdef int block = table().block, planes = (channels + block - 1) // block
    cdef int blocks = (filters + block - 1) // block
    coefficients = (m + 2) ** 2
    a_tile = coefficients * block * (planes + table().conv_tile_blocks(64, blocks))
    large = coefficients * channels * blocks * block > CACHED_WEIGHTS
    most = (LARGE_PASS_FLOATS if large else PASS_FLOATS) // a_tile
    return max(14, min(most, tiles, 112))


cdef int _transform(const float[:, :, :, ::1] w, const double[:, ::1] g,
                    float[:, :, ::1] u) except -1:
    """u[i * n + j][o][c] = (g w[o][c] g')[i][j]; BLAS would do it, with threads that spin."""
    cdef Py_ssize_t o, c, n = g.shape[0], i, j, k
    cdef double half[8][3]
    cdef double value
    with nogil:
        for o in range(w.shape[0]):
            for c in range(w.shape[1]):
                for i in range(n):
                    for k in range(3):
                        half[i][k] = g[i, 0] * w[o, c, 0, k] + g[i, 1] * w[o, c, 1, k]
                        half[i][k] += g[i, 2] * w[o, c, 2, k]
                for i in range(n):
                    for j in range(n):
                        value = half[i][0] * g[j, 0] + half[i][1] * g[j, 1]
                        u[i * n + j, o, c] = <float>(value + half[i][2] * g[j, 2])
    return 0


cdef class PackedWinograd:
    """weight: float32[O, C, 3, 3], bias: float32[O] or None, for images of height x width with
    `padding`, stride 1. m: outputs a tile, 2, 4 or 6. ready: as PackedConv has it. Raises
    ShapeError for any other filter."""

    def __init__(self, weight, bias, height, width, padding, int m, ready=None):
        weight = float32_array(weight, "winograd: weight", 4)
        if weight.shape[2:] != (3, 3) or m not in G:
            raise ShapeError(f"winograd: 3 x 3 filters, m = 2, 4 or 6, got {weight.shape}, m {m}")
        window = conv_window((height, width), (3, 3), 1, padding, 1, "floor", "winograd")
        self.m = m
        self.filters, self.channels = weight.shape[:2]
        self.oh, self.ow = window.oh, window.ow
        cdef Py_ssize_t i, n = (m + 2) * (m + 2)
        # Many tiles are pixels of one row: the widest register tiles suit.
        self.product = PackedConv(np.zeros((*weight.shape[:2], 1, 1), np.float32), None, 1, 64,
                                  planar=False)
        self.product.weights = None     # only its geometry is of use
        self.coefficient = self.product.weight_floats
        self.weights = Buffer(n * self.coefficient, ready)
        cdef float[:, :, ::1] packed
        cdef PackedConv product
        cdef float *data
        if ready is None:
            packed = np.empty((n, *weight.shape[:2]), np.float32)
            _transform(np.ascontiguousarray(weight), G[m], packed)
            product, data = self.product, self.weights.data
            with nogil:
                for i in range(n):
                    product.transfer(&packed[i, 0, 0], data + i * self.coefficient)
        # the layer's bias, then as many zeros for the products
        self.bias = Buffer(2 * self.product.blocks * self.product.block)
        cdef const float[:] b
        if bias is not None:
            b = bias
            for i in range(self.filters):
                self.bias.data[i] = b[i]

    @property
    def memory(self):
        """As PackedConv has it."""
        return np.frombuffer(self.weights, np.float32)
