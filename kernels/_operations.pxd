"""A plan for the C executor: tensors, and the operations on them in their order."""

from libc.stdint cimport int32_t, int64_t

from convserve.kernels._packed cimport PackedConv
from convserve.kernels._plan cimport cs_op
from convserve.kernels._tensors cimport Tensors


cdef class Operations(Tensors):
    cdef cs_op *ops
    cdef list kept                  # owners of the weights

    cdef cs_op *_op(self, int kind, int level, int x, int y) except NULL
    cdef void _cut(self, cs_op *op, int blocks, int rows, int width)
    cdef int _aligned(self, cs_op *op, int64_t rows) noexcept
    cdef void _reserve(self, cs_op *op, int64_t floats)
    cdef void _softmax(self, int kind, int level, int x, int y)
    cdef const int32_t *_numbers(self, array) except NULL
    cdef cs_op *_norm(self, int kind, int level, int x, int y) except NULL
    cdef void _by_pixels(self, cs_op *op, int y, PackedConv packed)
    cdef void _pool_on_store(self, cs_op *op, pool, int widest)
    cdef void _keep(self, cs_op *op, PackedConv packed)
    cdef cs_op *_pointwise(self, int kind, int level, int x, int y, activation) except NULL
    cdef const float *_constant(self, values) except NULL
