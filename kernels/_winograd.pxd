"""Weights of a 3 x 3 convolution in the Winograd domain, packed for the C kernels."""

from libc.stdint cimport int64_t

from convserve.kernels._core cimport Buffer
from convserve.kernels._packed cimport PackedConv


cdef class PackedWinograd:
    cdef readonly int m, channels, filters, oh, ow
    cdef PackedConv product   # the geometry of one coefficient's product
    cdef Buffer weights, bias
    cdef int64_t coefficient  # floats of one coefficient's weights
