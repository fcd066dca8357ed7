"""Layers with memory of their own, for the training step."""

from convserve.kernels._core cimport Buffer
from convserve.kernels._train_conv cimport cs_train_conv
from convserve.kernels._train_step cimport cs_train_norm

cdef class ConvLayer:
    cdef cs_train_conv layer
    cdef Buffer forward, backward, partials

cdef class NormLayer:
    cdef cs_train_norm norm
    cdef Buffer floats, doubles
    cdef list kept

cdef float *address(float[::1] values, list kept) except NULL
